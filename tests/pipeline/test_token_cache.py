"""Token ids are computed once for a tokenizer, a length and a set of pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOPICS
from safetensors.numpy import load_file

from tmkd.data.pairs import Pairs
from tmkd.models.encoders.find import find_encoder
from tmkd.models.tokenizer import Encoded, PairTokenizer
from tmkd.pipeline.store.token_cache import _opened, tokens_of, write_tokens
from tmkd.pipeline.store.workspace import Workspace


@pytest.fixture
def pairs() -> Pairs:
    questions, passages = zip(*TOPICS.values(), strict=True)
    return Pairs.build(list(questions), list(passages))


def kept(workspace: Workspace) -> list[Path]:
    return sorted((workspace.root / "tokens").iterdir())


def test_the_same_ids_come_back_without_tokenizing(
    tmp_path: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = PairTokenizer(find_encoder("builtin:minilm-l6"), 24)
    workspace = Workspace(tmp_path / "w")
    plain = tokenizer.encode(pairs.questions, pairs.passages)
    first = tokens_of(workspace, tokenizer, pairs)

    def never(*_: Any) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(PairTokenizer, "encode_chunks", never)
    for found in (first, tokens_of(workspace, tokenizer, pairs)):
        for mine, theirs in ((found.ids, plain.ids), (found.type_ids, plain.type_ids)):
            assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, theirs, strict=True))
    assert len(kept(workspace)) == 1


def test_another_length_or_other_pairs_are_tokenized_anew(tmp_path: Path, pairs: Pairs) -> None:
    folder = find_encoder("builtin:minilm-l6")
    workspace = Workspace(tmp_path / "w")
    assert max(tokens_of(workspace, PairTokenizer(folder, 24), pairs).lengths) == 24
    assert max(tokens_of(workspace, PairTokenizer(folder, 12), pairs).lengths) == 12
    assert len(tokens_of(workspace, PairTokenizer(folder, 12), pairs.take([3, 1])).ids) == 2
    assert len(kept(workspace)) == 3


def test_no_pairs(tmp_path: Path, pairs: Pairs) -> None:
    tokenizer = PairTokenizer(find_encoder("builtin:minilm-l6"), 24)
    assert len(tokens_of(Workspace(tmp_path / "w"), tokenizer, pairs.take([])).ids) == 0


def test_a_file_is_ordinary_safetensors(tmp_path: Path, pairs: Pairs) -> None:
    workspace = Workspace(tmp_path / "w")
    found = tokens_of(workspace, PairTokenizer(find_encoder("builtin:minilm-l6"), 24), pairs)
    (path,) = kept(workspace)
    tensors = load_file(path)
    assert tensors["lengths"].tolist() == found.lengths.tolist() == [len(row) for row in found.ids]
    assert tensors["tokens"].dtype == np.uint16  # of a vocabulary of 30,522
    assert (tensors["tokens"] & 0x7FFF).tolist() == np.concatenate(found.ids).tolist()
    assert (tensors["tokens"] >> 15).tolist() == np.concatenate(found.type_ids).tolist()


def test_a_large_vocabulary_takes_four_bytes_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    rows = Encoded.of([(np.array([1, size - 1], dtype=np.int32), np.array([0, 1], dtype=np.int32))
                       for size in (1 << 15, (1 << 15) + 1)])  # fmt: skip
    path = tmp_path / "tokens"
    write_tokens(path, iter([rows]), 2, (1 << 15) + 1)
    assert load_file(path)["tokens"].dtype == np.uint32
    found = _opened(path)
    assert found is not None
    assert [row.tolist() for row in found.ids] == [row.tolist() for row in rows.ids]
    assert [row.tolist() for row in found.type_ids] == [[0, 1], [0, 1]]
    path.unlink()
    with pytest.raises(ValueError, match="a token id from 32,768 on"):
        write_tokens(path, iter([rows]), 2, 1 << 15)
    segments = Encoded.of([(np.array([1], dtype=np.int32), np.array([2], dtype=np.int32))])
    with pytest.raises(ValueError, match="segment id"):
        write_tokens(path, iter([segments]), 1, 100)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error(tmp_path: Path, pairs: Pairs) -> None:
    workspace = Workspace(tmp_path / "w")
    found = tokens_of(workspace, PairTokenizer(find_encoder("builtin:minilm-l6"), 24), pairs)
    (path,) = kept(workspace)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(OSError, match="was cut off while it was read"):
        _ = found.ids[len(pairs) - 1]


@pytest.mark.parametrize(
    "content",
    [
        lambda path: b"cut off",
        lambda path: path.read_bytes()[:-1],
        lambda path: path.read_bytes()[:300],
        lambda path: b"",
        lambda path: path.read_bytes().replace(b'"tokens"', b'"tokenz"'),
    ],
)
def test_a_damaged_file_is_made_again(
    tmp_path: Path, pairs: Pairs, caplog: pytest.LogCaptureFixture, content: Callable[[Path], bytes]
) -> None:
    tokenizer = PairTokenizer(find_encoder("builtin:minilm-l6"), 24)
    workspace = Workspace(tmp_path / "w")
    first = [row.copy() for row in tokens_of(workspace, tokenizer, pairs).ids]
    (path,) = kept(workspace)
    path.write_bytes(content(path))
    again = tokens_of(workspace, tokenizer, pairs)
    assert "is damaged" in caplog.text
    caplog.clear()
    assert all(np.array_equal(a, b) for a, b in zip(first, again.ids, strict=True))
    assert len(tokens_of(workspace, tokenizer, pairs).ids) == len(pairs)
    assert "is damaged" not in caplog.text
