"""tmkd index --model: documents and the states of their passages, from the command line, with a real encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Tmkd
from export_fixtures import exported
from state_fixtures import cached_export

import tmkd as package
from tmkd.data.documents.index import DocumentIndex
from tmkd.inference.state_store import FOLDER, StateStore, has_states
from tmkd.inference.text_encoder import TextEncoder
from tmkd.models.text_states import text_key


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached_export(tmp_path_factory.mktemp("cached"))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "mount.md").write_text("# Disks\n\nThe mount command mounts a disk on a folder.\n")
    (folder / "sort.md").write_text("# Hashes\n\nSort the keys by their values, then walk the sorted keys.\n")
    return folder


def test_documents_and_states_are_written_and_brought_up_to_date(tmkd: Tmkd, docs: Path, export: Path) -> None:
    done = tmkd("index", docs, "--out", "index", "--model", export, "--threads", "1")
    assert "index: 2 added, 0 changed, 0 deleted, 0 unchanged documents; 2 passages" in done.stderr
    assert "index: states of 2 passages: 2 computed, 0 kept, 0 dropped; 0.0 MB, " in done.stderr
    assert " KB a passage, " in done.stderr
    assert "states: 2/2 passages, " in done.stderr
    encoder = TextEncoder.open(export, threads=1)
    store = StateStore.open("index", encoder.identity)
    for passage in DocumentIndex.open("index").passages():
        found, (fresh,) = store.get(text_key(passage.text)), encoder.states([passage.text])
        assert found is not None
        assert found.values.tobytes() == fresh.values.tobytes()  # to the last bit, whatever was read beside it
        assert found.embedding.tobytes() == fresh.embedding.tobytes()
    (docs / "copy.md").write_text("# Files\n\nThe cp command copies a file, with -r a folder.\n")
    said = json.loads(tmkd("index", docs, "-o", "index", "-m", export, "--threads", "1", "--json").stdout)
    states = said["states"]
    assert (said["added"], states["computed"], states["kept"], states["dropped"]) == (1, 1, 2, 0)
    assert said["without_states"] is None


def test_without_a_model_it_says_whose_states_are_missing(tmkd: Tmkd, docs: Path, export: Path) -> None:
    tmkd("index", docs, "--out", "index", "--model", export, "--threads", "1")
    before = sorted((path.name, path.read_bytes()) for path in Path("index", FOLDER).iterdir())
    assert "missing" not in tmkd("index", docs, "--out", "index").stderr
    (docs / "copy.md").write_text("# Files\n\nThe cp command copies a file, with -r a folder.\n")
    (docs / "sort.md").unlink()
    command = ["index", "--out", "index", "--model", str(export)]
    done = tmkd("index", docs, "--out", "index", "--json")
    assert f"the states of 1 passages are missing; compute them with: tmkd {' '.join(command)}" in done.stderr
    assert json.loads(done.stdout)["without_states"] == 1
    assert sorted((path.name, path.read_bytes()) for path in Path("index", FOLDER).iterdir()) == before
    assert "1 computed, 1 kept, 1 dropped" in tmkd(*command, "--threads", "1").stderr  # the command that it named
    assert "missing" not in tmkd("index", docs, "--out", "index").stderr


def test_an_index_that_never_had_states_says_nothing_of_them(tmkd: Tmkd, docs: Path) -> None:
    done = tmkd("index", docs, "--out", "index", "--json")
    assert "states" not in done.stderr
    assert json.loads(done.stdout)["states"] is None
    assert not has_states(Path("index"))


def test_damaged_states_are_found_and_mended_by_the_command_that_is_named(tmkd: Tmkd, docs: Path, export: Path) -> None:
    tmkd("index", docs, "--out", "index", "--model", export, "--threads", "1")
    assert (
        f"the states of 2 passages by {export} are as they were written"
        in tmkd("index", "--check", "-o", "index").stderr
    )
    path = next(Path("index", FOLDER).glob("values-*.bin"))
    data = bytearray(path.read_bytes())
    data[3] ^= 16
    path.write_bytes(data)
    failed = tmkd("index", "--check", "--out", "index", check=False)
    assert failed.returncode == 1
    assert "values-1.bin is damaged: its CRC-32 is" in failed.stderr
    assert f"compute the states again: tmkd index --out index --model {export}" in failed.stderr.replace("\n", " ")
    mended = tmkd("index", "--out", "index", "--model", export, "--threads", "1")
    assert "1 computed, 1 kept" in mended.stderr
    tmkd("index", "--check", "--out", "index")
    (path.parent / "states.json").write_text("{")
    assert (
        "states.json is damaged" in tmkd("index", docs, "--out", "index").stderr
    )  # documents are indexed all the same


def test_calls_that_cannot_be_meant(tmkd: Tmkd, docs: Path, export: Path) -> None:
    for arguments, said in (
        (["--out", "index"], "name DOCS to index, or --model"),
        ([str(docs), "--check"], "leave DOCS and --model out"),
        (["--check", "--out", "nowhere"], "nowhere has no states of passages; run: tmkd index --out nowhere --model"),
        (["--out", "nowhere", "--model", str(export)], "nowhere is not there; make one with: tmkd index DOCS"),
        ([str(docs), "--out", "index", "--model", "nothing"], "nothing is not a folder; give an export"),
        (
            [str(docs), "--out", "index", "--model", str(exported("minilm") / "out")],
            "give the export of a student of the kind `cached`",
        ),
    ):
        done = tmkd("index", *arguments, check=False)
        assert done.returncode
        assert said in " ".join(done.stderr.replace("│", " ").split())
    assert not Path("index").exists()  # a wrong model is refused before documents are read


def test_the_same_from_python(docs: Path, export: Path) -> None:
    changes = package.build_index([docs], "index", model=export, threads=1)
    assert (changes.added, changes.passages) == (2, 2)
    assert changes.states is not None
    assert changes.states.computed == 2
    assert package.build_states("index", export, threads=1).kept == 2
    store = package.check_states("index")
    assert (store.passages, store.card.model) == (2, str(export))


def test_help_shows_an_example(tmkd: Tmkd) -> None:
    shown = tmkd("index", "--help").stdout
    assert "--model" in shown
    assert "--check" in shown
    assert "Example: tmkd index manual/ faq.jsonl --out workspace/index --model" in shown
