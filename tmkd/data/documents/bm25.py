"""BM25 over passages, with Tantivy: how texts become queries and hits, and an index in memory (for mining).

The index on disk is `tmkd.data.documents.index`; it builds queries and ranks hits with the same functions.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.core.errors import needs_extra
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.text import word_set
from tmkd.data.documents.words import terms

TOKENIZER = "tmkd"  # its name in a schema
_HEAP = 512 << 20  # bytes; large enough for a single segment, so that documents keep their order
_EXTRA = 20  # hits read beyond k, so that ties at the end are broken in a fixed order
_K1, _B = 1.2, 0.75  # of BM25, as in Tantivy
_MOST_WORDS = 256  # of a query; more words of a pasted page would hardly change the hits
_STOP = word_set(
    """
    a an and are as at be but by can could do does did for from had has have how i if in into is it its me my no
    not of on or s should so t that the their then there these they this to was we what when where which who why
    will with would you your
    """
)
Item = TypeVar("Item")


def import_tantivy() -> Any:
    """The search library.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs_extra("qa"):
        import tantivy
    return tantivy


def use_tokenizer(index: Any) -> Any:
    """Make an index cut its texts as `searchable` gives them: at blanks, with English stemming. Returns the index.

    Tantivy forgets tokenizers when an index is closed. Its own would drop words of more than 40 bytes, cut the words of
    many scripts at their vowel signs, and take a Chinese or Thai sentence for one word.
    """
    index.register_tokenizer(TOKENIZER, _analyzer())
    return index


def _analyzer() -> Any:
    """What makes words of a text that `searchable` gives."""
    tantivy = import_tantivy()
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
    return builder.filter(tantivy.Filter.stemmer("english")).build()


def searchable(text: str) -> str:
    """A text as it is indexed: its terms (`tmkd.data.documents.words.terms`), with blanks between them."""
    return " ".join(terms(text))


def build_query(
    index: Any,
    text: str,
    fields: Mapping[str, float],
    *,
    exclude: tuple[str, Collection[str]] | None = None,
    only: Any | None = None,
) -> Any | None:
    """Make a query of any text; the text has no syntax.

    Function words are left out unless there are no other words.

    Args:
        index: Tantivy's index.
        text: the text to search for.
        fields: the fields to search, with their weights.
        exclude: a field of exact values, and the values whose passages are left out.
        only: a query of Tantivy; what it finds is found, with or without a word of the text, and nothing else is.

    Returns:
        Tantivy's query; None if the text has no word and `only` is None.
    """
    tantivy = import_tantivy()
    words = _asked_words(text)
    parts = []
    if only is not None:  # it decides what is found, and adds nothing to the scores
        parts.append((tantivy.Occur.Must, tantivy.Query.boost_query(only, 0.0)))
    if words:
        # quotes keep a word from being read as an operator
        query = index.parse_query(" ".join(f'"{word}"' for word in words), list(fields), field_boosts=dict(fields))
        parts.append((tantivy.Occur.Must if only is None else tantivy.Occur.Should, query))
    if not parts:
        return None
    if exclude is not None and exclude[1]:
        left_out = tantivy.Query.term_set_query(index.schema, exclude[0], sorted(exclude[1]))
        parts.append((tantivy.Occur.MustNot, left_out))
    return parts[0][1] if len(parts) == 1 else tantivy.Query.boolean_query(parts)


def _asked_words(text: str) -> list[str]:
    """The words that a query searches for: without function words, unless there are no others."""
    words = list(dict.fromkeys(terms(text, asked=True)))
    return ([word for word in words if word not in _STOP] or words)[:_MOST_WORDS]


def pair_scores(questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
    """The BM25 score of every pair: of the passage for the question, among all distinct passages given.

    Words, stems and the formula are those of the index (k1 = 1.2, b = 0.75; idf = ln(1 + (N - n + 1/2) / (n + 1/2))),
    except that the index rounds the lengths of passages.

    Args:
        questions: N texts.
        passages: N texts.

    Raises:
        MissingExtraError: Tantivy is not installed.
    """
    stems = _analyzer().analyze
    asked = {text: list(dict.fromkeys(stems(" ".join(_asked_words(text))))) for text in dict.fromkeys(questions)}
    wanted = {word for words in asked.values() for word in words}
    rows: dict[str, list[int]] = defaultdict(list)  # the pairs of each distinct passage
    for row, (_, text) in enumerate(zip(questions, passages, strict=True)):
        rows[text].append(row)
    having: Counter[str] = Counter()
    lengths, counts = array("q"), array("q")  # of each passage; of the words that its pairs ask for, pair after pair
    for text, own in rows.items():
        found = Counter(stems(searchable(text)))
        having.update(found.keys() & wanted)
        lengths.append(found.total())
        counts.extend(found[word] for row in own for word in asked[questions[row]])
    mean = sum(lengths) / max(1, len(lengths))
    rarity = {word: math.log(1 + (len(rows) - n + 0.5) / (n + 0.5)) for word, n in having.items()}
    scores, left = np.zeros(len(passages)), iter(counts)
    for own, length in zip(rows.values(), lengths, strict=True):
        long = _B * length / (mean or 1) + 1 - _B
        for row in own:
            times = zip(asked[questions[row]], left, strict=False)  # takes as many counts as there are words
            scores[row] = sum(rarity[word] * n * (_K1 + 1) / (n + _K1 * long) for word, n in times if n)
    return scores


def best(
    searcher: Any, query: Any | None, k: int, size: int, read: Callable[[Any], tuple[Any, Item]]
) -> list[tuple[Item, float]]:
    """The k best hits of a query.

    Args:
        searcher: Tantivy's searcher.
        query: as `build_query` makes it; None finds nothing.
        k: how many hits.
        size: how many documents the index has.
        read: takes a hit's address; gives a key that orders hits of equal score, and the item to return for the hit.

    Returns:
        The items with their BM25 scores, best first.
    """
    if query is None or k < 1 or not size:
        return []
    hits = searcher.search(query, min(k + _EXTRA, size), count=False).hits
    found = [(float(score), *read(address)) for score, address in hits]
    found.sort(key=lambda hit: (-round(hit[0], 4), hit[1]))
    return [(item, score) for score, _, item in found[:k]]


class PassageIndex:
    """An index in memory over a list of passages. A hit is the place of a passage in that list."""

    def __init__(self, index: Any, size: int) -> None:
        self._index = index
        self._searcher = index.searcher()
        self._size = size

    @classmethod
    def build(cls, passages: Sequence[Passage]) -> PassageIndex:
        """Index the passages' texts, with English stemming.

        Raises:
            MissingExtraError: Tantivy is not installed.
        """
        tantivy = import_tantivy()
        schema = tantivy.SchemaBuilder()
        schema.add_text_field("text", tokenizer_name=TOKENIZER)
        schema.add_unsigned_field("number", stored=True)
        index = use_tokenizer(tantivy.Index(schema.build()))
        writer = index.writer(_HEAP, num_threads=1)
        with progress("index", len(passages), "passages") as bar:
            for number, passage in enumerate(passages):
                document = tantivy.Document()
                document.add_text("text", searchable(passage.text))
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
        """The k best passages as (place in the list, BM25 score), best first; of equal scores the first in the list."""

        def read(address: Any) -> tuple[int, int]:
            number = int(self._searcher.doc(address)["number"][0])
            return number, number

        return best(self._searcher, build_query(self._index, query, {"text": 1.0}), k, self._size, read)
