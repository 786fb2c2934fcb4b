"""What this machine can do: device and precision, chosen at run time and said once with the reason."""

from __future__ import annotations

import functools
import importlib.util
from typing import Literal

import torch

from tmkd.core.cpu import cpu_flags, usable_cores
from tmkd.core.malloc import keep_freed_memory
from tmkd.core.open_files import raise_limit


@functools.cache
def native_bf16() -> bool:
    """Whether bf16 arithmetic is native here (it is never emulated)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_tokens() -> int:
    """Most tokens of one micro-batch: bounds memory; on a CPU its activations stay near the cache."""
    return 65_536 if torch.cuda.is_available() else 4096


_forced_attention = "auto"
_jobs = 1


def attention(bf16: bool) -> str:
    """How attention runs: `matmul` (two plain matrix products), `sdpa` (PyTorch's fused one), `packed`.

    Forced by `prepare`, else what is fastest on the device: SDPA's CPU backward is slow at these lengths; on a GPU
    packed batches waste nothing on padding, and take bf16 alone.
    """
    wanted = _forced_attention if _forced_attention != "auto" else _fastest_attention()
    return "sdpa" if wanted == "packed" and torch.cuda.is_available() and not bf16 else wanted


@functools.cache
def _fastest_attention() -> str:
    if not torch.cuda.is_available():
        return "matmul"
    return "packed" if importlib.util.find_spec("torch.nn.attention.varlen") and native_bf16() else "sdpa"


def use_bf16(wanted: str) -> bool:
    """Resolve a recipe's `precision`: `auto` (bf16 where native), `bf16`, `fp32`."""
    return wanted == "bf16" or (wanted == "auto" and native_bf16())


def resolved_precision(wanted: str) -> Literal["bf16", "fp32"]:
    """What a recipe's `precision` is on this machine."""
    return "bf16" if use_bf16(wanted) else "fp32"


def describe(wanted: str) -> str:
    """One line for the log: where and in which precision the work runs, and what the machine offers."""
    precision, native = resolved_precision(wanted), "bf16 is native here" if native_bf16() else "no native bf16 here"
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    how = "forced by the recipe" if _forced_attention != "auto" else "fastest on this device"
    return f"{place}; {precision} ({native}); attention: {attention(use_bf16(wanted))} ({how})"


def prepare(threads: int | None = None, attention: str = "auto") -> None:
    """Set this process up for tensor work: threads, kind of attention, freed memory kept, more files open at once.

    Args:
        threads: Threads of PyTorch; this process's share of the usable cores unless given.
        attention: What `hardware.attention` gives from here on; `auto` takes what is fastest on the device.
    """
    global _forced_attention
    _forced_attention = attention
    torch.set_num_threads(threads or _share())
    keep_freed_memory()
    raise_limit()


def share_cores(jobs: int) -> None:
    """From here on so many processes like this one share the usable cores."""
    global _jobs
    _jobs = jobs
    torch.set_num_threads(_share())


def _share() -> int:
    return max(1, usable_cores() // _jobs)
