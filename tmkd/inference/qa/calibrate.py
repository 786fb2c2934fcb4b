"""Temperature, no-answer threshold and retrieval weight of an export: chosen on development questions, told on test's.

Retrieval weight: a student is trained to tell a question's passages from others that BM25 finds for it, so a high BM25
score tells it little; yet among a hundred candidates it tells much. How much it counts is what gives the best mean
reciprocal rank.

Temperature: one number that divides the log-odds, where the negative log-likelihood of the labelled development pairs
is least (Guo et al., ICML 2017). It changes no ranking.

Threshold: every development question is asked twice, with its source documents in the index and with them taken out
(then no answer is the right answer). Best F1 of answered-and-right: precision is the share of right answers among all
that were given, recall the share of the questions with their sources that got a right one. Or the lowest threshold at
which no more than a given share of the answers given is wrong. A document left in may answer as well; such answers
count as wrong, so what is said of wrong answers is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError, needs_extra
from tmkd.core.files import write_json
from tmkd.core.logits import sigmoid
from tmkd.inference.qa.answer import QuestionAnswerer, Ranked
from tmkd.inference.qa.calibration import FILE, FORMAT, Calibration, student_of
from tmkd.inference.qa.cases import Asked, Material, ask_all, scored_pairs

Floats = NDArray[np.float64]
BINS = 15  # of equal width, of the expected calibration error
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)  # of retrieval, that are tried
_RESAMPLES = 1000
_MOST_POINTS = 200  # of a curve that is written


@dataclass(frozen=True)
class Outcomes:
    """Every question asked with its sources (the first G rows) and without them (the others), [2 G].

    Attributes:
        scores: log-odds of the first answer; -inf where nothing was found.
        right: whether that answers; never without the sources.
        present: whether the sources were there.
    """

    scores: Floats
    right: NDArray[np.bool_]
    present: NDArray[np.bool_]

    @classmethod
    def of(cls, asked: Sequence[Asked], weight: float) -> Outcomes:
        """What came first for every question."""
        firsts = [(one.case.right, one.ranked(weight)) for one in asked]
        firsts += [(frozenset[str](), one.ranked(weight, sources=False)) for one in asked]
        scores = np.array([ranked[0].score if ranked else -np.inf for _, ranked in firsts])
        right = np.array([_first(ranked) in pids for pids, ranked in firsts], dtype=bool)
        return cls(scores, right, np.arange(len(firsts)) < len(asked))

    def at(self, least: float) -> dict[str, Floats]:
        """Counts of every question, each [G], where answers from a score of `least` on are given."""
        given = self.scores >= least
        half = len(given) // 2
        right = given & self.right
        return {
            "given": given[:half] + given[half:].astype(float),
            "right": right[:half].astype(float),
            "given_without_sources": given[half:].astype(float),
        }


def _first(ranked: Sequence[Ranked]) -> str:
    return ranked[0].found.passage.pid if ranked else ""


def best_weight(asked: Sequence[Asked]) -> float:
    """The retrieval weight at which the first right passage has the best mean reciprocal rank; of equal ones the least.

    One number, of a dozen, chosen on all questions: too little freedom to fit them by heart.
    """
    return max(WEIGHTS, key=lambda weight: (reciprocal_rank(asked, weight), -weight))


def reciprocal_rank(asked: Sequence[Asked], weight: float) -> float:
    """Mean over questions of 1 / rank of the first passage that answers; 0 where none was retrieved."""
    found = []
    for one in asked:
        pids = [ranked.found.passage.pid for ranked in one.ranked(weight)]
        found.append(next((1 / place for place, pid in enumerate(pids, 1) if pid in one.case.right), 0.0))
    return float(np.mean(found))


def fit_temperature(scores: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature of the least negative log-likelihood, 0.01 to 100.

    Args:
        scores: log-odds, [N]. labels: 0 or 1, [N].

    Raises:
        DataError: one of the labels does not occur.
    """
    if len(set(labels.tolist())) < 2:
        raise DataError("a temperature needs development pairs of both labels, 0 and 1")
    low, high = 0.01, 100.0  # of 1 / temperature; in it the likelihood is convex, so its slope has one zero
    for _ in range(60):
        middle = np.sqrt(low * high)
        slope = float(((sigmoid(middle * scores) - labels) * scores).mean())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


def calibration_error(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Expected calibration error of the positive class: |share of positives - mean probability|, over 15 bins."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, labels - probabilities, minlength=BINS))
    return float(gaps.sum() / len(labels))


def best_f1(outcomes: Outcomes) -> float:
    """The score from which answers are given where F1 of answered-and-right is best; of equal ones the lowest."""
    order, right, given = _sorted(outcomes)
    f1 = 2 * right / (given + outcomes.present.sum())
    return float(outcomes.scores[order][_last_best(f1)])


def within_risk(outcomes: Outcomes, risk: float) -> float:
    """The lowest score from which answers can be given with at most this share of them wrong.

    Raises:
        DataError: no score does; says what can be reached.
    """
    order, right, given = _sorted(outcomes)
    risks = np.where(given > 0, 1 - right / np.maximum(given, 1), np.inf)
    usable = np.flatnonzero(risks <= risk)
    if len(usable) == 0:
        raise DataError(
            f"no threshold keeps the share of wrong answers at {risk:g}; the least that development questions allow is "
            f"{risks.min():.2f}. Ask for that, or train a better student"
        )
    return float(outcomes.scores[order][usable[-1]])


def _sorted(outcomes: Outcomes) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Rows from the surest on; right and given answers up to each. Inside a run of equal scores only its end counts."""
    order = np.argsort(-outcomes.scores, kind="stable")
    order = order[np.isfinite(outcomes.scores[order])]
    if len(order) == 0:
        raise DataError("nothing was found for any development question; there is no threshold to choose")
    scores = outcomes.scores[order]
    ends = np.append(scores[1:] != scores[:-1], True)
    right = np.cumsum(outcomes.right[order]).astype(float)
    given = np.arange(1.0, len(order) + 1)
    return order[ends], right[ends], given[ends]


def _last_best(values: Floats) -> int:
    return int(np.flatnonzero(values >= values.max())[-1])


def risk_coverage(outcomes: Outcomes) -> dict[str, list[float]]:
    """The curve over all rows: share of questions answered, and share of those answers that are wrong."""
    _, right, given = _sorted(outcomes)
    keep = np.unique(np.linspace(0, len(given) - 1, min(len(given), _MOST_POINTS)).astype(int))
    coverage, risk = given / len(outcomes.scores), 1 - right / given
    return {"coverage": [round(float(v), 4) for v in coverage[keep]], "risk": [round(float(v), 4) for v in risk[keep]]}


def area(outcomes: Outcomes) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages that can be reached."""
    _, right, given = _sorted(outcomes)
    widths = np.diff(given, prepend=0.0)
    return float(((1 - right / given) * widths).sum() / widths.sum())


@dataclass(frozen=True)
class Found:
    """What `calibrate` chose, and what it measured."""

    calibration: Calibration
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The content of calibration.json."""
        return {"format": FORMAT, **asdict(self.calibration), **self.report}

    def save(self, export: Path) -> Path:
        """Write calibration.json into the export."""
        write_json(export / FILE, {**self.to_json(), "student": student_of(export)})
        return export / FILE

    def write_report(self, path: Path) -> None:
        """Write a page with the risk-coverage curves.

        Raises:
            MissingExtraError: The extra `train`, which draws charts, is not installed.
        """
        with needs_extra("train"):
            from tmkd.inference.qa.report import write_report

        write_report(self.to_json(), path)

    def sentences(self) -> list[str]:
        """What was chosen and measured, in words."""
        chosen = self.calibration
        told = [
            f"retrieval weight {chosen.retrieval_weight:g}, temperature {chosen.temperature:.3f}, threshold "
            f"{chosen.threshold:.3f} ({self.report['criterion']})"
        ]
        for part in ("development", "test"):
            if part in self.report:
                told.append(_told(self.report[part]))
        return told


def _told(measured: dict[str, Any]) -> str:
    error = measured["calibration_error"]

    def share(name: str) -> str:
        value = measured[name]
        return "none" if value is None else f"{value['mean']:.3f} ({value['low']:.2f}-{value['high']:.2f})"

    alone, both = measured["reciprocal_rank"]["student alone"], measured["reciprocal_rank"]["with retrieval"]
    return (
        f"{measured['data']}, {measured['questions']:,} questions: MRR {alone:.3f} by the student alone, {both:.3f} "
        f"with retrieval; calibration error {error['before']:.3f} before, {error['after']:.3f} after; "
        f"F1 {share('f1')}, precision {share('precision')}, recall {share('recall')}; right first without a threshold "
        f"{share('right_first_without_threshold')}; without their sources {share('answered_without_sources')} are "
        "answered all the same"
    )


def calibrate(
    answerer: QuestionAnswerer,
    dev: Material,
    test: Material | None,
    *,
    candidates: int = 100,
    risk: float | None = None,
) -> Found:
    """Choose temperature and threshold on `dev`; measure them on `dev` and, once, on `test`.

    Args:
        risk: the share of wrong answers to keep within; None: best F1.

    Raises:
        DataError: development pairs of one label only, or a risk that no threshold keeps.
    """
    pairs = _Pairs.of(answerer, dev)
    temperature = fit_temperature(pairs.scores, pairs.labels)
    asked = ask_all(answerer, dev, candidates)
    weight = best_weight(asked)
    outcomes = Outcomes.of(asked, weight)
    least = best_f1(outcomes) if risk is None else within_risk(outcomes, risk)
    probability = Calibration(temperature).probability(least)
    threshold = np.floor(probability * 1e6) / 1e6  # rounded down: the answer that set it stays above it
    calibration = Calibration(temperature, float(threshold), weight)
    report = {
        "criterion": "best F1 of answered-and-right" if risk is None else f"at most {risk:g} of the answers wrong",
        "candidates": candidates,
        "development": _measured(dev, pairs, asked, calibration, least),
    }
    if test is not None:
        unseen = ask_all(answerer, test, candidates)
        report["test"] = _measured(test, _Pairs.of(answerer, test), unseen, calibration, least)
    return Found(calibration, report)


@dataclass(frozen=True)
class _Pairs:
    scores: Floats
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, answerer: QuestionAnswerer, material: Material) -> _Pairs:
        scores, labels = scored_pairs(answerer, material.pairs)
        return cls(np.array(scores, dtype=np.float64), np.array(labels, dtype=np.int64))


def _measured(
    material: Material, pairs: _Pairs, asked: Sequence[Asked], calibration: Calibration, least: float
) -> dict[str, Any]:
    """Calibration error of the pairs, answers at the threshold with 95% intervals over questions, the whole curve."""
    outcomes = Outcomes.of(asked, calibration.retrieval_weight)
    counts = outcomes.at(least)
    questions = len(material.cases)
    ones = np.ones(questions)
    return {
        "data": material.name,
        "questions": questions,
        "pairs": len(pairs.labels),
        "calibration_error": {
            "before": calibration_error(sigmoid(pairs.scores), pairs.labels),
            "after": calibration_error(sigmoid(pairs.scores / calibration.temperature), pairs.labels),
        },
        "reciprocal_rank": {
            "student alone": reciprocal_rank(asked, 0.0),
            "with retrieval": reciprocal_rank(asked, calibration.retrieval_weight),
        },
        "right_first_without_threshold": _share(outcomes.right[:questions].astype(float), ones),
        "precision": _share(counts["right"], counts["given"]),
        "recall": _share(counts["right"], ones),
        "f1": _share(2 * counts["right"], counts["given"] + ones),
        "coverage": _share(counts["given"], 2 * ones),
        "answered_without_sources": _share(counts["given_without_sources"], ones),
        "area_under_risk_coverage": area(outcomes),
        "risk_coverage": risk_coverage(outcomes),
        "risk_coverage_with_sources": risk_coverage(
            Outcomes(outcomes.scores[:questions], outcomes.right[:questions], outcomes.present[:questions])
        ),
    }


def _share(part: Floats, whole: Floats) -> dict[str, float] | None:
    """sum(part) / sum(whole) over questions, with its 95% interval by bootstrap; None where nothing is to be shared."""
    if whole.sum() <= 0:
        return None
    size = len(part)
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), _RESAMPLES).astype(float)
    below = drawn @ whole
    values = np.divide(drawn @ part, below, out=np.full(len(drawn), np.nan), where=below > 0)
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return {"mean": float(part.sum() / whole.sum()), "low": float(low), "high": float(high)}
