"""The folder of a workspace: what is no folder gets a sentence before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Tmkd

from tmkd.core.errors import TmkdError
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
