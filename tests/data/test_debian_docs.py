"""The built-in data set, made for real from two small packages: what is in it, and that nothing leaks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tmkd.config.sections import DebianDocsSizes
from tmkd.core.errors import DataError
from tmkd.data.builtin.corpus import _answers, _worthwhile, is_question
from tmkd.data.builtin.debian_docs import DebianDocs, build
from tmkd.data.builtin.debian_packages import fetch
from tmkd.data.documents.sections import Block, Section
from tmkd.data.documents.text import contains, jaccard, normalise, tokens
from tmkd.data.pairs import Pairs

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt here")
PACKAGES = ("perl-doc", "debian-faq")
SMALL = {"packages": PACKAGES, "headings": 60, "pool_per_question": 8, "pool_per_heading": 3, "train_headings": 50}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, with the user's packages in it so that they are fetched only once."""
    fetched = fetch(PACKAGES)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "debian-docs").mkdir()
    (folder / "debian-docs" / "packages").symlink_to(fetched[0].root.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMKD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def docs(cache: Path) -> DebianDocs:
    return build(DebianDocsSizes(**SMALL))


def _by_question(pairs: Pairs) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for qid, label in zip(pairs.qids, pairs.labels.tolist(), strict=True):
        found.setdefault(qid, []).append(label)
    return found


def test_counts_and_labels(docs: DebianDocs) -> None:
    for name, negatives in (("train", 4), ("dev", 9), ("test", 9)):
        questions = _by_question(getattr(docs, name))
        headings = [questions.pop(qid) for qid in list(questions) if qid.startswith("h-")]
        assert len(headings) == (50 if name == "train" else 0)
        assert all(sorted(labels) == [0, 0, 0, 1] for labels in headings)
        assert len(questions) == docs.info["questions"][name]
        for labels in questions.values():
            assert 1 <= labels.count(1) <= 4
            assert labels.count(0) == negatives
    total = sum(docs.info["questions"].values())
    assert total > 350
    assert 0.45 < docs.info["questions"]["train"] / total < 0.65
    assert not docs.pool.has_labels
    assert docs.info["pool"]["headings"] == 60
    rows = zip(docs.train.pair_ids, docs.train.qids, docs.train.labels, strict=True)
    positives = {name for name, qid, label in rows if label == 1 and not qid.startswith("h-")}
    assert positives <= set(docs.pool.pair_ids)
    assert set(docs.info["packages"]) == set(PACKAGES)


def test_no_pair_twice_and_passages_are_of_the_corpus(docs: DebianDocs) -> None:
    texts = {passage.pid: passage.text for passage in docs.passages}
    assert len(texts) == len(docs.passages)
    for pairs in (docs.train, docs.dev, docs.test, docs.pool):
        assert len(set(pairs.pair_ids)) == len(pairs)
        assert all(texts[pid] == text for pid, text in zip(pairs.pids, pairs.passages, strict=True))


def test_positives_are_the_questions_own_answer_and_negatives_are_not(docs: DebianDocs) -> None:
    passages = {passage.pid: passage for passage in docs.passages}
    for pairs in (docs.train, docs.dev, docs.test):
        for question, qid, pid, label in zip(pairs.questions, pairs.qids, pairs.pids, pairs.labels, strict=True):
            if qid.startswith("h-"):
                own = normalise(passages[pid].heading_path[-1]) == normalise(question)
                assert own == (label == 1)
            else:
                assert (passages[pid].answer_of == qid) == (label == 1)


def test_being_out_of_an_answer_tells_little(docs: DebianDocs) -> None:
    answers = {passage.pid for passage in docs.passages if passage.answer_of is not None}
    for name, negatives in (("train", 4), ("dev", 9), ("test", 9)):
        pairs = getattr(docs, name)
        of_answers = [
            pid in answers
            for pid, qid, label in zip(pairs.pids, pairs.qids, pairs.labels, strict=True)
            if label == 0 and not qid.startswith("h-")
        ]
        assert sum(of_answers) / len(of_answers) >= 1 - (negatives // 4) / negatives
        assert 0.5 <= docs.info["auc_of_being_an_answer"][name] < 0.63
    positives = {pid for pid, label in zip(docs.test.pids, docs.test.labels, strict=True) if label == 1}
    negatives_of_others = {pid for pid, label in zip(docs.test.pids, docs.test.labels, strict=True) if label == 0}
    assert len(positives & negatives_of_others) > len(positives) / 3  # the same passages stand on both sides


def test_no_passage_contains_its_question(docs: DebianDocs) -> None:
    for pairs in (docs.train, docs.dev, docs.test, docs.pool):
        for question, passage in zip(pairs.questions, pairs.passages, strict=True):
            assert not contains(passage, question)


def test_nothing_of_dev_and_test_is_in_train_or_pool(docs: DebianDocs) -> None:
    held_questions = set(docs.dev.questions) | set(docs.test.questions)
    held_qids = set(docs.dev.qids) | set(docs.test.qids)
    held_pids = {passage.pid for passage in docs.passages if passage.answer_of in held_qids}
    held_texts = {normalise(passage.text) for passage in docs.passages if passage.pid in held_pids}
    held_words = [tokens(question) for question in held_questions]
    for pairs in (docs.train, docs.pool):
        assert not held_qids & set(pairs.qids)
        assert not held_pids & set(pairs.pids)
        assert not held_texts & {normalise(passage) for passage in pairs.passages}
        for question in set(pairs.questions):
            words = tokens(question)
            assert max(jaccard(words, held) for held in held_words) < 0.8
        texts = [f" {normalise(passage)} " for passage in set(pairs.passages)]
        for question in held_questions:
            phrase = f" {normalise(question)} "
            if len(phrase.split()) > 2:
                assert not any(phrase in text for text in texts)
    assert not set(docs.dev.qids) & set(docs.test.qids)


def test_second_call_reads_the_cache_and_a_rebuild_gives_the_same_rows(docs: DebianDocs, cache: Path) -> None:
    built = cache / "debian-docs" / "built"
    (folder,) = built.iterdir()
    changed = folder.stat().st_mtime_ns
    again = build(DebianDocsSizes(**SMALL))
    assert again.info == docs.info
    assert folder.stat().st_mtime_ns == changed
    folder.rename(built / "aside")
    fresh = build(DebianDocsSizes(**SMALL))
    assert fresh.info == docs.info
    assert fresh.passages == docs.passages
    assert fresh.pool.digest() == docs.pool.digest()


def test_fewer_questions_keep_their_side_of_the_split(docs: DebianDocs) -> None:
    few = build(DebianDocsSizes(**SMALL, max_questions=40))
    assert sum(few.info["questions"].values()) <= 40
    for name in ("train", "dev", "test"):
        others = {other for other in ("train", "dev", "test") if other != name}
        for other in others:
            assert not set(getattr(few, name).qids) & set(getattr(docs, other).qids)


def test_too_few_questions_are_refused(cache: Path) -> None:
    with pytest.raises(DataError, match="no question is left for"):
        build(DebianDocsSizes(**SMALL, max_questions=1))
    assert not list((cache / "debian-docs" / "built").glob(".building-*"))


def test_answers_take_what_stands_below_the_question() -> None:
    sections = [
        Section("Data", (), "FAQ", [Block("Intro.")]),
        Section("How do I encode text?", ("Data",), "FAQ", [Block("First.")]),
        Section("Output to a file", ("Data", "How do I encode text?"), "FAQ", [Block("Second.")]),
        Section("Is it fast?", ("Data", "How do I encode text?"), "FAQ", [Block("Yes.")]),
    ]
    found = [(question, [block.text for block in section.blocks]) for question, section in _answers(sections)]
    assert found == [(None, ["Intro."]), ("How do I encode text?", ["First.", "Second."]), ("Is it fast?", ["Yes."])]


@pytest.mark.parametrize(
    ("heading", "asks"),
    [
        ("What about sid?", True),
        ("How do you remove multiple items from a list", True),
        ("My class defines __del__ but it is not called.", True),
        ("AUTHOR AND COPYRIGHT", False),
        ("Data: Hashes (Associative Arrays)", False),
        ("What's new", False),
        ("?", False),
    ],
)
def test_which_headings_are_questions(heading: str, asks: bool) -> None:
    assert is_question(heading) is asks


def test_headings_that_say_nothing_are_dropped() -> None:
    headings = ["Notes", "See Also", "Return Values", "Using regular expressions in loops", "Getting the Source via"]
    headings += ["Common Error Handling Mistakes"] * 3
    assert [heading for heading, _ in _worthwhile([(heading, "x") for heading in headings])] == [
        "Using regular expressions in loops"
    ]
