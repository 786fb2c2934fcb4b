"""Students that read passages once: every method, both kinds side by side, resumption, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached_run_fixtures import SMALL, killed, run_of, weights, write_recipe
from conftest import Tmkd, pair_rows
from encoder_fixtures import tiny

from tmkd.core.errors import DataError, TmkdError
from tmkd.data.pairs import Pairs
from tmkd.models.bi_encoder import cosine_logits
from tmkd.models.checkpoint import load_student
from tmkd.models.encoders.interaction import InteractionEncoder
from tmkd.models.inputs import StateInputs
from tmkd.models.predict import score
from tmkd.models.text_reader import TextReader
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps import states
from tmkd.pipeline.steps.speed import CachedScorer
from tmkd.pipeline.steps.states import TextReading, texts_of
from tmkd.pipeline.store.workspace import Workspace

TAUGHT = ("1-o-1", "1avg-o-1", "m-o-m", "mkd", "tkd", "1avg-tkd", "tmkd")


@pytest.fixture
def scored_recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def test_every_method_trains_a_cached_student(scored_recipe: Path) -> None:
    """All methods read the same states; `combination` and the speed are measured as for other students."""
    run = run_of(scored_recipe, f"methods=[finetune,{','.join(TAUGHT)}]", "cached.stage2.replay=0.25")
    run.distill()
    steps = [path.name.split("-")[0] for path in (run.workspace.root / "steps").iterdir()]
    assert (steps.count("states"), steps.count("stage1")) == (2, 3)  # pool and training pairs; tkd, 1avg-tkd, tmkd
    heads = {one.method.name: load_student(one.steps[0].folder) for one in run.students.train_all()}
    assert all(isinstance(student.encoder, InteractionEncoder) for student in heads.values())
    assert {name: student.soft_heads for name, student in heads.items()} == {
        "finetune": 0, "1-o-1": 0, "1avg-o-1": 0, "m-o-m": 0, "mkd": 2, "tkd": 1, "1avg-tkd": 1, "tmkd": 2,
    }  # fmt: skip

    results = run.evaluate(run.data.test).to_json()
    rows = {row["name"]: row for row in results["methods"]}
    assert list(rows)[2:] == ["teacher-ensemble", "finetune", *TAUGHT]
    encoder = sum(p.numel() for p in torch.nn.ModuleList([_module(scored_recipe.parent / "tiny")]).parameters())
    assert rows["tmkd"]["encoder_parameters"] == encoder
    assert rows["tmkd"]["parameters"] == encoder + sum(p.numel() for p in heads["tmkd"].parameters())
    assert rows["m-o-m"]["parameters"] == 2 * rows["1-o-1"]["parameters"]
    assert rows["tmkd"]["layers"] == 1
    assert rows["tmkd"]["pairs_per_second"] > 0
    assert results["taken"] == "tmkd"


def _module(folder: Path) -> torch.nn.Module:
    from transformers import AutoModel

    module: torch.nn.Module = AutoModel.from_pretrained(folder)
    return module


def test_a_student_starts_at_the_cosine_of_its_encoder(scored_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate of almost nothing the finished student is the cosine, in the labels as everywhere."""
    run = run_of(scored_recipe, "methods=[tmkd,finetune]", *(f"cached.{stage}.learning_rate=1.0e-12"
                 for stage in ("stage1", "stage2", "without_stage1")))  # fmt: skip
    run.distill()
    test = run.data.test
    wanted = cosine_logits(scored_recipe.parent / "tiny", test.questions, test.passages, 64, "fp32")
    for one in run.students.train_all():
        np.testing.assert_allclose(run.students.logits(one, test)[0], wanted, atol=2e-3)
    speed = CachedScorer(run.students.taken().steps[0].folder, "fp32", test.passages)
    np.testing.assert_allclose(speed(test.questions, test.passages), wanted, atol=2e-3)


def test_what_is_timed_is_the_student(scored_recipe: Path) -> None:
    """Passages read beforehand, or question and passage anew: the same logits, also for a single question."""
    run = run_of(scored_recipe, "methods=[tmkd]")
    run.distill()
    folder, test = run.students.taken().steps[0].folder, run.data.test
    inputs = TextReading.of_student(folder, "fp32").inputs(run.workspace, test)
    wanted = score(load_student(folder), inputs, precision="fp32")
    timed = CachedScorer(folder, "fp32", test.passages)
    np.testing.assert_allclose(timed(test.questions, test.passages), wanted, atol=1e-4)
    same = [row for row, question in enumerate(test.questions) if question == test.questions[0]]
    alone = timed([test.questions[0]] * len(same), [test.passages[row] for row in same])
    np.testing.assert_allclose(alone, wanted[same], atol=1e-4)


def test_both_kinds_are_trained_from_the_same_labels_and_the_better_is_taken(
    tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path
) -> None:
    methods = "methods=[teacher,teacher-ensemble,cosine,finetune@cached,tmkd,tmkd@cached]"
    done = tmkd("distill", tiny_recipe, methods, "take=best", f"cached={{{SMALL}}}")
    manifest = json.loads((tmp_path / "workspace" / "runs" / "tiny" / "manifest.json").read_text())
    assert [model["name"] for model in manifest["models"]] == [
        "teacher:a", "teacher:b", "finetune@cached", "tmkd", "tmkd@cached",
    ]  # fmt: skip
    steps = [path.name.split("-")[0] for path in (tmp_path / "workspace" / "steps").iterdir()]
    assert (steps.count("teacher"), steps.count("stage1"), steps.count("student")) == (2, 2, 3)
    choice = manifest["choice"]
    assert choice["metrics"] == ["auc", "mrr"]
    assert list(choice["development"]) == ["finetune@cached", "tmkd", "tmkd@cached"]
    assert manifest["take"] == choice["method"]  # of equally good ones, that with the lower cross-entropy
    assert choice["development"][choice["method"]] == max(choice["development"].values())
    level = [name for name, value in choice["development"].items() if value == choice["development"][choice["method"]]]
    assert choice.get("equal", []) == [name for name in level if name != choice["method"]]
    others = ", ".join(choice.get("equal", []))
    why = f"on the development set it is equal to {others}" if others else "it is the best on the development set"
    assert f"{choice['method']} is exported: {why} by ROC-AUC plus MRR" in done.stderr
    card = json.loads((tmp_path / "workspace" / "runs" / "tiny" / "student" / "tmkd.json").read_text())
    assert card["step"] == choice["method"]
    evaluated = Run.open(tmp_path / "workspace" / "runs" / "tiny").evaluate(tmp_path / "test.jsonl", speed=False)
    assert evaluated.choice == choice
    assert evaluated.taken == choice["method"]


def test_settings_of_cached_students_leave_layered_ones_alone(scored_recipe: Path) -> None:
    methods = ("methods=[finetune@layers,finetune@cached]", "take=finetune@layers", "student.layers=1")
    first = run_of(scored_recipe, *methods)
    first.distill()
    again = run_of(scored_recipe, *methods, "cached.state_size=8")
    again.distill()
    before, after = ([one.steps[0] for one in run.students.train_all()] for run in (first, again))
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_out_of_fold_labels_a_grouped_loss_and_dropout(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    keys = ("methods=[tkd@cached]", "take=tkd@cached", "labels=out-of-fold", "folds=2", "loss.kind=margin_mse",
            "teachers=[{name: a, epochs: 1}]", f"cached={{{SMALL}}}", "cached.stage2.dropout=0.1")  # fmt: skip
    tmkd("distill", tiny_recipe, *keys)
    card = json.loads((tmp_path / "workspace" / "runs" / "tiny" / "student" / "tmkd.json").read_text())
    assert (card["step"], card["soft_headers"]) == ("tkd@cached", 1)


def test_stage_2_continues_an_earlier_cached_stage_1_and_no_other(scored_recipe: Path) -> None:
    first = run_of(scored_recipe, "methods=[tmkd]")
    first.distill()
    stage1 = first.folder / "stage1"
    reused = run_of(scored_recipe, "methods=[tmkd]", f"stage1_from={stage1}", "name=again")
    reused.distill()
    assert not any(step.kind == "stage1" for step in reused.workspace.used)
    for keys, message in {
        ("methods=[tmkd,tkd@layers]",): "is one that reads passages once (cached), and the student of tkd@layers is of",
        ("methods=[tmkd]", "cached.ffn=64"): "has ffn 32, cached.ffn is 64",
        ("methods=[tmkd]", f"cached.encoder={tiny('bert', scored_recipe.parent / 'other', hidden_size=32)}"):
            "reads texts with another encoder than",
    }.items():  # fmt: skip
        with pytest.raises(TmkdError) as refused:
            run_of(scored_recipe, *keys, f"stage1_from={stage1}", "student.layers=1").distill()
        assert message in str(refused.value)


def test_a_shape_that_does_not_fit_the_encoder_is_refused_before_any_step(scored_recipe: Path) -> None:
    for key, message in {
        "cached.state_size=49": "cached.state_size: 49, but the hidden states of",
        "cached.heads=5": "cached.heads: 5, but the width 48 is no multiple of it (that of",
        "max_length=600": "has positions for 512 tokens, and 600 are needed",
        "cached.encoder=./gone": "there is no folder './gone'",
    }.items():
        with pytest.raises(TmkdError) as refused:
            run_of(scored_recipe, "methods=[tmkd]", key).distill()
        assert message in str(refused.value)
    assert not list(scored_recipe.parent.glob("workspace/steps/*"))


def test_killed_while_reading_and_in_stage_1_then_continued_with_the_same_bits(
    scored_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "PART", 8)
    recipe, workspace = scored_recipe, scored_recipe.parent / "workspace"
    killed(
        recipe,
        "import tmkd.pipeline.steps.states as t\n"
        "t.PART, write, calls = 8, t._write, []\n"
        "def two(*a): (die if len(calls) == 2 else write)(*a); calls.append(1)\n"
        "t._write = two\n",
    )
    (partial,) = workspace.glob("steps/states-*.partial")
    kept = {part.name: part.read_bytes() for part in partial.glob("part-*")}
    assert len(kept) == 4  # two parts, of two files each
    killed(
        recipe,
        "import tmkd.pipeline.steps.states as t, tmkd.training.state as state\n"
        "t.PART, state.SAVE_SECONDS, save, calls = 8, 0.0, state.TrainingState.save, []\n"
        "def three(*a): (die if len(calls) == 3 else save)(*a); calls.append(1)\n"
        "state.TrainingState.save = three\n",
    )
    finished = partial.with_suffix("")
    assert {name: (finished / name).read_bytes() for name in kept} == kept
    assert list(workspace.glob("steps/stage1-*.partial/state/state.safetensors"))
    found, unbroken = (run_of(recipe, "methods=[tmkd]", workspace=name) for name in ("workspace", "unbroken"))
    for run in (found, unbroken):
        run.distill()
    wanted = weights(unbroken)
    for name, tensors in weights(found).items():
        assert all(np.array_equal(tensor, wanted[name][key]) for key, tensor in tensors.items()), name


def test_texts_that_were_read_are_not_read_again_and_damaged_ones_are(
    scored_recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(states, "PART", 8)
    folder = scored_recipe.parent / "tiny"
    rows = pair_rows(2)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    workspace, reading = Workspace(scored_recipe.parent / "workspace"), TextReading(folder, folder, 64, "fp32")
    whole = reading.inputs(workspace, pairs)
    (step,) = reading.steps(workspace, pairs)
    shuffled = pairs.take(np.random.default_rng(0).permutation(len(pairs)))
    assert reading.steps(workspace, shuffled) == [step]  # the same texts

    read: list[str] = []
    original = TextReader.read

    def noting(self: TextReader, texts: list[str]) -> Any:
        read.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(TextReader, "read", noting)
    part = reading.inputs(workspace, pairs.take(np.arange(8)))
    assert not read  # copied from the step that holds them
    assert_same_states(part, whole, 8)

    damaged = step.folder / "part-00001.npy"
    content = damaged.read_bytes()
    damaged.unlink()  # `whole` still maps the file as it was
    damaged.write_bytes(content[:-10])
    left = damaged.with_name(f"{damaged.name}.9999999.tmp")  # of a process that was killed while it wrote the part
    left.touch()
    os.utime(left, (0, 0))
    again = reading.inputs(workspace, pairs)
    assert "is missing or damaged" in caplog.text
    assert not left.exists()
    assert sorted(read) == texts_of(pairs)[8:16]
    assert_same_states(again, whole, len(pairs))

    monkeypatch.setattr(TextReading, "_fill", lambda *_: None)  # as if the part went after it was read again
    damaged.unlink()
    with pytest.raises(DataError, match=r"part-00001\.npy cannot be read back"):
        reading.inputs(workspace, pairs)


def assert_same_states(found: StateInputs, wanted: StateInputs, pairs: int) -> None:
    for row in range(pairs):
        for side in ("question", "passage"):
            own, other = int(getattr(found, side)[row]), int(getattr(wanted, side)[row])
            assert np.array_equal(found.texts.hidden(own), wanted.texts.hidden(other))
            assert np.array_equal(found.texts.embeddings[own], wanted.texts.embeddings[other])


def test_an_encoder_that_gives_no_number_is_named(scored_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scored_recipe.parent / "tiny"
    run = TextReader._run
    monkeypatch.setattr(TextReader, "_run", lambda self, *a: run(self, *a) * np.float32(1e6))
    reading = TextReading(folder, folder, 64, "fp32")
    with pytest.raises(TmkdError, match="gives no finite number for '"):
        reading.steps(Workspace(scored_recipe.parent / "workspace"), Pairs.build(["a question"], ["a passage"]))
