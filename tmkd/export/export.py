"""Turn a student into an export folder: checkpoint, tokenizer, ONNX; every back end checked, or not written.

Back ends are written and judged by `tmkd.export.gate`; one that does not agree with the student is removed and
parity.json
says why. The folder is built beside its target and renamed: there is never half an export.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from tmkd.core.console import progress
from tmkd.core.errors import EncoderError, ExportError
from tmkd.core.files import disk_errors, swap_in, write_json
from tmkd.data.pairs import Pairs
from tmkd.export.gate import BACKENDS, Material, gate, writable
from tmkd.inference.scorer import FORMAT
from tmkd.models.batching import length_sorted_batches, pad
from tmkd.models.card import ModelCard, read_card
from tmkd.models.encoders.families import family_of, last_linear, takes_token_types
from tmkd.models.tokenizer import PairTokenizer

logger = logging.getLogger(__name__)

FOLD_LIMIT = 1e-5  # between the checkpoint's own logits and the mean of the headers
TOKEN_BUDGET = 4096
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def export_student(
    student_folder: Path,
    dev: Pairs,
    out: Path,
    *,
    calibration: Pairs | None = None,
    backends: Sequence[str] | None = None,
    reference_logits: NDArray[np.float32] | None = None,
) -> list[dict[str, Any]]:
    """Export a student and prove that every back end gives its numbers.

    Args:
        student_folder: a sequence-classification checkpoint of a known family with tmkd.json and, for a multi-header
            student, headers.safetensors.
        dev: the pairs on which back ends are compared, labelled or not.
        out: the folder to write; an earlier export there is replaced.
        calibration: training pairs that int8 is calibrated on, relevant and irrelevant (`choose_calibration` takes
            some of many). There is no int8 without them.
        backends: names out of BACKENDS; every one whose tools are installed unless given.
        reference_logits: the student's logits on `dev`, [N, C] float32; computed from its headers unless given.

    Returns:
        One row per back end: backend, passed, the numbers of `Agreement` and `Invariance`, pairs_per_second, bytes,
        reason. What has no meaning or was not measured is None.

    Raises:
        ExportError: an unknown back end, no development pairs, a fold that does not match, an `out` that holds
            something else. EncoderError: a folder that is no supported checkpoint. TmkdError: no room on disk.
    """
    student_folder, out = Path(student_folder), Path(out)
    if backends is None:
        backends = [name for name in writable() if calibration is not None or not name.endswith("-int8")]
    _check_request(dev, out, backends)
    card = read_card(student_folder)
    fresh = out.with_name(f".{out.name}.partial")
    with disk_errors(out), _removed_afterwards(fresh):
        fresh.mkdir(parents=True)
        _copy_checkpoint(student_folder, fresh, card.max_length)
        model = load_checkpoint(fresh)
        reference = _checked_reference(model, fresh, student_folder, card, dev, reference_logits)
        about = {
            "format": FORMAT,
            "max_length": card.max_length,
            "classes": card.classes,
            "labels": [str(name) for _, name in sorted(model.config.id2label.items())],
        }
        tokenizer = PairTokenizer(fresh, card.max_length)
        material = Material(model, fresh, tokenizer, dev.take([]) if calibration is None else calibration)
        rows, passed = gate(backends, material, about, dev, reference)
        write_json(fresh / "tmkd.json", {**about, "backends": passed})
        write_json(fresh / "parity.json", rows)
        swap_in(fresh, out)
    for row in rows:
        if not row["passed"]:
            logger.warning(f"export: {row['backend']} is not written: {row['reason']}")
    return rows


def load_checkpoint(folder: Path) -> Any:
    """The folder's own sequence-classification module, float32, in eval mode; EncoderError where there is none."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family_of(config.model_type, str(folder))
        return AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        ).eval()
    except EncoderError:
        raise
    except Exception as error:  # safetensors and the hub's loader raise classes of their own
        raise EncoderError(f"{folder} cannot be opened as a checkpoint: {str(error).splitlines()[0]}") from error


def headers_of(folder: Path, card: ModelCard) -> tuple[Tensor, Tensor] | None:
    """Weights [H, C, d] and biases [H, C] of the headers that the `logit` combination averages; None without any."""
    path = folder / "headers.safetensors"
    if not path.is_file():
        if card.soft_heads:
            raise ExportError(
                f"{path} is missing: without it the folded head cannot be checked; train the student again"
            )
        return None
    try:
        found = load_file(path)
        weight, bias = found["soft.weight"], found["soft.bias"]
        if card.use_golden:
            weight = torch.cat([found["golden.weight"][None], weight])
            bias = torch.cat([found["golden.bias"][None], bias])
    except Exception as error:  # safetensors raises a class of its own for a damaged file
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {error}); train the student again") from error
    return weight.float(), bias.float()


def pytorch_logits(
    model: Any, tokenizer: PairTokenizer, dev: Pairs, headers: tuple[Tensor, Tensor] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of the pairs by the checkpoint's own head, and by the mean of the headers over the same h: [N, C] each."""
    encoded = tokenizer.encode(dev.questions, dev.passages)
    own = np.empty((len(dev), model.config.num_labels), dtype=np.float32)
    combined = np.empty_like(own)
    seen: list[Tensor] = []
    hook = last_linear(model).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.inference_mode(), progress("student in PyTorch", len(dev)) as bar:
            for rows in length_sorted_batches(encoded.lengths, TOKEN_BUDGET):
                ids, mask, types = map(torch.from_numpy, pad(encoded.ids, encoded.type_ids, rows, tokenizer.pad_id))
                seen.clear()
                given = {"token_type_ids": types} if takes_token_types(model.config) else {}
                own[rows] = model(input_ids=ids, attention_mask=mask, **given).logits.numpy()
                combined[rows] = own[rows] if headers is None else _mean_over_headers(seen[0], *headers).numpy()
                bar.advance(len(rows))
    finally:
        hook.remove()
    return own, combined


def _mean_over_headers(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """h [n, d], weight [H, C, d], bias [H, C] -> [n, C]."""
    return (torch.einsum("nd,hcd->nhc", h, weight) + bias).mean(dim=1)


def _check_request(dev: Pairs, out: Path, backends: Sequence[str]) -> None:
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown:
        raise ExportError(f"back end {unknown[0]!r} is not known; there are: {', '.join(BACKENDS)}")
    if len(dev) == 0:
        raise ExportError("there are no development pairs; an export is written only where it can be compared")
    if out.is_dir() and any(out.iterdir()) and not (out / "tmkd.json").is_file():
        raise ExportError(
            f"{out} holds files that are no export (it has no tmkd.json); name another folder or empty it"
        )
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; name a folder")


def _checked_reference(
    model: Any, fresh: Path, student: Path, card: ModelCard, dev: Pairs, given: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """The student's logits on `dev`, once the folded head is seen to give the mean of the headers."""
    classes = card.classes
    if model.config.num_labels != classes:
        raise ExportError(f"{student}: config.json says {model.config.num_labels} classes, tmkd.json {classes}")
    if given is not None and given.shape != (len(dev), classes):
        raise ExportError(f"reference logits have the shape {given.shape}, expected {(len(dev), classes)}")
    tokenizer = PairTokenizer(fresh, card.max_length)
    own, combined = pytorch_logits(model, tokenizer, dev, headers_of(student, card))
    difference = float(np.abs(own - combined).max())
    if not difference <= FOLD_LIMIT:
        raise ExportError(
            f"{student}: model.safetensors does not hold the mean of its headers (logits differ by {difference:.2e}, "
            f"at most {FOLD_LIMIT:.0e} is allowed); one of the two files was changed or damaged, save the student again"
        )
    return combined if given is None else given


def _copy_checkpoint(student: Path, fresh: Path, max_length: int) -> None:
    """Config, weights and tokenizer, with the student's length in every file that a tool may read it from."""
    for name in ("config.json", "model.safetensors"):
        if not (student / name).is_file():
            raise EncoderError(f"{student} has no {name}; give a student that tmkd saved")
        shutil.copyfile(student / name, fresh / name)
    PairTokenizer(student, max_length).save(fresh)
    for name in TOKENIZER_FILES:
        if (student / name).is_file():
            shutil.copyfile(student / name, fresh / name)
    path = fresh / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**config, "model_max_length": max_length})


@contextmanager
def _removed_afterwards(folder: Path) -> Iterator[None]:
    """Remove a temporary folder, whatever happened."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
