"""CSV and TSV: quotes that are text stay text, quotes that quote are undone, and no row is lost in either."""

from __future__ import annotations

import csv
import io
import logging
import random
from pathlib import Path

import pytest
from pairs_fixtures import refused

from tmkd.core.files import Quoting
from tmkd.data.readers import read_rows
from tmkd.data.rows import read_pairs
from tmkd.data.writers import write_rows


def cells(path: Path, quoting: Quoting = "auto") -> list[list[str]]:
    """The cells of a file, without the header."""
    return [list(row.values()) for row in read_rows(path, quoting)]


def test_quotes_at_the_start_and_end_of_cells_swallow_no_row(tmp_path: Path) -> None:
    """A strict CSV parser reads the first two rows as one with the right number of cells."""
    rows = [['"a', "b"], ["c", 'd"'], ['"x', 'y"'], ["e", "f"]]
    path = tmp_path / "a.tsv"
    path.write_text("question\tpassage\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert cells(path) == rows
    swallowed = tmp_path / "b.tsv"
    swallowed.write_text('question\tpassage\n"a\tb\nc"\td\n')
    assert len(list(csv.reader(swallowed.open(newline=""), delimiter="\t", strict=True))) == 2
    assert cells(swallowed) == [['"a', "b"], ['c"', "d"]]


def test_ms_marco_rows_keep_their_quotes_and_their_number(tmp_path: Path) -> None:
    drawn = random.Random(0)
    words = ['"word', 'end"', '"both"', "plain", "6'", '5"', '"', '""', 'he said "no"', "U+2028\u2028", "form\ffeed"]
    rows = [[str(n // 9), str(n), " ".join(drawn.choices(words, k=3)), drawn.choice(words)] for n in range(900)]
    path = tmp_path / "triples.tsv"
    path.write_text("qid\tpid\tquery\tpassage\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert cells(path) == rows


def test_glue_rows_keep_a_sentence_that_is_a_quotation(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text('index\tquestion\tsentence\tlabel\n0\tWho said it?\t"Here I stand."\tentailment\n')
    assert cells(path) == [["0", "Who said it?", '"Here I stand."', "entailment"]]
    assert cells(path, "csv") == [["0", "Who said it?", "Here I stand.", "entailment"]]


@pytest.mark.parametrize(
    "quoted",
    [
        'question\tpassage\n"two\nlines"\tp\n',  # lines of their own would have one cell
        'question\tpassage\n"a\ttab"\tp\n',
        'question\tpassage\n"the ""word"""\tp\n',  # a doubled quote, and every cell with a quote is quoted
        '"question"\t"passage"\n"q"\t"p"\n',  # a quoted header
        '"question"\t"passage"\n"a\tb\nc"\tp\n',
    ],
)
def test_tsv_that_is_quoted_is_read_as_csv(tmp_path: Path, quoted: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(quoted)
    wanted = list(csv.reader(io.StringIO(quoted, newline=""), delimiter="\t", strict=True))
    assert cells(path) == wanted[1:]
    if '"question"' not in quoted:
        assert read_rows(path, "csv") == read_rows(path)


def test_quoting_none_and_csv_decide_where_the_file_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('question\tpassage\n"q"\tp\n')
    assert cells(path) == cells(path, "none") == [['"q"', "p"]]
    assert cells(path, "csv") == [["q", "p"]]
    assert read_pairs(path, quoting="csv").questions == ["q"]
    comma = tmp_path / "a.csv"
    comma.write_text('question,passage\n"q,p\n')
    refused(lambda: read_rows(comma), "a.csv:2:", "never closed", "quoting: none", "--quoting none")
    assert cells(comma, "none") == [['"q', "p"]]


def test_an_unbalanced_quote_names_the_line_where_its_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,passage\nq,p\n"never closed,p\nq,p\nq,p\n')
    refused(lambda: read_rows(path), "a.csv:3:", "never closed")
    path.write_text('question,passage\nq,p\n"opened,p\nq,"p"\n')
    refused(lambda: read_rows(path), "a.csv:3:", "on line 4")
    path.write_text('question,passage\nq,p\n"opened,p\nq",p,r\n')
    refused(lambda: read_rows(path), "a.csv:4:", "3 fields, the header has 2", "begins on line 3")
    tsv = tmp_path / "a.tsv"
    tsv.write_text('"question"\t"passage"\nq\t"p\n')
    refused(lambda: read_rows(tsv), "a.tsv:2:", "never closed")


def test_a_row_of_another_length_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('question\tpassage\n"q\tp\n"x\ty\tz"\n')
    refused(lambda: read_rows(path), "a.tsv:3:", "3 fields, the header has 2", "quoting: csv")


@pytest.mark.parametrize(("separator", "said"), [(";", "semicolons"), ("\t", "tabs")])
def test_csv_with_other_separators_is_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, separator: str, said: str
) -> None:
    caplog.set_level(logging.INFO, "tmkd")
    path = tmp_path / "excel.csv"
    path.write_bytes(f"\ufeffquestion{separator}passage\r\nq, and more{separator}p\r\n".encode())
    assert cells(path) == [["q, and more", "p"]]
    assert f"{path}: columns are separated by {said}" in caplog.text


def test_a_header_with_several_separators_is_decided_by_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question, as asked;passage\nq;p\n")
    assert cells(path) == [["q", "p"]]
    path.write_text("question;asked,passage\nq,p;r;s\n")
    assert cells(path) == [["q", "p;r;s"]]


def test_how_quotes_were_read_is_said_where_it_matters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tmkd")
    path = tmp_path / "a.tsv"
    path.write_text('question\tpassage\nthe "q"\tp\n')
    read_rows(path)
    assert caplog.text == ""
    path.write_text('question\tpassage\n"q"\tp\n')
    read_rows(path)
    assert "quotes are text, and every line is a row" in caplog.text


def test_a_long_field_is_read_where_a_c_long_has_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: there the csv module refuses a larger limit on the length of a field."""
    set_limit = csv.field_size_limit

    def of_32_bits(*limit: int) -> int:
        if limit and limit[0] >= 2**31:
            raise OverflowError("Python int too large to convert to C long")
        return set_limit(*limit)

    monkeypatch.setattr(csv, "field_size_limit", of_32_bits)
    usual = 131_072
    csv.field_size_limit(usual)  # a file that is read only in part, by an earlier test, leaves another
    path = tmp_path / "a.csv"
    path.write_text(f"question,passage\nq,{'p' * 2 * usual}\n")
    assert len(cells(path)[0][1]) == 2 * usual
    assert csv.field_size_limit() == usual


@pytest.mark.parametrize("extension", [".csv", ".tsv"])
def test_every_cell_that_is_written_comes_back(tmp_path: Path, extension: str) -> None:
    drawn = random.Random(1)
    path = tmp_path / f"rows{extension}"
    for _ in range(300):
        texts = ["".join(drawn.choices('a"\t\n\r,; ', k=drawn.randrange(1, 7))) for _ in range(6)]
        rows = [{"x": texts[at], "y": texts[at + 1]} for at in (0, 2, 4)]
        write_rows(path, rows)
        assert list(read_rows(path)) == rows
