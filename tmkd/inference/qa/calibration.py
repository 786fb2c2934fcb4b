"""The calibration of an export: it turns log-odds into probabilities, and says which ones are high enough to answer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tmkd.core.errors import ExportError
from tmkd.core.files import read_json, sha256_of
from tmkd.core.logits import sigmoid
from tmkd.inference.qa.ground import Ground
from tmkd.inference.qa.ranking import Weights
from tmkd.inference.qa.retrieval import DENSE_SHARE

FILE = "calibration.json"  # in the export's folder
FORMAT = 1
_SINCE = ("retrieval_weight", "dense_weight", "dense_share")


def student_of(export: Path) -> str:
    """A name for the student of an export: a hash of its probes, 16 hex digits; empty if it has none."""
    probes = Path(export) / "probes.json"
    return sha256_of(probes)[:16] if probes.is_file() else ""


def of_the_same_student(old: Path, new: Path) -> str | None:
    """The calibration of an export, if another export is of the same student.

    Args:
        old: The export with the calibration.
        new: The other export.

    Returns:
        The text of its file; None where there is no file, or the students differ.
    """
    path = Path(old) / FILE
    return path.read_text(encoding="utf-8") if path.is_file() and student_of(old) == student_of(new) else None


@dataclass(frozen=True)
class Calibration:
    """The numbers that `tmkd calibrate` chooses on development data.

    Attributes:
        temperature: Log-odds are divided by it. Above 1 it brings probabilities closer to 0.5.
        threshold: No-answer threshold: the least calibrated probability that the best passage needs to count as an
            answer. None accepts every passage.
        retrieval_weight: Log-odds that a passage loses for each point of BM25 that it is behind the question's best
            passage.
        dense_weight: Log-odds that a passage loses for a whole cosine that it is behind the question's nearest passage.
            With both weights 0 the student alone ranks.
        dense_share: What dense search counts in the choice of candidates, 0 to 1, as `retrieval.fuse` takes it.
        least_score: The raw score that `threshold` is the probability of (`from_score`). It decides what is answered,
            because the probabilities of scores that differ may both round to 1. Where it is None, or where threshold
            or temperature were changed since, the probability decides.
        ground: What it was made on.

    Raises:
        ValueError: A number is outside its range.
    """

    temperature: float = 1.0
    threshold: float | None = None
    retrieval_weight: float = 0.0
    dense_weight: float = 0.0
    dense_share: float = DENSE_SHARE
    least_score: float | None = None
    ground: Ground = field(default_factory=Ground)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"the temperature is {self.temperature}; it must be above 0")
        for name, weight in (("retrieval", self.retrieval_weight), ("dense", self.dense_weight)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the {name} weight is {weight}; it must be 0 or more")
        if not 0 <= self.dense_share <= 1:
            raise ValueError(f"the share of dense search is {self.dense_share}; it must be from 0 to 1")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"the threshold is {self.threshold}; it must be from 0 to 1")
        if self.least_score is not None and not math.isfinite(self.least_score):
            raise ValueError(f"the least score is {self.least_score}; it must be a number")

    @property
    def weights(self) -> Weights:
        """What retrieval counts beside the student's log-odds."""
        return Weights(self.retrieval_weight, self.dense_weight)

    def probability(self, score: float) -> float:
        """The calibrated probability of a score (log-odds), 0 to 1."""
        return float(sigmoid(np.array(score / self.temperature)))

    def to_json(self) -> dict[str, Any]:
        """The numbers and the ground, as calibration.json holds them."""
        numbers = asdict(self)
        ground = numbers.pop("ground")
        return {**numbers, **ground}

    def from_score(self, least: float) -> Calibration:
        """This calibration with a no-answer threshold at a raw score."""
        return replace(self, least_score=least, threshold=self._threshold_at(least))

    def _threshold_at(self, score: float) -> float:
        """The probability of a score, rounded down to six decimals."""
        return math.floor(self.probability(score) * 1e6) / 1e6

    def accepts(self, score: float) -> bool:
        """Whether a best passage with this raw score counts as an answer."""
        if self.threshold is None:
            return True
        if self.least_score is not None and self.threshold == self._threshold_at(self.least_score):
            return score >= self.least_score
        return self.probability(score) >= self.threshold

    @classmethod
    def read(cls, export: str | Path) -> Calibration:
        """The calibration of an export; the default one if it has none.

        Args:
            export: The export's folder.

        Raises:
            ExportError: The file is damaged, of another format, or was made for another student.
        """
        path = Path(export) / FILE
        try:
            content = read_json(path)
            if content.get("format") != FORMAT:
                raise ExportError(
                    f"{path}: format {content.get('format')!r}, this version reads {FORMAT}; run tmkd calibrate again"
                )
            if content.get("student", "") not in ("", student_of(path.parent)):
                raise ExportError(f"{path} was made for another student; run tmkd calibrate again or remove it")
            threshold = content["threshold"]
            given = {name: float(content[name]) for name in _SINCE if name in content}  # older files lack some
            if content.get("least_score") is not None:
                given["least_score"] = float(content["least_score"])
            limit = None if threshold is None else float(threshold)
            return cls(float(content["temperature"]), limit, **given, ground=Ground.of_json(content))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(
                f"{path} is damaged ({type(error).__name__}: {error}); run tmkd calibrate again, or remove it"
            ) from error
