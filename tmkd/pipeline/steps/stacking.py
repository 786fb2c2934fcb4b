"""The stacked ensemble as a step: the weights of the teachers, and the logits and labels that they were fitted on.

These are kept so that the ensemble of some of the teachers (those that can label a pool, or all but one) can be fitted
at any time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tmkd.config.recipe import Recipe
from tmkd.core.errors import DataError
from tmkd.core.files import write_json
from tmkd.data.pairs import Pairs
from tmkd.data.split import folds
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.ensemble import Stacking, fit_stacking

_WEIGHTS, _FITTED_ON = "ensemble.json", "fitted_on.safetensors"


class StackedTeachers:
    """A finished step, which gives the stacked ensemble of all its teachers or of some of them.

    Args:
        step: as `stack_teachers` made it.
        names: its teachers, in the order of their logits.
    """

    def __init__(self, step: Step, names: Sequence[str]) -> None:
        self.step = step
        self.names = tuple(names)
        self._found: dict[tuple[str, ...], Stacking] = {}

    @functools.cached_property
    def _fitted_on(self) -> dict[str, NDArray[np.generic]]:
        return load_file(self.step.folder / _FITTED_ON)

    def of(self, names: Sequence[str]) -> Stacking:
        """The stacked ensemble of these teachers, in this order."""
        key = tuple(names)
        if key not in self._found:
            logits, targets, fold = (self._fitted_on[one] for one in ("logits", "targets", "fold"))
            each = [logits[:, self.names.index(name)].astype(np.float64) for name in names]
            given: dict[str, Any] = {}
            if "questions" in self._fitted_on:  # steps of earlier versions have none, and did not look at the order
                given["questions"] = self._fitted_on["questions"].astype(np.int64)
                given["positive"] = int(self._fitted_on["positive"][0])
            self._found[key] = fit_stacking(key, each, targets.astype(np.float64), fold.astype(np.int64), **given)
        return self._found[key]

    def labelling(self, names: Sequence[str]) -> Stacking:
        """The same for labels that students learn.

        Raises:
            DataError: no teacher has a weight, so that the ensemble would give every pair the same label.
        """
        found = self.of(names)
        if not any(found.weights):
            raise DataError(
                f"ensemble: stacked gives {', '.join(names)} the weight 0, so every pair would have the same label: "
                "their scores do not rise with the labels. Are the scores those of these pairs, and of class 1? "
                "ensemble: mean takes them as they are"
            )
        return found

    def members(self, names: Iterable[str]) -> list[str]:
        """Those of some teachers that take part in the ensemble, in the order that is given."""
        return [name for name in names if name in self.names]

    def together(self, logits: Mapping[str, NDArray[np.floating[Any]]]) -> NDArray[np.float64] | None:
        """The stacked ensemble of the teachers of these logits that take part in it.

        Args:
            logits: [N, C] by the teacher's name.

        Returns:
            [N, C] float64; None where no teacher takes part.
        """
        names = self.members(logits)
        return self.of(names).apply([logits[name] for name in names]) if names else None


def stack_teachers(
    workspace: Workspace,
    names: Sequence[str],
    inputs: Sequence[str],
    logits: Sequence[NDArray[np.float32]],
    pairs: Pairs,
    recipe: Recipe,
) -> StackedTeachers:
    """Fit the weights of the teachers, or find them.

    Args:
        workspace: keeps the step.
        names: the teachers, [K].
        inputs: the fingerprints of what gave the logits.
        logits: K arrays [N, C] of the pairs, by teachers that have not learned from their labels.
        pairs: the N training or development pairs; those without a label are not looked at.
        recipe: its folds, and its positive class.

    Raises:
        DataError: a class has no labelled pair, or there are more folds than questions.
    """
    known = np.flatnonzero(pairs.labels >= 0)
    labelled = pairs.take(known)
    content = depends_on(
        settings={"folds": recipe.folds, "positive": recipe.positive_class},
        inputs={"teachers": list(inputs), "train": labelled},
    )

    def build(folder: Path) -> None:
        golden = labelled.golden
        targets = golden if golden.ndim == 2 else np.eye(logits[0].shape[1])[golden]
        targets, each = targets.astype(np.float64), [one[known].astype(np.float64) for one in logits]
        fold, questions, positive = folds(labelled, recipe.folds), labelled.groups()[1], recipe.positive_class
        found = fit_stacking(names, each, targets, fold, questions, positive)
        arrays = {
            "logits": np.stack(each, axis=1).astype(np.float32),
            "targets": targets,
            "fold": fold,
            "questions": questions,
            "positive": np.array([positive]),
        }
        save_file(arrays, folder / _FITTED_ON)
        write_json(folder / _WEIGHTS, {**found.to_json(), "pairs": len(known)})

    return StackedTeachers(workspace.step("ensemble", content, build, label="weights of the teachers"), names)
