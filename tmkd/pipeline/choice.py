"""Which of a run's students is exported: the one that the recipe names, or the best on the development set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tmkd.data.pairs import Pairs
from tmkd.evaluation.comparison import point_metrics
from tmkd.evaluation.results import ModelOutput
from tmkd.evaluation.significance import TITLES
from tmkd.training.losses import golden_loss


@dataclass(frozen=True)
class Choice:
    """The method whose first student is exported, and why.

    Attributes:
        method: its name in the recipe.
        metrics: what decided on the development set: the sum of these; empty where the recipe names the method.
        values: that sum for every method that could be exported, a mean over seeds.
        order: these methods, the best first.
    """

    method: str
    metrics: tuple[str, ...] = ()
    values: Mapping[str, float] | None = None
    order: tuple[str, ...] = ()

    @property
    def equal(self) -> tuple[str, ...]:
        """The other methods with the same sum: the cross-entropy decided, or the order of the recipe."""
        values = self.values or {}
        return tuple(name for name in values if name != self.method and values[name] == values[self.method])

    def sentence(self) -> str:
        """Why this method is exported; nothing where the recipe names it."""
        if not self.values:
            return ""
        what = " plus ".join(TITLES[name] for name in self.metrics)
        found = ", ".join(f"{name} {value:.3f}" for name, value in self.values.items())
        if not self.equal:
            return f"{self.method} is exported: it is the best on the development set by {what} ({found})"
        text = f"on the development set it is equal to {', '.join(self.equal)} by {what} ({found})"
        return f"{self.method} is exported: {text}, and its cross-entropy is not higher"

    def to_json(self) -> dict[str, Any]:
        """{"method", "metrics", "development", "equal"}: the last three where there is something to say."""
        decided = {"metrics": list(self.metrics), "development": dict(self.values)} if self.values else {}
        return {"method": self.method, **decided, **({"equal": list(self.equal)} if self.equal else {})}


def choose_best(logits: Mapping[str, NDArray[np.floating[Any]]], dev: Pairs, *, classes: int, positive: int) -> Choice:
    """Choose the method that is best on the development set.

    ROC-AUC plus MRR decide where they are defined: of two classes, where questions have right and wrong passages.
    Otherwise accuracy does. Where these are equal, as on a small set that several solve, the cross-entropy decides.

    Args:
        logits: of each method's students on the development set, [S, N, C] for S seeds.
        dev: its N pairs, labelled.
        classes: C.
        positive: of two classes, the one of the right passages.

    Returns:
        The choice; of methods that are equal in all of this the first.

    Raises:
        DataError: no pair of the development set has a label.
    """
    outputs: Sequence[ModelOutput] = [ModelOutput(name, "student", found) for name, found in logits.items()]
    measured = point_metrics(dev, outputs, classes=classes, positive=positive)
    both = all({"auc", "mrr"} <= found.keys() for found in measured.values())
    metrics = ("auc", "mrr") if both else ("accuracy",)
    values = {name: sum(found[metric] for metric in metrics) for name, found in measured.items()}
    losses = {name: _cross_entropy(found, dev) for name, found in logits.items()}
    order = tuple(sorted(values, key=lambda name: (-values[name], losses[name])))
    return Choice(order[0], metrics, values, order)


def _cross_entropy(logits: NDArray[np.floating[Any]], pairs: Pairs) -> float:
    """The mean cross-entropy of logits [S, N, C] over the pairs that have a label."""
    golden = torch.from_numpy(pairs.golden)
    golden = golden.double() if golden.ndim == 2 else golden
    known = np.flatnonzero(pairs.labels >= 0)
    each = [golden_loss(torch.from_numpy(np.ascontiguousarray(one)).double(), golden)[known].mean() for one in logits]
    return float(torch.stack(each).mean())
