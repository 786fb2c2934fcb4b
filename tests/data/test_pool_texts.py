"""Texts of a pool's sources: lines of a text file, columns of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pairs_fixtures import refused

from tmkd.config.pool_sections import Texts
from tmkd.data.pairs import Pairs
from tmkd.data.pool_sources import read_texts
from tmkd.data.writers import write_rows


def texts_of(path: Path, side: str = "question", **keys: str) -> list[str]:
    return read_texts(Texts(file=str(path), **keys), Pairs.build([], []), side, "pool", list)


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_of_a_text_file_ends_at_a_line_feed_alone(tmp_path: Path, inside: str) -> None:
    path = tmp_path / "questions.txt"
    path.write_text(f"one{inside}question\r\nanother\n", newline="")
    assert texts_of(path) == [f"one{inside}question", "another"]
    assert texts_of(path, "passage") == [" ".join(f"one{inside}question another".split())]


def test_a_text_file_of_old_macs_and_one_of_utf_16_have_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes(b"one\rtwo\r")
    assert texts_of(path) == ["one", "two"]
    path.write_bytes("eins\r\nzwölf\r\n".encode("utf-16"))
    assert texts_of(path) == ["eins", "zwölf"]


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n", "\n \n", "\r\n\t\r\n"])
def test_a_document_is_cut_between_its_paragraphs_however_its_lines_end(tmp_path: Path, blank: str) -> None:
    paragraphs = [" ".join([word] * 60) for word in ("one", "two")]
    write_rows(tmp_path / "docs.jsonl", [{"passage": blank.join(paragraphs)}])
    texts = Texts(file=str(tmp_path / "docs.jsonl"), cut=True)
    assert read_texts(texts, Pairs.build([], []), "passage", "pool", list) == paragraphs


def test_the_extension_of_a_text_file_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "QUESTIONS.TXT").write_text("one\ntwo\n")
    assert texts_of(tmp_path / "QUESTIONS.TXT") == ["one", "two"]


def test_a_column_that_first_appears_after_a_hundred_rows_is_there(tmp_path: Path) -> None:
    """The first row without it is named, not the column denied."""
    rows = [{"question": f"q{n}"} | ({"body": "text"} if n >= 150 else {}) for n in range(200)]
    write_rows(tmp_path / "late.jsonl", rows)
    refused(lambda: texts_of(tmp_path / "late.jsonl", column="body"), "late.jsonl:1:", "'body' is absent")
    assert len(texts_of(tmp_path / "late.jsonl")) == 200


def test_quotes_in_a_source_of_a_pool_are_read_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('question\tpassage\n"q"\tp\n')
    assert texts_of(tmp_path / "a.tsv") == ['"q"']
    assert texts_of(tmp_path / "a.tsv", quoting="csv") == ["q"]
