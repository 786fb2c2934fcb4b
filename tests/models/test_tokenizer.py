"""tmkd.models.tokenizer: published padding and truncation cleared, one length, clear errors."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_fixtures import byte_tokenizer
from export_fixtures import mpnet_student, texts
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from tmkd.core.errors import DataError, EncoderError
from tmkd.models.checkpoint import save_tokenizer
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


@pytest.mark.parametrize("most", [7, 8, 21, 22])
def test_every_two_lengths_are_cut_where_the_saved_file_says(tmp_path: Path, most: int) -> None:
    """Whoever opens the folder reads the same tokens: the library cuts, by what `save` wrote."""
    tokenizer = PairTokenizer(mpnet_student(tmp_path), most)
    tokenizer.save(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    lengths = [0, 1, 2, *range(most // 2 - 3, most // 2 + 3), most - 4, most - 3, most, 3 * most]
    questions, passages = zip(*[("disk " * one, "mount " * other) for one in lengths for other in lengths], strict=True)
    encoded, tokens = tokenizer.encode_counted(questions, passages)
    wanted = library.encode_batch(list(zip(questions, passages, strict=True)))
    assert [row.tolist() for row in encoded.ids] == [row.ids for row in wanted]
    assert [row.tolist() for row in encoded.type_ids] == [row.type_ids for row in wanted]
    special = library.num_special_tokens_to_add(True)
    assert tokens.tolist() == [one + other + special for one in lengths for other in lengths]
    places = tokenizer.passage_places(zip(questions, passages, strict=True), len(questions))
    for (start, stop), row in zip(places, wanted, strict=True):
        inside = [place for place, side in enumerate(row.sequence_ids) if side == 1]
        assert list(range(start, stop)) == inside


def test_two_long_texts_take_no_time_of_their_product(minilm: Path) -> None:
    """The library's truncation makes an object for each part of one with each part of the other: 25,000,000 here."""
    start = time.process_time()
    encoded, tokens = PairTokenizer(minilm, 8).encode_counted(["disk " * 10_000], ["mount " * 10_000])
    assert (len(encoded.ids[0]), tokens.tolist()) == (8, [20_003])
    assert time.process_time() - start < 5


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


VOCABULARY = [
    *(
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "mount",
        "Mount",
        "cafe",
        "café",
        "Café",
        "Cafe",
        "日",
        "本",
        "日本",
    ),
    "the",
]
QUESTION, PASSAGE = "Mount the Café", "mount 日本 café [SEP] [PAD]"


def word_pieces(folder: Path, config: dict[str, Any], *, lowercase: bool = True) -> Path:
    """A BERT folder without weights: a few words, a normalizer in tokenizer.json, settings in tokenizer_config.json."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(VOCABULARY[:5])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = {"model_type": "bert", "vocab_size": len(VOCABULARY), "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(model))
    return folder


def tokens(folder: Path) -> list[str]:
    return [VOCABULARY[number] for number in PairTokenizer(folder, 32).encode([QUESTION], [PASSAGE]).ids[0]]


def saved_copy(folder: Path) -> Path:
    copy = folder.with_name(folder.name + "-saved")
    copy.mkdir()
    shutil.copy(folder / "config.json", copy)
    save_tokenizer(folder, copy, 32)
    return copy


def test_where_the_two_files_disagree_transformers_decides(tmp_path: Path) -> None:
    said: list[dict[str, bool]] = [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {},
    ]
    seen = set()
    for number, (config, lowercase) in enumerate(itertools.product(said, (True, False))):
        folder = word_pieces(
            tmp_path / str(number), {"tokenizer_class": "BertTokenizer", **config}, lowercase=lowercase
        )
        wanted = AutoTokenizer.from_pretrained(folder)(QUESTION, PASSAGE)["input_ids"]
        assert PairTokenizer(folder, 32).encode([QUESTION], [PASSAGE]).ids[0].tolist() == wanted, (config, lowercase)
        copy = saved_copy(folder)
        assert AutoTokenizer.from_pretrained(copy)(QUESTION, PASSAGE)["input_ids"] == wanted, (config, lowercase)
        (copy / "tmkd.json").write_text("{}")  # from here on tokenizer.json alone decides
        assert PairTokenizer(copy, 32).encode([QUESTION], [PASSAGE]).ids[0].tolist() == wanted, (config, lowercase)
        seen.add(tuple(wanted))
    assert len(seen) == 5  # the settings matter


def test_lower_casing_that_tokenizer_config_switches_off_is_off(tmp_path: Path) -> None:
    folder = word_pieces(
        tmp_path / "cased", {"tokenizer_class": "BertTokenizer", "do_lower_case": False}, lowercase=True
    )
    assert tokens(folder)[1:4] == ["Mount", "the", "Café"]


def test_a_student_saved_before_keeps_the_tokens_it_was_trained_with_and_other_tools_read_the_same(
    tmp_path: Path,
) -> None:
    folder = word_pieces(tmp_path / "old", {"tokenizer_class": "BertTokenizer", "do_lower_case": False}, lowercase=True)
    (folder / "tmkd.json").write_text("{}")
    assert tokens(folder)[1:4] == ["mount", "the", "cafe"]
    theirs = AutoTokenizer.from_pretrained(saved_copy(folder))(QUESTION, PASSAGE)
    ours = PairTokenizer(folder, 32).encode([QUESTION], [PASSAGE])
    assert theirs["input_ids"] == ours.ids[0].tolist()
    assert theirs["token_type_ids"] == ours.type_ids[0].tolist()


def test_segment_ids_are_given_where_transformers_gives_them(tmp_path: Path) -> None:
    for number, names in enumerate(
        (["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"])
    ):
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names}
        folder = word_pieces(tmp_path / str(number), config)
        for place in (folder, saved_copy(folder)):
            wanted = AutoTokenizer.from_pretrained(place)(QUESTION, PASSAGE).get("token_type_ids")
            found = PairTokenizer(place, 32).encode([QUESTION], [PASSAGE]).type_ids[0].tolist()
            assert found == (wanted or [0] * len(found))
        assert any(found) == (number == 1)


def test_special_tokens_are_split_only_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    said = {"tokenizer_class": "BertTokenizer", "split_special_tokens": True}
    split, plain = word_pieces(tmp_path / "split", said), word_pieces(tmp_path / "plain", {})
    assert tokens(plain).count("[SEP]") == 3
    assert tokens(plain).count("[PAD]") == 1
    copy = saved_copy(split)
    (copy / "tmkd.json").write_text("{}")
    for folder in (split, copy):
        assert tokens(folder).count("[SEP]") == 2
        assert tokens(folder).count("[PAD]") == 0
    assert PairTokenizer(split, 32).fingerprint() != PairTokenizer(plain, 32).fingerprint()


def test_prefix_space_is_that_of_transformers(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta", "vocab_size": 260, "pad_token_id": 1}))
    found = []
    for said in (True, False):
        settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": said}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        ids = PairTokenizer(tmp_path, 64).encode(["why"], ["so <pad>"]).ids[0].tolist()
        assert ids == AutoTokenizer.from_pretrained(tmp_path)("why", "so <pad>")["input_ids"]
        found.append(len(ids))
    assert found[0] > found[1]


def test_the_side_of_padding_is_right_for_every_tool(tmp_path: Path) -> None:
    folder = word_pieces(tmp_path / "left", {"tokenizer_class": "BertTokenizer", "padding_side": "left"})
    theirs = AutoTokenizer.from_pretrained(saved_copy(folder))
    assert theirs.padding_side == "right"
    assert theirs.model_max_length == 32


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = word_pieces(tmp_path / "large", {"tokenizer_class": "BertTokenizer"})
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 14, "pad_token_id": 0}))
    with pytest.raises(EncoderError, match=r"knows 1 tokens, first 'the' \(14\).*vocab_size 14"):
        PairTokenizer(folder, 32)


def test_a_text_that_spells_a_token_without_embedding_is_named(tmp_path: Path) -> None:
    said = {"tokenizer_class": "BertTokenizer", "mask_token": "<blank>"}  # transformers adds it behind the vocabulary
    tokenizer = PairTokenizer(word_pieces(tmp_path / "blank", said), 32)
    assert tokenizer.encode(["mount"], ["the"]).lengths.tolist() == [5]
    with pytest.raises(DataError, match="pair 1 holds '<blank>', a token for which this model has no embedding"):
        tokenizer.encode(["mount", "mount"], ["the", "the <blank>"])
