"""Fine-tuning of a bi-encoder on golden labels: every question is pulled to its right passages.

The loss is `MultipleNegativesRankingLoss` of sentence-transformers: for a question, its right passage against all other
passages of the batch, and against wrong passages of its own. Passages of the batch that are right for the question, or
that are there twice, are left out of the comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tmkd.core.hardware import device
from tmkd.data.pairs import Pairs
from tmkd.models.inputs import Rows
from tmkd.training.gradients import dropout_seed

_FORWARD = 16  # texts of one forward pass: bounds memory
_NONE = -1  # in place of a passage: the question has too few wrong ones


@dataclass(frozen=True)
class Batch:
    """One step: n questions, and the passages that they are compared with.

    Attributes:
        questions: [n] places in `Contrast.questions`.
        passages: [n, 1 + k] places in `Contrast.passages`: the right one first, then wrong ones of the question; -1
            for none.
        right: [n, n (1 + k)] passages, column after column, that are right for the question, but not the one asked for.
        again: [n, n (1 + k)] those that are there before.
    """

    questions: Rows
    passages: NDArray[np.int64]
    right: NDArray[np.bool_]
    again: NDArray[np.bool_]

    @property
    def left_out(self) -> NDArray[np.bool_]:
        """What the loss does not compare, [n, n (1 + k)]."""
        found: NDArray[np.bool_] = self.right | self.again | (self.passages.T.ravel() == _NONE)
        return found


class Contrast:
    """Labelled pairs as questions with right and wrong passages. An example is a question with a right passage.

    Attributes:
        questions: the distinct texts of questions.
        passages: the distinct texts of passages.
        examples: [N, 2] a question, and a passage that is right for it.

    Args:
        pairs: labelled pairs; those without a label are not read.
        positive: the class of the right passages.
        negatives: k, wrong passages of its own for each question in a step.
    """

    def __init__(self, pairs: Pairs, positive: int, negatives: int) -> None:
        self.questions, question = _numbered(pairs.questions)
        self.passages, passage = _numbered(pairs.passages)
        labels = np.asarray(pairs.labels)
        self.negatives = negatives
        self.examples = np.unique(np.stack([question, passage], axis=1)[labels == positive], axis=0)
        self._right = self._key(self.examples[:, 0], self.examples[:, 1])
        wrong = (labels >= 0) & (labels != positive) & ~self._is_right(question, passage)
        self._wrong: dict[int, list[int]] = {}
        for place in np.flatnonzero(wrong):
            self._wrong.setdefault(int(question[place]), []).append(int(passage[place]))

    def _key(self, question: Any, passage: Any) -> NDArray[np.int64]:
        found: NDArray[np.int64] = np.asarray(question) * len(self.passages) + np.asarray(passage)
        return found

    def _is_right(self, question: Any, passage: Any) -> NDArray[np.bool_]:
        keys = self._key(question, passage)  # np.isin would sort all right pairs in every step
        return np.searchsorted(self._right, keys) < np.searchsorted(self._right, keys, side="right")

    def steps(self, batch_size: int, epoch: int, seed: int) -> list[Rows]:
        """The examples of every step of an epoch: a pure function; the sizes differ by one at most."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.examples))
        return np.array_split(order, max(1, -(-len(order) // batch_size)))

    def batch(self, rows: Rows, seed: int) -> Batch:
        """The questions and passages of a step.

        Args:
            rows: its examples.
            seed: of the choice of wrong passages.
        """
        generator = np.random.default_rng(seed)
        questions, passages = self.examples[rows, 0], np.full((len(rows), 1 + self.negatives), _NONE, dtype=np.int64)
        passages[:, 0] = self.examples[rows, 1]
        for place, question in enumerate(questions.tolist()):
            taken = generator.permutation(self._wrong.get(question, []))[: self.negatives]
            passages[place, 1 : 1 + len(taken)] = taken
        flat = passages.T.ravel()
        there = flat != _NONE
        asked = np.eye(len(rows), len(flat), dtype=bool)
        right = self._is_right(questions[:, None], flat[None]) & there & ~asked
        first = np.zeros(len(flat), dtype=bool)
        first[np.unique(flat, return_index=True)[1]] = True
        again = np.broadcast_to(~first & there, right.shape) & ~right & ~asked
        return Batch(questions, passages, right, again)

    def count(self, batch_size: int, epochs: int, seed: int) -> dict[str, int]:
        """What the steps of a training compare.

        Returns:
            `compared`: how many wrong passages, over all questions of all steps; `right` and `again`: how many more
            were left out, because they are right for the question or there twice.
        """
        found = dict.fromkeys(("compared", "right", "again"), 0)
        step = 0
        for epoch in range(epochs):
            for rows in self.steps(batch_size, epoch, seed):
                batch = self.batch(rows, dropout_seed(seed, step))
                found["right"] += int(batch.right.sum())
                found["again"] += int(batch.again.sum())
                found["compared"] += int((~batch.left_out).sum()) - len(rows)
                step += 1
        return found


def _numbered(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    names = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return list(names), np.array([names[text] for text in texts], dtype=np.int64)


class ContrastiveGradients:
    """The gradients of one step (`tmkd.training.gradients.Gradients`).

    Activations are not kept: every forward pass is done again when its gradient is due, so memory is that of one of
    them, whatever the batch (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

    Args:
        model: a `SentenceTransformer`.
        contrast: the examples.
        scale: the similarity is multiplied by it; of a cosine 20 is usual, and 1 of any other similarity.
        bf16: whether to compute in bfloat16 (autocast).
    """

    def __init__(self, model: Any, contrast: Contrast, scale: float, *, bf16: bool) -> None:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        self.model, self.contrast, self.bf16 = model, contrast, bf16
        self._left_out = torch.zeros(0, dtype=torch.bool)
        self.loss = MultipleNegativesRankingLoss(model, scale=scale, similarity_fct=self._masked)

    def _masked(self, questions: Tensor, passages: Tensor) -> Tensor:
        found: Tensor = self.model.similarity(questions, passages)
        return found.masked_fill(self._left_out.to(found.device), -torch.inf)

    def __call__(self, rows: Rows, seed: int) -> float:
        """See `Gradients`."""
        torch.manual_seed(seed)
        batch = self.contrast.batch(rows, seed)
        self._left_out = torch.from_numpy(batch.left_out)
        with torch.autocast(device().type, torch.bfloat16, enabled=self.bf16):
            questions = self._embed("query", self.contrast.questions, batch.questions)
            columns = [self._embed("document", self.contrast.passages, column) for column in batch.passages.T]
        loss = self.loss.compute_loss_from_embeddings([questions, *columns], None)
        loss.backward()
        return float(loss.detach())

    def _embed(self, side: str, texts: list[str], which: Rows) -> Tensor:
        """The embeddings of some texts, [n, d] float32; zeros in place of no text."""
        distinct = np.unique(which[which != _NONE])
        order = distinct[np.argsort([-len(texts[one]) for one in distinct], kind="stable")]
        parts = [
            checkpoint(
                self._forward, side, [texts[one] for one in order[start : start + _FORWARD]], use_reentrant=False
            )
            for start in range(0, len(order), _FORWARD)
        ]
        width = parts[0].shape[1] if parts else int(self.model.get_embedding_dimension())
        rows = torch.cat([*parts, torch.zeros(1, width, device=device())])
        places = {int(one): place for place, one in enumerate(order)}
        return rows[[places.get(int(one), len(order)) for one in which]]

    def _forward(self, side: str, texts: list[str]) -> Tensor:
        from sentence_transformers.util import batch_to_device

        features = self.model.preprocess(texts, prompt=self._prompts[side], task=side)
        embedded: Tensor = self.model(batch_to_device(features, device()), task=side)["sentence_embedding"]
        return embedded.float()

    @functools.cached_property
    def _prompts(self) -> dict[str, str | None]:
        """The prompts that `encode_query` and `encode_document` of the model take."""
        own = self.model.prompts
        names = {"query": ("query",), "document": ("document", "passage", "corpus")}
        usual = own.get(self.model.default_prompt_name) if self.model.default_prompt_name else None
        return {side: next((own[name] for name in tried if name in own), usual) for side, tried in names.items()}
