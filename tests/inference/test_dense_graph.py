"""The graph over the embeddings of a real store: what it finds, what came later, another store, damage, no library."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from qa_fixtures import index_of
from state_fixtures import MiniLM

from tmkd.core.errors import NoRoomError, TmkdError
from tmkd.inference.dense import DenseSearch
from tmkd.inference.dense_graph import CARD, Graph, add, empty_graph, update_graph
from tmkd.inference.state_store import StateStore
from tmkd.inference.state_update import update_states

THINGS = ("disk", "folder", "printer", "network", "password", "screen", "kernel", "window", "mouse", "letter")
VERBS = ("mount", "copy", "remove", "rename", "test", "share", "lock", "paint", "sell", "forget", "find", "wash")
QUESTIONS = ("How do I sell a printer?", "Which command locks the screen?", "I forgot my password")


def texts(things: tuple[str, ...] = THINGS) -> dict[str, str]:
    return {f"{verb}-{thing}": f"You can {verb} the {thing} when nobody looks." for thing in things for verb in VERBS}


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoder: MiniLM) -> Path:
    """An index of 120 passages with their states and a graph."""
    folder = index_of(tmp_path_factory.mktemp("made") / "index", texts()).folder
    update_states(folder, encoder)
    said = update_graph(StateStore.open(folder, encoder.identity), most_exact=100)
    assert said is not None
    assert said.startswith("graph over 120 embeddings, ")
    return folder


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmkd.inference.dense_graph.MOST_EXACT", 100)


@pytest.fixture
def store(made: Path, tmp_path: Path, encoder: MiniLM) -> StateStore:
    return StateStore.open(shutil.copytree(made, tmp_path / "index"), encoder.identity, model="EXPORT")


def graph_of(store: StateStore) -> Graph:
    found = Graph.open(store)
    assert found is not None
    return found


def files(store: StateStore) -> list[str]:
    return sorted(path.name for path in (store.folder / "graph").iterdir())


def test_a_graph_finds_what_comparing_all_rows_finds(store: StateStore, encoder: MiniLM) -> None:
    graph = graph_of(store)
    assert graph.rows == 120
    near, exact = DenseSearch(store.embeddings, store.pids, graph), DenseSearch(store.embeddings, store.pids)
    for question in QUESTIONS:
        embedding = encoder.question(question)[1]
        assert near.search(embedding, 10) == pytest.approx(exact.search(embedding, 10), abs=1e-6)
        assert list(near.search(embedding, 10)) == list(exact.search(embedding, 10))
    assert len(near.search(embedding, 1000)) == 120


def test_every_row_of_a_graph_is_found(store: StateStore) -> None:
    rows = np.random.default_rng(0).normal(size=(3000, store.card.width))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    library = empty_graph(store.card.width)
    add(library, 0, rows)
    assert [int(library.search(row, 1, threads=1).keys[0]) for row in rows] == list(range(3000))


def test_rows_that_came_later_are_compared_and_then_added(store: StateStore, encoder: MiniLM) -> None:
    before = files(store)
    for things, of_graph in ((("piano",), 120), (("piano", "violin"), 144)):  # a tenth more is not yet worth it
        index_of(store.index, texts((*THINGS, *things)))
        changes = update_states(store.index, encoder)
        store.refresh()
        assert (files(store) == before) == (of_graph == 120) == (changes.graph == "")
        assert len(files(store)) == 2
        graph = graph_of(store)
        assert graph.rows == of_graph
        near, exact = DenseSearch(store.embeddings, store.pids, graph), DenseSearch(store.embeddings, store.pids)
        for question in (f"You can paint the {things[-1]} when nobody looks.", *QUESTIONS):
            embedding = encoder.question(question)[1]
            assert list(near.search(embedding, 10)) == list(exact.search(embedding, 10))
        assert store.pids.index(next(iter(near.search(encoder.question("I paint my piano")[1], 1)))) >= 120


def test_a_graph_of_other_embeddings_is_not_used_and_made_anew(
    store: StateStore, encoder: MiniLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in store.folder.glob("*.json"):
        path.unlink()  # the store is made anew, in files of another generation
    with monkeypatch.context() as patch:
        patch.setattr("tmkd.inference.state_update.update_graph", lambda store: None)
        update_states(store.index, encoder)
    store.refresh()
    assert store.card.generation == 2
    assert Graph.open(store) is None
    assert update_graph(store) is not None
    assert graph_of(store).rows == 120
    assert len(files(store)) == 2


def test_computing_states_writes_the_graph(
    made: Path, tmp_path: Path, encoder: MiniLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(made, tmp_path / "index")
    monkeypatch.setattr("tmkd.inference.dense_graph.MOST_EXACT", 120)
    assert update_states(folder, encoder).graph == ""  # few passages
    assert not (folder / "states" / "graph").exists()
    monkeypatch.setattr("tmkd.inference.dense_graph.MOST_EXACT", 100)
    changes = update_states(folder, encoder)
    assert "; graph over 120 embeddings, " in changes.sentence()
    assert graph_of(StateStore.open(folder, encoder.identity)).rows == 120


def test_no_graph_is_kept_where_all_rows_are_compared(store: StateStore) -> None:
    assert update_graph(store) is None
    assert files(store)
    assert update_graph(store, most_exact=120) is None
    assert not (store.folder / "graph").exists()
    assert Graph.open(store) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "card", "format"])
def test_a_damaged_graph_is_not_used(store: StateStore, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    (path,) = (store.folder / "graph").glob("*.usearch")
    card, data = path.parent / CARD, bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "card":
        card.write_text("{")
    elif damage == "format":
        card.write_text(json.dumps({**json.loads(card.read_text()), "format": 99}))
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    assert Graph.open(store) is None
    assert ("is damaged" in caplog.text) == (damage in ("flip", "cut", "card"))
    assert update_graph(store) is not None
    assert graph_of(store).rows == 120


def test_a_file_that_is_no_graph_is_not_used_though_its_card_names_it(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = (store.folder / "graph").glob("*.usearch")
    path.write_bytes(path.read_bytes()[:-64])  # as on a full disk, before the written size was compared
    card = {**json.loads((path.parent / CARD).read_text()), "bytes": path.stat().st_size}
    (path.parent / CARD).write_text(json.dumps({**card, "crc32": zlib.crc32(path.read_bytes())}))
    path.with_name("rows-1-99.usearch.123.tmp").touch()  # of a process that was killed
    assert Graph.open(store) is None
    assert f"{path} is damaged (" in caplog.text
    assert update_graph(store) is not None
    assert graph_of(store).rows == 120
    assert len(files(store)) == 2


@pytest.mark.parametrize("short", [100, 40_000])
def test_a_graph_that_the_disk_has_no_room_for_is_refused_and_written_later(store: StateStore, short: int) -> None:
    """usearch is silent where only its last buffer was not written, and gives no reason where more is missing."""
    (path,) = (store.folder / "graph").glob("*.usearch")
    size = path.stat().st_size
    shutil.rmtree(path.parent)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - short, before[1]))
    try:
        with pytest.raises(NoRoomError, match=r"a file may not be so large here .* at .*\.usearch \(0.1 MiB needed"):
            update_graph(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(store) == []
    assert Graph.open(store) is None
    assert update_graph(store) is not None
    assert graph_of(store).rows == 120


def test_a_graph_that_is_not_whole_is_refused_where_the_system_cannot_say_why(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and Windows have no `posix_fallocate`."""
    monkeypatch.delattr(os, "posix_fallocate")
    (path,) = (store.folder / "graph").glob("*.usearch")
    size = path.stat().st_size
    shutil.rmtree(path.parent)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 40_000, before[1]))
    try:
        with pytest.raises(TmkdError, match=r"was not written whole \(.+\); run the same command again"):
            update_graph(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(store) == []


def test_a_missing_graph_or_library_is_said_where_one_is_wanted(
    store: StateStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with caplog.at_level(logging.WARNING):
        assert Graph.open(store) is None
    assert "pip install 'tmkd[ann]'" in caplog.text
    shutil.rmtree(store.folder / "graph")
    said = update_graph(store)
    assert said is not None
    assert said.startswith("no graph over 120 embeddings: ")
    caplog.clear()
    assert Graph.open(store) is None
    assert f"write one with: tmkd index --out {store.index} --model EXPORT" in caplog.text


def test_damaged_rows_are_not_found_through_a_graph(store: StateStore, encoder: MiniLM) -> None:
    embedding = encoder.question(QUESTIONS[0])[1]
    row = int(np.argmax(store.embeddings.astype(np.float32) @ embedding))
    (path,) = store.folder.glob("embeddings-*.bin")
    numbers = np.fromfile(path, dtype=np.float16).reshape(-1, 384)
    numbers[row, 0] = np.inf
    path.write_bytes(numbers.tobytes())
    store.refresh()
    found = DenseSearch(store.embeddings, store.pids, graph_of(store)).search(embedding, 5)
    assert store.pids[row] not in found
    assert len(found) == 5
