"""Read what a pool's sources name: the task's training set, files, hub data sets, the built-in documentation."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tmkd.config.pool_sections import DOCS, OWN, ReadyPairs, Source, Texts
from tmkd.core.errors import DataError
from tmkd.data.delimited import text_lines
from tmkd.data.documents.passages import cut
from tmkd.data.documents.sections import paragraphs
from tmkd.data.documents.text import distinct
from tmkd.data.pairs import Pairs
from tmkd.data.readers import FORMATS, column_names, read_rows, read_text
from tmkd.data.rows import Columns, checked_column, rows_to_pairs, text


def read_texts(texts: Texts, train: Pairs, side: str, key: str, documentation: Callable[[], list[str]]) -> list[str]:
    """Read the texts of a source.

    Args:
        texts: the source.
        train: the training pairs, which the name `own` stands for.
        side: `question` or `passage`.
        key: the recipe's key, for errors.
        documentation: gives the passages that the name `debian-docs` stands for.

    Returns:
        The texts in their order, each once (`tmkd.data.documents.text.same_text`).

    Raises:
        DataError: the source is unknown or empty, lacks the column, or has a row that is not text.
    """
    if texts.file == OWN:
        found = train.questions if side == "question" else train.passages
    elif texts.file == DOCS and side == "passage":
        found = documentation()
    elif texts.is_text_file:
        found = _plain(_path(texts, key, side), by_paragraph=side == "passage")
    else:
        rows, called = _rows(texts, key, side)
        found = _column(rows, texts.column or side, called)
    if texts.cut:
        found = [piece for text in found for piece, _ in cut(paragraphs(text))]
    found = distinct(found)
    if not found:
        raise DataError(f"{key}: {texts.name} holds no {side}")
    return found


def read_ready(ready: ReadyPairs, train: Pairs, key: str) -> Pairs:
    """Read ready-made pairs: the question and the passage of every row.

    Args:
        ready: the source.
        train: the training pairs, which the name `own` stands for.
        key: the recipe's key, for errors.

    Raises:
        DataError: as `read_texts`.
    """
    if ready.file == OWN:
        return Pairs.build(train.questions, train.passages)
    rows, called = _rows(ready, key, "pair")
    columns = Columns(question=ready.question, passage=ready.passage, label=None, qid="", pid="")
    return rows_to_pairs(rows, called, columns=columns)


def _path(source: Source, key: str, side: str) -> Path:
    assert source.file is not None
    path = Path(source.file)
    if path.is_file():
        return path
    named = [OWN, DOCS] if side == "passage" else [OWN]
    near = difflib.get_close_matches(source.file, named, n=1)
    raise DataError(
        f"{key}: {source.file!r} is neither a file nor {' nor '.join(named)}"
        + (f"; did you mean {near[0]!r}?" if near else "; a hub data set is written {hub: NAME, split: train}")
        + f"; {key.rpartition('.')[0]}.share=0 leaves this source out"
    )


def _rows(source: Source, key: str, side: str) -> tuple[list[dict[str, Any]], Path | str]:
    """The rows of a source, and what errors call them: the file, or the name of the hub data set."""
    if source.hub is not None:
        from tmkd.data.hub import hub_rows

        rows, _, called = hub_rows(source.hub, source.split, source.config)
        return rows, called
    path = _path(source, key, side)
    if not path.name.removesuffix(".gz").lower().endswith(FORMATS):
        raise DataError(f"{key}: {path}: unknown extension; known are {', '.join(FORMATS)} and, for texts, .txt")
    return read_rows(path, source.quoting), path


def _column(rows: Sequence[dict[str, Any]], column: str, called: Path | str) -> list[str]:
    present = column_names(rows)
    if column not in present:
        raise DataError(
            f"{called}: there is no column {column!r}; there are: {', '.join(present)}. Name yours with `column`",
            path=called if isinstance(called, Path) else None,
            column=column,
        )
    return checked_column(rows, column, text, called)


def _plain(path: Path, *, by_paragraph: bool) -> list[str]:
    """The texts of a text file: one a line, or one a paragraph (with blank lines in between)."""
    lines = [line.strip() for line in text_lines(read_text(path))]
    if by_paragraph:
        return [block.text for block in paragraphs("\n".join(lines))]
    return [line for line in lines if line]
