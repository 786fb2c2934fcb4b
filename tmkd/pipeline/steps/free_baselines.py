"""Baselines that a user has for free, on the rows that the models are measured on: nothing of them is trained.

BM25, the bi-encoder cosine of each encoder at hand, and the reciprocal-rank fusion of BM25 with each of these.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.config.recipe import Recipe
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import EncoderError, MissingExtraError
from tmkd.core.logits import even_logits, log_odds
from tmkd.data.documents.bm25 import pair_scores
from tmkd.data.pairs import Pairs
from tmkd.evaluation.comparison import turned
from tmkd.evaluation.ranking import fused_ranks
from tmkd.evaluation.results import ModelOutput
from tmkd.models.bi_encoder import cosine_logits
from tmkd.models.embedding_files import beyond_mean
from tmkd.models.encoders.find import find_encoder
from tmkd.pipeline.steps.label import label_stored
from tmkd.pipeline.steps.stored_labels import Labels, stored
from tmkd.pipeline.steps.student import cached_encoder
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.workspace import Workspace
from tmkd.teachers.bi_encoder import BiEncoderTeacher
from tmkd.teachers.interface import Scored

logger = logging.getLogger(__name__)

COSINE, BM25, OWN = "cosine", "bm25", "own similarity"
_FUSED = 0.5  # least share of pairs whose question has another passage: ranks within a question tell the rest nothing


def encoder_cosine(workspace: Workspace, recipe: Recipe, source: Path, pairs: Pairs) -> NDArray[np.float64]:
    """The bi-encoder cosine of an encoder as logits, computed once and stored.

    Args:
        workspace: keeps it.
        recipe: the maximum length, the precision and the positive class, for which near texts stand.
        source: the encoder.
        pairs: N pairs.

    Returns:
        [N, 2].
    """
    length, precision = recipe.max_length, recipe.precision
    content = depends_on(
        settings={"max_length": length, "precision": precision}, inputs={"encoder": source, "pairs": pairs}
    )
    header = {"encoder": content["inputs"]["encoder"], "max_length": length, "precision": precision, "classes": 2}

    def scored(left: Pairs) -> Iterator[Scored]:
        if len(left):
            yield np.arange(len(left)), cosine_logits(source, left.questions, left.passages, length, precision)

    wanted = Labels("cosine", header, content, pairs.distinct(), source.name, step="bi-encoder cosine")
    logits = stored(workspace, wanted, scored).logits_for(pairs.ids)
    return turned(logits.astype(np.float64), recipe.positive_class)


def untrained_teachers(recipe: Recipe) -> list[str]:
    """The names, as reports have them, of the teachers that are the cosine of an embedding model and nothing more."""
    return [f"teacher:{one.name}" for one in _untrained(recipe)]


def _untrained(recipe: Recipe) -> list[Teacher]:
    return [one for one in recipe.used_teachers if one.of_kind == "bi_encoder" and not one.learns_labels]


def own_similarities(
    workspace: Workspace, recipe: Recipe, sources: dict[str, Path], pairs: Pairs
) -> dict[str, NDArray[np.float64]]:
    """The similarity that an encoder's own files ask for, where it is another one than the cosine of means.

    So it is with pooling by the first token, and with prompts: who has such an embedding model uses it in that way.

    Args:
        workspace: keeps the similarities.
        recipe: its teachers; an untrained one that is the same model is a row of its own already.
        sources: encoders by the names of their cosines.
        pairs: N pairs.

    Returns:
        Logits [N, 2] by name: `own similarity`, and that of the cached encoder.
    """
    taken = {one.model for one in _untrained(recipe)}
    found = {}
    for cosine, source in sources.items():
        name, spec = cosine.replace(COSINE, OWN), recipe.encoder if cosine == COSINE else recipe.cached_encoder
        if spec in taken:
            continue
        try:
            if not (differs := beyond_mean(source)):
                continue
            teacher = BiEncoderTeacher(spec, name=f"{name} of {spec}", positive=recipe.positive_class)
            logits = teacher.from_raw(label_stored(workspace, teacher, pairs).logits_for(pairs.ids))
        except (EncoderError, MissingExtraError) as error:
            logger.warning(f"the {name} of {source} is left out of the free baselines: {error}")
            continue
        logger.info(f"{source} is used with {', '.join(differs)}: {name} is a free baseline beside {cosine}")
        found[name] = logits.astype(np.float64)
    return found


def free_baselines(
    workspace: Workspace, recipe: Recipe, pairs: Pairs, teachers: list[ModelOutput]
) -> list[ModelOutput]:
    """The free baselines of a run on some pairs; none where there are more than two classes.

    Args:
        workspace: keeps the cosines.
        recipe: the run's recipe.
        pairs: N pairs.
        teachers: the outputs of the run's teachers on them; embedding models that are not trained take part.

    Returns:
        `bm25`, `cosine` (of the recipe's encoder) and that of a cached student's encoder, `own similarity` of an
        encoder whose files name another one, then `bm25+NAME` for each of these and each embedding model. The latter
        are left out, with a line in the log, where most questions have a single passage.
    """
    if recipe.classes != 2:
        return []
    positive, source, untrained = recipe.positive_class, find_encoder(recipe.encoder), untrained_teachers(recipe)
    sources = {COSINE: source}
    if any(method.cached for method in recipe.chosen_methods) and (other := cached_encoder(recipe)) != source:
        sources[f"{COSINE} of the cached encoder"] = other
    cosines = {name: encoder_cosine(workspace, recipe, one, pairs) for name, one in sources.items()}
    cosines |= own_similarities(workspace, recipe, sources, pairs)
    found = [ModelOutput(name, "free", logits[None]) for name, logits in cosines.items()]
    nearness = {name: log_odds(logits, positive) for name, logits in cosines.items()}
    for teacher in teachers:
        if teacher.name in untrained:
            nearness[teacher.name.removeprefix("teacher:")] = log_odds(teacher.logits[0], positive)
    try:
        words = pair_scores(pairs.questions, pairs.passages)
    except MissingExtraError as error:
        logger.warning(f"BM25 and its fusion with cosines are left out of the free baselines: {error}")
        return found
    scores = {BM25: words}
    groups = pairs.groups()[1]
    alone = np.bincount(groups)[groups] == 1
    if alone.mean() <= 1 - _FUSED:
        scores |= {f"{BM25}+{name}": fused_ranks(groups, [words, one]) for name, one in nearness.items()}
    else:
        logger.info(
            f"BM25 is not fused with cosines: {int(alone.sum()):,} of the {len(pairs):,} pairs are the only one of "
            "their question, and reciprocal ranks compare the passages of one question"
        )
    by_words = [ModelOutput(name, "free", turned(even_logits(one), positive)[None]) for name, one in scores.items()]
    return [*by_words[:1], *found, *by_words[1:]]
