"""The machine that a measurement ran on, in words."""

from __future__ import annotations

import platform
from pathlib import Path

from tmkd.core.cpu import cpu_flags, usable_cores

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # what speed depends on


def machine() -> str:
    """Name the processor, the usable cores and the instructions for fast arithmetic, in one line."""
    info = Path("/proc/cpuinfo")
    lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line] if info.is_file() else []
    found = {key.strip(): value.strip() for key, value in lines}
    model = found.get("model name") or platform.processor() or platform.machine()
    offers = [flag for flag in _INSTRUCTIONS if flag in cpu_flags()]
    return ", ".join([model, f"{usable_cores()} cores", *offers])
