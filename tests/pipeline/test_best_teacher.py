"""The best teacher is one and the same wherever one is taken of several: ROC-AUC plus MRR on the development set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import pair_rows, pool_rows, write_jsonl

from tmkd.config.load import load_recipe
from tmkd.config.methods import METHODS
from tmkd.data.pairs import Pairs, pair_id
from tmkd.data.split import STAGE1, subsample
from tmkd.pipeline.choice import choose_best
from tmkd.pipeline.development import teachers_on_development
from tmkd.pipeline.run import Run

SCORES = "data.scores={sharp: probability, timid: probability}"


@pytest.fixture
def labels(tiny_recipe: Path, tmp_path: Path) -> Run:
    """Two columns of scores: `timid` puts every right passage first but believes none, `sharp` errs in one of eight."""
    rows = pair_rows(2)
    for number, row in enumerate(rows):
        right, erring = bool(row["label"]), number // 4 % 8 == 0
        row["timid"] = 0.02 if right else 0.01
        row["sharp"] = 0.9 if right != erring else 0.1
    train = write_jsonl(tmp_path / "train.jsonl", rows[:32])
    dev = write_jsonl(tmp_path / "dev.jsonl", [{**row, "passage": f"So: {row['passage']}"} for row in rows[32:]])
    recipe = load_recipe(tiny_recipe, [
        f"data.train={train}", f"data.dev={dev}", "data.test=null", SCORES, "data.shared_pairs=remove",
        "teachers=[{name: sharp, scores: sharp}, {name: timid, scores: timid}]", "methods=[1-o-1,tkd,bilstm]",
        "take=1-o-1",
    ])  # fmt: skip
    return Run(recipe, tmp_path / "workspace")


def test_the_best_teacher_of_students_is_that_of_the_report(labels: Run) -> None:
    teachers = labels.labels
    # by cross-entropy, which was once what chose the teacher of a student, it is the other one
    golden = teachers.data.dev.labels
    losses = []
    for logits in teachers.logits(teachers.data.dev, "dev"):
        shifted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-shifted[np.arange(len(golden)), golden].mean())
    assert losses[0] < losses[1]
    about = teachers_on_development(teachers)
    assert about["metrics"] == ["auc", "mrr"]
    assert about["best"] == "teacher:timid"
    assert about["values"]["timid"] == pytest.approx(2.0)
    assert about["values"]["sharp"] < 2.0
    for name in ("1-o-1", "tkd", "bilstm"):
        assert [one.name for one, _ in teachers.teachers][teachers.best_of(METHODS[name])] == "timid"
        soft = teachers.targets(METHODS[name], teachers.data.student_pairs, "train")
        assert soft is not None
        assert soft.names == (teachers._name_of(1),)


def test_the_best_teacher_labels_the_pairs_of_the_pool_that_students_see(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`sharp` is the best, and has scores of those pairs of the pool alone that `stage1.share` leaves out."""
    rows = [{**row, "sharp": row["label"], "dull": 0.5} for row in pair_rows(2)]
    keys = [f"data.{part}={write_jsonl(tmp_path / f'{part}.jsonl', some)}"
            for part, some in (("train", rows[:32]), ("dev", rows[32:]))]  # fmt: skip
    scores = "data.scores={sharp: probability, dull: probability}"
    teachers = "teachers=[{name: sharp, scores: sharp, partial: true}, {name: dull, scores: dull}]"
    given = [*keys, "data.test=null", scores, teachers, "methods=[tkd]", "take=tkd", "stage1.share=0.5"]
    given.append("loss.weighting=development")
    pool = pool_rows()
    seen = Pairs.build(*zip(*((row["question"], row["passage"]) for row in pool), strict=True))
    kept = set(seen.take(subsample(seen, 0.5, STAGE1)).pair_ids)
    judged = [{**row, "dull": 0.5, "sharp": None if pair_id(str(row["question"]), str(row["passage"])) in kept else 0.5}
              for row in pool]  # fmt: skip
    assert 0 < sum(row["sharp"] is None for row in judged) < len(judged)
    given.append(f"data.pool={write_jsonl(tmp_path / 'pool.jsonl', judged)}")
    labels = Run(load_recipe(tiny_recipe, given), tmp_path / "workspace").labels
    assert labels.development is not None
    assert labels.development.method == "sharp"
    soft = labels.targets(METHODS["tkd"], labels.stage1_pool, "pool")
    assert soft is not None
    assert soft.names == (labels._name_of(1),)
    labels.targets(METHODS["tmkd"], labels.data.pool, "pool")
    silent = sum(row["sharp"] is None for row in judged)
    assert f"{silent} of {len(pool)} pool pairs have no loss on soft labels: only teachers with" in caplog.text


def test_of_teachers_that_are_equally_good_the_cross_entropy_decides() -> None:
    dev = Pairs.build(["a", "a", "b", "b"], list("wxyz"), labels=[1, 0, 0, 1])
    sure, unsure = (np.array([[0, size], [0, -size], [0, -size], [0, size]]) for size in (3.0, 0.5))
    found = choose_best({"unsure": unsure[None], "sure": sure[None]}, dev, classes=2, positive=1)
    assert dict(found.values or {}) == {"unsure": 2.0, "sure": 2.0}
    assert found.method == "sure"
    assert found.order == ("sure", "unsure")
    assert "sure is exported: on the development set it is equal to unsure by ROC-AUC plus MRR (" in found.sentence()
    assert found.to_json()["equal"] == ["unsure"]
    assert choose_best({"one": sure[None], "two": sure[None]}, dev, classes=2, positive=1).method == "one"
    better = choose_best({"sure": sure[None], "wrong": -sure[None]}, dev, classes=2, positive=1)
    assert better.sentence().startswith("sure is exported: it is the best on the development set by ROC-AUC plus MRR (")
    assert "equal" not in better.to_json()
