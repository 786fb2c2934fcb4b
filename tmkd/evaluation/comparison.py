"""Compare every model of a run on the same labelled pairs, with bootstrap intervals and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.core.logits import log_odds
from tmkd.data.pairs import Pairs
from tmkd.data.split import together
from tmkd.evaluation.bootstrap import Distribution, Resamples, chance_levels, distributions, interval, share
from tmkd.evaluation.metrics import Questions
from tmkd.evaluation.ranking import Floats, first_right
from tmkd.evaluation.results import ENSEMBLE, ModelOutput, ModelResult, Results
from tmkd.evaluation.significance import Difference

Distributions = dict[str, dict[str, Distribution]]
"""By model and metric: the value and its bootstrap distribution."""


@dataclass(frozen=True)
class ComparisonOptions:
    """How models are compared.

    Attributes:
        ensemble: the model that shares are relative to. A run of one teacher has no ensemble and uses the teacher.
        baseline: the model that `recovered` starts from.
        taken: the model that the run exports.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
        positive: of two classes, the one whose passages are right: ranking metrics rank it first.
        best_teacher: the single teacher that the ensemble is compared with, the best on the development set.
        free: names of models that train nothing, besides those of the kind `free`.
    """

    ensemble: str = ENSEMBLE
    baseline: str = "finetune"
    taken: str = "tmkd"
    resamples: int = 1000
    seed: int = 0
    positive: int = 1
    best_teacher: str = ""
    free: tuple[str, ...] = ()


DEFAULT_OPTIONS = ComparisonOptions()


def compare(
    pairs: Pairs,
    outputs: Sequence[ModelOutput],
    *,
    classes: int,
    task: str,
    options: ComparisonOptions = DEFAULT_OPTIONS,
) -> Results:
    """Measure every model on the labelled pairs.

    Args:
        pairs: N pairs; those without a label are skipped.
        outputs: one entry per model; logits [S, N, C] for all N pairs.
        classes: C.
        task: name of the task, for titles.
        options: what models are compared with, and the bootstrap.

    Returns:
        Metrics, shares and differences of all models.

    Raises:
        DataError: no pair is labelled, or a model's logits have another shape or are not finite.
    """
    known, questions = labelled_questions(pairs, options.positive)
    if len(known) == 0:
        raise DataError("no row has a label, so nothing can be measured; give pairs with a label column")
    teachers = [output.name for output in outputs if output.kind == "teacher"]
    draws = Resamples(questions, options.resamples, options.seed)
    checked = {one.name: one.checked(len(pairs), classes)[:, known] for one in outputs}
    drawn = {name: distributions(draws, turned(logits, options.positive)) for name, logits in checked.items()}
    relative_to = teachers[0] if len(teachers) == 1 and options.ensemble not in drawn else options.ensemble
    free = [output.name for output in outputs if output.kind == "free"]
    for name in free:
        drawn[name].pop("accuracy")  # it ranks, and decides nothing
    lead = _lead(options.ensemble, options.best_teacher, drawn, questions)
    if lead is not None and lead.value.mean < 0:
        relative_to = options.best_teacher
    chance = chance_levels(draws, classes)
    rows = []
    for output in outputs:
        row = _model_result(output, drawn[output.name])
        if output.kind in ("student", "baseline"):
            _add_shares(row, drawn, chance, relative_to, options.baseline)
        rows.append(row)
    return Results(
        task=task,
        rows=len(known),
        questions=len(questions.names),
        methods=[row for row in rows if row.kind != "free"],
        free=[row for row in rows if row.kind == "free"],
        differences=_differences(outputs, drawn, {relative_to, options.ensemble}, questions),
        ensemble_lead=lead,
        ensemble_differences=_between(options.ensemble, options.best_teacher, drawn, questions) if lead else [],
        against_free=_against_free(options.taken, [*free, *options.free], drawn, questions),
        ranked=int(questions.ranked.sum()),
        taken=options.taken,
        relative_to=relative_to,
        reference_column=pairs.reference.column if pairs.reference else None,
        chance={name: level for name, (level, _) in chance.items() if any(name in one for one in drawn.values())},
    )


def point_metrics(
    pairs: Pairs, outputs: Sequence[ModelOutput], *, classes: int, positive: int
) -> dict[str, dict[str, float]]:
    """Measure every model on the labelled pairs, without intervals: `compare` with a bootstrap that nobody reads.

    Args:
        pairs: as for `compare`.
        outputs: as for `compare`.
        classes: C.
        positive: of two classes, the one whose passages are right.

    Returns:
        By model and metric: the mean over its seeds.

    Raises:
        DataError: as `compare`.
    """
    options = ComparisonOptions(resamples=1, positive=positive)
    rows = compare(pairs, outputs, classes=classes, task="", options=options).methods
    return {row.name: {metric: value.mean for metric, value in row.metrics.items()} for row in rows}


def _headline(drawn: dict[str, Distribution]) -> tuple[str, Distribution]:
    """The number that decides between two models: the mean of ROC-AUC and MRR, or what there is of them."""
    both = [name for name in ("auc", "mrr") if name in drawn]
    if len(both) < 2:
        name = both[0] if both else "accuracy"
        return name, drawn[name]
    (auc, auc_spread), (mrr, mrr_spread) = (drawn[name] for name in both)
    return "auc+mrr", ((auc + mrr) / 2, (auc_spread + mrr_spread) / 2)


def _lead(first: str, second: str, drawn: Distributions, questions: Questions) -> Difference | None:
    """The difference of two models in what decides; None where one is not measured, or a single question is."""
    if first not in drawn or second not in drawn or first == second:
        return None
    (metric, (value, spread)), (other, (theirs, their_spread)) = (_headline(drawn[name]) for name in (first, second))
    if metric != other or any(questions.count(name) < 2 for name in metric.split("+")):
        return None
    return Difference(first, second, metric, interval(value - theirs, spread - their_spread))


def _against_free(taken: str, free: Sequence[str], drawn: Distributions, questions: Questions) -> list[Difference]:
    """The differences of the exported student to everything that is free, the best of that first."""
    names = [name for name in dict.fromkeys(free) if name in drawn and "auc" in drawn[name]]
    found = [lead for name in names if (lead := _lead(taken, name, drawn, questions)) is not None]
    return sorted(found, key=lambda lead: lead.value.mean)


def labelled_questions(pairs: Pairs, positive: int = 1) -> tuple[NDArray[np.int64], Questions]:
    """Return the indices of the labelled pairs, [M] int64, and these pairs grouped by question.

    Args:
        pairs: N pairs, M of them with a label.
        positive: the class of the right passages; the questions call it 1. `turned` does the same for logits.
    """
    known = np.flatnonzero(pairs.labels >= 0)
    labels, qids, probabilities = pairs.labels[known], pairs.qids, pairs.reference_probabilities
    reference = None if probabilities is None else probabilities[known]
    gains = None if pairs.gains is None else pairs.gains[known]
    if positive == 0:
        labels, reference = 1 - labels, None if reference is None else 1 - reference
    named = [qids[row] for row in known]
    return known, Questions.of(labels, named, reference, gains, clusters=together(pairs.take(known))[1])


def turned(logits: Floats, positive: int) -> Floats:
    """Logits [..., C] whose class 1 is the positive one: the two classes change places where the positive one is 0."""
    return logits[..., ::-1] if positive == 0 else logits


def _model_result(output: ModelOutput, drawn: dict[str, Distribution]) -> ModelResult:
    return ModelResult(
        output.name,
        output.kind,
        len(output.logits),
        {name: interval(*distribution) for name, distribution in drawn.items()},
        size={
            "layers": output.layers,
            "parameters": output.parameters,
            "encoder_parameters": output.encoder_parameters,
            "cached": output.cached,
            "bytes": output.bytes,
            "pairs_per_second": output.pairs_per_second,
            "milliseconds": output.milliseconds,
        },
    )


def _add_shares(
    row: ModelResult, drawn: Distributions, chance: dict[str, Distribution], ensemble: str, baseline: str
) -> None:
    """Fill in `kept`, `kept_above_chance` and `recovered` of one model; nothing where the ensemble was not measured."""
    if ensemble not in drawn:
        return
    for name in row.metrics:
        own, top = drawn[row.name][name], drawn[ensemble][name]
        bases = [(row.kept, None), (row.kept_above_chance, chance.get(name))]
        if baseline in drawn and row.name != baseline:
            bases.append((row.recovered, drawn[baseline][name]))
        for shares, base in bases:
            if (base is not None or shares is row.kept) and (found := share(own, top, base)) is not None:
                shares[name] = found


def _differences(
    outputs: Sequence[ModelOutput], drawn: Distributions, tops: set[str], questions: Questions
) -> list[Difference]:
    """The differences of every two students or baselines, and of each of them to the ensemble and the best teacher.

    A student is named before a baseline. A metric over a single question is skipped: every resample is that question,
    so the interval has no width and any difference would look significant.
    """
    order = {"baseline": 0, "student": 1}
    small = sorted((o for o in outputs if o.kind in order), key=lambda o: order[o.kind])
    ensembles = [output for output in outputs if output.name in tops]
    found = []
    for place, first in enumerate(small):
        for second in (*small[:place], *ensembles):
            found += _between(first.name, second.name, drawn, questions)
    return found


def _between(first: str, second: str, drawn: Distributions, questions: Questions) -> list[Difference]:
    """The differences of two models in every metric over two or more questions."""
    found = []
    for name, (value, spread) in drawn[first].items():
        if questions.count(name) >= 2:
            theirs, their_spread = drawn[second][name]
            found.append(Difference(first, second, name, interval(value - theirs, spread - their_spread)))
    return found


@dataclass(frozen=True)
class Disagreement:
    """A question where the student ranks its first right passage lower than the teachers do.

    Attributes:
        question: its text.
        student_rank: rank of the student's first right passage, from 1; the expected one where scores are equal.
        teacher_rank: the same by the teachers.
        student_first: the passage that the student ranks first.
        teacher_first: the passage that the teachers rank first.
        student_first_right: whether the student's first passage is right.
        teacher_first_right: whether the teachers' first passage is right.
    """

    question: str
    student_rank: float
    teacher_rank: float
    student_first: str
    teacher_first: str
    student_first_right: bool
    teacher_first_right: bool


def disagreements(
    pairs: Pairs, student: Floats, teacher: Floats, *, positive: int = 1, limit: int = 20
) -> list[Disagreement]:
    """Return the questions where the student's reciprocal rank falls most below the teachers'.

    Args:
        pairs: N pairs; those without a label are skipped.
        student: logits of the student, [N, C].
        teacher: logits of the teachers, [N, C].
        positive: the class of the right passages.
        limit: at most so many questions.

    Returns:
        The largest falls first; an empty list unless C is 2.
    """
    if student.shape[1] != 2:
        return []
    known, questions = labelled_questions(pairs, positive)
    pairs, student, teacher = pairs.take(known), turned(student[known], positive), turned(teacher[known], positive)
    texts, passages = pairs.questions, pairs.passages
    by_question = np.split(np.argsort(questions.group, kind="stable"), np.cumsum(np.bincount(questions.group))[:-1])
    found = []
    for number in np.flatnonzero(questions.ranked):
        rows = by_question[number]
        scores = [log_odds(logits[rows]) for logits in (student, teacher)]
        ranks = [first_right(one, questions.labels[rows] == 1) for one in scores]
        if ranks[0] > ranks[1]:
            first, second = (int(rows[one.argmax()]) for one in scores)
            found.append(
                Disagreement(
                    question=texts[first],
                    student_rank=ranks[0],
                    teacher_rank=ranks[1],
                    student_first=passages[first],
                    teacher_first=passages[second],
                    student_first_right=bool(questions.labels[first] == 1),
                    teacher_first_right=bool(questions.labels[second] == 1),
                )
            )
    found.sort(key=lambda d: (1 / d.student_rank - 1 / d.teacher_rank, d.question))
    return found[:limit]
