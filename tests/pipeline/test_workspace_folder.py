"""The folder of a workspace: what is no folder gets a sentence before anything is written.

And what a process that was killed leaves in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Tmkd

from tmkd.core.errors import TmkdError
from tmkd.core.files import copy_folder, put_back, remove_temporary_of, swap_in, write_json
from tmkd.pipeline.store.workspace import Workspace


def test_a_link_to_nothing_and_a_file_are_refused_as_workspace(tmp_path: Path, tmkd: Tmkd) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(TmkdError, match=r"link is a symbolic link to .*gone, which is not there"):
        Workspace(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(TmkdError, match="file is a file, not a folder"):
        Workspace(tmp_path / "file")
    done = tmkd("clean", "--workspace", tmp_path / "link", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    (tmp_path / "gone").mkdir()
    assert Workspace(tmp_path / "link").root.is_dir()


def test_clean_keeps_a_step_that_a_run_named_just_before_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tmp_path / "steps" / "teacher-1"
    step.mkdir(parents=True)
    locked = Workspace.locked

    @contextmanager
    def after_a_run(self: Workspace, *, alone: bool = False) -> Iterator[None]:
        write_json(tmp_path / "runs" / "quick" / "manifest.json", {"steps": [step.name]})
        with locked(self, alone=alone):
            yield

    monkeypatch.setattr(Workspace, "locked", after_a_run)
    assert not Workspace(tmp_path).clean(remove=True)
    assert step.is_dir()
    with pytest.raises(TmkdError, match="is not a workspace"):
        Workspace(tmp_path / "other").clean(remove=True)
    assert not (tmp_path / "other").exists()


KILLED = """
import os, pathlib, sys
from tmkd.core.files import replacing
with replacing(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""


def half_written(path: Path) -> Path:
    """What a process leaves that is killed while it writes a file."""
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    (left,) = path.parent.glob(f"{path.name}.*")
    return left


def test_a_finished_step_has_no_file_of_a_process_that_was_killed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")

    def build(folder: Path) -> None:
        if not (folder / "notes.tmp").exists():  # the first time
            half_written(folder / "model.safetensors")
            half_written(folder / "tuned" / "model.safetensors")
            (folder / "notes.tmp").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.step("pool", "x", build, label="pool")
    step = workspace.step("pool", "x", build, label="pool")
    found = {str(path.relative_to(step.folder)) for path in step.folder.rglob("*")}
    assert found == {"notes.tmp", "step.json", "tuned"}

    half_written(step.folder / "tuned" / "model.safetensors")  # as in a step that an older version finished
    copy_folder(step.folder, tmp_path / "student")
    assert {str(path.relative_to(tmp_path / "student")) for path in (tmp_path / "student").rglob("*")} == found


def test_half_a_file_of_the_user_goes_when_it_is_old_and_nobody_writes_it(tmp_path: Path) -> None:
    output = tmp_path / "scored.csv"
    left, other = half_written(output), half_written(tmp_path / "other.csv")
    running = tmp_path / f"scored.csv.{os.getpid()}.tmp"
    running.touch()
    remove_temporary_of(output)
    assert left.exists()  # another machine's process may be at it
    for path in (left, other, running):
        os.utime(path, (0, 0))
    remove_temporary_of(output)
    assert sorted(tmp_path.iterdir()) == sorted([other, running])


def test_a_folder_that_was_removed_in_part_is_not_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even after the user has removed the folder that came in its place."""
    fresh, target = tmp_path / "fresh", tmp_path / "export"
    for folder in (fresh, target):
        folder.mkdir()
        (folder / "tmkd.json").touch()

    def killed_in_it(folder: Path, **_: object) -> None:
        if folder.is_dir():
            (folder / "tmkd.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_in_it)
        with pytest.raises(KeyboardInterrupt):
            swap_in(fresh, target)
    shutil.rmtree(target)
    put_back(target)
    assert not target.exists()
    for _ in range(2):  # the second one replaces the first
        fresh.mkdir()
        swap_in(fresh, target)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]  # nor is the other part there for ever
