"""Batches of pairs: length-sorted, filled to a token budget, in an order that a resumed run repeats exactly.

Padding is work thrown away (METHOD.md, "Exactly equal, and cheaper"): rows of like length go together, so a
micro-batch is nearly a full rectangle. Trade-off: the pairs of one optimiser step are of like length, not a fully
random sample; the window over which they are sorted is small (16 steps), so an epoch still mixes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
WIDTH_STEP = 8  # batches are padded to a multiple of this: few shapes, so that the kernels made for a shape are reused
NO_BUDGET = 1 << 60  # tokens: a batch is limited by its pairs alone


def padded_width(longest: int, step: int = WIDTH_STEP) -> int:
    """The width of a batch whose longest row has `longest` tokens: the next multiple of `step`."""
    return max(1, -(-longest // step)) * step


def length_sorted_batches(
    lengths: NDArray[np.integer], token_budget: int, max_pairs: int | None = None
) -> list[IntArray]:
    """Rows cut into batches of like length, longest first (so that memory peaks at the start).

    Args:
        lengths: tokens of each row, [N] int.
        token_budget: most tokens of a batch, padding included; a longer row is a batch of its own.
        max_pairs: most rows of a batch.

    Returns:
        Row indices of each batch, int64; every row exactly once.
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


def engine_batches(lengths: NDArray[np.integer], token_budget: int, parts: int) -> list[IntArray]:
    """Rows cut for an inference engine, which prepares itself anew for every shape it has not seen and keeps that.

    Every batch has a power of two of rows, so that the shapes are few whatever the calls: at most one for each width
    and power of two. Nothing is padded for it: what is left over is cut into smaller powers.

    Args:
        lengths: tokens of each row, [N] int.
        token_budget: most tokens of a batch, padding included; a longer row is a batch of its own.
        parts: batches that run at once; a call with few rows is cut into at least so many.

    Returns:
        Row indices of each batch, int64, longest rows first; every row exactly once.
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
    """Rows and width of every batch that `engine_batches` can give, but for one row that is longer than the budget."""
    widths = range(WIDTH_STEP, padded_width(max_length) + 1, WIDTH_STEP)
    return [(1 << power, width) for width in widths for power in range((token_budget // width).bit_length())]


def micro_batches(lengths: NDArray[np.integer], token_budget: int) -> list[IntArray]:
    """The rows of one step in equal parts of like length, each within the token budget, longest first.

    Equal, so that a step's shapes depend on little more than its longest row: a short last part would be a shape of
    its own nearly every time. Arguments and result as in `length_sorted_batches`.
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
    """The rows as a rectangle, padded on the right: input ids, attention mask, type ids, each [n, T] int64.

    T is a multiple of `step`.
    """
    width = padded_width(max(len(ids[row]) for row in rows), step)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    types = np.zeros((len(rows), width), dtype=np.int64)
    for line, row in enumerate(rows):
        count = len(ids[row])
        input_ids[line, :count] = ids[row]
        types[line, :count] = type_ids[row]
        mask[line, :count] = 1
    return input_ids, mask, types


def pack(
    ids: Sequence[NDArray[np.integer]], type_ids: Sequence[NDArray[np.integer]], rows: Sequence[int] | IntArray
) -> tuple[IntArray, IntArray, NDArray[np.int32]]:
    """The rows one after another: input ids and type ids, [tokens] int64; where each begins, and the end, [n + 1]."""
    lengths = [len(ids[row]) for row in rows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    input_ids = np.concatenate([ids[row] for row in rows]).astype(np.int64)
    return input_ids, np.concatenate([type_ids[row] for row in rows]).astype(np.int64), starts


def replayed_steps(
    lengths: NDArray[np.integer], own: int, batch_size: int, replayed: int, epoch: int, seed: int
) -> list[IntArray]:
    """The steps of one epoch over the first `own` rows, each filled up with rows drawn from those behind them.

    A whole step has `replayed` of those and `batch_size - replayed` own ones; a shorter one keeps the share. The drawn
    rows come in a random order, all of them before any comes again, and go to steps of like length. A pure function of
    its arguments.
    """
    size = batch_size - replayed
    steps = epoch_steps(lengths[:own], size, epoch, seed)
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


def epoch_steps(
    lengths: NDArray[np.integer], batch_size: int, epoch: int, seed: int, window: int = 16
) -> list[IntArray]:
    """The rows of every optimiser step of one epoch: a pure function of its arguments, so a resume repeats it.

    Rows are shuffled, cut into windows of `window` steps, sorted by length inside the window, cut into steps of
    `batch_size`, and the window's steps are shuffled: each step is nearly without padding, yet short and long
    pairs alternate.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    steps: list[IntArray] = []
    for start in range(0, len(order), window * batch_size):
        rows = order[start : start + window * batch_size]
        rows = rows[np.argsort(np.asarray(lengths)[rows], kind="stable")]
        cuts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        steps.extend(cuts[i] for i in generator.permutation(len(cuts)))
    return steps


def grouped_epoch_steps(questions: NDArray[np.integer], batch_size: int, epoch: int, seed: int) -> list[IntArray]:
    """The rows of every optimiser step of one epoch with a question's rows together, for losses that compare them.

    Questions are shuffled and put one after another into steps of at most `batch_size` rows. A question with more rows
    than that is cut into parts of like size, another cut in every epoch. A pure function of its arguments, as
    `epoch_steps` is; unlike there, rows of one step differ in length, and the number of steps depends on the epoch.

    Args:
        questions: the question of each row, [N] int.
        batch_size: at least 4, so that no part of a question is a single row (where the question is not).
    """
    if batch_size < 4:
        raise ValueError(f"batch_size {batch_size}: a grouped step needs room for 4 rows")
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(questions))
    place = generator.permutation(int(questions.max(initial=-1)) + 1)[questions[shuffled]]
    order = shuffled[np.argsort(place, kind="stable")]
    whole = np.split(order, np.flatnonzero(np.diff(questions[order])) + 1)
    steps: list[list[IntArray]] = []
    room = 0
    for rows in whole if len(order) else []:
        for part in np.array_split(rows, -(-len(rows) // batch_size)):
            if len(part) > room:
                steps.append([])
                room = batch_size
            steps[-1].append(part)
            room -= len(part)
    return [np.concatenate(step) for step in steps]
