"""Differences between two models, and the sentences that say which of them are significant.

A difference is significant when its 95% bootstrap interval excludes 0. Every interval stands for itself: there is no
correction for many comparisons, so of twenty comparisons of equal models about one looks significant. With few seeds it
is more: a bootstrap over two or three seeds draws the same ones again, and one over a single seed knows nothing of
others (`one_seed_sentence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tmkd.evaluation.bootstrap import Interval

TITLES = {
    "accuracy": "accuracy",
    "auc": "ROC-AUC",
    "spearman": "Spearman",
    "mrr": "MRR",
    "map": "MAP",
    "ndcg@10": "nDCG@10",
    "agreement": "agreement",
    "mean": "the mean over tasks",
    "auc+mrr": "the mean of ROC-AUC and MRR",
}
"""What the reports call each metric."""


@dataclass(frozen=True)
class Difference:
    """One metric of two models: first minus second, on the same bootstrap resamples.

    Attributes:
        first: name of the first model.
        second: name of the second model.
        metric: key of the metric, one of TITLES.
        value: metric(first) minus metric(second), with its 95% interval.
    """

    first: str
    second: str
    metric: str
    value: Interval

    @property
    def significant(self) -> bool:
        """Whether the 95% interval excludes 0."""
        return self.value.low > 0 or self.value.high < 0

    def sentence(self) -> str:
        """The difference in words, such as "a is significantly better than b in MRR by 0.020 (95% interval ...)"."""
        by, span = _shown(self.value)
        span = f"(95% interval {span})"
        if by == "0.000":
            text = f"{self.first} is equal to {self.second} in {TITLES[self.metric]} {span}"
        else:
            word = "better" if self.value.mean > 0 else "worse"
            word = f"significantly {word}" if self.significant else word
            text = f"{self.first} is {word} than {self.second} in {TITLES[self.metric]} by {by} {span}"
        return text + ("" if self.significant else ": no significant difference")

    def to_json(self) -> dict[str, Any]:
        """Return {"first", "second", "metric", "mean", "low", "high", "real"}; "real" is `significant`."""
        return {
            "first": self.first,
            "second": self.second,
            "metric": self.metric,
            **self.value.to_json(),
            "real": self.significant,
        }


def verdict(model: str, differences: Sequence[Difference]) -> str:
    """Say in one sentence which models `model` is significantly better than, worse than, or not different from.

    Args:
        model: name of the model that the sentence is about.
        differences: at least one, all of one metric; `model` is the first or the second of each.

    Returns:
        For example "In MRR tmkd is significantly better than finetune by 0.020 (+0.010 to +0.030); it does not differ
        significantly from mkd (-0.010 to +0.020)."
    """
    better: list[str] = []
    worse: list[str] = []
    level: list[str] = []
    for difference in differences:
        other = difference.second if difference.first == model else difference.first
        value = difference.value if difference.first == model else difference.value.negated()
        by, span = _shown(value if value.mean > 0 or not difference.significant else value.negated())
        if not difference.significant:
            level.append(f"{other} ({span})")
        else:
            (better if value.mean > 0 else worse).append(f"{other} by {by} ({span})")
    clauses = [
        f"is significantly {word} than {_listed(names)}"
        for word, names in (("better", better), ("worse", worse))
        if names
    ]
    clauses += [f"does not differ significantly from {_listed(level)}"] if level else []
    return f"In {TITLES[differences[0].metric]} {model} {'; it '.join(clauses)}."


def one_seed_sentence(models: Sequence[str]) -> str:
    """Say that the intervals of trained models with a single seed leave out what another seed would change."""
    several = len(models) > 1
    return (
        f"{_listed(models)} {'have' if several else 'has'} one seed{' each' if several else ''}: intervals are over "
        "questions alone, and another seed may change a difference that is called significant (seeds=[0,1,2] trains "
        "three)."
    )


def against_free_sentence(taken: str, lead: Difference) -> str:
    """Say whether the exported student is ahead of the best model that trains nothing.

    Args:
        taken: the student.
        lead: the student minus that model.
    """
    other, (by, span) = lead.second.removeprefix("teacher:"), _shown(lead.value)
    span = f"(95% interval {span})"
    best = f"the best that trains nothing, {other}, in {TITLES[lead.metric]}"
    if lead.significant:
        return f"{taken} is significantly {'ahead of' if lead.value.mean > 0 else 'behind'} {best} by {by} {span}."
    if by == "0.000":
        return f"{taken} is not significantly ahead of {best}: it is level with it {span}."
    word = "ahead of" if lead.value.mean > 0 else "behind"
    return f"{taken} is not significantly ahead of {best}: it is {by} {word} it {span}."


def ensemble_sentence(lead: Difference, relative_to: str) -> str:
    """Say whether the ensemble is better than the best single teacher, and what `kept` is relative to.

    Args:
        lead: the ensemble minus the teacher that is best on the development set.
        relative_to: the better of the two.
    """
    best, (by, span) = lead.second.removeprefix("teacher:"), _shown(lead.value)
    span = f"(95% interval {span})"
    which = f"{best}, which is the best teacher on the development set"
    word, on = "better" if lead.value.mean > 0 else "worse", f"in {TITLES[lead.metric]} on these pairs"
    if lead.significant:
        text = f"The ensemble is significantly {word} than {which}, by {by} {on} {span}"
    else:
        apart = "level with it" if by == "0.000" else f"{by} {word}"
        text = f"The ensemble is not significantly better than {which}: it is {apart} {on} {span}"
    teacher = relative_to.removeprefix("teacher:")
    return f"{text}; what is kept is relative to {'the ensemble' if teacher == relative_to else teacher}."


def _shown(value: Interval) -> tuple[str, str]:
    """The size of a difference and its interval: three decimals, more where a significant one would be 0.000."""
    digits = 3
    while (value.low > 0 or value.high < 0) and not round(value.mean, digits) and digits < 9:
        digits += 2
    return f"{abs(value.mean):.{digits}f}", f"{value.low:+.{digits}f} to {value.high:+.{digits}f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def unmeasured_sentence(unmeasured: Mapping[str, str], names: Sequence[str]) -> str:
    """Say which teachers the pairs cannot measure, why, and what `teacher-ensemble` is then.

    Args:
        unmeasured: why, by the teacher's name.
        names: the models that are measured.
    """
    text = "Not measured on these pairs: " + "; ".join(f"{name} ({why})" for name, why in unmeasured.items()) + "."
    rest = sum(name.startswith("teacher:") for name in names)
    every = rest + len(unmeasured)
    return f"{text} Of {every} teachers teacher-ensemble has {rest}." if "teacher-ensemble" in names else text
