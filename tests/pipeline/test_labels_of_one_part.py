"""Teachers that label one part of the data alone: what needs them elsewhere is refused, or said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Tmkd, pair_rows, pool_rows, write_jsonl
from encoder_fixtures import decoder
from kinds_fixtures import COSINE, NUMBERS, content
from served_fixtures import ranks, stub

from tmkd.config.load import parse_recipe
from tmkd.core.errors import DataError, RecipeError
from tmkd.pipeline.preflight_teachers import require_teachers
from tmkd.pipeline.run import Run
from tmkd.pipeline.store.workspace import Workspace

MINE = {"name": "mine", "seed": 1, **NUMBERS}


def run_of(folder: Path, **keys: Any) -> Run:
    return Run(parse_recipe(content(folder, **keys), "test"), Workspace(folder / "workspace"))


def of_pool(folder: Path, **judge: Any) -> dict[str, Any]:
    """Keys of a recipe with a teacher whose scores are of the pool alone."""
    rows = [{**row, "judge": n % 5 - 1.5} for n, row in enumerate(pool_rows())]
    pool = str(write_jsonl(folder / "pool.jsonl", rows))
    data = {"train": str(folder / "train.jsonl"), "hold_out": {"dev": 0.2, "test": 0.2}, "pool": pool}
    return {"data": data, "teachers": [MINE, {"name": "judge", **judge}]}


def test_replay_needs_scores_of_both_parts(tmp_path: Path) -> None:
    keys = of_pool(tmp_path, file=str(tmp_path / "pool.jsonl"), column="judge", holds="logit", partial=True)
    run = run_of(tmp_path, **keys, methods=["teacher", "tmkd"], take="tmkd", stage2={**NUMBERS, "replay": 0.5})
    with pytest.raises(DataError, match="judge has scores for the pool and none for the training set; give it to the"):
        run.distill()


def test_a_stacked_ensemble_that_cannot_be_fitted_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = of_pool(tmp_path, file=str(tmp_path / "pool.jsonl"), column="judge", holds="logit")
    run = run_of(tmp_path, **keys, methods=["teacher", "1avg-tkd"], take="1avg-tkd", ensemble="stacked", folds=2)
    run.label()
    assert "ensemble: stacked is the plain mean here: fewer than two teachers label the training pairs" in caplog.text


def test_sampling_takes_the_mean_of_the_teachers_that_label_a_pair(tmp_path: Path) -> None:
    keys = of_pool(tmp_path, file=str(tmp_path / "scores.jsonl"), column="judge", holds="logit", partial=True)
    keys["teachers"][0] = COSINE
    rows = [{**row, "judge": 1.5} for row in pool_rows()]
    write_jsonl(tmp_path / "scores.jsonl", rows[1:])  # one pair of the pool has no score
    sampling = {"sampling": {"keep": 2, "kind": "top"}}
    run = run_of(tmp_path, **keys, pool=sampling, methods=["teacher", "tkd"], take="tkd")
    assert 0 < len(run.labels.stage1_pool) < len(run.data.pool)


def test_the_logit_of_a_language_model_is_of_class_1_or_needs_a_map(tmp_path: Path) -> None:
    checkpoint = str(decoder(tmp_path / "yesno"))
    data = {"train": str(tmp_path / "train.jsonl"), "hold_out": {"dev": 0.2, "test": 0.2}, "positive": 0}
    keys: dict[str, Any] = {"data": data, "methods": ["teacher", "tkd"], "take": "tkd"}
    theirs = {"name": "theirs", "checkpoint": checkpoint}
    with pytest.raises(RecipeError, match=r"its only logit has no name, and data\.positive says that class 0 is right"):
        require_teachers(run_of(tmp_path, teachers=[theirs], **keys).data)
    mapped = run_of(tmp_path, teachers=[{**theirs, "label_map": {0: 1, 1: 0}}], **keys)
    plain = run_of(tmp_path, teachers=[{**theirs, "label_map": {0: 0, 1: 1}}], **keys)
    (first,), (second,) = ([run.labels.uncalibrated(0, run.data.dev, "dev")] for run in (mapped, plain))
    assert first[:, 0].tolist() == second[:, 1].tolist()
    assert first[:, 0].std() > 0


def test_jobs_keep_one_budget(tmkd: Tmkd, tmp_path: Path) -> None:
    for name in "abc":
        rows = [{**row, "question": f"{row['question']} {name}"} for row in pool_rows()]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    with stub(ranks) as server:
        served = {"name": "big", "endpoint": {"url": server.url, "concurrency": 1, "max_requests": 45}}
        data = {"train": str(tmp_path / "train.jsonl"), "hold_out": {"dev": 0.2, "test": 0.2}, "pool": "a.jsonl"}
        recipe = content(tmp_path, data=data, teachers=[served], methods=["tkd"], take="tkd")
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        variants = {name: {"data.pool": str(tmp_path / f"{name}.jsonl")} for name in "abc"}
        study = {"name": "s", "tasks": [{"recipe": "recipe.yaml"}], "variants": variants, "against": "a", "seeds": [0]}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "metric": "auc"}))
        done = tmkd("study", tmp_path / "study.yaml", "--jobs", 2, check=False)
        assert done.returncode == 1
        assert "max_requests: 45 requests are spent" in done.stderr
        assert len(server.asked) == 45
    assert not list(Path("workspace/jobs").glob("*-requests"))
    assert len(pair_rows(4)) > 45
