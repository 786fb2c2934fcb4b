"""Where figures come from: the commit of a checkout, and only of tmkd's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tmkd.pipeline.provenance import _commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_says_whether_its_files_differ(tmp_path: Path) -> None:
    clean, changed = tmp_path / "clean" / "tmkd", tmp_path / "changed" / "tmkd"
    for package in (clean, changed):
        package.mkdir(parents=True)
        (package / "a.py").write_text("")
        git(package.parent, "init", "-q")
        git(package.parent, "add", ".")
        git(package.parent, "commit", "-qm", "a")
    (clean.parent / "notes.txt").write_text("beside the package")
    (changed / "b.py").write_text("a new module")
    assert _commit(clean) == {"commit": git(clean.parent, "rev-parse", "HEAD"), "dirty": False}
    assert _commit(changed)["dirty"] is True


def test_an_installed_package_inside_somebody_elses_repository_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    package = tmp_path / "venv" / "site-packages" / "tmkd"
    package.mkdir(parents=True)
    assert _commit(package) == {}
