"""Choose an export's temperature, no-answer threshold and retrieval weights on development questions, and measure them.

Weights of retrieval: those with the best mean reciprocal rank (`tmkd.inference.qa.retrieval_weights`).

Temperature: the one with which the labelled development pairs are likeliest (`tmkd.inference.qa.temperature`).

Threshold: every development question is asked twice, with its source documents in the index and without them; then no
answer is the right answer. The threshold with the best F1 is chosen: its precision is the share of right answers among
all answers, its recall the share of questions with their sources that got a right answer. Or it is the lowest threshold
that keeps the share of wrong answers within a limit. Another document may answer a question too; such an answer counts
as wrong, so the share of wrong answers is an upper bound. Raw scores are compared, here and by what answers: the
probabilities of a sure student may all round to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError, needs_extra
from tmkd.core.files import write_json
from tmkd.core.logits import sigmoid
from tmkd.inference.qa.answer import QuestionAnswerer
from tmkd.inference.qa.calibration import FILE, FORMAT, Calibration, student_of
from tmkd.inference.qa.cases import Asked, Material, ask_all, scored_pairs
from tmkd.inference.qa.ground import Ground
from tmkd.inference.qa.ranking import Ranked
from tmkd.inference.qa.retrieval_weights import reciprocal_rank, with_retrieval
from tmkd.inference.qa.temperature import calibration_error, fit_temperature

Floats = NDArray[np.float64]
_RESAMPLES = 1000
_ROOM = 1e-4  # log-odds; batches of another shape change a score by less
_MOST_POINTS = 200  # most points of a curve in calibration.json


@dataclass(frozen=True)
class Outcomes:
    """The first answers to G questions, asked with their sources (the first G entries) and without (the others).

    Attributes:
        scores: Raw score of the first answer, [2 G] float64; -inf where nothing was found.
        right: Whether it is right, [2 G]; never without the sources.
        present: Whether the sources were in the index, [2 G].
    """

    scores: Floats
    right: NDArray[np.bool_]
    present: NDArray[np.bool_]

    @classmethod
    def of(cls, asked: Sequence[Asked], calibration: Calibration) -> Outcomes:
        """The outcomes of questions with the weights of a calibration."""
        firsts = [(one.case.right, one.ranked(calibration)) for one in asked]
        firsts += [(frozenset[str](), one.ranked(calibration, sources=False)) for one in asked]
        scores = np.array([ranked[0].score if ranked else -np.inf for _, ranked in firsts])
        right = np.array([_first(ranked) in pids for pids, ranked in firsts], dtype=bool)
        return cls(scores, right, np.arange(len(firsts)) < len(asked))

    def at(self, least: float) -> dict[str, Floats]:
        """Counts for every question, each [G] float64, if answers are given from a score of `least` on."""
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


def best_f1(outcomes: Outcomes) -> float:
    """The least score of an answer at which F1 is best (see the top of this module); the lowest of equal ones."""
    order, right, given = _sorted(outcomes)
    f1 = 2 * right / (given + outcomes.present.sum())
    return float(outcomes.scores[order][_last_best(f1)])


def within_risk(outcomes: Outcomes, risk: float) -> float:
    """The lowest score from which at most this share of the answers is wrong.

    Args:
        outcomes: The first answers.
        risk: The share, 0 to 1.

    Raises:
        DataError: There is no such score; the message says which share can be kept.
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


def with_room(outcomes: Outcomes, least: float) -> float:
    """A score a little below this one, with which the same answers are given: the one that set it has some room.

    Args:
        outcomes: The first answers.
        least: The score of one of them.
    """
    below = outcomes.scores[outcomes.scores < least].max(initial=-np.inf)
    return float(max(least - _ROOM, (least + below) / 2))


def _sorted(outcomes: Outcomes) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Places of the outcomes by falling score, and the numbers of right answers and of answers up to each of them.

    Of equal scores only the last place is kept, and places without an answer are left out.
    """
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
    """The risk-coverage curve: the share of questions answered, and the share of those answers that is wrong."""
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
class CalibrationResult:
    """What `calibrate` chose and measured.

    Attributes:
        calibration: The numbers that it chose.
        report: What it measured, as JSON holds it.
    """

    calibration: Calibration
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The content of calibration.json."""
        return {"format": FORMAT, **self.calibration.to_json(), **self.report}

    def save(self, export: Path) -> Path:
        """Write calibration.json into an export, and give its path."""
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
        """What was chosen and measured, in sentences."""
        chosen = self.calibration
        weights = f"retrieval weight {chosen.retrieval_weight:g}"
        if chosen.ground.dense:
            weights = f"share of dense search {chosen.dense_share:g}, {weights}, dense weight {chosen.dense_weight:g}"
        told = [
            f"{weights}, temperature {chosen.temperature:.3f}, threshold {chosen.threshold:.3f}, "
            f"a raw score of {chosen.least_score:+.3f} ({self.report['criterion']})"
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
    found = measured["right_passages_found"]["candidates"]["mean"]
    return (
        f"{measured['data']}, {measured['questions']:,} questions: {found:.3f} of the right passages are candidates; "
        f"MRR {alone:.3f} by the student alone, {both:.3f} "
        f"with retrieval; calibration error {error['before']:.3f} before, {error['after']:.3f} after; "
        f"F1 {share('f1')}, precision {share('precision')}, recall {share('recall')}; right first without a threshold "
        f"{share('right_first_without_threshold')}; without their sources {share('answered_without_sources')} are "
        "still answered"
    )


def calibrate(
    answerer: QuestionAnswerer,
    dev: Material,
    test: Material | None,
    *,
    candidates: int = 100,
    risk: float | None = None,
) -> CalibrationResult:
    """Choose the weights of retrieval, temperature and threshold on `dev`, and measure them on `dev` and on `test`.

    Args:
        answerer: What answers; its own calibration is not used.
        dev: Development questions.
        test: Other questions, which are only measured; None for none.
        candidates: Passages to retrieve and rank for each question.
        risk: The largest share of wrong answers to allow; None chooses the threshold with the best F1.

    Raises:
        DataError: The development pairs have one label only, or no threshold keeps the risk.
        MissingExtraError: SciPy is not installed.
    """
    pairs = _Pairs.of(answerer, dev)
    temperature = fit_temperature(pairs.scores, pairs.labels)
    asked = ask_all(answerer, dev, candidates)
    retrieval = with_retrieval(asked)
    outcomes = Outcomes.of(asked, retrieval)
    least = best_f1(outcomes) if risk is None else within_risk(outcomes, risk)
    least = with_room(outcomes, least)
    ground = Ground.of(answerer.retriever, candidates, answerer.backend)
    calibration = replace(retrieval, temperature=temperature, ground=ground).from_score(least)
    report = {
        "criterion": "best F1 of answered-and-right" if risk is None else f"at most {risk:g} of the answers wrong",
        "development": _measured(dev, pairs, asked, calibration, least),
    }
    if test is not None:
        unseen = ask_all(answerer, test, candidates)
        report["test"] = _measured(test, _Pairs.of(answerer, test), unseen, calibration, least)
    return CalibrationResult(calibration, report)


@dataclass(frozen=True)
class _Pairs:
    scores: Floats
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, answerer: QuestionAnswerer, material: Material) -> _Pairs:
        scores, labels = scored_pairs(answerer, material)
        return cls(np.array(scores, dtype=np.float64), np.array(labels, dtype=np.int64))


def _measured(
    material: Material, pairs: _Pairs, asked: Sequence[Asked], calibration: Calibration, least: float
) -> dict[str, Any]:
    """What calibration.json says about a set of questions; intervals are 95% and by bootstrap over questions."""
    outcomes = Outcomes.of(asked, calibration)
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
            "student alone": reciprocal_rank(asked, replace(calibration, retrieval_weight=0.0, dense_weight=0.0)),
            "with retrieval": reciprocal_rank(asked, calibration),
        },
        "right_passages_found": _found(asked, calibration),
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


def _found(asked: Sequence[Asked], calibration: Calibration) -> dict[str, dict[str, float] | None]:
    """Mean over questions of the share of right passages that each way of retrieval finds, with intervals."""
    ways = {"bm25": [one.found_by("bm25") for one in asked], "dense": [one.found_by("dense") for one in asked]}
    ways["candidates"] = [[found.pid for found in one.candidates(calibration.dense_share)] for one in asked]
    ones = np.ones(len(asked))
    return {
        name: _share(np.array([one.recall(pids) for one, pids in zip(asked, lists, strict=True)]), ones)
        for name, lists in ways.items()
    }


def _share(part: Floats, whole: Floats) -> dict[str, float] | None:
    """sum(part) / sum(whole) over questions, with its 95% interval by bootstrap; None if the whole is 0."""
    if whole.sum() <= 0:
        return None
    size = len(part)
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), _RESAMPLES).astype(float)
    below = drawn @ whole
    values = np.divide(drawn @ part, below, out=np.full(len(drawn), np.nan), where=below > 0)
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return {"mean": float(part.sum() / whole.sum()), "low": float(low), "high": float(high)}
