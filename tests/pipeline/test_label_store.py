"""The label store: joined by id, resumed after a kill, damage found, nothing missing passed over."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tmkd.core.errors import LabelError, NoRoomError
from tmkd.pipeline.store import label_store
from tmkd.pipeline.store.label_store import LabelStore

HEADER: dict[str, Any] = {
    "teacher": "abc",
    "tokenizer": "def",
    "max_length": 128,
    "dtype": "float32",
    "classes": 2,
    "class_order": [0, 1],
}


def logits(*ids: int) -> NDArray[np.float32]:
    """[N, 2] float32, told apart by id."""
    return np.array([[number, -number] for number in ids], dtype=np.float32)


def filled(folder: Path) -> LabelStore:
    store = LabelStore.open(folder, header=HEADER)
    store.append(["1", "2"], logits(1, 2))
    store.append(["3"], logits(3))
    return store


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_labels_are_joined_by_id_and_never_by_order(tmp_path: Path) -> None:
    filled(tmp_path)
    store = LabelStore.open(tmp_path, header=HEADER)
    found = store.logits_for(["3", "1", "3", "2"])
    assert found.dtype == np.float32
    assert np.array_equal(found, logits(3, 1, 3, 2))
    assert store.done_ids() == {"1", "2", "3"}


def test_manifest_says_what_is_there(tmp_path: Path) -> None:
    filled(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["header"] == HEADER
    assert manifest["rows"] == 3
    assert [(part["rows"], len(part["sha256"])) for part in manifest["parts"]] == [(2, 64), (1, 64)]
    assert files(tmp_path) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]


def test_parts_are_fixed_size_lists_of_float32(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    filled(tmp_path)
    schema = pq.read_schema(tmp_path / "part-00000.parquet")
    assert schema.field("pair_id").type == pa.string()
    assert schema.field("logits").type.list_size == 2
    assert schema.field("logits").type.value_type == pa.float32()


@pytest.mark.parametrize("key", ["teacher", "tokenizer", "max_length", "class_order"])
def test_another_header_is_refused_by_the_key_that_differs(tmp_path: Path, key: str) -> None:
    filled(tmp_path)
    with pytest.raises(LabelError, match=f"whose {key} is .* not 'other'"):
        LabelStore.open(tmp_path, header={**HEADER, key: "other"})
    with pytest.raises(LabelError, match=f"whose {key} is .* not None"):
        LabelStore.open(tmp_path, header={name: value for name, value in HEADER.items() if name != key})
    with pytest.raises(LabelError, match="whose more is None, not 1"):
        LabelStore.open(tmp_path, header={**HEADER, "more": 1})
    assert LabelStore.open(tmp_path, header=HEADER).done_ids() == {"1", "2", "3"}


def test_header_needs_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes"):
        LabelStore.open(tmp_path, header={"teacher": "abc"})


def test_missing_rows_are_counted_and_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    message = "of 4 pairs 2 have no labels and 0 have labels that are not finite, first 8"
    with pytest.raises(LabelError, match=message) as caught:
        store.logits_for(["1", "8", "2", "9"])
    assert (caught.value.path, caught.value.missing, caught.value.not_finite) == (tmp_path, 2, 0)
    found = store.logits_for(["1", "8"], allow_missing=True)
    assert np.array_equal(found[0], [1, -1])
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_counted_refused_and_labelled_again(tmp_path: Path, bad: float) -> None:
    store = filled(tmp_path)
    store.append(["4", "5"], np.array([[bad, 0], [5, -5]], dtype=np.float32))
    message = (
        "of 3 pairs 0 have no labels and 1 have labels that are not finite, first 4; the teacher abc gave no number"
    )
    with pytest.raises(LabelError, match=message):
        store.logits_for(["1", "4", "5"])
    assert np.isnan(store.logits_for(["4"], allow_missing=True)).all()
    store = LabelStore.open(tmp_path, header=HEADER)
    assert store.done_ids() == {"1", "2", "3", "5"}
    store.append(["4"], logits(4))
    assert np.array_equal(store.logits_for(["5", "4"]), logits(5, 4))
    assert "4" in store.done_ids()


def test_logits_of_another_shape_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for wrong in (
        np.zeros((1, 3), dtype=np.float32),
        np.zeros((2, 2), dtype=np.float32),
        np.zeros(2, dtype=np.float32),
    ):
        with pytest.raises(ValueError, match=r"expected logits of shape \(1, 2\), got"):
            store.append(["4"], wrong)
    assert store.done_ids() == {"1", "2", "3"}


def test_empty_store_and_empty_part(tmp_path: Path) -> None:
    store = LabelStore.open(tmp_path, header=HEADER)
    store.append([], np.zeros((0, 2), dtype=np.float32))
    assert files(tmp_path) == ["manifest.json"]
    assert store.done_ids() == set()
    assert store.logits_for([]).shape == (0, 2)
    with pytest.raises(LabelError, match="1 have no labels"):
        store.logits_for(["1"])


def test_what_a_kill_left_is_cleaned(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "part-00002.parquet.tmp").write_bytes(b"PAR1 half of")  # killed while writing the part
    (tmp_path / "manifest.json.tmp").write_text('{"format": 1, "he')  # killed while writing the manifest
    whole = (tmp_path / "part-00001.parquet").read_bytes()
    (tmp_path / "part-00007.parquet").write_bytes(whole)  # killed between the two: no manifest names it
    store = LabelStore.open(tmp_path, header=HEADER)
    assert files(tmp_path) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert store.done_ids() == {"1", "2", "3"}
    store.append(["4"], logits(4))
    assert np.array_equal(store.logits_for(["4", "1"]), logits(4, 1))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_part_is_reported_and_its_rows_are_labelled_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    path = tmp_path / "part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-9])
    store = LabelStore.open(tmp_path, header=HEADER)
    said = caplog.text
    assert "part-00000.parquet" in said
    assert "2 pairs will be labelled again" in said
    assert store.done_ids() == {"3"}
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == 1
    store.append(["2", "1"], logits(2, 1))
    again = LabelStore.open(tmp_path, header=HEADER)
    assert np.array_equal(again.logits_for(["1", "2", "3"]), logits(1, 2, 3))


def test_part_that_breaks_after_opening_is_an_error_of_ours(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "part-00000.parquet").write_bytes(b"nothing")
    with pytest.raises(LabelError, match=r"part-00000\.parquet cannot be read"):
        store.logits_for(["1"])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "\x00"])
def test_damaged_manifest(tmp_path: Path, content: str) -> None:
    filled(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(LabelError, match=r"manifest\.json is damaged; remove the folder"):
        LabelStore.open(tmp_path, header=HEADER)


def test_failed_write_loses_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    rows = np.random.default_rng(0).normal(size=(20_000, 2)).astype(np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))  # the kernel refuses to write more, as on a full disk
    try:
        with pytest.raises(NoRoomError, match=r"part-00002\.parquet \(0\.3 MiB needed"):
            store.append([f"x{number}" for number in range(len(rows))], rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert np.array_equal(LabelStore.open(tmp_path, header=HEADER).logits_for(["1", "2", "3"]), logits(1, 2, 3))


WRITER = """
import sys
import numpy as np
from pathlib import Path
from tmkd.pipeline.store import label_store
from tmkd.pipeline.store.label_store import LabelStore
store = LabelStore.open(Path(sys.argv[1]), header={"classes": 2})
for part in range(100_000):
    ids = [str(part * 50 + row) for row in range(50)]
    store.append(ids, np.array([[float(i), -float(i)] for i in ids], dtype=np.float32))
"""


def test_killed_writer_leaves_a_store_that_continues(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    try:
        limit = time.monotonic() + 60
        while len(list(tmp_path.glob("part-*.parquet"))) < 5:
            assert time.monotonic() < limit
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    store = LabelStore.open(tmp_path, header={"classes": 2})
    done = sorted(store.done_ids(), key=int)
    assert len(done) >= 200
    assert done == [str(number) for number in range(len(done))]
    assert np.array_equal(store.logits_for(done)[:, 0], np.arange(len(done), dtype=np.float32))
    assert not list(tmp_path.glob("*.tmp"))
    store.append([str(len(done))], logits(len(done)))
    assert len(LabelStore.open(tmp_path, header={"classes": 2}).done_ids()) == len(done) + 1


def many_parts(folder: Path, parts: int) -> LabelStore:
    """A store of many small parts; the pair `again` is labelled in each of them."""
    store = LabelStore.open(folder, header={"teacher": "a", "classes": 1})
    for number in range(parts):
        store.append([f"pair {number}", "again"], np.array([[number], [number]], dtype=np.float32))
    return store


def require_filled(folder: Path, parts: int) -> None:
    store = LabelStore.open(folder, header={"teacher": "a", "classes": 1})
    names = [f"pair {number}" for number in range(parts)]
    assert store.logits_for(names)[:, 0].tolist() == list(range(parts))
    assert store.logits_for(["again"]).tolist() == [[parts - 1]]  # the latest counts
    assert {path.name for path in folder.glob("*.parquet")} == {part["file"] for part in store.manifest["parts"]}


def test_many_small_parts_are_merged_and_the_latest_logits_count(tmp_path: Path) -> None:
    store = many_parts(tmp_path, 2 * label_store.MERGED + 3)
    assert len(store.manifest["parts"]) < label_store.MERGED
    require_filled(tmp_path, 2 * label_store.MERGED + 3)


def test_large_parts_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_store, "SMALL", 3)
    monkeypatch.setattr(label_store, "MERGED", 4)
    store = LabelStore.open(tmp_path, header={"teacher": "a", "classes": 1})
    store.append(["pair 0", "b", "c"], np.zeros((3, 1), dtype=np.float32))
    large = store.manifest["parts"][0]
    for number in range(9):
        store.append([f"pair {number}"], np.array([[number]], dtype=np.float32))
    assert store.manifest["parts"][0] == large
    assert store.logits_for([f"pair {number}" for number in range(9)])[:, 0].tolist() == list(range(9))


def test_parts_with_pairs_enough_together_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of as many pairs is left as it is; the latest logits of a pair that is in several parts count."""
    monkeypatch.setattr(label_store, "WHOLE", 10)
    store = LabelStore.open(tmp_path, header={"teacher": "a", "classes": 1})
    rows = []
    for number in range(9):
        names = ["again", *(f"pair {2 * number + one}" for one in range(2))]
        store.append(names, np.full((3, 1), number, dtype=np.float32))
        rows.append([part["rows"] for part in store.manifest["parts"]])
    assert rows[:4] == [[3], [3, 3], [3, 3, 3], [9]]  # twelve rows; `again` is one pair of the four parts
    assert rows[4:] == [[11], [11, 3], [11, 3, 3], [11, 3, 3, 3], [11, 9]]
    found = LabelStore.open(tmp_path, header={"teacher": "a", "classes": 1})
    expected = np.repeat(np.arange(9), 2).tolist()
    assert found.logits_for([f"pair {number}" for number in range(18)])[:, 0].tolist() == expected
    assert found.logits_for(["again"]).tolist() == [[8.0]]
    assert {path.name for path in tmp_path.glob("*.parquet")} == {part["file"] for part in found.manifest["parts"]}


@pytest.mark.parametrize("moment", ["before the merged part", "before the manifest", "before removal", "in removal"])
def test_a_process_killed_while_parts_are_merged_loses_nothing(tmp_path: Path, moment: str) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from tmkd.pipeline.store import label_store\n"
        "from tmkd.pipeline.store.label_store import LabelStore\n"
        f"moment, folder = {moment!r}, Path({str(tmp_path)!r})\n"
        "last = label_store.MERGED\n"
        "store = LabelStore.open(folder, header={'teacher': 'a', 'classes': 1})\n"
        "writes, removed, durably, unlink = [], [], label_store.write_durably, Path.unlink\n"
        "def dying(path, content):\n"
        "    writes.append(path.name)\n"
        "    dies = {'before the merged part': 1, 'before the manifest': 2}.get(moment, 9)\n"
        "    if len(writes) == 2 * last + dies:\n"
        "        os._exit(9)\n"
        "    durably(path, content)\n"
        "def removing(self, **how):\n"
        "    if self.suffix != '.parquet':\n"
        "        return unlink(self, **how)\n"
        "    removed.append(self)\n"
        "    if len(removed) == {'before removal': 1, 'in removal': 9}.get(moment):\n"
        "        os._exit(9)\n"
        "    unlink(self, **how)\n"
        "label_store.write_durably, Path.unlink = dying, removing\n"
        "for number in range(last):\n"
        "    logits = np.array([[number], [number]], dtype=np.float32)\n"
        "    store.append([f'pair {number}', 'again'], logits)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    require_filled(tmp_path, label_store.MERGED)
