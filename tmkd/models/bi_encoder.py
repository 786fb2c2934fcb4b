"""The bi-encoder cosine: the cosine of the question's and the passage's embedding, with nothing trained.

An embedding is the mean over the tokens' last hidden states (Reimers and Gurevych 2019, "Sentence-BERT", mean pooling).
A bi-encoder solves much of the task before it sees a label, so a teacher that is not better than it has not learned the
task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.console import progress
from tmkd.models.student import SHARPNESS
from tmkd.models.text_reader import TextReader, unit_mean


def cosine_logits(
    folder: Path, questions: Sequence[str], passages: Sequence[str], max_length: int, precision: str = "auto"
) -> NDArray[np.float32]:
    """Return the bi-encoder cosine of pairs as logits of two classes.

    Args:
        folder: an encoder, as `find_encoder` returns it.
        questions: N texts.
        passages: N texts.
        max_length: each text is cut to so many tokens.
        precision: of the encoder's arithmetic, as in a recipe.

    Returns:
        [N, 2] float32: 0, and SHARPNESS (cosine - 1/2). Pairs rank by them as they do by the cosine.
    """
    texts = list(dict.fromkeys([*questions, *passages]))
    place = {text: row for row, text in enumerate(texts)}
    found = embed(folder, texts, max_length, precision)
    of_questions = found[[place[text] for text in questions]]
    of_passages = found[[place[text] for text in passages]]
    cosine = (of_questions * of_passages).sum(axis=1)
    return np.stack([np.zeros_like(cosine), SHARPNESS * (cosine - 0.5)], axis=1)


def embed(folder: Path, texts: Sequence[str], max_length: int, precision: str = "auto") -> NDArray[np.float32]:
    """Return the embeddings of texts: the mean over the tokens' last hidden states, scaled to length 1.

    Args:
        folder: an encoder.
        texts: N texts.
        max_length: each text is cut to so many tokens.
        precision: of the encoder's arithmetic, as in a recipe.

    Returns:
        [N, d] float32; [0, 0] for no texts.
    """
    return embeddings(TextReader(folder, max_length, precision), texts)


def embeddings(reader: TextReader, texts: Sequence[str]) -> NDArray[np.float32]:
    """As `embed`, with an encoder that is open already."""
    found: NDArray[np.float32] | None = None
    with progress("embed", len(texts), "texts") as bar:
        for row, hidden, _ in reader.read(texts):
            found = np.empty((len(texts), hidden.shape[1]), dtype=np.float32) if found is None else found
            found[row] = unit_mean(hidden)
            bar.advance(1)
    return np.empty((0, 0), dtype=np.float32) if found is None else found


def cosine_by_token(
    folder: Path, questions: Sequence[str], passages: Sequence[str], max_length: int, precision: str = "auto"
) -> tuple[NDArray[np.float32], list[NDArray[np.float16]]]:
    """Return the bi-encoder cosine of every pair, and the product of the question with every token of the passage.

    With q the question's embedding and s_t the last hidden state of the passage's token t, the cosine is the mean over
    t of <q, s_t>, divided by the length of the mean of the s_t.

    Args:
        folder: an encoder.
        questions: N texts.
        passages: N texts.
        max_length: each text is cut to so many tokens.
        precision: of the encoder's arithmetic, as in a recipe.

    Returns:
        The cosines, [N] float32, and for each pair the products <q, s_t> of the passage's tokens in order, [tokens]
        float16, special tokens left out.
    """
    numbers = {text: row for row, text in enumerate(dict.fromkeys(questions))}
    asked = embed(folder, list(numbers), max_length, precision)
    pairs_of: dict[str, list[int]] = {}
    for pair, text in enumerate(passages):
        pairs_of.setdefault(text, []).append(pair)
    pairs_by_text, texts = list(pairs_of.values()), list(pairs_of)
    cosine = np.empty(len(passages), dtype=np.float32)
    by_token = [np.empty(0, dtype=np.float16)] * len(passages)
    with progress("embed", len(texts), "texts") as bar:
        for row, hidden, own in TextReader(folder, max_length, precision).read(texts):
            mean = unit_mean(hidden)
            for pair in pairs_by_text[row]:
                question = asked[numbers[questions[pair]]]
                cosine[pair] = mean @ question
                by_token[pair] = (hidden[own] @ question).astype(np.float16)
            bar.advance(1)
    return cosine, by_token
