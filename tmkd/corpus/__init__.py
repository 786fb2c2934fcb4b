"""Documents to passages, and the index that searches them: the only room that retrieves."""
