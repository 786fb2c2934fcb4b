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


def token_products(
    hidden: NDArray[np.float32], own: NDArray[np.bool_], questions: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Return the bi-encoder cosine of a passage with questions, and their products with every token of the passage.

    With q a question's embedding and s_t the last hidden state of the passage's token t, the cosine is the mean over
    t of <q, s_t>, divided by the length of the mean of the s_t.

    Args:
        hidden: the last hidden states of the passage's tokens, [tokens, d].
        own: which tokens are not special ones, [tokens].
        questions: embeddings of n questions, [n, d].

    Returns:
        The cosines, [n]; and for each question the products <q, s_t> in the order of the tokens, [n, T], special
        tokens left out.
    """
    return questions @ unit_mean(hidden), (questions @ hidden[own].T).astype(np.float16)
