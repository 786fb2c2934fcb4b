"""What the development set says of a run's teachers: which is the best, and which are behind an untrained cosine."""

from __future__ import annotations

import logging
from typing import Any

from tmkd.evaluation.significance import TITLES
from tmkd.models.encoders.find import find_encoder
from tmkd.pipeline.choice import choose_best
from tmkd.pipeline.steps.free_baselines import COSINE, encoder_cosine
from tmkd.pipeline.teacher_labels import TeacherLabels

logger = logging.getLogger(__name__)


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
    logits = {
        labels.teachers[number][0].name: one[None]
        for number, one in zip(which, labels.logits(data.dev, "dev", which), strict=True)
    }
    names = list(logits)
    if recipe.classes == 2:
        cosine = encoder_cosine(data.workspace, recipe, find_encoder(recipe.encoder), data.dev)
        logits[f"{COSINE} "] = cosine[None].astype(cosine.dtype)  # no teacher has a name with a blank
    found = choose_best(logits, data.dev, classes=recipe.classes, positive=recipe.positive_class)
    values = {name: (found.values or {})[name] for name in names}
    about: dict[str, Any] = {"metrics": list(found.metrics), "values": values}
    about["best"] = f"teacher:{max(values, key=lambda name: values[name])}"
    level = (found.values or {}).get(f"{COSINE} ")
    if level is not None and found.metrics != ("accuracy",):  # a cosine ranks, and decides nothing
        about |= {"cosine": level, "behind": [name for name, value in values.items() if value < level]}
        what = " plus ".join(TITLES[metric] for metric in found.metrics)
        for name in about["behind"]:
            line = (
                f"teacher {name} is behind the cosine of {recipe.encoder} with nothing trained on the development set: "
                f"{what} {values[name]:.3f} against {level:.3f}; what students learn of it is worth less than what is "
                "free (docs/teachers.md)"
            )
            if line not in data.cache.said:
                data.cache.said.add(line)
                logger.warning(line)
    return about
