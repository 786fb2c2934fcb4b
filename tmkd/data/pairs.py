"""Pairs: (question, passage[, label][, scores]), stored by column, each identified by a hash of its two texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.core.files import replacing
from tmkd.core.logits import sigmoid
from tmkd.core.open_files import require_room
from tmkd.data.arrow_file import ArrowFile, Chunks
from tmkd.data.documents.text import question_key
from tmkd.data.pair_ids import PairIds, first_of_each

_BATCH = 65_536  # pairs whose texts are Python strings at the same time, where pairs are read one after another
_GRADE = "relevance_grade"
_FIXED = ("pair_id", "question", "passage", "label", "qid", "pid", _GRADE)


def pair_id(question: str, passage: str) -> str:
    """The id of a pair: 32 hex digits, BLAKE2b-128 over the length of the question, the question and the passage.

    The length keeps ("ab", "c") and ("a", "bc") apart.
    """
    first = question.encode()
    return hashlib.blake2b(len(first).to_bytes(8, "little") + first + passage.encode(), digest_size=16).hexdigest()


def pair_key(question: str, passage: str) -> str:
    """An id that spellings of one pair share (`tmkd.data.documents.text.question_key`), for splits and decontamination.

    Labels are stored by `pair_id`, which no two texts share.
    """
    return pair_id(question_key(question), question_key(passage))


def grouped(names: Iterable[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct names in alphabetical order, and for each of the N names its place among them, [N] int64.

    Only the distinct names are kept. np.unique would give the same, with the memory of the longest name for every name.
    """
    first: dict[str, int] = {}  # in the order in which they come
    numbers = np.fromiter((first.setdefault(name, len(first)) for name in names), dtype=np.int64)
    distinct = sorted(first)
    places = np.empty(len(distinct), dtype=np.int64)
    places[[first[name] for name in distinct]] = np.arange(len(distinct))
    return distinct, places[numbers]


class Reference(NamedTuple):
    """A score column that is used in place of labels, and what it holds."""

    column: str
    kind: Literal["logit", "probability"]


class Pairs:
    """N pairs in one Arrow table, or in a file that is mapped into memory (`mapped`).

    Columns: pair_id, question, passage (string); optionally label (int64, null for no label), qid, pid (string), and
    any number of score columns (float64, null for no score).

    Example:
        pairs = Pairs.build(["who?"], ["she"], labels=[1])
        assert pairs.labels.tolist() == [1]

    Attributes:
        reference: the score column that is used in place of labels: `labels` are then its classes, 1 from a
            probability of 0.5 on, and `golden` is the probability itself. None: the labels are given.

    Raises:
        DataError: the table lacks a column.
    """

    def __init__(self, table: pa.Table, reference: Reference | None = None) -> None:
        missing = [name for name in ("pair_id", "question", "passage") if name not in table.column_names]
        if missing:
            raise DataError(
                f"a pairs table needs the columns {', '.join(missing)}; it has {', '.join(table.column_names)}"
            )
        self._table = table
        self._file: ArrowFile | None = None  # that holds the table
        self._rows: NDArray[np.integer] | None = None  # those of the table that are pairs, in their order; None: all
        self.reference = reference
        self._digest: str | None = None
        self._distinct: Pairs | None = None

    @classmethod
    def build(
        cls,
        questions: Sequence[str],
        passages: Sequence[str],
        *,
        labels: Sequence[int | None] | None = None,
        grades: Sequence[int | None] | None = None,
        qids: Sequence[str] | None = None,
        pids: Sequence[str] | None = None,
        scores: Mapping[str, Sequence[float | None]] | None = None,
    ) -> Pairs:
        """Make pairs from columns of one length; computes the pair ids.

        Args:
            questions: N questions.
            passages: N passages.
            labels: N classes from 0; None for a pair without a label.
            grades: the N grades that the labels were made of, where there are any; None for a pair without one.
            qids: N names that group pairs by question; the question's text unless given.
            pids: N names of the passages; the pair's id unless given.
            scores: score columns of N numbers; None for a pair without a score.

        Raises:
            DataError: a score column has the name of another column.
            ValueError: the columns differ in length.
        """
        columns: dict[str, pa.Array] = {
            "pair_id": pa.array([pair_id(q, p) for q, p in zip(questions, passages, strict=True)], pa.string()),
            "question": pa.array(questions, pa.string()),
            "passage": pa.array(passages, pa.string()),
        }
        if labels is not None:
            columns["label"] = pa.array(labels, pa.int64())
        if grades is not None:
            columns[_GRADE] = pa.array(grades, pa.int64())
        if qids is not None:
            columns["qid"] = pa.array(qids, pa.string())
        if pids is not None:
            columns["pid"] = pa.array(pids, pa.string())
        for name, values in (scores or {}).items():
            if name in _FIXED:
                raise DataError(f"a score column cannot be named {name!r}; rename it")
            columns[name] = pa.array(values, pa.float64())
        return cls(pa.table(columns))

    def __len__(self) -> int:
        return int(self._table.num_rows) if self._rows is None else len(self._rows)

    @property
    def table(self) -> pa.Table:
        """The pairs as an Arrow table; in memory as a whole where they are some of those of a file."""
        return self._table if self._rows is None else self._read(self._table.column_names)

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns, batch by batch; few pairs are in memory at a time where the pairs are in a file."""
        if self._file is not None:
            return self._file.batches(names, self._rows)
        return iter(self._table.select(names).to_batches(max_chunksize=_BATCH))

    def _read(self, names: Sequence[str]) -> pa.Table:
        schema = pa.schema([self._table.schema.field(name) for name in names])
        return pa.Table.from_batches(self.batches(names), schema)

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._table.column(name) if self._rows is None else self._read([name]).column(0)

    def _each(self, name: str) -> Iterator[str]:
        return (value for batch in self.batches([name]) for value in batch.column(0).to_pylist())

    def _strings(self, name: str) -> list[str]:
        return [*self._each(name)]

    @property
    def questions(self) -> list[str]:
        """The questions, N strings."""
        return self._strings("question")

    @property
    def passages(self) -> list[str]:
        """The passages, N strings."""
        return self._strings("passage")

    def texts(self) -> Iterator[tuple[str, str]]:
        """Question and passage of each pair. Few of them are in memory at a time, unlike with `questions`."""
        for batch in self.batches(["question", "passage"]):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def names(self) -> Iterator[tuple[str, str]]:
        """`qids` and `pids` of each pair. Few of them are in memory at a time."""
        columns = ["qid" if self.has_qids else "question", "pid" if "pid" in self._table.column_names else "pair_id"]
        for batch in self.batches(columns):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    @property
    def pair_ids(self) -> list[str]:
        """The pairs' ids, N strings of 32 hex digits."""
        return self._strings("pair_id")

    @property
    def ids(self) -> PairIds:
        """The pairs' ids as `pair_ids`; few of them are in memory at a time."""
        return PairIds(len(self), lambda: (batch.column(0) for batch in self.batches(["pair_id"])))

    @property
    def pair_keys(self) -> list[str]:
        """The pairs' keys (`pair_key`), N strings of 32 hex digits: equal for spellings of one pair."""
        return [pair_key(*texts) for texts in self.texts()]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels, [N] int64; -1 for a pair without one."""
        if "label" not in self._table.column_names:
            return np.full(len(self), -1, dtype=np.int64)
        filled = self._column("label").fill_null(-1)
        labels: NDArray[np.int64] = filled.to_numpy().astype(np.int64)
        return labels

    @property
    def grades(self) -> list[int | None] | None:
        """The grades that the labels were made of, N integers, None for a pair without one; None: there are none."""
        if _GRADE not in self._table.column_names:
            return None
        found: list[int | None] = self._column(_GRADE).to_pylist()
        return found

    @property
    def gains(self) -> NDArray[np.float64] | None:
        """What each pair adds to nDCG, [N] float64: its grade, 0 for a negative one or none; None: no grades."""
        grades = self.grades
        return None if grades is None else np.array([max(grade or 0, 0) for grade in grades], dtype=np.float64)

    @property
    def golden(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """The target of cross-entropy: the labels, [N] int64 (-1: none), or a reference's probabilities.

        Those are [N, 2] float32, zeros for a pair without a score.
        """
        positive = self.reference_probabilities
        if positive is None:
            return self.labels
        both = np.stack([1 - positive, positive], axis=1)
        return np.nan_to_num(both, nan=0.0).astype(np.float32)

    @property
    def reference_probabilities(self) -> NDArray[np.float64] | None:
        """The reference's probability of class 1, [N] float64, nan for a pair without a score; None: no reference."""
        if self.reference is None:
            return None
        values = self.score(self.reference.column)
        if self.reference.kind == "logit":
            values = sigmoid(values)
        return values

    @property
    def has_labels(self) -> bool:
        """Whether any pair has a label."""
        return bool((self.labels >= 0).any())

    @property
    def has_qids(self) -> bool:
        """Whether there is a column of qids."""
        return "qid" in self._table.column_names

    @property
    def qids(self) -> list[str]:
        """The names that group pairs by question: the column, or the questions if there is no such column."""
        return self._strings("qid") if self.has_qids else self.questions

    def groups(self, by: Literal["question", "qid"] = "qid") -> tuple[list[str], NDArray[np.int64]]:
        """The pairs by question, as `grouped` gives them. Few texts are in memory at a time, besides the distinct ones.

        Args:
            by: `question`: by the text. `qid`: by `qids`.
        """
        return grouped(self._each(by if self.has_qids else "question"))

    @property
    def pids(self) -> list[str]:
        """The names of the passages: the column, or the pair ids if there is no such column."""
        return self._strings("pid") if "pid" in self._table.column_names else self.pair_ids

    @property
    def score_names(self) -> list[str]:
        """The names of the score columns."""
        return [name for name in self._table.column_names if name not in _FIXED]

    def score(self, name: str) -> NDArray[np.float64]:
        """One score column, [N] float64; nan for a pair without a score.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.score_names:
            raise DataError(f"there is no score column {name!r}; there are: {', '.join(self.score_names) or 'none'}")
        values: NDArray[np.float64] = self._column(name).fill_null(float("nan")).to_numpy()
        return values

    def select_given(self) -> pa.Table:
        """The columns that rows gave: all but the pair ids and the grades, of which the labels were made."""
        return self.table.drop_columns([name for name in ("pair_id", _GRADE) if name in self.table.column_names])

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Pairs:
        """The pairs at these places, in the order of `indices`. Texts of a file stay there."""
        rows: NDArray[np.integer[Any]] = np.asarray(indices, dtype=np.int64)
        if self._file is None:
            batches = Chunks(self._table).batches(self._table.column_names, rows)
            return Pairs(pa.Table.from_batches(batches, self._table.schema), self.reference)
        found = Pairs(self._table, self.reference)
        rows = rows if self._rows is None else self._rows[rows]
        found._file, found._rows = self._file, rows.astype(np.int32) if self._table.num_rows < 2**31 else rows
        return found

    def ids_at(self, rows: NDArray[np.int64]) -> pa.Array:
        """The ids of the pairs at these places, strings in Arrow."""
        if self._file is None:
            return Chunks(self._table.select(["pair_id"])).taken(["pair_id"], rows).column(0)
        return self._file.taken(["pair_id"], rows if self._rows is None else self._rows[rows]).column(0)

    def distinct(self) -> Pairs:
        """The pairs, each once, in the order of their ids."""
        if self._distinct is None:
            self._distinct = self.take(first_of_each(self.ids))
        return self._distinct

    def with_reference(self, reference: Reference) -> Pairs:
        """These pairs with a score column in place of labels (METHOD.md, "Teachers").

        Raises:
            DataError: there is no such column, it is empty, or the pairs have labels.
        """
        if self.has_labels:
            raise DataError(
                f"there are labels; the reference {reference.column!r} is for pairs that have none. Leave out "
                "data.reference to use the labels, or the column of labels to use the reference"
            )
        found = Pairs(self.table, reference).reference_probabilities
        assert found is not None
        labels = pa.array([None if np.isnan(value) else int(value >= 0.5) for value in found], pa.int64())
        if labels.null_count == len(labels):
            raise DataError(f"the reference column {reference.column!r} is empty in every row")
        rest = self.table.drop_columns([name for name in self.table.column_names if name == "label"])
        return Pairs(rest.append_column("label", labels), reference)

    def and_unlabelled(self, others: Pairs) -> Pairs:
        """These pairs, followed by other pairs without their labels. Drops qids, pids and scores."""
        texts = ["pair_id", "question", "passage"]
        golden = ["label", self.reference.column if self.reference else ""]
        mine = self.table.select([*texts, *(name for name in golden if name in self.table.column_names)])
        both = pa.concat_tables([mine, others.table.select(texts)], promote_options="default")
        return Pairs(both, self.reference)

    def digest(self) -> str:
        """A hash of all columns and pairs in their order, 16 hex digits: what a step that reads them depends on."""
        if self._digest is None:  # Arrow tables do not change
            digest = hashlib.sha256()
            for name in sorted(self._table.column_names):
                digest.update(f"\n{name}\n".encode())
                for batch in self.batches([name]):
                    digest.update("\n".join([*map(repr, batch.column(0).to_pylist()), ""]).encode())
            self._digest = digest.hexdigest()[:16]
        return self._digest

    def save(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all."""
        with replacing(path) as temporary:
            if self._file is None:
                pq.write_table(self._table, temporary, compression="zstd")
                return
            with pq.ParquetWriter(temporary, self._table.schema, compression="zstd") as writer:
                for batch in self.batches(self._table.column_names):
                    writer.write_batch(batch)

    @classmethod
    def load(cls, path: Path) -> Pairs:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it holds no table of pairs.
        """
        try:
            return cls(pq.ParquetFile(path).read())
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file", path=path) from error
        except (pa.ArrowException, OSError) as error:
            require_room(error, path)
            raise DataError(f"{path}: not a readable Parquet file: {error}", path=path) from error

    @classmethod
    def mapped(cls, file: ArrowFile, without: Sequence[str] = ()) -> Pairs:
        """The pairs in an Arrow file. Their texts stay in the file; `take` keeps only row numbers in memory.

        Args:
            file: the file.
            without: columns of it that the pairs do not have.

        Raises:
            DataError: the file holds no table of pairs.
        """
        found = cls(file.table.drop_columns(list(without)))
        found._file = file
        return found
