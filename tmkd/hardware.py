"""What this machine can do: device and precision, chosen at run time and said once with the reason."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch


@functools.cache
def native_bf16() -> bool:
    """Whether bf16 arithmetic is native here (it is never emulated)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16 "))


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_bf16(wanted: str) -> bool:
    """Resolve a recipe's `precision`: `auto` (bf16 where native), `bf16`, `fp32`."""
    return wanted == "bf16" or (wanted == "auto" and native_bf16())


def describe(wanted: str) -> str:
    """One line for the log: where and in which precision the work runs, and why."""
    precision = "bf16" if use_bf16(wanted) else "fp32"
    reason = "forced by the recipe" if wanted != "auto" else ("native here" if native_bf16() else "no native bf16 here")
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{place}; {precision} ({reason})"


def set_threads(count: int | None = None) -> None:
    """Use `count` threads (all usable cores unless given)."""
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
