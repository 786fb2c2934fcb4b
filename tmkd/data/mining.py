"""Mine the pool of stage 1 (METHOD.md, "Stage 1"): questions retrieve passages, from several sources in given shares.

Questions are taken in the order of a hash, each with its best BM25 passages, until the source's share of `size` is
filled; so a smaller pool is part of a larger one. The pool is decontaminated: nothing of the development and test sets
comes in (`tmkd.data.decontamination`).
"""

from __future__ import annotations

import itertools
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tmkd.config.pool_sections import Pool, PoolSource
from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.data.decontamination import HeldOut, quoted_in
from tmkd.data.documents.bm25 import PassageIndex
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.text import normalise, same_text, text_hash
from tmkd.data.pair_ids import exact_hash
from tmkd.data.pairs import Pairs, pair_id, pair_key
from tmkd.data.pool_sources import read_ready, read_texts
from tmkd.data.split import share_of

logger = logging.getLogger(__name__)

Row = tuple[str, str]
T = TypeVar("T")
_TOGETHER = 8192  # pairs whose texts are copied into memory at the same time; a row group of the file
_REMEMBERED = 1 << 17  # texts of a source whose words are kept, since many askers find them: 100 to 300 MB
_MARGIN = 20  # hits read beyond those wanted, in place of hits that must not be paired with the question


@dataclass(frozen=True)
class Material:
    """The texts or pairs of one source of a pool, ready to be mined.

    Attributes:
        source: the source as the recipe gives it.
        name: what messages call it.
        askers: the texts that search: questions, or passages if `source.ask` is `passages`; empty for ready-made pairs.
        texts: the texts that are searched: the other side.
        ready: ready-made pairs; None: the source is mined.
    """

    source: PoolSource
    name: str
    askers: list[str]
    texts: list[str]
    ready: Pairs | None

    def most(self, each: int) -> int:
        """How many pairs the source can give at most, if each asker gets `each`."""
        return len(self.ready) if self.ready is not None else len(self.askers) * each

    def digest(self) -> str:
        """A hash of all texts or pairs."""
        if self.ready is not None:
            return self.ready.digest()
        return Pairs.build(self.askers, [""] * len(self.askers)).digest() + Pairs.build(self.texts, self.texts).digest()


def read_sources(
    pool: Pool,
    train: Pairs,
    documentation: Callable[[], list[str]],
    others: Mapping[int, tuple[str, tuple[list[str], list[str]]]] | None = None,
) -> list[Material]:
    """Read what a pool's sources name, except sources with a share of 0.

    Args:
        pool: the recipe's `pool`.
        train: the training pairs, which the name `own` stands for.
        documentation: gives the passages that the name `debian-docs` stands for.
        others: for each source that is another recipe, by its number: the recipe's name, its questions and passages.

    Raises:
        DataError: a source cannot be read (`tmkd.data.pool_sources`).
    """
    materials = []
    for number, source in enumerate(pool.sources):
        key = f"pool.sources.{number}"
        if source.share == 0:
            continue
        if source.pairs is not None:
            ready = read_ready(source.pairs, train, f"{key}.pairs")
            materials.append(Material(source, f"pairs of {source.pairs.name}", [], [], ready))
            continue
        if source.task is not None:
            assert others is not None
            name, sides = others[number]
            asked, found_in = f"questions of {name}", f"passages of {name}"
        else:
            assert source.questions is not None
            assert source.passages is not None
            questions = read_texts(source.questions, train, "question", f"{key}.questions", documentation)
            passages = read_texts(source.passages, train, "passage", f"{key}.passages", documentation)
            asked, found_in = f"questions of {source.questions.name}", f"passages of {source.passages.name}"
            sides = (questions, passages)
        if source.ask == "passages":
            asked, found_in, sides = found_in, asked, (sides[1], sides[0])
        name = f"{asked} on {found_in}"
        materials.append(Material(source, name, *sides, None))
    return materials


def mine(pool: Pool, materials: Sequence[Material], train: Pairs, held: HeldOut, path: Path) -> list[dict[str, Any]]:
    """Mine a pool into a file. The pairs' texts are not in memory together, only those that the sources hold.

    Args:
        pool: the recipe's `pool`.
        materials: what its sources hold, as `read_sources` gives it.
        train: the training pairs; if passages ask, their own questions in these are left out.
        held: what the pool must not contain.
        path: the Parquet file, which `Pairs.load` reads.

    Returns:
        For each source {"source": its name, "pairs": how many it gave, "wanted": how many it was to give (None: all),
        "dropped": how many questions, passages and pairs were removed as contamination}.

    Raises:
        DataError: a source gives no pair at all.
    """
    seen: set[bytes] = set()
    counts: list[dict[str, Any]] = []
    total = sum(material.source.share for material in materials)
    with pq.ParquetWriter(path, Pairs.build([], []).table.schema, compression="zstd") as writer:
        for material in materials:
            wanted = None if pool.size is None else round(pool.size * material.source.share / total)
            dropped = _Dropped(held)
            if material.ready is not None:
                made = _ready(material.ready, dropped, pool.seed)
            else:
                made = _retrieved(material, pool, train, dropped)
            most = material.most(pool.passages_per_question)
            left, count = itertools.islice(_fresh(made, seen), wanted), 0
            with progress("mine", most if wanted is None else min(wanted, most)) as bar:
                while some := [*itertools.islice(left, _TOGETHER)]:
                    writer.write_table(Pairs.build(*zip(*some, strict=True)).table)
                    count += len(some)
                    bar.advance(len(some))
            if count == 0 and wanted != 0:
                raise DataError(_nothing(material, dropped))
            logger.info(f"pool: {count:,} pairs from {material.name}{_shortfall(count, wanted)}{dropped.summary()}")
            counts.append({"source": material.name, "pairs": count, "wanted": wanted, "dropped": dropped.counts()})
    return counts


def _fresh(made: Iterable[Row], seen: set[bytes]) -> Iterator[Row]:
    """The pairs that no spelling of has come before (`seen`, their ids)."""
    for row in made:
        name = bytes.fromhex(pair_id(*map(same_text, row)))
        if name not in seen:
            seen.add(name)
            yield row


def choose_pairs(pairs: Pairs, size: int, seed: int) -> Pairs:
    """Choose `size` of the pairs by a hash of each; a smaller choice is part of a larger one. Keeps their order."""
    if len(pairs) <= size:
        logger.warning(f"pool: there are {len(pairs):,} pairs, `size` is {size:,}; all are taken")
        return pairs
    logger.info(f"pool: {size:,} of {len(pairs):,} pairs")
    return pairs.take(np.sort(np.argsort(_shares(pairs, seed), kind="stable")[:size]))


def _shares(pairs: Pairs, seed: int) -> NDArray[np.float64]:
    """`share_of` each pair, [N]; pairs with the same texts have the same one."""
    return np.fromiter((share_of(name, seed) for name in pairs.ids), dtype=np.float64, count=len(pairs))


def decontaminate(pool: Pairs, held: HeldOut, name: str = "pool") -> Pairs:
    """Remove from a pool the pairs, questions and passages of the development and test sets. Keeps the order.

    Args:
        pool: the pool, or other pairs to learn from.
        held: the development and test sets.
        name: what messages call the pairs.

    Raises:
        DataError: not a single pair is left.
    """
    dropped, kept = _Dropped(held), array("q")
    is_held_out, is_removed = _once(held.question), _once(dropped.passage)
    with progress("decontaminate", len(pool)) as bar:
        for row, (question, passage) in enumerate(_counted(pool.texts(), len(pool), bar)):
            if is_held_out(question):  # the question of a held-out pair always is
                if not dropped.pair(question, passage):
                    dropped.question(question)
            elif not is_removed(passage):
                kept.append(row)
    if not kept:
        raise DataError(f"{name}: not a single pair is left of {len(pool):,}{dropped.summary()}")
    if len(kept) < len(pool):
        logger.info(f"{name}: {len(kept):,} of {len(pool):,} pairs{dropped.summary()}")
    return pool if len(kept) == len(pool) else pool.take(kept)


def _once(judge: Callable[[str], bool]) -> Callable[[str], bool]:
    """The same test, but each distinct text is judged once: its hash and the verdict are kept, and not the text."""
    verdicts: dict[bytes, bool] = {}

    def judged(text: str) -> bool:
        name = exact_hash(text)
        if name not in verdicts:
            verdicts[name] = judge(text)
        return verdicts[name]

    return judged


class _Dropped:
    """Finds texts that are contamination, and counts them, each text once."""

    def __init__(self, held: HeldOut) -> None:
        self.held = held
        self.questions: set[str] = set()
        self.passages: set[str] = set()
        self.pairs: set[Row] = set()

    def question(self, text: str) -> bool:
        """Whether the question must be removed."""
        if self.held.question(text):
            self.questions.add(text)
        return text in self.questions

    def passage(self, text: str) -> bool:
        """Whether the passage must be removed."""
        if self.held.passage(text):
            self.passages.add(text)
        return text in self.passages

    def pair(self, question: str, passage: str) -> bool:
        """Whether the pair must be removed."""
        if self.held.pair(question, passage):
            self.pairs.add((question, passage))
        return (question, passage) in self.pairs

    def counts(self) -> dict[str, int]:
        """How many were removed."""
        return {"questions": len(self.questions), "passages": len(self.passages), "pairs": len(self.pairs)}

    def summary(self) -> str:
        """The counts, as messages end with them."""
        questions, passages, pairs = self.counts().values()
        more = f", {pairs:,} pairs" if pairs else ""
        return (
            f"; removed as contamination from the development or test set: {questions:,} questions, "
            f"{passages:,} passages{more}"
        )


def _by_hash(texts: Iterable[str], seed: int) -> list[str]:
    return sorted(texts, key=lambda text: (share_of(text, seed), text))


def _ready(pairs: Pairs, dropped: _Dropped, seed: int) -> Iterator[Row]:
    is_question, is_passage = _once(dropped.question), _once(dropped.passage)
    for question, passage in pairs.take(np.argsort(_shares(pairs, seed), kind="stable")).texts():
        if not is_question(question) and not is_passage(passage):
            yield question, passage


def _retrieved(material: Material, pool: Pool, train: Pairs, dropped: _Dropped) -> Iterator[Row]:
    """Each asker with its best texts, as (question, passage) whichever side asks. Builds the index at once."""
    passages_ask = material.source.ask == "passages"
    removed = (dropped.passage, dropped.question) if passages_ask else (dropped.question, dropped.passage)
    with progress("decontaminate", len(material.askers) + len(material.texts), "texts") as bar:
        counted = _counted(material.askers, len(material.askers), bar)
        askers = _by_hash((text for text in counted if not removed[0](text)), pool.seed)
        texts = [text for text in _counted(material.texts, len(material.texts), bar) if not removed[1](text)]
    index = PassageIndex.build([Passage(text_hash(text), text, "", (), "", "") for text in texts])
    known = set(train.pair_keys) if passages_ask else set()
    quotes, plain = lru_cache(_REMEMBERED)(quoted_in), lru_cache(_REMEMBERED)(normalise)

    def rows() -> Iterator[Row]:
        for asker in askers:
            found = 0
            for number, _ in index.search(asker, pool.passages_per_question + _MARGIN):
                row = (texts[number], asker) if passages_ask else (asker, texts[number])
                if quotes(row[0])(plain(row[1])) or (known and pair_key(*row) in known):
                    continue
                yield row
                found += 1
                if found == pool.passages_per_question:
                    break

    return rows()


def _counted(items: Iterable[T], count: int, bar: Any) -> Iterator[T]:
    for number, item in enumerate(items, start=1):
        yield item
        if number % 500 == 0 or number == count:
            bar.advance(number % 500 or 500)


def _shortfall(count: int, wanted: int | None) -> str:
    return "" if wanted is None or count >= wanted else f" ({wanted:,} were wanted; it holds no more)"


def _nothing(material: Material, dropped: _Dropped) -> str:
    if material.ready is not None:
        return f"pool: {material.name}: not a single pair is left of {len(material.ready):,}{dropped.summary()}"
    return (
        f"pool: {material.name}: not a single hit for {len(material.askers):,} queries in {len(material.texts):,} texts"
        f"{dropped.summary()}; do they share a language and a subject?"
    )
