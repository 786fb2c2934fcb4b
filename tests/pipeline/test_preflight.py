"""What is refused, or kept, before hours of work: once late errors, wasted work and silently wrong numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Tmkd, pair_rows, write_jsonl
from safetensors.torch import load_file, save_file

from tmkd.config.load import load_recipe
from tmkd.core.errors import RecipeError
from tmkd.data.pairs import Pairs
from tmkd.data.row_counts import RowCounts
from tmkd.models.card import ModelCard
from tmkd.models.checkpoint import load_encoder, save_student
from tmkd.models.encoders.find import find_encoder
from tmkd.models.student import Student
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.preflight import warn_of_unread_text
from tmkd.pipeline.steps.pool import other_teachers_of_run, teachers_of_run


def judged(recipe: Path, extra: str = "") -> Path:
    """The recipe with a score column in its training rows."""
    rows = [{**row, "judge": 0.9 if row["label"] else 0.2} for row in pair_rows(2)]
    write_jsonl(recipe.with_name("train.jsonl"), rows)
    recipe.write_text(recipe.read_text().replace("data: {", "data: {scores: {judge: probability}, " + extra))
    return recipe


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("workspace/steps/*"))


def test_a_score_column_is_a_teacher_without_being_listed(recipe_file: Path) -> None:
    assert [teacher.name for teacher in load_recipe(judged(recipe_file)).used_teachers] == ["a", "b", "judge"]
    named = load_recipe(recipe_file, ["teachers=[{name: a}, {name: j, scores: judge}]"])
    assert [teacher.name for teacher in named.used_teachers] == ["a", "j"]
    reference = load_recipe(recipe_file, ["data.reference=judge"])
    assert [teacher.name for teacher in reference.used_teachers] == ["a", "b"]


def test_what_a_score_column_holds_is_part_of_what_was_learned(tmkd: Tmkd, recipe_file: Path) -> None:
    """A logit that was declared as a probability, and mended, trains the students anew."""
    alone = (judged(recipe_file), "teachers=[]", "methods=[1-o-1]", "take=1-o-1")
    tmkd("distill", *alone)
    assert "1-o-1, seed 0: done before" in tmkd("distill", *alone).stderr
    assert "1-o-1, seed 0: done before" not in tmkd("distill", *alone, "data.scores.judge=logit").stderr


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.builtin=debian-docs", "data: train is for your own rows, and `builtin: debian-docs` is given too"),
        ("teachers=[]", "teachers: give one or more, or score columns"),
        ("seeds=[3, 3]", "seeds: one of them is there twice"),
        ("seeds=" + str(list(range(65))), "seeds: the list should have at most 64 items"),
    ],
)
def test_a_recipe_that_makes_no_sense(recipe_file: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(recipe_file, [override, "methods=[finetune]", "take=finetune"])
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["student.layers=50"], "has 6 layers; a student cannot take 50"),
        (["max_length=1024"], "max_length: "),
        (["teachers.1.max_length=513"], "has positions for 512 tokens, and 513 are needed"),
        (["teachers.1.encoder=./gone"], "there is no folder"),
        (
            ["teachers.1={name: b, checkpoint: builtin:minilm-l6}"],
            "a finished teacher needs a head of 2 classes, this one has no",
        ),
        (["data.train_share=0.000001"], "leaves none of"),
        (["teachers.1.share=1e-9"], "share 1e-09 leaves it no training question"),
        (["loss.kind=list_kl", "data.positive=0"], "loss.kind: list_kl ranks passages by class 1"),
        (["loss.kind=adr_mse", "data.positive=0"], "loss.kind: adr_mse ranks passages by class 1"),
        (["teachers=[{name: a}, {name: b, kind: encoder}]"], "a and b differ in their names alone"),
        (["teachers=[{name: a}, {name: b}]"], "teachers: a and b differ in their names alone, so their labels are the"),
        (["stage1.share=1e-9"], "stage1.share: 1e-09 leaves none of the "),
        (
            ["warm_up={learning_rate: 1.0e-3, epochs: 1, batch_size: 8, share: 1.0e-9}"],
            "warm_up.share: 1e-09 leaves none of",
        ),
    ],
)
def test_nothing_is_trained_for_what_cannot_end_well(
    tmkd: Tmkd, recipe_file: Path, tmp_path: Path, overrides: list[str], expected: str
) -> None:
    refused = tmkd("run", recipe_file, *overrides, check=False)
    assert refused.returncode == 1
    assert expected in refused.stderr
    assert steps(tmp_path) == []


def test_a_score_column_with_gaps_is_refused_at_once(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    rows = [{**row, "question": f"Q {row['question']}", "judge": 0.5} for row in pair_rows(1)]
    del rows[3]["judge"]
    write_jsonl(tmp_path / "test.jsonl", rows)
    judged(recipe_file)
    again = {**pair_rows(2)[0], "judge": 0.7}
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    refused = tmkd("run", recipe_file, check=False)
    assert "teacher judge: 1 train rows have another 'judge' than a later row of the same question" in refused.stderr
    assert "teacher judge: 1 test rows have no 'judge'" in refused.stderr
    assert steps(tmp_path) == []


def test_test_rows_need_labels_and_are_no_development_rows(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    rows = [{**row, "question": f"Q {row['question']}"} for row in pair_rows(1)]
    write_jsonl(tmp_path / "dev.jsonl", rows)
    both = tmkd("teach", recipe_file, "data.dev=dev.jsonl", "data.test=dev.jsonl", check=False)
    assert "32 dev pairs are test pairs too" in both.stderr
    spelled = [{**row, "question": f" {row['question']!s} ".upper(), "passage": f"{row['passage']}."} for row in rows]
    write_jsonl(tmp_path / "spelled.jsonl", spelled)
    both = tmkd("teach", recipe_file, "data.dev=dev.jsonl", "data.test=spelled.jsonl", check=False)
    assert "32 dev pairs are test pairs too" in both.stderr
    write_jsonl(tmp_path / "test.jsonl", [{**row, "label": None} for row in rows])
    assert "label" in tmkd("teach", recipe_file, check=False).stderr
    few = tmkd("teach", recipe_file, "data={train: train.jsonl, hold_out: {test: 0.0001}}", check=False)
    assert "the data gives 0 test pairs" in few.stderr


def test_a_pool_of_ones_own_is_held_out_too(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    other = [{"question": f"What is {name}?", "passage": f"Nothing says what {name} is."} for name in "abcdef"]
    write_jsonl(tmp_path / "pool.jsonl", [*test, *other])
    done = tmkd("label", recipe_file, "data.pool=pool.jsonl", "teachers.1.epochs=1", "use_teachers=1", "methods=[tkd]",
                "take=tkd")  # fmt: skip
    assert f"pool: 6 of {len(test) + 6} pairs; removed as contamination from the development or test set" in done.stderr
    nothing = tmkd("label", recipe_file, "data.pool=test.jsonl", check=False)
    assert "pool: not a single pair is left of 32" in nothing.stderr


def test_clean_leaves_what_an_unfinished_run_made(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    tmkd("pretrain", recipe_file)
    made = steps(tmp_path)
    assert {name.split("-")[0] for name in made} == {"teacher", "labels", "stage1"}
    assert tmkd("clean").stdout == ""
    tmkd("run", recipe_file)
    assert tmkd("clean").stdout == ""  # what was measured on test rows is the run's too
    assert not (tmp_path / "workspace" / "runs" / "tiny" / "unfinished.json").exists()


def test_nothing_is_made_that_no_method_needs(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    tmkd("distill", recipe_file, "methods=[finetune]", "take=finetune")
    assert [name.split("-")[0] for name in steps(tmp_path)] == ["student"]
    done = tmkd("label", recipe_file, "methods=[mkd]", "take=mkd")
    assert "no method learns the teachers' labels of the pool" in done.stderr


def test_what_is_mostly_a_mistake_is_said(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    train, test = pair_rows(2), pair_rows(1)
    rows = [
        *train,
        {**train[0], "passage": f"{train[0]['passage']}\r\n", "label": 0},
        {**train[1], "passage": "Another one.", "label": None},
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "dev.jsonl", [{**row, "question": f"Q {row['question']}"} for row in test])
    write_jsonl(tmp_path / "test.jsonl", [{**row, "passage": f"{row['passage']} Or so."} for row in test])
    logged = tmkd("distill", recipe_file, "data.dev=dev.jsonl", "methods=[finetune]", "take=finetune").stderr
    assert "test.jsonl): 8 questions are training questions too, first 'How do I copy a file?'" in logged
    assert "train.jsonl): 1 training pairs have several labels" in logged
    assert "data: 1 training pairs have no label" in logged
    write_jsonl(tmp_path / "train.jsonl", [row for row in rows if row["label"] == 0])
    refused = tmkd("teach", recipe_file, "data.dev=dev.jsonl", check=False)
    assert "every training pair is of class 0" in refused.stderr


def test_stage_1_goes_on_from_a_stage_1_student_alone(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    tmkd("distill", recipe_file)
    run = tmp_path / "workspace" / "runs" / "tiny"
    again = ("distill", recipe_file, "methods=[finetune,tmkd]", "name=again", "without_stage1.epochs=2")
    refused = tmkd(*again, f"stage1_from={run / 'student'}", check=False)
    assert f"stage1_from: {run / 'student'} is not a stage-1 student" in refused.stderr
    before = steps(tmp_path)
    other = tmkd(*again, f"stage1_from={run / 'stage1'}", "student.layers=2", check=False)
    assert "has 1 layers, student.layers is 2" in other.stderr
    assert steps(tmp_path) == before  # finetune did not come first


def test_what_is_of_an_earlier_student_is_told(tmkd: Tmkd, recipe_file: Path) -> None:
    tmkd("export", recipe_file, "methods=[finetune]", "take=finetune")
    one = ("distill", recipe_file, "methods=[finetune]", "take=finetune")
    assert "earlier student" not in tmkd(*one).stderr
    assert "export in workspace/runs/tiny are of an earlier student" in tmkd(*one, "without_stage1.epochs=2").stderr


def test_evaluate_knows_the_recipes_columns(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        write_jsonl(tmp_path / f"{name}.jsonl", [{"query": row.pop("question"), **row} for row in rows])
    tmkd("run", recipe_file, "data.columns.question=query", "methods=[finetune]", "take=finetune")
    run = tmp_path / "workspace" / "runs" / "tiny"
    for pairs in (tmp_path / "test.jsonl", run / "test.jsonl"):  # as they were, and as a run leaves them
        assert json.loads(tmkd("evaluate", run, "--pairs", pairs, "--no-speed", "--json", "-").stdout)["rows"] == 32
    run.rename(tmp_path / "copied")
    refused = tmkd("evaluate", tmp_path / "copied", "--pairs", tmp_path / "test.jsonl", check=False)
    assert "lies in no workspace" in refused.stderr


def test_places_that_cannot_be_written_are_told(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = tmkd("teach", recipe_file, "--workspace", tmp_path / "file", check=False)
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert "file" in refused.stderr
    missing = tmkd("clean", "--workspace", tmp_path / "nowhere", check=False)
    assert "is not a workspace" in missing.stderr
    assert not (tmp_path / "nowhere").exists()


def test_pool_teachers_are_looked_at_before_any_training(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    sources = "sources: [{questions: own, passages: own}]"
    refused = tmkd("teach", recipe_file, f"pool={{teachers: [gone], {sources}}}", check=False)
    assert "pool.teachers: gone is neither a checkpoint" in refused.stderr
    run = tmp_path / "workspace" / "runs" / "columns"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(
        json.dumps({"models": [{"name": "teacher:a", "kind": "teacher", "steps": []}], "steps": []})
    )
    refused = tmkd("teach", recipe_file, f"pool={{teachers: [{run}], {sources}}}", check=False)
    assert f"pool.teachers: the run {run} trained no cross-encoder" in refused.stderr
    assert steps(tmp_path) == []


def finished_run(workspace: Path, labels: tuple[str, ...]) -> Path:
    """A run's folder with a cross-encoder whose classes have these names, and a tuned embedding model."""
    teacher = workspace / "steps" / "teacher-aaaaaaaaaaaa"
    teacher.mkdir(parents=True)
    ModelCard(max_length=64, classes=2, labels=labels).write(teacher)
    (run := workspace / "runs" / "r").mkdir(parents=True)
    named = {"cross": teacher.name, "e5": "tuned-bbbbbbbbbbbb"}
    models = [{"name": f"teacher:{name}", "kind": "teacher", "steps": [step]} for name, step in named.items()]
    (run / "manifest.json").write_text(json.dumps({"models": models}))
    return run


def test_runs_whose_classes_are_in_other_orders_label_no_pool_together(
    tmkd: Tmkd, recipe_file: Path, tmp_path: Path
) -> None:
    """The mean of their logits would be of opposite labels."""
    runs = [finished_run(tmp_path / name, labels) for name, labels in (("A", ("no", "yes")), ("B", ("yes", "no")))]
    sources = "sources: [{questions: own, passages: own}]"
    refused = tmkd("label", recipe_file, f"pool={{teachers: [{runs[0]}, {runs[1]}], {sources}}}", check=False)
    assert "pool.teachers: their classes are in different orders" in " ".join(refused.stderr.split())
    assert steps(tmp_path) == []


def test_teachers_of_a_run_that_do_not_label_the_pool_are_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ("no", "yes"))
    assert [step.folder.name for step in teachers_of_run(run)] == ["teacher-aaaaaaaaaaaa"]
    assert other_teachers_of_run(run) == ["e5"]


def test_a_pool_that_no_teacher_can_label_is_refused_at_once(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    pool = [{"question": f"What is {name}?", "passage": f"{name} is a letter."} for name in "abcdef"]
    write_jsonl(tmp_path / "pool.jsonl", pool)
    judged(recipe_file)
    refused = tmkd("run", recipe_file, "teachers=[]", "methods=[tkd]", "take=tkd", "data.pool=pool.jsonl", check=False)
    assert "no teacher can label the pool pairs: they have none of the recipe's score columns" in refused.stderr
    assert not [name for name in steps(tmp_path) if not name.startswith("pool-")]


def checkpoint(folder: Path, source: Path, length: int) -> Path:
    """A cross-encoder of the tiny encoder that tmkd wrote, for pairs of `length` tokens."""
    torch.manual_seed(0)
    save_student(Student(load_encoder(source, 2), 2), folder, source, length, {})
    return folder


def test_a_teacher_with_broken_weights_is_named_before_any_training(
    tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path
) -> None:
    broken = checkpoint(tmp_path / "broken", tmp_path / "tiny", 64) / "model.safetensors"
    weights = load_file(broken)
    weights["bert.embeddings.LayerNorm.weight"][7] = float("nan")
    save_file(weights, broken)
    teachers = "teachers:\n  - {name: large, checkpoint: broken}"
    tiny_recipe.write_text(tiny_recipe.read_text().replace("teachers:", teachers))
    done = tmkd("teach", tiny_recipe, check=False)
    assert done.returncode == 1
    assert "teacher large: " in done.stderr
    assert (
        "broken: 1 weights are not finite, first bert.embeddings.LayerNorm.weight (1 of its 48 numbers" in done.stderr
    )
    assert not list((tmp_path / "workspace" / "steps").glob("teacher-*"))


def test_a_finished_teacher_reads_as_many_tokens_as_its_files_say(
    tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path
) -> None:
    (checkpoint(tmp_path / "theirs", tmp_path / "tiny", 40) / "tmkd.json").unlink()
    one, other = "{name: whole, checkpoint: theirs}", "{name: short, checkpoint: theirs, max_length: 16}"
    done = tmkd("teach", tiny_recipe, f"teachers=[{one}, {other}]")
    assert "teacher whole reads up to 40 tokens of a pair (its own length" in done.stderr
    assert "teacher short reads up to 16 tokens of a pair" in done.stderr
    saved = (tmp_path / "workspace" / "steps").glob("teacher-*/tmkd.json")
    assert sorted(json.loads(path.read_text())["max_length"] for path in saved) == [16, 40]
    done = tmkd("teach", tiny_recipe, f"teachers=[{one}, {other.replace('16', '40')}]", check=False)
    assert "whole and short differ in their names alone" in " ".join(done.stderr.split())


def unread(questions: list[str], passages: list[str], max_length: int = 64) -> list[str]:
    counts = RowCounts("train")
    tokenizer = PairTokenizer(find_encoder("builtin:minilm-l6"), max_length)
    warn_of_unread_text(Pairs.build(questions, passages), tokenizer, counts)
    return counts.warnings


def test_text_that_the_encoder_cannot_read_gets_a_word() -> None:
    """An English vocabulary has no token for most Chinese characters."""
    english = ["How do I copy a file?"] * 3, [f"Use cp, as in example {n}." for n in range(3)]
    assert unread(*english) == []
    [warning] = unread(["如何复制文件夹里的档案？"] * 3, [f"请使用复制命令，详见第{n}章的说明。" for n in range(3)])
    assert "of the tokens are unknown to the encoder's vocabulary: it cannot read this text" in warning
    assert int(warning.partition("%")[0]) > 20
    assert unread([], []) == []


def test_questions_that_their_own_encoder_cannot_read_get_a_word() -> None:
    counts, folder = RowCounts("train"), find_encoder("builtin:minilm-l6")
    passages = [f"Use cp, as in example {n}." for n in range(3)]
    foreign = Pairs.build(["如何复制文件夹里的档案？"] * 3, passages)
    warn_of_unread_text(foreign, TextTokenizer(folder, 64), counts)
    assert counts.warnings == []  # the passages can be read
    warn_of_unread_text(foreign, TextTokenizer(folder, 64), counts, "questions")
    long = Pairs.build(["word " * 100, "Why?", "How?"], passages)
    warn_of_unread_text(long, TextTokenizer(folder, 64), counts, "questions")
    unknown, cut = counts.warnings
    assert "of the tokens of the questions are unknown to cached.question_encoder's vocabulary" in unknown
    assert cut.startswith(
        "33% of the questions are longer than max_length (64 tokens) and are cut; raise it, or cut the q"
    )


def test_passages_that_an_embedding_model_cuts_get_a_word(tmkd: Tmkd, tiny_recipe: Path) -> None:
    short = "{name: cosine, kind: bi_encoder, model: 'builtin:minilm-l6', max_length: 8, calibrate: none}"
    done = tmkd("teach", tiny_recipe, f"teachers=[{short}]", "methods=[teacher, tkd]", "take=tkd")
    said = " ".join(done.stderr.split())
    assert "of the passages are longer than what teacher cosine reads (8 tokens) and are cut; give it a larger" in said
    done = tmkd("teach", tiny_recipe, f"teachers=[{short.replace('8', '64')}]", "methods=[teacher, tkd]", "take=tkd")
    assert "teacher cosine reads" not in " ".join(done.stderr.split())


def test_pairs_that_are_cut_get_a_word() -> None:
    long = ["word " * 100 + str(n) for n in range(10)]
    [warning] = unread(["Which word?"] * 10, [*long[:6], *"abcd"])
    assert warning.startswith("60% of the pairs are longer than max_length (64 tokens) and are cut")
    assert unread(["Which word?"] * 10, [*long[:1], *"abcdefghi"]) == []


def test_scores_of_the_right_passages_are_refused_where_these_are_class_0(tmkd: Tmkd, recipe_file: Path) -> None:
    only = ("methods=[tkd]", "take=tkd")
    for keys in (
        ("teachers=[{name: old, file: scores.csv, column: tmkd_score, holds: logit}]",),
        ("teachers=[{name: old, scores: tmkd_score}]", "data.scores={tmkd_score: logit}"),
    ):
        refused = tmkd("label", recipe_file, *keys, *only, "data.positive=0", check=False)
        assert "the column tmkd_score holds the log-odds of the right passages" in " ".join(refused.stderr.split())
