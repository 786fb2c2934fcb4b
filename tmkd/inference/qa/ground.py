"""What a calibration was made on, and what answers are given on: what fits one may not fit another.

The weight of retrieval is per point of BM25, whose size depends on the index; the threshold depends on what the
candidates are, and so on their number and on whether dense search finds some, and on the backend: an int8 backend may
rank as the student does, and give every pair a score that is 0.3 lower.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmkd.inference.qa.retrieval import Retriever

logger = logging.getLogger(__name__)

_GROWN = 0.1  # an index whose number of passages differs by a larger share counts as another one


@dataclass(frozen=True)
class Ground:
    """What a calibration was made on. What is not known is None, and is not compared: older files say less.

    Attributes:
        dense: Whether the index had the states of its passages, so that dense search retrieved, too.
        candidates: Passages that were retrieved and ranked for a question.
        index_version: The version of the index (`DocumentIndex.version`).
        index_passages: How many passages it held.
        backend: Of the export, with which the scores were computed.
    """

    dense: bool | None = None
    candidates: int | None = None
    index_version: str | None = None
    index_passages: int | None = None
    backend: str | None = None

    @classmethod
    def of(cls, retriever: Retriever, candidates: int, backend: str | None = None) -> Ground:
        """The ground that a retriever and a backend stand on, with a number of candidates."""
        index = retriever.index
        return cls(retriever.dense is not None, candidates, index.version, len(index), backend)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Ground:
        """The ground of a calibration.

        Args:
            content: The content of calibration.json.

        Raises:
            TypeError: A value is of another type.
        """
        kinds = {"dense": bool, "candidates": int, "index_version": str, "index_passages": int, "backend": str}
        given = {name: content.get(name) for name in kinds}
        for name, value in given.items():
            if value is not None and not isinstance(value, kinds[name]):
                raise TypeError(f"{name} is {value!r}")
        return cls(**given)


class GroundCheck:
    """Says once how the ground that answers are given on differs from that of their calibration.

    Args:
        calibrated: The ground of the calibration.
        retriever: Finds the passages.
        model: The export, for messages.
        backend: Computes the scores; None if the scorer is no export.
    """

    def __init__(
        self, calibrated: Ground, retriever: Retriever, model: Path | None, backend: str | None = None
    ) -> None:
        self._calibrated, self._retriever, self._backend = calibrated, retriever, backend
        self._how = f"tmkd calibrate {model or 'EXPORT'} --index {retriever.index.folder}"
        self._said: set[str] = set()

    def compare(self, candidates: int | None = None) -> None:
        """Log each difference once, as a warning; of an index that was only updated as information.

        Args:
            candidates: Passages that are ranked; None before a question is asked.
        """
        self._compare_dense()
        self._compare_index()
        self._compare_backend()
        if candidates is not None and self._calibrated.candidates not in (None, candidates):
            self._say(
                "candidates", f"with {self._calibrated.candidates:,} candidates for a question, and {candidates:,} are "
                f"ranked now; calibrate again with: {self._how} --candidates {candidates}",
            )  # fmt: skip

    def _compare_dense(self) -> None:
        was, dense = self._calibrated.dense, self._retriever.dense is not None
        if was and not dense:
            self._say(
                "dense", "with dense search, and BM25 alone retrieves now; compute the states of the index's passages, "
                f"or calibrate again with: {self._how}",
            )  # fmt: skip
        elif was is False and dense:
            self._say(
                "dense", f"with BM25 alone, and dense search retrieves now, too; calibrate again with: {self._how}"
            )

    def _compare_index(self) -> None:
        was, index = self._calibrated, self._retriever.index
        if "index" in self._said or was.index_version in (None, index.version):
            return
        before, now = was.index_passages or 0, len(index)
        here = f"of {before:,} passages, and {index.folder} has {now:,}"
        if abs(now - before) > _GROWN * before:
            self._say("index", f"on another index, {here}; calibrate again with: {self._how}")
        else:
            again = f"after larger changes calibrate again with: {self._how}"
            self._say("index", f"on another version of the index, {here}; {again}", level=logging.INFO)

    def _compare_backend(self) -> None:
        was, now = self._calibrated.backend, self._backend
        if None not in (was, now) and was != now:
            self._say(
                "backend", f"with the backend {was}, and {now} computes the scores now, which may differ by several "
                f"tenths; use --backend {was}, or calibrate again with: {self._how} --backend {now}",
            )  # fmt: skip

    def _say(self, name: str, how: str, level: int = logging.WARNING) -> None:
        if name not in self._said:
            self._said.add(name)
            logger.log(level, f"retrieval weights and threshold were calibrated {how}")
