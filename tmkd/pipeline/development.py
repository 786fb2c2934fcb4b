"""What the development set says of a run's teachers: which is the best, and which are behind an untrained cosine."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.evaluation.significance import TITLES
from tmkd.models.encoders.find import find_encoder
from tmkd.pipeline.choice import choose_best
from tmkd.pipeline.steps.free_baselines import COSINE, encoder_cosine
from tmkd.pipeline.teacher_labels import TeacherLabels

_UNTRAINED = f"{COSINE} "  # beside the teachers' names, none of which has a blank


def teachers_on_development(labels: TeacherLabels) -> dict[str, Any]:
    """Measure every teacher on the development set, beside the cosine of the recipe's encoder with nothing trained.

    A teacher that is behind the cosine is warned of.

    Args:
        labels: the teachers of the run.

    Returns:
        {"metrics": what was summed (ROC-AUC and MRR, or accuracy), "values": that sum by teacher, "cosine": that of the
        cosine, of two classes, "best": the best teacher as reports name it, "behind": the teachers behind the cosine};
        empty where no teacher can be measured.
    """
    data, recipe, which = labels.data, labels.recipe, labels.measured
    if not which:
        return {}
    logits: dict[str, NDArray[np.floating[Any]]] = {
        labels.teachers[number][0].name: one[None]
        for number, one in zip(which, labels.logits(data.dev, "dev", which), strict=True)
    }
    if recipe.classes == 2:
        cosine = encoder_cosine(data.workspace, recipe, find_encoder(recipe.encoder), data.dev)
        logits[_UNTRAINED] = cosine[None]
    found = choose_best(logits, data.dev, classes=recipe.classes, positive=recipe.positive_class)
    measured = dict(found.values or {})
    level = measured.pop(_UNTRAINED, None)
    about: dict[str, Any] = {"metrics": list(found.metrics), "values": measured}
    about["best"] = f"teacher:{max(measured, key=lambda name: measured[name])}"
    if level is not None and found.metrics != ("accuracy",):  # a cosine ranks, and decides nothing
        about |= {"cosine": level, "behind": [name for name, value in measured.items() if value < level]}
        what = " plus ".join(TITLES[metric] for metric in found.metrics)
        for name in about["behind"]:
            data.cache.say_once(
                f"teacher {name} is behind the cosine of {recipe.encoder} with nothing trained on the development set: "
                f"{what} {measured[name]:.3f} against {level:.3f}; what students learn of it is worth less than what "
                "is free (docs/teachers.md)",
                logging.WARNING,
            )
    return about
