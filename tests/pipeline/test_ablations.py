"""The keys that ablations vary: what each says it does, and that work without them keeps its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tmkd, pair_rows, pool_rows, write_jsonl
from encoder_fixtures import tiny
from numpy.typing import NDArray

from tmkd.config.load import load_recipe
from tmkd.config.pool_sections import Sampling
from tmkd.config.recipe import Recipe
from tmkd.config.sections import Loss, Stage2, Training
from tmkd.config.teacher_sections import Teacher
from tmkd.core.errors import DataError
from tmkd.core.logits import log_odds
from tmkd.data.pairs import Pairs, Reference
from tmkd.data.sampling import sample
from tmkd.data.split import STAGE1, folds, split, subsample
from tmkd.models.batching import replayed_steps
from tmkd.models.student import StudentOutput
from tmkd.pipeline.all_labels import label_all
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps import label
from tmkd.pipeline.steps.teach import teach
from tmkd.pipeline.store.workspace import Step, Workspace
from tmkd.pipeline.teacher_labels import TeacherLabels
from tmkd.teachers.interface import Scored
from tmkd.training import state
from tmkd.training.gradients import MicroBatchGradients
from tmkd.training.targets import Replay, Targets, stage2_loss


@pytest.fixture
def small(recipe_file: Path, tmp_path: Path) -> Path:
    """The recipe with a tiny random encoder, and a pool."""
    write_jsonl(tmp_path / "pool.jsonl", pool_rows())
    text = (
        recipe_file.read_text()
        .replace("batch_size: 8", "batch_size: 64")
        .replace("builtin:minilm-l6", str(tiny("bert", tmp_path / "bert")))
    )
    recipe_file.write_text(text.replace("data: {", f"data: {{pool: {tmp_path / 'pool.jsonl'}, "))
    return recipe_file


def a_run(recipe: Path, workspace: Path, *overrides: str) -> Run:
    return Run(load_recipe(recipe, list(overrides)), workspace)


def many(questions: int = 200) -> Pairs:
    return Pairs.build([f"question {i // 3}" for i in range(3 * questions)], [f"p{i}" for i in range(3 * questions)])


# --- data.train_share


def test_smaller_shares_of_the_questions_are_part_of_larger_ones() -> None:
    pairs = many()
    found = [subsample(pairs, share) for share in (0.1, 0.3, 1.0)]
    assert set(found[0]) < set(found[1]) < set(found[2])
    assert len(found[2]) == len(pairs)
    assert 0.2 < len(found[1]) / len(pairs) < 0.4
    for rows in found:
        names = [pairs.questions[row] for row in rows]
        assert len(names) == 3 * len(set(names))  # whole questions
    train, _ = split(pairs, (0.8, 0.2))  # the development split's hash says nothing about the share
    assert 0.2 < len(subsample(train, 0.3)) / len(train) < 0.4
    names = [f"question {n}" for n in range(4000)]
    train, _ = split(Pairs.build(names, ["p"] * 4000), (0.4, 0.6))
    assert len(subsample(train, 0.3)) / len(train) == pytest.approx(0.3, abs=0.04)  # by the same hash it were 0.75


def test_students_see_a_share_of_the_rows_and_teachers_all(small: Path, tmp_path: Path) -> None:
    whole = a_run(small, tmp_path / "w", "methods=[finetune,tmkd]")
    part = a_run(small, tmp_path / "w", "methods=[finetune,tmkd]", "data.train_share=0.5")
    assert 0 < len(part.data.student_pairs) < len(whole.data.student_pairs)
    assert [step for _, step in part.labels.teachers] == [step for _, step in whole.labels.teachers]
    students = {student.method.name: student for student in whole.students.train_all()}
    fewer = {student.method.name: student for student in part.students.train_all()}
    assert fewer["tmkd"].stage1 == students["tmkd"].stage1
    assert fewer["tmkd"].steps != students["tmkd"].steps
    last = json.loads((fewer["finetune"].steps[0].folder / "curve.json").read_text())[-1]
    assert last["pairs"] == len(part.data.student_pairs)


def test_a_share_without_a_question_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_share: 1e-06 leaves none of \d+ training questions"):
        _ = a_run(small, tmp_path / "w", "data.train_share=1e-6").data.student_pairs


# --- use_teachers


def test_the_first_teachers_alone_are_trained_and_none_twice(small: Path, tmp_path: Path) -> None:
    one = a_run(small, tmp_path / "w", "use_teachers=1", "methods=[mkd]", "take=mkd")
    first = one.students.taken().steps[0]
    assert [teacher.name for teacher, _ in one.labels.teachers] == ["a"]
    assert len(list((tmp_path / "w" / "steps").glob("teacher-*"))) == 1
    two = a_run(small, tmp_path / "w", "methods=[mkd]", "take=mkd")
    second = two.students.taken().steps[0]
    assert two.labels.teachers[0] == one.labels.teachers[0]
    assert len(list((tmp_path / "w" / "steps").glob("teacher-*"))) == 2
    assert [json.loads((step.folder / "tmkd.json").read_text())["soft_headers"] for step in (first, second)] == [1, 2]


def test_teachers_that_are_named_take_part_in_the_order_of_the_recipe(small: Path, tmp_path: Path) -> None:
    for names, expected in {"[b,a]": ["a", "b"], "[b]": ["b"]}.items():
        of = a_run(small, tmp_path / "w", f"use_teachers={names}", "methods=[tkd]", "take=tkd")
        assert [teacher.name for teacher in of.recipe.used_teachers] == expected
    assert [teacher.name for teacher, _ in of.labels.teachers] == ["b"]
    both = a_run(small, tmp_path / "w", "methods=[mkd]", "take=mkd")
    assert both.labels.teachers[1] == of.labels.teachers[0]  # b is the same teacher, whoever is beside it


# --- labels: out-of-fold


def test_folds_keep_questions_whole_and_are_of_one_size() -> None:
    pairs = many(50)
    found = folds(pairs, 5)
    assert np.bincount(found).tolist() == [30] * 5
    assert len({(name, fold) for name, fold in zip(pairs.questions, found, strict=True)}) == 50
    assert not np.array_equal(found, np.arange(150) // 30)  # by a hash, not by the order of the rows
    with pytest.raises(DataError, match="8 folds of 7 training questions"):
        folds(many(7), 8)


def test_no_pair_is_labelled_by_a_teacher_that_saw_its_question(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: dict[str, set[str]] = {}

    def teach_watched(workspace: Workspace, recipe: Recipe, teacher: Teacher, rows: Pairs, *rest: Any) -> Step:
        step = teach(workspace, recipe, teacher, rows, *rest)
        if "without fold" in teacher.name:
            taught[step.fingerprint] = set(rows.questions)
        return step

    monkeypatch.setattr("tmkd.pipeline.teacher_labels.teach", teach_watched)
    line = a_run(small, tmp_path / "w", "labels=out-of-fold", "folds=3", "methods=[tmkd]")
    asked: dict[str, set[str]] = {}
    logits, logits_of = line.labels.logits_of, TeacherLabels.logits_of

    def watched(self: TeacherLabels, model: Step, pairs: Pairs, name: str) -> NDArray[np.float32]:
        if "without fold" in name:
            asked.setdefault(model.fingerprint, set()).update(pairs.questions)
        return logits_of(self, model, pairs, name)

    monkeypatch.setattr(TeacherLabels, "logits_of", watched)
    (student,) = line.students.train_all()
    assert len(taught) == 6  # three folds of two teachers
    assert asked.keys() == taught.keys()
    for model in taught:
        assert not asked[model] & taught[model]
    assert set.union(*asked.values()) == set(line.data.train.questions)
    targets = line.labels.targets(student.method, line.data.student_pairs, "train")
    assert targets is not None
    full = [step for _, step in line.labels.teachers if step is not None]
    assert len(full) == 2
    for number, step in enumerate(full):
        own = logits(step, line.data.train, "own")
        assert not np.allclose(targets.logits[:, number], own)
    pool = line.labels.targets(student.method, line.data.pool, "pool")
    assert pool is not None
    assert not pool.folds  # the pool keeps the full teachers
    np.testing.assert_array_equal(pool.logits[:, 0], logits(full[0], line.data.pool, "own"))

    plain = a_run(small, tmp_path / "w", "methods=[tmkd]")
    assert plain.students.train_all()[0].stage1 == student.stage1
    assert plain.students.train_all()[0].steps != student.steps


def test_one_teacher_needs_only_its_own_folds(small: Path, tmp_path: Path) -> None:
    line = a_run(small, tmp_path / "w", "labels=out-of-fold", "folds=2", "methods=[1-o-1]", "take=1-o-1")
    assert line.students.taken().steps
    assert len(list((tmp_path / "w" / "steps").glob("teacher-*"))) == 2 + 2


def test_stage_1_on_the_training_pairs_learns_out_of_fold_labels_too(small: Path, tmp_path: Path) -> None:
    keys = ("data.pool=null", "methods=[tmkd]", "stage1.share=0.5")
    line = a_run(small, tmp_path / "w", *keys, "labels=out-of-fold", "folds=2")
    (method,) = line.students.methods
    pool, train = line.labels.stage1_pool, line.data.train
    assert len(pool) < len(train)
    soft, of_train = line.students.stage1_targets(method), line.labels.targets(method, train, "train")
    assert of_train is not None
    places = {name: place for place, name in enumerate(train.pair_ids)}
    np.testing.assert_array_equal(soft.logits, of_train.logits[[places[name] for name in pool.pair_ids]])
    assert soft.folds == of_train.folds
    assert len(soft.folds) == 4
    plain = a_run(small, tmp_path / "w", *keys)
    assert not np.allclose(soft.logits, plain.students.stage1_targets(method).logits)
    steps = [one.students.pretrain(method, 0) for one in (line, plain)]
    assert steps[0] != steps[1]


def test_out_of_fold_labels_choose_among_the_training_pairs_too(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_of = TeacherLabels.logits_of

    def reversed_in_folds(self: TeacherLabels, model: Step, pairs: Pairs, name: str) -> NDArray[np.float32]:
        found = logits_of(self, model, pairs, name)
        return found[:, ::-1] if "without fold" in name else found

    monkeypatch.setattr(TeacherLabels, "logits_of", reversed_in_folds)
    keys = ("data.pool=null", "methods=[tmkd]", "pool.sampling={kind: top, keep: 2, by: a}")
    line = a_run(small, tmp_path / "w", *keys, "labels=out-of-fold", "folds=2")
    train = line.data.train
    scores = log_odds(line.labels.learned(0, train, "train").logits)
    expected = train.take(sample(train, scores, Sampling(kind="top", keep=2)).rows)
    assert line.labels.stage1_pool.pair_ids == expected.pair_ids
    assert a_run(small, tmp_path / "w", *keys).labels.stage1_pool.pair_ids != expected.pair_ids


# --- stage2.replay


def test_every_step_holds_its_share_of_pool_rows() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 400)
    own, size, replayed = 100, 8, 3
    steps = replayed_steps(lengths, own, size, replayed, epoch=0, seed=4)
    assert len(steps) == 20
    for step in steps:
        assert (len(step), int((step >= own).sum())) == (8, 3)
    assert sorted(np.concatenate([step[step < own] for step in steps])) == list(range(own))  # a pass over the task
    drawn = np.concatenate([step[step >= own] for step in steps])
    assert len(set(drawn)) == len(drawn)  # none comes again while others wait
    spread = np.mean([np.ptp(lengths[step]) for step in steps])
    assert spread < 0.6 * np.ptp(lengths)  # of like length
    again = replayed_steps(lengths, own, size, replayed, epoch=0, seed=4)
    assert all(np.array_equal(one, other) for one, other in zip(steps, again, strict=True))
    other = np.concatenate(replayed_steps(lengths, own, size, replayed, epoch=1, seed=4))
    assert set(other[other >= own]) != set(drawn)


def test_a_pool_that_is_too_small_comes_round_again() -> None:
    steps = replayed_steps(np.full(107, 9), 100, 10, 5, epoch=0, seed=0)
    counts = np.bincount(np.concatenate(steps))[100:]
    assert counts.sum() == 100
    assert counts.max() - counts.min() <= 1


def test_replayed_pairs_have_the_soft_loss_alone() -> None:
    pairs = Pairs.build(["a", "b"], ["p", "q"], labels=[1, 0])
    pool = Pairs.build(["c"], ["r"], labels=[1])  # a label that must not be looked at
    generator = torch.Generator().manual_seed(0)
    soft, pooled = (torch.randn(n, 2, 2, generator=generator).numpy() for n in (2, 1))
    rows, targets = Replay(pool, Targets(("x", "y"), pooled)).behind(pairs, Targets(("x", "y"), soft))
    assert rows.questions == ["a", "b", "c"]
    assert rows.labels.tolist() == [1, 0, -1]
    loss = stage2_loss(rows, targets, Loss(alpha=0.7))
    logits = StudentOutput(torch.randn(3, 2, generator=generator), torch.randn(3, 2, 2, generator=generator))
    found = loss(logits, torch.arange(3))
    p, r = logits.soft[2].log_softmax(-1), torch.from_numpy(pooled)[0].log_softmax(-1)
    assert found[2] == pytest.approx(0.7 * float((r.exp() * (r - p)).sum(-1).mean()), rel=1e-5)
    golden = StudentOutput(logits.golden + torch.tensor([3.0, 0.0]), logits.soft)
    assert loss(golden, torch.arange(3))[2] == found[2]
    assert loss(golden, torch.arange(3))[0] != found[0]


def test_replayed_pairs_keep_their_own_labels_and_weights() -> None:
    def targets(*odds: float) -> Targets:
        logits = np.array([[[0, z], [0, -z]] for z in odds], dtype=np.float32)
        return Targets(("x", "y"), logits, weights=np.array([[z / 10, 1 - z / 10] for z in odds], dtype=np.float32))

    own = Pairs.build(["a", "b"], ["p", "q"], labels=[1, 0])
    pool = Pairs.build(["c", "d", "e"], ["r", "s", "t"])
    rows, both = Replay(pool, targets(3, 4, 5)).behind(own, targets(1, 2))
    assert rows.questions == ["a", "b", "c", "d", "e"]
    assert rows.passages == ["p", "q", "r", "s", "t"]
    assert both.logits[:, 0, 1].tolist() == [1, 2, 3, 4, 5]
    assert both.weights is not None
    np.testing.assert_allclose(both.weights[:, 0], [0.1, 0.2, 0.3, 0.4, 0.5])


def test_replay_keeps_the_reference_of_the_task_and_needs_the_same_teachers(tmkd: Tmkd, small: Path) -> None:
    scored = Pairs.build(["a"], ["p"], scores={"judge": [0.9]}).with_reference(Reference("judge", "probability"))
    pool = Pairs.build(["c"], ["r"], scores={"judge": [0.2]})
    rows, _ = Replay(pool, Targets(("x",), np.zeros((1, 1, 2), np.float32))).behind(
        scored, Targets(("x",), np.zeros((1, 1, 2), np.float32))
    )
    np.testing.assert_allclose(rows.golden, [[0.1, 0.9], [0.0, 0.0]], rtol=1e-6)
    write_jsonl(small.with_name("train.jsonl"), [{**row, "judge": 0.5} for row in pair_rows(2)])
    refused = tmkd("distill", small, "stage2.replay=0.5", "data.scores={judge: probability}", check=False)
    reason = "stage2.replay: teacher judge has scores for the training set and none for the pool"
    assert f" {reason}" in refused.stderr
    cached = [
        "methods=[tmkd@cached]",
        "take=tmkd@cached",
        "student.start=bottom",
        "stage1.states=0",
        "cached.state_size=16",
    ]
    replayed = "cached.stage2={learning_rate: 1.0e-3, epochs: 1, replay: 0.5}"
    refused = tmkd("distill", small, *cached, replayed, "data.scores={judge: probability}", check=False)
    assert f" cached.{reason}" in refused.stderr
    assert not list(small.parent.glob("workspace/steps/*"))


def test_a_run_with_replay_that_was_stopped_ends_in_the_same_weights(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("methods=[tmkd]", "stage2.replay=0.25", "stage2.batch_size=16", "stage2.epochs=2")
    whole = a_run(small, tmp_path / "whole", *keys).students.taken().steps[0]
    real, calls = MicroBatchGradients.__call__, 0

    def stopped(self: MicroBatchGradients, rows: NDArray[np.int64], seed: int) -> float:
        nonlocal calls
        calls += self.data.replayed > 0
        if calls == 4:
            raise KeyboardInterrupt
        return real(self, rows, seed)

    with monkeypatch.context() as patch:
        patch.setattr(MicroBatchGradients, "__call__", stopped)
        patch.setattr(state, "SAVE_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            a_run(small, tmp_path / "cut", *keys).students.taken()
    assert list((tmp_path / "cut" / "steps").glob("student-*.partial/state/state.safetensors"))
    resumed = a_run(small, tmp_path / "cut", *keys).students.taken().steps[0]
    assert resumed.fingerprint == whole.fingerprint
    assert (resumed.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    plain = (
        a_run(small, tmp_path / "whole", "methods=[tmkd]", "stage2.batch_size=16", "stage2.epochs=2")
        .students.taken()
        .steps[0]
    )
    assert (plain.folder / "model.safetensors").read_bytes() != (whole.folder / "model.safetensors").read_bytes()


# --- stage1.share


def test_stage_1_sees_a_share_of_the_pool_and_teachers_all(small: Path, tmp_path: Path) -> None:
    whole = a_run(small, tmp_path / "w", "methods=[tmkd]")
    spelled = a_run(small, tmp_path / "w", "methods=[tmkd]", "stage1.share=1")
    assert spelled.students.taken().stage1 == whole.students.taken().stage1
    part = a_run(small, tmp_path / "w", "methods=[tmkd]", "stage1.share=0.5")
    assert [step for _, step in part.labels.teachers] == [step for _, step in whole.labels.teachers]
    (stage1,) = part.students.taken().stage1
    assert stage1 not in whole.students.taken().stage1
    last = json.loads((stage1.folder / "curve.json").read_text())[-1]
    seen = round(last["pairs"] / last["epoch"])
    assert 0 < seen < len(whole.data.pool)
    questions = [part.data.pool.questions[row] for row in subsample(part.data.pool, 0.5, STAGE1)]
    assert seen == len(questions)
    kept = set(questions)
    assert seen == sum(question in kept for question in whole.data.pool.questions)  # whole questions
    with pytest.raises(DataError, match=r"stage1\.share: 1e-09 leaves none of the "):
        a_run(small, tmp_path / "w", "methods=[tmkd]", "stage1.share=1e-9").students.taken()


def test_a_larger_share_labels_only_what_a_smaller_one_did_not(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled: list[tuple[str, str]] = []
    scored = label._scored

    def counted(workspace: Workspace, model: Step, how: Any, pairs: Pairs) -> Iterator[Scored]:
        labelled.extend((model.fingerprint, one) for one in pairs.pair_ids)
        return scored(workspace, model, how, pairs)

    monkeypatch.setattr(label, "_scored", counted)
    for share in ("0.3", "0.6", "1"):
        run = a_run(small, tmp_path / "w", "methods=[stage1-only]", "take=stage1-only", f"stage1.share={share}")
        assert label_all(run.labels).pool == len(run.labels.stage1_pool)
        of_pool = {pair for _, pair in labelled} & set(run.data.pool.pair_ids)
        assert of_pool == set(run.labels.stage1_pool.pair_ids)
    assert len(labelled) == len(set(labelled))


# --- teachers.share


def test_teachers_see_shares_of_the_questions_of_their_own(small: Path, tmp_path: Path) -> None:
    whole = a_run(small, tmp_path / "w")
    spelled = a_run(small, tmp_path / "w", "teachers.0.share=1", "teachers.1.share=1.0")
    assert [step for _, step in spelled.labels.teachers] == [step for _, step in whole.labels.teachers]
    bagged = a_run(small, tmp_path / "w", "teachers.0.share=0.5", "teachers.1.share=0.5")
    digests = set()
    for _, step in bagged.labels.teachers:
        assert step is not None
        assert step not in [one for _, one in whole.labels.teachers]
        digests.add(json.loads((step.folder / "step.json").read_text())["depends_on"]["inputs"]["train"])
        last = json.loads((step.folder / "curve.json").read_text())[-1]
        assert last["pairs"] < len(bagged.data.train) * last["epoch"]
    assert len(digests) == 2  # other questions for each
    assert len(bagged.data.student_pairs) == len(whole.data.student_pairs)


# --- all of them


def test_work_without_these_keys_keeps_its_fingerprint(small: Path, tmp_path: Path) -> None:
    """The part of a student's fingerprint that holds numbers is what it was before there were such keys."""
    line = a_run(small, tmp_path / "w", "methods=[finetune,tmkd]")
    numbers = set(Training.model_fields)
    for student in line.students.train_all():
        depends = json.loads((student.steps[0].folder / "step.json").read_text())["depends_on"]
        assert set(depends["settings"]["training"]) <= numbers
        assert not {"folds", "replay", "train_share", "use_teachers"} & {*depends["settings"], *depends["inputs"]}
    assert set(Stage2.model_fields) == numbers | {"replay"}
    spelled = ("data.train_share=1", "labels=own", "folds=3", "use_teachers=2", "stage2.replay=0")
    again = a_run(small, tmp_path / "w", "methods=[finetune,tmkd]", *spelled)
    assert [student.steps for student in again.students.train_all()] == [
        student.steps for student in line.students.train_all()
    ]


def test_bad_values_are_named(tmkd: Tmkd, small: Path) -> None:
    for overrides, expected in {
        ("data.train_share=0",): "data.train_share: input should be greater than 0, got 0",
        ("use_teachers=3",): "use_teachers: 3, but there are 2 teachers",
        ("use_teachers=[a,c]",): "use_teachers: 'c' is not a teacher; the teachers are a, b",
        ("use_teachers=[a,a]",): "use_teachers: give one or more names, each once, got a, a",
        ("use_teachers=[]",): "use_teachers: give one or more names, each once, got none",
        ("use_teachers=a",): "give a number of teachers above 0, or a list of their names such as [a, b], got 'a'",
        ("use_teachers=0",): "give a number of teachers above 0, or a list of their names such as [a, b], got 0",
        ("use_teachers=[1,2]",): "above 0, or a list of their names such as [a, b], got [1, 2]",
        ("labels=out-of-folds",): "labels: input should be 'own' or 'out-of-fold', got 'out-of-folds'",
        ("folds=1",): "folds: input should be greater than or equal to 2, got 1",
        ("stage2.replay=0.001",): "replay: 0.001 of 64 pairs leaves no pair of the pool or the task",
        ("stage2.replay=1",): "stage2.replay: input should be less than 1, got 1",
        ("stage2.replay=0.5", "pool={sources: [{pairs: pool.jsonl}], teachers: [x]}"): "the pool is of another task",
        ("stage1.replay=0.5",): "stage1.replay: unknown key",
        (
            "labels=out-of-fold",
            "data.scores={s: logit}",
            "teachers=[{name: a, scores: s}]",
        ): "is trained here, and none",
        ("labels=out-of-fold", "folds=500"): "500 folds of ",
        ("teachers.0.share=0",): "share: input should be greater than 0, got 0",
        ("teachers.0.share=1e-9",): "share 1e-09 leaves it no training question",
        ("teachers=[{name: a, checkpoint: x, share: 0.5}]",): "share is for a teacher that is trained here",
    }.items():
        done = tmkd("distill", small, *overrides, check=False)
        assert done.returncode == 1, (overrides, done.stderr)
        assert expected in done.stderr, (overrides, done.stderr)
