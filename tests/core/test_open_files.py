"""A process that has as many files open as it may: nothing is taken for damaged, and the error says what to raise."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from label_fixtures import append, header_of
from qa_fixtures import index_of

from tmkd.core.errors import TmkdError
from tmkd.core.mapped_array import mapped_array
from tmkd.core.open_files import raise_limit, require_room
from tmkd.data.arrow_file import write_arrow
from tmkd.data.documents.index_files import open_files
from tmkd.data.pairs import Pairs
from tmkd.models.encoders.lstm import LstmEncoder, LstmShape, load_lstm, save_lstm
from tmkd.models.encoders.tensors import read_tensors, write_tensors
from tmkd.models.ragged import Ragged
from tmkd.models.tokenizer import Encoded
from tmkd.pipeline.steps import states
from tmkd.pipeline.store import pair_cache, token_cache
from tmkd.pipeline.store.label_parts import Owner, read_arrays, what_is_wrong
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.teachers.embedded_texts import EmbeddedTexts


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """Let this process open at most so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(count + 1)]  # the lowest numbers that are free, with gaps where files were closed
    for number in free:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        for _ in range(2):
            raise_limit()
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (65_536 if hard < 0 else min(hard, 65_536), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_mapped_arrays_hold_no_descriptors(tmp_path: Path) -> None:
    arrays = [np.random.default_rng(n).normal(size=(n, 3)).astype(np.float16) for n in range(40)]
    arrays.append(np.asfortranarray(arrays[-1]))
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
    with files_left(3):
        mapped = [mapped_array(tmp_path / f"{number}.npy") for number in range(len(arrays))]
    for found, wanted in zip(mapped, arrays, strict=True):
        assert (type(found), found.dtype, found.flags.writeable) == (np.ndarray, wanted.dtype, False)
        np.testing.assert_array_equal(found, wanted)
    assert mapped[-1].flags.f_contiguous


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00", None])
def test_a_damaged_array_is_an_error(content: bytes | None, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5)))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1] if content is None else content)
    with pytest.raises((ValueError, EOFError)):
        mapped_array(tmp_path / "a.npy")


def some_states(folder: Path) -> Callable[[], object]:
    states._write(folder, 0, ["a"], [(np.ones((3, 2), np.float16), np.ones(2, np.float32))])
    return lambda: states._part(folder, 0)


def embeddings(folder: Path) -> Callable[[], object]:
    kept = EmbeddedTexts(folder)
    kept.add([("query", "a")], np.ones((1, 2), np.float32))
    (keys,) = folder.glob("*.keys.npy")
    return lambda: kept._read(keys)


def token_ids(folder: Path) -> Callable[[], object]:
    path, ids = folder / "a.safetensors", Ragged(np.array([1, 0]), np.array([2]))
    token_cache.write_tokens(path, iter([Encoded(ids, ids)]), 1, 9)
    return lambda: token_cache._opened(path)


def mapped_pairs(folder: Path) -> Callable[[], object]:
    table = Pairs.build(["q"], ["p"]).table
    write_arrow(folder / "a.arrow", table.schema, [table])
    return lambda: pair_cache._opened(folder / "a.arrow", 1)


def saved_pairs(folder: Path) -> Callable[[], object]:
    Pairs.build(["q"], ["p"]).save(folder / "a.parquet")
    return lambda: Pairs.load(folder / "a.parquet")


def labels(folder: Path) -> Callable[[], object]:
    store = LabelStore.open(folder, header=header_of("teacher 1"))
    append(store, [1, 2])
    (part,), owner = store.manifest["parts"], Owner.of(store.manifest)
    return lambda: what_is_wrong(folder, part, owner)


def label_part(folder: Path) -> Callable[[], object]:
    labels(folder)
    (part,) = folder.glob("part-*.parquet")
    return lambda: read_arrays(part, 2)


def weights(folder: Path) -> Callable[[], object]:
    write_tensors({"a": torch.zeros(3)}, folder / "model.safetensors")
    return lambda: read_tensors(folder / "model.safetensors")


def lstm(folder: Path) -> Callable[[], object]:
    save_lstm(LstmEncoder(LstmShape(9, 4, 4, 1, 0)), torch.zeros(2, 8), torch.zeros(2), folder)
    return lambda: load_lstm(folder, dropout=0.0, freeze_embeddings=True)


def index(folder: Path) -> Callable[[], object]:
    index_of(folder / "index")
    return lambda: open_files(folder / "index")


@pytest.mark.parametrize(
    ("stored", "left"),
    [
        (one, 0)
        for one in (some_states, embeddings, token_ids, mapped_pairs, saved_pairs, labels, label_part, weights, lstm)
    ]
    + [(index, 1)],  # its card can be read
)
def test_what_cannot_be_opened_for_want_of_descriptors_is_not_damaged(
    stored: Callable[[Path], Callable[[], object]], left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = stored(tmp_path)
    opened()  # it is whole; imports what it needs
    with files_left(left), pytest.raises(TmkdError, match=r"cannot be opened: the limit of .* is [\d,]+ \(`ulimit -n`"):
        opened()
    assert not caplog.text


def test_other_errors_are_left_alone() -> None:
    for error in (FileNotFoundError(errno.ENOENT, "no"), ValueError("24"), OSError("cut off")):
        require_room(error, "a")
    with pytest.raises(TmkdError, match=r"^a cannot be opened: the whole system .* \(on Linux `sysctl fs.file-max`"):
        require_room(OSError(errno.ENFILE, "too many"), "a")
