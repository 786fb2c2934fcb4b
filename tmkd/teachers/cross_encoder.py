"""A teacher that is a finished cross-encoder of any architecture, opened by sentence-transformers' `CrossEncoder`.

Decoder rerankers (the log-odds of a "yes" token against a "no" token), checkpoints with a prompt of their own, and
architectures that tmkd does not read itself. `tmkd.models.ready.needs_library` says which checkpoints come here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd.core.cluster import Cluster
from tmkd.core.errors import EncoderError, first_line, needs_extra
from tmkd.core.files import digest_of
from tmkd.core.hardware import device
from tmkd.core.logits import two_logits
from tmkd.data.pairs import Pairs
from tmkd.models.batching import spread_chunks
from tmkd.models.encoders.find import find_folder, folder_fingerprint, weight_files
from tmkd.models.module_files import read_modules
from tmkd.models.predict import require_finite_logits
from tmkd.models.quiet import without_bars
from tmkd.models.ready import activation_of, checkpoint_json, keeps_log_odds, no_log_odds, scale_problem
from tmkd.models.weights import names_of
from tmkd.teachers.interface import Scored, StoredTeacher
from tmkd.teachers.on_cluster import ScorePairs, score_on

CHUNK = 512  # pairs between two writes of the label store
_BATCH = 32  # pairs of one forward pass


@dataclass(frozen=True)
class _Head:
    """What gives the scores, as the files say.

    Attributes:
        rows: how many numbers it gives for a pair.
        causal: whether it is a causal language model, whose next token is looked at.
        place: the folder of the transformer's files.
        tokens: for a language model, how many tokens are compared: two give log-odds.
    """

    rows: int
    causal: bool
    place: Path
    tokens: int = 2


class CrossEncoderTeacher(StoredTeacher):
    """A finished cross-encoder as a teacher, with its own tokenizer, prompt, maximum length and activation.

    Raw scores are its logits, or, where its files put a function on them after which they are no log-odds, what that
    function gives. A head of one logit has two classes, as in `tmkd.teachers.encoder.EncoderTeacher`.

    Attributes:
        folder: the checkpoint's folder.
        name: what messages and reports call the teacher.
        width: how many numbers it gives for a pair.
        classes: the number of classes, C.
        max_length: tokens of a pair; None: what its files say.
        class_order: for each class of the task, the checkpoint's class that it is.
        precision: fp32 computes in float32; otherwise in the precision in which the weights are stored.
    """

    def __init__(
        self,
        spec: str,
        *,
        name: str | None = None,
        max_length: int | None = None,
        class_order: Sequence[int] | None = None,
        precision: str = "auto",
    ) -> None:
        """Find the checkpoint and check its files; the weights are read when they are first needed.

        Args:
            spec: a local folder or a hub id.
            name: the last part of `spec` unless given.
            max_length: tokens of a pair.
            class_order: the checkpoint's own order unless given.
            precision: as in a recipe.

        Raises:
            EncoderError: there is no such checkpoint, its head is not understood or has no weights, or its files name
                code of their own.
            MissingExtraError: sentence-transformers is not installed.
        """
        with needs_extra("teachers"):
            import sentence_transformers  # noqa: F401
        self.folder = find_folder(spec)
        self.name = name or spec.rstrip("/").rpartition("/")[2]
        self._head = _head_of(self.folder)
        self.width = self._head.rows
        self.classes = 2 if self.width == 1 else self.width
        self.class_order = list(range(self.classes)) if class_order is None else list(class_order)
        self.max_length, self.precision = max_length, precision
        self._activation = activation_of(self.folder)
        if self._activation and not self._activation.startswith("torch."):
            raise EncoderError(
                f"{self.folder} puts code of its own, {self._activation}, on the logits, which is not run",
                source=self.folder,
            )

    def require_log_odds(self) -> None:
        """Check that the scores are log-odds, so that they need no calibration.

        Raises:
            EncoderError: they are not, and why.
        """
        problem = scale_problem(self.folder, one=self.width == 1)
        if not problem and self._head.tokens == 1:
            problem = "its score is the logit of a single token (LogitScore has no false_token_id)"
        if problem:
            raise no_log_odds(self.folder, problem)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash over weights, configuration, tokenizer, maximum length, order of classes and precision."""
        about = [self.max_length, self.class_order, self.precision == "fp32"]
        return digest_of(["cross_encoder", folder_fingerprint(self.folder), *about])

    @functools.cached_property
    def _model(self) -> Any:
        from sentence_transformers import CrossEncoder

        weights = {"use_safetensors": True, **({"dtype": "float32"} if self.precision == "fp32" else {})}
        try:
            with without_bars():
                return CrossEncoder(
                    str(self.folder), max_length=self.max_length, device=str(device()), model_kwargs=weights,
                    local_files_only=True, trust_remote_code=False,
                )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> EncoderError:
        return EncoderError(f"{self.folder} cannot be read: {first_line(error)}", source=self.folder)

    def scored(self, pairs: Pairs, cluster: Cluster | None = None) -> Iterator[Scored]:
        """Score pairs in chunks of similar length."""
        if cluster is not None:
            yield from score_on(cluster, _OnWorkers(self), pairs)
            return
        from torch import nn

        texts = list(zip(pairs.questions, pairs.passages, strict=True))
        characters = np.array([len(question) + len(passage) for question, passage in texts])
        plain = not self._activation or keeps_log_odds(self._activation, one=self.width == 1)
        function = nn.Identity() if plain else self._model.activation_fn
        for rows in spread_chunks(characters, CHUNK):
            try:
                found = self._model.predict(
                    [texts[row] for row in rows], batch_size=_BATCH, activation_fn=function, show_progress_bar=False
                )
            except ValueError as error:  # a chat template that has no place for a query and a document
                raise self._unreadable(error) from error
            raw = np.asarray(found, dtype=np.float32).reshape(len(rows), self.width)
            require_finite_logits(raw, pairs.take(rows), f"teacher {self.name} ({self.folder})", self.precision)
            yield rows, raw

    def from_raw(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits in the task's order of classes: of one logit z, (0, z)."""
        logits = two_logits(raw[:, 0]) if self.width == 1 else raw
        return logits[:, self.class_order]


class _OnWorkers(ScorePairs):
    """The same teacher on the workers of a cluster."""

    def __init__(self, teacher: CrossEncoderTeacher) -> None:
        self.folder, self._name = teacher.folder, teacher.name
        self._keys: dict[str, Any] = {
            "max_length": teacher.max_length, "class_order": teacher.class_order, "precision": teacher.precision,
        }  # fmt: skip

    def open_model(self, folder: Path) -> Callable[[Pairs], NDArray[np.float32]]:
        """See `ScorePairs`."""
        return CrossEncoderTeacher(str(folder), name=self._name, **self._keys).raw


def _head_of(folder: Path) -> _Head:
    """Read from a checkpoint's files what gives the scores, and check that its weights are there.

    Raises:
        EncoderError: the head is not understood, its weights are missing, or the files name code of their own.
    """
    modules = read_modules(folder)
    place = modules[0].place if modules else folder
    config = checkpoint_json(place / "config.json")
    kind = str((config.get("architectures") or ["none"])[0])
    if (place / "adapter_config.json").is_file():
        weight_files(place)  # says what to do
    own = config.get("auto_map") or {}
    if own and not _is_known(str(config.get("model_type"))):
        named = ", ".join(dict.fromkeys(str(one) for one in own.values()))
        raise EncoderError(f"{place}/config.json names code of its own, {named}, which is not run", source=folder)
    causal = kind.endswith("ForCausalLM")
    last = modules[-1] if len(modules) > 1 else None
    if last is not None and last.kind == "Dense":
        dense = checkpoint_json(last.place / "config.json")
        if dense.get("module_output_name") == "scores":
            return _Head(int(dense["out_features"]), False, place)
    elif last is not None and last.kind == "LogitScore" and causal:
        _require_weights(folder, place, causal=True)
        score = checkpoint_json(last.place / "config.json")
        return _Head(1, True, place, tokens=1 if score.get("false_token_id") is None else 2)
    elif last is None and causal:
        _require_weights(folder, place, causal=True)
        _require_yes_and_no(folder, place)
        return _Head(1, True, place)
    elif last is None and kind.endswith("ForSequenceClassification"):
        return _Head(_require_weights(folder, place, causal=False), False, place)
    described = ", ".join(one.kind for one in modules) if last is not None else kind
    raise EncoderError(
        f"{folder}: its head is not understood: {described}. A reranker is a model for sequence classification, a "
        "causal language model whose tokenizer has `yes` and `no`, or modules of sentence-transformers that end with "
        "LogitScore or with a Dense layer that gives `scores`",
        source=folder,
    )


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _require_yes_and_no(folder: Path, place: Path) -> None:
    """The tokenizer of a language model has a token for each answer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EncoderError(f"{folder}: its tokenizer cannot be read: {first_line(error)}", source=folder) from error
    for word in ("yes", "no"):
        if tokenizer.convert_tokens_to_ids(word) in (None, tokenizer.unk_token_id):
            raise EncoderError(
                f"{folder}: its head is not understood: a causal language model is scored by its next token, and its "
                f"tokenizer has no token {word!r}. If other tokens are meant, save it with sentence-transformers' "
                "LogitScore",
                source=folder,
            )


def _require_weights(folder: Path, place: Path, *, causal: bool) -> int:
    """The weights of the head are in the files: others would be random numbers.

    Returns:
        How many logits the head gives.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        made = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        with torch.device("meta"):
            model = made.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EncoderError(f"{place}/config.json cannot be read: {first_line(error)}", source=folder) from error
    stored, base = names_of(place), f"{model.base_model_prefix}."
    tied = causal and bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    of_head = [name for name, _ in model.named_parameters() if ".pooler." in name or not name.startswith(base)]
    missing = sorted(name for name in of_head if not {name, name.removeprefix(base)} & stored and not tied)
    if missing:
        raise EncoderError(
            f"{folder}: its head is not understood: {type(model).__name__} needs the weights {', '.join(missing)}, and "
            "its files do not have them",
            source=folder,
        )
    return 1 if causal else int(config.num_labels)
