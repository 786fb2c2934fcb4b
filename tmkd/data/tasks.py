"""Load what a recipe's `data` describes: train, dev, test and pool, checked against one another."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd.config.sections import DEV_SHARE, Data
from tmkd.core.errors import DataError
from tmkd.data.documents.text import question_key
from tmkd.data.pairs import Pairs, Reference
from tmkd.data.readers import column_names, read_rows
from tmkd.data.row_checks import check_groups, check_labels, check_scores, check_shortcut, counted_once
from tmkd.data.row_counts import RowCounts
from tmkd.data.rows import Columns, Expected, rows_to_pairs
from tmkd.data.split import split
from tmkd.data.streamed_pairs import PairStream, is_large

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from tmkd.data.builtin.debian_docs import DebianDocs


@dataclass(frozen=True)
class TaskData:
    """The pairs of a task.

    Attributes:
        train: labelled pairs to train on.
        dev: the development set: labelled pairs on which choices are made.
        test: the test set: labelled pairs that are read once, for the report. It is `dev` itself if there is none.
        pool: unlabelled pairs for stage 1; None: stage 1 uses the training pairs.
        info: where the pairs come from, for the report.
        counts: what became of the rows of `train`, `dev`, `test` and `pool`, by these names.
    """

    train: Pairs
    dev: Pairs
    test: Pairs
    pool: Pairs | None
    info: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, RowCounts] = field(default_factory=dict)

    @property
    def labelled(self) -> dict[str, Pairs]:
        """`train`, `dev` and `test` by these names; no `test` where that is `dev` itself."""
        return {"train": self.train, "dev": self.dev} | ({} if self.test is self.dev else {"test": self.test})

    @property
    def parts(self) -> dict[str, Pairs]:
        """Those of `labelled`, and the `pool` where the recipe's files have one."""
        return self.labelled | ({} if self.pool is None else {"pool": self.pool})


def load_task(data: Data, classes: int, folder: Path | None = None) -> TaskData:
    """Read, split and check the pairs that a recipe names.

    Args:
        data: the recipe's `data`.
        classes: C.
        folder: where the pairs of a large pool are kept while the process lives; unless given, they are in memory.

    Raises:
        DataError: a file or a row that cannot be used; a part without labels; training pairs of one class only; pairs
            that are in two parts.
        FetchError: the built-in data set cannot be fetched.
    """
    task = _checked(_builtin(data) if data.builtin else _own(data, classes, folder), data, classes)
    parts = {"training": task.train, "development": task.dev, "test": task.test}
    for name, part in parts.items():
        if not part.has_labels:
            problem = "none of them has a label" if len(part) else "some are needed; give more pairs, or hold out more"
            raise DataError(f"the data gives {len(part):,} {name} pairs: {problem}")
    task = _apart(task, data.shared_pairs)
    _require_classes(task.train, classes, task.counts["train"])
    _warn_of_likely_mistakes(task)
    return task


def _apart(task: TaskData, shared_pairs: str) -> TaskData:
    """Refuse pairs that are in two parts, in the same or another spelling, or remove them.

    A test pair stays and is removed from the other parts; a development pair is removed from the training pairs.
    """
    parts = dict(reversed(task.labelled.items()))
    seen: dict[str, str] = {}
    for name, part in list(parts.items()):
        keys = part.pair_keys
        shared = [row for row, key in enumerate(keys) if key in seen]
        if shared:
            others = sorted({seen[keys[row]] for row in shared})
            example = f"{part.questions[shared[0]]!r} with {part.passages[shared[0]][:80]!r}"
            if shared_pairs == "refuse":
                raise DataError(
                    f"data: {len({keys[row] for row in shared}):,} {name} pairs are {' or '.join(others)} pairs too, "
                    f"perhaps spelled another way, for example {example}; figures on them mean nothing. "
                    f"`data.shared_pairs: remove` leaves them out of {name}"
                )
            parts[name] = part.take(sorted(set(range(len(part))) - set(shared)))
            task.counts[name].leave_out(f"they are {' or '.join(others)} pairs too", len(shared), example)
        seen |= {key: name for key in keys if key not in seen}
    task = replace(task, train=parts["train"], dev=parts["dev"], test=parts.get("test", parts["dev"]))
    for name, part in parts.items():
        if not part.has_labels:
            raise DataError(f"data: no {name} pair with a label is left after `shared_pairs: remove`; give others")
    return task


def _checked(task: TaskData, data: Data, classes: int) -> TaskData:
    """The task with every pair of the development and test set once; what else is doubtful gets a word."""
    dev = counted_once(task.dev, task.counts["dev"])
    test = dev if task.test is task.dev else counted_once(task.test, task.counts["test"])
    task = replace(task, dev=dev, test=test)
    for name, part in task.labelled.items():
        check_groups(part, task.counts[name])
        check_labels(name, part, task.counts[name], classes)
        check_scores(part, data.scores, task.counts[name])
    return task


def _require_classes(train: Pairs, classes: int, counts: RowCounts) -> None:
    there = sorted(set(train.labels[train.labels >= 0].tolist()))
    if len(there) < 2:
        raise DataError(f"every training pair is of class {there[0]}; a model needs two or more classes to learn")
    if len(there) < classes:
        counts.warn(f"no training pair is of class {min(set(range(classes)) - set(there))}")


def _warn_of_likely_mistakes(task: TaskData) -> None:
    """Say what is allowed, and is a mistake in most cases."""
    earlier = dict[str, set[str]]()  # the questions of the parts before
    for name, part in task.labelled.items():
        own = {question: question_key(question) for question in set(part.questions)}
        for before, known in earlier.items():
            if shared := [question for question, key in own.items() if key in known]:
                task.counts[name].warn(f"{len(shared):,} questions are {before} questions too, first {min(shared)!r}")
        if earlier:
            check_shortcut(task.train, part, task.counts[name])
        earlier[{"train": "training", "dev": "development"}.get(name, name)] = set(own.values())
    if without := int((task.train.labels < 0).sum()):
        logger.info(f"data: {without:,} training pairs have no label; students learn only soft labels from them")


def built_in(data: Data) -> DebianDocs:
    """The built-in data set, in the sizes of a recipe's `data.debian_docs`.

    Raises:
        FetchError: the packages that it is made from cannot be fetched.
    """
    from tmkd.data.builtin.debian_docs import build

    return build(data.debian_docs)


def _builtin(data: Data) -> TaskData:
    docs = built_in(data)
    parts = {"train": docs.train, "dev": docs.dev, "test": docs.test, "pool": docs.pool}
    counts = {name: RowCounts(name, len(pairs)) for name, pairs in parts.items() if pairs is not None}
    return TaskData(docs.train, docs.dev, docs.test, docs.pool, docs.info, counts)


def _own(data: Data, classes: int, folder: Path | None) -> TaskData:
    assert data.train is not None
    given = {"train": data.train, "dev": data.dev, "test": data.test, "pool": data.pool}
    counts = {name: RowCounts(f"{name} ({source})") for name, source in given.items() if source is not None}
    train = _read(data, classes, "train", counts)
    info: dict[str, Any] = {"train": data.train, "hub": data.hub}
    if data.reference is not None:
        info["reference"] = data.reference
    if data.grades is not None:
        info["grades"] = f"classes: 1 from grade {data.grades.relevant_from} on; nDCG@10: the grades are the gains"
    train, dev, test = _held_out(data, train, counts)
    if data.dev is not None:
        dev = _read(data, classes, "dev", counts)
    if data.test is not None:
        test = _read(data, classes, "test", counts)
    assert dev is not None
    if test is None:
        logger.warning("data: there is no test set; the report is on the development set, which also made the choices")
        info["note"] = "No test set was given: the figures are on the development set."
    pool = None if data.pool is None else _pool(data, classes, counts, folder)
    return TaskData(train, dev, dev if test is None else test, pool, info, counts)


def _held_out(data: Data, train: Pairs, counts: dict[str, RowCounts]) -> tuple[Pairs, Pairs | None, Pairs | None]:
    """Train, dev and test, with shares of train's questions held out as dev and test; None: nothing is held out."""
    hold = data.hold_out
    dev = None if data.dev is not None else (hold and hold.dev) or DEV_SHARE
    test = hold.test if hold is not None and data.test is None else None
    shares = [share for share in (dev, test) if share is not None]
    if not shares:
        return train, None, None
    kept, *parts = split(train, fractions=(1 - sum(shares), *shares), seed=0)
    for name, share in (("dev", dev), ("test", test)):
        if share is not None:
            part = parts[0 if name == "dev" else -1]
            questions = len(set(part.questions))
            logger.info(f"data: no {name} given; {len(part):,} pairs of {questions:,} training questions are held out")
            counts["train"].leave_out(f"held out as {name}", len(part), level=logging.INFO)
            counts[name] = RowCounts(f"{name} (held out of {data.train})", len(part))
    return kept, parts[0] if dev is not None else None, parts[-1] if test is not None else None


def _pool(data: Data, classes: int, counts: Mapping[str, RowCounts], folder: Path | None) -> Pairs:
    """Read `data.pool`: a large file in a stream, if there is a folder to keep its pairs in."""
    path = Path(data.pool or "")
    if folder is None or data.hub is not None or not is_large(path):
        return _read(data, classes, "pool", counts)
    stream = PairStream(path, Columns(**data.columns.model_dump()), data.scores, counts["pool"], data.quoting)
    pairs = stream.read(folder)
    _say_unread_labels(data, path, stream.names)
    return pairs


def _say_unread_labels(data: Data, path: Path | str, names: Collection[str]) -> None:
    if data.columns.label in names:
        logger.info(f"{path}: the labels of pool pairs (column {data.columns.label!r}) are not read")


def _read(data: Data, classes: int, part: str, counts: Mapping[str, RowCounts]) -> Pairs:
    """Read one part from its file, or from its split of the hub data set.

    Args:
        data: the recipe's `data`.
        classes: C.
        part: train, dev, test or pool. Only `train` must have every score column; only `pool` needs no labels.
        counts: by part; counts the rows that are read and left out.
    """
    source: str = getattr(data, part)
    labels = part != "pool"
    reference = data.reference if labels else None
    columns = Columns(**data.columns.model_dump())
    if not labels:
        columns = replace(columns, label=None)  # a pool may have labels of another task, which are not looked at
    expected: Expected = {
        "columns": columns,
        "scores": data.scores,
        "classes": classes,
        "need_labels": labels and reference is None,
        "need_scores": part == "train",
        "labels": data.labels,
        "counts": counts[part],
    }
    if data.grades is not None:
        expected["relevant_from"] = data.grades.relevant_from
    if data.hub is not None:
        from tmkd.data.hub import read_hub

        pairs = read_hub(data.hub, source, config=data.config, **expected)
    else:
        rows = read_rows(Path(source), data.quoting)
        if not labels:
            _say_unread_labels(data, source, column_names(rows))
        pairs = rows_to_pairs(rows, Path(source), **expected)
    return pairs if reference is None else with_reference(pairs, Reference(reference, data.scores[reference]), source)


def with_reference(pairs: Pairs, reference: Reference, source: str) -> Pairs:
    """Pairs with a score column in place of labels; `source` heads the error where that cannot be."""
    try:
        return pairs.with_reference(reference)
    except DataError as error:
        raise error.within(source) from None
