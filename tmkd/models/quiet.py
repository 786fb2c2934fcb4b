"""Progress bars of transformers: off while tmkd opens or saves a model, which has its own progress and log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing bars (`Loading weights`, `Writing model shards`) until the block ends.

    sentence-transformers opens and saves models with transformers, so it is quiet, too. Whether bars are drawn
    afterwards is what it was before.
    """
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()
