"""Usable cores: affinity, and the CPU quota of control groups of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tmkd.core import cpu


def tree(root: Path, cgroup: str | None, files: dict[str, str]) -> Path:
    """A file system with /proc/self/cgroup and files below /sys/fs/cgroup."""
    if cgroup is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def v1(controller: str, groups: dict[str, tuple[int, int]]) -> dict[str, str]:
    """The files of version 1: quota and period of each group, in microseconds."""
    files = {}
    for group, numbers in groups.items():
        for name, number in zip(("quota", "period"), numbers, strict=True):
            files[f"{controller}/{group}/cpu.cfs_{name}_us"] = f"{number}\n"
    return files


V1 = "4:memory:/box\n3:cpu,cpuacct:/box/inner\n2:cpuset:/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "what is this\n"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3.0),  # b has no file
        ("0::/../other\n", {"cpu.max": "100000 50000\n", "other/cpu.max": "1 1\n"}, 2.0),
        ("0::/docker/id\n", {"cpu.max": "200000 100000\n"}, 2.0),  # a container that sees the host's name of its group
        (V1, v1("cpu,cpuacct", {"box/inner": (-1, 1)}), None),
        (V1, v1("cpu,cpuacct", {"box/inner": (400_000, 100_000), "box": (250_000, 100_000), "": (-1, 100_000)}), 2.5),
        (V1, v1("cpu", {"": (100_000, 50_000)}), 2.0),
        (V1, {"cpu/cpu.cfs_quota_us": "100000\n"}, None),  # no period
        ("1:cpu:/\n0::/\n", v1("cpu", {"": (50_000, 100_000)}), 0.5),  # hybrid
        ("2:cpuacct:/\n", v1("cpuacct", {"": (50_000, 100_000)}), None),
        ("nonsense\n\n", {"cpu.max": "100000 100000\n"}, None),
        (None, {"cpu.max": "100000 100000\n"}, None),  # no /proc, as on macOS
    ],
)  # fmt: skip
def test_the_smallest_quota_of_the_groups_counts(
    tmp_path: Path, cgroup: str | None, files: dict[str, str], quota: float | None
) -> None:
    assert cpu.cpu_quota(tree(tmp_path, cgroup, files)) == quota


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.2, 1), (1.0, 1), (2.5, 3), (64.0, 8)])
def test_a_quota_is_rounded_up_and_never_raises_the_number(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    assert cpu.usable_cores() == cores


def test_a_system_without_affinity_has_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu.usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.usable_cores() == 1


@pytest.mark.parametrize(
    ("set_by_the_user", "expected"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_openmp_sees_how_long_waiting_threads_may_spin(set_by_the_user: dict[str, str], expected: str | None) -> None:
    """OpenMP itself prints its settings when torch loads it."""
    code = "from tmkd.core.cpu import let_waiting_threads_sleep as sleep; sleep(); import torch; torch.ones(1)"
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | set_by_the_user
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    shown = [line.partition("=")[2].strip(" '") for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not shown:
        pytest.skip("torch computes with another OpenMP than GNU's")
    assert shown[0] != "20000" if expected is None else shown[0] == expected
