"""Pairs: the record, the hub reader, the split."""

from __future__ import annotations

import builtins
import re
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pairs_fixtures import ROWS, refused

from tmkd.config.pool_sections import Sampling
from tmkd.core.errors import MissingExtraError, NoRoomError
from tmkd.data.arrow_file import ArrowFile, write_arrow
from tmkd.data.documents.text import question_key
from tmkd.data.hub import read_hub
from tmkd.data.pairs import Pairs, pair_id
from tmkd.data.rows import Columns, rows_to_pairs
from tmkd.data.sampling import sample
from tmkd.data.split import folds, split, subsample
from tmkd.data.writers import write_rows

# --- the record


def test_pair_id_is_stable_and_keeps_the_two_sides_apart() -> None:
    assert pair_id("a", "b") == "b8420e297e53a2e9d6dca1c90a75bb86"  # stored labels hang on it
    assert pair_id("ab", "c") != pair_id("a", "bc")
    assert pair_id("a", "b") != pair_id("b", "a")


@pytest.mark.parametrize("spelled", ["how do i sort", " How do I  sort ?", "How do I so\u00adrt?", "“How do I sort?”"])
def test_spellings_of_a_pair_share_its_key_but_not_its_id(spelled: str) -> None:
    pairs = Pairs.build(["How do I sort?", spelled], ["With sort.", "with\u00a0SORT ."])
    assert len(set(pairs.pair_keys)) == 1
    assert len(set(pairs.pair_ids)) == 2  # teachers read the two texts


def test_columns_that_are_absent_have_stand_ins() -> None:
    pairs = Pairs.build(["q", "q"], ["a", "b"])
    assert pairs.labels.tolist() == [-1, -1]
    assert pairs.labels.dtype == np.int64
    assert not pairs.has_labels
    assert pairs.qids == ["q", "q"]
    assert pairs.pids == pairs.pair_ids == [pair_id("q", "a"), pair_id("q", "b")]
    assert pairs.score_names == []


def test_save_and_load_give_the_same_pairs(tmp_path: Path) -> None:
    pairs = Pairs.build(
        ["q", "r"], ["a", "b"], labels=[1, None], qids=["1", "2"], pids=["x", "y"], scores={"s": [0.5, None]}
    )
    pairs.save(tmp_path / "new" / "pairs.parquet")
    again = Pairs.load(tmp_path / "new" / "pairs.parquet")
    assert again.table.equals(pairs.table)
    assert again.digest() == pairs.digest()
    assert again.labels.tolist() == [1, -1]
    assert again.score("s")[0] == 0.5
    assert np.isnan(again.score("s")[1])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pairs.parquet"]


def test_texts_and_digest_do_not_depend_on_how_many_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = Pairs.build([f"who is {n}?" for n in range(10)], [f"{n} is" for n in range(10)], labels=[None, 1] * 5)
    assert pairs.digest() == "a265b6f758c0c1b6"  # as of earlier versions: workspaces keep what they have
    monkeypatch.setattr("tmkd.data.pairs._BATCH", 3)
    again = Pairs(pa.concat_tables([pairs.table.slice(0, 4), pairs.table.slice(4)]))
    assert again.digest() == pairs.digest()
    assert list(again.texts()) == list(zip(pairs.questions, pairs.passages, strict=True))


def test_take_keeps_the_order_asked_for_and_digest_tells_orders_apart() -> None:
    pairs = Pairs.build(["a", "b", "c"], ["1", "2", "3"])
    assert pairs.take([2, 0]).questions == ["c", "a"]
    assert len(pairs.take([])) == 0
    assert pairs.take([2, 0]).digest() != pairs.take([0, 2]).digest()


def test_pairs_whose_texts_are_larger_than_a_piece_of_arrow_are_taken() -> None:
    few = Pairs.build([f"q{n}" for n in range(8)], [f"{n} " * 2**20 for n in range(8)], labels=[0, 1] * 4)
    many = Pairs(pa.concat_tables([few.table] * 140))  # the same 16 MiB again and again
    assert many.table.column("passage").nbytes > 2**31
    rows = np.array([1119, 3, 3, 800, 0])
    assert many.take(rows).table.equals(few.take(rows % 8).table)
    assert many.ids_at(rows).to_pylist() == few.take(rows % 8).pair_ids
    assert many.distinct().table.equals(few.distinct().table)
    with pytest.raises(IndexError):
        many.take([len(many)])


def test_taking_pairs_does_not_depend_on_how_many_are_taken_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Pairs.build([f"q{n}" for n in range(50)], [f"p{n}" for n in range(50)], labels=[None, 1] * 25)
    rows = np.random.default_rng(0).integers(0, 50, 70)
    for table in (whole.table, pa.concat_tables([whole.table.slice(start, 9) for start in range(0, 50, 9)])):
        assert Pairs(table).take(rows).table.equals(whole.table.take(rows))
    monkeypatch.setattr("tmkd.data.arrow_file._READ", 8)
    assert Pairs(table).take(rows).table.equals(whole.table.take(rows))
    assert Pairs(table).take([]).table.equals(whole.table.slice(0, 0))


def test_load_refuses_what_is_no_pairs_file(tmp_path: Path) -> None:
    refused(lambda: Pairs.load(tmp_path / "none.parquet"), "none.parquet", "no such file")
    Pairs.build(["q"], ["p"]).save(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-30])
    refused(lambda: Pairs.load(tmp_path / "cut.parquet"), "cut.parquet", "not a readable Parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    refused(lambda: Pairs.load(tmp_path / "other.parquet"), "pair_id", "text")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    Pairs.build(["q"], ["p"]).save(path)
    noise = np.random.default_rng(0).bytes(200_000).hex()
    big = Pairs.build(["q"], [noise])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # the kernel refuses to write more, as on a full disk
    try:
        with pytest.raises(NoRoomError, match=r"may not be so large here .*pairs\.parquet"):
            big.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Pairs.load(path).passages == ["p"]
    assert [found.name for found in tmp_path.iterdir()] == ["pairs.parquet"]


def test_unknown_and_reserved_score_columns_are_named() -> None:
    pairs = Pairs.build(["q"], ["p"], scores={"judge": [1.0]})
    refused(lambda: pairs.score("jugde"), "jugde", "judge")
    refused(lambda: Pairs.build(["q"], ["p"], scores={"label": [1.0]}), "label", "rename")


# --- the hub reader


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("extension", [".jsonl", ".parquet"])
def test_hub_folder(tmp_path: Path, extension: str) -> None:
    folder = tmp_path / "own:data"
    folder.mkdir()
    for part, rows in (("train", ROWS), ("test", ROWS[:1])):
        write_rows(folder / f"{part}{extension}", rows)
    train = read_hub(str(folder), "train", classes=2, need_labels=True)
    assert train.table.equals(rows_to_pairs(ROWS, "s").table)
    assert len(read_hub(str(folder), "test")) == 1
    refused(lambda: read_hub(str(folder), "validation"), "own:data", "validation", "train")
    refused(lambda: read_hub(str(folder), "train", columns=Columns(question="query")), "[train]", "'query'", "passage")
    refused(lambda: read_hub(str(folder), "train", classes=1), "[train], row 1", "out of range")


@pytest.mark.usefixtures("hub_cache")
def test_hub_class_label_of_minus_one_is_no_label(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {"question": Value("string"), "passage": Value("string"), "label": ClassLabel(names=["no", "yes"])}
    )
    rows = [{"question": "q", "passage": "p", "label": -1}, {"question": "q", "passage": "r", "label": 1}]
    folder = tmp_path / "snli"
    folder.mkdir()
    Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    assert read_hub(str(folder), "train", classes=2).labels.tolist() == [-1, 1]


@pytest.mark.usefixtures("hub_cache")
def test_hub_never_runs_code(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    refused(lambda: read_hub(str(folder), "train"), "scripted")
    assert not (tmp_path / "ran").exists()


def test_hub_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'tmkd\[hub\]'"):
        read_hub("any", "train")


# --- the split


def test_split_keeps_questions_whole_and_the_shares() -> None:
    questions = [f"question {number // 5}" for number in range(5000)]
    pairs = Pairs.build(questions, [str(number) for number in range(5000)])
    train, dev, test = split(pairs, (0.55, 0.15, 0.30), seed=3)
    parts = [set(part.questions) for part in (train, dev, test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1000
    assert [abs(len(part) / 1000 - share) < 0.05 for part, share in zip(parts, (0.55, 0.15, 0.3), strict=True)] == [
        True
    ] * 3
    assert train.passages == sorted(train.passages, key=int)
    assert split(pairs, (0.55, 0.15, 0.30), seed=4)[0].questions != train.questions


def test_split_does_not_move_a_question_when_rows_are_added() -> None:
    few = Pairs.build([f"q{number}" for number in range(100)], ["p"] * 100)
    many = Pairs.build([f"q{number}" for number in range(200)], ["p"] * 200)
    assert set(split(few, (0.5, 0.5))[0].questions) == set(split(many, (0.5, 0.5))[0].questions) & set(few.questions)


def test_spellings_of_one_question_are_in_one_part_and_in_one_fold() -> None:
    """Of questions that are there twice, in two spellings, none is held out and trained on."""
    first = [f"How do I sort a list of {n} items?" for n in range(60)]
    spelled = [f" how do I\u00a0sort a list of {n} items ?" for n in range(60)]
    pairs = Pairs.build([*first, *spelled], [f"passage {n}" for n in range(120)])
    train, dev = split(pairs, (0.8, 0.2))
    assert len(dev) > 0
    assert not set(map(question_key, train.questions)) & set(map(question_key, dev.questions))
    fold = folds(pairs, 5)
    assert fold[:60].tolist() == fold[60:].tolist()
    half = subsample(pairs, 0.5)
    assert sorted(half[half < 60] + 60) == sorted(half[half >= 60])


def test_questions_that_differ_in_a_sign_are_split_apart() -> None:
    pairs = Pairs.build([f"{sign}{n}" for n in range(20) for sign in ("+", "-")], [str(n) for n in range(40)])
    assert len(set(folds(pairs, 40).tolist())) == 40


def test_split_keeps_rows_together_by_text_and_by_qid() -> None:
    by_row = Pairs.build(["same"] * 50, [str(n) for n in range(50)], qids=[str(n) for n in range(50)])
    assert sorted(map(len, split(by_row, (0.5, 0.5)))) == [0, 50]
    reworded = Pairs.build([f"wording {n}" for n in range(50)], ["p"] * 50, qids=["one"] * 50)
    assert sorted(map(len, split(reworded, (0.5, 0.5)))) == [0, 50]


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (1.0, 0.0), (-0.5, 1.5)])
def test_split_refuses_shares_that_are_none(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(fractions))):
        split(Pairs.build(["q"], ["p"]), fractions)


def test_split_of_nothing() -> None:
    assert [len(part) for part in split(Pairs.build([], []), (0.5, 0.5))] == [0, 0]


# --- pairs in a file that is mapped into memory


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Pairs, Pairs]:
    """The same pairs in memory and in a file of many chunks, which is removed once it is mapped."""
    monkeypatch.setattr("tmkd.data.arrow_file._ROWS", 7)
    monkeypatch.setattr("tmkd.data.arrow_file._READ", 5)
    monkeypatch.setattr("tmkd.core.mapped._MOST", 3 * 65_536)  # pages are given back again and again
    numbers = [number % 40 for number in range(60)]  # the last twenty are those of the first
    plain = Pairs.build(
        [f"who is {number // 4}?" for number in numbers],
        [f"é {number} is" * (number % 5 + 1) for number in numbers],
        labels=[None if number % 3 else number % 2 for number in range(60)],
        grades=[None if number % 3 else number for number in range(60)],
        pids=[f"p{number}" for number in range(60)],
        scores={"s": [None if number % 7 == 0 else number / 7 for number in range(60)]},
    )
    path = tmp_path / "pairs.arrow"
    write_arrow(path, plain.table.schema, [plain.table.slice(0, 23), plain.table.slice(23)])
    mapped = Pairs.mapped(ArrowFile(path))
    path.unlink()
    return plain, mapped


def same(found: Pairs, wanted: Pairs) -> bool:
    """Whether two sets of pairs are alike in all that is read of them."""
    assert len(found) == len(wanted)
    assert found.table.equals(wanted.table)
    assert list(found.texts()) == list(wanted.texts())
    for name in ("questions", "passages", "pair_ids", "pair_keys", "qids", "pids", "grades", "score_names"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert list(found.ids) == found.pair_ids
    assert found.labels.tolist() == wanted.labels.tolist()
    np.testing.assert_array_equal(found.score("s"), wanted.score("s"))
    return found.digest() == wanted.digest()


def test_pairs_in_a_file_are_those_in_memory(both: tuple[Pairs, Pairs], tmp_path: Path) -> None:
    plain, mapped = both
    assert same(mapped, plain)
    rows = np.random.default_rng(0).permutation(60)[:31]
    assert same(mapped.take(rows), plain.take(rows))
    assert same(mapped.take(rows).take([3, 3, 30]), plain.take(rows).take([3, 3, 30]))
    assert same(mapped.take([]), plain.take([]))
    for one, other in ((mapped, plain), (mapped.take(rows), plain.take(rows))):
        assert same(one.distinct(), other.distinct())
        assert one.ids_at(np.array([4, 0])).to_pylist() == other.ids_at(np.array([4, 0])).to_pylist()
        one.save(tmp_path / "saved.parquet")
        assert same(Pairs.load(tmp_path / "saved.parquet"), other)
        assert one.and_unlabelled(one).digest() == other.and_unlabelled(other).digest()
    assert len(mapped.distinct()) == 40
    assert mapped.distinct().pair_ids == sorted(set(plain.pair_ids))


def test_pairs_that_are_taken_of_a_file_hold_no_text_in_memory(tmp_path: Path) -> None:
    count = 20_000
    plain = Pairs.build([f"question {n}" for n in range(count)], [f"passage {n} " * 20 for n in range(count)])
    write_arrow(tmp_path / "pairs.arrow", plain.table.schema, [plain.table])
    mapped, rows = Pairs.mapped(ArrowFile(tmp_path / "pairs.arrow")), np.random.default_rng(0).permutation(count)
    before = pa.total_allocated_bytes()
    taken = mapped.take(rows)
    assert next(iter(taken.texts())) == (f"question {rows[0]}", f"passage {rows[0]} " * 20)
    assert pa.total_allocated_bytes() == before
    assert plain.take(rows).table.nbytes > 4_000_000


def test_choices_among_pairs_in_a_file_are_those_in_memory(both: tuple[Pairs, Pairs]) -> None:
    plain, mapped = both
    for by in ("question", "qid"):
        (names, groups), (wanted, there) = mapped.groups(by), plain.groups(by)
        assert names == wanted == sorted(set(plain.questions))
        assert groups.tolist() == there.tolist()
        assert [names[group] for group in groups] == plain.questions
    assert subsample(mapped, 0.5).tolist() == subsample(plain, 0.5).tolist()
    assert folds(mapped, 3).tolist() == folds(plain, 3).tolist()
    for found, kept in zip(split(mapped, (0.3, 0.7)), split(plain, (0.3, 0.7)), strict=True):
        assert same(found, kept)
    scores = np.random.default_rng(0).normal(size=60)
    for sampling in (Sampling(kind="top", keep=2), Sampling(keep=2, quantiles=2)):
        assert sample(mapped, scores, sampling).rows.tolist() == sample(plain, scores, sampling).rows.tolist()


def test_choices_keep_numbers_of_the_pairs_and_not_their_texts(tmp_path: Path) -> None:
    """The texts of a pair are 500 bytes, its id as a string 81. Questions are strings, each once."""
    count, each = 100_000, 20
    texts = [f"question {n // each} " + "word " * 20 for n in range(count)]
    plain = Pairs.build(texts, [f"passage {n} " * 20 for n in range(count)])
    write_arrow(tmp_path / "pairs.arrow", plain.table.schema, [plain.table])
    mapped, scores = Pairs.mapped(ArrowFile(tmp_path / "pairs.arrow")), np.arange(count, dtype=np.float32)
    chosen: dict[str, Callable[[], NDArray[np.int64]]] = {
        "share": lambda: subsample(mapped, 0.5),
        "stratified": lambda: sample(mapped, scores, Sampling(keep=8)).rows,
        "top": lambda: sample(mapped, scores, Sampling(kind="top", keep=8)).rows,
    }
    for name, choose in chosen.items():
        choose()  # modules are imported
        tracemalloc.start()
        rows = choose()
        peak = tracemalloc.get_traced_memory()[1] / count
        tracemalloc.stop()
        assert 0.3 * count < len(rows) < 0.7 * count, name
        assert peak < 150, f"{name}: {peak:.0f} bytes a pair"


def test_an_arrow_file_that_is_cut_off_or_none_is_an_error(tmp_path: Path) -> None:
    plain = Pairs.build(["q"], ["p"])
    write_arrow(tmp_path / "pairs.arrow", plain.table.schema, [plain.table])
    content = (tmp_path / "pairs.arrow").read_bytes()
    for broken in (content[:-9], b"PAR1", b""):
        (tmp_path / "pairs.arrow").write_bytes(broken)
        with pytest.raises(ValueError, match=r"Arrow|footer|empty|too small"):
            ArrowFile(tmp_path / "pairs.arrow")
    with pytest.raises(FileNotFoundError):
        ArrowFile(tmp_path / "none.arrow")
