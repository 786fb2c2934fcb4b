"""Pair ids as numbers: 16 bytes for an id in place of a Python string of 81, compared in all of their 128 bits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
_CHUNK = 65_536  # ids that are strings, or made numbers, at the same time
_DIGITS = 32  # of an id
_NO_DIGIT = 255
_VALUES = np.full(256, _NO_DIGIT, dtype=np.uint8)  # of each character as a hex digit
_VALUES[list(b"0123456789abcdef")] = np.arange(16)


class PairIds(Sequence[str]):
    """The ids of N pairs, read chunk by chunk: a sequence of strings that is never in memory as a whole.

    Args:
        count: N.
        chunks: Gives the ids in their order, some in each Arrow array of strings.
    """

    def __init__(self, count: int, chunks: Callable[[], Iterator[pa.Array]]) -> None:
        self._count = count
        self.chunks = chunks

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """One id, found by reading those before it; a slice reads all."""
        if isinstance(place, slice):
            return list(self)[place]
        left = place + (self._count if place < 0 else 0)
        for chunk in self.chunks():
            if 0 <= left < len(chunk):
                return str(chunk[left].as_py())
            left -= len(chunk)
        raise IndexError(place)

    def __iter__(self) -> Iterator[str]:
        for chunk in self.chunks():
            yield from chunk.to_pylist()


def chunks_of(ids: Sequence[str]) -> Iterator[pa.Array]:
    """Some ids after the others as Arrow arrays of strings, in their order."""
    if isinstance(ids, PairIds):
        yield from ids.chunks()
        return
    for start in range(0, len(ids), _CHUNK):
        yield pa.array(ids[start : start + _CHUNK], pa.string())


def numbers_of(ids: pa.Array) -> Numbers:
    """The 128 bits of each id as two numbers, [N, 2] uint64.

    An id that is not 32 hex digits of lower case, as `tmkd.data.pairs.pair_id` makes them, has the numbers of its
    BLAKE2b-128 hash.
    """
    numbers = np.empty((len(ids), 2), dtype=np.uint64)
    for start in range(0, len(ids), _CHUNK):
        numbers[start : start + _CHUNK], hexadecimal = _of_hex(ids[start : start + _CHUNK])
        for row in start + np.flatnonzero(~hexadecimal):
            numbers[row] = np.frombuffer(exact_hash(str(ids[int(row)].as_py())), dtype=">u8")
    return numbers


def exact_hash(text: str) -> bytes:
    """The 16 bytes that stand for a text, letter by letter: its BLAKE2b-128 hash."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class DistinctTexts(NamedTuple):
    """The distinct ones of N texts, in the order in which they come; 16 bytes a text, and not the texts, are in memory.

    Attributes:
        firsts: The place at which each of them occurs first, ascending, [M] int64.
        number: Which of them each text is, [N] int64.
    """

    firsts: NDArray[np.int64]
    number: NDArray[np.int64]

    @classmethod
    def of(cls, chunks: Iterable[pa.Array], count: int) -> DistinctTexts:
        """Tell N texts apart by their BLAKE2b-128 hashes.

        Args:
            chunks: Gives the texts in their order, some in each Arrow array of strings.
            count: N.
        """
        first, second, end = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.uint64), 0
        for texts in chunks:
            hashes = np.frombuffer(b"".join(map(exact_hash, texts.to_pylist())), dtype=np.uint64)
            first[end : end + len(texts)], second[end : end + len(texts)] = hashes.reshape(-1, 2).T
            end += len(texts)
        order = np.lexsort((second, first))  # stable: of equal texts the first comes first
        new = ~_repeats(first, second, order)
        firsts, which = order[new], np.empty(count, dtype=np.int64)
        which[order] = np.cumsum(new) - 1
        by_place = np.argsort(firsts)
        place = np.empty(len(firsts), dtype=np.int64)
        place[by_place] = np.arange(len(firsts))
        return cls(firsts[by_place], place[which])


def all_numbers_of(ids: Sequence[str]) -> Numbers:
    """The numbers of N ids (`numbers_of`), [N, 2] uint64; few ids are strings at the same time."""
    numbers = np.empty((len(ids), 2), dtype=np.uint64)
    end = 0
    for chunk in chunks_of(ids):
        numbers[end : end + len(chunk)] = numbers_of(chunk)
        end += len(chunk)
    return numbers


def first_of_each(ids: Sequence[str]) -> NDArray[np.int64]:
    """The place at which each distinct one of N ids occurs first, in the alphabetical order of the ids, [n] int64."""
    first, second = np.empty(len(ids), dtype=np.uint64), np.empty(len(ids), dtype=np.uint64)
    end = 0
    for chunk in chunks_of(ids):
        numbers, hexadecimal = _of_hex(chunk)
        if not hexadecimal.all():  # other ids have numbers in another order
            return np.unique(np.array(list(ids)), return_index=True)[1]
        first[end : end + len(chunk)], second[end : end + len(chunk)] = numbers.T
        end += len(chunk)
    order = np.lexsort((second, first))
    new = ~_repeats(first, second, order)
    del first, second  # hundreds of megabytes where there are millions of ids
    return order[new]


def _repeats(first: NDArray[np.uint64], second: NDArray[np.uint64], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each of N numbers of 128 bits, taken in the order that sorts them, equals the one before it, [N]."""
    again = np.ones(len(order), dtype=np.bool_)
    again[:1] = False
    for start in range(0, len(order), _CHUNK):
        some = order[start : start + _CHUNK + 1]  # the last one is the first of the next chunk
        for half in (first[some], second[some]):
            again[start + 1 : start + len(some)] &= half[1:] == half[:-1]
    return again


def latest_of_each(numbers: Numbers) -> NDArray[np.int64]:
    """The place at which each distinct one of N ids (`numbers_of`, [N, 2]) occurs last, ascending, [n] int64."""
    return np.unique(StoredIds(numbers).find(numbers))


class StoredIds:
    """The ids of stored pairs, in which others are looked up.

    Args:
        numbers: The ids as numbers (`numbers_of`), [M, 2] uint64, oldest first; an id may occur more than once.
    """

    def __init__(self, numbers: Numbers) -> None:
        order = np.argsort(numbers[:, 0], kind="stable")  # so of equal ids the latest comes last
        self._first, self._second, self._order = numbers[order, 0], numbers[order, 1], order

    def find(self, wanted: Numbers) -> NDArray[np.int64]:
        """The place of the latest of the stored ids that equals each wanted one, [N] int64; -1 where none does."""
        order = np.argsort(wanted[:, 0])  # one after another they are near to each other in memory
        first, second = wanted[order].T
        places = np.searchsorted(self._first, first, side="right") - 1
        found = np.full(len(wanted), -1, dtype=np.int64)
        left = np.arange(len(wanted))
        while len(left):  # once for all but ids whose first 64 bits are those of a later stored one
            left = left[places[left] >= 0]
            left = left[self._first[places[left]] == first[left]]
            equal = self._second[places[left]] == second[left]
            found[order[left[equal]]] = self._order[places[left[equal]]]
            left = left[~equal]
            places[left] -= 1
        return found


def _of_hex(ids: pa.Array) -> tuple[Numbers, NDArray[np.bool_]]:
    """The numbers of the ids that are 32 hex digits, [N, 2] uint64 (0 for others), and which ones are, [N]."""
    texts = ids.cast(pa.binary())
    lengths = np.diff(np.frombuffer(texts.buffers()[1], dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1])
    hexadecimal = lengths == _DIGITS
    if not hexadecimal.all():
        texts = pa.array([one if fits else b"0" * _DIGITS for one, fits in zip(texts.to_pylist(), hexadecimal.tolist(),
                                                                              strict=True)], pa.binary())  # fmt: skip
    if not len(texts):
        return np.empty((0, 2), dtype=np.uint64), hexadecimal
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int32)
    start = int(offsets[texts.offset])
    characters = np.frombuffer(texts.buffers()[2], dtype=np.uint8, count=_DIGITS * len(texts), offset=start)
    digits = _VALUES[characters].reshape(len(texts), _DIGITS)
    hexadecimal = hexadecimal & (digits != _NO_DIGIT).all(axis=1)
    bytes_ = digits[:, 0::2] << 4 | digits[:, 1::2] & 15
    return bytes_.view(">u8").astype(np.uint64), hexadecimal
