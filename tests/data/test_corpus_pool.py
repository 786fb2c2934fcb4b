"""A pool from a corpus on disk: which passages, what is left out and counted, bad files, kills, and bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import TOPICS, write_jsonl

from tmkd.config.load import parse_recipe
from tmkd.config.pool_sections import ReadyPairs
from tmkd.core.errors import DataError, TmkdError
from tmkd.core.locks import locked
from tmkd.data.corpus_pool.mine import MinedPool, mine_pool
from tmkd.data.corpus_pool.parts import Parts, folder_of
from tmkd.data.corpus_pool.questions import QuestionFile
from tmkd.data.corpus_pool.retrieve import Mining
from tmkd.data.documents.document_rows import Fields
from tmkd.data.documents.index import DocumentIndex
from tmkd.data.documents.reader import Reading
from tmkd.data.pool_sources import read_ready
from tmkd.data.rows import read_pairs
from tmkd.data.tasks import load_task
from tmkd.data.writers import write_rows

ROOT = Path(__file__).parents[2]
QUESTIONS = [question for question, _ in TOPICS.values()]
ANSWERS = [answer for _, answer in TOPICS.values()]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """BEIR's form of the topics."""
    folder = tmp_path / "beir"
    folder.mkdir()
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"p-{name}", "title": name, "text": answer}
                                          for name, (_, answer) in TOPICS.items()])  # fmt: skip
    asked = {**{name: question for name, (question, _) in TOPICS.items()}, "none": "Who wrote Hamlet?"}
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q-{name}", "text": text} for name, text in asked.items()])
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS) + "\n")
    return tmp_path / "questions.txt"


def rows_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def mined(asked: list[str], texts: list[str], **choices: Any) -> tuple[list[dict[str, Any]], MinedPool]:
    """The pool of some questions on some passages."""
    Path("asked.txt").write_text("\n".join(asked) + "\n")
    write_jsonl(Path("texts.jsonl"), [{"id": str(number), "text": text} for number, text in enumerate(texts)])
    without = choices.pop("without", ())
    done = mine_pool("asked.txt", "pool.parquet", ["texts.jsonl"], mining=Mining(**choices, without=without))
    return rows_of(Path("pool.parquet")), done


# --- what a pool holds


def test_a_beir_folder_gives_pairs_with_its_ids(corpus: Path, tmp_path: Path) -> None:
    done = mine_pool(corpus, tmp_path / "pool.parquet", [corpus], mining=Mining(passages=3))
    rows = rows_of(tmp_path / "pool.parquet")
    assert list(rows[0]) == ["question", "passage", "qid", "pid", "rank", "bm25", "source"]
    assert (done.pairs, done.questions, done.read, done.passages) == (len(rows), 8, 9, 8)
    best = {row["qid"].removeprefix("q-"): row for row in reversed(rows)}
    for name in ("copy", "merge", "port", "sort", "lock"):
        question, answer = TOPICS[name]
        row = best[name]
        assert (row["question"], row["passage"], row["pid"], row["rank"]) == (question, answer, f"p-{name}", 1)
        assert row["source"] == f"{corpus}/corpus.jsonl#p-{name}"
    (found,) = DocumentIndex.open(tmp_path / "pool.index").search(TOPICS["sort"][0], 1)
    assert best["sort"]["bm25"] == found.score
    assert (done.without_hit, done.first_without_hit) == (1, ["Who wrote Hamlet?"])


def test_a_recipe_reads_the_pool(corpus: Path, tmp_path: Path) -> None:
    for name in ("pool.parquet", "pool.jsonl.gz"):
        mine_pool(corpus, tmp_path / name, [corpus])
    pool = read_pairs(tmp_path / "pool.parquet")
    assert pool.table.equals(read_pairs(tmp_path / "pool.jsonl.gz").table)
    assert pool.pids[0].startswith("p-")
    labelled = [{"question": f"{one} ({copy})", "passage": f"{text} {label}", "label": label}
                for copy in range(8) for one, text in TOPICS.values() for label in (0, 1)]  # fmt: skip
    write_jsonl(tmp_path / "train.jsonl", labelled)
    given = {"train": "train.jsonl", "hold_out": {"dev": 0.2, "test": 0.2}, "pool": "pool.parquet"}
    teachers = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}]
    content = {"name": "x", "encoder": "builtin:minilm-l6", "teachers": teachers, "data": given}
    recipe = parse_recipe(content, "recipe")
    data = load_task(recipe.data, recipe.classes)
    assert data.pool is not None
    assert data.pool.pair_ids == pool.pair_ids
    ready = ReadyPairs.model_validate("pool.parquet")
    assert read_ready(ready, data.train, "pool.sources.0").pair_ids == pool.pair_ids


def test_documents_are_cut_and_rows_are_not(tmp_path: Path) -> None:
    asked = ["How are passages cut at the ends of sentences?", "What is the fingerprint of a step?"]
    (tmp_path / "asked.txt").write_text("\n".join(asked))
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("results"))
    mine_pool("asked.txt", "pool.parquet", ["docs"], mining=Mining(passages=5))
    rows = rows_of(Path("pool.parquet"))
    assert Counter(row["question"] for row in rows) == dict.fromkeys(asked, 5)
    assert "docs/workspace.md" in {row["source"] for row in rows[5:]}
    assert all(len(row["passage"].split()) < 150 and len(row["pid"]) == 16 for row in rows)
    write_rows("docs.parquet", [{"text": path.read_text()} for path in sorted(Path("docs").glob("*.md"))])
    for whole, longest in ((True, 500), (False, 0)):
        reading = Reading(whole=whole)
        mine_pool("asked.txt", f"{whole}.parquet", ["docs.parquet"], mining=Mining(passages=5), reading=reading)
        assert (max(len(row["passage"].split()) for row in rows_of(Path(f"{whole}.parquet"))) > longest) is True
        assert (max(len(row["passage"].split()) for row in rows_of(Path(f"{whole}.parquet"))) > 150) is whole


def test_an_index_is_brought_up_to_date_or_used_as_it_is(corpus: Path, questions: Path, tmp_path: Path) -> None:
    first = mine_pool(questions, "pool.parquet", [corpus], index="index")
    assert first.indexed is not None
    assert (first.indexed.added, Path("pool.index").exists()) == (8, False)
    rows = rows_of(Path("pool.parquet"))
    again = mine_pool(questions, "again.parquet", index="index")
    assert again.indexed is None
    assert rows_of(Path("again.parquet")) == rows
    with (corpus / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "text": "A bug is reported by a mail to the tracker."}) + "\n")
    third = mine_pool(questions, "pool.parquet", [corpus], index="index")
    assert third.indexed is not None
    assert (third.indexed.added, third.indexed.unchanged, third.without_hit) == (1, 8, 0)
    with pytest.raises(DataError, match=r"there is no index new\.index; name a corpus"):
        mine_pool(questions, "new.parquet")


# --- what is left out


def test_the_same_text_and_nearly_the_same_is_taken_once() -> None:
    text = "the cp command copies one file under another name and keeps both of them on the disk as they were"
    near, less = text.replace("they were", "they are"), text.replace("as they were", "for good of all")
    Path("more.jsonl").write_text(json.dumps({"id": 1, "text": text.replace(" ", "  ")}) + "\n")
    Path("asked.txt").write_text("Which command copies a file?\n")
    write_jsonl(Path("texts.jsonl"), [{"id": n, "text": one} for n, one in enumerate([text, near, less])])
    done = mine_pool("asked.txt", "pool.parquet", ["texts.jsonl", "more.jsonl"])
    assert {" ".join(row["passage"].split()) for row in rows_of(Path("pool.parquet"))} in ({text, less}, {near, less})
    assert (done.left_out["same_text"], done.left_out["nearly_same"]) in ((1, 1), (0, 2))
    assert done.fewer == 1


def test_a_passage_that_contains_the_question_is_left_out() -> None:
    rows, done = mined([QUESTIONS[0]], [f"Asked: how do I copy -- a file! {ANSWERS[0]}", ANSWERS[0]])
    assert [(row["passage"], row["rank"], row["pid"]) for row in rows] == [(ANSWERS[0], 2, "1")]
    assert done.left_out["contains_question"] == 1
    with pytest.raises(DataError, match=r"not a single pair\. .*1 all of whose hits were left out \('How do I copy"):
        mined([QUESTIONS[0]], [f"How do I copy a file? {ANSWERS[0]}"])
    assert not folder_of(Path("pool.parquet")).exists()


def test_short_questions_keep_passages_that_name_them() -> None:
    texts = ["Emacs starts with the key bindings of its manual.", "Emacs", "To rise, bread needs yeast: bread rises."]
    rows, done = mined(["emacs", "bread rises"], texts)
    assert {(row["question"], row["passage"]) for row in rows} == {("emacs", texts[0]), ("bread rises", texts[2])}
    assert done.left_out["contains_question"] == 1


def test_an_id_of_two_questions_names_the_first_alone() -> None:
    write_jsonl(Path("ids.jsonl"), [{"id": "doc", "question": one} for one in QUESTIONS[:2]])
    write_jsonl(Path("texts.jsonl"), [{"id": n, "text": one} for n, one in enumerate(ANSWERS)])
    done = mine_pool("ids.jsonl", "pool.parquet", ["texts.jsonl"])
    qids = {row["question"]: row["qid"] for row in rows_of(Path("pool.parquet"))}
    assert qids[QUESTIONS[0]] == "doc"
    assert len(set(qids.values())) == 2
    assert done.renamed == 1
    assert any(one.startswith("1 questions have an id that another one has") for one in done.sentences())


def test_questions_come_once_in_whatever_spelling() -> None:
    rows, done = mined([QUESTIONS[0], "how do i copy a  file", "???", QUESTIONS[0]], ANSWERS)
    assert {row["question"] for row in rows} == {QUESTIONS[0]}
    assert (done.read, done.duplicates, done.questions, done.without_hit) == (4, 2, 1, 1)
    assert done.first_without_hit == ["???"]
    assert any("1 without a hit ('???')" in one for one in done.sentences())


def test_held_out_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [
        {"question": "how do I copy a file", "passage": "x y z", "label": 0},
        {"question": "Where is the hash?", "passage": ANSWERS[5], "label": 2},
        {"question": "Where is the port?", "passage": ANSWERS[4], "label": 0},
    ])  # fmt: skip
    plain, _ = mined(QUESTIONS, ANSWERS)
    rows, done = mined(QUESTIONS, ANSWERS, without=["test.jsonl"])
    assert done.held_out == 1
    assert {row["question"] for row in plain} - {row["question"] for row in rows} >= {QUESTIONS[0]}
    assert {row["passage"] for row in plain} - {row["passage"] for row in rows} == {ANSWERS[5]}
    asked = [row["question"] for row in plain if row["passage"] == ANSWERS[5]]
    assert done.left_out["held_out"] == sum(one != QUESTIONS[0] for one in asked) > 0


def test_quotes_in_held_out_files_mean_what_is_said(tmp_path: Path) -> None:
    first, rest = QUESTIONS[0].split(maxsplit=1)
    (tmp_path / "test.csv").write_text(f'question,passage,label\n"{first}" {rest},p,1\n')
    rows, _ = mined(QUESTIONS, ANSWERS, without=["test.csv"], quoting="none")
    assert QUESTIONS[0] not in {row["question"] for row in rows}
    with pytest.raises(DataError, match=r"test\.csv"):
        mined(QUESTIONS, ANSWERS, without=["test.csv"])


def test_held_out_pairs_need_no_label_and_may_have_columns_of_other_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "bare.jsonl", [{"query": "Where is the hash?", "text": ANSWERS[5], "grade": 0}])
    plain, _ = mined(QUESTIONS, ANSWERS)
    names = {"question": "query", "passage": "text"}
    rows, _ = mined(QUESTIONS, ANSWERS, without=["bare.jsonl"], without_columns=names)
    assert {row["passage"] for row in plain} - {row["passage"] for row in rows} == {ANSWERS[5]}
    write_jsonl(tmp_path / "empty.jsonl", [{"question": "Where is the hash?", "passage": ANSWERS[5], "label": None}])
    assert mined(QUESTIONS, ANSWERS, without=["empty.jsonl"])[0] == rows
    rows, _ = mined(QUESTIONS, ANSWERS, without=["bare.jsonl"], without_columns={**names, "label": "grade"})
    assert rows == plain
    with pytest.raises(DataError, match=r"bare\.jsonl: there is no column 'label'.*--without-label"):
        mined(QUESTIONS, ANSWERS, without=["bare.jsonl"], without_columns={**names, "label": "label"})
    with pytest.raises(DataError, match=r"bare\.jsonl: there is no column 'question'.*Name yours with --without-quest"):
        mined(QUESTIONS, ANSWERS, without=["bare.jsonl"])
    with pytest.raises(ValueError, match="without_columns names qid"):
        Mining(without_columns={"qid": "id"})


def test_a_passage_is_in_no_more_pairs_than_it_may_be() -> None:
    asked = [f"How does {name} copy a file?" for name in ("Ann", "Ben", "Cem", "Dov", "Eva")]
    rows, done = mined(asked, ANSWERS, passages=2, most=3)
    counts = Counter(row["passage"] for row in rows)
    assert max(counts.values()) == 3
    assert done.left_out["over_most"] > 0
    free, _ = mined(asked, ANSWERS, passages=2)
    assert max(Counter(row["passage"] for row in free).values()) == 5


def test_copies_of_a_text_share_its_cap() -> None:
    texts = [{"id": n, "title": name, "text": ANSWERS[0]} for n, name in enumerate(("copy", "file"))]
    write_jsonl(Path("texts.jsonl"), texts)
    Path("asked.txt").write_text("To copy a file?\nThe file to a copy under another?\nA file, a name?\n")
    done = mine_pool("asked.txt", "pool.parquet", ["texts.jsonl"], mining=Mining(most=1))
    assert (done.pairs, done.without_pair) == (1, 2)


class OneWorker:
    """What a cluster gives for work, from this process: each part's questions, none of which knows of the others."""

    workers = 2

    def map(self, work: Any, tables: Any, ordered: bool = False) -> Any:
        do = work.open(work.folder)
        yield from map(do, tables)


@pytest.mark.parametrize("mining", [Mining(4, "stratified", 30, 2, most=2), Mining(4, "top", 30, most=2)])
def test_workers_that_do_not_know_of_each_others_pairs_give_the_same_pool(mining: Mining) -> None:
    draw = random.Random(1)
    words = [f"w{number}" for number in range(30)]
    write_jsonl(Path("texts.jsonl"), [{"id": str(n), "text": " ".join(draw.choices(words, k=12))} for n in range(150)])
    Path("asked.txt").write_text("\n".join(" ".join(draw.sample(words, 4)) for _ in range(60)))
    alone = mine_pool("asked.txt", "alone.parquet", ["texts.jsonl"], mining=mining)
    cluster: Any = OneWorker()
    there = mine_pool("asked.txt", "there.parquet", ["texts.jsonl"], mining=mining, cluster=cluster)
    assert rows_of(Path("there.parquet")) == rows_of(Path("alone.parquet"))
    assert (there.left_out, there.fewer) == (alone.left_out, alone.fewer)
    assert alone.left_out["over_most"] > 0


# --- some of every quantile


def quantile_texts() -> list[str]:
    """Passages of different lengths, whose order by BM25 is that of their lengths."""
    draw = random.Random(1)
    return [f"copy {' '.join(f'w{draw.randrange(10**6)}' for _ in range(5 + 3 * number))}" for number in range(40)]


def test_stratified_takes_as_many_of_every_quantile() -> None:
    ways: dict[str, Any] = {"passages": 8, "sampling": "stratified", "depth": 40}
    rows, done = mined(["Who can copy?"], quantile_texts(), **ways)
    assert Counter((row["rank"] - 1) // 10 for row in rows) == dict.fromkeys(range(4), 2)
    assert [row["rank"] for row in rows] == sorted(row["rank"] for row in rows)
    assert (done.pairs, done.fewer) == (8, 0)
    assert mined(["Who can copy?"], quantile_texts(), **ways)[0] == rows
    other = mined(["Who can copy?"], quantile_texts(), **ways, seed=7)[0]
    assert {row["pid"] for row in other} != {row["pid"] for row in rows}
    others = mined(["Can all copy?"], quantile_texts(), **ways)[0]
    assert {row["rank"] for row in others} != {row["rank"] for row in rows}
    short = mined(["Who can copy?"], quantile_texts()[:6], **ways)[0]
    assert len(short) == 6
    deep = mined(["Who can copy?"], quantile_texts(), **{**ways, "depth": 20, "quantiles": 2})[0]
    assert Counter((row["rank"] - 1) // 10 for row in deep) == {0: 4, 1: 4}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"passages": 300}, "depth is 200, passages 300"), ({"sampling": "best"}, "one of top, stratified"),
     ({"sampling": "stratified", "passages": 3}, "quantiles is 4"), ({"most": 0}, "must be at least 1"),
     ({"passages": 0}, "must be at least 1")],
)  # fmt: skip
def test_numbers_that_do_not_fit_each_other(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Mining(**wrong)


# --- files of questions


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz", "q.csv", "q.tsv", "q.parquet", "q.json"])
def test_questions_of_every_format(tmp_path: Path, name: str) -> None:
    write_rows(name, [{"query": one, "id": 10 + number} for number, one in enumerate(QUESTIONS)])
    found = QuestionFile(Path(name), "query")
    assert [(one.qid, one.text) for one in found] == [(str(10 + n), one) for n, one in enumerate(QUESTIONS)]
    assert found.count() == 8


def test_questions_of_a_text_file(questions: Path) -> None:
    packed = Path("q.txt.gz")
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + questions.read_bytes().replace(b"\n", b"\r\n\r\n")))
    found = list(QuestionFile(packed))
    assert [one.text for one in found] == QUESTIONS
    assert [one.row for one in found] == list(range(1, 16, 2))
    assert {one.qid for one in found} == {one.qid for one in QuestionFile(questions)}


BAD_QUESTIONS = [
    ("q.jsonl", '{"question": "a"}\n{"question": \n', r"q\.jsonl:2: not valid JSON"),
    ("q.jsonl", '{"query": "a"}\n', r"q\.jsonl:1: there is no column 'question'; there are: query \(--question-column"),
    ("q.jsonl", '{"question": "a"}\n\n{"question": " "}\n', r"q\.jsonl:3: 'question' is empty"),
    ("q.jsonl", '{"question": "a"}\n{"query": "b"}\n', r"q\.jsonl:2: 'question' is absent"),
    ("q.jsonl", '{"question": 7}\n', r"q\.jsonl:1: 'question' is int, it must be text"),
    ("q.csv", 'question,b\n"a,1\n', r"q\.csv:2: a quote in the row that begins here is never closed"),
    ("q.txt", "\n \n", r"q\.txt holds no question"),
    ("q.txt", "a\nb\xff", r"q\.txt:2: byte 0xff is not valid UTF-8"),
    ("q.parquet", "PAR1 or not", r"q\.parquet is not a readable Parquet file"),
    ("q.xml", "<a/>", r"q\.xml: unknown extension; known are \.txt"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD_QUESTIONS)
def test_bad_questions_are_refused_before_anything_is_indexed(corpus: Path, name: str, content: str, said: str) -> None:
    Path(name).write_bytes(content.encode("latin1"))
    with pytest.raises(DataError, match=said):
        mine_pool(name, "pool.parquet", [corpus])
    left = {"pool.parquet", "pool.index"} & {path.name for path in Path().iterdir()}
    assert not left or (left == {"pool.index"} and ":" in said and ":1:" not in said)  # a later row is read later


def test_bad_corpora_and_places(corpus: Path, questions: Path, tmp_path: Path) -> None:
    Path("bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: not valid JSON"):
        mine_pool(questions, "pool.parquet", ["bad.jsonl"])
    with pytest.raises(DataError, match=r"bad\.jsonl:1: there is no field 'body' \(--text-field names it\)"):
        mine_pool(questions, "pool.parquet", ["bad.jsonl"], reading=Reading(Fields(text="body"), whole=True))
    with pytest.raises(DataError, match="gone: no such file or folder"):
        mine_pool(questions, "pool.parquet", ["gone"])
    with pytest.raises(DataError, match=r"gone\.txt: no such file"):
        mine_pool("gone.txt", "pool.parquet", [corpus])
    with pytest.raises(DataError, match=r"a folder of questions holds queries\.jsonl"):
        mine_pool(".", "pool.parquet", [corpus])
    with pytest.raises(DataError, match=r"pool\.csv: unknown extension; a pool is written as \.parquet"):
        mine_pool(questions, "pool.csv", [corpus])
    with pytest.raises(DataError, match=r"there is no folder gone"):
        mine_pool(questions, "gone/pool.parquet", [corpus])
    with pytest.raises(DataError, match=r"pool\.parquet would be read as a part of the corpus \."):
        mine_pool(questions, "pool.parquet", ["."])
    assert mine_pool(corpus, corpus / "pool.parquet", [corpus]).questions == 8  # of a BEIR folder, one file is read
    Path("empty.jsonl").write_text('{"id": 1, "text": ""}\n')
    with pytest.raises(DataError, match=r"the index pool\.index holds no passage"):
        mine_pool(questions, "pool.parquet", ["empty.jsonl"])
    assert not Path("pool.parquet").exists()


# --- a call that is killed


KILLED = """
import os, signal
from tmkd.data.corpus_pool import mine, parts
mine._PART = 2
add = parts.Parts.add
def killed(self, rows, counts):
    add(self, rows, counts)
    if len(self.counts) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
parts.Parts.add = killed
mine.mine_pool("questions.txt", {output!r}, ["beir"], index="index", mining=mine.Mining(passages=3, most=2))
"""


def killed_after(parts: int, output: str, tmp_path: Path) -> None:
    code = KILLED.format(after=parts, output=output)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -9


def test_a_killed_call_continues_with_the_same_result(
    corpus: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tmkd.data.corpus_pool.mine._PART", 2)
    mining = Mining(passages=3, most=2)
    whole = mine_pool(questions, "whole.parquet", [corpus.name], index="index", mining=mining)
    left = tmp_path / "pool4.parquet.9999999.tmp"  # of a process that was killed while it wrote the pool
    left.touch()
    os.utime(left, (0, 0))
    for parts in (1, 3, 4):
        killed_after(parts, f"pool{parts}.parquet", tmp_path)
        output = Path(f"pool{parts}.parquet")
        assert not output.exists()
        assert len(list(folder_of(output).glob("part-*.parquet"))) == parts
        done = mine_pool(questions, output, ["beir"], index="index", mining=mining)
        assert rows_of(output) == rows_of(Path("whole.parquet"))
        assert not folder_of(output).exists()
        assert left.exists() == (parts < 4)
        assert f"holds the pairs of the first {2 * parts} questions; continued after them" in caplog.text
        assert done.mined < done.pairs
        same = {name: value for name, value in done.to_json().items() if name not in ("output", "indexed", "mined")}
        assert {n: v for n, v in same.items() if "second" not in n} == {
            name: value for name, value in whole.to_json().items() if name in same and "second" not in name
        }


def interrupted(*given: Any) -> None:
    raise KeyboardInterrupt


def test_parts_of_another_pool_are_refused(
    corpus: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(2, "pool.parquet", tmp_path)
    mining = Mining(passages=3, most=2)
    with pytest.raises(DataError, match=r"begun otherwise: passages was 3 and is 2; repeat the first call, or remove"):
        mine_pool(questions, "pool.parquet", ["beir"], index="index", mining=Mining(passages=2, most=2))
    before = questions.read_text()
    questions.write_text("Another question?\n" + before)
    with pytest.raises(DataError, match="begun otherwise: questions was"):
        mine_pool(questions, "pool.parquet", ["beir"], index="index", mining=mining)
    questions.write_text(before)
    (tmp_path / "pool.parquet.parts" / "part-00001.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match=r"part-00001\.parquet is damaged .*remove pool\.parquet\.parts to begin anew"):
        mine_pool(questions, "pool.parquet", ["beir"], index="index", mining=mining)
    shutil.rmtree("pool.parquet.parts")
    assert mine_pool(questions, "pool.parquet", ["beir"], index="index", mining=mining).pairs
    with monkeypatch.context() as patched:  # interrupted before the first part: nothing is there to be kept
        patched.setattr("tmkd.data.corpus_pool.parts.Parts.add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mine_pool(questions, "none.parquet", index="index", mining=mining)
    assert mine_pool(questions, "none.parquet", index="index").pairs
    lock = folder_of(Path("other.parquet")) / "lock"
    with locked(lock, TmkdError("")), pytest.raises(TmkdError, match=r"another process is mining other\.parquet"):
        mine_pool(questions, "other.parquet", ["beir"], index="index")


@pytest.mark.parametrize("gone", ["part-00000.parquet", "mining.json"])
def test_what_a_killed_removal_of_parts_left_is_in_no_later_pool(
    corpus: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr("tmkd.data.corpus_pool.mine._PART", 2)
    mining = Mining(passages=1, most=2)
    mine_pool(questions, "whole.parquet", ["beir"], index="index", mining=mining)
    killed_after(3, "pool.parquet", tmp_path)  # of a pool with three passages for each question
    (folder_of(Path("pool.parquet")) / gone).unlink()
    add = Parts.add

    def add_one(self: Parts, *given: Any) -> None:
        add(self, *given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "add", add_one)
        with pytest.raises(KeyboardInterrupt):
            mine_pool(questions, "pool.parquet", ["beir"], index="index", mining=mining)
    mine_pool(questions, "pool.parquet", ["beir"], index="index", mining=mining)
    assert rows_of(Path("pool.parquet")) == rows_of(Path("whole.parquet"))


# --- memory


def peak_of(size: int) -> int:
    """The peak of Python's memory, in bytes, of mining with `size` passages and a tenth as many questions."""
    draw = random.Random(size)
    words = [f"{first}{last}" for first in ("ba", "de", "ki", "lo", "mu", "ra") for last in map(str, range(400))]
    with Path("texts.jsonl").open("w") as file:
        for number in range(size):
            file.write(json.dumps({"_id": f"p{number}", "text": " ".join(draw.choices(words, k=12))}) + "\n")
    asked = (f"What is {' '.join(draw.choices(words, k=2))} {number}?" for number in range(size // 10))
    Path("asked.txt").write_text("\n".join(asked))
    tracemalloc.start()
    done = mine_pool("asked.txt", f"{size}.parquet", ["texts.jsonl"], mining=Mining(passages=3, most=40))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.passages == size
    assert done.pairs > size // 10
    return peak


def test_memory_does_not_grow_with_the_corpus_or_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmkd.data.corpus_pool.mine._PART", 50)
    monkeypatch.setattr("tmkd.data.corpus_pool.retrieve._REMEMBERED", 100)
    peak_of(200)  # imports
    small, large = peak_of(2_000), peak_of(20_000)
    assert large < small + 500_000, f"{small:,} bytes with 2,000 passages, {large:,} with 20,000"


def test_the_pool_is_written_over_none_of_the_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [{"id": name, "text": answer} for name, (_, answer) in TOPICS.items()])
    write_jsonl(tmp_path / "asked.jsonl", [{"question": question} for question in QUESTIONS])
    for output in ("texts.jsonl", "asked.jsonl"):
        before = (tmp_path / output).read_text()
        with pytest.raises(DataError, match="is one of the files to be read, which would be lost"):
            mine_pool("asked.jsonl", output, ["texts.jsonl"])
        assert (tmp_path / output).read_text() == before
