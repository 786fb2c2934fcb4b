"""A bi-encoder as a step: fine-tuned on golden labels, and written as a folder that sentence-transformers opens."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tmkd.config.recipe import Recipe
from tmkd.config.teacher_sections import Teacher, Tune
from tmkd.core.errors import DataError, named, needs_extra
from tmkd.core.files import write_json
from tmkd.core.hardware import attention, device, use_bf16
from tmkd.data.pairs import Pairs
from tmkd.models.embedding_files import similarity_of
from tmkd.models.encoders.tensors import require_finite
from tmkd.models.quiet import without_bars
from tmkd.models.ready import checkpoint_json
from tmkd.pipeline.steps.fit import state_folder
from tmkd.pipeline.store.fingerprint import depends_on, non_defaults
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.bi_encoder import BiEncoderTeacher, Prompts, TunedBuiltin
from tmkd.training.contrastive import Contrast, ContrastiveGradients
from tmkd.training.trainer import Loop, TrainerConfig

logger = logging.getLogger(__name__)

TUNED = "tuned"
_MODEL = "model"  # the folder of a step where the model lies


def untuned(recipe: Recipe, teacher: Teacher) -> BiEncoderTeacher:
    """The bi-encoder that a recipe describes, before it is fine-tuned."""
    assert teacher.model is not None
    return BiEncoderTeacher(
        teacher.model,
        name=teacher.name,
        max_length=teacher.max_length,
        pooling=teacher.pooling,
        prompts=Prompts(teacher.query_prompt, teacher.passage_prompt),
        precision=recipe.precision,
        positive=recipe.positive_class,
    )


def tuned_teacher(recipe: Recipe, step: Step, name: str) -> BiEncoderTeacher:
    """The bi-encoder of a finished step, read as it would be read before it was fine-tuned."""
    folder, right = step.folder / _MODEL, recipe.positive_class
    about = checkpoint_json(step.folder / "step.json")["depends_on"]["settings"].get("reader")
    if about is None:  # its files say the rest
        return BiEncoderTeacher(str(folder), name=name, positive=right)
    return BiEncoderTeacher(
        TunedBuiltin(about["model"], folder),
        name=name,
        max_length=about["max_length"],
        prompts=Prompts(**about["prompts"]),
        precision=recipe.precision,
        positive=right,
    )


def require_tunable(recipe: Recipe, teacher: Teacher, pairs: Pairs) -> None:
    """Check that a bi-encoder can be fine-tuned on labelled pairs.

    Raises:
        DataError: no pair is of the positive class.
        MissingExtraError: sentence-transformers is not installed.
    """
    with needs_extra("teachers"):
        import sentence_transformers  # noqa: F401
    if not (pairs.labels == recipe.positive_class).any():
        raise DataError(
            f"teacher {teacher.name}: tune needs pairs of the right class ({recipe.positive_class}, data.positive), "
            f"and none of the {int((pairs.labels >= 0).sum()):,} labelled training pairs is one"
        )


def tune(workspace: Workspace, recipe: Recipe, teacher: Teacher, pairs: Pairs) -> Step:
    """Fine-tune a bi-encoder on labelled pairs.

    Args:
        workspace: keeps the step.
        recipe: the positive class and the precision.
        teacher: the recipe's teacher, with `tune`.
        pairs: the pairs that it is trained on.

    Raises:
        DataError: no pair is of the positive class.
        EncoderError: its model cannot be read.
    """
    numbers = teacher.tune
    assert numbers is not None
    require_tunable(recipe, teacher, pairs)
    with named(f"teacher {teacher.name}"):
        start = untuned(recipe, teacher)
    labelled = pairs.take((pairs.labels >= 0).nonzero()[0])
    content = depends_on(
        settings={
            "tune": non_defaults(numbers),
            "precision": recipe.precision,
            "reader": _reader(start),
            "similarity": _similarity(start),
        },
        inputs={"model": start, "train": labelled},
    )

    def build(folder: Path) -> None:
        contrast = Contrast(labelled, recipe.positive_class, numbers.negatives)
        with named(f"teacher {teacher.name}"):
            model = start.library_model().to(device())
        _set_dropout(model, numbers.dropout)
        bf16 = use_bf16(recipe.precision)
        if attention(bf16) == "matmul":
            without_fused_attention(model)
        counts = _say(teacher.name, contrast, numbers)
        gradients = ContrastiveGradients(model, contrast, _scale(model, numbers), bf16=bf16)
        loop = Loop(
            {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad},
            lambda epoch: contrast.steps(numbers.batch_size, epoch, numbers.seed),
            gradients,
            TrainerConfig.of(numbers, numbers.seed, recipe.precision),
            name=f"tune {teacher.name}",
            state_folder=state_folder(folder),
        )
        curve = loop.fit(model)
        require_finite(model.state_dict(), folder)
        with without_bars():
            model.save(str(folder / _MODEL), create_model_card=False)
        write_json(folder / "curve.json", curve)
        write_json(folder / "contrast.json", counts)

    return workspace.step(TUNED, content, build, label=f"tune {teacher.name}")


def _reader(start: BiEncoderTeacher) -> dict[str, Any] | None:
    """How tmkd reads the fine-tuned model itself; None where sentence-transformers runs it.

    The step's fingerprint stands for the teacher's labels wherever they are used, so it depends on who makes them.
    """
    if not start.builtin:
        return None
    return {"model": start.spec, "max_length": start.max_length, "prompts": asdict(start.prompts)}


def _similarity(start: BiEncoderTeacher) -> str | None:
    """What the files name; None for what earlier versions tuned by, too, the cosine and the dot product."""
    found = similarity_of(start.folder)
    return None if found in ("cosine", "dot") else found


def _say(name: str, contrast: Contrast, numbers: Tune) -> dict[str, int]:
    """Log what a training compares, and what is left out of it."""
    counts = contrast.count(numbers.batch_size, numbers.epochs, numbers.seed)
    logger.info(
        f"tune {name}: {len(contrast.examples):,} right passages of {len(set(contrast.examples[:, 0].tolist())):,} "
        f"questions; {counts['compared']:,} wrong ones are compared with them in {numbers.epochs} epochs. Left out: "
        f"{counts['right']:,} that are right for the question, {counts['again']:,} that are there twice"
    )
    return {"examples": len(contrast.examples), **counts}


def _scale(model: Any, numbers: Tune) -> float:
    return numbers.scale or (20.0 if model.similarity_fn_name == "cosine" else 1.0)


def without_fused_attention(model: torch.nn.Module) -> None:
    """Compute attention by plain matrix products, as tmkd's own encoders do where `attention` is `matmul`."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.set_attn_implementation("eager")


def _set_dropout(model: Any, dropout: float) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = dropout
