"""A scorer over the export of a student that reads passages once: the student's logits, wherever states come from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cached_fixtures import cached_export
from export_fixtures import exported, texts

from tmkd.core.errors import DataError, EncoderError, ExportError
from tmkd.data.pairs import Pairs
from tmkd.export.cached import CachedStudent, ReadText
from tmkd.inference.cached_reader import StateCache
from tmkd.inference.engines import without_telemetry
from tmkd.inference.score_file import score_file
from tmkd.inference.scorer import Scorer
from tmkd.inference.text_encoder import TextEncoder
from tmkd.models.text_states import TextStates, dequantised, text_key
from tmkd.models.text_tokenizer import TextTokenizer

QUESTION = "how do i mount a disk"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(cached_export() / "out", tmp_path / "copy"))


def test_openvino_keeps_a_bounded_number_of_kernels(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes some for every length of a question and number of passages, and would keep gigabytes."""
    card = json.loads((copy / "tmkd.json").read_text())
    card["backends"]["openvino-bf16"] = {**card["backends"]["onnx-fp32"], "probe_limit": None}
    (copy / "tmkd.json").write_text(json.dumps(card))
    without_telemetry()
    import openvino

    kept: dict[str, int] = {}

    def noted(self: Any, path: str, device: str, settings: dict[str, Any]) -> Any:
        kept[Path(path).stem] = settings.get("CPU_RUNTIME_CACHE_CAPACITY", 5000)  # OpenVINO's own
        return compile_model(self, path, device, settings)  # refuses a setting that it does not know

    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(openvino.Core, "compile_model", noted)
    Scorer(copy, backend="openvino-bf16", threads=1)
    assert kept["interaction"] <= 400 < kept["encoder"]  # whose shapes are few
    Scorer(copy, backend="openvino-bf16", threads=8)
    assert kept["interaction"] == 100  # for each thread


@dataclass
class Store:
    """States in memory, as an index gives them."""

    identity: str | None
    states: Mapping[bytes, TextStates]
    asked: int = 0

    def get(self, key: bytes) -> TextStates | None:
        self.asked += 1
        return self.states.get(key)


def test_logits_are_those_of_the_student_in_pytorch() -> None:
    folder = cached_export()
    questions, passages = texts(40, seed=5)
    passages[-1] = ""
    student = CachedStudent(folder / "student", TextTokenizer(folder / "out", 48))
    scorer = Scorer(folder / "out", threads=1)
    found = scorer.scores(questions, passages)
    assert found.std() > 0.1  # the pairs do differ
    pairs = Pairs.build(questions, passages)
    read = student.read(pairs)
    # one number of some 10,000 rounds to the other side, since the encoder differs in the seventh digit
    np.testing.assert_allclose(found, student.logits(read, pairs, rounded=True)[:, 1], atol=2e-3)
    encoder = scorer.text_encoder
    assert encoder is not None
    for row, (states, question) in enumerate(zip(encoder.states(passages), questions, strict=True)):
        stored = dequantised(states.values, states.scales)
        asked, embedding, _ = encoder.question(question)
        np.testing.assert_allclose(asked, read.questions[question].hidden, atol=1e-4)
        step = states.scales[:, None].astype(np.float32)
        exact = read.passages[passages[row]].states
        assert (np.abs(stored - exact) <= 0.51 * step + 1e-3 * np.abs(exact)).all()  # half a step of 8 bits
        passage = ReadText(stored, stored, states.embedding.astype(np.float32))
        wanted = student.of_question(ReadText(asked, stored, embedding), [passage], rounded=False)
        np.testing.assert_allclose(found[row], wanted[0, 0], atol=1e-4)


def test_order_batches_and_repetition_do_not_matter() -> None:
    scorer = Scorer(cached_export() / "out", threads=2)
    questions, passages = texts(150, seed=2)
    seen: list[int] = []
    found = scorer.logits(questions, passages, seen.append)
    assert sum(seen) == 150
    np.testing.assert_array_equal(scorer.logits(questions, passages), found)
    mixed = np.random.default_rng(0).permutation(150)
    np.testing.assert_allclose(
        scorer.logits([questions[i] for i in mixed], [passages[i] for i in mixed]), found[mixed], atol=1e-5
    )
    for size in (1, 8, 64):
        np.testing.assert_allclose(scorer.logits(questions, passages, batch_size=size), found, atol=1e-5)


def test_states_from_a_store_from_the_cache_and_fresh_give_the_same_bits() -> None:
    folder = cached_export() / "out"
    scorer, passages = Scorer(folder, threads=1), texts(30, seed=3)[1]
    questions = [QUESTION] * 30
    fresh = scorer.logits(questions, passages)
    assert scorer.state_counts is not None
    computed, distinct = scorer.state_counts.computed, len(set(passages))
    np.testing.assert_array_equal(scorer.logits(questions, passages), fresh)
    assert (scorer.state_counts.computed, scorer.state_counts.cached) == (computed, distinct)
    encoder = TextEncoder.open(folder, threads=2)
    found = dict(zip(passages, encoder.states(passages), strict=True))
    store = Store(encoder.identity, {text_key(text): one for text, one in found.items() if len(text) % 2})
    other = Scorer(folder, threads=1, cache_bytes=0)
    other.attach(store)
    assert other.state_counts is not None
    before = other.state_counts.computed
    np.testing.assert_array_equal(other.logits(questions, passages), fresh)
    assert other.state_counts.stored == len(store.states) > 5
    assert other.state_counts.computed == before + distinct - len(store.states)
    assert other.state_counts.cached == 0


def test_a_store_of_another_model_is_refused_by_name() -> None:
    scorer = Scorer(cached_export() / "out", threads=1)
    with pytest.raises(ExportError, match=r"holds states of 0123, and .* needs those of [0-9a-f]{32}"):
        scorer.attach(Store("0123", {}))
    with pytest.raises(ExportError, match="holds states of None"):
        scorer.attach(Store(None, {}))
    pair = Scorer(exported("mpnet") / "out", threads=1)
    with pytest.raises(ExportError, match="uses no stored states"):
        pair.attach(Store("0123", {}))
    assert pair.state_counts is None
    with pytest.raises(ExportError, match="has no states that could be stored"):
        TextEncoder.open(exported("mpnet") / "out")


def test_the_cache_keeps_what_was_used_last_within_its_bytes() -> None:
    def states(tokens: int) -> TextStates:
        return TextStates(np.ones((tokens, 64), np.int8), np.ones(tokens, np.float16), np.ones(384, np.float16))

    one = states(10).nbytes + 400
    cache = StateCache(3 * one)
    for name in b"abc":
        cache.put(bytes([name]), states(10))
    assert cache.get(b"a") is not None  # used last now
    cache.put(b"d", states(10))
    assert [cache.get(bytes([name])) is not None for name in b"abcd"] == [True, False, True, True]
    assert cache.bytes == 3 * one
    cache.put(b"huge", states(1000))
    assert cache.get(b"huge") is None
    cache.put(b"long", states(20))
    assert cache.bytes <= cache.room
    with pytest.raises(ValueError, match="cache_bytes is -1"):
        Scorer(cached_export() / "out", cache_bytes=-1)


def test_a_small_cache_gives_the_same_scores() -> None:
    questions, passages = texts(60, seed=4)
    wanted = Scorer(cached_export() / "out", threads=1).logits(questions, passages)
    scorer = Scorer(cached_export() / "out", threads=2, cache_bytes=20_000)
    for _ in range(2):
        np.testing.assert_array_equal(scorer.logits(questions, passages), wanted)
    assert 0 < scorer._reader.cache.bytes <= 20_000  # type: ignore[union-attr]


def test_equal_texts_have_equal_scores_and_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(cached_export() / "out", threads=1)
    graph, calls = scorer._reader._graph, list[int]()  # type: ignore[union-attr]

    def counted(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        calls.append(len(inputs["values"]))
        return graph(inputs)

    monkeypatch.setattr(scorer._reader, "_graph", counted)
    passages = ["use the mount command", *texts(20)[1], "use the  MOUNT command", "use the mount command"]
    found = scorer.scores([QUESTION] * 22 + ["How do I  mount a disk"], passages)
    assert len({found[0], found[-2], found[-1]}) == 1
    assert sum(calls) == 1 + len(set(passages[1:-2]))


def test_texts_that_are_not_read_whole_are_marked() -> None:
    scorer = Scorer(cached_export() / "out", threads=1)
    passages = ["a disk", "disk " * 46, "disk " * 47, ""]
    for _ in range(2):  # computed, and then from the cache
        found = scorer.score_pairs([QUESTION] * 4, passages)
        assert found.tokens.tolist() == [8, 48, 49, 8]  # of the longer of the two texts
        assert found.cut.tolist() == [False, False, True, False]
    found = scorer.score_pairs(["disk " * 60], ["a disk"])
    assert (found.tokens.tolist(), found.cut.tolist()) == ([62], [True])
    assert np.isfinite(found.logits).all()


def test_bad_texts_are_named_by_their_pair() -> None:
    scorer = Scorer(cached_export() / "out", threads=1)
    with pytest.raises(DataError, match="pair 1: the passage is int 3, expected a string"):
        scorer.logits(["a", "b"], ["c", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="pair 1: the passage holds half of a surrogate pair"):
        scorer.logits(["a", "b"], ["c", "half \ud83d"])
    with pytest.raises(DataError, match="pair 1: the question is NoneType None"):
        scorer.logits(["a", None], ["c", "d"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 questions but 1 passages"):
        scorer.logits(["a", "b"], ["c"])
    assert scorer.logits([], []).shape == (0, 2)


def test_threads_share_a_scorer() -> None:
    scorer = Scorer(cached_export() / "out", threads=2, cache_bytes=40_000)
    calls = [texts(20, seed=seed) for seed in range(4)]
    wanted = [scorer.logits(*call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(lambda i: scorer.logits(*calls[i % 4]), range(16))):
            np.testing.assert_array_equal(found, wanted[number % 4])


@pytest.mark.parametrize("part", ["encoder", "interaction"])
def test_damaged_and_missing_graphs_are_refused(copy: Path, part: str) -> None:
    path = copy / "onnx" / f"{part}.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ExportError, match=rf"{part}\.onnx is damaged"):
        Scorer(copy)
    path.unlink()
    with pytest.raises(ExportError, match=rf"{part}\.onnx is missing"):
        Scorer(copy)
    card = json.loads((copy / "tmkd.json").read_text())
    card["backends"]["onnx-fp32"]["files"][part]["file"] = "../elsewhere.onnx"
    (copy / "tmkd.json").write_text(json.dumps(card))
    with pytest.raises(ExportError, match="lies outside"):
        Scorer(copy)
    del card["backends"]["onnx-fp32"]["files"][part]
    (copy / "tmkd.json").write_text(json.dumps(card))
    with pytest.raises(ExportError, match=r"tmkd\.json is damaged"):
        Scorer(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises((EncoderError, ExportError)):
        Scorer(copy)


def test_another_tokenizer_in_an_export_is_refused(copy: Path) -> None:
    """Nothing else notices: the graph takes any ids, and what is stored keeps its name."""
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(tokenizer))
    for opened in (Scorer, TextEncoder.open):
        with pytest.raises(
            ExportError, match=r"tokenizer\.json is damaged: it is not the file that was exported; copy"
        ):
            opened(copy)
    card = json.loads((copy / "tmkd.json").read_text())
    assert list(card["states"].pop("tokenizers")) == ["tokenizer.json"]
    (copy / "tmkd.json").write_text(json.dumps(card))
    Scorer(copy)  # an older export does not say which file it was


def test_what_tmkd_json_says_wrongly_is_refused(copy: Path) -> None:
    card = json.loads((copy / "tmkd.json").read_text())
    (copy / "tmkd.json").write_text(json.dumps({**card, "kind": "other"}))
    with pytest.raises(ExportError, match="a student of the kind 'other'"):
        Scorer(copy)
    (copy / "tmkd.json").write_text(json.dumps({**card, "states": {**card["states"], "size": 65}}))
    with pytest.raises(ExportError, match="gives states of 64 and embeddings of 384 numbers"):
        Scorer(copy)


def test_both_kinds_score_a_file(tmp_path: Path) -> None:
    questions, passages = texts(12)
    rows = [{"question": q, "passage": p} for q, p in zip(questions, passages, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for folder in (cached_export() / "out", exported("mpnet") / "out"):
        done = score_file(folder, tmp_path / "pairs.jsonl", tmp_path / "scored.jsonl")
        found = [json.loads(line)["tmkd_score"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
        assert done.rows == 12
        np.testing.assert_allclose(found, Scorer(folder).scores(questions, passages), atol=1e-5)


def test_it_needs_no_torch_and_works_after_a_fork() -> None:
    code = (
        "import os, sys, signal; from tmkd.inference.scorer import Scorer\n"
        f"scorer = Scorer({str(cached_export() / 'out')!r}, threads=2)\n"
        "given = ['how do i mount a disk'] * 20, [f'mount {n} disks' for n in range(20)]\n"
        "wanted = scorer.scores(*given).tolist()\n"
        "print(*[n for n in ('torch', 'transformers', 'pyarrow', 'scipy') if n in sys.modules], flush=True)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(120)\n"
        "    os._exit(int(scorer.scores(*given).tolist() != wanted))\n"
        "sys.exit(os.waitpid(child, 0)[1] != 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
