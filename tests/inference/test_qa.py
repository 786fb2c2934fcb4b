"""Answers: retrieval, ranking, marking, windows, the no-answer threshold; no PyTorch in any of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Tmkd
from export_fixtures import exported
from qa_fixtures import OverlapScorer, index_of
from rich.console import Console

from tmkd.core.errors import DataError
from tmkd.data.writers import write_rows
from tmkd.inference.qa import Answer, Answers, Calibration, QuestionAnswerer
from tmkd.inference.qa.windows import Windows
from tmkd.models.tokenizer import PairTokenizer


@pytest.fixture
def answerer(tmp_path: Path) -> QuestionAnswerer:
    return QuestionAnswerer(OverlapScorer(), index_of(tmp_path / "index"))


def test_the_best_passage_comes_first_with_its_best_sentence_marked(answerer: QuestionAnswerer) -> None:
    answers = answerer.ask("How is a disk mounted with the mount command?", top=2)
    best = answers.answers[0]
    assert answers.answered
    assert (best.rank, best.source, best.title, best.heading_path) == (1, "mount.md", "mount", ("Use",))
    assert best.text[slice(*best.marked)] == "The mount command mounts a disk on a folder."
    assert best.window is None
    assert best.score >= answers.answers[1].score
    assert set(answers.milliseconds) == {"retrieve", "rank", "mark", "total"}
    assert answers.candidates == 2


def test_below_the_threshold_there_are_answers_but_no_answer(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index")
    question = "How do I copy a whole planet?"
    (best,) = QuestionAnswerer(OverlapScorer(), index).ask(question, top=1).answers
    for threshold, answered in ((best.probability - 0.01, True), (best.probability + 0.01, False)):
        asked = QuestionAnswerer(OverlapScorer(), index, calibration=Calibration(threshold=threshold)).ask(question)
        assert asked.answered is answered
        assert asked.answers[0].passage_id == best.passage_id
    cool = QuestionAnswerer(OverlapScorer(), index, calibration=Calibration(2.0)).ask(question).answers[0]
    assert cool.score == best.score
    assert abs(cool.probability - 0.5) < abs(best.probability - 0.5)


def test_retrieval_may_count_beside_the_student(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", {"a": "disk disk mount", "b": "the folder disk of a mount and a folder"})
    question = "disk mount of a folder"
    alone = QuestionAnswerer(OverlapScorer(), index).ask(question).answers
    both = (
        QuestionAnswerer(OverlapScorer(), index, calibration=Calibration(retrieval_weight=100.0)).ask(question).answers
    )
    assert [one.retrieval_rank for one in both] == [1, 2]
    by_source = {one.source: one for one in alone}
    assert both[0].score == by_source[both[0].source].score  # the first that was retrieved loses nothing
    assert both[1].score < by_source[both[1].source].score
    assert both[1].score < both[0].score


def test_a_long_passage_is_read_in_windows(tmp_path: Path) -> None:
    filler = " ".join(f"This is word {number}." for number in range(80))
    text = f"{filler} The mount command mounts a disk. {filler}"
    answerer = QuestionAnswerer(OverlapScorer(48), index_of(tmp_path / "index", {"long.md": text, "b.md": "Mount it."}))
    best = answerer.ask("mount a disk command").answers[0]
    assert best.window is not None
    start, stop = best.window
    assert "The mount command mounts a disk." in text[start:stop]
    assert stop - start < len(text) / 4
    assert text[slice(*best.marked)] == "The mount command mounts a disk."


def test_a_sentence_longer_than_the_window_is_marked_where_it_was_read(tmp_path: Path) -> None:
    text = "a list of words " * 60 + "mount disk command " + "and other words " * 60
    answerer = QuestionAnswerer(OverlapScorer(48), index_of(tmp_path / "index", {"long.md": text}))
    best = answerer.ask("mount a disk command").answers[0]
    assert best.marked == best.window
    assert "mount disk command" in text[slice(*best.marked)]


def test_nothing_found_and_bad_requests(answerer: QuestionAnswerer) -> None:
    nothing = answerer.ask("zebra")
    assert (nothing.answered, nothing.answers, nothing.candidates) == (False, [], 0)
    with pytest.raises(DataError, match="the question is empty"):
        answerer.ask("  ")
    with pytest.raises(ValueError, match="top is 0"):
        answerer.ask("mount", top=0)
    with pytest.raises(ValueError, match="candidates is 0"):
        answerer.ask("mount", candidates=0)


def test_hostile_questions_are_only_text(answerer: QuestionAnswerer) -> None:
    scorer = answerer.scorer
    for question in (
        "half \ud800 mount",
        '"mount AND (',
        "mount " * 200_000,
        "mount\x00disk\n",
        "m" * 10_000 + " mount",
    ):
        answers = answerer.ask(question)
        assert answers.answers[0].source == "mount.md"
    assert isinstance(scorer, OverlapScorer)
    assert max(len(question) for question, _ in scorer.asked) <= 32 * scorer.max_length


def test_the_command_answers_with_an_export(tmp_path: Path, tmkd: Tmkd, monkeypatch: pytest.MonkeyPatch) -> None:
    export = exported("minilm") / "out"
    index_of(tmp_path / "index")
    arguments = ("--model", export, "--index", tmp_path / "index")
    done = json.loads(tmkd("ask", "How is a disk mounted?", *arguments, "--json", "--top", "1").stdout)
    assert done["question"] == "How is a disk mounted?"
    assert len(done["answers"]) == 1
    assert done["candidates"] == 1
    shown = tmkd("ask", "How is a disk mounted?", *arguments)
    assert "mount > Use" in shown.stdout
    assert "mount.md  probability 0." in shown.stdout
    assert "1 passages in" in shown.stderr
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"copy a file\n\nsort the keys\n"), "utf-8"))
    lines = tmkd("ask", "-", *arguments, "--json", "--quiet").stdout.splitlines()
    assert [json.loads(line)["question"] for line in lines] == ["copy a file", "sort the keys"]
    assert "no passage of the index has a word" in tmkd("ask", "zebra", *arguments).stdout


def test_bytes_that_are_no_text_end_a_question_with_one_line(
    tmp_path: Path, tmkd: Tmkd, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(tmp_path / "index")
    arguments = ("--model", exported("minilm") / "out", "--index", tmp_path / "index", "--json", "--quiet")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"copy a file\n\ncaf\xe9?\n"), "utf-8"))
    done = tmkd("ask", "-", *arguments, check=False)
    assert [json.loads(line)["question"] for line in done.stdout.splitlines()] == ["copy a file"]
    assert done.returncode == 1
    assert done.stderr.startswith("tmkd: standard input:3: byte 0xe9 is not valid UTF-8; convert it")
    done = tmkd("ask", b"caf\xe9?".decode("utf-8", "surrogateescape"), *arguments, check=False)
    assert done.stderr.startswith("tmkd: the question: byte 0xe9 is not valid UTF-8")


def test_an_output_of_ascii_alone_gets_escapes_and_no_traceback(tmp_path: Path) -> None:
    index_of(tmp_path / "index", {"menü.md": "Ein Menü öffnet man mit der Taste F1.", "b.md": "Nothing."})
    write_rows(tmp_path / "pairs.jsonl", [{"question": "wie?", "passage": "das Menü 日本 🙂"}])
    export = str(exported("minilm") / "out")
    ask = ["ask", "Wie öffnet man das Menü?", "--model", export, "--index", str(tmp_path / "index")]
    score = ["score", export, "--pairs", str(tmp_path / "pairs.jsonl")]
    lines = [in_ascii([*ask, "--json"]), in_ascii(score)]
    assert json.loads(lines[0])["question"] == "Wie öffnet man das Menü?"
    assert json.loads(lines[1])["passage"] == "das Menü 日本 🙂"
    assert "Ein Men\\xfc \\xf6ffnet man" in in_ascii(ask)


def in_ascii(arguments: list[str]) -> str:
    """What the command line prints where its output is ASCII."""
    done = subprocess.run(
        [sys.executable, "-c", "from tmkd.cli.main import main; main()", *arguments, "--quiet"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, cwd=Path(__file__).parents[2],
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("ascii")


def test_the_terminal_shows_the_best_sentence_and_what_was_read() -> None:
    text = "First things first. This is it. The rest."
    answer = Answer(1, "p", text, (20, 31), (20, 41), 1.5, 0.8, 4, "Guide", ("Guide", "Use"), "guide.md", 4, 9)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=140, color_system="standard")
    times = dict.fromkeys(("retrieve", "rank", "mark", "total"), 1.0)
    for part in Answers("q", False, [answer], 1, times).shown():
        console.print(part)
    page = file.getvalue()
    assert "no passage answers this well" in page
    assert "\x1b[1mThis is it.\x1b[0m" in page
    assert "Guide > Use" in page
    assert "4. by BM25 and 9. by dense search" in page
    assert "read in part: characters 20 to 41" in page


def test_what_is_not_there_yet_says_how_to_make_it(tmkd: Tmkd, tmp_path: Path) -> None:
    missing = tmkd("ask", "anything", check=False)
    assert missing.returncode == 1
    assert "there is no workspace/runs/demo/export; make it with `make demo`" in missing.stderr
    missing = tmkd("ask", "anything", "--model", exported("minilm") / "out", check=False)
    assert "there is no workspace/index; make it with `tmkd index debian-docs`" in missing.stderr
    index_of(tmp_path / "index")
    index_of(tmp_path / "empty", {"a.md": ""})
    empty = tmkd("ask", "x", "--model", exported("minilm") / "out", "--index", "empty", check=False)
    assert "empty holds no passage; fill it with: tmkd index DOCS --out empty" in empty.stderr
    three = tmkd("ask", "x", "--model", exported("mpnet", 3) / "out", "--index", tmp_path / "index", check=False)
    assert "has 3 classes; answering needs a student of two" in three.stderr


def test_a_question_that_is_not_read_to_its_end_is_told(tmp_path: Path) -> None:
    answerer = QuestionAnswerer(OverlapScorer(40), index_of(tmp_path / "i"), model=exported("mpnet") / "out")
    assert not answerer.ask("how do i mount a disk " * 3).truncated  # 18 of the 36 tokens of a pair's texts
    answers = answerer.ask("how do i mount a disk " * 3 + "root")
    assert answers.truncated
    shown = Console(file=io.StringIO(), width=200)
    for part in answers.shown():
        shown.print(part)
    assert "longer than the student reads; its end was not read" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_windows_of_an_export_are_counted_by_its_tokenizer() -> None:
    windows = Windows(48, exported("minilm") / "out")
    text = " ".join(f"word{number}" for number in range(100))
    spans = windows.of("How do I mount a disk?", [text, "short"])
    assert spans[1] == [(0, 5)]
    assert (spans[0][0][0], spans[0][-1][1]) == (0, len(text))
    tokenizer = PairTokenizer(exported("minilm") / "out", 10_000)
    for (start, stop), (following, end) in pairwise(spans[0]):
        assert start < following < stop < end  # they overlap
        (length,) = tokenizer.encode(["How do I mount a disk?"], [text[start:stop]]).lengths
        assert 40 <= length <= 48


def test_keys_and_other_scripts_are_counted_by_the_tokenizer_too() -> None:
    """They have several tokens where prose has one."""
    windows = Windows(48, exported("minilm") / "out")
    tokenizer = PairTokenizer(exported("minilm") / "out", 10_000)
    for text in ("a3f9c2e1 " * 8, "QmFzZTY0aXNub3Rwcm9zZQ" * 3, "日本語の文章です。" * 5):
        (length,) = tokenizer.encode(["Why?"], [text]).lengths
        (spans,) = windows.of("Why?", [text])
        assert (len(spans) > 1) == (length > 48), text


TORN = {  # texts with many more tokens than English words of their length have
    "letters": "zxqj " * 100, "finnish": "taivutusmuodoltaan " * 60, "hex": "deadbeefcafe " * 60, "tags": "<br/>" * 200,
    "hmong": "Txhua tus neeg yug los muaj kev ywj pheej thiab sib npaug zos hauv kev muaj hwj chim. " * 5,
    "names": "TCP UDP ICMP ARP DHCP BGP OSPF MPLS VLAN VXLAN NAT DNS TLS IPSEC GRE PPPOE " * 6,
}  # fmt: skip


@pytest.mark.parametrize("family", ["minilm", "mpnet"])
@pytest.mark.parametrize("max_length", [24, 56, 160, 192])
def test_the_windows_of_a_passage_leave_nothing_unread_whatever_its_words_are(family: str, max_length: int) -> None:
    """A student that reads question and passage together reads every letter of the passage in one of the windows."""
    folder, question = exported(family) / "out", "How do I mount a disk?"
    tokenizer = PairTokenizer(folder, max_length)
    for text, spans in zip(TORN.values(), Windows(max_length, folder).of(question, list(TORN.values())), strict=True):
        pieces = [text[start:stop] for start, stop in spans]
        places = tokenizer.passage_places([(question, piece) for piece in pieces], len(pieces))
        read = set[int]()
        for (start, _), piece, (first, last) in zip(spans, pieces, places.tolist(), strict=True):
            of_passage = tokenizer.token_spans([piece])[0][: last - first]
            read |= {start + letter for begin, end in of_passage for letter in range(begin, end)}
        assert {place for place, letter in enumerate(text) if not letter.isspace()} <= read


def test_indexing_and_answering_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Disks\n\nThe mount command mounts a disk.")
    (tmp_path / "docs" / "b.html").write_text("<p>The cp command copies a disk.</p>")
    arguments = ["ask", "mount a disk", "--model", str(exported("minilm") / "out"), "--index", "out", "--json"]
    code = (
        "import sys; from tmkd.cli.main import app\n"
        f"for arguments in (['index', 'docs', '--out', 'out'], {arguments!r}):\n"
        "    app(arguments, standalone_mode=False)\n"
        "print(*[name for name in ('torch', 'transformers', 'pyarrow', 'scipy', 'sklearn') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    answers, loaded = done.stdout.splitlines()
    assert json.loads(answers)["candidates"] == 2
    assert loaded == ""
