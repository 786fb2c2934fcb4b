"""A pool that is read in a stream is the pool that is read as a whole, with the same errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pairs_fixtures import refused

from tmkd.config.sections import Data
from tmkd.core.errors import DataError, NoRoomError
from tmkd.data import streamed_pairs
from tmkd.data.pairs import Pairs
from tmkd.data.tasks import TaskData, load_task
from tmkd.data.writers import write_rows

Row = dict[str, Any]


def rows(change: Callable[[int, Row], Row] = lambda _, row: row) -> list[Row]:
    """Twenty-five rows; the numbers of the questions are 0 to 4."""
    found = [{"question": f"what is {n % 5}?", "passage": f"It is {n}, é.", "label": n % 3} for n in range(25)]
    return [change(number, row) for number, row in enumerate(found)]


SCORED = {"judge": "logit", "other": "probability"}
GIVEN: dict[str, Callable[[int, Row], Row]] = {
    "plain": lambda _, row: row,
    "names": lambda n, row: {**row, "qid": f"q{n % 5}", "pid": f"p{n}"},
    "a column that begins late": lambda n, row: {**row, "pid": f"p{n}", "judge": n / 7} if n > 19 else row,
    "a qid that some rows lack": lambda n, row: {**row, "qid": None if n % 4 == 1 else f"q{n % 5}"},
    "a qid that is empty everywhere": lambda _, row: {**row, "qid": ""},
    "a pid that is empty everywhere": lambda _, row: {**row, "pid": None},
    "scores": lambda n, row: {**row, "judge": None if n % 3 else n - 9.5, "other": n / 25, "more": [n]},
    "no scores": lambda _, row: {**row, "judge": None},
}


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TaskData, TaskData]]:
    """A pool file, read as a whole and in a stream."""
    monkeypatch.setattr(streamed_pairs, "_ROWS", 4)
    monkeypatch.setattr("tmkd.data.arrow_file._ROWS", 3)
    train = [{"question": f"q{n}", "passage": f"p{n}", "label": n % 2, "judge": 0, "other": 0} for n in range(40)]
    write_rows(tmp_path / "train.jsonl", train)

    def call(path: Path) -> tuple[TaskData, TaskData]:
        data = Data.model_validate({"train": str(tmp_path / "train.jsonl"), "pool": str(path), "scores": SCORED})
        monkeypatch.setattr(streamed_pairs, "_LARGE", 1 << 60)
        whole = load_task(data, 2, tmp_path / "tokens")
        assert not (tmp_path / "tokens").exists()
        monkeypatch.setattr(streamed_pairs, "_LARGE", 0)
        return whole, load_task(data, 2, tmp_path / "tokens")

    return call


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("extension", [".jsonl", ".jsonl.gz", ".parquet", ".json", ".csv"])
def test_a_pool_in_a_stream_is_the_pool_read_whole(
    tmp_path: Path, pools: Callable[..., tuple[TaskData, TaskData]], given: str, extension: str
) -> None:
    path = tmp_path / f"pool{extension}"
    if extension == ".jsonl":  # rows keep their own columns, between blank lines
        path.write_text("\n\n".join(json.dumps(row) for row in rows(GIVEN[given])) + "\n")
    else:
        write_rows(path, rows(GIVEN[given]))
    whole, stream = pools(path)
    assert isinstance(whole.pool, Pairs)
    assert isinstance(stream.pool, Pairs)
    assert stream.pool.table.equals(whole.pool.table)
    assert stream.pool.digest() == whole.pool.digest()
    assert stream.counts["pool"].to_json() == whole.counts["pool"].to_json()
    assert stream.pool._file is not None
    assert list((tmp_path / "tokens").iterdir()) == []  # nothing is left when the process ends


WRONG: dict[str, tuple[Callable[[int, Row], Row], tuple[str, ...]]] = {
    "empty": (lambda n, row: {**row, "passage": " "} if n == 17 else row, ("'passage' is empty", "pool{}18")),
    "absent": (lambda n, row: row if n < 17 else {"question": "a"}, ("'passage' is absent", "pool{}18")),
    "number": (lambda n, row: {**row, "question": 3} if n == 9 else row, ("'question' is int", "pool{}10")),
    "score": (lambda n, row: {**row, "other": 1.5 if n == 23 else 0.5}, ("'other' is the score 1.5", "pool{}24")),
    "no column": (lambda _, row: {"question": "a", "text": "b"}, ("no column 'passage'", "question, text")),
    "late column": (lambda n, row: row if n == 24 else {"question": "a"}, ("'passage' is absent", "pool{}1")),
}


@pytest.mark.parametrize("extension", [".jsonl", ".parquet"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_in_a_stream_is_said_as_it_is_of_a_file_read_whole(
    tmp_path: Path, pools: Callable[..., tuple[TaskData, TaskData]], wrong: str, extension: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    change, words = WRONG[wrong]
    path = tmp_path / f"pool{extension}"
    try:
        write_rows(path, rows(change))
    except DataError:
        assert (wrong, extension) == ("number", ".parquet")  # which has one type for a column
        return
    place = f"{extension}:" if extension == ".jsonl" else f"{extension}, row "
    refused(lambda: pools(path), *(word.format(place) for word in words))
    messages = []
    for size in (1 << 60, 0):
        monkeypatch.setattr(streamed_pairs, "_LARGE", size)
        data = Data.model_validate({"train": str(tmp_path / "train.jsonl"), "pool": str(path), "scores": SCORED})
        with pytest.raises(DataError) as caught:
            load_task(data, 2, tmp_path / "tokens")
        messages.append((str(caught.value), caught.value.path, caught.value.line, caught.value.column))
    assert messages[0] == messages[1]


def test_a_stream_that_is_no_json_or_has_no_rows_is_an_error(
    tmp_path: Path, pools: Callable[..., tuple[TaskData, TaskData]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in ("\n\n", "\n".join([json.dumps(row) for row in rows()] + ["{"])):
        (tmp_path / "pool.jsonl").write_text(content)
        messages = []
        for size in (1 << 60, 0):
            monkeypatch.setattr(streamed_pairs, "_LARGE", size)
            data = Data.model_validate({name: str(tmp_path / f"{name}.jsonl") for name in ("train", "pool")})
            with pytest.raises(DataError) as caught:
                load_task(data, 2, tmp_path / "tokens")
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise pa.ArrowException("[Errno 28] Error writing bytes to file. Detail: No space left on device")

    monkeypatch.setattr(streamed_pairs, "write_arrow", full)
    write_rows(tmp_path / "pool.jsonl", rows())
    with pytest.raises(NoRoomError):
        pools(tmp_path / "pool.jsonl")
    assert list((tmp_path / "tokens").iterdir()) == []
