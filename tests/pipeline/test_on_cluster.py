"""Labels and pools from a Ray cluster: the same rows and logits as from one process, and nothing twice after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from cluster_fixtures import ROOT, two_nodes
from conftest import TOPICS, pair_rows, write_jsonl
from encoder_fixtures import decoder, tiny
from numpy.typing import NDArray

from tmkd.config.load import parse_recipe
from tmkd.core.cluster import Cluster
from tmkd.data.corpus_pool.mine import mine_pool
from tmkd.data.corpus_pool.retrieve import Mining
from tmkd.pipeline.run import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as nodes, Cluster(nodes.address) as found:
        yield found


def content(folder: Path, **keys: Any) -> dict[str, Any]:
    """Teachers of three kinds: fine-tuned here, an embedding model, and a finished decoder reranker."""
    write_jsonl(folder / "train.jsonl", pair_rows(5))
    tiny("bert", folder / "encoder", max_position_embeddings=128)
    numbers = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16}
    return {
        "name": "wide", "encoder": str(folder / "encoder"), "max_length": 64, "precision": "fp32",
        "data": {"train": str(folder / "train.jsonl"), "hold_out": {"dev": 0.1, "test": 0.1}},
        "student": {"layers": 1},
        "teachers": [
            {"name": "mine", "seed": 1, **numbers},
            {"name": "cosine", "kind": "bi_encoder", "model": "builtin:minilm-l6"},
            {"name": "reranker", "checkpoint": str(decoder(folder / "reranker"))},
        ],
        **keys,
    }  # fmt: skip


def logits_of(recipe: dict[str, Any], workspace: str, cluster: Cluster | None) -> dict[str, NDArray[np.float32]]:
    run = Run(parse_recipe(recipe, "test"), workspace, cluster=cluster)
    run.label()
    names = [teacher.name for teacher, _ in run.labels.teachers]
    return dict(zip(names, run.labels.logits(run.data.train, "train"), strict=True))


def test_every_kind_of_teacher_labels_on_workers_as_it_does_here(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = content(tmp_path)
    here = logits_of(recipe, "here", None)
    monkeypatch.setattr("tmkd.pipeline.steps.label.FEWEST", 10)
    monkeypatch.setattr("tmkd.teachers.on_cluster.BLOCK", 12)
    monkeypatch.setattr("tmkd.teachers.on_cluster._EACH", 3)  # so there is more than one job
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr(Cluster, "map", spied(sent))
    there = logits_of(recipe, "there", cluster)
    kinds = [name for name, _ in sent]
    assert len(kinds) > len(set(kinds)) == 3  # each teacher, and some in several jobs
    assert max(count for _, count in sent) == 3 * cluster.workers
    assert list(there) == list(here) == ["mine", "cosine", "reranker"]
    for name, logits in here.items():
        assert logits.shape == there[name].shape
        assert np.abs(logits - there[name]).max() < 1e-4
        assert np.ptp(logits) > 0.01
    again = len(sent)
    assert logits_of(recipe, "there", cluster)["mine"].shape == here["mine"].shape
    assert len(sent) == again  # nothing is labelled twice


def spied(sent: list[tuple[str, int]]) -> Any:
    real = Cluster.map

    def spy(self: Cluster, work: Any, tables: Any, *, ordered: bool = False) -> Any:
        sent.append((type(work).__module__, len(tables)))
        return real(self, work, tables, ordered=ordered)

    return spy


KILLED = """
import sys
import tmkd.pipeline.steps.label as label, tmkd.teachers.on_cluster as on_cluster
label.FEWEST, on_cluster.BLOCK = 10, 8
from tmkd.cli.main import main
sys.argv = ["tmkd", "label", "wide.yaml", "--ray"]
main()
"""


def parts(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("workspace/steps/labels-*.partial/part-*.parquet"))


def test_a_killed_labelling_goes_on_with_what_came_back(tmp_path: Path) -> None:
    Path("wide.yaml").write_text(yaml.safe_dump(content(tmp_path)))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=env, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 150
    while len(parts(tmp_path)) < 3:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept: dict[str, list[Any]] = {path.parent.name.removesuffix(".partial"): [] for path in parts(tmp_path)}
    for path in parts(tmp_path):
        kept[path.parent.name.removesuffix(".partial")] += pq.read_table(path).to_pylist()
    done = subprocess.run([sys.executable, "-c", KILLED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, rows in kept.items():
        stored = [
            row
            for part in (tmp_path / "workspace/steps" / name).glob("part-*")
            for row in pq.read_table(part).to_pylist()
        ]
        assert len({row["pair_id"] for row in stored}) == len(stored)  # nothing twice
        assert all(row in stored for row in rows)


def test_a_pool_that_is_mined_on_a_cluster_is_that_of_one_process(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmkd.data.corpus_pool.mine._PART", 3)
    monkeypatch.setattr("tmkd.data.corpus_pool.one_question._EACH", 1)
    answers = [answer for _, answer in TOPICS.values()]
    texts = [f"{answer} Case {number}." for number in range(6) for answer in answers]
    corpus = write_jsonl(
        tmp_path / "corpus.jsonl", [{"id": str(place), "text": text} for place, text in enumerate(texts)]
    )
    asked = [question for question, _ in TOPICS.values()] + ["Xyzzy plugh?", "What lists a copy of the index?"]
    questions = tmp_path / "questions.txt"
    questions.write_text("\n".join(asked) + "\n")
    for number, mining in enumerate((Mining(passages=4), Mining(passages=4, most=1), Mining(4, "stratified", 20, 2))):
        here = mine_pool(questions, f"here{number}.parquet", [corpus], mining=mining)
        there = mine_pool(questions, f"there{number}.parquet", [corpus], mining=mining, cluster=cluster)
        assert pq.read_table(here.output).equals(pq.read_table(there.output))
        assert (here.pairs, here.left_out, here.first_without_hit) == (
            there.pairs,
            there.left_out,
            there.first_without_hit,
        )
        assert here.pairs > 8
    assert here.first_without_hit == ["Xyzzy plugh?"]
