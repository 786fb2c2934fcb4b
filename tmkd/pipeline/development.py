"""What the development set says of a run's teachers: which is the best, and which are behind an untrained cosine."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tmkd.core.logits import log_odds
from tmkd.evaluation.metrics import auc
from tmkd.evaluation.significance import TITLES
from tmkd.models.encoders.find import find_encoder
from tmkd.pipeline.choice import choose_best
from tmkd.pipeline.steps.free_baselines import COSINE, encoder_cosine
from tmkd.pipeline.teacher_labels import TeacherLabels


def teachers_on_development(labels: TeacherLabels) -> dict[str, Any]:
    """Measure every teacher on the development set, beside the cosine of the recipe's encoder with nothing trained.

    A teacher that is behind the cosine is warned of, and one whose scores fall where the labels rise.

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
        falling = _falling(labels)
        for name in about["behind"]:
            suspicion = f"; {falling.pop(name)}" if name in falling else ""
            data.cache.say_once(
                f"teacher {name} is behind the cosine of {recipe.encoder} with nothing trained on the development set: "
                f"{what} {measured[name]:.3f} against {level:.3f}; what students learn of it is worth less than what "
                f"is free (docs/teachers.md){suspicion}",
                logging.WARNING,
            )
        for name, said in falling.items():
            data.cache.say_once(f"teacher {name}: on the development set {said}", logging.WARNING)
    return about


def _falling(labels: TeacherLabels) -> dict[str, str]:
    """What is said of the teachers of two classes whose ROC-AUC is below 0.5 by more than chance explains.

    That is three standard errors of the area under scores that are independent of the labels,
    sqrt((P + N + 1) / (12 P N)) for P right and N wrong passages (Mann and Whitney 1947).
    """
    found: dict[str, str] = {}
    dev = labels.data.dev
    known = np.flatnonzero(dev.labels >= 0)
    truth = dev.labels[known]
    right, wrong = int((truth == 1).sum()), int((truth == 0).sum())
    if not right or not wrong:
        return found
    least = 0.5 - 3 * ((right + wrong + 1) / (12 * right * wrong)) ** 0.5
    for number in labels.measured:
        (logits,) = labels.logits(dev, "dev", [number])
        area = auc(truth, log_odds(logits[known].astype(np.float64)))
        if area < least:
            found[labels.teachers[number][0].name] = (
                f"its ROC-AUC is {area:.3f}: its scores fall where the labels rise: are they of the other class?"
            )
    return found
