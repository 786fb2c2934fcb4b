"""Stored states of an index: computed once, brought up to date, checked, readable while written, safe from kills."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from qa_fixtures import document, index_of
from state_fixtures import MiniLM, cached_export, same

from tmkd.api import build_states
from tmkd.core.errors import DataError, ExportError
from tmkd.core.files import digest_of, read_json, write_json
from tmkd.data.documents.index import Changes, DocumentIndex, update_index
from tmkd.inference.qa.windows import Span, Windows
from tmkd.inference.state_card import CARD, FOLDER, PARTS, PENDING, ROW
from tmkd.inference.state_store import StateStore, has_states
from tmkd.inference.state_update import update_states, with_states
from tmkd.inference.state_writer import writing
from tmkd.models.text_states import TextStates, text_key
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.models.tokenizer import PairTokenizer

ROOT = Path(__file__).parents[2]
LONG = " ".join(f"The disk number{number} is mounted on its own folder." for number in range(40))


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM()


@pytest.fixture(autouse=True)
def _nothing_asked(encoder: MiniLM) -> None:
    torch.set_num_threads(1)  # two wait for each other where the machine is busy
    encoder.asked.clear()


def texts(count: int, start: int = 0) -> dict[str, str]:
    return {f"d{n}": f"The disk number{n} holds what the {n + 3} others do not." for n in range(start, start + count)}


def stored(store: StateStore, text: str) -> TextStates:
    found = store.get(text_key(text))
    assert found is not None
    return found


def files(index: Path) -> set[str]:
    return {path.name for path in (index / FOLDER).iterdir()}


def test_every_passage_has_its_states(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index")
    changes = update_states(index.folder, encoder)
    store = StateStore.open(index.folder, encoder.identity)
    passages = list(index.passages())
    assert (changes.computed, changes.kept, changes.passages, len(store), store.passages) == (3, 0, 3, 3, 3)
    for passage in passages:
        found = stored(store, passage.text)
        assert same(found, encoder.states([passage.text])[0])
        row = store.pids.index(passage.pid)
        assert np.array_equal(store.embeddings[row], found.embedding)
    assert store.get(text_key(passages[0].text + " ")) is None
    assert (store.embeddings.shape, store.embeddings.dtype.name) == ((3, 384), "float16")
    assert store.card.index == index.version
    tokens = sum(len(stored(store, one.text).scales) for one in passages)
    assert changes.tokens == tokens
    assert changes.live_bytes == tokens * 98 + 3 * (768 + ROW.itemsize)
    assert store.nbytes == changes.bytes == changes.live_bytes + 1  # and a byte with the three bits of what is gone
    assert "states of 3 passages: 3 computed, 0 kept, 0 dropped; 0.0 MB" in changes.sentence()


def test_states_are_views_of_the_files(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index")
    update_states(index.folder, encoder)
    store = StateStore.open(index.folder, encoder.identity)
    found = store.get(text_key(next(index.passages()).text))
    assert found is not None
    for part in (found.values, found.scales, found.embedding):
        assert part.base is not None
        assert not part.flags.writeable
        assert type(part) is np.ndarray  # slices of a np.memmap cost several times as much


def test_a_changed_document_costs_its_own_passages_only(tmp_path: Path, encoder: MiniLM) -> None:
    old = texts(5)
    index = index_of(tmp_path / "index", old)
    update_states(index.folder, encoder)
    before = StateStore.open(index.folder, encoder.identity)
    kept = {key: stored(before, text) for key, text in old.items()}
    encoder.asked.clear()
    new = {**old, "d1": "Now it says something else.", "d9": "And this is new."}
    del new["d3"]
    index_of(index.folder, new)
    changes = update_states(index.folder, encoder)
    assert (changes.computed, changes.kept, changes.dropped, changes.passages) == (2, 3, 2, 5)
    assert sorted(encoder.asked) == ["And this is new.", "Now it says something else."]
    store = StateStore.open(index.folder, encoder.identity)
    for key, text in old.items():
        found = store.get(text_key(text))
        assert (found is None) == (key in ("d1", "d3"))
        assert found is None or np.array_equal(found.values, kept[key].values)
    assert store.pids.count("") == 2
    assert set(store.pids) - {""} == {one.pid for one in DocumentIndex.open(index.folder).passages()}
    assert before.get(text_key(old["d3"])) is not None  # who had it open keeps it
    before.refresh()
    assert before.get(text_key(old["d3"])) is None
    encoder.asked.clear()
    again = update_states(index.folder, encoder)
    assert (again.computed, again.kept, again.dropped, encoder.asked) == (0, 5, 0, [])


def test_what_computed_the_states_is_recorded_and_another_backend_adds_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """States of several backends are not alike: a passage's score depends on which of them read it."""
    index, encoder = index_of(tmp_path / "index", texts(3)), MiniLM()
    update_states(index.folder, encoder)
    assert StateStore.open(index.folder, None).card.backends == ["onnx-fp32"]
    encoder.backend = "openvino-int8"
    assert update_states(index.folder, encoder).computed == 0  # nothing new, so nothing to refuse
    index_of(index.folder, texts(4))
    with pytest.raises(DataError, match=r"that onnx-fp32 computed; .*new ones of openvino-int8 .*Use --backend onnx-"):
        update_states(index.folder, encoder)
    store = StateStore.open(index.folder, None)
    assert (store.card.backends, len(store), store.card.to_json()["format"]) == (["onnx-fp32"], 3, 2)
    encoder.backend = "onnx-fp32"  # as the error says
    assert update_states(index.folder, encoder).computed == 1
    encoder.backend = "openvino-int8"
    index_of(index.folder, texts(4, start=10))
    assert update_states(index.folder, encoder).computed == 4  # all of them: the others have left
    assert StateStore.open(index.folder, None).card.backends == ["openvino-int8"]
    card = StateStore.open(index.folder, None).card.to_json()  # of an older version, which did not say it
    older = {name: value for name, value in card.items() if name not in ("backends", "digest")} | {"format": 1}
    (index.folder / FOLDER / CARD).write_text(json.dumps({**older, "digest": digest_of(older)}))
    index_of(index.folder, texts(5, start=10))
    encoder.backend = "onnx-fp32"
    assert update_states(index.folder, encoder).computed == 1
    assert StateStore.open(index.folder, None).card.backends == []  # not known of four of the five
    assert not caplog.records


def test_an_update_goes_on_with_the_backend_that_computed_the_states(tmp_path: Path) -> None:
    """Which one is the fastest may change from one night to the next: with what is installed, on another machine."""
    index, export = index_of(tmp_path / "index", texts(3)), cached_export(tmp_path)
    build_states(index.folder, export)
    card = read_json(export / "tmkd.json")
    card["backends"]["onnx-int8"] = {**card["backends"]["onnx-fp32"], "pairs_per_second": 9.0}
    write_json(export / "tmkd.json", card)
    index_of(index.folder, texts(4))
    assert build_states(index.folder, export).computed == 1
    assert StateStore.open(index.folder, None).card.backends == ["onnx-fp32"]
    shutil.rmtree(index.folder / FOLDER)
    assert build_states(index.folder, export).computed == 4
    assert StateStore.open(index.folder, None).card.backends == ["onnx-int8"]


def test_a_text_of_many_documents_and_one_of_other_white_space(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", {"a": "the same words", "b": "the same words", "c": "the  same words"})
    assert update_states(index.folder, encoder).passages == 2
    store = StateStore.open(index.folder, encoder.identity)
    assert len(set(store.pids)) == 1
    assert store.get(text_key("the same words")) is not None
    assert store.get(text_key("the  same words")) is not None
    index_of(index.folder, {"a": "the same words"})
    assert update_states(index.folder, encoder).dropped == 1


def test_long_passages_are_stored_as_the_windows_that_are_scored(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", {"long": LONG, "short": "A disk is a device."})
    changes = update_states(index.folder, encoder)
    windows = Windows(128, encoder.folder, apart=True)
    (spans,) = windows.of("Which question?", [LONG])
    assert (changes.passages, changes.long, changes.windows) == (2, 1, len(spans))
    assert f"1 longer than 128 tokens are stored in {len(spans)} windows" in changes.sentence()
    store = StateStore.open(index.folder, encoder.identity)
    pieces = [LONG[start:stop] for start, stop in spans]
    assert len(store) == 1 + len(spans)
    assert all(same(store.get(text_key(piece)), encoder.states([piece])[0]) for piece in pieces)
    assert store.get(text_key(LONG)) is None
    assert store.pids.count(next(one.pid for one in index.passages() if one.text == LONG)) == len(spans)
    assert with_states(Changes(), index.folder, None).without_states == 0
    index_of(index.folder, {"short": "A disk is a device."})
    changes = update_states(index.folder, encoder)
    assert (changes.dropped, changes.long, changes.windows) == (1, 0, 0)


TORN = {  # texts with many more tokens than a word of English has
    "letters": "zxqj " * 100, "finnish": "taivutusmuodoltaan " * 60, "hex": "deadbeefcafe " * 60, "tags": "<br/>" * 200,
    "mixed": "bq-7.xz_k1,vv93 w" * 60, "words": ("zxqjvkwb" * 12 + " ") * 9,
}  # fmt: skip


@pytest.mark.parametrize("max_length", [8, 64, 128])
def test_no_window_is_longer_than_the_encoder_reads_and_they_leave_nothing_out(
    encoder: MiniLM, max_length: int
) -> None:
    windows, tokenizer = Windows(max_length, encoder.folder, apart=True), TextTokenizer(encoder.folder, max_length)
    for text, spans in zip(TORN.values(), windows.of("", list(TORN.values())), strict=True):
        _, tokens = tokenizer.encode_counted([text[start:stop] for start, stop in spans])
        assert len(spans) > 1
        assert tokens.max() <= max_length
        assert (spans[0][0], spans[-1][1]) == (0, len(text.rstrip()))
        assert all(not text[end:start].strip() for (_, end), (start, _) in pairwise(spans))


def test_what_is_said_of_long_passages_is_true_after_every_update(tmp_path: Path, encoder: MiniLM) -> None:
    def said(passages: dict[str, str]) -> tuple[int, int]:
        index = index_of(tmp_path / "index", passages)
        changes = update_states(index.folder, encoder)
        found = re.search(r"; (\d+) longer than 128 tokens are stored in (\d+) windows, so nothing", changes.sentence())
        assert ([changes.long, changes.windows] if changes.long else None) == (
            found and [int(number) for number in found.groups()]
        )
        return changes.long, changes.windows

    windows = {key: len(spans) for key, spans in zip(
        TORN, Windows(128, encoder.folder, apart=True).of("", list(TORN.values())), strict=True
    )}  # fmt: skip
    first = {"letters": TORN["letters"], "short": "A disk is a device."}
    assert said(first) == (1, windows["letters"])
    assert said({**first, "new": "Another short text."}) == (1, windows["letters"])
    assert said({**first, "tags": TORN["tags"]}) == (2, windows["letters"] + windows["tags"])
    assert said({"tags": TORN["tags"], "letters": "zxqj"}) == (1, windows["tags"])
    assert said({"letters": "zxqj"}) == (0, 0)


def test_passages_that_an_earlier_version_cut_are_computed_again(
    tmp_path: Path, encoder: MiniLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = index_of(tmp_path / "index", {"letters": TORN["letters"], "long": LONG, "short": "A disk is a device."})

    def as_before(self: Windows, question: str, passages: Sequence[str]) -> list[list[Span]]:
        """One passage is taken for a short one."""
        found = of(self, question, passages)
        return [[(0, len(text))] if text == TORN["letters"] else one for text, one in zip(passages, found, strict=True)]

    of = Windows.of
    monkeypatch.setattr(Windows, "of", as_before)
    assert update_states(index.folder, encoder).long == 1
    monkeypatch.undo()
    changes = update_states(index.folder, encoder)
    assert (changes.computed, changes.kept, changes.dropped, changes.long) == (1, 2, 0, 2)
    assert "an earlier version cut 1 long passages in another way" in caplog.text
    store = StateStore.open(index.folder, encoder.identity)
    assert store.get(text_key(TORN["letters"])) is None
    assert store.passages == 3
    assert (update_states(index.folder, encoder).computed, update_states(index.folder, encoder).kept) == (0, 3)


def test_windows_of_texts_read_apart_do_not_depend_on_the_question(encoder: MiniLM) -> None:
    windows = Windows(64, encoder.folder, apart=True)
    tokenizer = PairTokenizer(encoder.folder, 10_000)
    texts = [LONG, "short", "", "日本語の文章です。" * 30, "a3f9c2e1 " * 39 + "a3f9c2e1"]
    spans = windows.of("Why?", texts)
    assert windows.of("word " * 500, texts) == spans
    for text, cuts in zip(texts, spans, strict=True):
        (length,) = (len(one) for one in tokenizer.token_spans([text]))
        assert (len(cuts) > 1) == (length > 62)
        assert (cuts[0][0], cuts[-1][1]) == (0, len(text))
    of_long = [LONG[start:stop] for start, stop in spans[0]]
    assert [len(one) for one in tokenizer.token_spans(of_long)][:-1] == [62] * (len(of_long) - 1)
    assert not windows.cuts("word " * 62)
    assert windows.cuts("word " * 63)


def test_an_empty_passage_has_the_states_of_its_special_tokens(tmp_path: Path, encoder: MiniLM) -> None:
    update_index(tmp_path / "index", lambda: [document("a", ""), document("b", "words here")])
    assert update_states(tmp_path / "index", encoder).passages == 2
    found = StateStore.open(tmp_path / "index", encoder.identity).get(text_key(""))
    assert found is not None
    assert found.values.shape == (2, 96)


def test_an_index_without_passages(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", {"a": ""})
    changes = update_states(index.folder, encoder)
    store = StateStore.open(index.folder, encoder.identity)
    assert (changes.passages, len(store), store.pids, store.embeddings.shape) == (0, 0, [], (0, 384))
    assert "0 computed" in changes.sentence()


def test_a_missing_store_says_what_to_run(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index")
    assert not has_states(index.folder)
    command = rf"{index.folder} has no states of passages; run: tmkd index --out {index.folder} --model my/export"
    with pytest.raises(DataError, match=command):
        StateStore.open(index.folder, encoder.identity, model="my/export")
    with pytest.raises(DataError, match="nowhere is not there; make one with: tmkd index"):
        update_states(tmp_path / "nowhere", encoder)


def test_states_of_another_model_are_refused_by_name(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index")
    update_states(index.folder, encoder)
    other = MiniLM(seed=1)
    with pytest.raises(DataError) as refused:
        StateStore.open(index.folder, other.identity, model="runs/b/export")
    said = str(refused.value)
    assert f"of {encoder.folder} ({encoder.identity})" in said
    assert f"not of runs/b/export ({other.identity})" in said
    assert said.endswith(f"tmkd index --out {index.folder} --model runs/b/export")
    assert len(StateStore.open(index.folder, None)) == 3  # whoever's


def test_states_of_another_model_stay_until_the_new_ones_are_complete(
    tmp_path: Path, encoder: MiniLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = index_of(tmp_path / "index", texts(6))
    update_states(index.folder, encoder)
    other, of_old = MiniLM(64, seed=1), files(index.folder)
    calls = iter(range(100))

    def stopped(asked: Sequence[str]) -> list[TextStates]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return MiniLM.states(other, asked)

    monkeypatch.setattr(other, "states", stopped)
    with pytest.raises(KeyboardInterrupt):
        update_states(index.folder, other, segment=2)
    assert of_old <= files(index.folder)
    assert len(StateStore.open(index.folder, encoder.identity)) == 6
    assert json.loads((index.folder / FOLDER / PENDING).read_text())["rows"] == 2
    monkeypatch.undo()
    other.asked.clear()
    changes = update_states(index.folder, other, segment=2)
    assert (changes.computed, changes.kept) == (4, 2)
    assert stored(StateStore.open(index.folder, other.identity), texts(1)["d0"]).values.shape[1] == 64
    assert files(index.folder) == {CARD, "lock", "gone-2-4.bin", *(f"{part}-2.bin" for part in PARTS)}


@pytest.mark.parametrize("part", PARTS)
def test_a_store_cut_short_is_refused_and_mended_by_the_command_it_names(
    tmp_path: Path, encoder: MiniLM, part: str
) -> None:
    index = index_of(tmp_path / "index")
    update_states(index.folder, encoder)
    path = index.folder / FOLDER / f"{part}-1.bin"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    command = rf"compute the states again: tmkd index --out {index.folder} --model x"
    with pytest.raises(DataError, match=rf"{part}-1\.bin is cut short: it has [\d,]+ bytes of [\d,]+; {command}"):
        StateStore.open(index.folder, encoder.identity, model="x")
    path.unlink()
    with pytest.raises(DataError, match=rf"{part}-1\.bin is missing; {command}"):
        StateStore.open(index.folder, encoder.identity, model="x")
    assert update_states(index.folder, encoder).computed == 3
    assert len(StateStore.open(index.folder, encoder.identity)) == 3


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["rows-1.bin", "gone-1-2.bin", CARD])
def test_a_flipped_bit_of_a_table_is_refused(tmp_path: Path, encoder: MiniLM, part: str) -> None:
    index = index_of(tmp_path / "index")
    update_states(index.folder, encoder)
    path = index.folder / FOLDER / part
    for place in range(0, path.stat().st_size, 7):
        flip(path, place)
        with pytest.raises(DataError, match=rf"{part} (is damaged|has format).*; compute the states again: tmkd index"):
            StateStore.open(index.folder, encoder.identity)
        flip(path, place)
    assert len(StateStore.open(index.folder, encoder.identity)) == 3
    flip(path, 0)
    assert update_states(index.folder, encoder).computed == 3


@pytest.mark.parametrize("part", ["values", "scales", "embeddings"])
def test_a_flipped_bit_of_the_values_is_never_scored_with(
    tmp_path: Path, encoder: MiniLM, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    index = index_of(tmp_path / "index", texts(3))
    update_states(index.folder, encoder)
    StateStore.open(index.folder, encoder.identity).check()
    path = index.folder / FOLDER / f"{part}-1.bin"
    flip(path, path.stat().st_size // 2)  # of the second passage
    store = StateStore.open(index.folder, encoder.identity)
    found = [store.get(text_key(one.text)) is not None for one in index.passages()]
    assert (found, store.damaged) == ([True, False, True], 1)
    bad = store.pids[1]
    assert f"the states of passage {bad} do not match their checksum" in caplog.text
    with pytest.raises(DataError, match=rf"{part}-1\.bin is damaged: its CRC-32 is [0-9a-f]+, .* says"):
        store.check()
    changes = update_states(index.folder, encoder)
    assert (changes.computed, changes.kept, changes.damaged) == (1, 2, 1)
    StateStore.open(index.folder, encoder.identity).check()  # the damaged bytes are gone
    assert "; 1 were damaged" in changes.sentence()
    assert store.get(text_key(texts(3)["d1"])) is None  # it keeps what it opened
    store.refresh()
    assert same(store.get(text_key(texts(3)["d1"])), encoder.states([texts(3)["d1"]])[0])


def test_damage_of_what_is_gone_is_mended_too(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", texts(8))
    update_states(index.folder, encoder)
    index_of(index.folder, texts(7))
    update_states(index.folder, encoder)
    path = index.folder / FOLDER / "values-1.bin"
    flip(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"values-1\.bin is damaged"):
        StateStore.open(index.folder, encoder.identity).check()
    changes = update_states(index.folder, encoder)
    assert (changes.computed, changes.kept, changes.damaged) == (0, 7, 0)
    StateStore.open(index.folder, encoder.identity).check()


def test_bytes_after_those_of_the_manifest_do_not_count(tmp_path: Path, encoder: MiniLM) -> None:
    """As a process leaves them that was killed while it wrote."""
    index = index_of(tmp_path / "index", texts(3))
    update_states(index.folder, encoder)
    for part in PARTS:
        with (index.folder / FOLDER / f"{part}-1.bin").open("ab") as file:
            file.write(b"half a segment")
    StateStore.open(index.folder, encoder.identity).check()
    index_of(index.folder, texts(4))
    assert update_states(index.folder, encoder).computed == 1
    store = StateStore.open(index.folder, encoder.identity)
    store.check()
    assert all(same(store.get(text_key(text)), encoder.states([text])[0]) for text in texts(4).values())


def test_a_store_that_is_a_third_gone_is_written_anew(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", texts(10))
    update_states(index.folder, encoder)
    reader = StateStore.open(index.folder, encoder.identity)
    index_of(index.folder, texts(7))
    assert update_states(index.folder, encoder).dropped == 3
    assert StateStore.open(index.folder, encoder.identity).card.generation == 1
    index_of(index.folder, texts(6))
    encoder.asked.clear()
    changes = update_states(index.folder, encoder)
    store = StateStore.open(index.folder, encoder.identity)
    assert (store.card.generation, store.card.rows, changes.kept, encoder.asked) == (2, 6, 6, [])
    assert store.card.index == DocumentIndex.open(index.folder).version
    assert "" not in store.pids
    store.check()
    assert all(np.array_equal(stored(store, one).values, stored(reader, one).values) for one in texts(6).values())
    assert files(index.folder) == {CARD, "lock", *(f"{part}-2.bin" for part in PARTS), "gone-2-2.bin"}


def test_what_the_index_was_when_its_states_were_computed_is_known(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", texts(3))
    update_states(index.folder, encoder)
    index_of(index.folder, texts(3))  # nothing changes
    assert StateStore.open(index.folder, None).card.index == DocumentIndex.open(index.folder).version
    index_of(index.folder, texts(5))
    assert StateStore.open(index.folder, None).card.index != DocumentIndex.open(index.folder).version
    assert with_states(Changes(), index.folder, None).without_states == 2


def test_a_second_process_that_computes_states_is_refused(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index")
    with writing(index.folder):
        with pytest.raises(DataError, match=r"another process is computing the states of .*index; wait for it"):
            update_states(index.folder, encoder)
        assert not has_states(index.folder)
    assert update_states(index.folder, encoder).computed == 3


def test_numbers_that_are_not_finite_are_not_stored(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index")

    class Broken(MiniLM):
        def states(self, texts: Sequence[str]) -> list[TextStates]:
            found = encoder.states(texts)
            return [replace(one, embedding=one.embedding * np.float16(np.nan)) for one in found]

    with pytest.raises(ExportError, match=r"numbers that are not finite for passage [0-9a-f]{16}"):
        update_states(index.folder, Broken())
    assert not has_states(index.folder)


def killed_update(index: Path, segment: int, rows: int) -> None:
    """Update the states in another process and kill it as soon as so many rows are written."""
    command = [sys.executable, str(ROOT / "tests" / "state_fixtures.py"), str(index), str(segment)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    card = index / FOLDER / CARD
    until = time.monotonic() + 120
    while not card.is_file() or json.loads(card.read_text())["rows"] < rows:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_update_keeps_its_finished_segments(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", texts(160))
    killed_update(index.folder, 8, 32)
    store = StateStore.open(index.folder, encoder.identity)
    there = len(store)
    assert 32 <= there < 160
    assert there % 8 == 0
    assert store.card.index == ""
    store.check()
    encoder.asked.clear()
    changes = update_states(index.folder, encoder)
    assert (changes.kept, changes.computed) == (there, 160 - there)
    assert len(encoder.asked) == 160 - there
    store.refresh()
    assert len(store) == 160
    store.check()


READER = """
import sys
from pathlib import Path
from tmkd.inference.state_store import StateStore
from tmkd.models.text_states import text_key

index, identity, stop = sys.argv[1], sys.argv[2], Path(sys.argv[3])
keys = [text_key(f"The disk number{n} holds what the {n + 3} others do not.") for n in range(80)]
kept, opened = StateStore.open(index, identity), 0
first = {key: kept.get(key).values.tobytes() for key in keys if kept.get(key)}
print(len(first), flush=True)
while not stop.exists():
    store = StateStore.open(index, identity)
    assert sum(store.get(key) is not None for key in keys) == len(store)
    assert all(kept.get(key).values.tobytes() == values for key, values in first.items())
    assert store.damaged == kept.damaged == 0
    opened += 1
print(opened)
"""


def test_a_reader_in_another_process_while_the_store_is_rewritten(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", texts(40)).folder
    update_states(index, encoder)
    command = [sys.executable, "-c", READER, str(index), encoder.identity, str(tmp_path / "stop")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reader = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "40\n"
    for start, count in ((10, 40), (50, 20), (0, 80), (0, 5), (60, 20), (0, 30)):  # with several that write it anew
        index_of(index, texts(count, start))
        update_states(index, encoder, segment=8)
    (tmp_path / "stop").touch()
    out, _ = reader.communicate()
    assert reader.returncode == 0
    assert int(out) > 10


def test_threads_may_share_a_store(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index", texts(30))
    update_states(index.folder, encoder)
    store = StateStore.open(index.folder, encoder.identity)
    keys = [text_key(text) for text in texts(30).values()]
    wrong: list[object] = []

    def read() -> None:
        for _ in range(50):
            wrong.extend(key for key in keys if store.get(key) is None)
            store.refresh()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_store_in_a_folder_that_may_only_be_read(tmp_path: Path, encoder: MiniLM) -> None:
    index = index_of(tmp_path / "index")
    update_states(index.folder, encoder)
    before = {path: path.stat().st_mtime_ns for path in (index.folder / FOLDER).iterdir()}
    StateStore.open(index.folder, encoder.identity).check()
    assert {path: path.stat().st_mtime_ns for path in (index.folder / FOLDER).iterdir()} == before


def test_progress_is_said_in_passages(tmp_path: Path, encoder: MiniLM, capsys: pytest.CaptureFixture[str]) -> None:
    from tmkd.core.console import set_quiet

    set_quiet(False)
    index = index_of(tmp_path / "index", {**texts(3), "long": LONG})
    update_states(index.folder, encoder)
    assert "states: 4/4 passages" in capsys.readouterr().err
    logging.getLogger("tmkd").handlers.clear()
