"""What the parts of a result are worth: each teacher in the ensemble, each way to combine a student's headers; and how
often each small model decides as the ensemble does.

Paired as all comparisons are: bootstrap over questions, both models on the same resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from tmkd.data.pairs import Pairs
from tmkd.evaluation.bootstrap import Interval, Resamples, accuracy, distributions, interval
from tmkd.evaluation.comparison import TITLES, Difference, ModelOutput, checked
from tmkd.evaluation.metrics import Questions

AGREEMENT = "agreement"


@dataclass(frozen=True)
class Part:
    """One of several outputs held against a whole.

    Attributes:
        name: the teacher that is left out, the combination, or the model.
        metrics: of this output.
        behind: how far the whole is ahead of it, by metric; of a teacher left out: what it adds. Absent where a metric
            is over a single question.
    """

    name: str
    metrics: dict[str, Interval]
    behind: dict[str, Difference]

    def to_json(self, key: str) -> dict[str, Any]:
        """{key: name, each metric, "behind": {metric: interval and verdict}}."""
        behind = {
            name: {**difference.value.to_json(), "real": difference.real} for name, difference in self.behind.items()
        }
        metrics = {name: value.to_json() for name, value in self.metrics.items()}
        return {key: self.name, **metrics, **({"behind": behind} if behind else {})}


def parts(
    pairs: Pairs,
    whole: ModelOutput,
    others: Mapping[str, ModelOutput],
    *,
    classes: int,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Part]:
    """Measure outputs on the labelled rows of `pairs` and hold each against `whole`.

    Args:
        others: by the name of the part.

    Raises:
        DataError: logits of another shape, or that are not finite.
    """
    known = np.flatnonzero(pairs.labels >= 0)
    qids, probabilities = pairs.qids, pairs.reference_probabilities
    reference = None if probabilities is None else probabilities[known]
    questions = Questions.of(pairs.labels[known], [qids[row] for row in known], reference)
    draws = Resamples(questions, resamples, seed)
    top = distributions(draws, checked(whole, len(pairs), classes)[:, known])
    found = []
    for part, other in others.items():
        drawn = distributions(draws, checked(other, len(pairs), classes)[:, known])
        behind = {
            name: Difference(whole.name, other.name, name, interval(top[name][0] - value, top[name][1] - spread))
            for name, (value, spread) in drawn.items()
            if questions.count(name) > 1
        }
        found.append(Part(part, {name: interval(*both) for name, both in drawn.items()}, behind))
    return found


def agreement(
    pairs: Pairs,
    top: ModelOutput,
    taken: ModelOutput,
    others: Sequence[ModelOutput],
    *,
    classes: int,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Part]:
    """The share of the rows on which a model decides as its teachers do, whatever the golden labels say ("fidelity":
    Stanton et al. 2021, "Does Knowledge Distillation Really Work?", section 3). It tells students apart that learn
    from weak teachers, where being closer to them makes few decisions right.

    Args:
        top: the ensemble, or the only teacher.
        taken: the student that the others are held against; it comes first.

    Raises:
        DataError: logits of another shape, or that are not finite.
    """
    decided = checked(top, len(pairs), classes)[0].argmax(axis=1)
    questions = Questions.of(decided, pairs.qids)
    draws = Resamples(questions, resamples, seed)
    first, first_spread = accuracy(draws, checked(taken, len(pairs), classes))
    found = [Part(taken.name, {AGREEMENT: interval(first, first_spread)}, {})]
    for other in others:
        value, spread = accuracy(draws, checked(other, len(pairs), classes))
        behind = Difference(taken.name, other.name, AGREEMENT, interval(first - value, first_spread - spread))
        known = {AGREEMENT: behind} if questions.count(AGREEMENT) > 1 else {}
        found.append(Part(other.name, {AGREEMENT: interval(value, spread)}, known))
    return found


def part_table(title: str, parts: Sequence[Part], metrics: Sequence[str], column: str) -> Table:
    """For a terminal. `column`: what the whole's lead over a part is called."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for name in metrics:
        shown.add_column(TITLES[name], justify="right")
        shown.add_column(column, justify="right")
    for part in parts:
        cells = []
        for name in metrics:
            lead = part.behind[name].value if name in part.behind else None
            cells.append(f"{part.metrics[name].mean:.3f}" if name in part.metrics else "")
            cells.append("" if lead is None else f"{lead:+.3f}")
        shown.add_row(part.name, *cells)
    return shown
