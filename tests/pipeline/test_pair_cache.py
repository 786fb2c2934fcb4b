"""A step's pairs are mapped from a copy in `tokens/`, which may go at any time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pair_rows, pool_rows, write_jsonl
from pairs_fixtures import refused
from safetensors.numpy import load_file

from tmkd.config.load import load_recipe
from tmkd.data import streamed_pairs
from tmkd.data.pairs import Pairs
from tmkd.pipeline.run import Run
from tmkd.pipeline.store import pair_cache
from tmkd.pipeline.store.pair_cache import load_pairs
from tmkd.pipeline.store.workspace import Workspace


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pairs of a step, more than are read into memory."""
    monkeypatch.setattr(pair_cache, "IN_MEMORY", 9)
    path = tmp_path / "w" / "steps" / "pool-abc" / "pool.parquet"
    Pairs.build([f"q{n}" for n in range(30)], [f"p{n}" for n in range(30)], qids=["a"] * 30).save(path)
    return path


def test_pairs_are_copied_once_and_read_from_the_copy(step: Path, tmp_path: Path) -> None:
    workspace, plain = Workspace(tmp_path / "w"), Pairs.load(step)
    for _ in range(2):
        found = load_pairs(workspace, step)
        assert found._file is not None
        assert found.table.equals(plain.table)
        assert found.digest() == plain.digest()
    (copy,) = workspace.tokens.iterdir()
    assert copy.name == "pool-abc.arrow"
    at = copy.stat().st_mtime_ns
    load_pairs(workspace, step)
    assert copy.stat().st_mtime_ns == at


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-30], lambda content: b"", lambda content: b"x" + content, lambda content: b"ARROW1"],
)
def test_a_damaged_copy_is_written_again(
    step: Path, tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace(tmp_path / "w")
    load_pairs(workspace, step)
    (copy,) = workspace.tokens.iterdir()
    copy.write_bytes(damage(copy.read_bytes()))
    assert load_pairs(workspace, step).digest() == Pairs.load(step).digest()
    assert "pool-abc.arrow is damaged" in caplog.text
    assert len(load_pairs(workspace, step)) == 30


def test_few_pairs_and_a_workspace_that_is_read_need_no_copy(step: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    assert load_pairs(Workspace(tmp_path / "w", mode="read"), step)._file is None
    few = step.with_name("few.parquet")
    Pairs.build(["q"], ["p"]).save(few)
    assert load_pairs(workspace, few)._file is None
    assert not workspace.tokens.exists()


def test_what_is_no_pairs_file_is_an_error(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    refused(lambda: load_pairs(workspace, tmp_path / "none.parquet"), "none.parquet", "no such file")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    refused(lambda: load_pairs(workspace, tmp_path / "bad.parquet"), "bad.parquet", "not a readable Parquet")


def test_a_run_whose_pool_stays_on_the_disk_is_the_run_that_has_it_in_memory(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teachers label, and stage 1 learns, the same pairs in the same steps, to the last bit."""
    rows = [*pool_rows(), *pool_rows()[:5], *pool_rows()[:3]]  # some pairs twice
    rows += [{"question": pair_rows(1)[0]["question"], "passage": "An answer to a question of the test set."}]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    found = {}
    for where in ("memory", "disk"):
        if where == "disk":
            monkeypatch.setattr(pair_cache, "IN_MEMORY", 0)
            monkeypatch.setattr(streamed_pairs, "_LARGE", 0)
            monkeypatch.setattr(streamed_pairs, "_ROWS", 7)
            monkeypatch.setattr("tmkd.data.arrow_file._READ", 5)
        run = Run(load_recipe(tiny_recipe, [f"data.pool={pool}", "methods=[tmkd]", "take=tmkd"]), tmp_path / where)
        run.pretrain()
        assert (run.data.pool._file is not None) == (where == "disk")
        assert 0 < len(run.data.pool) < len(rows)  # decontaminated
        steps = {step.folder.name: step.folder for step in run.workspace.used}
        (stage1,) = (folder for name, folder in steps.items() if name.startswith("stage1-"))
        found[where] = set(steps), load_file(stage1 / "model.safetensors")
    assert found["memory"][0] == found["disk"][0]
    for name, weight in found["memory"][1].items():
        np.testing.assert_array_equal(weight, found["disk"][1][name])
    assert [path.suffix for path in sorted((tmp_path / "disk" / "tokens").iterdir())].count(".arrow") == 1
