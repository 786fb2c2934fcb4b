"""Measure what each component contributes: each teacher of the ensemble, and each way to combine a student's heads.

Also measures how often each student or baseline decides as the ensemble does.
As in all comparisons, both sides are measured on the same bootstrap resamples of the questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tmkd.data.pairs import Pairs
from tmkd.data.split import together
from tmkd.evaluation.bootstrap import Resamples, accuracy, distributions, interval
from tmkd.evaluation.comparison import DEFAULT_OPTIONS, ComparisonOptions, labelled_questions, turned
from tmkd.evaluation.metrics import Questions
from tmkd.evaluation.results import AGREEMENT, Component, ModelOutput
from tmkd.evaluation.significance import Difference


def measure_components(
    pairs: Pairs,
    whole: ModelOutput,
    others: Mapping[str, ModelOutput],
    *,
    classes: int,
    options: ComparisonOptions = DEFAULT_OPTIONS,
) -> list[Component]:
    """Measure several outputs on the labelled pairs, and the difference of `whole` to each.

    Args:
        pairs: N pairs; those without a label are skipped.
        whole: the output that the others are compared with, logits [S, N, C].
        others: the outputs by the name of the component, logits [S, N, C] each.
        classes: C.
        options: of these, `resamples`, `seed` and `positive`.

    Returns:
        One entry per component, in the order of `others`.

    Raises:
        DataError: logits have another shape or are not finite.
    """
    known, questions = labelled_questions(pairs, options.positive)
    draws = Resamples(questions, options.resamples, options.seed)
    of_whole = distributions(draws, turned(whole.checked(len(pairs), classes)[:, known], options.positive))
    found = []
    for component, other in others.items():
        drawn = distributions(draws, turned(other.checked(len(pairs), classes)[:, known], options.positive))
        differences = {
            name: Difference(
                whole.name, other.name, name, interval(of_whole[name][0] - value, of_whole[name][1] - spread)
            )
            for name, (value, spread) in drawn.items()
            if questions.count(name) > 1
        }
        found.append(Component(component, {name: interval(*both) for name, both in drawn.items()}, differences))
    return found


def measure_agreement(
    pairs: Pairs,
    teachers: ModelOutput,
    taken: ModelOutput,
    others: Sequence[ModelOutput],
    *,
    classes: int,
    options: ComparisonOptions = DEFAULT_OPTIONS,
) -> list[Component]:
    """Measure on which share of the pairs a model decides as its teachers do, whatever the golden labels are.

    Stanton et al. 2021, "Does Knowledge Distillation Really Work?", section 3, call it fidelity. It distinguishes
    students of weak teachers: a student that is closer to weak teachers decides few more pairs correctly.

    Args:
        pairs: N pairs, labelled or not.
        teachers: the ensemble, or the only teacher, logits [1, N, C].
        taken: the student that the others are compared with; it comes first in the result.
        others: the other students and baselines.
        classes: C.
        options: of these, `resamples` and `seed`.

    Returns:
        One entry per model, whose only metric is "agreement".

    Raises:
        DataError: logits have another shape or are not finite.
    """
    decisions = teachers.checked(len(pairs), classes)[0].argmax(axis=1)
    questions = Questions.of(decisions, pairs.qids, clusters=together(pairs)[1])
    draws = Resamples(questions, options.resamples, options.seed)
    first, first_spread = accuracy(draws, taken.checked(len(pairs), classes))
    found = [Component(taken.name, {AGREEMENT: interval(first, first_spread)}, {})]
    for other in others:
        value, spread = accuracy(draws, other.checked(len(pairs), classes))
        difference = Difference(taken.name, other.name, AGREEMENT, interval(first - value, first_spread - spread))
        differences = {AGREEMENT: difference} if questions.count(AGREEMENT) > 1 else {}
        found.append(Component(other.name, {AGREEMENT: interval(value, spread)}, differences))
    return found
