"""Documents: formats to sections, sections to passages, the BM25 index over them."""
