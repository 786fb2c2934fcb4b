"""Label stores are checked file by file; a repair drops what is wrong, and the next run labels that again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_fixtures import append, change_manifest, header_of, label_step, manifest_of, put_in_place, read

from tmkd.core.errors import LabelError, TmkdError
from tmkd.pipeline.labels import WorkspaceLabels
from tmkd.pipeline.store import label_check
from tmkd.pipeline.store.label_parts import what_is_wrong
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.pipeline.store.workspace import Busy, held

PART = "part-00001.parquet"
Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The labels of twelve pairs, in three parts."""
    return label_step(tmp_path)


def faults(root: Path) -> list[str]:
    return [f"{fault.path.name} {fault.what}" for check in WorkspaceLabels(root).verify() for fault in check.faults]


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a part as a program would that also puts its checksum into the manifest."""
    other = path.with_name("other")
    pq.write_table(change(pq.read_table(path)), other)
    shutil.copy(other, path)
    other.unlink()
    put_in_place(path, path.parent, trusted=True)


def foreign(root: Path, folder: Path, *, trusted: bool, **other: Any) -> None:
    put_in_place(label_step(root, **other) / PART, folder, trusted=trusted)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda one: (one / PART).write_bytes((one / PART).read_bytes()[:-9]), "checksum that the manifest"),
    "flipped": (lambda one: flip(one / PART), "does not have the checksum that the manifest names"),
    "gone": (lambda one: (one / PART).unlink(), "is missing"),
    "empty": (lambda one: (one / PART).write_bytes(b""), "is no readable Parquet file"),
    "other columns": (
        lambda one: rewrite(one / PART, lambda table: table.append_column("more", [list(range(4))])),
        "holds pair_id: string, logits: fixed_size_list<element: float>[2], more: int64, not",
    ),
    "too few rows": (lambda one: rewrite(one / PART, lambda table: table.slice(0, 3)), "has 3 rows, the manifest says"),
    "another teacher's": (
        lambda one: foreign(one.parents[1], one, trusted=False, teacher="teacher 2"),
        "does not have the checksum that the manifest names, holds labels of another teacher",
    ),
    "another teacher's, trusted": (
        lambda one: foreign(one.parents[1], one, trusted=True, teacher="teacher 2"),
        "holds labels of another teacher",
    ),
    "another pool's, trusted": (
        lambda one: foreign(one.parents[1], one, trusted=True, pairs="pool 2"),
        "holds labels of another set of pairs",
    ),
    "nobody's, trusted": (
        lambda one: rewrite(one / PART, lambda table: table.replace_schema_metadata(None)),
        "does not say which store it belongs to",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_part_is_named_dropped_and_its_pairs_alone_are_labelled_again(
    folder: Path, tmp_path: Path, name: str
) -> None:
    damage, expected = DAMAGES[name]
    damage(folder)
    before = snapshot(tmp_path)
    (found,) = faults(tmp_path)
    assert found.startswith(PART)
    assert expected in found
    assert snapshot(tmp_path) == before  # `lock` is not taken
    with pytest.raises(LabelError, match="of 12 pairs 4 have no labels"):  # a run does not trust it either
        read(folder).logits_for([str(number) for number in range(12)])

    (done,) = WorkspaceLabels(tmp_path).repair()
    assert (done.folder, done.dropped, done.missing) == (folder, 4, 4)
    assert not folder.is_dir()  # a folder that exists is whole
    partial = folder.with_name(f"{folder.name}.partial")
    assert sorted(LabelStore.read(partial, header=header_of("teacher 1")).done_ids(), key=int) == [
        "0", "1", "2", "3", "8", "9", "10", "11",
    ]  # fmt: skip
    assert faults(tmp_path) == []
    kept = {path.name: path.read_bytes() for path in partial.glob("part-*")}
    assert label_step(tmp_path) == folder
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert read(folder).logits_for([str(number) for number in range(12)])[:, 0].tolist() == list(range(12))
    assert faults(tmp_path) == []
    assert WorkspaceLabels(tmp_path).repair() == []


def test_pairs_that_are_not_finite_or_there_twice_are_labelled_again_alone(folder: Path, tmp_path: Path) -> None:
    change_manifest(folder, pairs={**manifest_of(folder)["pairs"], "count": 15})  # three pairs were not labelled yet
    store = LabelStore.open(folder, header=header_of("teacher 1"))
    append(store, [20, 21], value=float("nan"))
    append(store, [21])  # labelled again, as a run does
    append(store, [7, 22, 22])
    assert faults(tmp_path) == [
        "part-00003.parquet has 1 pairs whose logits are not finite",
        "part-00005.parquet has 2 pair ids that occur twice, in it or in an earlier part",
    ]
    (done,) = WorkspaceLabels(tmp_path).repair()
    assert (done.dropped, done.missing) == (18 - 12, 3)
    partial = folder.with_name(f"{folder.name}.partial")
    store = LabelStore.read(partial, header=header_of("teacher 1"))
    assert store.done_ids() == {*map(str, range(12)), "21"} - {"7"}
    assert faults(tmp_path) == []
    label_step(tmp_path)
    assert read(folder).logits_for([str(number) for number in range(12)])[:, 0].tolist() == list(range(12))


STORES: dict[str, tuple[Damage, str]] = {
    "no manifest": (lambda one: (one / "manifest.json").unlink(), "manifest.json is missing"),
    "half a manifest": (
        lambda one: (one / "manifest.json").write_text('{"format": 2, "header": {"cla'),
        "manifest.json cannot be read, or is not whole",
    ),
    "no classes": (lambda one: change_manifest(one, header={"teacher": "a"}), "cannot be read, or is not whole"),
    "parts without checksums": (
        lambda one: change_manifest(one, parts=[{"file": PART, "rows": 4}]), "cannot be read, or is not whole"),
    "another header": (
        lambda one: change_manifest(one, header=header_of("teacher 2")),
        "manifest.json has the header of another teacher's labels (teacher 2, not teacher 1)",
    ),
    "another teacher's files": (
        lambda one: shutil.copytree(
            label_step(one.parents[1], teacher="teacher 2"), one, dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("step.json"),
        ),
        "manifest.json has the header of another teacher's labels (teacher 2, not teacher 1)",
    ),
    "another pool's files": (
        lambda one: shutil.copytree(
            label_step(one.parents[1], pairs="pool 2"), one, dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("step.json"),
        ),
        "manifest.json is of labels of another set of pairs (pool 2, not pool 1)",
    ),
    "another step": (
        lambda one: shutil.copytree(label_step(one.parents[1], pairs="pool 2"), one, dirs_exist_ok=True),
        "step.json is that of the step labels-",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STORES)
def test_a_store_that_is_not_the_steps_is_removed_and_labelled_anew(folder: Path, tmp_path: Path, name: str) -> None:
    damage, expected = STORES[name]
    damage(folder)
    (found,) = faults(tmp_path)
    assert expected in found
    (done,) = WorkspaceLabels(tmp_path).repair()
    assert done.folder == folder
    assert not folder.exists()
    assert label_step(tmp_path) == folder
    assert read(folder).logits_for([str(number) for number in range(12)])[:, 0].tolist() == list(range(12))
    assert faults(tmp_path) == []


def test_labels_outlive_a_damaged_step_file_and_a_wrong_count(folder: Path, tmp_path: Path) -> None:
    parts = {path.name: path.read_bytes() for path in folder.glob("part-*")}
    (folder / "step.json").write_text("{")
    change_manifest(folder, rows=7)
    assert faults(tmp_path) == [
        "step.json cannot be read, or is not whole",
        "manifest.json counts 7 labels, its parts have 12",
    ]
    (done,) = WorkspaceLabels(tmp_path).repair()
    assert (done.dropped, done.missing) == (0, 0)
    label_step(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.glob("part-*")} == parts
    assert json.loads((folder / "step.json").read_text())["kind"] == "labels"
    assert faults(tmp_path) == []


def test_stores_of_earlier_versions_are_read_checked_and_continued(folder: Path, tmp_path: Path) -> None:
    """Their parts and their manifest do not say whose they are."""
    parts = manifest_of(folder)["parts"]
    for part in parts:
        rewrite(folder / part["file"], lambda table: table.replace_schema_metadata(None))
    content = manifest_of(folder)
    del content["pairs"]
    (folder / "manifest.json").write_text(json.dumps({**content, "format": 1}))
    assert faults(tmp_path) == []
    (shown,) = WorkspaceLabels(tmp_path).show().stores
    assert (shown.check.model, shown.check.count, shown.check.labelled) == ("judge", 12, 12)
    flip(folder / PART)
    (done,) = WorkspaceLabels(tmp_path).repair()
    assert (done.dropped, done.missing) == (4, 4)
    label_step(tmp_path)
    assert read(folder).logits_for(["5"]).tolist() == [[5, -5]]
    assert faults(tmp_path) == []


def test_an_unfinished_store_is_checked_too(folder: Path, tmp_path: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    folder.rename(partial)
    (partial / "step.json").unlink()
    (tmp_path / "steps" / "labels-0123456789ab.partial").mkdir()  # nothing was labelled yet
    assert faults(tmp_path) == []
    flip(partial / PART)
    (found,) = faults(tmp_path)
    assert PART in found
    (done,) = WorkspaceLabels(tmp_path).repair()
    assert (done.folder, done.dropped, done.missing) == (partial, 4, 4)
    assert label_step(tmp_path) == folder


HOLDER = """
import sys, time
from pathlib import Path
from typing import Any
from tmkd.pipeline.store.workspace import held
with held(Path(sys.argv[1]), "no"):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("lock", ["the step's", "the workspace's"])
def test_two_writers_at_once_are_refused(folder: Path, tmp_path: Path, lock: str) -> None:
    flip(folder / PART)
    before = snapshot(tmp_path)
    path = tmp_path / ("lock" if lock == "the workspace's" else f"locks/{folder.name}")
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Busy, match="another"):
            WorkspaceLabels(tmp_path).repair()
        assert {name: content for name, content in snapshot(tmp_path).items() if "lock" not in name} == before
        assert len(faults(tmp_path)) == 1  # reading is not refused
    finally:
        process.kill()
        process.wait()
    assert len(WorkspaceLabels(tmp_path).repair()) == 1


def test_a_reader_leaves_a_store_that_another_process_writes_as_it_is(folder: Path) -> None:
    (folder / "part-00003.parquet").write_bytes(b"the manifest does not name it yet")
    flip(folder / PART)
    before = snapshot(folder)
    assert len(read(folder).done_ids()) == 8
    assert snapshot(folder) == before
    assert len(LabelStore.open(folder, header=header_of("teacher 1")).done_ids()) == 8
    assert sorted(snapshot(folder)) == ["manifest.json", "part-00000.parquet", "part-00002.parquet", "step.json"]


def test_a_part_that_is_merged_while_it_is_checked_is_no_fault(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def looking(*given: Any) -> str:
        if not found:  # the other process writes after the manifest was read
            LabelStore.open(folder, header=header_of("teacher 1")).drop({PART}, ())
        found.append(what_is_wrong(*given))
        return found[-1]

    monkeypatch.setattr(label_check, "what_is_wrong", looking)
    assert faults(tmp_path) == []
    assert found == ["", "is missing", "", "", ""]  # and then the two parts that are left


def test_what_is_no_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TmkdError, match=r"is not a workspace \(no steps/\)"):
        WorkspaceLabels(tmp_path / "gone")


def test_labels_of_other_pairs_are_refused_by_the_set_of_pairs(folder: Path) -> None:
    other = {"digest": "pool 2", "count": 1, "model": "judge"}
    with pytest.raises(LabelError, match="holds labels of the pairs pool 1, not pool 2"):
        LabelStore.open(folder, header=header_of("teacher 1"), pairs=other)


def test_a_lock_that_is_free_again_is_taken(folder: Path, tmp_path: Path) -> None:
    with held(tmp_path / "locks" / folder.name, "no"), pytest.raises(Busy):
        WorkspaceLabels(tmp_path).repair()
    assert WorkspaceLabels(tmp_path).repair() == []
    assert not list((tmp_path / "locks").iterdir())
    assert faults(tmp_path) == []
