"""The model card file: what is written is read again, and what is wrong with a file is named."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from types import ModuleType

import pytest

import tmkd.models.card
import tmkd.models.layers
from tmkd.core.errors import EncoderError
from tmkd.inference import manifest
from tmkd.models.card import READABLE, ModelCard, has_card, read_card


def test_the_files_format_stays(tmp_path: Path) -> None:
    card = ModelCard(max_length=64, classes=3, layers=2, soft_heads=2, use_golden=False, step="stage1", teachers=("a",))
    card.write(tmp_path)
    assert has_card(tmp_path)
    assert json.loads((tmp_path / "tmkd.json").read_text()) == {
        "format": 2,
        "max_length": 64,
        "classes": 3,
        "layers": 2,
        "soft_headers": 2,
        "use_golden": False,
        "step": "stage1",
        "teachers": ["a"],
    }
    assert read_card(tmp_path) == card
    assert card.heads == 2
    both = {*READABLE, manifest.CACHED_FORMAT, manifest.QUESTION_FORMAT}
    assert both == set(manifest.READABLE)
    assert manifest.POSITIVE_FORMAT in READABLE  # exports of layered students are teachers, too


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "format None, this version reads 1, 2, 5"),
        ('{"format": 3}', "format 3, this version reads 1, 2, 5"),
        ('{"format": 1, "classes": 2}', "is damaged: max_length: Field required"),
        ('{"format": 1, "max_length": 64, "classes": "two"}', "is damaged: classes"),
        ('{"format": 1, "max_length": 64, "classes": 2, "soft_headers": -1}', "is damaged: soft_headers"),
    ],
)
def test_a_bad_card_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tmkd.json").write_text(content)
    with pytest.raises(EncoderError, match=message):
        read_card(tmp_path)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    assert not has_card(tmp_path)
    with pytest.raises(EncoderError, match=r"has no tmkd\.json; it was not written by tmkd"):
        read_card(tmp_path)


@pytest.mark.parametrize("module", [tmkd.models.card, tmkd.models.layers])
def test_the_examples_of_the_docstrings(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
