"""The built-in data set `debian-docs`: real questions, real answers, from the documentation that Debian packages.

Labelled pairs come from FAQs. A passage of a question's own answer is positive. The negatives are passages that BM25
finds for the question: three quarters of them are passages of other answers, the rest any passages. The reason: answers
read differently from reference text. When negatives came from anywhere, nearly all were reference text; the feature "is
this from a FAQ" alone then had a ROC-AUC of 0.95, and teachers that had learned it were no better than chance at
finding the right answer among other answers.

The unlabelled pool pairs each training question with the passages of its own answer, with passages that BM25 finds, and
with passages of other answers; and it pairs section headings, used as questions, with passages that BM25 finds. The
training set (only that one) may also use headings as questions: the first passage below a heading is positive; the
negatives are the best of the first passages below other headings.

Decontamination: the split is by a hash of the question. A training question that is nearly equal to a development or
test question is dropped. No passage of a development or test pair is in a training pair or a pool pair, whether it is a
positive or a negative, and neither is one that is nearly equal to it, nor one that quotes a development or test
question. So the negatives of these two sets are answers to their other questions, and passages of no answer. (When only
the positives were held out, "was this passage never seen" alone had a ROC-AUC of 0.75.) These choices do not depend on
the sizes. A passage that contains the question that it would be paired with is not used.

A negative may still answer the question, since another page can say the same. Where BM25 and a strong bi-encoder both
put it above every positive of the question, it is left out and counted (`judgements`). What remains is the same for
every method.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tmkd.config.sections import DebianDocsSizes
from tmkd.core.files import cache_folder, read_json
from tmkd.data.builtin.corpus import read_corpus
from tmkd.data.builtin.debian_packages import fetch
from tmkd.data.builtin.judgements import Judgements
from tmkd.data.builtin.pairing import EVAL_NEGATIVES, SEED, TRAIN_NEGATIVES, make_pairs
from tmkd.data.documents.passages import Passage
from tmkd.data.pairs import Pairs

logger = logging.getLogger(__name__)

FORMAT = 6  # raise it when this code, the parsers or the cutting into passages give another data set
PARTS = ("train", "dev", "test", "pool")


@dataclass(frozen=True)
class DebianDocs:
    """The data set.

    Attributes:
        train: labelled pairs (0 or 1), with qid and pid.
        dev: likewise.
        test: likewise.
        pool: unlabelled pairs, with qid and pid.
        passages: all passages, each text once.
        info: package versions, options, counts, and `digest`, the hash of all pairs.
    """

    train: Pairs
    dev: Pairs
    test: Pairs
    pool: Pairs
    passages: list[Passage]
    info: dict[str, Any]


def build(sizes: DebianDocsSizes | None = None) -> DebianDocs:
    """Build the data set, or read it if an earlier call with the same packages and sizes has built it.

    Args:
        sizes: how many headings and passages, and which packages (all of `tmkd.data.builtin.catalogue` unless given);
            the defaults unless given. The split does not depend on them.

    Raises:
        FetchError: the packages cannot be fetched; the message says what other data can be used.
        DataError: an unknown package name, no question is left for train, dev or test, or a feature that says nothing
            of the question tells the labels of dev or test apart (few packages or questions).
    """
    sizes = sizes or DebianDocsSizes()
    judgements = Judgements.read()
    options = {
        **sizes.model_dump(exclude={"packages"}),
        "train_negatives": TRAIN_NEGATIVES,
        "eval_negatives": EVAL_NEGATIVES,
        "seed": SEED,
        "judgements": judgements.digest(),
    }
    fetched = fetch(sizes.packages)
    versions = {package.name: package.version for package in fetched}
    key = hashlib.sha256(json.dumps([FORMAT, versions, options], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder("debian-docs", "built") / key
    if not folder.is_dir():
        corpus = read_corpus(fetched)
        parts, counts = make_pairs(corpus, sizes, judgements)
        digest = hashlib.sha256("".join(part.digest() for part in parts.values()).encode()).hexdigest()[:32]
        info = {"packages": versions, "options": options, **counts, "digest": digest}
        _tell(counts)
        _save(DebianDocs(**parts, passages=corpus.passages, info=info), folder)
    return _load(folder)


def build_demo() -> DebianDocs:
    """The data set in the sizes of recipes/demo.yaml; a run of that recipe has built it already."""
    return build(DebianDocsSizes(pool_per_question=8, headings=80, pool_per_heading=5))


def _tell(counts: dict[str, Any]) -> None:
    """Say in the log how many negatives were left out, and how many could not be judged."""
    answering, unjudged = counts["negatives_that_answer"], counts["negatives_never_judged"]
    logger.info(
        f"debian-docs: {sum(answering.values())} negatives are left out, since BM25 and a bi-encoder both put them "
        f"above the answer: {answering}"
    )
    if any(unjudged.values()):
        logger.warning(
            f"debian-docs: {sum(unjudged.values())} negatives that BM25 puts above the answer stay; the bi-encoder "
            f"has never judged them: {unjudged}. These packages, or their versions, are not those that "
            "tmkd/data/builtin/judgements.json was made with; tools/judge_negatives.py makes it anew"
        )


def _save(docs: DebianDocs, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        place = Path(temporary) / "whole"
        for name in PARTS:
            getattr(docs, name).save(place / f"{name}.parquet")
        columns = {
            name: [getattr(passage, name) for passage in docs.passages]
            for name in ("pid", "text", "title", "source", "section", "answer_of", "code")
        }
        table = pa.table({**columns, "heading_path": [list(passage.heading_path) for passage in docs.passages]})
        pq.write_table(table, place / "passages.parquet", compression="zstd")
        (place / "info.json").write_text(json.dumps(docs.info, indent=2))
        if folder.exists():  # another process was faster
            shutil.rmtree(place)
        else:
            os.replace(place, folder)
    logger.info(
        f"debian-docs: {docs.info['rows']} pairs, {docs.info['passages']:,} passages, digest {docs.info['digest']}"
    )


def _load(folder: Path) -> DebianDocs:
    table = pq.read_table(folder / "passages.parquet")
    names = ("pid", "text", "title", "heading_path", "source", "section", "answer_of", "code")
    columns = [table.column(name).to_pylist() for name in names]
    columns[3] = [tuple(path) for path in columns[3]]
    passages = [Passage(*fields) for fields in zip(*columns, strict=True)]
    train, dev, test, pool = (Pairs.load(folder / f"{name}.parquet") for name in PARTS)
    return DebianDocs(train, dev, test, pool, passages, read_json(folder / "info.json"))
