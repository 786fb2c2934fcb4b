"""A teacher that is a cross-encoder: a sequence-classification checkpoint, fine-tuned here or elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import EncoderError, named
from tmkd.core.files import digest_of
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_finished, require_fit
from tmkd.models.encoders.find import encoder_fingerprint, find_encoder
from tmkd.models.inputs import TokenInputs
from tmkd.models.label_map import order_of_two, reorder
from tmkd.models.own_length import own_length
from tmkd.models.predict import require_finite_logits, score
from tmkd.models.ready import head_classes, require_log_odds
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer


class EncoderTeacher:
    """A checkpoint folder with its own tokenizer, maximum length and order of classes.

    A checkpoint of one logit, as nearly every published reranker is, has two classes: its logit z is the log-odds of
    class 1, and the logits are (0, z). The weights are read when they are needed first.

    Example:
        >>> from tmkd.data.pairs import Pairs
        >>> teacher = EncoderTeacher("workspace/runs/demo/student")  # doctest: +SKIP
        >>> pairs = Pairs.build(["How do I copy a file?"], ["Use the cp command."])
        >>> teacher.logits(pairs).shape  # doctest: +SKIP
        (1, 2)

    Attributes:
        folder: the checkpoint's folder.
        name: what messages and reports call the teacher.
        classes: the number of classes, C.
        max_length: tokens of a pair; longer pairs are cut, longest side first.
        class_order: for each class of the task, the checkpoint's class that it is.
        precision: of the arithmetic, as in a recipe.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        max_length: int | None = None,
        class_order: Sequence[int] | None = None,
        precision: str = "auto",
    ) -> None:
        """Find the checkpoint and check that it can be a teacher.

        Args:
            folder: a local folder, `builtin:NAME`, or a hub id.
            name: the folder's name unless given.
            max_length: what the checkpoint's files say unless given (`tmkd.models.own_length`).
            class_order: unless given, of two classes the one first whose name is the negation of the other's
                (`not_relevant`), else the checkpoint's own order.
            precision: `auto`, `bf16` or `fp32`.

        Raises:
            EncoderError: there is no such checkpoint, it has no classification head, its architecture is not
                supported, it has fewer positions than max_length, or its scores are no log-odds.
            ValueError: class_order does not name every class of the checkpoint once.
        """
        self.folder = find_encoder(str(folder))
        self.name = name or self.folder.name
        self.classes = head_classes(self.folder)
        if self.classes == 0:
            message = f"{self.folder} has no classification head; a teacher needs a fine-tuned checkpoint"
            raise EncoderError(message, source=self.folder)
        require_log_odds(self.folder)
        self.max_length = max_length or own_length(self.folder)
        order = order_of_two(self.folder, self.name) if class_order is None else class_order
        self.class_order = list(range(self.classes)) if order is None else list(order)
        self.precision = precision
        require_fit(self.folder, length=self.max_length)
        if sorted(self.class_order) != list(range(self.classes)):
            raise ValueError(
                f"class_order: {self.class_order} does not name each class of {self.folder} once; it has {self.classes}"
            )

    @functools.cached_property
    def model(self) -> Student:
        """The model, with its classes in the task's order."""
        model = load_finished(self.folder, self.classes)
        reorder(model, self.class_order)
        return model

    @functools.cached_property
    def tokenizer(self) -> PairTokenizer:
        """The checkpoint's own tokenizer, at the teacher's maximum length."""
        return PairTokenizer(self.folder, self.max_length)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash over weights, configuration, tokenizer, maximum length, order of classes and precision."""
        return digest_of([encoder_fingerprint(self.folder), self.max_length, self.class_order, self.precision])

    def logits(self, pairs: Pairs) -> NDArray[np.float32]:
        """The teacher's logits.

        Args:
            pairs: N pairs.

        Returns:
            [N, C] float32 in the order of the pairs, in the task's order of classes.

        Raises:
            EncoderError: a weight is not finite.
            LabelError: a logit is not finite.
        """
        inputs = TokenInputs(self.tokenizer.encode(pairs.questions, pairs.passages), self.tokenizer.pad_id)
        with named(f"teacher {self.name}"):
            model = self.model
        logits = score(model, inputs, precision=self.precision)
        require_finite_logits(logits, pairs, f"teacher {self.name} ({self.folder})", self.precision)
        return logits
