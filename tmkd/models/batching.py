"""Cut pairs into batches: sorted by length, filled to a token budget, in an order that a resumed run repeats exactly.

Computing padding is wasted work (METHOD.md, "Exactly equal, and cheaper"), so pairs of similar length go into one
batch. The trade-off: the pairs of an optimiser step have similar lengths, so they are not a fully random sample. They
are sorted within windows of a few steps only, so an epoch still mixes short and long pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tmkd.models.ragged import together

IntArray = NDArray[np.int64]
WINDOW = 16  # steps within which pairs are sorted by length
WIDTH_STEP = 8  # batches are padded to a multiple of this, so that there are few shapes and kernels are reused
_LARGE = 1 << 31  # pairs whose numbers need 8 bytes
NO_BUDGET = 1 << 60  # a token budget that never limits a batch


def padded_width(longest: int, step: int = WIDTH_STEP) -> int:
    """Return the width of a batch whose longest pair has `longest` tokens: the next multiple of `step`.

    Args:
        longest: tokens of the longest pair.
        step: the width is a multiple of this.

    Returns:
        The width in tokens, at least `step`.
    """
    return max(1, -(-longest // step)) * step


def stacked(rows: Sequence[NDArray[Any]], width: int) -> NDArray[Any]:
    """Put arrays of different lengths one below another.

    Args:
        rows: n arrays, [T_i, ...] each, at least one.
        width: T, no less than the longest.

    Returns:
        [n, T, ...], of the first array's type, zeros after each array's end.
    """
    found = np.zeros((len(rows), width, *rows[0].shape[1:]), dtype=rows[0].dtype)
    for line, row in enumerate(rows):
        found[line, : len(row)] = row
    return found


def length_sorted_batches(
    lengths: NDArray[np.integer], token_budget: int, max_pairs: int | None = None
) -> list[IntArray]:
    """Cut pairs into batches of similar length, longest first, so that memory peaks at the start.

    Args:
        lengths: tokens of each pair, [N] int.
        token_budget: most tokens of a batch, padding included; a longer pair is a batch alone.
        max_pairs: most pairs of a batch.

    Returns:
        Indices of the pairs of each batch, int64; every pair exactly once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches: list[IntArray] = []
    start = 0
    while start < len(order):
        size = max(1, token_budget // padded_width(int(lengths[order[start]])))
        if max_pairs is not None:
            size = min(size, max_pairs)
        batches.append(order[start : start + size])
        start += size
    return batches


def spread_chunks(lengths: NDArray[np.integer], size: int) -> Iterator[IntArray]:
    """Cut pairs into chunks of similar length, for work that takes long and says how much of its time is left.

    The longest chunk comes first, so that memory peaks at the start. The others follow so that the first few, however
    many, are spread over all lengths (the golden ratio's multiples, modulo 1): the rate so far is that of what is left.

    Args:
        lengths: of each pair, in any unit, [N] int.
        size: pairs of a chunk; the last of the shortest has what is left.

    Yields:
        Indices of the pairs of a chunk, int64, longest first; every pair exactly once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    places = np.arange(-(-len(order) // size)) * ((5**0.5 - 1) / 2) % 1
    for chunk in np.argsort(places, kind="stable").tolist():
        yield order[chunk * size : (chunk + 1) * size]


def engine_batches(lengths: NDArray[np.integer], token_budget: int, parts: int) -> list[IntArray]:
    """Cut pairs into batches for an inference engine, which compiles and keeps a kernel for every new shape.

    The size of every batch is a power of two, so there are few shapes: at most one for each width and power of two.
    No pairs are added for that; a remainder is cut into smaller powers.

    Args:
        lengths: tokens of each pair, [N] int.
        token_budget: most tokens of a batch, padding included; a longer pair is a batch alone.
        parts: batches that run at the same time; a call is cut into at least so many where it has enough pairs.

    Returns:
        Indices of the pairs of each batch, int64, longest pairs first; every pair exactly once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    share = -(-len(order) // parts)
    batches: list[IntArray] = []
    start = 0
    while start < len(order):
        most = min(token_budget // padded_width(int(lengths[order[start]])), share, len(order) - start)
        size = 1 << (max(1, most).bit_length() - 1)
        batches.append(order[start : start + size])
        start += size
    return batches


def engine_shapes(max_length: int, token_budget: int) -> list[tuple[int, int]]:
    """Return (pairs, width) of every batch that `engine_batches` can give, except a pair longer than the budget.

    Args:
        max_length: most tokens of a pair.
        token_budget: as in `engine_batches`.

    Returns:
        The shapes.
    """
    widths = range(WIDTH_STEP, padded_width(max_length) + 1, WIDTH_STEP)
    return [(1 << power, width) for width in widths for power in range((token_budget // width).bit_length())]


def micro_batches(lengths: NDArray[np.integer], token_budget: int) -> list[IntArray]:
    """Cut the pairs of one optimiser step into equal parts of similar length, each within the token budget.

    The parts are equal so that there are few shapes: a shorter last part would have a new shape nearly every time.

    Args:
        lengths: tokens of each pair, [N] int, N at least 1.
        token_budget: most tokens of a part, padding included; a longer pair is a part alone.

    Returns:
        Indices of the pairs of each part, int64, longest pairs first; every pair exactly once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    most = max(1, token_budget // padded_width(int(lengths[order[0]])))
    size = -(-len(order) // -(-len(order) // most))
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad(
    ids: Sequence[NDArray[np.integer]],
    type_ids: Sequence[NDArray[np.integer]],
    rows: Sequence[int] | IntArray,
    pad_id: int,
    step: int = WIDTH_STEP,
) -> tuple[IntArray, IntArray, IntArray]:
    """Pad some pairs on the right to a rectangle.

    Args:
        ids: token ids of N pairs, [T_i] each.
        type_ids: segment ids of N pairs, [T_i] each.
        rows: indices of the n pairs.
        pad_id: token id of padding.
        step: the width T is a multiple of this.

    Returns:
        Input ids, attention mask and segment ids, [n, T] int64 each.
    """
    tokens, own_types, lengths = together(ids, type_ids, rows)
    width = padded_width(int(lengths.max()), step)
    inside = np.arange(width) < lengths[:, None]
    input_ids = np.full(inside.shape, pad_id, dtype=np.int64)
    types = np.zeros(inside.shape, dtype=np.int64)
    input_ids[inside] = tokens
    types[inside] = own_types
    return input_ids, inside.astype(np.int64), types


def pack(
    ids: Sequence[NDArray[np.integer]], type_ids: Sequence[NDArray[np.integer]], rows: Sequence[int] | IntArray
) -> tuple[IntArray, IntArray, NDArray[np.int32]]:
    """Put some pairs one after another, without padding.

    Args:
        ids: token ids of N pairs, [T_i] each.
        type_ids: segment ids of N pairs, [T_i] each.
        rows: indices of the n pairs.

    Returns:
        Input ids and segment ids, [tokens] int64 each; where each pair starts, and the end of the last, [n + 1] int32.
    """
    tokens, types, lengths = together(ids, type_ids, rows)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return tokens.astype(np.int64), types.astype(np.int64), starts


class Steps(Sequence[IntArray]):
    """The pairs of every optimiser step of an epoch, read as a list of arrays is: one array holds the whole order.

    Args:
        order: numbers of the pairs, step after step, [N] int.
        bounds: where each step begins in `order`, and the end of the last, [steps + 1].
    """

    def __init__(self, order: NDArray[np.integer], bounds: NDArray[np.integer]) -> None:
        self.order, self.bounds = order, bounds

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, step: int) -> IntArray: ...
    @overload
    def __getitem__(self, step: slice) -> list[IntArray]: ...
    def __getitem__(self, step: int | slice) -> IntArray | list[IntArray]:
        """The pairs of one step, [n] int64, or those of a slice of steps."""
        if isinstance(step, slice):
            return [self[number] for number in range(*step.indices(len(self)))]
        number = step + (len(self) if step < 0 else 0)
        if not 0 <= number < len(self):
            raise IndexError(step)
        return self.order[self.bounds[number] : self.bounds[number + 1]].astype(np.int64)


def _numbers(count: int) -> NDArray[np.integer]:
    """The numbers from 0 to below `count`, in as few bytes as that takes."""
    return np.arange(count, dtype=np.int32 if count < _LARGE else np.int64)


def replayed_steps(
    lengths: NDArray[np.integer], own: int, batch_size: int, replayed: int, epoch: int, seed: int
) -> list[IntArray]:
    """Choose the pairs of every optimiser step of one epoch of stage 2 with replay of pool pairs.

    A full step has `batch_size - replayed` of the task's pairs and `replayed` pool pairs; a shorter step keeps that
    proportion. Pool pairs are drawn in random order, all of them once before any is drawn again, and go into steps
    of similar length. A pure function of its arguments.

    Args:
        lengths: tokens of each pair, [N] int: the task's pairs, then the pool pairs.
        own: how many of them are the task's.
        batch_size: pairs of a full step.
        replayed: pool pairs of a full step.
        epoch: number of the epoch.
        seed: of the random order.

    Returns:
        Indices of the pairs of each step, int64.
    """
    size = batch_size - replayed
    steps = list(epoch_steps(lengths[:own], size, epoch, seed))
    counts = [round(len(step) * replayed / size) for step in steps]
    generator, pool = np.random.default_rng([seed, epoch, own]), len(lengths) - own
    passes = -(-sum(counts) // pool)
    drawn = np.concatenate([generator.permutation(pool) for _ in range(passes)])[: sum(counts)] + own
    drawn = drawn[np.argsort(np.asarray(lengths)[drawn], kind="stable")]
    by_length = sorted(range(len(steps)), key=lambda number: int(lengths[steps[number]].max()))
    ends = np.cumsum([counts[number] for number in by_length])
    for number, rows in zip(by_length, np.split(drawn, ends[:-1]), strict=True):
        steps[number] = np.concatenate([steps[number], rows])
    return steps


def epoch_steps(lengths: NDArray[np.integer], batch_size: int, epoch: int, seed: int) -> Steps:
    """Choose the pairs of every optimiser step of one epoch.

    Pairs are shuffled and cut into windows. Within a window they are sorted by length, cut into steps, and the steps
    are shuffled. So a step needs little padding, and short and long pairs still alternate. A pure function of its
    arguments, so a resumed run repeats it.

    Args:
        lengths: tokens of each pair, [N] int.
        batch_size: pairs of a step.
        epoch: number of the epoch.
        seed: of the random order.

    Returns:
        Indices of the pairs of each step, int64; every pair exactly once.
    """
    generator, known = np.random.default_rng([seed, epoch]), np.asarray(lengths)
    order = generator.permutation(_numbers(len(known)))
    sizes: list[int] = []
    for start in range(0, len(order), WINDOW * batch_size):
        rows = order[start : start + WINDOW * batch_size]  # a view
        rows[:] = rows[np.argsort(known[rows], kind="stable")]
        sizes += _shuffle_steps(rows, batch_size, generator)
    return Steps(order, np.cumsum([0, *sizes]))


def _shuffle_steps(order: NDArray[np.integer], batch_size: int, generator: np.random.Generator) -> list[int]:
    """Cut pairs into steps, shuffle these in place, and return the size of each."""
    cuts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shuffled = [cuts[number] for number in generator.permutation(len(cuts))]
    sizes = [len(cut) for cut in shuffled]
    order[:] = np.concatenate([order[:0], *shuffled])
    return sizes


def grouped_epoch_steps(questions: NDArray[np.integer], batch_size: int, epoch: int, seed: int) -> Steps:
    """Choose the pairs of every optimiser step with a question's pairs together, for losses that compare them.

    Questions are shuffled and put one after another into steps. A question with more pairs than a step is cut into
    parts of similar size, differently in every epoch. Unlike in `epoch_steps`, the pairs of one step differ in
    length, and the number of steps depends on the epoch. A pure function of its arguments.

    Args:
        questions: the question of each pair, [N] int.
        batch_size: most pairs of a step, at least 4, so that a question of several pairs is never cut down to one.
        epoch: number of the epoch.
        seed: of the random order.

    Returns:
        Indices of the pairs of each step, int64; every pair exactly once.

    Raises:
        ValueError: `batch_size` is less than 4.
    """
    if batch_size < 4:
        raise ValueError(f"batch_size {batch_size}: a grouped step needs room for 4 pairs")
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(questions))
    place = generator.permutation(int(questions.max(initial=-1)) + 1)[questions[shuffled]]
    order = shuffled[np.argsort(place, kind="stable")]
    sizes: list[int] = []  # of the steps
    for count in np.diff([0, *(np.flatnonzero(np.diff(questions[order])) + 1), len(order)]).tolist():
        parts = -(-count // batch_size)
        for part in range(parts):
            size = count // parts + (part < count % parts)
            if not sizes or sizes[-1] + size > batch_size:
                sizes.append(0)
            sizes[-1] += size
    return Steps(_numbers(len(order))[order], np.cumsum([0, *sizes]))


def passage_steps(
    passages: NDArray[np.integer], lengths: NDArray[np.integer], batch_size: int, epoch: int, seed: int
) -> Steps:
    """Choose the pairs of every optimiser step with a passage's pairs together, so that it is read once for them.

    Passages are shuffled and cut into windows. Within a window they are sorted by length, and the pairs of one after
    the other fill steps, so the pairs of a passage may be parted between two. The steps of the epoch are shuffled. A
    pure function of its arguments.

    Args:
        passages: the passage of each pair, [N] int.
        lengths: tokens of that passage, [N] int.
        batch_size: pairs of a step.
        epoch: number of the epoch.
        seed: of the random order.

    Returns:
        Indices of the pairs of each step, int64; every pair exactly once.
    """
    generator = np.random.default_rng([seed, epoch])
    place = generator.permutation(int(passages.max(initial=-1)) + 1)[passages]  # of each pair's passage
    order = _numbers(len(passages))[np.argsort(place, kind="stable")]
    for start in range(0, len(order), WINDOW * batch_size):
        rows = order[start : start + WINDOW * batch_size]  # a view
        rows[:] = rows[np.lexsort((place[rows], lengths[rows]))]
    sizes = _shuffle_steps(order, batch_size, generator)
    return Steps(order, np.cumsum([0, *sizes]))
