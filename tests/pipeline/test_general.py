"""The general student: stage 1 alone, on a pool of several tasks, with both kinds of students."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from cached_run_fixtures import SMALL
from conftest import Tmkd, pool_rows, write_jsonl

from tmkd.config.load import load_recipe
from tmkd.core.errors import DataError, RecipeError, TmkdError
from tmkd.data.pairs import Pairs, Reference
from tmkd.inference.scorer import Scorer
from tmkd.models.card import read_card
from tmkd.models.checkpoint import load_student
from tmkd.pipeline.report import report_on_others
from tmkd.pipeline.run import Run
from tmkd.pipeline.seen import save_seen
from tmkd.pipeline.steps.teach import golden_of, teach

METHODS = "methods=[teacher,cosine,stage1-only,stage1-only@cached]"
TAKE = "take=stage1-only"


@pytest.fixture
def general(tiny_recipe: Path) -> Path:
    """A recipe whose pool is of a file and of another recipe, which lies beside it."""
    there = tiny_recipe.parent / "elsewhere"
    there.mkdir()
    rows = [{**row, "label": int(number % 4 == 0)} for number, row in enumerate(pool_rows())]
    write_jsonl(there / "rows.jsonl", rows)
    (there / "keepers.yaml").write_text(
        "name: keepers\ndata: {train: rows.jsonl, hold_out: {dev: 0.3}}\nteachers: [{name: x}]\n"
        "methods: [finetune]\ntake: finetune\n"
    )
    tools = ("hammer", "compass", "kettle", "ladder", "needle")
    places = ("closed in spring", "is near the church", "sells each by weight")
    more = [{"question": f"Where does one buy a {one}?", "passage": f"The shop of a {one} maker {where}."}
            for one in tools for where in places]  # fmt: skip
    write_jsonl(tiny_recipe.parent / "more.jsonl", more)
    with tiny_recipe.open("a") as file:
        file.write(f"""
cached: {{{SMALL}}}
pool:
  passages_per_question: 4
  sources:
    - {{questions: more.jsonl, passages: more.jsonl}}
    - {{task: elsewhere/keepers.yaml}}
export: {{every: true, backends: [onnx-fp32]}}
""")
    return tiny_recipe


def _run(recipe: Path, *keys: str) -> Run:
    return Run(load_recipe(recipe, [METHODS, TAKE, *keys]), recipe.parent / "workspace")


def test_one_command_gives_both_kinds_and_their_figures_on_every_task(
    general: Path, tmkd: Tmkd, tmp_path: Path
) -> None:
    done = tmkd("run", general, METHODS, TAKE)
    folder = tmp_path / "workspace" / "runs" / "tiny"
    assert "keepers (development set)" in done.stdout
    there = json.loads((folder / "report" / "keepers" / "results.json").read_text())
    assert there["questions"] == len(set(_run(general).data.others[1].data.dev.questions))
    names = [row["name"] for row in there["methods"]]
    assert names == ["teacher:a", "teacher:b", "teacher-ensemble", "cosine", "stage1-only", "stage1-only@cached"]
    assert (folder / "report" / "keepers" / "report.html").is_file()
    assert "training pairs" not in " ".join(there["data"]["dev"]["warnings"])
    other = _run(general).data.others[1].data.dev
    save_seen(folder, [other], other)  # as a run would that trained on these pairs
    warned = report_on_others(_run(general).data, folder)["keepers"].data["dev"]["warnings"]
    assert f"{len(other):,} of {len(other):,} rows are training pairs of the run tiny" in " ".join(warned)
    steps = {path.name for path in (tmp_path / "workspace" / "steps").iterdir()}
    assert set(json.loads((folder / "manifest.json").read_text())["steps"]) == steps  # so `tmkd clean` leaves them all
    assert "runs/tiny/methods/stage1-only@cached/export" in done.stderr + done.stdout

    test = Pairs.build(["Who looks after the river?"] * 2, ["Every violin sounds deep.", "A list is sorted."])
    for export, student in ((folder / "export", folder / "student"), *(
        (one / "export", one / "student") for one in (folder / "methods").iterdir())):  # fmt: skip
        card = read_card(student)
        assert (card.step, card.soft_heads, card.use_golden) == ("stage1", 2, False)
        logits = Scorer(export).logits(test.questions, test.passages)
        assert np.isfinite(logits).all()
    # the heads are folded: the export gives the mean of the two soft heads
    assert load_student(folder / "student").heads == 2


def test_nothing_of_another_tasks_development_set_comes_into_the_pool(general: Path) -> None:
    data = _run(general).data
    other = data.others[1].data
    dev = other.dev
    right = {passage for passage, label in zip(dev.passages, dev.labels, strict=True) if label == 1}
    assert right
    assert set(data.pool.questions) & set(other.train.questions)
    assert not set(data.pool.questions) & set(dev.questions)
    assert not set(data.pool.passages) & right
    assert data.mined[1]["source"] == "questions of keepers on passages of keepers"


def test_stage_2_of_a_task_starts_from_it(general: Path) -> None:
    first = _run(general).distill()
    cached, layered = first.students["stage1-only@cached"][0], first.students["stage1-only"][0]
    keys = ["name=next", "pool=null", "methods=[tmkd,tmkd@cached]", f"stage1_from={layered}"]
    run = Run(load_recipe(general, [*keys, f"cached.stage1_from={cached}", "take=tmkd"]), general.parent / "workspace")
    later = run.distill()
    for name in ("tmkd", "tmkd@cached"):
        assert (read_card(later.students[name][0]).soft_heads, read_card(later.students[name][0]).use_golden) == (
            2,
            True,
        )


def test_stage_1_alone_labels_no_training_pair(general: Path) -> None:
    assert _run(general, METHODS).label().train == 0


def test_a_share_of_0_leaves_a_task_out_whose_files_are_not_there(general: Path) -> None:
    (general.parent / "elsewhere" / "rows.jsonl").unlink()
    with pytest.raises(
        TmkdError, match=r"pool.sources.1.task: keepers \(pool.sources.1.share=0 leaves it out\): .*rows"
    ):
        _ = _run(general).data.pool
    data = _run(general, "pool.sources.1.share=0").data
    assert not data.others
    assert len(data.pool) > 0


def test_a_file_that_is_not_there_and_how_to_leave_it_out(general: Path) -> None:
    run = _run(general, "pool.sources.1={questions: nowhere.jsonl, passages: more.jsonl}")
    with pytest.raises(DataError, match=r"'nowhere.jsonl' is neither a file nor own; .*pool.sources.1.share=0 leaves"):
        _ = run.data.pool


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": "3"}, "pool.sources.1.task: keepers has classes 3, this recipe has 2"),
        ({"name": "tiny"}, "another task here has the name tiny"),
        ({"stage1.epoch": "2"}, "epoch: unknown key; did you mean 'epochs'"),
    ],
)
def test_another_recipe_that_does_not_fit(general: Path, keys: dict[str, str], message: str) -> None:
    task = "{recipe: elsewhere/keepers.yaml, keys: {" + ", ".join(f"{k}: {v}" for k, v in keys.items()) + "}}"
    with pytest.raises(RecipeError, match=message):
        _ = _run(general, f"pool.sources.1.task={task}").data.pool


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("stage1_from=somewhere",), "stage1-only is what stage 1 makes, and stage1_from names a finished one, somewh"),
        (("combination=golden",), "combination: golden, but stage1-only learns no labels"),
        (("pool.sources.0={task: keepers.yaml, questions: own, passages: own}",), "or `pairs`, or `task`"),
    ],
)
def test_what_does_not_go_with_stage_1_alone(general: Path, keys: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _run(general, *keys)


def test_a_cheap_teacher_chooses_what_the_others_label(general: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = _run(general, "pool.sampling={keep: 2, quantiles: 2, by: a}")
    whole, kept = run.data.pool, run.labels.stage1_pool
    assert 0 < len(kept) < len(whole)
    assert max(kept.questions.count(one) for one in set(kept.questions)) == 2
    assert set(kept.pair_ids) < set(whole.pair_ids)
    assert f"pool: {len(kept)} of {len(whole)} pairs are kept, by the scores of a, " in caplog.text
    caplog.clear()
    assert run.label().pool == len(kept)
    assert f"label {len(kept)} pairs with b" in caplog.text
    assert f"label {len(whole)} pairs with b" not in caplog.text
    run.pretrain()
    mined = run.workspace.root / "steps"
    assert len(list(mined.glob("pool-*"))) == 1
    _run(general).pretrain()
    assert len(list(mined.glob("pool-*"))) == 1  # the mined pool is the same without sampling


class TestATeacherOfSeveralTasks:
    """`other_tasks: true`: a cross-encoder learns the training pairs of the pool's other recipes, too."""

    KEY = "teachers.0.other_tasks=true"

    def test_it_is_the_teacher_that_one_file_with_all_these_pairs_would_give(self, general: Path) -> None:
        run = _run(general, self.KEY, "warm_up=null")
        own, (there,) = run.data.train, run.data.labelled_others
        texts = (own.questions + there.questions, own.passages + there.passages)
        both = Pairs.build(*texts, labels=[*own.labels.tolist(), *there.labels.tolist()])
        teacher = run.recipe.teachers[0]
        steps = [
            run.labels.teach(teacher, own),
            teach(run.workspace, run.recipe, teacher, both),
            teach(run.workspace, run.recipe, teacher, own),
        ]
        found, as_one_file, alone = ((step.folder / "model.safetensors").read_bytes() for step in steps)
        assert found == as_one_file
        assert found != alone
        assert [len(one) for one in run.data.learned] == [len(own), len(there)]
        assert [len(one) for one in _run(general).data.learned] == [len(own)]

    def test_no_pair_of_a_held_out_set_is_learned(self, general: Path) -> None:
        data = _run(general, self.KEY).data
        other, (found,) = data.others[1].data, data.labelled_others
        assert 0 < len(found) <= len(other.train)
        for held in (other.dev, data.dev, data.test):
            assert not set(found.pair_keys) & set(held.pair_keys)
            assert not set(found.questions) & set(held.questions)

    def test_a_training_pair_near_a_held_out_question_is_left_out_and_counted(
        self, general: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = general.parent / "elsewhere" / "rows.jsonl"
        asked = _run(general).data.test.questions[0]
        with rows.open("a") as file:
            for label in (0, 1):
                file.write(json.dumps({"question": asked, "passage": f"It is number {label}.", "label": label}) + "\n")
        with caplog.at_level(logging.INFO):
            (found,) = _run(general, self.KEY, "data.hold_out=null").data.labelled_others
        assert asked not in found.questions
        assert "training pairs of keepers" in caplog.text
        assert "1 question" in caplog.text

    def test_a_teacher_of_folds_learns_no_question_that_it_is_to_label(self, general: Path) -> None:
        run = _run(general, self.KEY)
        own, (others,) = run.data.train, run.data.labelled_others
        asked, passages = [*others.questions, own.questions[0].upper()], [*others.passages, "x"]
        run.data.labelled_others[0] = Pairs.build(asked, passages, labels=[*others.labels.tolist(), 1])
        fold = own.take([row for row, one in enumerate(own.questions) if one != own.questions[0]])
        assert [len(one) for one in run.data.others_beside(own)] == [len(others) + 1]
        assert [one.pair_ids for one in run.data.others_beside(fold)] == [others.pair_ids]

    def test_it_needs_another_task(self, general: Path) -> None:
        run = _run(general, self.KEY, "pool.sources.1.share=0")
        with pytest.raises(RecipeError, match=r"teacher a: other_tasks: the pool has no other task; name one "):
            run.teach()

    def test_it_is_for_a_teacher_that_is_trained_here(self, general: Path) -> None:
        keys = "teachers=[{name: m, kind: bi_encoder, model: 'builtin:minilm-l6', other_tasks: true}]"
        with pytest.raises(RecipeError, match=r"other_tasks is for kind encoder, .* of kind bi_encoder"):
            _run(general, keys)


def test_classes_and_probabilities_are_learned_together() -> None:
    classes = Pairs.build(["a", "b", "c"], ["x", "y", "z"], labels=[1, 0, None])
    judged = Pairs.build(["d"], ["w"], scores={"judge": [0.25]}).with_reference(Reference("judge", "probability"))
    expected = [[0, 1], [1, 0], [0, 0], [0.75, 0.25]]
    assert golden_of([classes, judged], 2).tolist() == expected
    assert golden_of([judged, classes], 2).tolist() == [expected[3], *expected[:3]]
    assert golden_of([classes, classes], 2).tolist() == [1, 0, -1, 1, 0, -1]
