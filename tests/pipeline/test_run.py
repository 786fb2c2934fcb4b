"""The whole path on a few rows: the command line as a user calls it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import Tmkd, pair_rows, write_jsonl
from safetensors.torch import load_file

from tmkd.config.load import load_recipe
from tmkd.export.gate import BACKENDS
from tmkd.export.parity import EXACT
from tmkd.inference.qa.calibration import FILE as CALIBRATION
from tmkd.pipeline.steps.export import copy_export
from tmkd.pipeline.store.workspace import Step
from tmkd.training.state import TrainingState


def test_a_calibration_outlives_a_kill_at_every_moment_of_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, target = Step("export", "0", tmp_path / "steps" / "export-0"), tmp_path / "run" / "export"
    (step.folder / "export" / "onnx-fp32").mkdir(parents=True)
    (step.folder / "export" / "probes.json").write_text("{}")
    copy_export(step, target)
    (target / CALIBRATION).write_text("the user's")
    left = 0

    def or_killed(call: Callable[..., object]) -> Callable[..., object]:
        def perhaps(*args: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return call(*args, **named)

        return perhaps

    for place, name in ((Path, "rename"), (Path, "write_text"), (shutil, "rmtree"), (shutil, "copytree")):
        monkeypatch.setattr(place, name, or_killed(getattr(place, name)))
    for moment in range(1, 99):
        left = moment
        try:
            copy_export(step, target)
        except KeyboardInterrupt:
            left = 0
            copy_export(step, target)
            assert (target / CALIBRATION).read_text() == "the user's", moment
        else:
            break
    assert moment > 6
    assert [path.name for path in target.parent.iterdir()] == ["export"]


def test_run_score_evaluate_and_run_again(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    first = tmkd("run", recipe_file, "methods=[teacher,teacher-ensemble,finetune,mkd,tmkd]", "--json")
    results = json.loads(first.stdout)
    names = [row["name"] for row in results["methods"]]
    assert names == ["teacher:a", "teacher:b", "teacher-ensemble", "finetune", "mkd", "tmkd"]
    for row in results["methods"]:
        assert row["auc"]["low"] <= row["auc"]["mean"] <= row["auc"]["high"]
        assert {"accuracy", "mrr", "map", "ndcg@10", "parameters", "bytes", "pairs_per_second"} <= set(row)
    run = tmp_path / "workspace" / "runs" / "tiny"
    assert json.loads((run / "report" / "results.json").read_text()) == results
    page = (run / "report" / "report.html").read_text()
    assert "<svg" in page
    where_from = results["provenance"]
    assert where_from["recipe"]["methods"] == ["teacher", "teacher-ensemble", "finetune", "mkd", "tmkd"]
    assert where_from["precision"] == where_from["recipe"]["precision"] == "fp32"
    assert where_from["libraries"]["torch"] == torch.__version__
    assert "cores" in where_from["machine"]
    assert results["data"].keys() == {"train", "dev", "test"}
    assert "teacher-ensemble" in page

    (run / "export" / "calibration.json").write_text("{}")
    second = tmkd("run", recipe_file, "methods=[teacher,teacher-ensemble,finetune,mkd,tmkd]")
    assert (run / "export" / "calibration.json").read_text() == "{}"  # of no step, yet of this student
    assert second.stderr.count("done before") >= 10
    assert "correlation of tmkd with its teachers" in second.stdout
    assert "pairs/s, 0 s left, loss" not in second.stderr  # nothing was trained again

    pairs = write_jsonl(tmp_path / "mine.jsonl", [{**row, "note": "kept"} for row in pair_rows(1)])
    tmkd("score", run / "export", "--pairs", pairs, "--output", tmp_path / "scored.jsonl")
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [row["question"] for row in scored] == [row["question"] for row in pair_rows(1)]
    for row in scored:
        assert row["note"] == "kept"
        assert row["tmkd_score"] == pytest.approx(row["tmkd_logits"][1] - row["tmkd_logits"][0], abs=1e-5)
        assert row["tmkd_predicted"] == int(row["tmkd_score"] > 0)

    tmkd("score", run / "export", "--pairs", run / "test.jsonl", "--output", tmp_path / "test-scored.csv")
    assert (tmp_path / "test-scored.csv").read_text().count("tmkd_score") == 1

    tmkd("evaluate", run, "--pairs", pairs, "--json", tmp_path / "numbers.json", "--no-speed", "--name", "topics")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert (numbers["rows"], numbers["task"]) == (len(scored), "topics")
    turned = write_jsonl(tmp_path / "turned.jsonl", pair_rows(1)[::-1])
    again = json.loads(tmkd("evaluate", run, "--pairs", turned, "--json", "-", "--no-speed").stdout)
    assert again["pairs_digest"] == numbers["pairs_digest"]  # in whatever order
    of_test = json.loads((run / "report" / "results.json").read_text())
    assert of_test["pairs_digest"] != numbers["pairs_digest"]
    assert [row["name"] for row in numbers["methods"]] == names
    assert numbers["data"]["test"]["read"] == len(scored)
    assert numbers["provenance"]["machine"] == where_from["machine"]

    reused = tmkd("distill", recipe_file, f"stage1_from={run / 'stage1'}", "name=again", "seeds=[4]")
    assert "again" in str(list((tmp_path / "workspace" / "runs").iterdir()))
    assert "stage 1 of" not in reused.stderr

    given = ("--pairs", pairs, "--no-speed", "--json")
    alone = json.loads(tmkd("evaluate", run.parent / "again", *given).stdout)["methods"]
    both = tmkd("evaluate", run, *given, "--beside", run.parent / "again")
    found = {row["name"]: row for row in json.loads(both.stdout)["methods"]}
    theirs = [row for row in alone if row["kind"] in ("baseline", "student")]
    assert list(found) == [*names, *(f"{row['name']} (again)" for row in theirs)]
    assert all(found[f"{row['name']} (again)"]["auc"] == row["auc"] for row in theirs)
    assert {"tmkd", "tmkd (again)"} in [{one["first"], one["second"]} for one in json.loads(both.stdout)["differences"]]
    assert "tmkd (again)" in both.stderr  # in the sentences about what differs
    refused = tmkd("evaluate", run, *given, "--beside", run, check=False)
    assert "two of these runs are called 'tiny'" in refused.stderr


def test_one_teacher_of_several_is_the_best_on_development_rows(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    done = tmkd("distill", recipe_file, "methods=[tkd]", "take=tkd")
    assert "best teacher on the development set: " in done.stderr
    card = json.loads((tmp_path / "workspace" / "runs" / "tiny" / "student" / "tmkd.json").read_text())
    assert card["soft_headers"] == 1


def test_a_student_can_begin_with_a_teachers_layers(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    methods = ("methods=[finetune,mkd]", "take=mkd")
    done = tmkd("distill", recipe_file, *methods, "student.start=teacher")
    assert re.search(r"students begin with layers, or learn hidden states, of teacher [ab]\n", done.stderr)
    again = tmkd("distill", recipe_file, *methods, "student.start=bottom")
    assert "finetune, seed 0: done before" in again.stderr  # it learns from no teacher, so it begins with none
    assert "mkd, seed 0: done before" not in again.stderr


def test_a_student_cannot_begin_with_a_column_of_scores(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{**row, "judge": 0.9 if row["label"] else 0.2} for row in pair_rows(2)])
    write_jsonl(
        tmp_path / "dev.jsonl", [{**row, "judge": 0.5, "question": f"Q {row['question']}"} for row in pair_rows(1)]
    )
    refused = tmkd(
        "distill", recipe_file, "data.scores={judge: probability}", "teachers=[{name: judge, scores: judge}]",
        "methods=[tkd]", "take=tkd", "student.start=teacher", f"data.dev={tmp_path / 'dev.jsonl'}", check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "student.start: teacher needs a teacher that is fine-tuned from 'builtin:minilm-l6'" in refused.stderr


def test_one_changed_key_redoes_only_what_hangs_on_it(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    tmkd("distill", recipe_file, "methods=[tmkd]")
    before = {p.name for p in (tmp_path / "workspace" / "steps").iterdir()}
    tmkd("distill", recipe_file, "methods=[tmkd]", "loss.alpha=0.3")
    after = {p.name for p in (tmp_path / "workspace" / "steps").iterdir()}
    assert [name.split("-")[0] for name in after - before] == ["student"]
    assert before <= after
    listed = tmkd("clean").stdout
    assert "unused" in listed
    assert len(listed.splitlines()) == 1
    tmkd("clean", "--yes")
    assert len(list((tmp_path / "workspace" / "steps").iterdir())) == len(after) - 1
    assert any((tmp_path / "workspace" / "tokens").iterdir())
    assert "tokens" in tmkd("clean", "--tokens", "--yes").stdout
    assert not (tmp_path / "workspace" / "tokens").exists()


def test_labels_damaged_in_a_finished_step_are_made_again(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    tmkd("label", recipe_file)
    part = sorted((tmp_path / "workspace" / "steps").glob("labels-*/part-*.parquet"))[0]
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])
    again = tmkd("label", recipe_file)
    assert "labelled again" in again.stderr
    assert sorted(part.parent.glob("part-*.parquet"))[0].stat().st_size == len(whole)


def test_no_pair_is_labelled_twice(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", pair_rows(1))  # training rows, but for those that dev forbids
    moon = {"question": "How far is the moon?", "passage": "As far as thirty of our planets in a row.", "label": 1}
    write_jsonl(tmp_path / "test.jsonl", [moon, {**moon, "passage": "Nobody lives there.", "label": 0}])
    done = tmkd(
        "label", recipe_file, f"data.pool={pool}", "teachers=[{name: a, epochs: 1}]", "methods=[tkd]", "take=tkd"
    )
    shared = re.search(r"(\d+) of the pairs are labelled already", done.stderr)
    assert shared
    first, second = (
        {
            row["pair_id"]: row["logits"]
            for part in store.glob("part-*.parquet")
            for row in pq.read_table(part).to_pylist()
        }
        for store in (tmp_path / "workspace" / "steps").glob("labels-*")
    )
    both = first.keys() & second.keys()
    assert len(both) == int(shared.group(1)) > 10
    assert all(first[name] == second[name] for name in both)


def test_a_column_of_scores_is_a_teacher(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    rows = [{**row, "judge": 0.9 if row["label"] else 0.2} for row in pair_rows(2)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    tmkd(
        "distill", recipe_file, "data.scores={judge: probability}", "teachers=[{name: judge, scores: judge}]",
        "methods=[tkd]", "take=tkd",
    )  # fmt: skip
    card = json.loads((tmp_path / "workspace" / "runs" / "tiny" / "student" / "tmkd.json").read_text())
    assert card["soft_headers"] == 1


def test_three_classes(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{**row, "label": place % 3} for place, row in enumerate(pair_rows(2))])
    test = [{**row, "question": f"Q {place}", "label": place % 3} for place, row in enumerate(pair_rows(1))]
    write_jsonl(tmp_path / "test.jsonl", test)
    results = json.loads(tmkd("run", recipe_file, "classes=3", "--json").stdout)
    assert {"teacher-ensemble", "finetune", "tmkd"} <= {row["name"] for row in results["methods"]}
    for row in results["methods"]:
        assert "accuracy" in row
        assert not {"auc", "mrr", "map", "ndcg@10"} & set(row)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_in_training_then_continued(
    tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    """The same command continues at the step where the signal came, and ends with the weights of an unbroken run."""
    command = ["teach", str(tiny_recipe), "teachers.0.epochs=6"]
    script = (
        "import sys, time\n"
        "import tmkd.cli.main as cli, tmkd.training.state as state\n"
        "state.SAVE_SECONDS, save = 0.0, state.TrainingState.save\n"
        "def slowly(*a): save(*a); time.sleep(0.2)\n"  # the signal is to come between two of many steps
        "state.TrainingState.save = slowly\n"
        f"sys.argv = ['tmkd', *{command!r}]\n"
        "cli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (found := list(tmp_path.glob("workspace/steps/teacher-*.partial/state/state.safetensors"))):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (128 + sent if sent != signal.SIGKILL else -signal.SIGKILL)
    if sent != signal.SIGKILL:
        assert "the same command continues" in errors
        assert "Traceback" not in errors
    assert not [p for p in (tmp_path / "workspace" / "steps").iterdir() if not p.name.endswith(".partial")]
    saved = json.loads(bytes(load_file(found[0])["position"].tolist()))["done"]
    assert 0 < saved < 42  # 56 pairs in batches of 8, 6 times

    continued: list[int] = []
    load = TrainingState.load

    def noting(state: TrainingState) -> tuple[int, list[dict[str, float]]]:
        done, curve = load(state)
        continued.append(done)
        return done, curve

    monkeypatch.setattr(TrainingState, "load", noting)
    tmkd(*command)
    assert continued == [saved, 0]  # the first teacher goes on, the second begins
    tmkd(*command, "--workspace", tmp_path / "unbroken")
    assert continued[2:] == [0, 0]
    folders = list((tmp_path / "unbroken" / "steps").glob("teacher-*"))
    assert len(folders) == 2
    for folder in folders:
        unbroken = load_file(folder / "model.safetensors")
        again = load_file(tmp_path / "workspace" / "steps" / folder.name / "model.safetensors")
        assert all(torch.equal(unbroken[name], again[name]) for name in unbroken), folder.name
    assert len(continued) == 4


def _killed_in(recipe_file: Path, verb: str, patch: str) -> None:
    """The verb in a process of its own that kills itself at a chosen moment."""
    script = (
        "import os, signal, sys\n"
        "def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{patch}\n"
        "import tmkd.cli.main as cli\n"
        f"sys.argv = ['tmkd', {verb!r}, {str(recipe_file)!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_while_labelling_then_continued(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    patch = (
        "import tmkd.pipeline.steps.label as t\n"
        "t.CHUNK, append, calls = 8, t.LabelStore.append, []\n"
        "def two(*a): (die if len(calls) == 2 else append)(*a); calls.append(1)\n"
        "t.LabelStore.append = two\n"
    )
    _killed_in(recipe_file, "label", patch)
    (partial,) = (tmp_path / "workspace" / "steps").glob("labels-*.partial")
    kept = {part.name: part.read_bytes() for part in partial.glob("part-*.parquet")}
    assert len(kept) == 2
    tmkd("label", recipe_file)
    finished = partial.with_suffix("")
    assert {name: (finished / name).read_bytes() for name in kept} == kept
    assert len(list(finished.glob("part-*.parquet"))) == 3


def test_killed_while_exporting_then_exported(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    tmkd("distill", recipe_file)
    _killed_in(recipe_file, "export", "import tmkd.export.export as e; e.swap_in = die")
    run = tmp_path / "workspace" / "runs" / "tiny"
    assert not (run / "export").exists()
    tmkd("export", recipe_file)
    assert json.loads((run / "export" / "parity.json").read_text())[0]["passed"]
    (step,) = (tmp_path / "workspace" / "steps").glob("export-*")
    assert sorted(path.name for path in step.iterdir()) == ["export", "step.json"]


def test_a_back_end_asked_for_by_name_must_pass(
    tmkd: Tmkd, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(EXACT, logit_difference=-1.0)  # no difference is small enough
    monkeypatch.setitem(BACKENDS, "onnx-fp32", replace(BACKENDS["onnx-fp32"], limits=limits))
    done = tmkd("export", recipe_file, "--backend", "onnx-fp32", check=False)
    assert done.returncode == 1
    assert "onnx-fp32 was asked for and is not written: a logit differs by" in done.stderr
    assert not (tmp_path / "workspace" / "runs" / "tiny" / "export" / "onnx").exists()
    tmkd("export", recipe_file)  # not by name: the table says it, the run goes on


def test_errors_name_the_value_and_the_fix(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    for override, expected in {
        "stage1.epoch=2": "did you mean 'epochs'",
        "studnt.layers=2": "did you mean 'student'",
        "stage2.epochs=two": "got 'two'",
        "methods=[tmdk]": "'tmdk' is not a method",
        "data.train=gone.jsonl": "gone.jsonl: no such file",
        "encoder=./gone": "there is no folder",
        "student.layers=9": "has 6 layers",
        "stage1_from=./gone": "is not a stage-1 student",
        "data.columns.label=target": "there is no column 'target'; there are: question, passage, label",
        "nonsense": "write key=value",
    }.items():
        done = tmkd(
            "distill",
            recipe_file,
            "methods=[tkd]",
            "take=tkd",
            override,
            "teachers=[{name: a, epochs: 1}]",
            check=False,
        )
        assert done.returncode == 1, (override, done.stderr)
        assert expected in done.stderr, (override, done.stderr)
        assert "Traceback" not in done.stderr
    assert "did not" not in tmkd("--help").stdout
    assert "no such recipe" in tmkd("run", "gone.yaml", check=False).stderr


def test_test_rows_among_training_rows_are_refused(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", pair_rows(1))
    done = tmkd("teach", recipe_file, check=False)
    assert done.returncode == 1
    assert "pairs are test pairs too" in " ".join(done.stderr.split())


CROSS_ENCODERS = ["t1", "t2", "t3"]
SHIPPED = {  # each recipe and its teachers: three as in the paper, or one of each kind where the pool is very large
    "debian-docs": ["mpnet", "minilm", "t1"],
    "debian-docs-small": CROSS_ENCODERS,
    "demo": ["mpnet", "minilm", "t1"],
    "demo-small": CROSS_ENCODERS,
    "general": ["mpnet", "t1"],
    "general-large": ["mpnet", "t1"],
    "medquad": ["minilm", "t1"],
    "mnli": CROSS_ENCODERS,
    "qnli": CROSS_ENCODERS,
    "rte": CROSS_ENCODERS,
    "snli": CROSS_ENCODERS,
    "webqa": ["mpnet", "t1"],
    "webqa-small": CROSS_ENCODERS,
    "wikiqa": ["mpnet", "t1"],
    "wikiqa-small": CROSS_ENCODERS,
}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert [teacher.name for teacher in load_recipe(path).teachers] == SHIPPED[path.stem]
