"""The built-in data set, made for real from two small packages: what is in it, and that nothing leaks."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tmkd.config.sections import DebianDocsSizes
from tmkd.core.errors import DataError
from tmkd.core.files import cache_folder
from tmkd.data.builtin.candidates import Candidates
from tmkd.data.builtin.corpus import Question, _answers, _worthwhile, is_question, read_corpus
from tmkd.data.builtin.debian_docs import DebianDocs, build
from tmkd.data.builtin.debian_packages import fetch
from tmkd.data.builtin.judgements import FILE, Judgements, judge, pair_name
from tmkd.data.builtin.pairing import auc_of, refuse_shortcuts, to_judge
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.sections import Block, Section
from tmkd.data.documents.text import contains, jaccard, normalise, question_key, text_hash, tokens
from tmkd.data.pairs import Pairs

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt here")
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("perl-doc", "debian-faq")
SMALL = {"packages": PACKAGES, "headings": 60, "pool_per_question": 8, "pool_per_heading": 3, "train_headings": 50}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, with the user's packages and encoders in it so that they are fetched only once."""
    fetched, encoders = fetch(PACKAGES), cache_folder("encoders")
    folder = tmp_path_factory.mktemp("cache")
    (folder / "debian-docs").mkdir()
    (folder / "debian-docs" / "packages").symlink_to(fetched[0].root.parent)
    (folder / "encoders").symlink_to(encoders)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMKD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def docs(cache: Path) -> DebianDocs:
    return build(DebianDocsSizes(**SMALL))


def _built(folder: Path, docs: DebianDocs) -> list[Path]:
    """The folders below the cache that hold this very data set."""
    return [one for one in folder.iterdir() if json.loads((one / "info.json").read_text()) == docs.info]


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
                own = question_key(passages[pid].heading_path[-1]) == question_key(question)
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


def test_never_seen_in_training_tells_nothing(docs: DebianDocs) -> None:
    seen = {*docs.train.pids, *docs.pool.pids}
    seen_texts = {normalise(text) for pairs in (docs.train, docs.pool) for text in pairs.passages}
    for name in ("dev", "test"):
        pairs: Pairs = getattr(docs, name)
        assert {0, 1} == set(pairs.labels.tolist())
        assert not seen & set(pairs.pids)
        assert not seen_texts & {normalise(text) for text in pairs.passages}
    assert docs.info["auc_of_being_unseen"] == {"dev": 0.5, "test": 0.5}


def test_held_out_rows_do_not_depend_on_the_sizes(docs: DebianDocs) -> None:
    larger = build(DebianDocsSizes(packages=PACKAGES, headings=400, pool_per_question=20, pool_per_heading=6))
    assert len(larger.pool) > 2 * len(docs.pool)
    assert (larger.dev.digest(), larger.test.digest()) == (docs.dev.digest(), docs.test.digest())
    assert not {*larger.train.pids, *larger.pool.pids} & {*docs.dev.pids, *docs.test.pids}


@pytest.mark.parametrize("auc", [0.66, 0.34])
@pytest.mark.parametrize("feature", ["is an answer", "is unseen"])
def test_rows_with_a_shortcut_are_refused(feature: str, auc: float) -> None:
    refuse_shortcuts({"is an answer": {"dev": 0.65}, "is unseen": {"dev": 0.5, "test": 0.35}})
    with pytest.raises(DataError, match=rf"in the test set the feature '{feature}' .* ROC-AUC of {auc:.3f}, and 0.65"):
        refuse_shortcuts({"is an answer": {"dev": 0.5}, "is unseen": {"dev": 0.5}, feature: {"test": auc}})


def test_auc_of_a_feature_by_hand() -> None:
    rows = Pairs.build(["q"] * 6, list("abcdef"), labels=[1, 1, 0, 0, 0, 0], qids=["q"] * 6, pids=list("abcdef"))
    assert auc_of(rows, {"a", "b", "c", "d"}.__contains__) == 0.75  # half of the negatives have it, too
    assert auc_of(rows, "abcdef".__contains__) == 0.5


def _passage(text: str) -> Passage:
    return Passage(text_hash(text), text, "", (), "here", "")


def test_a_negative_answers_where_bm25_and_the_bi_encoder_put_it_above_the_answer() -> None:
    texts = [
        "to mount a disk use mount and the name of the disk, then mount the disk again",  # both put it above
        "mount mount disk disk",  # BM25 alone
        "the command attaches a disk to the tree of files",  # the positive
        "attach a file system",  # the bi-encoder alone
        "how a disk is mounted, mount by mount, disk by disk",  # BM25 puts it above, the bi-encoder was not asked
    ]
    question = Question("q", "mount disk", "here", [2])
    asked = [
        (question.text, texts[0], 0.9, 0.5),
        (question.text, texts[1], 0.5, 0.5),
        (question.text, texts[3], 0.9, 0.5),
    ]
    candidates = Candidates([_passage(text) for text in texts], Judgements(*judge(asked), {}))
    assert [candidates.judged(question, number) for number in (0, 1, 3, 4)] == [True, False, False, None]


def test_no_row_has_a_negative_that_both_put_above_the_answer(
    docs: DebianDocs, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judgements = Judgements.read()
    candidates = Candidates(docs.passages, judgements)
    places = {passage.pid: place for place, passage in enumerate(docs.passages)}
    for pairs in (docs.dev, docs.test):
        for question, qid, pid, label in zip(pairs.questions, pairs.qids, pairs.pids, pairs.labels, strict=True):
            own = [place for place, passage in enumerate(docs.passages) if passage.answer_of == qid]
            if label == 0:
                assert candidates.judged(Question(qid, question, "", own), places[pid]) is not True
    assert all(docs.info["negatives_that_answer"][name] > 0 for name in ("train", "dev", "test"))
    (folder,) = _built(cache / "debian-docs" / "built", docs)
    folder.rename(cache / "aside before the log")
    with caplog.at_level(logging.INFO):
        assert build(DebianDocsSizes(**SMALL)).info == docs.info
    total = sum(docs.info["negatives_that_answer"].values())
    assert f"{total} negatives are left out, since BM25 and a bi-encoder both put them above the answer" in caplog.text
    unjudged = sum(docs.info["negatives_never_judged"].values())
    assert unjudged > 0  # two packages alone have other candidates than all eleven
    assert f"{unjudged} negatives that BM25 puts above the answer stay" in caplog.text


@pytest.mark.slow
def test_judgements_are_those_of_the_bi_encoder(cache: Path) -> None:
    from tmkd.core.errors import EncoderError
    from tmkd.models.encoders.find import find_encoder

    try:
        find_encoder("builtin:mpnet")
    except EncoderError as error:
        pytest.skip(str(error))
    spec = importlib.util.spec_from_file_location("judge_negatives", ROOT / "tools" / "judge_negatives.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    kept = Judgements.read()
    asked = to_judge(read_corpus(fetch(("debian-faq",))), Judgements(frozenset(), frozenset(), {}), 0)
    known = [
        (question, right, found)
        for question, right, others in asked
        if (found := [text for text in others if pair_name(question, text) in kept.above | kept.below])
    ][:12]
    above, below = judge(tool.compare(known))
    assert above
    assert below
    assert above <= kept.above
    assert below <= kept.below


def test_a_damaged_file_of_judgements_is_named(tmp_path: Path) -> None:
    assert FILE.stat().st_size < 150_000
    (tmp_path / "judgements.json").write_text('{"above": []}')
    with pytest.raises(DataError, match=r"judgements.json: cannot be read .*tools/judge_negatives.py writes it"):
        Judgements.read(tmp_path / "judgements.json")


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
    (folder,) = _built(built, docs)
    changed = folder.stat().st_mtime_ns
    again = build(DebianDocsSizes(**SMALL))
    assert again.info == docs.info
    assert folder.stat().st_mtime_ns == changed
    folder.rename(cache / "aside")
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
    for name in ("dev", "test"):  # and their rows
        assert set(getattr(few, name).pair_ids) <= set(getattr(docs, name).pair_ids)


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
