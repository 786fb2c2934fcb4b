"""What a recipe's `data` part becomes: train, dev, test and pool, checked against one another."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmkd.errors import DataError
from tmkd.pairs.files import Columns, Expected, read_pairs
from tmkd.pairs.record import Pairs
from tmkd.pairs.split import split
from tmkd.progress import say
from tmkd.recipe import Data

DEV_SHARE = 0.2


@dataclass(frozen=True)
class TaskData:
    """The pairs of a task.

    Attributes:
        pool: unlabelled pairs for stage 1, or None (stage 1 then uses the training pairs).
        info: where the rows come from; goes into the report.
    """

    train: Pairs
    dev: Pairs
    test: Pairs
    pool: Pairs | None
    info: dict[str, Any] = field(default_factory=dict)


def load_task(data: Data, classes: int) -> TaskData:
    """Read, split and check the pairs that a recipe names; DataError says what is wrong with which file."""
    task = _builtin(data) if data.builtin else _own(data, classes)
    if len(task.train) == 0 or len(task.dev) == 0:
        raise DataError(
            f"the data gives {len(task.train)} training and {len(task.dev)} development rows; both are needed"
        )
    for name, part in (("dev", task.dev), ("test", task.test)):
        shared = set(task.train.pair_ids) & set(part.pair_ids)
        if shared:
            raise DataError(f"{len(shared)} rows of {name} are also training rows; a measurement on them means nothing")
    return task


def _builtin(data: Data) -> TaskData:
    from tmkd.pairs.debian_docs import build

    size = data.debian_docs
    docs = build(
        pool_per_question=size.pool_per_question,
        headings=size.headings,
        pool_per_heading=size.pool_per_heading,
        packages=size.packages,
        max_questions=size.max_questions,
    )
    return TaskData(docs.train, docs.dev, docs.test, docs.pool, docs.info)


def _own(data: Data, classes: int) -> TaskData:
    common = Expected(columns=Columns(**data.columns.model_dump()), scores=data.scores, classes=classes)

    def read(source: str, *, labels: bool, scores: bool) -> Pairs:
        expected: Expected = {**common, "need_labels": labels, "need_scores": scores}
        if data.hub is not None:
            from tmkd.pairs.hub import read_hub

            return read_hub(data.hub, source, **expected)
        return read_pairs(Path(source), **expected)

    assert data.train is not None
    train = read(data.train, labels=True, scores=True)
    info: dict[str, Any] = {"train": data.train, "hub": data.hub}
    if data.dev is not None:
        dev = read(data.dev, labels=True, scores=False)
    else:
        train, dev = split(train, fractions=(1 - DEV_SHARE, DEV_SHARE), seed=0)
        say(f"data: no dev given; {len(dev):,} rows ({DEV_SHARE:.0%} of the questions) are held out of train")
    test = dev if data.test is None else read(data.test, labels=True, scores=False)
    if data.test is None:
        say("data: no test given; the report is on the development rows, which also made the choices")
        info["note"] = "No test rows were given: the numbers are on development rows."
    pool = None if data.pool is None else read(data.pool, labels=False, scores=True)
    return TaskData(train, dev, test, pool, info)
