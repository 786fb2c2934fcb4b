"""The model card file, tmkd.json: what a model folder says about itself beyond the checkpoint's own config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tmkd.core.errors import EncoderError
from tmkd.core.files import read_json, write_text

FORMAT = 2
"""Version of the format of tmkd.json. Since 2 the checkpoint of two classes has one logit."""
READABLE = (1, FORMAT, 5)
"""5 is of an export whose one logit is that of class 0 (`tmkd.inference.manifest.POSITIVE_FORMAT`)."""
CARD_FILE = "tmkd.json"


class Origin(TypedDict, total=False):
    """What made a model; these fields of the card are given by the step that saves it.

    Attributes:
        step: kind of step, such as "teacher" or "stage1", or the student's method.
        teachers: what each soft head learned: fingerprints of teachers, or one name for the mean of several.
        class_order: for each class of the task the class of the original checkpoint that it was.
        labels: names of the C classes, where the task names them.
    """

    step: str
    teachers: list[str]
    class_order: list[int]
    labels: list[str]


class ModelCard(BaseModel):
    """The content of tmkd.json.

    Attributes:
        format: version of the file's format.
        max_length: most tokens of a pair, special tokens included.
        classes: C, the number of classes.
        layers: layers of the encoder; None in files that other versions wrote without it.
        soft_heads: K, the number of soft heads (in the file: `soft_headers`).
        use_golden: whether the golden head was trained and takes part in the output.
        step: see `Origin`.
        teachers: see `Origin`.
        class_order: see `Origin`.
        labels: see `Origin`.
        positive: of two classes the one that the checkpoint's one logit is of.

    Example:
        >>> card = ModelCard(max_length=256, classes=2, soft_heads=3)
        >>> card.heads
        4
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    format: int = FORMAT
    max_length: int = Field(ge=1)
    classes: int = Field(ge=2)
    layers: int | None = None
    soft_heads: int = Field(0, alias="soft_headers", ge=0)
    use_golden: bool = True
    step: str | None = None
    teachers: tuple[str, ...] | None = None
    class_order: tuple[int, ...] | None = None
    labels: tuple[str, ...] | None = None
    positive: int = Field(1, ge=0, le=1)

    @property
    def heads(self) -> int:
        """H: how many heads were trained."""
        return self.soft_heads + int(self.use_golden)

    def write(self, folder: Path) -> None:
        """Write tmkd.json into an existing folder; what is None is absent."""
        content = self.model_dump(
            by_alias=True, exclude_none=True, exclude=None if self.positive == 0 else {"positive"}
        )
        write_text(folder / CARD_FILE, json.dumps(content, indent=2) + "\n")


def has_card(folder: Path) -> bool:
    """Whether a folder has a model card file, that is, whether tmkd wrote it."""
    return (folder / CARD_FILE).is_file()


def read_card(folder: Path) -> ModelCard:
    """Read the model card file of a model folder.

    Raises:
        EncoderError: there is none, it is damaged, or it is of another format.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        raise EncoderError(f"{folder} has no {CARD_FILE}; it was not written by tmkd")
    try:
        content = read_json(path)
        found = content.get("format") if isinstance(content, dict) else None
        if found not in READABLE:
            raise EncoderError(f"{path}: format {found!r}, this version reads {', '.join(map(str, READABLE))}")
        return ModelCard.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise EncoderError(f"{path} is damaged: {key}: {first['msg']}; save the model again") from error
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise EncoderError(f"{path} is damaged ({type(error).__name__}: {error}); save the model again") from error
