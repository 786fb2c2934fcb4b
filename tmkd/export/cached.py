"""The student that reads passages once, as an export: what its graphs are written from and compared with.

Its two graphs are `onnx/encoder.onnx` and `onnx/interaction.onnx` (`tmkd.export.cached_graphs`). The reference is the
student in PyTorch with the states of its passages rounded to 8 bits as they are stored; what the rounding itself costs
is measured against the same student with exact states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.core.backends import SAFE_BACKEND
from tmkd.core.console import progress
from tmkd.core.logits import class_logits
from tmkd.data.pairs import Pairs
from tmkd.export.cached_graphs import INTERACTION_INPUTS, write_encoder, write_interaction
from tmkd.export.gate import Backend
from tmkd.export.int8 import matrix_products, quantise
from tmkd.export.parity import CLOSE, EXACT, measure_parity
from tmkd.inference.scorer import Scorer
from tmkd.inference.text_encoder import INPUTS, TextEncoder
from tmkd.models.batching import NO_BUDGET, length_sorted_batches, pad, stacked
from tmkd.models.checkpoint import load_encoder, load_student
from tmkd.models.encoders.cached_files import ENCODER_FOLDER
from tmkd.models.encoders.find import encoder_fingerprint
from tmkd.models.encoders.forward import Batch, PairEncoder
from tmkd.models.encoders.interaction import InteractionEncoder
from tmkd.models.one_logit import folded_rows
from tmkd.models.text_states import TextStates, dequantised, padded, text_key
from tmkd.models.text_tokenizer import QUESTION_FOLDER, TextTokenizer

Logits = NDArray[np.float32]
STATES_VERSION = 1  # of how states are computed and rounded; another one makes stored states unusable
_TOKENS = 4096  # of a batch of texts
_PASSAGES = 256  # of one question at once


@dataclass(frozen=True)
class ReadText:
    """A text as the encoder in PyTorch reads it.

    Attributes:
        hidden: Last hidden states, [T, d] float32.
        states: The states that are stored, before they are rounded, [T, k] float32.
        embedding: [d] float32.
    """

    hidden: NDArray[np.float32]
    states: NDArray[np.float32]
    embedding: NDArray[np.float32]


@dataclass(frozen=True)
class Readings:
    """The texts of some pairs as the encoders read them."""

    questions: Mapping[str, ReadText]
    passages: Mapping[str, ReadText]


class CachedStudent:
    """A cached student in PyTorch, with its heads folded into one.

    Args:
        folder: The student, as `save_student` writes it.
        tokenizer: Of its export.
        question_tokenizer: Of its encoder of questions; None where it has none of its own.
        positive: Of two classes the one whose log-odds it gives.

    Attributes:
        interaction: The interaction layers.
        encoder: E.
        question_encoder: What reads questions; None where E does.
        weight: Of the folded head, [L, w + 1]; L is 1 for two classes, else C.
        bias: Of the folded head, [L].

    Raises:
        EncoderError: A file is missing or damaged, or the mean of the heads is not the head in model.safetensors.
    """

    def __init__(
        self, folder: Path, tokenizer: TextTokenizer, question_tokenizer: TextTokenizer | None = None, positive: int = 1
    ) -> None:
        student = load_student(folder).eval()
        assert isinstance(student.encoder, InteractionEncoder)
        self.folder, self.tokenizer, self.interaction, self.positive = folder, tokenizer, student.encoder, positive
        self.encoder: PairEncoder = load_encoder(folder / ENCODER_FOLDER, 2).eval()
        self.question_tokenizer, self.question_encoder = question_tokenizer, None
        if question_tokenizer is not None:
            self.question_encoder = load_encoder(folder / QUESTION_FOLDER, 2).eval()
        self.weight, self.bias = (part.detach() for part in folded_rows(*student.fold(), positive))

    @cached_property
    def identity(self) -> str:
        """A fingerprint of everything that decides the states of a text, 32 hex characters."""
        digest = hashlib.blake2b(digest_size=16)
        parts = [str(STATES_VERSION), encoder_fingerprint(self.folder / ENCODER_FOLDER), self.tokenizer.fingerprint()]
        digest.update("\0".join(parts).encode())
        for tensor in (self.interaction.projection.weight, self.interaction.projection.bias):
            digest.update(tensor.detach().numpy().tobytes())
        return digest.hexdigest()

    def read(self, pairs: Pairs) -> Readings:
        """Read the texts of pairs, each once."""
        if self.question_encoder is None or self.question_tokenizer is None:
            both = self._read(self.encoder, self.tokenizer, [*pairs.questions, *pairs.passages])
            return Readings(both, both)
        asked = self._read(self.question_encoder, self.question_tokenizer, pairs.questions)
        return Readings(asked, self._read(self.encoder, self.tokenizer, pairs.passages))

    @torch.inference_mode()
    def _read(self, encoder: PairEncoder, tokenizer: TextTokenizer, texts: Sequence[str]) -> dict[str, ReadText]:
        names = list(dict.fromkeys(texts))
        encoded, found = tokenizer.encode(names), dict[str, ReadText]()
        with progress("read texts in PyTorch", len(names), "texts") as bar:
            for rows in length_sorted_batches(encoded.lengths, _TOKENS):
                ids, mask, types = map(torch.from_numpy, pad(encoded.ids, encoded.type_ids, rows, tokenizer.pad_id))
                hidden = encoder.last_hidden_states(Batch(ids, mask, types))
                for row, one in zip(rows, hidden, strict=True):
                    whole = one[: len(encoded.ids[row])]
                    mean = torch.nn.functional.normalize(whole.mean(dim=0), dim=0)
                    states = self.interaction.states(whole)
                    found[names[row]] = ReadText(whole.numpy(), states.numpy(), mean.numpy())
                bar.advance(len(rows))
        return found

    def logits(self, read: Readings, pairs: Pairs, *, rounded: bool) -> Logits:
        """Compute the logits of pairs.

        Args:
            read: Their texts.
            pairs: N pairs.
            rounded: Whether the passages' states go through the 8 bits in which they are stored.

        Returns:
            [N, C] float32; for two classes the log-odds of the positive one, and 0.
        """
        questions: dict[str, list[int]] = {}
        for row, question in enumerate(pairs.questions):
            questions.setdefault(question, []).append(row)
        found = np.empty((len(pairs), len(self.bias)), dtype=np.float32)
        for question, rows in questions.items():
            for start in range(0, len(rows), _PASSAGES):
                some = rows[start : start + _PASSAGES]
                passages = [read.passages[pairs.passages[row]] for row in some]
                found[some] = self.of_question(read.questions[question], passages, rounded=rounded)
        return class_logits(found, self.positive)

    @torch.inference_mode()
    def of_question(self, question: ReadText, passages: Sequence[ReadText], *, rounded: bool) -> Logits:
        """Compute what the folded head gives for n passages of a question, [n, L] float32."""
        if rounded:
            stored = [TextStates.of(one.states, one.embedding) for one in passages]
            values, scales, embeddings = padded(stored)
            states, mask = dequantised(values, scales), scales > 0  # type: ignore[arg-type]
        else:
            lengths = np.array([len(one.states) for one in passages])
            states = stacked([one.states for one in passages], int(lengths.max()))
            mask = np.arange(states.shape[1]) < lengths[:, None]
            embeddings = np.stack([one.embedding for one in passages])
        asked = torch.from_numpy(question.hidden)[None]
        given = (torch.from_numpy(part) for part in (states, mask, embeddings @ question.embedding))
        h, _ = self.interaction.read(asked, torch.ones(asked.shape[:2]), *given)
        logits: Tensor = torch.nn.functional.linear(h, self.weight, self.bias)
        return logits.numpy()


@dataclass(frozen=True)
class CachedSource:
    """What backends of a cached student are written from.

    Attributes:
        student: the student in PyTorch.
        folder: the export that is being made.
        read: texts of the development pairs.
        calibration: the pairs that int8 is calibrated on; it may be empty.
        rounding: what 8 bits of the states cost (`cost_of_rounding`), for every row of the parity table.
    """

    student: CachedStudent
    folder: Path
    read: Readings
    calibration: Pairs
    rounding: Mapping[str, Any]

    @cached_property
    def read_for_calibration(self) -> Readings:
        """Texts of the calibration pairs: every way to write int8 is calibrated on them."""
        return self.student.read(self.calibration)

    def probe_numbers(self, probes: Pairs) -> dict[str, Any]:
        """See `Source`: the cosines of the two embeddings, with which an encoder is checked by itself."""
        return {"cosines": self._cosines(probes)}

    def examine(
        self, scorer: Scorer, pairs: Pairs, logits: Logits, probes: NDArray[np.int64]
    ) -> tuple[dict[str, Any], dict[str, Any], str]:
        """See `Source`: states from a store against states computed afresh, and the graphs one by one.

        Another engine's states differ from PyTorch's in the seventh digit, so one number of some 40,000 rounds to the
        other side, and a step of 8 bits of a single number may change a logit by 1e-3. So the graphs are compared
        where nothing rounds differently: the encoders by the logits that PyTorch gives for the states before they are
        rounded, the interactions for the backend's own states; of fp32 on all pairs, else on the probes.
        """
        encoder = scorer.text_encoder
        assert encoder is not None
        few, some = pairs.take(probes), np.arange(len(pairs)) if scorer.backend == SAFE_BACKEND else probes
        compared = pairs.take(some)
        theirs = _read_by(encoder, compared)
        stored = {text: TextStates.of(one.states, one.embedding) for text, one in theirs.passages.items()}
        fresh = Scorer(self.folder, backend=scorer.backend)  # whose cache is empty
        fresh.attach(_Store(encoder.identity, {text_key(text): one for text, one in stored.items()}))
        from_store, given = (one.logits(few.questions, few.passages) for one in (fresh, scorer))
        cosines = [theirs.questions[q].embedding @ stored[p].embedding.astype(np.float32)
                   for q, p in zip(few.questions, few.passages, strict=True)]  # fmt: skip
        apart = _apart(np.array(cosines), np.array(self._cosines(few)))
        before_rounding = (self.student.logits(read, compared, rounded=False) for read in (theirs, self.read))
        numbers = {
            "stored_difference": _apart(from_store, given),
            "reading_difference": _apart(*before_rounding),
            "interaction_difference": _apart(self.student.logits(theirs, compared, rounded=True), logits[some]),
            "cosine_difference": apart,
            "other_states_difference": None,  # measured once all backends are there
            **self.rounding,
        }
        return numbers, {"cosine_limit": 2 * apart + 0.005}, _why_refused(numbers, scorer.backend)

    def from_states_of_others(self, names: Sequence[str], pairs: Pairs) -> dict[str, dict[str, Logits]]:
        """See `Source`: every engine reads the same passages, and every other one scores what it would store."""
        states, found = dict[str, dict[bytes, TextStates]](), dict[str, dict[str, Logits]]()
        keys = list(map(text_key, pairs.passages))
        scorers = {name: Scorer(self.folder, backend=name) for name in names}
        for name, scorer in scorers.items():
            assert scorer.text_encoder is not None
            states[name] = dict(zip(keys, scorer.text_encoder.states(pairs.passages), strict=True))
        for reader, scorer in scorers.items():
            held = dict[bytes, TextStates]()
            scorer.attach(_Store(self.student.identity, held))
            found[reader] = {}
            for writer in names:
                if writer != reader:
                    held.update(states[writer])
                    found[reader][writer] = scorer.logits(pairs.questions, pairs.passages)
        return found

    def _cosines(self, pairs: Pairs) -> list[float]:
        sides = zip(pairs.questions, pairs.passages, strict=True)
        read = self.read
        return [float(read.questions[one].embedding @ read.passages[other].embedding) for one, other in sides]


@dataclass(frozen=True)
class _Store:
    """States in memory, as a store gives them."""

    identity: str
    states: Mapping[bytes, TextStates]

    def get(self, key: bytes) -> TextStates | None:
        return self.states.get(key)


def _read_by(encoder: TextEncoder, pairs: Pairs) -> Readings:
    """What a backend's encoders give of the texts of pairs; of a passage without its hidden states."""
    questions, passages = (list(dict.fromkeys(texts)) for texts in (pairs.questions, pairs.passages))
    asked = map(encoder.question, questions)
    unread = np.empty((0, encoder.format.width), dtype=np.float32)
    return Readings(
        {text: ReadText(one.hidden, unread, one.embedding) for text, one in zip(questions, asked, strict=True)},
        {text: ReadText(unread, *one) for text, one in zip(passages, encoder.unrounded(passages), strict=True)},
    )


def _apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one - other).max())


def _why_refused(numbers: Mapping[str, Any], backend: str) -> str:
    """Why a backend with these numbers is refused; an empty text where it is not."""
    if numbers["stored_difference"] > 0:
        return f"states from a store change a logit by {numbers['stored_difference']:.2e}; they must be the same"
    if backend != SAFE_BACKEND:
        return ""
    parts = {"the same states": "interaction_difference", "states that are not rounded": "reading_difference"}
    for of, name in parts.items():
        if not numbers[name] <= SAME:
            apart = f"for {of} a logit differs by {numbers[name]:.2e} from the PyTorch student"
            return f"{apart}, at most {SAME:.0e} is allowed"
    return ""


def cost_of_rounding(exact: Logits, rounded: Logits, pairs: Pairs, positive: int = 1) -> dict[str, Any]:
    """What 8 bits of the states cost the PyTorch student: the largest change of a logit, and of the metrics.

    Args:
        exact: its logits from exact states, [N, C].
        rounded: those from states of 8 bits, [N, C].
        pairs: the N pairs.
        positive: of two classes the one of the right passages.
    """
    found = measure_parity(exact, rounded, pairs.qids, pairs.labels, positive)
    lost = {
        "int8_states_metric_loss": (found.metric_pytorch, found.metric_export),
        "int8_states_ndcg_loss": (found.ndcg_pytorch, found.ndcg_export),
    }
    return {
        "int8_states_difference": found.max_logit_difference,
        **{name: None if a is None or b is None else a - b for name, (a, b) in lost.items()},
    }


def _fp32(source: CachedSource, path: Path, attempt: int) -> None:
    student = source.student
    write_encoder(student.encoder, student.interaction, source.folder / ENCODER)
    if student.question_encoder is not None:
        write_encoder(student.question_encoder, None, source.folder / QUESTION)
    write_interaction(student.interaction, student.weight, student.bias, path)


def _int8(source: CachedSource, path: Path, attempt: int) -> None:
    """In 8 bits: 0 both graphs; 1 without the encoder's second feed-forward products; 2 the interaction alone.

    An encoder of questions reads some ten tokens for each question, and stays in fp32.
    """
    there = [file for file in (ENCODER, INTERACTION) if (source.folder / file).is_file()]
    if len(there) < 2:
        _fp32(source, source.folder / INTERACTION, 0)
    read, tokenizer = source.read_for_calibration, source.student.tokenizer
    texts = list(read.passages)
    if attempt < 2:
        encoded = tokenizer.encode(texts)
        inputs = (
            dict(zip(INPUTS, pad(encoded.ids, encoded.type_ids, rows, tokenizer.pad_id), strict=True))
            for rows in length_sorted_batches(encoded.lengths, NO_BUDGET, _BATCH)
        )
        quantise(source.folder / ENCODER, source.folder / ENCODER_INT8, inputs, partial(_kept, narrowing=attempt == 1))
    quantise(source.folder / INTERACTION, path, _asked(source, read), partial(_kept, narrowing=False))


def _asked(source: CachedSource, read: Readings) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs of the interaction's graph for the calibration pairs, the passages of a question together."""
    groups: dict[str, list[str]] = {}
    for question, passage in zip(source.calibration.questions, source.calibration.passages, strict=True):
        groups.setdefault(question, []).append(passage)
    for question, passages in groups.items():
        states = [TextStates.of(read.passages[text].states, read.passages[text].embedding) for text in passages]
        values, scales, embeddings = padded(states)
        asking = read.questions[question]
        given = (asking.hidden[None], values, scales, embeddings @ asking.embedding)
        yield dict(zip(INTERACTION_INPUTS, given, strict=True))


def _kept(model: Any, *, narrowing: bool) -> list[str]:
    """The products that stay in float.

    Those without a weight matrix, for which engines have no int8 product, and the last one: the projection, or the
    heads. With `narrowing` those that make vectors narrower, too, which lose most.
    """
    *others, (last, _) = matrix_products(model)
    return [last, *(name for name, shape in others if shape is None or (narrowing and shape[0] > shape[1]))]


ENCODER, ENCODER_INT8 = "onnx/encoder.onnx", "onnx/encoder-int8.onnx"
QUESTION = "onnx/question.onnx"
INTERACTION, INTERACTION_INT8 = "onnx/interaction.onnx", "onnx/interaction-int8.onnx"
SAME = 1e-4  # of a logit: how far fp32 may be from the PyTorch student's where nothing rounds differently
_BATCH = 8  # texts of a batch while ranges are measured
_ROUNDS = replace(CLOSE, batch_difference=EXACT.batch_difference)
"""Of fp32 with what rounds differently; without it `SAME` is required (`CachedSource.examine`)."""
_INT8_ENCODERS = (ENCODER_INT8, ENCODER_INT8, ENCODER)
CACHED_BACKENDS = {
    "onnx-fp32": Backend(INTERACTION, _ROUNDS, _fp32, encoders=(ENCODER,)),
    "openvino-bf16": Backend(INTERACTION, CLOSE, _fp32, encoders=(ENCODER,)),
    "onnx-int8": Backend(INTERACTION_INT8, CLOSE, _int8, len(_INT8_ENCODERS), _INT8_ENCODERS),
    "openvino-int8": Backend(INTERACTION_INT8, CLOSE, _int8, len(_INT8_ENCODERS), _INT8_ENCODERS),
}


def cached_backends(student: CachedStudent) -> dict[str, Backend]:
    """The backends of a cached student, with the graph of its encoder of questions where it has one."""
    if student.question_encoder is None:
        return CACHED_BACKENDS
    return {name: replace(backend, question=QUESTION) for name, backend in CACHED_BACKENDS.items()}
