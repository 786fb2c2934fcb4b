"""Score pairs with an exported student that reads every passage once.

Pairs are grouped by question, and each question is encoded once. The states of a passage come from a store that an
index holds, else from a bounded cache, else they are computed. The question then attends to the states of several
passages in one call of the interaction's graph; as many calls run at once as there are threads.

States depend on nothing but the text and the backend (`tmkd.inference.text_encoder`). Where one backend computes them
all, it makes no difference to a score where they come from. Passages of the same states are scored once for a question
of a window, so that equal texts have equal scores there.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import ExportError
from tmkd.inference.engines import Arrays, Graph, open_graph
from tmkd.inference.manifest import Manifest
from tmkd.inference.scored_pairs import OnBatch, ScoredPairs, logits_of
from tmkd.inference.state_card import Card
from tmkd.inference.text_encoder import ReadQuestion, TextEncoder
from tmkd.inference.threads import Threads
from tmkd.models.batching import WIDTH_STEP
from tmkd.models.text_states import TextStates, padded, text_key
from tmkd.models.tokenizer import require_text

logger = logging.getLogger(__name__)

CACHE_BYTES = 256 << 20
WINDOW = 4096  # pairs that are scored at once: bounds the memory that a long file takes
MOST = 64  # passages of one call of the interaction: its activations stay in the CPU's cache
_FEWEST = 8  # passages that are worth a call of their own, where another thread is free
_KEPT = 800  # kernels of each kind that all threads keep: questions and passages have thousands of shapes together
_LEAST_KEPT, _MOST_KEPT = 100, 400  # that one thread keeps
_LEAST = 2  # tokens of a question: after a call with one, OpenVINO 2026.4 computes other questions wrongly
_OVERHEAD = 400  # bytes of the objects around an entry of the cache
_COUNTED = 4096  # texts whose number of tokens is remembered


class StateSource(Protocol):
    """A store of states, such as `tmkd.inference.state_store.StateStore`.

    Attributes:
        identity: Of what computed the states.
    """

    @property
    def identity(self) -> str | None: ...  # noqa: D102

    def get(self, key: bytes) -> TextStates | None:
        """The states of a text by its key (`tmkd.models.text_states.text_key`); None where there are none."""


@dataclass
class StateCounts:
    """Where the states of passages came from, counted once for each passage of a call.

    Attributes:
        stored: From a store.
        cached: From the cache.
        computed: They were computed.
    """

    stored: int = 0
    cached: int = 0
    computed: int = 0


class StateCache:
    """States of the texts that were used last, up to a number of bytes. Threads may share it.

    Args:
        room: The number of bytes; 0 keeps nothing.

    Attributes:
        bytes: What the entries take, never more than `room`.
    """

    def __init__(self, room: int) -> None:
        self.room, self.bytes = room, 0
        self._entries: OrderedDict[bytes, TextStates] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> TextStates | None:
        """The states of a text, which then counts as used last."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: bytes, states: TextStates) -> None:
        """Keep the states of a text. Where there is no room, those that were used longest ago are removed."""
        size = states.nbytes + _OVERHEAD
        with self._lock:
            if key in self._entries or size > self.room:
                return
            while self.bytes + size > self.room:
                self.bytes -= self._entries.popitem(last=False)[1].nbytes + _OVERHEAD
            self._entries[key] = states
            self.bytes += size


class _Part(NamedTuple):
    """Passages of one question that are scored in one call: their states and the pairs that each answers for."""

    question: int
    states: list[TextStates]
    rows: list[list[int]]


@dataclass
class _Question:
    """A question of a call: its states, and its distinct passages with the pairs that have them."""

    row: int
    passages: dict[bytes, list[tuple[TextStates, list[int]]]] = field(default_factory=dict)

    def add(self, states: TextStates, row: int) -> None:
        """Add a pair. Passages of the same states, whatever their texts are, count as one."""
        same = self.passages.setdefault(states.scales.tobytes() + states.embedding.tobytes(), [])
        for known, rows in same:
            if known is states or np.array_equal(known.values, states.values):
                rows.append(row)
                return
        same.append((states, [row]))


class CachedReader:
    """An exported cached student, with one of its backends.

    Args:
        manifest: Of the export.
        backend: One of its backends.
        threads: What runs the micro-batches.
        cache_bytes: Most bytes of the cache.

    Attributes:
        encoder: Reads single texts.
        path: The interaction's graph.
        cache: States of the passages that were used last.
        counts: Where states came from.

    Raises:
        ExportError: A graph is missing or damaged.
        EncoderError: The tokenizer is missing or damaged.
    """

    def __init__(self, manifest: Manifest, backend: str, threads: Threads, cache_bytes: int) -> None:
        self._manifest, self._backend, self._threads = manifest, backend, threads
        self.encoder = TextEncoder(manifest, backend, threads)
        self.path: Path = manifest.checked_file(backend, "interaction")
        self.cache, self.counts = StateCache(cache_bytes), StateCounts()
        self._stores: tuple[StateSource, ...] = ()
        self._lock = threading.Lock()
        self._tokens_of = lru_cache(_COUNTED)(self._count_tokens)

    def load(self) -> None:
        """Open the graphs.

        Raises:
            ExportError: One of them cannot be opened.
            MissingExtraError: The backend needs a package that is not installed.
        """
        self.encoder.load()
        shape = self.encoder.format
        one = TextStates(np.ones((1, shape.size), np.int8), np.ones(1, np.float16), np.ones(shape.width, np.float16))
        asked = self._blank_question(_LEAST)
        threads = self._threads.count
        kept = min(_MOST_KEPT, max(_LEAST_KEPT, _KEPT // threads))
        self._graph: Graph = open_graph(
            self._backend, self.path, threads, ["logits"], self._inputs(asked, [one]), kept=kept
        )

    def attach(self, store: StateSource) -> None:
        """Look passages up in a store from now on, before the cache.

        Args:
            store: Has the states of some texts.

        Raises:
            ExportError: Its states were computed by something else than this student.
        """
        if store.identity != self.encoder.identity:
            raise ExportError(
                f"{store!r} holds states of {store.identity}, and {self._manifest.folder} needs those of "
                f"{self.encoder.identity}: another model, tokenizer or length. Compute them again with "
                f"`tmkd index ... --model {self._manifest.folder}`"
            )
        self._stores = (*self._stores, store)
        if problem := of_other_backend(store, self._backend):
            logger.warning(problem)

    def score(
        self, questions: Sequence[str], passages: Sequence[str], on_batch: OnBatch | None, batch_size: int | None
    ) -> ScoredPairs:
        """See `Scorer.score_pairs`; the arguments are checked."""
        logits = np.empty((len(questions), self._manifest.classes), dtype=np.float32)
        tokens = np.empty(len(questions), dtype=np.int64)
        for start in range(0, len(questions), WINDOW):
            stop = min(start + WINDOW, len(questions))
            read, groups, tokens[start:stop] = self._grouped(questions[start:stop], passages[start:stop], start)
            parts = self._parts(groups, batch_size)
            found = self._threads.map(lambda part: self._run(read[part.question], part.states), parts)  # noqa: B023
            for part, of_part in zip(parts, found, strict=True):
                for rows, one in zip(part.rows, of_part, strict=True):
                    logits[[start + row for row in rows]] = one
                if on_batch is not None:
                    on_batch(sum(map(len, part.rows)))
        return ScoredPairs(logits, tokens > self.encoder.max_length, tokens)

    def warm_up(self, still: Callable[[], bool]) -> None:
        """Run the graphs in the most frequent shapes.

        Args:
            still: Whether there is time left.
        """
        self.encoder.warm_up(still)
        size, width = self.encoder.format.size, self.encoder.format.width
        embedding = np.zeros(width, np.float32)

        def run(shape: tuple[int, int]) -> None:
            asking, read = shape
            if still():
                one = TextStates(
                    np.ones((read, size), np.int8), np.ones(read, np.float16), embedding.astype(np.float16)
                )
                self._run(self._blank_question(asking), [one] * MOST)

        widest = min(128, self.encoder.max_length)
        list(self._threads.map(run, [(t, p) for t in range(5, 25) for p in range(WIDTH_STEP, widest + 1, WIDTH_STEP)]))

    def _blank_question(self, tokens: int) -> ReadQuestion:
        """A question of so many tokens, to prepare shapes with."""
        shape = self.encoder.format
        sizes = ((tokens, shape.width), (shape.width,), (tokens, shape.size))
        return ReadQuestion(*(np.ones(size, np.float32) for size in sizes))

    def _grouped(
        self, questions: Sequence[str], passages: Sequence[str], start: int
    ) -> tuple[list[ReadQuestion], list[_Question], NDArray[np.int64]]:
        """Encode questions, find the passages' states, and count the tokens of each pair.

        Args:
            questions: N texts.
            passages: N texts.
            start: The number of the first pair, for errors.

        Returns:
            The distinct questions; the same with their passages; and for each pair the tokens of its longer text.
        """
        texts = _distinct(questions)
        names = [f"pair {start + row}: the question" for row in texts.values()]
        for name, text in zip(names, texts, strict=True):
            require_text(name, text)
        encoded, asked_tokens = self.encoder.question_tokenizer.encode_counted(list(texts), names.__getitem__)
        first: dict[bytes, int] = {}  # questions of the same tokens are one
        place = {
            text: first.setdefault(ids.tobytes(), len(first)) for text, ids in zip(texts, encoded.ids, strict=True)
        }
        rows = dict.fromkeys(range(len(first)), 0)
        rows.update((place[text], row) for row, text in enumerate(texts))
        read = list(self._threads.map(lambda row: self.encoder.read(encoded, row), rows.values()))
        states, read_tokens = self._states(passages, start)
        of_question = dict(zip(texts, asked_tokens.tolist(), strict=True))
        groups = [_Question(number) for number in range(len(read))]
        tokens = np.empty(len(questions), dtype=np.int64)
        for row, (question, passage) in enumerate(zip(questions, passages, strict=True)):
            groups[place[question]].add(states[passage], row)
            tokens[row] = max(of_question[question], read_tokens[passage])
        return read, groups, tokens

    def _states(self, passages: Sequence[str], start: int) -> tuple[dict[str, TextStates], dict[str, int]]:
        """The states of passages by their text, and how many tokens each had before it was cut."""
        found, missing = dict[str, TextStates](), dict[str, tuple[bytes, str]]()
        stored = cached = 0
        for text, row in _distinct(passages).items():
            if not isinstance(text, str):
                require_text(f"pair {start + row}: the passage", text)
            key = text_key(text)
            states = next((one for store in self._stores if (one := store.get(key)) is not None), None)
            stored += states is not None
            if states is None:
                states = self.cache.get(key)
                cached += states is not None
            if states is None:
                missing[text] = key, f"pair {start + row}: the passage"
            else:
                found[text] = states
        most = self.encoder.max_length
        tokens = {text: len(one.scales) for text, one in found.items()}
        tokens |= {text: self._tokens_of(text) for text, count in tokens.items() if count >= most}
        with self._lock:
            self.counts.stored += stored
            self.counts.cached += cached
            self.counts.computed += len(missing)
        if missing:
            names = [name for _, name in missing.values()]
            computed, counted = self.encoder.counted_states(list(missing), names.__getitem__)
            for (text, (key, _)), one in zip(missing.items(), computed, strict=True):
                found[text] = one
                self.cache.put(key, one)
            tokens |= zip(missing, counted.tolist(), strict=True)
        return found, tokens

    def _count_tokens(self, text: str) -> int:
        return int(self.encoder.tokenizer.encode_counted([text])[1][0])

    def _parts(self, groups: Sequence[_Question], batch_size: int | None) -> list[_Part]:
        """Cut the passages of each question into calls of similar length, of as many passages each, longest first."""
        free = -(-self._threads.count // len(groups)) if groups else 1  # threads for each question
        parts: list[_Part] = []
        for group in groups:
            passages = [one for same in group.passages.values() for one in same]
            passages.sort(key=lambda one: -len(one[0].scales))
            if batch_size is None:
                wanted = -(-len(passages) // MOST)
                wanted = max(min(free, len(passages) // _FEWEST), -(-wanted // free) * free if wanted > 1 else 1)
                size = -(-len(passages) // wanted)
            else:
                size = batch_size
            for begin in range(0, len(passages), size):
                some = passages[begin : begin + size]
                parts.append(_Part(group.row, [states for states, _ in some], [rows for _, rows in some]))
        return parts

    def _run(self, question: ReadQuestion, states: Sequence[TextStates]) -> NDArray[np.float32]:
        """The logits of some passages of a question, [n, C]."""
        (found,) = self._graph(self._inputs(question, states))
        return logits_of(self._manifest, found, len(states))

    @staticmethod
    def _inputs(question: ReadQuestion, states: Sequence[TextStates]) -> Arrays:
        values, scales, embeddings = padded(states, WIDTH_STEP)
        hidden = question.hidden if len(question.hidden) >= _LEAST else question.hidden.repeat(_LEAST, axis=0)
        return {
            "question": hidden[None],  # attention to a token that comes twice gives what attention to one gives
            "values": values,
            "scales": scales,
            "cosine": (embeddings @ question.embedding).astype(np.float32),
        }


def of_other_backend(store: StateSource, backend: str) -> str:
    """What to say of a store of states that another backend computed than the one that scores; empty for nothing.

    Args:
        store: The store.
        backend: What scores, and computes the states that the store lacks.
    """
    card: Card | None = getattr(store, "card", None)  # a store that is no index's says nothing about it
    others = [] if card is None else [name for name in card.backends if name != backend]
    if not others:
        return ""
    use = f"use --backend {others[0]}, or " if card is not None and len(card.backends) == 1 else ""
    return (
        f"{store!r} holds states that {' and '.join(others)} computed, and {backend} scores and computes all others: "
        "the score of a text depends on where its states come from, by several tenths if one of them computes in int8. "
        f"To have them alike, {use}remove the index's folder `states` and compute all with --backend {backend}"
    )


def _distinct(texts: Sequence[str]) -> dict[str, int]:
    """Each text and the first index at which it stands."""
    found: dict[str, int] = {}
    for row, text in enumerate(texts):
        found.setdefault(text, row)
    return found
