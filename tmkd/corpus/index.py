"""BM25 over passages, with Tantivy: built in memory, the same order on every call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tmkd.corpus.passages import Passage
from tmkd.corpus.text import word_set
from tmkd.errors import MissingExtraError
from tmkd.progress import progress

_WORD = re.compile(r"[^\W_]+")
_LONGEST_WORD = 40  # Tantivy's tokenizer drops longer ones
_HEAP = 512 << 20  # large enough for one segment, so that documents keep their order
_EXTRA = 20  # read beyond k, so that ties at the border are broken by passage number
_STOP = word_set(
    """
    a an and are as at be but by can could do does did for from had has have how i if in into is it its me my no
    not of on or s should so t that the their then there these they this to was we what when where which who why
    will with would you your
    """
)


class PassageIndex:
    """An index over a list of passages; hits are numbers into that list."""

    def __init__(self, index: Any, size: int) -> None:
        self._index = index
        self._searcher = index.searcher()
        self._size = size

    @classmethod
    def build(cls, passages: Sequence[Passage]) -> PassageIndex:
        """Index the passages' texts (words stemmed for English).

        Raises:
            MissingExtraError: Tantivy is not installed.
        """
        try:
            import tantivy
        except ImportError as error:
            raise MissingExtraError("the passage index needs tantivy: pip install 'tmkd[train]'") from error
        schema = tantivy.SchemaBuilder()
        schema.add_text_field("text", tokenizer_name="en_stem")
        schema.add_unsigned_field("number", stored=True)
        index = tantivy.Index(schema.build())
        writer = index.writer(_HEAP, num_threads=1)
        with progress("index", len(passages), "passages") as bar:
            for number, passage in enumerate(passages):
                document = tantivy.Document()
                document.add_text("text", passage.text.replace("_", " "))
                document.add_unsigned("number", number)
                writer.add_document(document)
                if number % 1000 == 999:
                    bar.advance(1000)
            writer.commit()
            writer.wait_merging_threads()
            bar.advance(len(passages) % 1000)
        index.reload()
        return cls(index, len(passages))

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The k best passages: (passage number, BM25 score), best first, equal scores by passage number.

        Any text is a valid query; it has no syntax. Function words are left out unless there is nothing else.
        """
        words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query) if len(word) <= _LONGEST_WORD))
        words = [word for word in words if word not in _STOP] or words
        if not words or k < 1 or not self._size:
            return []
        # quotes keep a word from being read as an operator
        parsed = self._index.parse_query(" ".join(f'"{word}"' for word in words), ["text"])
        hits = self._searcher.search(parsed, min(k + _EXTRA, self._size), count=False).hits
        found = [(int(self._searcher.doc(address)["number"][0]), float(score)) for score, address in hits]
        return sorted(found, key=lambda hit: (-round(hit[1], 4), hit[0]))[:k]
