"""Rows that cannot be right, and parts too poor to say anything: each is counted, and gets a word or an error.

`tmkd.data.rows` checks cell by cell. Here rows are looked at together: a pair that stands twice in a set that is
measured, labels that contradict each other, question ids that group nothing or everything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tmkd.core.errors import DataError
from tmkd.data.decontamination import MOST_TELLING, feature_auc
from tmkd.data.documents.text import question_key, same_text
from tmkd.data.pairs import Pairs
from tmkd.data.row_counts import RowCounts

FEW = {"train": 50, "dev": 20, "test": 20}
"""With fewer labelled rows than this a part gets a word."""
_SHOWN = 60  # characters of a text in a message
_GRADES = range(11)  # whole numbers that look like grades


def counted_once(part: Pairs, counts: RowCounts) -> Pairs:
    """A set to measure on, with every pair once: a pair that stands twice would count twice.

    Of rows with the same question and passage (under one qid, where there are qids) the first is kept, the first
    labelled one where only some are labelled. If their labels differ, or the gains of their grades, none is kept: no
    answer would be right.

    Args:
        part: the development or test set.
        counts: counts the rows that are left out.
    """
    labels = part.labels.tolist()
    gains = None if part.grades is None else [-1 if grade is None else max(grade, 0) for grade in part.grades]
    rows: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row, (qid, question, passage) in enumerate(zip(part.qids, part.questions, part.passages, strict=True)):
        rows[same_text(qid), same_text(question), same_text(passage)].append(row)
    if len(rows) == len(part):
        return part
    kept, again, contradicted = [], [], []
    for same in rows.values():
        known = {(gains or labels)[row] for row in same} - {-1}
        if len(known) > 1:
            contradicted += same
            continue
        first = next((row for row in same if labels[row] >= 0), same[0])
        kept.append(first)
        again += [row for row in same if row != first]
    counts.leave_out("they repeat another row", len(again), _shown(part, again))
    what = "label" if gains is None else "grade"
    counts.leave_out(f"the same pair has another {what} in another row", len(contradicted), _shown(part, contradicted))
    return part.take(sorted(kept))


def check_groups(part: Pairs, counts: RowCounts) -> None:
    """Warn where the qid column groups rows of different questions, or keeps rows of one question apart.

    Raises:
        DataError: one qid stands for all of several questions.
    """
    if not part.has_qids:
        return
    key = {question: question_key(question) for question in set(part.questions)}
    asked: defaultdict[str, dict[str, str]] = defaultdict(dict)  # by qid: its questions, by their keys
    named: defaultdict[str, list[str]] = defaultdict(list)  # by question: the qids of its rows
    for qid, question in zip(part.qids, part.questions, strict=True):
        asked[qid].setdefault(key[question], question)
        named[key[question]].append(qid)
    several = {qid: list(texts.values()) for qid, texts in asked.items() if len(texts) > 1}
    fix = "name the column that groups the rows of a question (data.columns.qid), or leave it out"
    if several and len(asked) == 1:
        [(qid, texts)] = several.items()
        raise DataError(
            f"{counts.where}: all {len(part):,} rows have the qid {qid!r}, and they ask {len(texts):,} questions "
            f"({_cut(texts[0])}, {_cut(texts[1])}, ...); {fix}",
            column="qid", value=qid,
        )  # fmt: skip
    if several:
        qid, texts = next(iter(several.items()))
        counts.warn(
            f"{len(several):,} of {len(asked):,} qids stand for several questions, for example {qid!r} for "
            f"{_cut(texts[0])} and {_cut(texts[1])}; their passages are ranked together"
        )
    sizes = Counter(part.qids)
    again = [text for text, qids in named.items() if len(set(qids)) > 1 and any(sizes[qid] > 1 for qid in qids)]
    if again:
        counts.warn(
            f"{len(again):,} of {len(named):,} questions have several qids, for example {_cut(again[0])}; each qid is "
            "ranked for itself, and intervals count the question once"
        )
    apart = [text for text, qids in named.items() if len(qids) > 1 and all(sizes[qid] == 1 for qid in qids)]
    if apart:
        counts.warn(
            f"{len(apart):,} of {len(named):,} questions have several rows, each with a qid of its own, for example "
            f"{_cut(apart[0])}; their passages are not ranked against each other. If that is not meant, {fix}"
        )


def _check_contradictions(part: Pairs, counts: RowCounts, what: str) -> None:
    """Warn of pairs, in any spelling, that have different labels in several rows, such as under different qids."""
    labels: defaultdict[str, set[int]] = defaultdict(set)
    keys = part.pair_keys
    for key, label in zip(keys, part.labels.tolist(), strict=True):
        labels[key].add(label)
    other = {key for key, found in labels.items() if len(found - {-1}) > 1}
    if other:
        rows = [row for row, key in enumerate(keys) if key in other]
        counts.warn(f"{len(other):,} {what} have several labels, for example {_shown(part, rows)}")


def check_labels(name: str, part: Pairs, counts: RowCounts, classes: int) -> None:
    """Warn of a part whose labels can say little: few rows, one class, no labels in some rows, questions of one row.

    Args:
        name: train, dev or test.
        part: its pairs, some with a label.
        counts: keeps the warnings.
        classes: C.
    """
    labels = part.labels
    known = labels[labels >= 0]
    if len(known) == 0:
        return  # `load_task` refuses such a part
    _check_contradictions(part, counts, "training pairs" if name == "train" else "pairs")
    use = {"train": "models learn little from them", "dev": "choices made on them are chance"}
    if len(known) < FEW[name]:
        rows = "1 row has" if len(known) == 1 else f"{len(known):,} rows have"
        counts.warn(f"only {rows} a label: {use.get(name, 'figures on them mean little')}")
    if name == "train":
        return
    there = np.unique(known).tolist()
    if len(there) == 1:
        what = "neither ROC-AUC nor ranking metrics are defined, and" if classes == 2 else ""
        counts.warn(f"all {len(known):,} labelled rows are of class {there[0]}: {what} accuracy rewards a constant")
    elif len(there) < classes:
        counts.warn(f"no row is of class {min(set(range(classes)) - set(there))}")
    if len(known) < len(labels):
        counts.warn(f"{len(labels) - len(known):,} of {len(labels):,} rows have no label and are not measured")
    if classes == 2 and len(there) == 2:
        _check_ranked(part.take(np.flatnonzero(labels >= 0)), counts)


def _check_ranked(part: Pairs, counts: RowCounts) -> None:
    """Warn of questions with a single row, where others are ranked."""
    sizes = Counter(part.qids)
    single = [qid for qid, rows in sizes.items() if rows == 1]
    if single and len(single) < len(sizes):
        row = part.qids.index(single[0])
        counts.warn(
            f"{len(single):,} of {len(sizes):,} questions have a single row and are not ranked, for example "
            f"{_cut(part.questions[row])}"
        )


def check_scores(part: Pairs, kinds: Mapping[str, str], counts: RowCounts) -> None:
    """Warn of a score column that is declared `logit` and holds grades."""
    for name in part.score_names:
        if kinds.get(name) == "logit" and (word := grades(part.score(name))):
            counts.warn(f"the score column {name!r} is {word}")


def grades(scores: NDArray[np.float64]) -> str:
    """Why scores that are declared log-odds look like grades; empty where they don't.

    As log-odds a grade of 1 would mean "rather relevant".

    Args:
        scores: [N]; those that are nan do not count.
    """
    values = scores[np.isfinite(scores)]
    if not len(values) or not _are_grades(values):
        return ""
    low, high = int(values.min()), int(values.max())
    return (
        f"declared `logit`, and every value is a whole number from {low} to {high}: these look like grades, not "
        f"log-odds, of which 0 means undecided. Turn them into probabilities, for example (grade - {low}) / "
        f"{high - low}, and declare them `probability`"
    )


def _are_grades(values: NDArray[np.float64]) -> bool:
    whole = bool((values == np.round(values)).all())
    return whole and values.min() in _GRADES and values.max() in _GRADES and len(np.unique(values)) > 1


def check_shortcut(train: Pairs, part: Pairs, counts: RowCounts) -> None:
    """Warn if "no training pair has this passage" alone tells right from wrong passages of a set of two classes."""
    if int(part.labels.max()) > 1:
        return
    seen = set(map(same_text, train.passages))
    unseen = np.array([same_text(passage) not in seen for passage in part.passages])
    right, wrong = unseen[part.labels == 1], unseen[part.labels == 0]
    if min(len(right), len(wrong)) < FEW["test"]:
        return
    auc = feature_auc(unseen, part.labels)
    if max(auc, 1 - auc) > MOST_TELLING:
        counts.warn(
            f'"no training pair has this passage" alone has a ROC-AUC of {auc:.3f}: it holds for {right.mean():.1%} of '
            f"the pairs of class 1 and {wrong.mean():.1%} of class 0, so models may do without the question. Draw both "
            "kinds of passages alike, from those that training does not have"
        )


def _shown(part: Pairs, rows: list[int]) -> str:
    """A row as an example: its question and its passage."""
    return f"{_cut(part.questions[rows[0]])}, {_cut(part.passages[rows[0]])}" if rows else ""


def _cut(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
