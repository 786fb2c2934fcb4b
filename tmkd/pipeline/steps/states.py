"""The hidden states of single texts as a step: every distinct text of some pairs, read by an encoder once.

A student that reads passages once is trained and evaluated on them. They are kept as float16, as the encoder gives
them, in parts of `PART` texts that are mapped into memory: tens of thousands of passages are gigabytes. A part is
written under another name and renamed, so a process that is killed loses at most the part that it was reading.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save_file

from tmkd.core.console import progress
from tmkd.core.errors import DataError, EncoderError
from tmkd.core.files import remove_temporary_of, replacing
from tmkd.core.mapped_array import mapped_array
from tmkd.core.open_files import require_room
from tmkd.data.pairs import Pairs
from tmkd.models.card import CARD_FILE, read_card
from tmkd.models.encoders.cached_files import ENCODER_FOLDER, is_cached, question_folder
from tmkd.models.encoders.find import weights_fingerprint
from tmkd.models.inputs import Inputs, StateInputs, TextInputs, TextSide
from tmkd.models.text_reader import ReadTexts, TextReader
from tmkd.models.text_states import text_key
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.store.fingerprint import depends_on, differ_alone_in
from tmkd.pipeline.store.token_cache import token_inputs
from tmkd.pipeline.store.workspace import Step, Workspace

logger = logging.getLogger(__name__)

PART = 512  # texts of a part

_Read = tuple[NDArray[np.float16], NDArray[np.float32]]
"""Of one text: hidden states [T, d] and embedding [d]."""


@dataclass(frozen=True)
class TextReading:
    """How texts are read.

    Attributes:
        encoder: The encoder's folder.
        tokenizer: A model folder whose tokenizer is used.
        max_length: Most tokens of a text.
        precision: Of the encoder's arithmetic, as in a recipe.
        questions: How questions are read; as passages unless given.
    """

    encoder: Path
    tokenizer: Path
    max_length: int
    precision: str
    questions: TextReading | None = None

    @classmethod
    def of_student(cls, folder: Path, precision: str, max_length: int | None = None) -> TextReading:
        """How a finished student that reads passages once reads texts, up to its own number of tokens or another."""
        length, inner = max_length or read_card(folder).max_length, question_folder(folder)
        asking = None if inner is None else cls(inner, inner, length, precision)
        return cls(folder / ENCODER_FOLDER, folder, length, precision, asking)

    def steps(self, workspace: Workspace, pairs: Pairs) -> list[Step]:
        """Read every distinct text of some pairs, where that was not done before.

        Args:
            workspace: Keeps the steps.
            pairs: Their labels are not read.

        Returns:
            The finished step, or two: of the passages and of the questions, where these have an encoder of their own.

        Raises:
            EncoderError: The encoder cannot be read, or gives no finite number for a text.
        """
        return [reading._step(workspace, texts) for reading, texts in self._shares(pairs)]

    def _shares(self, pairs: Pairs) -> list[tuple[TextReading, list[str]]]:
        """Which texts each of the encoders reads."""
        if self.questions is None:
            return [(self, texts_of(pairs))]
        return [(self, sorted(set(pairs.passages))), (self.questions, sorted(set(pairs.questions)))]

    def _step(self, workspace: Workspace, texts: list[str]) -> Step:
        content = depends_on(
            settings={"max_length": self.max_length, "precision": self.precision},
            inputs={
                "encoder": weights_fingerprint(self.encoder),  # the same in a student's folder
                "tokenizer": _tokenizer_fingerprint(self.tokenizer, self.max_length, _stamps(self.tokenizer)),
                "texts": _digest(texts),
            },
        )

        def build(folder: Path) -> None:
            others = [one for one, theirs in workspace.finished("states") if differ_alone_in("texts", theirs, content)]
            self._fill(folder, texts, others)

        step = workspace.step("states", content, build, label=f"read {len(texts):,} texts")
        self._fill(step.folder, texts, [])  # reads the texts of a part that was damaged since
        return step

    def inputs(self, workspace: Workspace, pairs: Pairs) -> StateInputs:
        """The pairs as a student reads them; arguments and errors as of `steps`.

        Raises:
            DataError: A part that was just written cannot be read back.
        """
        read: list[ReadTexts] = []
        places: list[dict[str, int]] = []
        before = 0
        for reading, texts in self._shares(pairs):
            step = reading._step(workspace, texts)
            for number in range(-(-len(texts) // PART)):
                part = _part(step.folder, number)
                if part is None:  # it was there, or read again, a moment ago
                    values = _files(step.folder, number)[0]
                    raise DataError(f"{values} cannot be read back; look at its disk and run again", path=values)
                read.append(part)
            places.append({text: before + row for row, text in enumerate(texts)})
            before += len(texts)
        passage, question = (
            np.array([place[text] for text in texts], dtype=np.int64)
            for place, texts in ((places[0], pairs.passages), (places[-1], pairs.questions))
        )
        return StateInputs(ReadTexts.joined(read), question, passage)

    def tokens(self, pairs: Pairs) -> TextInputs:
        """The pairs as a student reads them whose encoder is trained with it."""
        questions, passages = (
            TextSide.of(TextTokenizer(reading.tokenizer, reading.max_length), texts)
            for reading, texts in ((self.questions or self, pairs.questions), (self, pairs.passages))
        )
        return TextInputs(questions, passages)

    def _fill(self, folder: Path, texts: Sequence[str], others: Sequence[Path]) -> None:
        """Read the parts that are not there or damaged; texts that other folders hold are copied from there."""
        missing = [start for start in range(0, len(texts), PART) if _part(folder, start // PART) is None]
        if not missing:
            return
        known = _Known(others)
        reader: TextReader | None = None
        done = len(texts) - sum(len(texts[start : start + PART]) for start in missing)
        with progress("read texts", len(texts), "texts", done=done) as bar:
            for start in missing:
                some = texts[start : start + PART]
                found = {row: read for row, text in enumerate(some) if (read := known.find(text)) is not None}
                bar.advance(len(found))
                new = [row for row in range(len(some)) if row not in found]
                if new and reader is None:
                    reader = TextReader(self.encoder, self.max_length, self.precision, tokenizer=self.tokenizer)
                for place, read in reader.states([some[row] for row in new]) if reader is not None else ():
                    self._require_finite(read[0], some[new[place]])
                    found[new[place]] = read
                    bar.advance(1)
                _write(folder, start // PART, some, [found[row] for row in range(len(some))])

    def _require_finite(self, hidden: NDArray[np.float16], text: str) -> None:
        if not np.isfinite(hidden).all():
            raise EncoderError(
                f"{self.encoder} gives no finite number for {text[:80]!r} (precision: {self.precision}); use "
                "precision: fp32, or another encoder",
                source=self.encoder,
            )


def model_inputs(workspace: Workspace, folder: Path, pairs: Pairs, precision: str) -> Inputs:
    """Pairs in the form that a finished model reads.

    Args:
        workspace: Keeps token ids and states of texts.
        folder: The model's folder.
        pairs: N pairs.
        precision: Of the arithmetic, as in a recipe.
    """
    if is_cached(folder):
        return TextReading.of_student(folder, precision).inputs(workspace, pairs)
    return token_inputs(workspace, PairTokenizer(folder, read_card(folder).max_length), pairs)


def texts_of(pairs: Pairs) -> list[str]:
    """The distinct questions and passages of some pairs, in an order that depends on nothing else."""
    return sorted({*pairs.questions, *pairs.passages})


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Size and time in ns of the files that a tokenizer depends on."""
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "config.json", CARD_FILE)]
    return tuple((path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files if path.is_file())


@functools.cache
def _tokenizer_fingerprint(folder: Path, max_length: int, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Computed once a process while the files stay the same: every student asks for it."""
    return TextTokenizer(folder, max_length).fingerprint()


def _digest(texts: Sequence[str]) -> str:
    return hashlib.blake2b(b"".join(map(text_key, texts)), digest_size=16).hexdigest()


def _write(folder: Path, number: int, texts: Sequence[str], read: Sequence[_Read]) -> None:
    """Write a part; the file that says what is in it comes last."""
    hidden = np.concatenate([states for states, _ in read])
    about: dict[str, NDArray[Any]] = {
        "lengths": np.array([len(states) for states, _ in read], dtype=np.int64),
        "embeddings": np.stack([embedding for _, embedding in read]),
        "keys": np.stack([np.frombuffer(text_key(text), dtype=np.uint8) for text in texts]),
    }
    values, description = _files(folder, number)
    remove_temporary_of(values)  # in a finished step, where a damaged part is written again
    with replacing(values, hidden.nbytes) as temporary, temporary.open("wb") as file:
        np.save(file, hidden)
    with replacing(description) as temporary:
        save_file(about, temporary)


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"part-{number:05}.npy", folder / f"part-{number:05}.safetensors"


def _part(folder: Path, number: int) -> ReadTexts | None:
    """A part, its hidden states mapped into memory; None where it is not there, or damaged."""
    values, description = _files(folder, number)
    if not description.is_file():
        return None
    try:
        about, hidden = load(description.read_bytes()), mapped_array(values)
        if hidden.shape != (int(about["lengths"].sum()), about["embeddings"].shape[1]):
            raise ValueError(f"it holds {hidden.shape[0]} tokens instead of {int(about['lengths'].sum())}")
    except Exception as error:  # safetensors raises a class of its own for a damaged file
        require_room(error, values)
        logger.warning(f"{values} is missing or damaged ({error}); its texts are read again")
        return None
    return ReadTexts.of_part(hidden, about["lengths"], about["embeddings"])


class _Known:
    """The texts that other folders hold, read in the same way.

    Args:
        folders: Of finished steps.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.parts: list[ReadTexts] = []
        self.places: dict[bytes, tuple[int, int]] = {}
        for folder in folders:
            for description in sorted(folder.glob("part-*.safetensors")):
                part = _part(folder, int(description.stem.removeprefix("part-")))
                if part is not None:
                    keys = load(description.read_bytes())["keys"]
                    self.places |= {key.tobytes(): (len(self.parts), row) for row, key in enumerate(keys)}
                    self.parts.append(part)

    def find(self, text: str) -> _Read | None:
        """What was read of a text; None where no folder has it."""
        place = self.places.get(text_key(text))
        if place is None:
            return None
        part = self.parts[place[0]]
        return part.hidden(place[1]), part.embeddings[place[1]]
