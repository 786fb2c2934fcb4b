"""The index on disk: documents of every format, brought up to date, read while written, safe from kills."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import Tmkd, write_jsonl
from qa_fixtures import document, index_of

from tmkd.core.errors import DataError, MissingExtraError
from tmkd.data.documents.document_rows import Fields, row_id
from tmkd.data.documents.html import parse_html
from tmkd.data.documents.index import Document, DocumentIndex, Found, update_index
from tmkd.data.documents.index_files import CARD
from tmkd.data.documents.markdown import parse_markdown, parse_plain
from tmkd.data.documents.reader import DocumentReader, Reading, index_documents
from tmkd.data.documents.seen import SeenNames
from tmkd.data.writers import write_rows

ROOT = Path(__file__).parents[2]
MARKDOWN = """---
title: "The manual"
---
# Disks

A *disk* is a [device](https://a.example "x") and `mount` mounts it,
on two lines.

## How do I mount?

1. Plug it in.
2. Run:

   ```sh
   mount /dev/sda1 /mnt
   ```

| option | use |
|--------|-----|
| `-r` | read only |

<div>Careful &amp; slow</div>
"""
PLAIN = """The guide
=========

First paragraph
on two lines.

Copying
-------
    cp a b

Done with it.
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    html = "<html><head><title>Ports</title></head><body><h1>Ports</h1><p>Apache listens on port 80.</p></body></html>"
    files = {"a.html": html, "deep/b.md": MARKDOWN, "deep/c.txt": PLAIN, ".git/d.txt": "hidden words", "e.png": "x"}
    return write(tmp_path / "docs", files)


def first(index: DocumentIndex, question: str) -> Found:
    return index.search(question, 1)[0]


def test_markdown_keeps_headings_code_and_tables() -> None:
    disks, mount = parse_markdown(MARKDOWN)
    assert (disks.title, disks.heading, mount.heading, mount.path) == (
        "The manual",
        "Disks",
        "How do I mount?",
        ("Disks",),
    )
    assert [block.text for block in disks.blocks] == ["A disk is a device and mount mounts it, on two lines."]
    assert [(block.text, block.code) for block in mount.blocks] == [
        ("Plug it in.", False),
        ("Run:", False),
        ("mount /dev/sda1 /mnt\noption | use\n-r | read only", True),
        ("Careful & slow", False),
    ]
    assert parse_markdown("# Only *one*\n\ntext")[0].title == "Only one"


def test_plain_text_keeps_paragraphs_code_and_underlined_headings() -> None:
    guide, copying = parse_plain(PLAIN)
    assert (guide.title, guide.heading, copying.heading, copying.path) == (
        "The guide",
        "The guide",
        "Copying",
        ("The guide",),
    )
    assert [block.text for block in guide.blocks] == ["First paragraph on two lines."]
    assert [(block.text, block.code) for block in copying.blocks] == [("cp a b", True), ("Done with it.", False)]


def test_a_folder_of_documents_with_title_headings_and_place(docs: Path, tmp_path: Path) -> None:
    changes = index_documents(["docs"], tmp_path / "index")
    assert (changes.added, changes.skipped) == (3, 0)
    index = DocumentIndex.open(tmp_path / "index")
    assert index.documents == 3
    mount = first(index, "mount a device").passage
    assert (mount.title, mount.heading_path, mount.source) == ("The manual", ("Disks",), "docs/deep/b.md")
    assert first(index, "apache port").passage.source == "docs/a.html"
    assert index.search("hidden", 3) == []
    assert index.search("guide", 3, headings=False) == []
    assert first(index, "guide").document == "docs/deep/c.txt"
    index_documents(["docs"], tmp_path / "index", Reading(url="https://a.example/"))
    index.refresh()
    assert first(index, "mount a device").passage.source == "https://a.example/deep/b.md"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://a.example", "https://a.example/deep%20er/100%25%20%C3%A9%23%3F.md"),
        ("https://a.example/", "https://a.example/deep%20er/100%25%20%C3%A9%23%3F.md"),
        ("https://a.example/v1//", "https://a.example/v1/deep%20er/100%25%20%C3%A9%23%3F.md"),
        ("https://a.example/show?file=", "https://a.example/show?file=deep%20er/100%25%20%C3%A9%23%3F.md"),
    ],
)
def test_an_address_and_a_path_are_joined_with_one_slash_and_percent_encoded(
    tmp_path: Path, url: str, address: str
) -> None:
    file = tmp_path / "docs" / "deep er" / "100% é#?.md"
    file.parent.mkdir(parents=True)
    file.write_text("The mount command mounts a device.")
    index_documents([str(tmp_path / "docs")], tmp_path / "index", Reading(url=url))
    assert first(DocumentIndex.open(tmp_path / "index"), "mount a device").passage.source == address


def test_json_lines_plain_and_packed_with_fields_of_any_name(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"key": 7, "head": "Disks", "body": "Mount a disk.\n\nOr not.", "link": "https://a.example/7"},
        {"key": "b", "body": "Copy a file."},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    fields = Fields("key", "head", "body", "link")
    changes = index_documents([path.name, packed.name], tmp_path / "index", Reading(fields))
    assert changes.added == 4
    index = DocumentIndex.open(tmp_path / "index")
    found = index.search("mount a disk", 5)
    assert [(one.passage.text, one.passage.title, one.passage.source) for one in found] == [
        ("Mount a disk. Or not.", "Disks", "https://a.example/7")  # the other file's text is the same: once
    ]
    assert first(index, "copy").passage.source in ("rows.jsonl#b", "packed.jsonl.gz#b")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: there is no field 'text' \(--text-field.*'key', 'head'"):
        index_documents([path.name], tmp_path / "index")


@pytest.mark.parametrize("line", ["\n\n", "\r\n\r\n", "\n \t\n"])
def test_blank_lines_of_every_kind_part_the_paragraphs_of_a_row(tmp_path: Path, line: str) -> None:
    paragraphs = [f"paragraph {number} has some words, {'many words ' * 35}of it" for number in range(2)]
    write_jsonl(tmp_path / "rows.jsonl", [{"id": 1, "text": line.join(paragraphs)}])
    index_documents(["rows.jsonl"], tmp_path / "index")
    assert sorted(one.text for one in DocumentIndex.open(tmp_path / "index").passages()) == paragraphs


def test_a_row_without_an_id_keeps_its_name(tmp_path: Path) -> None:
    """Pools name their passages by it, and equal scores are ordered by it."""
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "Cells divide."}])
    (row,) = DocumentReader(["rows.jsonl"]).documents()
    assert row.key == "rows.jsonl#7a94a56df182dcf0"


def test_a_beir_folder_is_its_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "scifact"
    folder.mkdir()
    write_jsonl(folder / "corpus.jsonl", [{"_id": "d1", "title": "Cells", "text": "Cells divide.", "metadata": {}}])
    write_jsonl(folder / "queries.jsonl", [{"_id": "q1", "text": "Do cells divide?"}])
    index_documents(["scifact"], tmp_path / "index")
    index = DocumentIndex.open(tmp_path / "index")
    assert [one.document for one in index.search("divide", 5)] == ["scifact/corpus.jsonl#d1"]


def test_a_beir_corpus_with_a_null_title_and_rows_without_text_says_what_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"_id": "1", "title": None, "text": "Cells\u2028divide."}, {"_id": "2", "title": "T", "text": " "},
            {"_id": "3", "title": "", "text": None}]  # fmt: skip
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "corpus.jsonl").write_text("\n\n".join(lines) + "\n  \n")
    index_documents(["corpus.jsonl"], tmp_path / "index")
    assert [one.passage.text for one in DocumentIndex.open(tmp_path / "index").search("divide", 5)] == ["Cells divide."]
    assert "corpus.jsonl: 2 of 3 documents have no text, and so no passage; the first is on line 3" in caplog.text
    (tmp_path / "corpus.jsonl").write_text(lines[0] + "\n{}\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: there is no field 'text'"):
        index_documents(["corpus.jsonl"], tmp_path / "index")


def test_only_what_changed_is_written(docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    index_documents(["docs"], out)
    (docs / "deep/c.txt").write_text(PLAIN.replace("First", "Zebra"))
    (docs / "a.html").unlink()
    (docs / "f.txt").write_text("A giraffe is tall.")
    os.utime(docs / "deep/b.md")  # touched, not changed
    changes = index_documents(["docs"], out)
    assert (changes.added, changes.changed, changes.deleted, changes.unchanged) == (1, 1, 1, 1)
    index = DocumentIndex.open(out)
    assert first(index, "zebra").document == "docs/deep/c.txt"
    assert first(index, "giraffe").document == "docs/f.txt"
    assert index.search("apache", 3) == []
    assert first(index, "device").document == "docs/deep/b.md"
    assert index_documents(["docs"], out).unchanged == 3
    fresh = tmp_path / "fresh"
    index_documents(["docs"], fresh)
    assert len(DocumentIndex.open(fresh)) == len(index)


def test_a_document_that_did_not_change_is_not_parsed(tmp_path: Path) -> None:
    index_of(tmp_path / "index", {"a": "one text"})

    def never() -> None:
        raise AssertionError("parsed")

    same = document("a", "one text")
    object.__setattr__(same, "passages", never)
    assert update_index(tmp_path / "index", lambda: [same]).unchanged == 1


def test_a_document_without_text_is_remembered(tmp_path: Path) -> None:
    for wanted in ((1, 0), (0, 1)):
        changes = update_index(tmp_path / "index", lambda: [document("empty")])
        assert (changes.added, changes.unchanged) == wanted
    index = DocumentIndex.open(tmp_path / "index")
    assert (len(index), index.documents, index.search("empty", 3)) == (0, 1, [])


def test_documents_can_be_searched_as_if_they_were_not_there(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", {"a": "mount a disk", "b": "mount a folder", "c": "mount a disk"})
    pid = first(index, "disk").passage.pid
    assert index.holding([pid, "nowhere"]) == {pid: {"a", "c"}}
    assert [one.document for one in index.search("mount", 5, exclude={"a"})] == ["b", "c"]
    assert index.search("disk", 5, exclude={"a", "c", "unknown"}) == []


def test_passages_are_looked_up_by_id_with_the_scores_that_a_search_gives_them(tmp_path: Path) -> None:
    texts = {"a": "mount a disk", "b": "mount a folder", "c": "mount a disk", "d": "copy the keys"}
    index = index_of(tmp_path / "index", texts)
    found = {one.passage.text: one for one in index.search("mount the disk", 9)}
    assert len(found) == 2
    (keys,) = index.search("keys", 1)
    wanted = [*(one.passage.pid for one in found.values()), keys.passage.pid, "nowhere"]
    looked_up = index.look_up(wanted, "mount the disk")
    assert looked_up == [found["mount a disk"], found["mount a folder"], replace(keys, score=0.0)]
    (other,) = index.look_up(wanted[:1], "mount the disk", exclude={"a"})
    assert (other.document, other.passage.text, other.score) == ("c", "mount a disk", found["mount a disk"].score)
    assert index.look_up(wanted[:1], "mount", exclude={"a", "c"}) == []
    assert [one.score for one in index.look_up(wanted[2:], "!?")] == [0.0]  # a question without a word
    assert index.look_up([], "mount") == index.look_up(["nowhere"], "mount") == []
    assert all(one.score > 0 for one in index.look_up(wanted, "use"))  # a heading
    assert [one.score for one in index.look_up(wanted, "use", headings=False)] == [0.0] * 3


def test_the_passages_beside_one_are_those_of_its_document(tmp_path: Path) -> None:
    parts = {key: [f"{key} disk part{number}" for number in range(4)] for key in ("a", "b", "c")}
    out = tmp_path / "index"
    update_index(out, lambda: [document(key, *texts) for key, texts in parts.items()])
    parts["b"] = ["b disk part0", "b disk new", *parts["b"][1:]]  # its passages are written anew
    update_index(out, lambda: [document(key, *texts) for key, texts in parts.items()])
    index = DocumentIndex.open(out)
    found = index.search("disk", 20)
    assert len(found) == 13
    names = {one.passage.pid: one.passage.text for one in found}
    beside = {names[pid]: [names[one] for one in ids] for pid, ids in index.beside(found).items()}
    for texts in parts.values():
        for place, text in enumerate(texts):
            assert beside[text] == [*texts[max(0, place - 1) : place], *texts[place + 1 : place + 2]]
    gone = replace(found[0], document="nowhere")
    assert index.beside([gone]) == index.beside([]) == {}


def test_a_text_under_two_headings_is_found_by_both(tmp_path: Path) -> None:
    """It counts once in each search, with the heading that fits best, and its neighbours are those it has there."""
    tools = ("Zip", "Tar")
    part = "## {0}\n\n{0} packs files.\n\n### Install {0}\n\nRun the installer.\n\n### Start {0}\n\n{0} starts now.\n"
    write(tmp_path / "docs", {"a.md": "# Tools\n" + "".join(map(part.format, tools))})
    assert index_documents(["docs"], tmp_path / "index").passages == 6
    index = DocumentIndex.open(tmp_path / "index")
    pid = first(index, "installer").passage.pid
    for tool in tools:
        found = first(index, f"install {tool}")
        assert found.passage.heading_path == ("Tools", tool, f"Install {tool}")
        assert index.look_up([pid], f"install {tool}") == [found]
        packs, starts = (first(index, f"{tool} {word}").passage.pid for word in ("packs", "starts"))
        assert index.beside([found]) == {pid: [packs, starts]}
    assert [one.passage.pid for one in index.search("installer", 5)] == [pid]
    assert [one.passage.pid for one in index.hits("installer", 5)] == [pid, pid]
    assert {index.text_number(one) for one in index.hits("installer", 5)} == {first(index, "installer").number}
    write(tmp_path / "docs", {"a.md": "# A\n\nSee the manual.\n\n# B\n\nSee the manual.\n"})
    index_documents(["docs"], tmp_path / "index")
    index.refresh()
    found = first(index, "manual")
    assert index.beside([found]) == {found.passage.pid: []}


def test_a_text_of_many_documents_counts_once(tmp_path: Path) -> None:
    texts = {f"copy{number:02}": "mount the same disk" for number in range(60)} | {"other": "mount another thing"}
    found = index_of(tmp_path / "index", texts).search("mount disk", 2)
    assert [one.document for one in found] == ["copy00", "other"]


def test_a_reader_keeps_what_it_opened_while_the_index_is_rewritten(tmp_path: Path) -> None:
    out = tmp_path / "index"
    reader = index_of(out, {f"d{number}": f"disk number{number}" for number in range(50)})
    wrong: list[object] = []
    stop = threading.Event()

    def numbered(turn: int) -> list[Document]:
        return [document(f"d{n}", f"disk turn{turn} number{n}") for n in range(turn)]

    def read() -> None:
        while not stop.is_set():
            try:
                if len(reader.search("disk", 100)) != 50:
                    wrong.append(len(reader.search("disk", 100)))
                DocumentIndex.open(out).search("disk", 5)  # opening in the middle is safe as well
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for turn in range(8):
        update_index(out, partial(numbered, turn))
    stop.set()
    thread.join()
    assert wrong == []
    assert len(reader) == 50
    reader.refresh()
    assert (len(reader), reader.search("turn5", 3)) == (7, [])


def test_a_kill_in_the_middle_leaves_the_old_state(tmp_path: Path) -> None:
    out = tmp_path / "index"
    index_of(out, {"a": "old words", "b": "more words"})
    code = f"""
import sys, time; sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from qa_fixtures import document
from tmkd.data.documents.index import update_index
def documents():
    for number in range(3000):
        yield document(f"new{{number}}", *(f"new words {{number}} {{place}}" for place in range(20)))
    print("now", flush=True)
    time.sleep(60)
update_index(Path({str(out)!r}), documents)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    with pytest.raises(DataError, match=r"another process is writing to the index .*; wait for it"):
        update_index(out, lambda: [document("c", "third")])
    process.send_signal(signal.SIGKILL)
    process.wait()
    index = DocumentIndex.open(out)
    assert (index.documents, index.search("new", 3)) == (2, [])
    changes = update_index(out, lambda: [document("a", "old words"), document("c", "third")])
    assert (changes.added, changes.deleted, changes.unchanged, changes.passages) == (1, 1, 1, 2)


def test_an_error_in_the_middle_leaves_the_old_state(tmp_path: Path) -> None:
    out = tmp_path / "index"
    index_of(out, {"a": "old words"})
    with pytest.raises(DataError, match="two documents are named b"):
        update_index(out, lambda: [document("b", "one"), document("b", "two")])
    assert [one.document for one in DocumentIndex.open(out).search("old one two", 5)] == ["a"]
    assert update_index(out, lambda: [document("b", "one")]).deleted == 1  # the lock is free


def test_what_cannot_be_read_is_skipped_and_named_or_refused(
    docs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (docs / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (docs / "large.md").write_text("word " * 300_000)
    (docs / "gone.md").symlink_to("nowhere")
    (docs / "wide.txt").write_bytes("Ein Löwe".encode("utf-16"))
    (docs / "bare.txt").write_bytes("Eine Giraffe".encode("utf-16-le"))
    (docs / "binary.txt").write_bytes(b"ELF\0\0\1 words of a program \0" * 9)
    (docs / "binary.html").write_bytes(b"<p>words</p>\0" * 9)
    os.mkfifo(docs / "pipe.txt")
    changes = index_documents(["docs"], tmp_path / "index", Reading(most_bytes=1 << 20))
    assert (changes.added, changes.skipped) == (5, 6)
    logged = " ".join(caplog.text.split())
    assert "docs/latin.txt:1: byte 0xe9 is not valid UTF-8" in logged
    assert "docs/large.md: 1 MiB; larger than 1 MiB" in logged
    assert "docs/gone.md: No such file" in logged
    assert "docs/pipe.txt: not a file, but a pipe" in logged
    for name, count in (("txt", "27 of its 243"), ("html", "9 of its 117")):
        assert f"docs/binary.{name}: binary, no text; {count} characters are NUL" in logged
    for question, name in (("löwe", "wide"), ("giraffe", "bare")):
        assert first(DocumentIndex.open(tmp_path / "index"), question).document == f"docs/{name}.txt"
    with pytest.raises(DataError, match=r"docs/(binary|latin|large|gone|pipe)"):
        index_documents(["docs"], tmp_path / "index", Reading(strict=True))


def test_files_that_give_no_passage_are_counted_and_said(
    docs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(docs, {"b.html": "<nav>Home</nav>", "deep/d.pod": "sub code { 1 }\n"})
    write_jsonl(docs / "rows.jsonl", [{"id": "1", "text": "Cells divide."}, {"id": "2", "text": ""}])
    for _ in range(2):  # also where nothing has changed
        caplog.clear()
        changes = index_documents(["docs"], tmp_path / "index")
        assert (changes.added + changes.unchanged, changes.empty) == (7, 3)
        assert "2 of 5 files gave no passage, the first docs/b.html" in caplog.text


def test_answers_of_one_word_are_passages_where_a_heading_or_title_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "docs", {"a.md": "# Ports\n\nAll of them:\n\n## Default port\n\n`8080`\n"})
    rows: list[dict[str, object]] = [
        {"id": "1", "title": "What is the capital of France?", "text": "Paris"},
        {"id": "2", "text": "London"}, {"id": "3", "title": "Rome", "text": "?!"}, {"id": "4", "text": ""},
        {"id": "5", "text": "\u2014 \u2014 \u2014"},
    ]  # fmt: skip
    write_jsonl(tmp_path / "docs" / "rows.jsonl", rows)
    assert index_documents(["docs"], tmp_path / "index").passages == 3
    index = DocumentIndex.open(tmp_path / "index")
    assert first(index, "What is the default port?").passage.text == "8080"
    assert first(index, "What is the capital of France?").passage.text == "Paris"
    for why, count, line in (("one word and no title", 1, 2), ("no word", 2, 3), ("no text", 1, 4)):
        assert f"{count} of 5 documents have {why}, and so no passage; the first is on line {line}" in caplog.text


def test_single_bad_bytes_are_replaced_counted_and_said(
    docs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the file stays as it is: not skipped, and not read in another charset."""
    (docs / "bad.txt").write_bytes(b"line one\n" + "Löwenzahn ".encode() * 20 + b"caf\xe9")
    (docs / "bad.html").write_bytes("<p>Löwenzahn".encode() + b" caf\xe9 caf\xe8</p>")
    changes = index_documents(["docs"], tmp_path / "index")
    assert (changes.added, changes.skipped, changes.replaced) == (5, 0, 3)
    logged = " ".join(caplog.text.split())
    assert "docs/bad.txt:2: byte 0xe9 is not valid UTF-8; 1 such places" in logged
    assert "docs/bad.html:1: byte 0xe9 is not valid UTF-8; 2 such places" in logged
    assert "declare the charset" in logged
    assert "3 bad bytes were replaced, in 2 files" in logged
    found = DocumentIndex.open(tmp_path / "index").search("löwenzahn", 5)
    assert {one.document for one in found} == {"docs/bad.txt", "docs/bad.html"}
    with pytest.raises(DataError, match=r"docs/bad\.html:1: byte 0xe9"):
        index_documents(["docs"], tmp_path / "index", Reading(strict=True))


def test_names_that_are_no_text_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in (b"caf\xe9.txt", b"caf\xe8.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path / "docs") + b"/" + name)).write_text(f"text of {name!r}")
    assert index_documents(["docs"], tmp_path / "index").added == 2


def test_an_index_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a read-only mount; root may write anywhere else, so the check is what is replaced."""
    # a copy: threads of the index that was written here look after its files a little longer, and take its locks again
    written, folder = index_of(tmp_path / "index").folder, tmp_path / "read-only"
    shutil.copytree(written, folder, ignore=shutil.ignore_patterns("*.lock"))
    assert {path.stat().st_mode & 0o044 for path in folder.iterdir()} == {0o044}
    before = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(os, "access", lambda *_: False)
    reader = DocumentIndex.open(folder)
    assert first(reader, "disk")
    reader.refresh()
    assert first(reader, "disk")
    assert {path.name for path in folder.iterdir()} == before


def test_loops_of_links_and_second_names_are_read_once(docs: Path, tmp_path: Path) -> None:
    (docs / "deep" / "up").symlink_to("..")
    (docs / "deep" / "z.md").symlink_to("b.md")
    reader = DocumentReader(["docs", "docs/deep/b.md"])
    assert [one.key for one in reader.documents()] == ["docs/a.html", "docs/deep/b.md", "docs/deep/c.txt"]


def test_places_whose_files_another_place_had_already_are_no_error(docs: Path) -> None:
    for places in (["docs", "docs"], ["docs", "docs/deep"], ["docs/deep", "docs"], ["docs", "docs/"]):
        assert len(list(DocumentReader(places).documents())) == 3
    one = DocumentReader(["docs/deep"])._files
    assert len(list(DocumentReader(["named", "named"], corpora={"named": lambda: one}).documents())) == 2


@pytest.mark.parametrize("tag", ["div", "b", "blockquote"])
@pytest.mark.parametrize("depth", [230, 5000])
def test_deep_html_keeps_its_text(tag: str, depth: int) -> None:
    page = f"<html><title>t</title><script>no</script>{f'<{tag}>' * depth}deep words{f'</{tag}>' * depth}</html>"
    blocks = [block.text for section in parse_html(page.encode()) for block in section.blocks]
    assert blocks == ["deep words"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", r"rows\.jsonl:2: a line must be a JSON object, this is list"),
        ('{"text": ', r"rows\.jsonl:2: not valid JSON"),
        ("[" * 100_000, r"rows\.jsonl:2: not valid JSON"),
        ('{"text": "one", "text": "two"}', r"rows\.jsonl:2: a key stands twice: 'text'"),
        ('{"id": "b"}', r"rows\.jsonl:2: there is no field 'text'"),
        ('{"text": 5}', r"rows\.jsonl:2: 'text' is int, it must be text"),
        ('{"id": [], "text": "x"}', r"rows\.jsonl:2: 'id' is list"),
        ('{"id": "a", "text": "again"}', r"rows\.jsonl:2: the id 'a' is in line 1 already"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        index_documents(["rows.jsonl"], tmp_path / "index")


def test_more_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: byte 0xe9 is not valid UTF-8"):
        index_documents(["rows.jsonl"], tmp_path / "index")
    path.write_text(json.dumps({"text": "x" * 3000}))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the line is longer"):
        index_documents(["rows.jsonl"], tmp_path / "index", Reading(most_bytes=1000))
    path.write_text("\n")
    with pytest.raises(DataError, match=r"rows\.jsonl has no documents"):
        index_documents(["rows.jsonl"], tmp_path / "index")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "words"}\n' * 1000)[:-9])
    with pytest.raises(DataError, match="damaged or truncated gzip"):
        index_documents(["rows.jsonl.gz"], tmp_path / "index")
    path.write_text('{"text": "twice"}\n{"text": "twice"}\n')  # without an id the text names a document
    assert index_documents(["rows.jsonl"], tmp_path / "index").added == 1
    path.write_text('{"id": "\\ud800", "text": "half \\udc00 pair"}\n')  # text that no file can hold
    assert index_documents(["rows.jsonl"], tmp_path / "index").added == 1


def test_half_characters_of_any_format_can_be_stored(tmp_path: Path) -> None:
    write(
        tmp_path / "docs",
        {"a.pod": "=head1 NAME\n\nhalf E<0xD800> a pair\n", "b.html": "<p>another half &#xD800; a pair</p>"},
    )
    assert index_documents(["docs"], tmp_path / "index").added == 2
    assert len(DocumentIndex.open(tmp_path / "index").search("half pair", 5)) == 2


def test_an_error_of_the_disk_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index_of(tmp_path / "index", {"a": "old words"})

    def full(*_: object) -> None:
        raise ValueError("An error occurred in a thread: no space")

    monkeypatch.setattr("tmkd.data.documents.index.as_document", full)
    with pytest.raises(DataError, match=r"cannot be written \(.*no space; .* MiB free on its disk\); it is as it was"):
        update_index(tmp_path / "index", lambda: [document("b", "new words")])
    assert [one.document for one in DocumentIndex.open(tmp_path / "index").search("words", 3)] == ["a"]


def test_places_that_hold_no_documents(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").write_text("x")
    for place, message in (
        ("empty", "empty holds no document; known are .html"),
        ("a.pdf", "a.pdf: unknown format; known are .html"),
        ("nowhere", "nowhere: no such file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            index_documents([place], tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_folders_that_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not there; make one with: tmkd index DOCS --out"):
        DocumentIndex.open(tmp_path / "nowhere")
    write(tmp_path / "mine", {"thesis.txt": "precious"})
    with pytest.raises(DataError, match="mine holds no index"):
        DocumentIndex.open(tmp_path / "mine")
    with pytest.raises(DataError, match="mine is there already and holds no index; name another"):
        update_index(tmp_path / "mine", lambda: [document("a", "x")])
    index_of(tmp_path / "index")
    for content, message in (
        ('{"format": 99}', "format 99, this version reads 2; remove it and make one"),
        ("{", "is damaged"),
    ):
        (tmp_path / "index" / CARD).write_text(content)
        for call in (lambda: DocumentIndex.open(tmp_path / "index"), lambda: update_index(tmp_path / "index", list)):
            with pytest.raises(DataError, match=message):
                call()
    (tmp_path / "index" / CARD).write_text('{"format": 2}')
    (tmp_path / "index" / "meta.json").write_text("nonsense")
    with pytest.raises(DataError, match="cannot be opened"):
        DocumentIndex.open(tmp_path / "index")


def test_a_first_call_that_was_killed_early_can_be_repeated(tmp_path: Path) -> None:
    write(tmp_path / "index", {CARD: '{"format": 2}', ".managed.json": "[]"})
    with pytest.raises(DataError, match="cannot be opened"):
        DocumentIndex.open(tmp_path / "index")
    assert update_index(tmp_path / "index", lambda: [document("a", "words")]).added == 1


def test_missing_packages_are_named(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, place in (("lxml", "docs/a.html"), ("markdown_it", "docs/deep/b.md"), ("tantivy", "docs")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.delitem(sys.modules, "tmkd.data.documents.html", raising=False)
            with pytest.raises(MissingExtraError, match=r"pip install 'tmkd\[qa\]'"):
                index_documents([place], tmp_path / "index")


def test_the_command_counts(docs: Path, tmp_path: Path, tmkd: Tmkd) -> None:
    done = json.loads(tmkd("index", "docs", "--out", "out", "--json", "--quiet").stdout)
    assert {**done, "seconds": 0} == {
        **{"index": "out", "added": 3, "changed": 0, "deleted": 0, "unchanged": 0, "skipped": 0, "empty": 0},
        **{"passages": 5, "replaced": 0, "seconds": 0, "states": None, "states_of": None, "without_states": None},
    }
    told = tmkd("index", "docs", "--out", "out").stderr
    assert "0 added, 0 changed, 0 deleted, 3 unchanged documents; 5 passages" in told
    assert "left out 1 files of other kinds" in told
    assert "nowhere: no such file" in tmkd("index", "nowhere", "--out", "out", check=False).stderr


def test_documents_that_are_gone_are_found_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmkd.data.documents.index._AT_ONCE", 3)
    texts = {f"{number}.md": f"text number {number}" if number % 5 else "" for number in range(40)}
    index_of(tmp_path / "index", texts)
    kept = {key: text for key, text in texts.items() if key.startswith("1")}
    changes = update_index(tmp_path / "index", lambda: [document(key, *filter(None, [kept[key]])) for key in kept])
    assert (changes.deleted, changes.unchanged, changes.passages) == (29, 11, 9)
    index = DocumentIndex.open(tmp_path / "index")
    assert index.documents == 11
    assert {one.document for one in index.search("text", 40)} == {key for key, text in kept.items() if text}


def test_parquet_is_read_row_by_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    rows: list[dict[str, object]] = [
        {"id": number, "title": f"Part {number}", "text": f"Cells of kind {number} divide."} for number in range(2100)
    ]
    write_rows(docs / "cells.parquet", [*rows, {"id": 2100, "title": None, "text": None}])
    changes = index_documents([docs], tmp_path / "index")
    assert (changes.added, changes.passages) == (2101, 2100)
    assert (
        "cells.parquet: 1 of 2,101 documents have no text, and so no passage; the first is in row 2101" in caplog.text
    )
    (found,) = DocumentIndex.open(tmp_path / "index").search("kind 1999", 1)
    assert (found.document, found.passage.title) == (f"{docs}/cells.parquet#1999", "Part 1999")
    for wrong, said in (
        ([{"id": 1, "body": "x"}], r"cells.parquet, row 1: there is no field 'text' .*; there are: 'id', 'body'"),
        ([{"id": 1, "text": "x"}, {"id": 1, "text": "y"}], r"cells.parquet, row 2: the id '1' is in row 1 already"),
        ([{"id": 1, "text": 7}], r"cells.parquet, row 1: 'text' is int, it must be text"),
    ):
        write_rows(docs / "cells.parquet", wrong)
        with pytest.raises(DataError, match=said):
            index_documents([docs], tmp_path / "index")
    (docs / "cells.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match=r"cells\.parquet is not a readable Parquet file"):
        index_documents([docs], tmp_path / "index")


def test_rows_may_be_whole_passages(tmp_path: Path) -> None:
    long = "\n\n".join(f"Paragraph {number} has words, " + "and more words, " * 30 for number in range(3))
    write_jsonl(tmp_path / "a.jsonl", [{"_id": "d7", "title": "Long", "text": f" {long} "}, {"text": "Lonely"}])
    whole = Reading(whole=True)
    assert index_documents([tmp_path / "a.jsonl"], tmp_path / "index", whole).passages == 2
    (found,) = DocumentIndex.open(tmp_path / "index").search("paragraph", 5)
    assert (found.passage.text, found.passage.section) == (long.strip(), "d7")
    assert row_id(found.document, found.passage) == "d7"
    changes = index_documents([tmp_path / "a.jsonl"], tmp_path / "index")  # cut: other passages of the same rows
    assert changes.changed == 2
    found = DocumentIndex.open(tmp_path / "index").search("paragraph", 1)[0]
    assert row_id(found.document, found.passage) is None
    write_jsonl(tmp_path / "b.jsonl", [{"_id": "d7", "text": "Other words of another file."}])
    index_documents([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "index", whole)
    index = DocumentIndex.open(tmp_path / "index")
    names = {row_id(one.document, one.passage) for one in index.search("words", 5)}
    assert names == {f"{tmp_path}/{name}.jsonl#d7" for name in "ab"}


def test_names_that_were_seen_keep_their_first_value() -> None:
    with SeenNames() as seen:
        assert [seen.add(name, place) for place, name in enumerate(("b", "a", "b", "\u00e9", "e\u0301"))] == [
            None, None, 0, None, None,
        ]  # fmt: skip
        assert ("a" in seen, "c" in seen) == (True, False)
        assert (seen.get("a"), seen.get("c")) == (1, None)
        assert list(seen) == sorted(["a", "b", "\u00e9", "e\u0301"])
