"""The requests of a command are counted over all of its processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tmkd.teachers.budget import Budget, count_together

SPEND = """
import sys
from pathlib import Path
from tmkd.teachers.budget import Budget, count_together
count_together(Path(sys.argv[1]))
budget = Budget("endpoint", 200)
print(sum(budget.spend() for _ in range(150)))
"""


def test_processes_count_together(tmp_path: Path) -> None:
    own, other = Budget("endpoint", 200), Budget("another", 10)
    assert [own.spend() for _ in range(20)] == [True] * 20
    count_together(tmp_path)
    try:
        command = [sys.executable, "-c", SPEND, str(tmp_path)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        spent = [int(process.communicate(timeout=60)[0]) for process in processes]
        assert sum(spent) == 180
        assert not own.spend()
        assert other.spend()
    finally:
        count_together(None)
    assert not own.spend(), "what the others sent still counts"
    assert own.sent == 200
    assert other.sent == 1
    assert Budget("endpoint", 200).spend(), "another command has a budget of its own"


def test_without_a_limit_nothing_is_counted_in_a_file(tmp_path: Path) -> None:
    count_together(tmp_path)
    try:
        assert Budget("endpoint", None).spend()
    finally:
        count_together(None)
    assert not list(tmp_path.iterdir())
