"""A disk that is really full, and small ones that fill up: everything that writes says so and leaves nothing half done.

The disks are file systems in memory, which only root can mount.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from cached_fixtures import cached_export
from conftest import Tmkd
from encoder_fixtures import tiny
from export_fixtures import dev_pairs, mpnet_student
from label_fixtures import append, header_of, label_step, read
from qa_fixtures import document, index_of
from state_fixtures import MiniLM

from tmkd.core.errors import DataError, NoRoomError, TmkdError
from tmkd.core.files import copy_folder, disk_errors, write_json, write_text
from tmkd.core.mapped import mapped_numbers
from tmkd.data.documents.index import DocumentIndex, update_index
from tmkd.data.pairs import Pairs
from tmkd.data.writers import write_rows, write_tables
from tmkd.export.export import export_student
from tmkd.inference.state_store import StateStore
from tmkd.inference.state_update import update_states
from tmkd.models.checkpoint import load_encoder, save_student
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.labels import WorkspaceLabels
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.pipeline.store.token_cache import tokens_of
from tmkd.pipeline.store.workspace import Workspace
from tmkd.training.hidden_states import StoredStates
from tmkd.training.state import TrainingState

SmallDisk = Callable[[int], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mounts a disk of so many KiB."""
    place = tmp_path / "disk"

    def mount(kibibytes: int) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no disk of a limited size can be mounted here")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def fill_up(disk: Path, but: int = 0) -> None:
    """Write until only so many bytes are free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(0, free - but)))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_half_a_copy_of_a_folder_does_not_stay(small_disk: SmallDisk, tmp_path: Path) -> None:
    disk, source = small_disk(1024), tmp_path / "student"
    source.mkdir()
    (source / "model.safetensors").write_bytes(bytes(600_000))
    copy_folder(source, disk / "student")
    with pytest.raises(NoRoomError), disk_errors(disk):
        copy_folder(source, disk / "student")
    assert files(disk) == ["student/model.safetensors"]


def test_a_file_stays_as_it_was_and_the_error_says_how_much_room_is_needed(small_disk: SmallDisk) -> None:
    disk = small_disk(1024)
    write_json(disk / "results.json", {"mrr": 0.5})
    fill_up(disk, but=65536)
    with pytest.raises(
        NoRoomError, match=r"no room on disk at .*results\.json \(1\.9 MiB needed, 0\.1 MiB free"
    ) as got:
        write_text(disk / "results.json", "x" * 2_000_000)
    assert (got.value.path, got.value.needed) == (disk / "results.json", 2_000_000)
    assert 0 < got.value.free <= 65536
    assert (disk / "results.json").read_text() == '{\n  "mrr": 0.5\n}\n'
    assert files(disk) == ["filler", "results.json"]


def test_pairs_and_labels_are_whole_or_not_there(small_disk: SmallDisk) -> None:
    disk = small_disk(512)
    words = [" ".join(map(str, row)) for row in np.random.default_rng(0).integers(0, 10**9, (4000, 20))]
    pairs = Pairs.build(words, words)
    header = {
        "teacher": "a",
        "tokenizer": "b",
        "max_length": 8,
        "dtype": "float32",
        "classes": 2,
        "class_order": [0, 1],
    }
    store = LabelStore.open(disk / "labels", header=header)
    store.append(["one"], np.zeros((1, 2), dtype=np.float32))
    there = files(disk)
    with pytest.raises(NoRoomError, match=r"pool\.parquet"):
        pairs.save(disk / "pool.parquet")
    many = np.random.default_rng(1).normal(size=(90_000, 2)).astype(np.float32)
    with pytest.raises(NoRoomError, match=r"part-00001\.parquet.*MiB needed"):
        store.append([f"pair {number}" for number in range(len(many))], many)
    assert files(disk) == there
    assert LabelStore.open(disk / "labels", header=header).done_ids() == {"one"}


def test_labels_that_cannot_be_repaired_on_a_full_disk_are_repaired_later(small_disk: SmallDisk) -> None:
    disk = small_disk(1024)
    folder = label_step(disk, ids=range(9000), size=3000)
    append(LabelStore.open(folder, header=header_of("teacher 1")), [7])  # there twice: two parts are written anew
    fill_up(disk, but=4096)
    with pytest.raises(NoRoomError, match="no room on disk at"):
        WorkspaceLabels(disk).repair()
    (disk / "filler").unlink()
    (done,) = WorkspaceLabels(disk).repair()
    assert (done.dropped, done.missing) == (2, 1)
    label_step(disk, ids=range(9000), size=3000)
    numbers = [str(number) for number in range(9000)]
    assert read(folder).logits_for(numbers)[:, 0].tolist() == list(range(9000))


def test_rows_that_do_not_fit_leave_the_earlier_file(small_disk: SmallDisk) -> None:
    disk = small_disk(512)
    words = np.random.default_rng(0).integers(0, 10**9, (2000, 20))
    table = pa.table({"text": [" ".join(map(str, row)) for row in words]})
    for name in ("rows.csv", "rows.jsonl", "rows.parquet", "rows.jsonl.gz"):
        (disk / name).write_text("before")
        with pytest.raises(NoRoomError, match=f"no room on disk at .*{name}"):
            write_tables(disk / name, table.schema, (table for _ in range(40)))
        assert (disk / name).read_text() == "before"
    assert len(files(disk)) == 4


def test_a_checkpoint_that_does_not_fit_leaves_no_weights(small_disk: SmallDisk, tmp_path: Path) -> None:
    source = tiny("bert", tmp_path / "tiny")
    student = Student(load_encoder(source, 2), 2)
    disk = small_disk(1024)
    with pytest.raises(NoRoomError, match=r"model\.safetensors \(5\.9 MiB needed, 1\.0 MiB free"):
        save_student(student, disk / "student", source, 32, {})
    assert files(disk) == ["student/config.json"]
    fill_up(disk)
    with pytest.raises(NoRoomError, match=r"no room on disk at .*student"):
        save_student(student, disk / "student", source, 32, {})


def test_the_state_of_a_training_stays_the_one_before(small_disk: SmallDisk) -> None:
    disk = small_disk(1024)
    parameter = torch.nn.Parameter(torch.ones(50_000))
    optimiser = torch.optim.AdamW([parameter])
    TrainingState({"w": parameter}, optimiser, disk).save(7, [])
    fill_up(disk, but=100_000)
    with pytest.raises(NoRoomError, match=r"state\.safetensors \(0\.2 MiB needed"):
        TrainingState({"w": parameter}, optimiser, disk).save(8, [])
    assert TrainingState({"w": parameter}, optimiser, disk).load() == (7, [])
    with pytest.raises(NoRoomError, match=r"states\.f16 \(7\.6 MiB needed"):
        StoredStates(disk, np.full(1000, 100), 40)


def test_token_ids_that_do_not_fit_are_not_kept(small_disk: SmallDisk, tmp_path: Path) -> None:
    disk = small_disk(128)
    pairs = Pairs.build(["word " * 40] * 3000, [f"{number} " * 40 for number in range(3000)])
    with pytest.raises(NoRoomError, match=r"\.safetensors \(\d\.\d MiB needed"):
        tokens_of(Workspace(disk), PairTokenizer(tiny("bert", tmp_path / "tiny"), 128), pairs)
    assert not [name for name in files(disk) if "safetensors" in name]


def test_soft_labels_that_cannot_be_mapped_leave_no_file(small_disk: SmallDisk) -> None:
    disk = small_disk(512)
    with pytest.raises(NoRoomError, match=r"numbers \(7\.6 MiB needed"):
        mapped_numbers(np.zeros((1_000_000, 2), dtype=np.float32), disk)
    assert files(disk) == []
    fill_up(disk, but=65536)  # the room is free again


def test_an_export_that_does_not_fit_leaves_the_earlier_one(small_disk: SmallDisk, tmp_path: Path) -> None:
    student = mpnet_student(tmp_path / "mpnet")
    disk = small_disk(1024)
    export_student(student, dev_pairs(20), disk / "export", backends=["onnx-fp32"])
    before = files(disk)
    for but in (0, 40_000, 150_000):
        fill_up(disk, but)
        with pytest.raises(NoRoomError, match="no room on disk at"):
            export_student(student, dev_pairs(20), disk / "export", backends=["onnx-fp32"])
        (disk / "filler").unlink()
        assert files(disk) == before


def test_an_index_that_does_not_fit_is_as_it_was(small_disk: SmallDisk) -> None:
    disk = small_disk(512)
    update_index(disk / "index", lambda: [document("a", "old words")])
    words = np.random.default_rng(0).integers(0, 10**9, (3000, 40))
    with pytest.raises((DataError, NoRoomError), match=r"MiB free"):
        update_index(
            disk / "index", lambda: [document(f"b{n}", " ".join(map(str, row))) for n, row in enumerate(words)]
        )
    assert [one.document for one in DocumentIndex.open(disk / "index").search("words", 3)] == ["a"]


def test_states_that_do_not_fit_leave_those_before_whole(small_disk: SmallDisk) -> None:
    torch.set_num_threads(1)
    disk, encoder = small_disk(1024), MiniLM()
    few, more = ({f"d{n}": f"words number{n}" for n in range(count)} for count in (8, 48))
    index_of(disk / "index", few)
    update_states(disk / "index", encoder, segment=4)
    index_of(disk / "index", more)
    before = files(disk)
    fill_up(disk, but=40_000)
    with pytest.raises(NoRoomError, match=r"no room on disk at .*index/states"):
        update_states(disk / "index", encoder, segment=4)
    store = StateStore.open(disk / "index", encoder.identity)
    store.check()
    finished = len(store)
    assert 8 < finished < 48
    assert finished % 4 == 0
    assert {name.split("-")[0] for name in files(disk)} == {name.split("-")[0] for name in [*before, "filler"]}
    (disk / "filler").unlink()
    assert update_states(disk / "index", encoder).kept == finished
    fill_up(disk)
    with pytest.raises(NoRoomError, match="no room on disk"):
        update_states(disk / "index", MiniLM(64))
    store.refresh()
    assert len(store) == 48


def test_indexing_on_a_full_disk_ends_in_one_sentence_and_goes_on_afterwards(
    small_disk: SmallDisk, tmkd: Tmkd, tmp_path: Path
) -> None:
    disk, export = small_disk(2048), cached_export() / "out"
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(60):
        (docs / f"d{number}.md").write_text(f"The disk number{number} holds what the {number + 3} others do not.\n")
    tmkd("index", docs, "--out", disk / "index")
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    fill_up(disk, but=20_000)
    call = ("index", "--out", disk / "index", "--model", export, "--threads", "1")
    done = tmkd(*call, check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert f"no room on disk at {disk}/index/states" in said
    assert "MiB needed" in said
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in before} == before
    answered = tmkd("ask", "disk number7", "--model", export, "--index", disk / "index", "--threads", "1")
    assert "number7" in answered.stdout
    assert f"tmkd index --out {disk}/index --model {export}" in " ".join(answered.stderr.split())
    (disk / "filler").unlink()
    assert "60 computed, 0 kept" in tmkd(*call).stderr
    tmkd("index", "--check", "--out", disk / "index")


def test_a_run_on_a_full_disk_ends_in_one_sentence(small_disk: SmallDisk, tmkd: Tmkd, tiny_recipe: Path) -> None:
    disk = small_disk(2048)
    done = tmkd("teach", tiny_recipe, "--workspace", disk / "workspace", check=False)
    assert done.returncode == 1
    assert "no room on disk at" in done.stderr
    assert "MiB needed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [name for name in files(disk) if name.endswith(".tmp") or name.endswith("model.safetensors")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv.gz", "rows.parquet"])
def test_rows_that_do_not_fit_say_how_many_bytes_they_have(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"text": np.random.default_rng(number).bytes(2000).hex()} for number in range(50)]
    write_rows(path, rows)
    size, before = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    path.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(NoRoomError, match=rf"{name} \(0\.[12] MiB needed") as found:
            write_rows(path, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found.value.needed == size
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
        (OSError(errno.EFBIG, "File too large"), "a file may not be so large here"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no room on disk"),
    ],
)
def test_every_wording_of_a_full_disk_is_known(error: Exception, said: str, tmp_path: Path) -> None:
    with pytest.raises(NoRoomError, match=said), disk_errors(tmp_path / "new" / "file"):
        raise error


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (PermissionError(errno.EACCES, "no"), ValueError("os error 2"), TmkdError("refused")):
        with pytest.raises(type(error)) as got, disk_errors(tmp_path):
            raise error
        assert got.value is error
