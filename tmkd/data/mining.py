"""Mine the pool of stage 1 (METHOD.md, "Stage 1"): questions search passages, several sources in stated shares.

Questions are taken in the order of a hash, each with its best BM25 passages, until a source's share of `size` is
filled; so a smaller pool is part of a larger one. Nothing of development and test rows comes in
(tmkd/data/decontamination.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tmkd.config.sections import Pool, PoolSource
from tmkd.core.console import progress
from tmkd.core.errors import DataError
from tmkd.data.decontamination import HeldOut
from tmkd.data.documents.bm25 import PassageIndex
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.text import contains, text_hash
from tmkd.data.pairs import Pairs, pair_id
from tmkd.data.pool_sources import read_ready, read_texts
from tmkd.data.split import share_of

logger = logging.getLogger(__name__)

Row = tuple[str, str]
T = TypeVar("T")
_MARGIN = 20  # hits read beyond those wanted, for the ones that may not stand beside the question


@dataclass(frozen=True)
class Material:
    """What the sources of a pool hold, read and ready to be mined.

    Attributes:
        askers, texts: questions and passages (the other way round where passages ask); empty for ready-made pairs.
        ready: ready-made pairs, None where the source is mined.
    """

    source: PoolSource
    name: str
    askers: list[str]
    texts: list[str]
    ready: Pairs | None

    def most(self, each: int) -> int:
        """The pairs that it can give at most, `each` for one asker."""
        return len(self.ready) if self.ready is not None else len(self.askers) * each

    def digest(self) -> str:
        """A hash of everything it holds."""
        if self.ready is not None:
            return self.ready.digest()
        return Pairs.build(self.askers, [""] * len(self.askers)).digest() + Pairs.build(self.texts, self.texts).digest()


def read_sources(pool: Pool, train: Pairs, documentation: Callable[[], list[str]]) -> list[Material]:
    """Read what a pool's sources name; those with a share of 0 are left out.

    Raises:
        DataError: see `tmkd.data.pool_sources`.
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
        assert source.questions is not None
        assert source.passages is not None
        questions = read_texts(source.questions, train, "question", f"{key}.questions", documentation)
        passages = read_texts(source.passages, train, "passage", f"{key}.passages", documentation)
        asked, found_in = f"questions of {source.questions.name}", f"passages of {source.passages.name}"
        sides = (questions, passages)
        if source.ask == "passages":
            asked, found_in, sides = found_in, asked, (passages, questions)
        name = f"{asked} on {found_in}"
        materials.append(Material(source, name, *sides, None))
    return materials


def mine(pool: Pool, materials: Sequence[Material], train: Pairs, held: HeldOut) -> tuple[Pairs, list[dict[str, Any]]]:
    """The pool, and what came of each source: [{"source", "pairs", "wanted", "dropped"}].

    Raises:
        DataError: a source gives no pair at all.
    """
    seen: set[str] = set()
    rows: list[Row] = []
    counts: list[dict[str, Any]] = []
    total = sum(material.source.share for material in materials)
    for material in materials:
        wanted = None if pool.size is None else round(pool.size * material.source.share / total)
        dropped = _Dropped(held)
        if material.ready is not None:
            made = _ready(material.ready, dropped, pool.seed)
        else:
            made = _retrieved(material, pool, train, dropped)
        before, most = len(rows), material.most(pool.passages_per_question)
        with progress("mine", most if wanted is None else min(wanted, most)) as bar:
            for row in made:
                if wanted is not None and len(rows) - before >= wanted:
                    break
                name = pair_id(*row)
                if name not in seen and name not in held.pair_ids:
                    seen.add(name)
                    rows.append(row)
                    bar.advance(1)
        count = len(rows) - before
        if count == 0 and wanted != 0:
            raise DataError(_nothing(material, dropped))
        logger.info(f"pool: {count:,} pairs from {material.name}{_short(count, wanted)}{dropped.told()}")
        counts.append({"source": material.name, "pairs": count, "wanted": wanted, "dropped": dropped.counts()})
    return Pairs.build([question for question, _ in rows], [passage for _, passage in rows]), counts


def subsample(pairs: Pairs, size: int, seed: int) -> Pairs:
    """`size` of the pairs by a hash of each, rows in their order; a smaller one is part of a larger one."""
    if len(pairs) <= size:
        logger.warning(f"pool: there are {len(pairs):,} pairs, `size` asks for {size:,}; all are taken")
        return pairs
    places = [(share_of(name, seed), row) for row, name in enumerate(pairs.pair_ids)]
    logger.info(f"pool: {size:,} of {len(pairs):,} pairs")
    return pairs.take(sorted(row for _, row in sorted(places)[:size]))


def hold_out(pool: Pairs, held: HeldOut) -> Pairs:
    """The pool without pairs, questions and passages that development and test rows forbid, rows in their order.

    Raises:
        DataError: not a single pair is left.
    """
    dropped, kept = _Dropped(held), list[int]()
    rows = zip(pool.pair_ids, pool.questions, pool.passages, strict=True)
    with progress("hold out", len(pool)) as bar:
        for row, (name, question, passage) in enumerate(_counted(rows, len(pool), bar)):
            if name not in held.pair_ids and not dropped.question(question) and not dropped.passage(passage):
                kept.append(row)
    if not kept:
        raise DataError(f"pool: not a single pair is left of {len(pool):,}{dropped.told()}")
    if len(kept) < len(pool):
        logger.info(f"pool: {len(kept):,} of {len(pool):,} pairs{dropped.told()}")
    return pool if len(kept) == len(pool) else pool.take(kept)


class _Dropped:
    """Leaves out what development and test rows forbid, and counts it by text."""

    def __init__(self, held: HeldOut) -> None:
        self.held = held
        self.questions: set[str] = set()
        self.passages: set[str] = set()

    def question(self, text: str) -> bool:
        """Whether the question must not come in."""
        if self.held.question(text):
            self.questions.add(text)
        return text in self.questions

    def passage(self, text: str) -> bool:
        """Whether the passage must not come in."""
        if self.held.passage(text):
            self.passages.add(text)
        return text in self.passages

    def counts(self) -> dict[str, int]:
        """How many were left out."""
        return {"questions": len(self.questions), "passages": len(self.passages)}

    def told(self) -> str:
        questions, passages = self.counts().values()
        return f"; left out as nearly of development or test rows: {questions:,} questions, {passages:,} passages"


def _by_hash(texts: Iterable[str], seed: int) -> list[str]:
    return sorted(texts, key=lambda text: (share_of(text, seed), text))


def _ready(pairs: Pairs, dropped: _Dropped, seed: int) -> Iterator[Row]:
    rows = zip(pairs.pair_ids, pairs.questions, pairs.passages, strict=True)
    ordered = sorted(rows, key=lambda row: (share_of(row[0], seed), row[0]))
    for _, question, passage in ordered:
        if not dropped.question(question) and not dropped.passage(passage):
            yield question, passage


def _retrieved(material: Material, pool: Pool, train: Pairs, dropped: _Dropped) -> Iterator[Row]:
    """Each asker with its best texts, (question, passage) whichever side asks. The index is built at once."""
    turned = material.source.ask == "passages"
    left_out = (dropped.passage, dropped.question) if turned else (dropped.question, dropped.passage)
    with progress("hold out", len(material.askers) + len(material.texts), "texts") as bar:
        counted = _counted(material.askers, len(material.askers), bar)
        askers = _by_hash((text for text in counted if not left_out[0](text)), pool.seed)
        texts = [text for text in _counted(material.texts, len(material.texts), bar) if not left_out[1](text)]
    index = PassageIndex.build([Passage(text_hash(text), text, "", (), "", "") for text in texts])
    known = set(train.pair_ids) if turned else set()

    def rows() -> Iterator[Row]:
        for asker in askers:
            found = 0
            for number, _ in index.search(asker, pool.passages_per_question + _MARGIN):
                row = (texts[number], asker) if turned else (asker, texts[number])
                if contains(row[1], row[0]) or (known and pair_id(*row) in known):
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


def _short(count: int, wanted: int | None) -> str:
    return "" if wanted is None or count >= wanted else f" ({wanted:,} were wanted; it holds no more)"


def _nothing(material: Material, dropped: _Dropped) -> str:
    if material.ready is not None:
        return f"pool: {material.name}: not a single pair is left of {len(material.ready):,}{dropped.told()}"
    return (
        f"pool: {material.name}: not a single hit for {len(material.askers):,} queries in {len(material.texts):,} texts"
        f"{dropped.told()}; do they share a language and a subject?"
    )
