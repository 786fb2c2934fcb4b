"""Mine a pool from a corpus on disk: index the corpus, retrieve passages for every question of a file, write the pairs.

Memory does not grow with the corpus, the questions or the pairs: the index is on disk, questions come in a stream, and
pairs are written in parts. Only `most` needs four bytes for each passage of the index.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tmkd.core.cluster import Cluster
from tmkd.core.console import Bar, progress
from tmkd.core.errors import DataError
from tmkd.core.files import same_file, sha256_of
from tmkd.data.builtin.corpus import CORPORA
from tmkd.data.corpus_pool.one_question import MinedQuestion, mined_on
from tmkd.data.corpus_pool.parts import FORMATS, Parts
from tmkd.data.corpus_pool.questions import Question, QuestionFile
from tmkd.data.corpus_pool.retrieve import REASONS, Mining, Retriever, Uses
from tmkd.data.decontamination import HeldOut
from tmkd.data.documents.index import Changes, DocumentIndex
from tmkd.data.documents.reader import Reading, index_documents
from tmkd.data.pairs import Pairs
from tmkd.data.readers import read_rows
from tmkd.data.rows import Columns, rows_to_pairs

logger = logging.getLogger(__name__)

_PART = 250  # questions whose pairs are in memory, and in one part
_NAMED = 5  # questions that messages name
_NAMING = "Name yours with --without-question, --without-passage or --without-label (in Python: without_columns)"
_FORMAT = 2  # of the parts: raise it when the same arguments give other pairs


@dataclass
class MinedPool:
    """A pool that was mined, and what became of every question and passage.

    Attributes:
        output: the file.
        index: the folder of the index.
        indexed: what changed in the index; None: it was used as it was.
        passages: how many passages the index holds.
        pairs: how many pairs the pool has.
        questions: how many questions have a pair.
        read: how many rows the file of questions has.
        duplicates: rows whose question came before, in whatever spelling.
        renamed: questions with an id that another question has; they are named by their text.
        held_out: questions that are held-out ones, or nearly so.
        without_hit: questions without a hit; `first_without_hit` are the first of them.
        without_pair: questions all of whose hits were left out; `first_without_pair` are the first of them.
        fewer: questions with fewer passages than they were to get, but at least one.
        left_out: how many passages of questions' lists were left out, by reason.
        seconds: of this call, without the index.
        mined: how many pairs this call has mined; the others were there already.
    """

    output: Path
    index: Path
    indexed: Changes | None
    passages: int
    pairs: int = 0
    questions: int = 0
    read: int = 0
    duplicates: int = 0
    renamed: int = 0
    held_out: int = 0
    without_hit: int = 0
    first_without_hit: list[str] = field(default_factory=list)
    without_pair: int = 0
    first_without_pair: list[str] = field(default_factory=list)
    fewer: int = 0
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    seconds: float = 0.0
    mined: int = 0

    def add(self, counts: dict[str, Any]) -> None:
        """Add the counts of a part."""
        for name in ("pairs", "questions", "held_out", "without_hit", "without_pair", "fewer"):
            setattr(self, name, getattr(self, name) + counts[name])
        for name in ("first_without_hit", "first_without_pair"):
            setattr(self, name, [*getattr(self, name), *counts[name]][:_NAMED])
        for reason in REASONS:
            self.left_out[reason] += counts["left_out"].get(reason, 0)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-like values."""
        rate = round(self.mined / self.seconds, 1) if self.seconds else None
        seconds = round(self.seconds, 3)
        return {**asdict(self), "output": str(self.output), "index": str(self.index), "seconds": seconds,
                "pairs_per_second": rate}  # fmt: skip

    def sentences(self) -> list[str]:
        """All of it in words."""
        found = [f"{self.pairs:,} pairs of {self.questions:,} questions and an index of {self.passages:,} passages"]
        found.append(
            f"questions: {self.read:,} rows; left out: {self.duplicates:,} that came before"
            f", {self.held_out:,} of the held-out files"
            f", {self.without_hit:,} without a hit{_named(self.without_hit, self.first_without_hit)}"
            f", {self.without_pair:,} all of whose hits were left out"
            f"{_named(self.without_pair, self.first_without_pair)}"
        )
        if self.renamed:
            found.append(f"{self.renamed:,} questions have an id that another one has; their qid is made of their text")
        if self.fewer:
            found.append(f"{self.fewer:,} questions have fewer passages than they were to get")
        reasons = [f"{count:,} that {REASONS[name]}" for name, count in self.left_out.items() if count]
        if reasons:
            found.append(f"passages left out of the questions' lists: {', '.join(reasons)}")
        return found


def mine_pool(
    questions: str | Path,
    output: str | Path,
    corpus: Sequence[str | Path] = (),
    *,
    index: str | Path | None = None,
    reading: Reading | None = None,
    mining: Mining | None = None,
    cluster: Cluster | None = None,
) -> MinedPool:
    """Retrieve passages of a corpus for every question of a file, and write the pairs: a pool for stage 1.

    If the call is killed, the same call continues: what is finished is in `OUTPUT.parts/`. The file appears when it is
    whole.

    Args:
        questions: the file of questions (`tmkd.data.corpus_pool.questions.QuestionFile`), or a BEIR folder.
        output: the pool: Parquet or JSON lines, by its extension.
        corpus: files and folders, as `build_index` takes them. Empty: the index is used as it is.
        index: the folder of the index, which is made, or brought up to date with the corpus; beside the output unless
            given.
        reading: how the corpus is read; rows of JSON lines and Parquet are whole passages unless given.
        mining: how passages are chosen.
        cluster: the Ray cluster whose workers search the index, which all its nodes must see; this process unless
            given. The pool is the same.

    Raises:
        DataError: a file that cannot be used (the message names file and line), parts of a pool that was begun
            otherwise, or not a single pair.
        TmkdError: another process is mining this pool.
        MissingExtraError: Tantivy is not installed.
    """
    output, mining = Path(output), mining or Mining()
    _check_output(output, corpus, (questions, *mining.without))
    asked = QuestionFile(Path(questions), mining.column, mining.quoting)
    next(iter(asked))  # a file that cannot be used is refused before the corpus is indexed
    held = _held_out(mining)
    folder = Path(index) if index is not None else output.with_name(output.name.split(".")[0] + ".index")
    indexed = _up_to_date(corpus, folder, reading)
    opened = DocumentIndex.open(folder)
    if not len(opened):
        raise DataError(f"the index {folder} holds no passage; name a corpus that has some")
    done = MinedPool(output, folder, indexed, len(opened))
    texts = {"questions": sha256_of(asked.path), "without": [sha256_of(Path(one)) for one in mining.without]}
    depends_on = {"format": _FORMAT, "index": opened.version, **asdict(mining), **texts}
    if not mining.without_columns:
        del depends_on["without_columns"]  # which parts of an earlier version do not have
    with Parts.opened(output, depends_on) as parts:
        before, began = sum(one["pairs"] for one in parts.counts), time.monotonic()
        _mine(asked, parts, Retriever(opened, mining, held, _uses(mining, parts)), done, cluster)
        for counts in parts.counts:
            done.add(counts)
        if not done.pairs:
            sentences = "; ".join(done.sentences()[1:])
            parts.discard()
            raise DataError(f"{output}: not a single pair. {sentences}. Do the texts share a language and a subject?")
        done.seconds, done.mined = time.monotonic() - began, done.pairs - before
        parts.finish()
    return done


def _check_output(output: Path, corpus: Sequence[str | Path], texts: Sequence[str | Path]) -> None:
    if not output.name.lower().endswith(FORMATS):
        raise DataError(f"{output}: unknown extension; a pool is written as {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise DataError(f"{output}: there is no folder {output.parent}")
    if any(same_file(output, file) for file in (*corpus, *texts)):
        raise DataError(f"{output} is one of the files to be read, which would be lost; name another output")
    for place in map(Path, corpus):
        beir = (place / "corpus.jsonl").is_file()  # of which only that file is read
        if place.is_dir() and not beir and place.resolve() in output.resolve().parents:
            raise DataError(f"{output} would be read as a part of the corpus {place}; write it elsewhere")


def _up_to_date(corpus: Sequence[str | Path], folder: Path, reading: Reading | None) -> Changes | None:
    if corpus:
        changes = index_documents(corpus, folder, reading or Reading(whole=True), corpora=CORPORA)
        logger.info(f"{folder}: {changes.sentence()}")
        return changes
    if not folder.exists():
        raise DataError(f"there is no index {folder}; name a corpus to be indexed, or an index that is there")
    return None


def _held_out(mining: Mining) -> HeldOut | None:
    """What the pool must not contain: in a file without labels every passage is a right one."""
    names = mining.without_columns
    columns, parts = Columns(**names), []
    for one in map(Path, mining.without):
        rows = read_rows(one, mining.quoting)
        labelled = "label" in names or any(row.get(columns.label or "") not in (None, "") for row in rows)
        pairs = rows_to_pairs(rows, one, columns=columns, need_labels=labelled, relevant_from=1, naming=_NAMING)
        if not labelled:
            logger.warning(
                f"{one}: there are no labels in a column {columns.label!r}, so every passage counts as a right one and "
                "is kept out of the pool; if there are labels, name their column with --without-label"
            )
            pairs = Pairs.build(pairs.questions, pairs.passages, labels=[1] * len(pairs))
        parts.append(pairs)
    return HeldOut(parts, 2) if parts else None


def _uses(mining: Mining, parts: Parts) -> Uses:
    """In how many pairs of the finished parts each passage is."""
    uses = Uses(mining.most)
    if mining.most is not None:
        for number in parts.numbers():
            uses.add(number)
    return uses


def _mine(asked: QuestionFile, parts: Parts, retriever: Retriever, done: MinedPool, cluster: Cluster | None) -> None:
    """Write the parts that are missing."""
    finished = sum(one["taken"] for one in parts.counts)
    at = parts.counts[-1]["row"] if parts.counts else 0
    if parts.counts:
        logger.info(f"{parts.folder} holds the pairs of the first {finished:,} questions; continued after them")
    with progress("mine", asked.count(), "questions", done=at) as bar:
        rest = itertools.islice(asked.distinct(), finished, None)
        taken = iter(lambda: list(itertools.islice(rest, _PART)), [])
        each = _here(taken, retriever) if cluster is None else mined_on(cluster, taken, retriever)
        for questions, found in each:
            row = questions[-1].row
            parts.add(*_part(_counted(found, bar, at), row, retriever))
            at = row
    done.duplicates, done.renamed = asked.duplicates, asked.renamed
    done.read = asked.duplicates + sum(one["taken"] for one in parts.counts)


def _here(
    parts: Iterable[list[Question]], retriever: Retriever
) -> Iterator[tuple[list[Question], Iterator[MinedQuestion]]]:
    """Find the passages of the questions of every part, as they are asked for."""
    for questions in parts:
        yield questions, (MinedQuestion.of(question, retriever) for question in questions)


def _counted(found: Iterable[MinedQuestion], bar: Bar, at: int) -> Iterator[MinedQuestion]:
    """The same questions; each is counted when the next is asked for, with the rows of the file before it."""
    for one in found:
        yield one
        bar.advance(one.row - at)
        at = one.row


def _part(
    found: Iterable[MinedQuestion], row: int, retriever: Retriever
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The pairs of some questions, the last of which is in this row, and their counts."""
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    named: dict[str, list[str]] = {"without_hit": [], "without_pair": []}
    for one in found:
        counts["taken"] += 1
        if one.held_out:
            counts["held_out"] += 1
            continue
        left_out += Counter(one.left_out)
        if not one.rows:
            why = "without_pair" if one.hits else "without_hit"
            counts[why] += 1
            named[why].append(one.text)
            continue
        counts["questions"] += 1
        counts["fewer"] += len(one.rows) < retriever.mining.passages
        for pair in one.rows:
            retriever.uses.add(pair["number"])
        rows += one.rows
    names = ("taken", "questions", "held_out", "without_hit", "without_pair", "fewer")
    return rows, {
        "row": row, "pairs": len(rows), **{name: counts[name] for name in names},
        **{f"first_{why}": some[:_NAMED] for why, some in named.items()}, "left_out": dict(left_out),
    }  # fmt: skip


def _named(count: int, some: Sequence[str]) -> str:
    if not count:
        return ""
    return f" ({', '.join(repr(one[:60]) for one in some)}{', ...' if count > len(some) else ''})"
