"""tmkd.models.tokenizer: published padding and truncation cleared, one length, clear errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from export_fixtures import mpnet_student, texts
from transformers import AutoTokenizer

from tmkd.core.errors import DataError, EncoderError
from tmkd.models.encoders.find import find_encoder
from tmkd.models.tokenizer import PairTokenizer


@pytest.fixture(scope="module")
def minilm() -> Path:
    return find_encoder("builtin:minilm-l6")


def test_published_padding_and_truncation_are_cleared(minilm: Path) -> None:
    published = json.loads((minilm / "tokenizer.json").read_text())
    assert published["padding"]["strategy"] == {"Fixed": 128}
    assert published["truncation"]["max_length"] == 128
    encoded = PairTokenizer(minilm, 256).encode(["short", "long"], ["text", "word " * 500])
    assert encoded.lengths.tolist() == [5, 256]
    assert encoded.ids[0].dtype == np.int32


def test_longest_side_is_cut_first(minilm: Path) -> None:
    encoded = PairTokenizer(minilm, 32).encode(["one two three four"], ["word " * 100])
    assert encoded.type_ids[0].tolist() == [0] * 6 + [1] * 26  # the question stays whole


def test_ids_are_those_of_transformers(minilm: Path) -> None:
    questions, passages = texts(40)
    theirs = AutoTokenizer.from_pretrained(minilm)(
        questions, passages, truncation="longest_first", max_length=48, padding=False
    )
    ours = PairTokenizer(minilm, 48).encode(questions, passages)
    assert [row.tolist() for row in ours.ids] == theirs["input_ids"]
    assert [row.tolist() for row in ours.type_ids] == theirs["token_type_ids"]


def test_saved_file_carries_the_length_and_no_padding(minilm: Path, tmp_path: Path) -> None:
    PairTokenizer(minilm, 77).save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is None
    assert saved["truncation"]["max_length"] == 77
    assert saved["truncation"]["strategy"] == "LongestFirst"
    assert PairTokenizer(tmp_path, 77).fingerprint() == PairTokenizer(minilm, 77).fingerprint()
    assert PairTokenizer(tmp_path, 78).fingerprint() != PairTokenizer(minilm, 77).fingerprint()


def test_mpnet_pads_with_its_own_id(tmp_path: Path) -> None:
    student = mpnet_student(tmp_path)
    tokenizer = PairTokenizer(student, 20)
    assert tokenizer.pad_id == 1  # from config.json
    assert PairTokenizer(tmp_path / "source", 20).pad_id == 1  # from tokenizer.json, where there is no config.json
    ids = tokenizer.encode(["mount a disk"], ["use the mount command"]).ids[0]
    assert ids[0] == 0
    assert ids.tolist().count(2) == 3  # <s> A </s></s> B </s>


def test_folder_without_tokenizer_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"has no tokenizer\.json; write one with .*save_pretrained"):
        PairTokenizer(tmp_path, 64)


def test_damaged_tokenizer_is_refused(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes()[:5000])
    with pytest.raises(EncoderError, match="damaged"):
        PairTokenizer(tmp_path, 64)


def test_tokenizer_without_padding_token_is_refused(minilm: Path, tmp_path: Path) -> None:
    content = json.loads((minilm / "tokenizer.json").read_text())
    content["padding"] = None
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[PAD]"]
    del content["model"]["vocab"]["[PAD]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EncoderError, match="no padding token"):
        PairTokenizer(tmp_path, 64)
    shutil.copyfile(minilm / "config.json", tmp_path / "config.json")
    assert PairTokenizer(tmp_path, 64).pad_id == 0


def test_length_without_room_for_text_is_refused(minilm: Path) -> None:
    with pytest.raises(EncoderError, match="use at least 5"):
        PairTokenizer(minilm, 4)


def test_bad_texts_are_named(minilm: Path) -> None:
    tokenizer = PairTokenizer(minilm, 32)
    with pytest.raises(DataError, match="pair 1: the passage is NoneType"):
        tokenizer.encode(["a", "b"], ["x", None])  # type: ignore[list-item]
    with pytest.raises(DataError, match="pair 0: the question holds half of a surrogate pair"):
        tokenizer.encode(["cut \ud83d"], ["x"])
    with pytest.raises(DataError, match="2 questions but 1 passages"):
        tokenizer.encode(["a", "b"], ["x"])
