"""The sentences of a passage, and which of them answers a question best by the passage's stored states.

A cached student's score of a sentence alone needs the sentence's states, and reading every sentence of the shown
passages takes longer than all else that a question needs. The stored states of the passage hold those of each
sentence's tokens already, so they are compared: for each token of the question the largest cosine with a token of the
sentence, and their mean (Khattab and Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late
Interaction over BERT", SIGIR 2020). `docs/answering.md` has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmkd.data.documents.sentences import sentence_spans
from tmkd.data.documents.words import word_count
from tmkd.inference.qa.retrieval import Retriever
from tmkd.inference.qa.windows import Span
from tmkd.inference.text_encoder import TextEncoder
from tmkd.models.text_states import dequantised

_LEAST_WORDS = 3  # shorter sentences ("Yes.") are not marked: they say nothing without the ones around them
_TINY = 1e-12  # of a vector's length, below which it has no direction


class StateMarker:
    """Finds the sentence whose states are nearest to a question's. Threads may share it.

    Args:
        encoder: Reads the question, and passages that have no stored states.
        retriever: Has the store.
    """

    def __init__(self, encoder: TextEncoder, retriever: Retriever) -> None:
        self._encoder, self._retriever = encoder, retriever

    def asked(self, question: str) -> NDArray[np.float32]:
        """A question as `best` compares it: the directions of its tokens' states, [Tq, k]."""
        return _directions(self._encoder.question_states(question))

    def best(self, asked: NDArray[np.float32], passage: str, window: Span | None, spans: Sequence[Span]) -> Span:
        """The best of some sentences; of equal ones the first.

        Args:
            asked: The question, as `asked` gives it.
            passage: The passage.
            window: The part of it that was scored best; None where it was read whole.
            spans: Character spans of sentences in `passage`, at least one, as `sentences` gives them.
        """
        first, last = window or (0, len(passage))
        text = passage[first:last]
        states = self._retriever.stored(text) or self._encoder.states([text])[0]
        cosines = asked @ _directions(dequantised(states.values, states.scales)).T  # [Tq, Tp]
        tokens = np.array(self._encoder.tokenizer.spans(text)[: cosines.shape[1]]).reshape(-1, 2)
        cosines = cosines[:, : len(tokens)]
        nearness = []
        for start, stop in ((start - first, stop - first) for start, stop in spans):
            inside = (tokens[:, 0] >= start) & (tokens[:, 1] <= stop) & (tokens[:, 0] < tokens[:, 1])
            nearness.append(float(cosines[:, inside].max(axis=1).mean()) if inside.any() else -np.inf)
        return spans[int(np.argmax(nearness))]


def _directions(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the state of each token to length 1, [T, k]."""
    found: NDArray[np.float32] = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), _TINY)
    return found


def sentences(text: str, window: Span | None) -> list[Span]:
    """Character spans of the sentences to choose from; there is always one.

    They are those of the passage's best window; a line of code counts as a sentence. Very short ones are left out
    unless there are no others.

    Args:
        text: The passage.
        window: The part of it that was scored best; None where it was read whole.
    """
    spans = []
    start = 0
    for line in text.split("\n"):
        spans += [(start + first, start + last) for first, last in sentence_spans(line)]
        start += len(line) + 1
    if window is not None:
        spans = [span for span in spans if span[0] < window[1] and window[0] < span[1]]
        wide = window[1] - window[0]  # of a "sentence" longer than the window, only the part in it is marked
        spans = [(max(a, window[0]), min(b, window[1])) if b - a > wide else (a, b) for a, b in spans]
    telling = [(first, last) for first, last in spans if word_count(text[first:last]) >= _LEAST_WORDS]
    return telling or spans or [window or (0, len(text))]
