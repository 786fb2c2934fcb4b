"""Turn a student into an export folder: checkpoint, tokenizer and ONNX files, with every backend checked.

The way of an export:

1. fold: the checkpoint's head is the mean of the student's heads, one logit for two classes (`tmkd.models.one_logit`);
   that is checked (`tmkd.export.fold`).
2. ONNX: the folded student as a graph (`tmkd.export.onnx`), and the same in 8 bits (`tmkd.export.int8`).
3. parity: each backend is run as users run it and compared with the student in PyTorch (`tmkd.export.parity`).
4. gate: a backend that does not agree is removed, and parity.json says why (`tmkd.export.gate`).

A student that reads passages once has two graphs and no checkpoint in its export (`tmkd.export.cached`).

The folder is built beside its target and renamed, so an export that exists is whole.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tmkd.core.errors import EncoderError, ExportError
from tmkd.core.files import disk_errors, read_json, sha256_of, swap_in, write_json
from tmkd.data.pairs import Pairs
from tmkd.export.cached import CachedSource, CachedStudent, cached_backends, cost_of_rounding
from tmkd.export.fold import checked_logits, load_checkpoint
from tmkd.export.gate import BACKENDS, Backend, ExportSource, Source, gate, writable
from tmkd.inference.manifest import CACHED, CACHED_FORMAT, POSITIVE_FORMAT, QUESTION_FORMAT, positive_of
from tmkd.models.card import CARD_FILE, FORMAT, ModelCard, has_card, read_card
from tmkd.models.checkpoint import save_tokenizer
from tmkd.models.encoders.cached_files import ENCODER_FOLDER, is_cached, question_folder
from tmkd.models.encoders.families import family_of
from tmkd.models.encoders.tensors import write_tensors
from tmkd.models.label_map import class_names
from tmkd.models.one_logit import RELEVANT, class_rows, described, folded_rows, outputs_of
from tmkd.models.text_tokenizer import QUESTION_FOLDER, TextTokenizer
from tmkd.models.tokenizer import PairTokenizer
from tmkd.models.weights import read_weights, shape_of

logger = logging.getLogger(__name__)


class Classes(NamedTuple):
    """What the classes of a student are called, and which is the right one.

    Attributes:
        labels: names of the C classes, for config.json; the student's own, or those of `RELEVANT`, unless given.
        positive: of two classes the one of the right passages: the export's one logit is its log-odds.
    """

    labels: Sequence[str] | None = None
    positive: int = 1


_USUAL = Classes()


def export_student(
    student_folder: Path,
    dev: Pairs,
    out: Path,
    *,
    calibration: Pairs | None = None,
    backends: Sequence[str] | None = None,
    classes: Classes = _USUAL,
) -> list[dict[str, Any]]:
    """Export a student, and check that every backend gives its logits.

    Args:
        student_folder: a sequence-classification checkpoint of a supported architecture with tmkd.json and, for a
            student of several heads, headers.safetensors.
        dev: the pairs on which backends are compared, labelled or not; usually the development set.
        out: the folder to write; an earlier export there is replaced.
        calibration: training pairs, relevant and irrelevant, that int8 is calibrated on (`choose_calibration` picks
            them). Without them int8 is not written.
        backends: names out of BACKENDS; all whose tools are installed unless given.
        classes: what the C classes are called, and which is the right one.

    Returns:
        The parity table, one row per backend: backend, passed, the numbers of `Parity` and `Invariance`,
        pairs_per_second, bytes, reason. What is not defined for the task or was not measured is None.

    Raises:
        ExportError: an unknown backend, no development pairs, a folded head that does not match the heads, or an `out`
            that holds something else than an export.
        EncoderError: the student's folder is not a supported checkpoint.
        TmkdError: there is no room on disk.
    """
    student_folder, out = Path(student_folder), Path(out)
    if backends is None:
        backends = [name for name in writable() if calibration is not None or not name.endswith("-int8")]
    _check_request(dev, out, backends)
    card = read_card(student_folder)
    fresh = out.with_name(f".{out.name}.partial")
    with disk_errors(out), _removed_afterwards(fresh):
        fresh.mkdir(parents=True)
        about = _about(card, _class_names(student_folder, card, classes.labels), classes.positive)
        make = _cached if is_cached(student_folder) else _layered
        whole = make(student_folder, fresh, card, about, dev, dev.take([]) if calibration is None else calibration)
        rows, passed = gate(backends, whole.source, whole.about, dev, whole.logits, whole.backends)
        write_json(fresh / CARD_FILE, {**whole.about, "backends": passed})
        write_json(fresh / "parity.json", rows)
        swap_in(fresh, out)
    for row in rows:
        if not row["passed"]:
            logger.warning(f"export: {row['backend']} is not written: {row['reason']}")
    return rows


class _Whole(NamedTuple):
    """An export without its backends.

    Attributes:
        source: what backends are written from.
        backends: those that this kind of student has.
        logits: of the student in PyTorch on the development pairs, [N, C].
        about: the content of tmkd.json without its backends.
    """

    source: Source
    backends: Mapping[str, Backend]
    logits: NDArray[np.float32]
    about: dict[str, Any]


def _layered(
    student: Path, fresh: Path, card: ModelCard, about: dict[str, Any], dev: Pairs, calibration: Pairs
) -> _Whole:
    """Start the export of a student that reads question and passage together: an ordinary checkpoint."""
    positive = positive_of(about)
    _copy_checkpoint(student, fresh, card, about["labels"], positive)
    tokenizer = _copy_tokenizer(student, fresh, card.max_length)
    model = load_checkpoint(fresh)
    logits = checked_logits(model, student, card, tokenizer, dev, positive)
    about = {**about, "tokenizers": {"tokenizer.json": sha256_of(fresh / "tokenizer.json")}}
    return _Whole(ExportSource(model, fresh, tokenizer, calibration), BACKENDS, logits, about)


def _cached(
    student: Path, fresh: Path, card: ModelCard, about: dict[str, Any], dev: Pairs, calibration: Pairs
) -> _Whole:
    """Start the export of a student that reads passages once: configuration and tokenizer, the weights are in ONNX."""
    for name in ("config.json", "model.safetensors", f"{ENCODER_FOLDER}/config.json"):
        if not (student / name).is_file():
            raise EncoderError(f"{student} has no {name}; give a student that tmkd saved")
    config, inner = (read_json(student / at / "config.json") for at in ("", "encoder"))
    kept = {name: inner[name] for name in ("vocab_size", "pad_token_id") if name in inner}
    names, positive = about["labels"], positive_of(about)
    named = names if card.classes != 2 or positive == 1 else [names[positive]]
    write_json(fresh / "config.json", {**kept, **config, "id2label": dict(enumerate(named))})
    asking = question_folder(student)
    written = POSITIVE_FORMAT if positive == 0 else CACHED_FORMAT if asking is None else QUESTION_FORMAT
    about = {**about, "format": written, "kind": CACHED}
    write_json(fresh / CARD_FILE, about)  # a folder with it has the tokenizer that tmkd saved
    save_tokenizer(student, fresh, card.max_length)
    apart = None if asking is None else _question_tokenizer(asking, fresh / asking.name, about)
    own = CachedStudent(student, TextTokenizer(fresh, card.max_length), apart, positive)
    read = own.read(dev)
    rounded, exact = (own.logits(read, dev, rounded=yes) for yes in (True, False))
    source = CachedSource(own, fresh, read, calibration, cost_of_rounding(exact, rounded, dev, positive))
    return _Whole(source, cached_backends(own), rounded, {**about, "states": _states_entry(own, fresh)})


def _states_entry(student: CachedStudent, export: Path) -> dict[str, Any]:
    """What tmkd.json says about the states, as `tmkd.inference.manifest.StatesFormat` has it."""
    shape, apart = student.interaction.shape, student.question_encoder is not None
    names = ["tokenizer.json", *([f"{QUESTION_FOLDER}/tokenizer.json"] if apart else [])]
    entry = {"identity": student.identity, "size": shape.state_size, "width": shape.encoder_width}
    entry |= {"tokenizers": {name: sha256_of(export / name) for name in names}}
    return {**entry, "question_encoder": True} if apart else entry


def _question_tokenizer(encoder: Path, folder: Path, about: dict[str, Any]) -> TextTokenizer:
    """Copy the tokenizer of a student's encoder of questions into a folder of the export."""
    folder.mkdir()
    config = read_json(encoder / "config.json")
    named = ("model_type", "vocab_size", "pad_token_id")
    write_json(folder / "config.json", {name: config[name] for name in named if name in config})
    save_tokenizer(encoder, folder, about["max_length"])
    write_json(folder / CARD_FILE, about)  # a folder with it has the tokenizer that tmkd saved
    return TextTokenizer(folder, about["max_length"])


def _about(card: ModelCard, names: Sequence[str], positive: int) -> dict[str, Any]:
    """Return the content of the export's tmkd.json without its backends."""
    if positive not in (0, 1) or (positive == 0 and card.classes != 2):
        raise ValueError(f"positive is {positive} of {card.classes} classes; it is one of two classes, 0 or 1")
    return {
        "format": FORMAT if positive else POSITIVE_FORMAT,
        "max_length": card.max_length,
        "classes": card.classes,
        "outputs": outputs_of(card.classes),
        "labels": list(names),
        **({} if positive else {"positive": 0}),
    }


def _class_names(student: Path, card: ModelCard, labels: Sequence[str] | None) -> list[str]:
    """Return the names of the classes: those given, those of the student's card, or what its config.json has."""
    named = labels or card.labels
    if named is None:
        # with two classes config.json may have the names of the checkpoint that the encoder came from
        # and those of a cached student has no names: they are then numbered, as transformers does
        named = RELEVANT if card.classes == 2 else class_names(student) or [f"LABEL_{n}" for n in range(card.classes)]
    if len(named) != card.classes:
        raise ExportError(f"{len(named)} names of classes ({', '.join(named)}), {student} has {card.classes} classes")
    return list(named)


def _check_request(dev: Pairs, out: Path, backends: Sequence[str]) -> None:
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown:
        raise ExportError(f"backend {unknown[0]!r} is not known; there are: {', '.join(BACKENDS)}")
    if len(dev) == 0:
        raise ExportError("there are no development pairs; an export is written only where it can be compared")
    if out.is_dir() and any(out.iterdir()) and not has_card(out):
        raise ExportError(
            f"{out} holds files that are not an export (it has no tmkd.json); name another folder or empty it"
        )
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; name a folder")


def _copy_checkpoint(student: Path, fresh: Path, card: ModelCard, names: Sequence[str], positive: int) -> None:
    """Copy config and weights, with one logit for two classes: that of the positive one."""
    for name in ("config.json", "model.safetensors"):
        if not (student / name).is_file():
            raise EncoderError(f"{student} has no {name}; give a student that tmkd saved")
    config = read_json(student / "config.json")
    last = family_of(config["model_type"], str(student)).last
    rows = next(iter(shape_of(student, f"{last}.weight")), 0)
    if rows not in (card.classes, outputs_of(card.classes)):
        raise ExportError(
            f"{student}: the head in model.safetensors has {rows} logits, tmkd.json {card.classes} classes"
        )
    write_json(fresh / "config.json", described(config, names, positive))
    if rows == outputs_of(card.classes) and positive == card.positive:
        shutil.copyfile(student / "model.safetensors", fresh / "model.safetensors")
        return
    weights = read_weights(student)
    whole = class_rows(weights[f"{last}.weight"], weights[f"{last}.bias"], card.positive)
    head = folded_rows(*whole, positive)
    weights |= {f"{last}.{part}": value for part, value in zip(("weight", "bias"), head, strict=True)}
    write_tensors(weights, fresh / "model.safetensors", {"format": "pt"})


def _copy_tokenizer(student: Path, fresh: Path, max_length: int) -> PairTokenizer:
    """Copy the tokenizer; write the padding token into every file that tools read it from."""
    save_tokenizer(student, fresh, max_length)
    tokenizer = PairTokenizer(student, max_length)
    pad = {"pad_token": Tokenizer.from_file(str(fresh / "tokenizer.json")).id_to_token(tokenizer.pad_id)}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        _add(fresh / name, pad)
    _add(fresh / "config.json", {"pad_token_id": tokenizer.pad_id})
    return tokenizer


def _add(path: Path, absent: dict[str, Any]) -> None:
    """Add those keys to a JSON file that it does not have; the file is made where it does not exist."""
    content = read_json(path) if path.is_file() else {}
    write_json(path, {**absent, **content})


@contextmanager
def _removed_afterwards(folder: Path) -> Iterator[None]:
    """Remove a temporary folder at the start and at the end of the block, also when the block fails."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
