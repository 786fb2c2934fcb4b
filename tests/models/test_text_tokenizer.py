"""tmkd.models.text_tokenizer: single texts as transformers reads them, the closing token kept, clear errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from export_fixtures import mpnet_student, texts
from transformers import AutoTokenizer

from tmkd.core.errors import DataError, EncoderError
from tmkd.models.card import ModelCard
from tmkd.models.checkpoint import save_tokenizer
from tmkd.models.encoders.find import find_encoder
from tmkd.models.text_tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def minilm() -> Path:
    return find_encoder("builtin:minilm-l6")


@pytest.mark.parametrize("length", [3, 12, 200])
def test_ids_are_those_of_transformers(minilm: Path, length: int) -> None:
    passages = [*texts(40)[1], "", "word " * 500, "[SEP] spelled out [CLS]"]
    theirs = AutoTokenizer.from_pretrained(minilm)(passages, truncation=True, max_length=length, padding=False)
    encoded, tokens = TextTokenizer(minilm, length).encode_counted(passages)
    assert [row.tolist() for row in encoded.ids] == theirs["input_ids"]
    assert [row.tolist() for row in encoded.type_ids] == theirs["token_type_ids"]
    whole = AutoTokenizer.from_pretrained(minilm)(passages, truncation=False, padding=False)["input_ids"]
    assert tokens.tolist() == [len(row) for row in whole]


def test_other_families_have_their_own_special_tokens(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(mpnet_student(tmp_path), 6)
    assert tokenizer.pad_id == 1
    ids = tokenizer.encode(["", "mount a disk with the mount command"]).ids
    assert ids[0].tolist() == [0, 2]
    assert (len(ids[1]), ids[1][0], ids[1][-1]) == (6, 0, 2)


def test_a_saved_folder_makes_the_same_tokens_without_torch_and_transformers(minilm: Path, tmp_path: Path) -> None:
    shutil.copy(minilm / "config.json", tmp_path)
    save_tokenizer(minilm, tmp_path, 32)
    ModelCard(max_length=32, classes=2).write(tmp_path)
    one, other = TextTokenizer(minilm, 32), TextTokenizer(tmp_path, 32)
    assert one.fingerprint() == other.fingerprint() != TextTokenizer(minilm, 33).fingerprint()
    script = (
        "import sys\nfrom pathlib import Path\nfrom tmkd.models.text_tokenizer import TextTokenizer\n"
        f"print(TextTokenizer(Path({str(tmp_path)!r}), 32).encode(['mount ' * 99]).ids[0].tolist())\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    ids, loaded = done.stdout.splitlines()
    assert json.loads(ids) == one.encode(["mount " * 99]).ids[0].tolist()
    assert loaded == "False False"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "passage 1 is NoneType None, expected a string"),
        (("two", "texts"), r"passage 1 is tuple \('two', 'texts'\), expected a string"),
        ("half \ud83d", "passage 1 holds half of a surrogate pair at character 5"),
    ],
)
def test_what_is_no_text_is_named(minilm: Path, bad: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextTokenizer(minilm, 32).encode_counted(["fine", bad], "passage {}".format)  # type: ignore[list-item]


def test_a_token_without_embedding_and_a_length_without_room_are_refused(minilm: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"max_length 2 leaves no room for text.*use at least 3"):
        TextTokenizer(minilm, 2)
    for name in ("config.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (minilm / name).is_file():
            shutil.copy(minilm / name, tmp_path)
    content = json.loads((minilm / "tokenizer.json").read_text())
    token = {"id": 30522, "content": "[EXTRA]", "single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append({**token, "normalized": False, "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"text 1 holds '\[EXTRA\]', a token for which this model has no embedding"):
        TextTokenizer(tmp_path, 32).encode(["fine", "an [EXTRA] one"])
