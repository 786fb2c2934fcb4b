"""The script that a newcomer runs first: it does what it says, as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_the_quickstart_trains_exports_and_ranks(tmp_path: Path) -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 40
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "How full is my disk? -> df -h shows how much room each file system has left.",
        "How do I get a new password? -> passwd asks for the old password, then for the new one.",
    ]
    assert not done.stderr  # a library shows no log
    assert (tmp_path / "quickstart" / "runs" / "tmkd" / "export" / "onnx" / "model.onnx").is_file()
