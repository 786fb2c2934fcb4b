"""An embedding model as a teacher: real weights, each text embedded once, what its files say is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pair_rows
from encoder_fixtures import tiny
from safetensors.torch import load_file, save_file

from tmkd.core.errors import EncoderError
from tmkd.core.files import digest_of
from tmkd.data.pairs import Pairs
from tmkd.models.bi_encoder import cosine_logits, embeddings
from tmkd.models.encoders.find import find_encoder, folder_fingerprint
from tmkd.models.text_reader import TextReader
from tmkd.teachers import bi_encoder
from tmkd.teachers.bi_encoder import BiEncoderTeacher, Prompts
from tmkd.teachers.interface import TeacherLike

ROWS = pair_rows()
PAIRS = Pairs.build([str(row["question"]) for row in ROWS], [str(row["passage"]) for row in ROWS])
MINILM = "builtin:minilm-l6"


def copied(folder: Path) -> Path:
    """A copy of MiniLM in sentence-transformers' form, whose weights are a link."""
    source = find_encoder(MINILM)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    return folder


def test_a_builtin_model_gives_the_bi_encoder_cosine() -> None:
    teacher: TeacherLike = BiEncoderTeacher(MINILM, precision="fp32")
    folder = find_encoder(MINILM)
    expected = cosine_logits(folder, PAIRS.questions, PAIRS.passages, 256, "fp32")
    np.testing.assert_allclose(teacher.logits(PAIRS), expected, atol=1e-4)
    turned = BiEncoderTeacher(MINILM, precision="fp32", positive=0)
    np.testing.assert_allclose(turned.logits(PAIRS)[:, 1], -expected[:, 1], atol=1e-4)
    assert turned.fingerprint != teacher.fingerprint


def test_a_folder_is_what_sentence_transformers_makes_of_it(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = copied(tmp_path / "mine")
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "question: ", "document": "answer: "}, "similarity_fn_name": "dot"})
    )
    model = SentenceTransformer(str(folder), local_files_only=True)
    theirs = (model.encode_query(PAIRS.questions) * model.encode_document(PAIRS.passages)).sum(axis=1)
    teacher = BiEncoderTeacher(str(folder))
    np.testing.assert_allclose(teacher.similarities(PAIRS), theirs, atol=1e-5)
    np.testing.assert_allclose(teacher.logits(PAIRS)[:, 1], theirs, atol=1e-5)  # a dot product is taken as it is
    assert teacher.name == "mine"
    own = BiEncoderTeacher(str(folder), prompts=Prompts(query="", passage=""))
    plain = BiEncoderTeacher(MINILM, precision="fp32").similarities(PAIRS)
    np.testing.assert_allclose(own.similarities(PAIRS), plain, atol=1e-4)
    assert own.fingerprint != teacher.fingerprint


def test_files_and_settings_are_in_the_fingerprint_and_the_name_is_not(tmp_path: Path) -> None:
    folder = copied(tmp_path / "mine")
    before = BiEncoderTeacher(str(folder)).fingerprint
    assert BiEncoderTeacher(str(folder), name="other").fingerprint == before
    assert BiEncoderTeacher(str(folder), max_length=32).fingerprint != before
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("false", "true", 1))
    assert BiEncoderTeacher(str(folder)).fingerprint != before


@pytest.mark.parametrize("named", [True, False])
def test_a_model_that_is_stored_in_another_type_runs_in_float32(tmp_path: Path, named: bool) -> None:
    folder = tiny("bert", tmp_path / "mine")
    plain = BiEncoderTeacher(str(folder), pooling="mean").similarities(PAIRS)
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    rounded = tiny("bert", tmp_path / "rounded")
    save_file({name: value.float() for name, value in weights.items()}, rounded / "model.safetensors", {"format": "pt"})
    expected = BiEncoderTeacher(str(rounded), pooling="mean").similarities(PAIRS)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16" if named else None}))
    teacher = BiEncoderTeacher(str(folder), pooling="mean")
    assert {value.dtype for value in teacher.library_model().state_dict().values()} == {torch.float32}
    np.testing.assert_allclose(teacher.similarities(PAIRS), expected, atol=1e-6)
    assert np.abs(expected - plain).max() > 1e-5
    # labels that were made in bf16 are not taken, and those of fp32 models are
    about = ["bi_encoder", folder_fingerprint(folder), 1, None, "mean", [None, None], "fp32"]
    assert teacher.fingerprint == digest_of([*about, "bfloat16" if named else "BF16"])
    about[1] = folder_fingerprint(rounded)
    assert BiEncoderTeacher(str(rounded), pooling="mean").fingerprint == digest_of(about)


def test_every_text_is_embedded_once_and_pairs_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    readers: set[int] = set()

    def counted(reader: TextReader, texts: list[str]) -> object:
        seen.extend(texts)
        readers.add(id(reader))
        return embeddings(reader, texts)

    monkeypatch.setattr(bi_encoder, "embeddings", counted)
    monkeypatch.setattr(bi_encoder, "CHUNK", 5)
    teacher = BiEncoderTeacher(MINILM, precision="fp32")
    parts = [rows for rows, _ in teacher.scored(PAIRS)]
    assert len(parts) > 2
    assert len(readers) == 1  # the model is opened once
    assert np.concatenate(parts).tolist() == list(range(len(PAIRS)))
    assert sorted(seen) == sorted({*PAIRS.questions, *PAIRS.passages})
    teacher.logits(PAIRS)
    assert len(seen) == len({*PAIRS.questions, *PAIRS.passages})


def test_a_model_without_pooling_needs_it_said(tmp_path: Path) -> None:
    plain = tiny("bert", tmp_path / "plain")
    with pytest.raises(EncoderError, match=r"no modules\.json.*pooling: mean, cls, max or lasttoken"):
        BiEncoderTeacher(str(plain))
    found = BiEncoderTeacher(str(plain), pooling="mean").similarities(PAIRS)
    np.testing.assert_allclose(found * 10 - 5, cosine_logits(plain, PAIRS.questions, PAIRS.passages, 256, "fp32")[:, 1],
                               atol=1e-3)  # fmt: skip
    assert np.abs(BiEncoderTeacher(str(plain), pooling="cls").similarities(PAIRS) - found).max() > 1e-3
    for spec in (MINILM, str(copied(tmp_path / "mine"))):
        with pytest.raises(EncoderError, match="leave out `pooling: cls`"):
            BiEncoderTeacher(spec, pooling="cls")


def test_files_that_cannot_be_a_bi_encoder(tmp_path: Path) -> None:
    folder = copied(tmp_path / "mine")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0], {**modules[1], "type": "mine.Pooling"}]))
    with pytest.raises(EncoderError, match=r"names code of its own, mine\.Pooling, which is not run"):
        BiEncoderTeacher(str(folder))
    for without in ([modules[0], modules[2]], [modules[0]]):
        (folder / "modules.json").write_text(json.dumps(without))
        with pytest.raises(EncoderError, match="names no pooling module"):
            BiEncoderTeacher(str(folder))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(EncoderError, match=r"1_Pooling/config\.json cannot be read"):
        BiEncoderTeacher(str(folder))
    (folder / "modules.json").write_text("{")
    with pytest.raises(EncoderError, match=r"modules\.json cannot be read"):
        BiEncoderTeacher(str(folder))
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    (folder / "3_Dense").mkdir()
    (folder / "3_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(EncoderError, match=r"pytorch_model\.bin alone.*can run code"):
        BiEncoderTeacher(str(folder))
    for similarity in ("maxsim", "cos_sim"):
        other = copied(tmp_path / similarity)
        (other / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": similarity}))
        with pytest.raises(EncoderError, match=f"similarity_fn_name is '{similarity}'; .* one of: cosine, dot, eucl"):
            BiEncoderTeacher(str(other))
    for spec in (MINILM, str(copied(tmp_path / "long"))):
        with pytest.raises(EncoderError, match=r"max_length: .* has positions for 512 tokens, and 513 are needed"):
            BiEncoderTeacher(spec, max_length=513)
    with pytest.raises(EncoderError, match="no such folder"):
        BiEncoderTeacher("./nowhere")


def test_an_error_without_a_message_still_says_which_model_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KeyError

    teacher = BiEncoderTeacher(str(tiny("bert", tmp_path / "mine")), pooling="cls")
    monkeypatch.setattr("sentence_transformers.sentence_transformer.modules.Transformer.__init__", refuse)
    with pytest.raises(EncoderError, match="mine cannot be read: KeyError"):
        teacher.library_model()


def test_the_name_of_a_folder_that_ends_in_a_slash(tmp_path: Path) -> None:
    folder = tiny("bert", tmp_path / "mine")
    assert BiEncoderTeacher(f"{folder}/", pooling="mean").name == "mine"
