"""The encoder of an exported cached student: the states that are stored of passages, and a question's hidden states.

Every text runs alone, padded to the next multiple of 8 tokens, as many texts at once as there are threads. So the
states of a text are the same, to the last bit, whatever other texts are read with it: states from an index, from a
cache and computed afresh give the same scores. Batches of several texts would take a fifth less time.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tmkd.core.backends import SAFE_BACKEND
from tmkd.core.cpu import usable_cores
from tmkd.core.errors import ExportError, first_line
from tmkd.inference.engines import Arrays, Graph, installed, open_graph, token_batch
from tmkd.inference.manifest import Manifest, StatesFormat, read_cosines, read_manifest
from tmkd.inference.state_card import backends_of
from tmkd.inference.threads import Threads
from tmkd.models.batching import WIDTH_STEP, pad, padded_width
from tmkd.models.text_states import TextStates, dequantised
from tmkd.models.text_tokenizer import QUESTION_FOLDER, TextTokenizer
from tmkd.models.tokenizer import Encoded

logger = logging.getLogger(__name__)

_QUESTIONS = 64  # that are remembered: as many as a server answers at once
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("hidden", "states", "text_embedding")  # torch.onnx calls a value of its own `embedding`
"""Of the encoder's graph, as `tmkd.export.cached_graphs` writes it."""
QUESTION_OUTPUTS = ("hidden", "text_embedding")
"""Of the graph that reads questions, where a student has an encoder of their own for them."""


class ReadQuestion(NamedTuple):
    """A question as the interaction needs it.

    Attributes:
        hidden: Last hidden states of its tokens, [Tq, d] float32.
        embedding: Their mean, scaled to length 1, [d] float32.
        states: What would be stored of them if the question were a passage, [Tq, k] float32, not rounded; None where
            questions have an encoder of their own, whose states are not comparable.
    """

    hidden: NDArray[np.float32]
    embedding: NDArray[np.float32]
    states: NDArray[np.float32] | None


class TextEncoder:
    """Reads single texts with an exported cached student. Threads may share it.

    `TextEncoder.open` opens one by itself.

    Args:
        manifest: Of the export.
        backend: One of its backends; `load` opens it.
        threads: What runs the texts.

    Attributes:
        folder: The export.
        max_length: Tokens of a text that are read; longer ones are cut.
        tokenizer: Of the export.
        question_tokenizer: Of questions: the same, unless they have an encoder of their own.
        format: What is stored of a text.
        backend: As given.

    Raises:
        ExportError: The export is of a student that reads question and passage together, or the graph is missing or
            damaged.
        EncoderError: The tokenizer is missing or damaged.

    Example:
        >>> encoder = TextEncoder.open("workspace/runs/demo/export")  # doctest: +SKIP
        >>> encoder.states(["Use the mount command."])[0].values.shape  # doctest: +SKIP
        (7, 96)
    """

    def __init__(self, manifest: Manifest, backend: str, threads: Threads) -> None:
        self.folder, self.max_length, self.backend = manifest.folder, manifest.max_length, backend
        self.format = _format_of(manifest)
        manifest.require_tokenizers()
        self.tokenizer = TextTokenizer(self.folder, self.max_length)
        self.question_tokenizer = self.tokenizer
        self._question_path: Path | None = None
        if self.format.question_encoder:
            self.question_tokenizer = TextTokenizer(self.folder / QUESTION_FOLDER, self.max_length)
            self._question_path = manifest.checked_file(backend, "question")
        self._path, self._threads = manifest.checked_file(backend, "encoder"), threads
        self._asked: OrderedDict[bytes, ReadQuestion] = OrderedDict()  # by their tokens
        self._lock = threading.Lock()

    def load(self) -> None:
        """Open the graph, and that of questions.

        Raises:
            ExportError: It cannot be opened, or gives something else than tmkd.json says.
            MissingExtraError: The backend needs a package that is not installed.
        """

        def opened(path: Path, outputs: tuple[str, ...]) -> Graph:
            return open_graph(self.backend, path, self._threads.count, outputs, token_batch(1, WIDTH_STEP))

        size, width = self.format.size, self.format.width
        hidden = (1, WIDTH_STEP, width)
        self._graph = opened(self._path, OUTPUTS)
        _require_shapes(self._graph, self._path, [hidden, (1, WIDTH_STEP, size), (1, width)])
        self._question_graph: Graph | None = None
        if self._question_path is not None:
            self._question_graph = opened(self._question_path, QUESTION_OUTPUTS)
            _require_shapes(self._question_graph, self._question_path, [hidden, (1, width)])

    @classmethod
    def open(
        cls, export: str | Path, *, backend: str = "auto", threads: int | None = None, index: str | Path | None = None
    ) -> TextEncoder:
        """Open the encoder of an export by itself, for indexing.

        Args:
            export: The export's folder.
            backend: `auto` for the fastest one that can run here and gives the student's embeddings, or a name.
            threads: Texts that are read at once; all usable cores unless given.
            index: An index whose stored states it is to continue: `auto` is then what computed these, if it can run.

        Raises:
            ValueError: `threads` is below 1.
            ExportError: As for the class and `load`; or the backend that `backend` names gives other numbers on this
                machine.
            MissingExtraError: As `load`.
            EncoderError: As for the class.
        """
        manifest, pool = read_manifest(export), Threads(usable_cores() if threads is None else threads)
        identity, name = _format_of(manifest).identity, manifest.choose(backend)
        if backend == "auto" and index is not None:
            name = _as_stored(manifest, name, Path(index), identity)
        encoder = cls(manifest, name, pool)
        try:
            encoder.load()
            encoder._require_cosines(manifest)
        except ExportError as error:
            if backend != "auto" or encoder.backend == SAFE_BACKEND or not manifest.has(SAFE_BACKEND):
                raise
            logger.warning(f"{error}; reading texts with {SAFE_BACKEND}, which is slower")
            encoder = cls(manifest, SAFE_BACKEND, pool)
            encoder.load()
        return encoder

    @property
    def identity(self) -> str:
        """A fingerprint of everything that decides the states: encoder, projection, tokenizer, length."""
        return self.format.identity

    def states(self, texts: Sequence[str]) -> list[TextStates]:
        """What is stored of each text, N of them.

        Args:
            texts: N texts; an empty one has the states of the special tokens.

        Raises:
            DataError: A text is not a string of valid characters.
            ExportError: This process was forked from one that had opened OpenVINO, or a state is not finite.
        """
        return self.counted_states(texts)[0]

    def counted_states(
        self, texts: Sequence[str], name: Callable[[int], str] = "text {}".format
    ) -> tuple[list[TextStates], NDArray[np.int64]]:
        """As `states`, and how many tokens each text had before it was cut, [N] int64.

        Args:
            texts: N texts.
            name: Gives the name of a text in errors, from its index.
        """
        encoded, tokens = self.tokenizer.encode_counted(texts, name)
        first: dict[bytes, int] = {}  # the first text of the same tokens
        same = [first.setdefault(ids.tobytes(), row) for row, ids in enumerate(encoded.ids)]
        rows = sorted(first.values(), key=lambda row: -len(encoded.ids[row]))
        found = dict(zip(rows, self._threads.map(lambda row: self._stored(encoded, row), rows), strict=True))
        return [found[row] for row in same], tokens

    def unrounded(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """The states [T, k] and the embedding [d] of each text before they are rounded, to compare encoders.

        Args:
            texts: N texts.

        Raises:
            DataError: As `states`.
        """
        encoded = self.tokenizer.encode(texts)
        return self._threads.map(lambda row: self._run(encoded, row)[1:], range(len(texts)))

    def question(self, text: str) -> ReadQuestion:
        """The hidden states of a question's tokens, and its embedding.

        Args:
            text: The question.

        Raises:
            DataError: It is not a string of valid characters.
        """
        return self.read(self.question_tokenizer.encode([text]), 0)

    def cuts(self, question: str) -> bool:
        """Whether a question has more tokens than are read of it.

        Args:
            question: The question.

        Raises:
            DataError: As `question`.
        """
        _, tokens = self.question_tokenizer.encode_counted([question])
        return bool(tokens[0] > self.max_length)

    def question_states(self, text: str) -> NDArray[np.float32]:
        """The states of a question as the passages' encoder reads it, [Tq, k] float32, to compare with passages'.

        Args:
            text: The question.

        Raises:
            DataError: As `question`.
        """
        states = self.question(text).states
        if states is None:
            read = self.states([text])[0]
            states = dequantised(read.values, read.scales)
        return states

    def read(self, encoded: Encoded, row: int) -> ReadQuestion:
        """As `question`, of a text that `question_tokenizer` read.

        Retrieval, ranking and marking ask for the same one in turn.
        """
        key = _key(encoded, row)
        with self._lock:
            found = self._asked.get(key)
            if found is not None:
                self._asked.move_to_end(key)
                return found
        found = self._read_question(encoded, row)
        self._keep(key, found)
        return found

    def remember(self, text: str, read: ReadQuestion) -> None:
        """Take over a question that was read elsewhere with the same backend of the same export, so not to read it.

        Args:
            text: The question.
            read: As `question` gave it there.

        Raises:
            DataError: As `question`.
        """
        self._keep(_key(self.question_tokenizer.encode([text]), 0), read)

    def _keep(self, key: bytes, read: ReadQuestion) -> None:
        with self._lock:
            self._asked[key] = read
            self._asked.move_to_end(key)
            if len(self._asked) > _QUESTIONS:
                self._asked.popitem(last=False)

    def _read_question(self, encoded: Encoded, row: int) -> ReadQuestion:
        if self._question_graph is None:
            hidden, states, embedding = self._run(encoded, row)
            return ReadQuestion(hidden, embedding, states)
        hiddens, embeddings = self._question_graph(_inputs(encoded, row, self.question_tokenizer.pad_id))
        return ReadQuestion(hiddens[0, : len(encoded.ids[row])], embeddings[0], None)

    def warm_up(self, still: Callable[[], bool]) -> None:
        """Read one text of every width, so that no later call waits while the engine prepares one.

        Args:
            still: Whether there is time left.
        """
        widths = range(WIDTH_STEP, padded_width(self.max_length) + 1, WIDTH_STEP)
        for graph in filter(None, (self._graph, self._question_graph)):
            list(self._threads.map(lambda width: graph(token_batch(1, width)) if still() else None, widths))  # noqa: B023

    def _stored(self, encoded: Encoded, row: int) -> TextStates:
        _, states, embedding = self._run(encoded, row)
        if not (np.isfinite(states).all() and np.isfinite(embedding).all()):
            raise ExportError(f"{self._path} gives states that are not finite; export again")
        return TextStates.of(states, embedding)

    def _run(self, encoded: Encoded, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Hidden states [T, d], states [T, k] and embedding [d] of one text."""
        hidden, states, embedding = self._graph(_inputs(encoded, row, self.tokenizer.pad_id))
        count = len(encoded.ids[row])
        return hidden[0, :count], states[0, :count], embedding[0]

    def _require_cosines(self, manifest: Manifest) -> None:
        """Check, on a few of the export's probes, that this machine computes the student's embeddings."""
        limit = manifest.backends[self.backend].get("cosine_limit")
        if limit is None or self.backend == SAFE_BACKEND:
            return
        questions, passages, wanted = read_cosines(self.folder)
        asked = {text: self.question(text).embedding for text in dict.fromkeys(questions)}
        read = [one.embedding.astype(np.float32) for one in self.states(passages)]
        found = [asked[question] @ embedding for question, embedding in zip(questions, read, strict=True)]
        difference = float(np.abs(np.subtract(found, wanted)).max())
        if not difference <= float(limit):
            raise ExportError(
                f"{self.backend} does not give this student's embeddings on this machine (cosines are off by "
                f"{difference:.4f} on the export's probes, at most {float(limit):.4f} is allowed)"
            )


def _key(encoded: Encoded, row: int) -> bytes:
    """The tokens of a text."""
    return encoded.ids[row].tobytes() + encoded.type_ids[row].tobytes()


def _inputs(encoded: Encoded, row: int, pad_id: int) -> Arrays:
    """One text as an encoder's graph reads it."""
    return dict(zip(INPUTS, pad(encoded.ids, encoded.type_ids, [row], pad_id), strict=True))


def _require_shapes(graph: Graph, path: Path, wanted: list[tuple[int, ...]]) -> None:
    """Check that a graph gives what tmkd.json says for a text of `WIDTH_STEP` tokens."""
    try:
        found = [part.shape for part in graph(token_batch(1, WIDTH_STEP))]
    except Exception as error:  # the engines raise classes of their own
        raise ExportError(f"{path} does not run ({first_line(error)}); export again") from error
    if found != wanted:
        given, said = (f"states of {shapes[-2][-1]} and embeddings of {shapes[-1][-1]}" for shapes in (found, wanted))
        raise ExportError(f"{path} gives {given} numbers, tmkd.json says {said}; export again")


def _as_stored(manifest: Manifest, fastest: str, index: Path, identity: str) -> str:
    """The backend that computed the states of an index, if it can run here; else the fastest one."""
    stored = backends_of(index, identity)
    usable = [name for name in stored if manifest.has(name) and installed(name)]
    if not usable or fastest in usable:
        return fastest
    logger.info(f"reading texts with {usable[0]}, which computed the states of {index}, in place of {fastest}")
    return usable[0]


def _format_of(manifest: Manifest) -> StatesFormat:
    if manifest.states is None:
        raise ExportError(
            f"{manifest.folder} is a student that reads question and passage together: it has no states that could be "
            "stored; give the export of a student of the kind `cached`"
        )
    return manifest.states
