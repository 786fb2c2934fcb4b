"""The queue in front of the scorer: what goes into a batch, in which order, and who is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from tmkd.serve.messages import Group, Scored
from tmkd.serve.metrics import Metrics
from tmkd.serve.queueing import BatchQueue, Read
from tmkd.serve.refusals import Refusal, unavailable


class Fake:
    """Scores a text by its length, when it is let."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[tuple[str, int]]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.seconds = seconds
        self.dies = False
        self.hello: Any = "there"
        self.states: Callable[[int], tuple[int, int, int]] = lambda _: (0, 0, 0)

    async def score(self, groups: list[Group]) -> Scored:
        self.batches.append([(query, len(texts)) for query, texts, *_ in groups])
        await self.open.wait()
        await asyncio.sleep(self.seconds)
        if self.dies:
            raise unavailable("it died")
        lengths = [float(len(text)) for _, texts, *_ in groups for text in texts]
        strict = [not truncate for _, texts, truncate, _ in groups for _ in texts]
        too_long = [(row, int(n)) for row, n in enumerate(lengths) if strict[row] and n > 100]
        tokens = np.array(lengths).astype(np.int64) // 2
        return Scored(
            0, np.array(lengths).tobytes(), tokens.tobytes(), too_long, self.seconds, self.states(len(lengths))
        )


def run(test: Callable[[Fake, BatchQueue, Metrics], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        fake, metrics = Fake(), Metrics()
        settings = {"max_length": 50, "batch_tokens": 400, "batch_wait": 0.02, "max_queue": 1000, **options}
        queue = BatchQueue(fake, metrics, **settings)
        queue.start()
        try:
            await test(fake, queue, metrics)
        finally:
            await queue.close()

    asyncio.run(main())


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def texts(count: int, size: int = 40) -> list[str]:
    """Texts of about one size, no two equal."""
    return [str(row).rjust(size + row % 3, "x") for row in range(count)]


def test_requests_that_come_together_leave_together_and_each_gets_its_own() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        found = await asyncio.gather(*(queue.score(f"q{n}", texts(2 + n), until=soon()) for n in range(3)))
        for n, scores in enumerate(found):
            np.testing.assert_array_equal(scores.scores, [len(text) for text in texts(2 + n)])
        assert fake.batches == [[("q0", 2), ("q1", 3), ("q2", 4)]]

    run(test)


def test_a_batch_that_is_full_does_not_wait_and_keeps_to_the_budget() -> None:
    async def test(fake: Fake, queue: BatchQueue, metrics: Metrics) -> None:
        start = time.monotonic()
        await asyncio.gather(*(queue.score(f"q{n}", texts(20), until=soon()) for n in range(3)))
        assert time.monotonic() - start < 5
        pairs = [sum(count for _, count in batch) for batch in fake.batches]
        assert sum(pairs) == 60
        assert max(pairs) <= 400 // 13  # 3 special tokens, 40 characters of 4
        within = metrics.registry.get_sample_value("tmkd_batch_fill_ratio_bucket", {"model": "student", "le": "1.0"})
        assert within == len(pairs)

    run(test, batch_wait=30.0 / 1000)


def test_texts_that_a_cached_student_has_read_cost_little_the_next_time() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        queue.read_apart(1000)
        fake.states = lambda count: (0, 0, count)
        await queue.score("q", texts(60), until=soon())
        assert max(sum(count for _, count in batch) for batch in fake.batches) <= 400 // 13  # each text is read
        reading = queue._rate
        fake.batches.clear()
        fake.states = lambda count: (0, count, 0)
        await queue.score("q", texts(60), until=soon())
        assert fake.batches == [[("q", 60)]]  # a 24th of the cost each, so they fit one batch
        assert queue._rate < reading  # in tokens that were read, not in those of texts that were known
        queue.renew()  # another process has an empty cache
        fake.batches.clear()
        await queue.score("q", texts(60), until=soon())
        assert len(fake.batches) > 1

    run(test)


def test_what_is_remembered_of_texts_is_bounded() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        queue.read_apart(20)
        fake.states = lambda count: (0, 0, count)
        await queue.score("q", texts(60), until=soon())
        assert len(queue._known) == 20

    run(test)


def test_a_lone_request_waits_no_longer_than_the_deadline() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        start = time.monotonic()
        await queue.score("q", texts(1), until=soon())
        assert 0.15 <= time.monotonic() - start < 2

    run(test, batch_wait=0.15)


def test_an_idle_scorer_does_not_wait_for_more_once_there_is_enough() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        start = time.monotonic()
        await queue.score("q", texts(10), until=soon())  # 130 of 400 tokens
        assert time.monotonic() - start < 0.5

    run(test, batch_wait=1.0)


def test_a_small_request_passes_between_the_pieces_of_a_large_one() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        fake.open.clear()
        large = asyncio.create_task(queue.score("large", texts(300), until=soon()))
        await asyncio.sleep(0.1)
        small = asyncio.create_task(queue.score("small", texts(1), until=soon()))
        await asyncio.sleep(0.1)
        fake.open.set()
        await small
        assert not large.done()
        np.testing.assert_array_equal((await large).scores, [len(text) for text in texts(300)])
        assert any(name == "small" for batch in fake.batches[:4] for name, _ in batch)

    run(test)


def test_a_text_beyond_the_budget_is_a_batch_of_its_own() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        found = await queue.score("q", ["x" * 100_000, "y"], until=soon())
        np.testing.assert_array_equal(found.scores, [100_000, 1])

    run(test)


def test_without_room_a_request_is_refused_at_once_and_told_when_to_come_back() -> None:
    async def test(fake: Fake, queue: BatchQueue, metrics: Metrics) -> None:
        fake.open.clear()
        tasks = []
        for _ in range(4):  # two fly, two wait
            tasks.append(asyncio.create_task(queue.score("q", texts(30), until=soon())))
            await asyncio.sleep(0.05)
        with pytest.raises(Refusal) as refused:
            await queue.score("q", texts(50), until=soon())
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert metrics.registry.get_sample_value("tmkd_rejected_total", {"reason": "queue"}) == 1
        fake.open.set()
        await asyncio.gather(*tasks)
        assert queue.pairs == 0

    run(test, max_queue=100)


def test_who_would_wait_beyond_the_time_limit_is_refused_at_once() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        fake.seconds = 0.2
        await queue.score("q", texts(10), until=soon())  # about 50 pairs a second
        tasks = [asyncio.create_task(queue.score("q", texts(60), until=soon(30))) for _ in range(2)]
        await asyncio.sleep(0.1)
        start = time.monotonic()
        with pytest.raises(Refusal) as refused:
            await queue.score("q", texts(1), until=soon(0.05))
        assert refused.value.status == 429
        assert time.monotonic() - start < 0.05
        fake.seconds = 0
        await asyncio.gather(*tasks)

    run(test)


def test_time_that_is_up_is_told_and_takes_the_request_out_of_the_queue() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        fake.open.clear()
        with pytest.raises(Refusal) as refused:
            await queue.score("q", texts(300), until=soon(0.1))
        assert refused.value.status == 503
        assert "Retry-After" in refused.value.headers
        assert queue.pairs == 0
        fake.open.set()
        assert len((await queue.score("q", texts(2), until=soon())).scores) == 2

    run(test)


def test_a_caller_that_leaves_takes_its_work_with_it() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        fake.open.clear()
        task = asyncio.create_task(queue.score("gone", texts(300), until=soon()))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert queue.pairs == 0
        fake.open.set()
        await queue.score("q", texts(2), until=soon())
        assert sum(count for batch in fake.batches for name, count in batch if name == "gone") < 300

    run(test)


def test_what_was_in_flight_when_the_scorer_dies_is_refused_and_the_rest_waits_for_the_next() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        fake.open.clear()
        first = [asyncio.create_task(queue.score(f"flying{n}", texts(30), until=soon())) for n in range(2)]
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(queue.score("waiting", texts(3), until=soon()))
        await asyncio.sleep(0.1)
        fake.dies, fake.hello = True, None
        fake.open.set()
        for found in await asyncio.gather(*first, return_exceptions=True):
            assert isinstance(found, Refusal)
            assert (found.status, found.headers["Retry-After"]) == (503, "1")
        assert not waiting.done()
        fake.dies, fake.hello = False, "there"
        queue.wake()
        np.testing.assert_array_equal((await waiting).scores, [40, 41, 42])

    run(test)


def test_a_pair_beyond_the_length_is_refused_by_name_only_where_it_must_not_be_cut() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        long = ["x", "x" * 200]
        cut, strict = await asyncio.gather(
            queue.score("a", long, until=soon()),
            queue.score("b", long, until=soon(), truncate=False),
            return_exceptions=True,
        )
        assert isinstance(cut, Read)
        np.testing.assert_array_equal(cut.scores, [1, 200])
        assert isinstance(strict, Refusal)
        assert (strict.status, strict.field) == (413, "texts[1]")
        assert "200 tokens" in strict.message

    run(test)


def test_equal_texts_are_scored_once_whatever_batch_they_would_be_in() -> None:
    async def test(fake: Fake, queue: BatchQueue, metrics: Metrics) -> None:
        several = texts(60)
        found = await queue.score("q", [*several, *reversed(several), several[7]], until=soon())
        assert len(found.scores) == len(found.tokens) == len(found.cut) == 121
        np.testing.assert_array_equal(found.scores[:60], found.scores[60:120][::-1])
        assert sum(count for batch in fake.batches for _, count in batch) == 60
        assert found.scores[120] == found.scores[7]

    run(test)


def test_a_refused_pair_has_the_place_that_the_caller_gave_it() -> None:
    async def test(fake: Fake, queue: BatchQueue, _: Metrics) -> None:
        with pytest.raises(Refusal) as refused:
            await queue.score("q", ["a", "a", "a", "x" * 200, "x" * 200], until=soon(), truncate=False)
        assert refused.value.field == "texts[3]"

    run(test)


def test_pairs_that_are_longer_than_the_model_reads_are_marked_and_counted() -> None:
    async def test(fake: Fake, queue: BatchQueue, metrics: Metrics) -> None:
        found = await queue.score("q", ["x" * 100, "x" * 102, "x" * 102], until=soon())  # 50 and 51 tokens
        assert found.cut.tolist() == [False, True, True]
        assert found.tokens.tolist() == [50, 51, 51]
        assert metrics.registry.get_sample_value("tmkd_pairs_truncated_total", {"model": "student"}) == 2

    run(test)
