"""Errors carry what a program may want to know of them, and survive a process boundary."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from conftest import write_jsonl

from tmkd.config.load import load_recipe
from tmkd.core.errors import DataError, MissingExtraError, RecipeError, needs_extra
from tmkd.data.documents.document_rows import Fields
from tmkd.data.documents.reader import DocumentReader, Reading
from tmkd.data.readers import read_rows
from tmkd.data.rows import read_pairs


def test_a_bad_cell_says_file_line_column_and_value(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"question": "a", "passage": "b"}, {"question": "c", "passage": 3}])
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: 'passage' is int") as caught:
        read_pairs(Path(path))
    error = caught.value
    assert (error.path, error.line, error.column, error.value) == (Path(path), 2, "passage", 3)


def test_a_missing_column_and_a_malformed_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("question,text\na,b\n")
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert (caught.value.path, caught.value.line, caught.value.column) == (path, None, "passage")
    path.write_text("question,passage\n\na\n")
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert (caught.value.path, caught.value.line) == (path, 3)


def test_a_bad_document_says_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": "fine"}\n[]\n')
    with pytest.raises(DataError, match="a line must be a JSON object") as caught:
        list(DocumentReader([path], Reading(Fields())).documents())
    assert (caught.value.path, caught.value.line) == (path, 2)


def test_a_recipe_error_says_where_key_and_value(recipe_file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, ["stage1.epochs=none"])
    assert (caught.value.where, caught.value.key, caught.value.value) == (str(recipe_file), "stage1.epochs", "none")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, ["stage1.epochs"])
    assert caught.value.where == "stage1.epochs"


def test_a_missing_package_says_which_extra_brings_it() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'tmkd\[qa\]'") as caught, needs_extra("qa"):
        raise ImportError("gone", name="tantivy")
    assert (caught.value.extra, caught.value.package) == ("qa", "tantivy")


def test_an_error_keeps_its_data_in_another_place_and_another_process() -> None:
    error = DataError("x:1: bad", path="x", line=1, column="label", value=[2]).within("study a")
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert str(one) == "study a: x:1: bad"
        assert (one.path, one.line, one.column, one.value) == (Path("x"), 1, "label", [2])
