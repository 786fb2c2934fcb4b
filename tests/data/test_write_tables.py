"""Tables are written one after the other, in every format, with one of them in memory at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tmkd.core.errors import DataError
from tmkd.data.readers import FORMATS, read_rows
from tmkd.data.writers import write_rows, write_tables

SCHEMA = pa.schema({"text": pa.string(), "label": pa.int64(), "a": pa.float64(), "b": pa.list_(pa.float64())})
ROWS: list[dict[str, Any]] = [
    {"text": 'a "quote", and\na line', "label": 1, "a": 0.1, "b": [1.0, -2.5]},
    {"text": "tab\tand ü", "label": None, "a": None, "b": None},
    {"text": "plain", "label": 0, "a": -3.0, "b": [0.0, 1e-9]},
]
TABLES = [pa.Table.from_pylist(ROWS[:2], SCHEMA), pa.Table.from_pylist(ROWS[2:], SCHEMA)]


@pytest.mark.parametrize("extension", [*FORMATS, ".jsonl.gz", ".csv.gz", ".parquet.gz", ".json.gz"])
def test_what_is_written_in_pieces_reads_as_what_is_written_at_once(tmp_path: Path, extension: str) -> None:
    write_tables(tmp_path / f"pieces{extension}", SCHEMA, iter(TABLES))
    write_rows(tmp_path / f"whole{extension}", ROWS)
    found = read_rows(tmp_path / f"pieces{extension}")
    assert len(found) == 3
    assert list(found) == list(read_rows(tmp_path / f"whole{extension}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"pieces{extension}", f"whole{extension}"]


def test_one_table_is_in_memory_at_a_time(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        def tables() -> Iterator[pa.Table]:
            for number in range(count):
                rows = [
                    {"text": f"{number} {row} " + "word " * 40, "label": 1, "a": 0.5, "b": None} for row in range(200)
                ]
                yield pa.Table.from_pylist(rows, SCHEMA)

        tracemalloc.start()
        write_tables(tmp_path / "rows.jsonl", SCHEMA, tables())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(2), peak(40)
    assert (tmp_path / "rows.jsonl").stat().st_size > 5 * many
    assert many < 1.5 * few


def test_an_earlier_file_stays_where_the_rows_cannot_be_made(tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield TABLES[0]
        raise DataError("no more")

    (tmp_path / "rows.csv").write_text("before")
    with pytest.raises(DataError, match="no more"):
        write_tables(tmp_path / "rows.csv", SCHEMA, tables())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("rows.csv", "before")]
    with pytest.raises(DataError, match="there is no folder"):
        write_tables(tmp_path / "gone" / "rows.csv", SCHEMA, iter(TABLES))
