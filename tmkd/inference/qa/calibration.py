"""What turns a student's log-odds into a probability to show, and says from which one on a passage is an answer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from tmkd.core.errors import ExportError
from tmkd.core.files import sha256_of

FILE = "calibration.json"  # in the export's folder
FORMAT = 1


def student_of(export: Path) -> str:
    """What tells the student of an export from others: a hash of its probes, 16 hex digits; empty without any."""
    probes = Path(export) / "probes.json"
    return sha256_of(probes)[:16] if probes.is_file() else ""


def of_the_same_student(old: Path, new: Path) -> str | None:
    """The text of an export's calibration, where it has one and the other export is of the same student."""
    path = Path(old) / FILE
    return path.read_text(encoding="utf-8") if path.is_file() and student_of(old) == student_of(new) else None


@dataclass(frozen=True)
class Calibration:
    """Chosen on development data by `tmkd calibrate`.

    Attributes:
        temperature: log-odds are divided by it; above 1 it makes the student less sure.
        threshold: no-answer threshold: the calibrated probability that the best passage needs; None: anything will do.
        retrieval_weight: log-odds that a passage loses for each point of BM25 by which it stays behind the best of its
            question; 0: the student alone ranks.
    """

    temperature: float = 1.0
    threshold: float | None = None
    retrieval_weight: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ExportError(f"the temperature is {self.temperature}; it must be above 0")
        if not (math.isfinite(self.retrieval_weight) and self.retrieval_weight >= 0):
            raise ExportError(f"the retrieval weight is {self.retrieval_weight}; it must be 0 or more")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ExportError(f"the threshold is {self.threshold}; it must be within 0 and 1")

    def probability(self, score: float) -> float:
        """The calibrated probability of a score (log-odds), 0 to 1."""
        odds = score / self.temperature
        if odds >= 0:
            return 1 / (1 + math.exp(-odds))
        power = math.exp(max(odds, -700.0))
        return power / (1 + power)

    @classmethod
    def read(cls, export: Path) -> Calibration:
        """The calibration of an export; the default one where it has none.

        Raises:
            ExportError: the file is damaged, of another format, or was made for another student.
        """
        path = Path(export) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("format") != FORMAT:
                raise ExportError(
                    f"{path}: format {content.get('format')!r}, this version reads {FORMAT}; run tmkd calibrate again"
                )
            if content.get("student", "") not in ("", student_of(export)):
                raise ExportError(f"{path} was made for another student; run tmkd calibrate again or remove it")
            threshold = content["threshold"]
            weight = float(content.get("retrieval_weight", 0.0))
            return cls(float(content["temperature"]), None if threshold is None else float(threshold), weight)
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(
                f"{path} is damaged ({type(error).__name__}: {error}); run tmkd calibrate again or remove it"
            ) from error
