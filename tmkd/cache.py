"""Where downloads and built data live: one folder per user, never the checkout."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder in the cache, made if absent: `$TMKD_CACHE`, else `$XDG_CACHE_HOME/tmkd`, else `~/.cache/tmkd`."""
    root = os.environ.get("TMKD_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tmkd"
    folder = base.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
