"""Scores made elsewhere, in the forms that other tools train with, as one row a pair.

Two forms are read: scored triples, a row of `query, pos, neg, pos_score, neg_score`; and rows with lists, `query, pos,
neg, pos_scores, neg_scores` (FlagEmbedding and others). What comes out is what a teacher of the kind `scores` reads
(`tmkd.teachers.score_file`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tmkd.core.errors import DataError
from tmkd.core.files import Quoting, same_file
from tmkd.data.pairs import pair_id
from tmkd.data.readers import Rows, column_names, file_format, place_of, read_rows
from tmkd.data.rows import BadValue, score, text
from tmkd.data.writers import write_rows

logger = logging.getLogger(__name__)

_QUESTIONS = ("query", "question")
_ONE, _MANY = ("pos_score", "neg_score"), ("pos_scores", "neg_scores")
_FORMS = {"a scored triple": _ONE, "with lists": _MANY, "of one pair": ("pair_id", "passage", "pid")}
"""What a row is, by columns that only such rows have."""
_SHOWN = 60  # characters of a text that a message shows


@dataclass(frozen=True)
class ImportedScores:
    """What came of scores that were made elsewhere.

    Attributes:
        path: the file that was written.
        rows: rows that were read.
        pairs: different pairs that were written.
        merged: pairs that were there again with the same score.
        unread: columns of the files that were not read.
        lowest: the lowest score.
        highest: the highest score.
    """

    path: Path
    rows: int
    pairs: int
    merged: int
    unread: tuple[str, ...]
    lowest: float
    highest: float


class _Scored(NamedTuple):
    question: str
    passage: str
    score: float
    place: tuple[Path, int, int | None]


def import_scores(files: Sequence[str | Path], output: str | Path, *, quoting: Quoting = "auto") -> ImportedScores:
    """Write scored triples, or rows with lists of scores, as one row a pair.

    The columns are `pair_id`, `question`, `passage` and `score`. A recipe names the file with `{name: NAME, file: FILE,
    holds: logit}` (or `probability`) among its teachers.

    Args:
        files: JSON, JSON lines, CSV, TSV or Parquet, plain or .gz. In CSV and TSV a list is JSON in a cell.
        output: the file to write, in the format of its extension.
        quoting: what a quote in a CSV or TSV file means: `none`, `csv`, or `auto` for what the file shows.

    Raises:
        ValueError: no file.
        DataError: columns of another form, a text that is empty, a score that is no number, lists of different lengths
            (the message names file and line); pairs that have two different scores (it counts them); a file that cannot
            be written.
    """
    if not files:
        raise ValueError("no file of scores to import")
    file_format(output)  # at once, not after everything was read
    if any(same_file(file, output) for file in files):
        raise DataError(f"{output} is one of the files to be imported, which would be lost; name another output")
    found: dict[str, _Scored] = {}
    conflicts: dict[str, _Scored] = {}
    count = seen = 0
    unread: dict[str, None] = {}
    for path in map(Path, files):
        rows = read_rows(path, quoting)
        count += len(rows)
        form = _form(path, column_names(rows))
        unread |= dict.fromkeys(name for name in column_names(rows) if name not in form)
        for one in _pairs(path, rows, form):
            seen += 1
            name = pair_id(one.question, one.passage)
            if found.setdefault(name, one).score != one.score:
                conflicts.setdefault(name, one)
    if conflicts:
        raise _conflict(found, conflicts)
    if not found:
        raise DataError(f"{', '.join(map(str, files))}: the rows hold no pair: every list is empty")
    write_rows(
        output,
        [{"pair_id": name, "question": one.question, "passage": one.passage, "score": one.score}
         for name, one in found.items()],
    )  # fmt: skip
    scores = [one.score for one in found.values()]
    return ImportedScores(Path(output), count, len(found), seen - len(found), tuple(unread), min(scores), max(scores))


def _form(path: Path, there: Sequence[str]) -> tuple[str, str, str, str, str]:
    """The columns of question, right and wrong passages and of their scores."""
    question = next((name for name in _QUESTIONS if name in there), None)
    scores = next((form for form in (_MANY, _ONE) if all(name in there for name in form)), None)
    if question is not None and scores is not None and "pos" in there and "neg" in there:
        return question, "pos", "neg", *scores
    if "pair_id" in there or {"question", "passage"} <= set(there) or {"qid", "pid"} <= set(there):
        raise DataError(
            f"{path} has one row a pair already, which needs no import: name it in the recipe, as a teacher "
            f"{{name: NAME, file: {path}, column: COLUMN, holds: logit}} (or holds: probability)",
            path=path,
        )
    raise DataError(
        f"{path}: its columns are {', '.join(there)}. Scored triples have query, pos, neg, pos_score and neg_score; "
        "rows with lists have query, pos, neg, pos_scores and neg_scores. Rename the columns of the file",
        path=path,
    )


def _pairs(path: Path, rows: Rows, form: tuple[str, str, str, str, str]) -> Iterator[_Scored]:
    """Every scored pair of the rows."""
    question, *texts = form[:3]
    many, cells = form[3:] == _MANY, rows.dialect is not None
    for number, row in enumerate(rows):
        place = (path, number, None if rows.lines is None else rows.lines[number])
        _require_form(place, row, form[3:])
        asked = _checked(place, question, text, row.get(question))
        for passages, scores in zip(texts, form[3:], strict=True):
            some, numbers = row.get(passages), row.get(scores)
            if many:
                some, numbers = (
                    _checked(place, name, lambda value: _list(value, cells), value)
                    for name, value in ((passages, some), (scores, numbers))
                )
                if len(some) != len(numbers):
                    raise _wrong(place, scores, f"has {len(numbers)} scores for the {len(some)} texts of {passages!r}")
            for passage, value in zip(*((some, numbers) if many else ([some], [numbers])), strict=True):
                yield _Scored(
                    asked, _checked(place, passages, text, passage), _checked(place, scores, _number, value), place
                )


def _require_form(place: tuple[Path, int, int | None], row: Mapping[str, Any], scores: Sequence[str]) -> None:
    """DataError if a row has columns of another form, and none of the file's columns of scores."""
    if any(row.get(name) not in (None, "") for name in scores):
        return
    of_file = next(what for what, names in _FORMS.items() if names == scores)
    for what, names in _FORMS.items():
        if found := [name for name in names if row.get(name) not in (None, "")]:
            raise DataError(
                f"{place_of(*place)}: the row is {what} ({', '.join(found)}), and other rows of the file are {of_file} "
                f"({', '.join(scores)}); put the rows of each form into a file of their own",
                path=place[0], line=place[2],
            )  # fmt: skip


def _list(value: Any, cells: bool) -> list[Any]:
    """A list; in CSV and TSV it is JSON in a cell."""
    if cells and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadValue(f"is {value[:_SHOWN]!r}, it must be a list as JSON, such as [0.5, 0.1]") from None
    if not isinstance(value, list):
        what = "absent" if value is None else type(value).__name__
        raise BadValue(f"is {what}, it must be a list, one entry for each text")
    return value


def _number(value: Any) -> float:
    found = score(value, "logit")
    if found is None:
        raise BadValue(f"is the score {value!r}, it must be a number")
    return found


def _checked(place: tuple[Path, int, int | None], column: str, check: Any, value: Any) -> Any:
    try:
        return check(value)
    except BadValue as error:
        raise _wrong(place, column, str(error), value) from None


def _wrong(place: tuple[Path, int, int | None], column: str, problem: str, value: Any = None) -> DataError:
    return DataError(
        f"{place_of(*place)}: {column!r} {problem}", path=place[0], line=place[2], column=column, value=value
    )


def _conflict(found: dict[str, _Scored], conflicts: dict[str, _Scored]) -> DataError:
    name, second = next(iter(conflicts.items()))
    first = found[name]
    return DataError(
        f"{len(conflicts):,} pairs have two different scores, the first {first.question[:_SHOWN]!r} with "
        f"{first.passage[:_SHOWN]!r}: {first.score:g} ({place_of(*first.place)}) and {second.score:g} "
        f"({place_of(*second.place)}). A teacher gives one score for a pair: keep one of them, or their mean",
        path=second.place[0], line=second.place[2],
    )  # fmt: skip
