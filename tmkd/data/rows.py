"""Rows of a file or a hub data set, checked cell by cell and made pairs. Nothing is guessed or skipped in silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from tmkd.core.errors import DataError
from tmkd.core.files import Quoting
from tmkd.data.documents.text import same_text
from tmkd.data.pairs import Pairs, pair_id
from tmkd.data.readers import Rows, column_names, line_number, place_of, read_rows
from tmkd.data.row_counts import RowCounts

Row = Mapping[str, Any]
ScoreKinds = Mapping[str, Literal["logit", "probability"]]
_MOST_CLASSES = 2**31
_OR_MAPPED = ", or a word that a recipe's data.labels maps, as in {'no': 0, 'yes': 1}"
_NAMING = (
    "Name yours: in a recipe's data.columns or data.scores, or with a command's --question and the like; commands "
    "without these options read columns of these names"
)
_LARGEST_SCORE = 1e38  # scores become float32


@dataclass(frozen=True)
class Columns:
    """The names that a file gives to what tmkd reads. `label=None`: labels are not read."""

    question: str = "question"
    passage: str = "passage"
    label: str | None = "label"
    qid: str = "qid"
    pid: str = "pid"


class Expected(TypedDict, total=False):
    """What is expected of rows. Every key may be left out.

    Attributes:
        columns: the names of the columns; the usual ones unless given.
        scores: score columns and what they hold; a column that the rows do not have is left out.
        classes: C; a label outside [0, C) is refused.
        need_labels: refuse rows without a label column, or with an empty one.
        need_scores: refuse rows without one of the score columns.
        labels: the class that each value of the label column stands for, used where labels are needed; rows whose
            value stands for None are left out.
        relevant_from: the label column holds grades, and those from this one on are class 1, lower ones class 0.
        counts: counts the rows that are read and left out.
        naming: how one names columns here, a sentence for the error of a missing one.
    """

    columns: Columns
    scores: ScoreKinds
    classes: int
    need_labels: bool
    need_scores: bool
    labels: Mapping[str, int | None]
    relevant_from: int
    counts: RowCounts
    naming: str


def read_pairs(path: str | Path, *, quoting: Quoting = "auto", **expected: Unpack[Expected]) -> Pairs:
    """Read and check a pairs file.

    Example:
        pairs = read_pairs("train.jsonl", columns=Columns(question="query"), classes=2, need_labels=True)

    Args:
        path: JSON, JSON lines, CSV, TSV or Parquet, plain or .gz.
        quoting: what a quote in a CSV or TSV file means (`tmkd.data.delimited.find_dialect`).
        **expected: what is expected of the rows (`Expected`).

    Raises:
        DataError: as `tmkd.data.readers.read_rows` raises it; a missing column, an empty question or passage, a bad
            label or score (the message names file and line).
    """
    return rows_to_pairs(read_rows(Path(path), quoting), Path(path), **expected)


def rows_to_pairs(rows: Sequence[Row], source: Path | str, **expected: Unpack[Expected]) -> Pairs:
    """Check rows and make pairs of them.

    Args:
        rows: one mapping of column to value for each row.
        source: what errors call the rows. A `Path` is the file that they were read from: errors then name the line.
        **expected: what is expected of the rows (`Expected`).

    Raises:
        DataError: a missing column, an empty question or passage, a bad label or score; the message names the row.
    """
    columns, scores = expected.get("columns", Columns()), expected.get("scores", {})
    counts = expected.get("counts", RowCounts(str(source)))
    counts.read += len(rows)
    need_labels = expected.get("need_labels", False)
    names = expected.get("labels", {}) if need_labels else {}
    present = column_names(rows)
    needed = [columns.question, columns.passage, *(scores if expected.get("need_scores") else {})]
    needed += [columns.label] if need_labels and columns.label else []
    require_columns(needed, present, source, expected.get("naming", _NAMING))
    require_two_columns(columns, source, expected.get("naming", _NAMING))
    questions = checked_column(rows, columns.question, text, source)
    passages = checked_column(rows, columns.passage, text, source)
    labels = grades = None
    if columns.label is not None and columns.label in present:
        if (relevant_from := expected.get("relevant_from")) is not None:
            grades = checked_column(rows, columns.label, grade, source)
            labels = [None if found is None else int(found >= relevant_from) for found in grades]
        else:
            labels = _labels(rows, columns.label, source, expected.get("classes"), names)
        if need_labels and all(label is None for label in labels):
            raise DataError(
                f"{source}: the column {columns.label!r} is empty in every row (or -1, a hidden label); labels are "
                "needed here. Name rows that have some, such as another split",
                column=columns.label,
            )
    qids = pids = None
    if columns.label is not None:  # a pool need not have them
        warn_of_absent_ids({"qid": columns.qid, "pid": columns.pid}, present, counts)
    if columns.qid in present:
        qids = filled_qids(checked_column(rows, columns.qid, identifier, source), questions, counts)
    if columns.pid in present:
        texts = zip(checked_column(rows, columns.pid, identifier, source), questions, passages, strict=True)
        pids = [pair_id(question, passage) if pid is None else pid for pid, question, passage in texts]
    values = {name: checked_scores(rows, name, kind, source) for name, kind in scores.items() if name in present}
    pairs = Pairs.build(questions, passages, labels=labels, grades=grades, qids=qids, pids=pids, scores=values)
    unlabelled = [names.get(_name_of(row.get(columns.label or ""), names), 0) is None for row in rows]
    counts.leave_out("their label stands for no class", sum(unlabelled))
    return pairs.take([row for row, absent in enumerate(unlabelled) if not absent]) if any(unlabelled) else pairs


def checked_column(rows: Sequence[Row], column: str, check: Callable[[Any], Any], source: Path | str) -> list[Any]:
    """What a check makes of one column's cells, row by row.

    Args:
        rows: the rows.
        column: the column's name.
        check: takes a cell and gives its value, or raises `BadValue`.
        source: as in `rows_to_pairs`.

    Raises:
        DataError: the check refused a cell; the message names the row.
    """
    values = []
    for number, row in enumerate(rows):
        try:
            values.append(check(row.get(column)))
        except BadValue as error:
            path, line = (source, _line(rows, source, number)) if isinstance(source, Path) else (None, None)
            first = rows.first if isinstance(rows, Rows) else 0
            raise DataError(
                f"{place_of(source, first + number, line)}: {column!r} {error}",
                path=path, line=line, column=column, value=row.get(column),
            ) from None  # fmt: skip
    return values


def _line(rows: Sequence[Row], path: Path, number: int) -> int | None:
    if isinstance(rows, Rows):
        return rows.lines[number] if rows.lines is not None else None
    return line_number(path, number)


def require_columns(needed: Sequence[str], present: Sequence[str], source: Path | str, naming: str = _NAMING) -> None:
    """DataError if a needed column is not there; the message names those that are, and says how one names another."""
    for name in needed:
        if name not in present:
            raise DataError(
                f"{source}: there is no column {name!r}; there are: {', '.join(present)}. {naming}",
                path=source if isinstance(source, Path) else None,
                column=name,
            )


def require_two_columns(columns: Columns, source: Path | str, naming: str = _NAMING) -> None:
    """DataError if one column is named for the question and for the passage; arguments as of `require_columns`."""
    if columns.question == columns.passage:
        raise DataError(
            f"{source}: the column {columns.question!r} is read as the question and as the passage. {naming}",
            path=source if isinstance(source, Path) else None,
            column=columns.question,
        )


def warn_of_absent_ids(named: Mapping[str, str], present: Sequence[str], counts: RowCounts) -> None:
    """Warn of names that a recipe gives to the columns `qid` and `pid` and that no column has.

    Args:
        named: the names, by what they hold.
        present: the columns that are there.
        counts: keeps the warning.
    """
    used = {"qid": "pairs are grouped by the question's text", "pid": "passages are identified by their text"}
    for what, name in named.items():
        if name not in (what, *present):
            counts.warn(f"there is no column {name!r}, which data.columns.{what} names; {used[what]}")


def filled_qids(found: Sequence[str | None], questions: Sequence[str], counts: RowCounts) -> list[str] | None:
    """A qid for every row, or None where no row has one.

    A row without one belongs to its question: it has the qid of the question's other rows, or else the question's text.
    """
    absent = [row for row, qid in enumerate(found) if qid is None]
    if len(absent) == len(found):
        return None
    of_question: dict[str, set[str]] = {}
    for qid, question in zip(found, questions, strict=True):
        if qid is not None:
            of_question.setdefault(same_text(question), set()).add(qid)
    qids = [qid or "" for qid in found]
    for row in absent:
        known = of_question.get(same_text(questions[row]), set())
        qids[row] = min(known) if len(known) == 1 else questions[row]
    if absent:
        counts.warn(
            f"{len(absent):,} of {len(found):,} rows have no qid, the first with the question "
            f"{questions[absent[0]][:60]!r}; each is put with the rows that ask the same question"
        )
    return qids


def _labels(
    rows: Sequence[Row], column: str, source: Path | str, classes: int | None, names: Mapping[str, int | None]
) -> list[int | None]:
    return checked_column(rows, column, lambda value: label(value, classes, names), source)


def checked_scores(rows: Sequence[Row], column: str, kind: str, source: Path | str) -> list[float | None]:
    """The scores of a kind in one column; arguments and errors as of `checked_column`."""
    return checked_column(rows, column, lambda value: score(value, kind), source)


class BadValue(Exception):
    """A cell that cannot be used. The message continues a sentence that begins with the cell's place and column."""


def text(value: Any) -> str:
    """A question or a passage: text that is not blank."""
    if not isinstance(value, str):
        raise BadValue(f"is {'absent' if value is None else type(value).__name__}, it must be text")
    if not value.strip():
        raise BadValue("is empty; remove the row or fill it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValue("holds an unpaired surrogate, which is not text") from None
    if not any(character.isprintable() and character != " " for character in value):
        raise BadValue(f"is {value[:20]!a}, characters that show nothing; remove the row or fill it")
    return value


def identifier(value: Any) -> str | None:
    """A qid or pid; None where the cell is empty, or not a number (NaN), as pandas writes an empty one."""
    empty = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return None if empty else text(str(value))


def spelling(value: Any) -> str:
    """A label as `data.labels` spells it: as text, a number without decimals as an integer (pandas writes 1 as 1.0)."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _name_of(value: Any, names: Mapping[str, int | None]) -> str:
    """The name of `data.labels` that a cell spells: true as Python writes it, or else as JSON does."""
    name = spelling(value)
    return name.lower() if isinstance(value, bool) and name not in names else name


def grade(value: Any) -> int | None:
    """A graded label, an integer; None where the cell is empty. TREC has grades below 0, for junk."""
    if value is None or value == "":
        return None
    whole = _integer(value)
    if whole is None or abs(whole) >= _MOST_CLASSES:
        raise BadValue(f"is {value!r}, a grade must be an integer: 0 for a wrong passage, 1 and up for a right one")
    return whole


def _number(value: Any) -> float | None:
    """The number that a cell holds, or None: True is no number here, nor is 1_0, which Python reads as 10."""
    if isinstance(value, bool) or "_" in str(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def label(value: Any, classes: int | None, names: Mapping[str, int | None]) -> int | None:
    """A class; None where the cell is empty or stands for no class.

    Args:
        value: the cell.
        classes: C; None: any integer from 0 will do.
        names: the class that each value stands for; empty: the cell holds the class itself.
    """
    if value is None or value == "":
        return None
    if names:
        name = _name_of(value, names)
        if name not in names:
            raise BadValue(f"is {value!r}, which data.labels does not map; it maps {', '.join(names)}")
        return names[name]
    whole = _integer(value)
    if whole is None:
        mapped = "" if _number(value) is not None else _OR_MAPPED
        raise BadValue(f"is {value!r}, it must be an integer from 0{mapped}")
    if whole < 0 or whole >= (_MOST_CLASSES if classes is None else classes):
        span = "0 and up" if classes is None else f"0 to {classes - 1}"
        raise BadValue(f"is {value}, out of range; labels are {span} (`classes` in the recipe)")
    return whole


def score(value: Any, kind: str) -> float | None:
    """A score of a kind (`logit` or `probability`); None where the cell is empty."""
    if value is None or value == "":
        return None
    number = _number(value)
    if number is None:
        raise BadValue(f"is the score {value!r}, it must be a number")
    if not math.isfinite(number):
        raise BadValue(f"is the score {number}, it must be finite; leave it empty where there is none")
    if abs(number) > _LARGEST_SCORE:
        raise BadValue(f"is the score {number:g}, which 32 bits cannot hold; it must be at most {_LARGEST_SCORE:g}")
    if kind == "probability" and not 0 <= number <= 1:
        raise BadValue(f"is the score {number}, a probability is within 0 and 1 (or declare it `logit`)")
    return number
