"""The CPU of this machine: how many cores this process may use, and which instructions they offer. Needs no torch."""

from __future__ import annotations

import functools
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

_FAST = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # instructions that speed depends on


def usable_cores() -> int:
    """How many threads this process can run at once, at least 1.

    It is the number of cores that the process may be scheduled on (its affinity; all cores where the system has no such
    thing, as on macOS and Windows), but no more than the CPU quota of its container, rounded up.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The CPU time that control groups allow this process, in cores; None where they set no limit.

    Both versions of Linux control groups are read: `cpu.max` (version 2), and `cpu.cfs_quota_us` over
    `cpu.cfs_period_us` (version 1). A limit on a parent group holds for its children, so the smallest one counts.

    Args:
        root: the folder that holds `proc` and `sys`; tests give another one.
    """
    quotas = [quota for folder in _groups(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's CPU control groups, each followed by its parents up to the mount."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = dict.fromkeys((controllers, "cpu")) if controllers else dict.fromkeys(("", "unified"))
        parts = Path(group.lstrip("/")).parts
        # A container often sees the host's name of its group but only its own group below the mount: then the folders
        # that the name spells do not exist, and the mount itself is the group.
        below = () if ".." in parts else parts
        for name in names:
            for depth in range(len(below), -1, -1):
                yield mounts.joinpath(name, *below[:depth])


def _quota_of(group: Path) -> float | None:
    """The limit of one control group, in cores; None where it has none, or says something that no kernel writes."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number either
        return None
    return cores if cores > 0 else None


def let_waiting_threads_sleep() -> None:
    """Let threads that wait for the others of their process give their core away after some microseconds.

    PyTorch computes with the threads of GNU OpenMP. Where several wait for one another, each keeps its core busy
    for milliseconds before it sleeps. On a core that another process uses, too, a thread then waits for one that
    cannot run, once for each of a training step's hundreds of operations. OpenMP reads the variable when it is
    loaded, so call this before torch is imported. What the user has set (`GOMP_SPINCOUNT`, `OMP_WAIT_POLICY`) stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The CPU's features by their Linux names (x86: flags, Arm: Features); empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    named = [line.partition(":") for line in lines]
    return frozenset(flag for key, _, text in named if key.strip() in ("flags", "Features") for flag in text.split())


def machine() -> str:
    """The processor, the usable cores and the instructions for fast arithmetic, in one line."""
    info = Path("/proc/cpuinfo")
    lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line] if info.is_file() else []
    found = {key.strip(): value.strip() for key, value in lines}
    model = found.get("model name") or platform.processor() or platform.machine()
    return ", ".join([model, f"{usable_cores()} cores", *(flag for flag in _FAST if flag in cpu_flags())])
