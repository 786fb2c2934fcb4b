"""A bi-encoder that is fine-tuned first: a step of the workspace, taken up after a kill, calibrated out of fold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Tmkd, pair_rows
from encoder_fixtures import tiny
from kinds_fixtures import TKD
from kinds_fixtures import content as of_kinds
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as transformers_logging

from tmkd.config.load import parse_recipe
from tmkd.core.errors import DataError, RecipeError
from tmkd.data.pairs import Pairs
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps.tune import require_tunable, tuned_teacher, without_fused_attention
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.teachers.bi_encoder import BiEncoderTeacher

ROWS = pair_rows(4)
TEXTS = sorted({str(row[key]) for row in ROWS for key in ("question", "passage")})
TUNE = {"learning_rate": 3e-4, "epochs": 2, "batch_size": 4, "negatives": 1}


def content(folder: Path, model: str, **keys: Any) -> dict[str, Any]:
    """A recipe whose only teacher is a bi-encoder that is tuned."""
    teacher = {"name": "b", "kind": "bi_encoder", "model": model, "tune": TUNE, "calibrate": "none"}
    teachers = [{**teacher, **keys.pop("teacher", {})}]
    return of_kinds(folder, **{"name": "tuned", **TKD, "teachers": teachers, **keys})


def tuned(recipe: dict[str, Any], workspace: Path) -> tuple[Run, Step]:
    run = Run(parse_recipe(recipe, "test"), Workspace(workspace))
    ((_, step),) = run.labels.teachers
    assert step is not None
    return run, step


# MPNet's real weights are 400 MB, which `make test` does not fetch; the small folder of its kind is tested always
@pytest.mark.parametrize(
    "model",
    ["builtin:minilm-l6", pytest.param("builtin:mpnet", marks=pytest.mark.slow), "bert", "mpnet"],
)
def test_a_tuned_model_is_a_folder_of_sentence_transformers(tmp_path: Path, model: str) -> None:
    how: dict[str, Any] = {"query_prompt": "question: ", "max_length": 48}
    quick = {"tune": {**TUNE, "epochs": 1, "batch_size": 8, "negatives": 0}} if model == "builtin:mpnet" else {}
    if not model.startswith("builtin:"):
        model = str(tiny(model, tmp_path / "mine"))
        how["pooling"] = "cls"
    run, step = tuned(content(tmp_path, model, teacher={**how, **quick}), tmp_path / "workspace")
    opened = SentenceTransformer(str(step.folder / "model"), local_files_only=True)
    assert opened.prompts["query"] == "question: "
    assert opened.max_seq_length == 48
    assert list((step.folder / "model").glob("*.safetensors"))
    assert not list(step.folder.rglob("*.bin"))
    teacher = tuned_teacher(run.recipe, step, "b")
    assert teacher.builtin == model.startswith("builtin:")  # then tmkd reads it
    pairs = run.data.dev
    theirs = opened.similarity_pairwise(opened.encode_query(pairs.questions), opened.encode_document(pairs.passages))
    np.testing.assert_allclose(teacher.similarities(pairs), theirs, atol=1e-5)
    (logits,) = run.labels.logits(pairs, "dev")
    np.testing.assert_allclose(logits[:, 1], 10 * (np.asarray(theirs) - 0.5), atol=1e-3)
    before = BiEncoderTeacher(model, pooling=how.get("pooling"), max_length=48).similarities(pairs)
    assert np.abs(teacher.similarities(pairs) - before).max() > 1e-3


def test_the_saved_model_gives_the_embeddings_of_the_trained_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[np.ndarray[Any, Any]] = []
    save = SentenceTransformer.save

    def watched(self: SentenceTransformer, *given: Any, **named: Any) -> None:
        kept.append(np.asarray(self.encode(TEXTS)))
        save(self, *given, **named)

    monkeypatch.setattr(SentenceTransformer, "save", watched)
    _, step = tuned(content(tmp_path, "builtin:minilm-l6"), tmp_path / "workspace")
    opened = SentenceTransformer(str(step.folder / "model"), local_files_only=True)
    np.testing.assert_allclose(opened.encode(TEXTS), kept[0], atol=1e-5)
    assert opened.max_seq_length == 256
    np.testing.assert_allclose(np.linalg.norm(opened.encode(TEXTS), axis=1), 1, atol=1e-5)


def test_attention_by_plain_products_gives_the_same_embeddings() -> None:
    model = BiEncoderTeacher("builtin:minilm-l6", precision="fp32").library_model()
    before = model.encode(TEXTS)
    assert model[0].auto_model.config._attn_implementation == "sdpa"
    without_fused_attention(model)
    assert model[0].auto_model.config._attn_implementation == "eager"
    np.testing.assert_allclose(model.encode(TEXTS), before, atol=1e-5)


def test_a_tuned_model_ranks_its_training_pairs_better_and_says_what_it_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        harder = {"tune": {**TUNE, "learning_rate": 1e-4, "epochs": 4}}
        run, step = tuned(content(tmp_path, "builtin:minilm-l6", teacher=harder), tmp_path / "workspace")
    counts = json.loads((step.folder / "contrast.json").read_text())
    assert f"{counts['right']:,} that are right for the question" in caplog.text
    assert counts["right"] > 0
    train = run.data.train
    right = train.labels == 1

    def gap(scores: Any) -> float:
        return float(scores[right].mean() - scores[~right].mean())

    after = tuned_teacher(run.recipe, step, "b").similarities(train)
    assert gap(after) > gap(BiEncoderTeacher("builtin:minilm-l6").similarities(train)) + 0.05
    losses = [point["loss"] for point in json.loads((step.folder / "curve.json").read_text())]
    assert losses[-1] < losses[0]
    assert not (step.folder / "state").exists()


def test_a_killed_tuning_ends_with_the_same_weights(tmkd: Tmkd, tmp_path: Path) -> None:
    made = content(tmp_path, str(tiny("bert", tmp_path / "mine")), teacher={"pooling": "mean"})
    recipe = tmp_path / "tuned.yaml"
    recipe.write_text(yaml.safe_dump(made))
    script = (
        "import os, sys\n"
        "import tmkd.training.state as state\n"
        "from tmkd.training.trainer import Loop\n"
        "state.SAVE_SECONDS = 0.0\n"
        "step = Loop._step\n"
        "def dying(self, rows, number):\n"
        "    if number == 4: os._exit(9)\n"
        "    return step(self, rows, number)\n"
        "Loop._step = dying\n"
        "from tmkd.cli.main import main\n"
        f"sys.argv = ['tmkd', 'teach', {str(recipe)!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    (partial,) = Path("workspace/steps").glob("tuned-*.partial")
    assert (partial / "state" / "state.safetensors").is_file()
    tmkd("teach", recipe)
    finished = load_file(Path(str(partial).removesuffix(".partial")) / "model" / "model.safetensors")
    _, whole = tuned(made, tmp_path / "whole")
    expected = load_file(whole.folder / "model" / "model.safetensors")
    assert expected.keys() == finished.keys()
    for name, weights in expected.items():
        np.testing.assert_array_equal(finished[name], weights, err_msg=name)


def test_a_tuned_model_is_calibrated_on_pairs_that_it_did_not_see(tmp_path: Path) -> None:
    made = content(tmp_path, str(tiny("bert", tmp_path / "mine")), folds=2,
                   teacher={"pooling": "mean", "calibrate": "platt"})  # fmt: skip
    run, step = tuned(made, tmp_path / "workspace")
    calibration = run.labels.calibration(0)
    assert calibration is not None
    fitted_on = set(json.loads((calibration.folder / "step.json").read_text())["depends_on"]["inputs"]["teacher"])
    trained = {one.fingerprint for one in run.workspace.used if one.kind == "tuned"}
    assert len(trained) == 3  # the teacher, and one without each fold
    assert fitted_on == trained - {step.fingerprint}


def test_a_whole_run_with_out_of_fold_labels_of_a_tuned_model(tmkd: Tmkd, tmp_path: Path) -> None:
    made = content(tmp_path, str(tiny("bert", tmp_path / "mine")), folds=2, labels="out-of-fold",
                   teacher={"pooling": "mean"})  # fmt: skip
    recipe = tmp_path / "tuned.yaml"
    recipe.write_text(yaml.safe_dump(made))
    tmkd("run", recipe)
    report = json.loads(Path("workspace/runs/tuned/report/results.json").read_text())
    assert [row["name"] for row in report["methods"]] == ["teacher:b", "tkd"]
    assert len(list(Path("workspace/steps").glob("tuned-*"))) == 3
    shutil.rmtree("workspace/runs/tuned")
    assert "tune b: done before" in tmkd("run", recipe).stderr
    done = tmkd("evaluate", "workspace/runs/tuned", "--pairs", tmp_path / "train.jsonl", "--json", "-", "--no-speed")
    assert [row["name"] for row in json.loads(done.stdout)["methods"]] == ["teacher:b", "tkd"]


def test_transformers_draws_no_bars(tmkd: Tmkd, tmp_path: Path) -> None:
    """Neither when a model is tuned and saved nor when the result labels; other programs' bars stay as they were."""
    made = content(tmp_path, str(tiny("bert", tmp_path / "mine")), teacher={"pooling": "mean"})
    recipe = tmp_path / "tuned.yaml"
    recipe.write_text(yaml.safe_dump(made))
    shown = tmkd("label", recipe).stderr
    assert "pairs with b: done" in shown
    assert not re.search(r"Loading weights|Writing model shards|\d%\|", shown)
    assert transformers_logging.is_progress_bar_enabled()


def test_settings_that_cannot_be_tuned(tmp_path: Path) -> None:
    for teacher, message in (
        ({"tune": {"batch_size": 0}}, "tune.batch_size"),
        ({"tune": {"negatives": -1}}, "tune.negatives"),
        ({"kind": "encoder", "model": None}, "tune is for kind bi_encoder"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe(content(tmp_path, "builtin:minilm-l6", teacher=teacher), "test")
    recipe = parse_recipe(content(tmp_path, "builtin:minilm-l6"), "test")
    wrong = Pairs.build(["who"], ["nobody"], labels=[0])
    with pytest.raises(DataError, match=r"teacher b: tune needs pairs of the right class \(1, data\.positive\)"):
        require_tunable(recipe, recipe.teachers[0], wrong)


def test_pairs_without_a_label_change_nothing(tmp_path: Path) -> None:
    made = content(tmp_path, str(tiny("bert", tmp_path / "mine")), teacher={"pooling": "mean"})
    run, step = tuned(made, tmp_path / "workspace")
    train = run.data.train
    more = train.and_unlabelled(Pairs.build(["who made this"], ["nobody knows"]))
    teacher = run.recipe.teachers[0]
    assert run.labels.teach(teacher, more).fingerprint == step.fingerprint
    other = teacher.model_copy(update={"tune": teacher.tune and teacher.tune.model_copy(update={"seed": 5})})
    assert run.labels.teach(other, train).fingerprint != step.fingerprint
