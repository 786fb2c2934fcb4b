"""What the development set says of a run's teachers: which is the best, and which are behind an untrained cosine."""

from __future__ import annotations

import logging
from typing import Any

from tmkd.evaluation.significance import TITLES
from tmkd.models.encoders.find import find_encoder
from tmkd.pipeline.choice import choose_best
from tmkd.pipeline.steps.free_baselines import COSINE, encoder_cosine
from tmkd.pipeline.teacher_labels import TeacherLabels


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
    data, recipe, found = labels.data, labels.recipe, labels.development
    if found is None:
        return {}
    measured = dict(found.values or {})
    about: dict[str, Any] = {"metrics": list(found.metrics), "values": measured, "best": f"teacher:{found.method}"}
    if recipe.classes == 2 and found.metrics != ("accuracy",):  # a cosine ranks, and decides nothing
        cosine = encoder_cosine(data.workspace, recipe, find_encoder(recipe.encoder), data.dev)
        untrained = choose_best({COSINE: cosine[None]}, data.dev, classes=2, positive=recipe.positive_class)
        level = (untrained.values or {})[COSINE]
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
