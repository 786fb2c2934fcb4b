"""The labels of a real run: shown, damaged, repaired, labelled again, exported."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import Tmkd, pair_rows, pool_rows, write_jsonl
from encoder_fixtures import tiny
from label_fixtures import put_in_place
from scipy.stats import kendalltau

from tmkd.config.load import parse_recipe
from tmkd.config.methods import METHODS
from tmkd.core.errors import DataError, LabelError, TmkdError
from tmkd.core.logits import log_mean_softmax, log_odds
from tmkd.data.pairs import Pairs
from tmkd.data.readers import read_rows
from tmkd.pipeline.label_export import export_labels
from tmkd.pipeline.labels import WorkspaceLabels
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps import label as label_module

NUMBERS = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8}
STUDENTS = {"methods": ["teacher", "teacher-ensemble", "tmkd"], "export": {"backends": ["onnx-fp32"]}}


def content(folder: Path, **keys: Any) -> dict[str, Any]:
    """Two tiny teachers, a pool and one-layer students."""
    if not (folder / "train.jsonl").is_file():
        write_jsonl(folder / "train.jsonl", pair_rows(2))
        write_jsonl(folder / "dev.jsonl", [{**row, "question": f"Tell me: {row['question']}"} for row in pair_rows(1)])
        write_jsonl(folder / "test.jsonl", [{**row, "question": f"Please: {row['question']}"} for row in pair_rows(1)])
        write_jsonl(folder / "pool.jsonl", pool_rows())
        tiny("bert", folder / "encoder")
    return {
        "name": "tiny",
        "encoder": str(folder / "encoder"),
        "max_length": 64,
        "precision": "fp32",
        "data": {part: str(folder / f"{part}.jsonl") for part in ("train", "dev", "test", "pool")},
        "teachers": [{"name": "a", "seed": 1, **NUMBERS}, {"name": "b", "seed": 2, **NUMBERS}],
        "student": {"layers": 1},
        **dict.fromkeys(("stage1", "stage2", "without_stage1"), NUMBERS),
        **STUDENTS,
        **keys,
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and the files that it names."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content(folder)))
    return folder


@pytest.fixture(scope="module")
def whole(files: Path) -> Path:
    """The same, with the workspace of its run; labels are in parts of 8 pairs."""
    torch.set_num_threads(1)
    folder = files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_module, "CHUNK", 8)
        Run(parse_recipe(content(folder), "test"), folder / "workspace").run()
    return folder


@pytest.fixture
def workspace(whole: Path, tmp_path: Path) -> Path:
    """A copy of that workspace."""
    shutil.copytree(whole / "workspace", tmp_path / "workspace")
    return tmp_path / "workspace"


def stores_of(workspace: Path) -> dict[tuple[str, str], Path]:
    """The folders of the run's label stores, by the model and the set of pairs."""
    found = WorkspaceLabels(workspace).show(workspace / "runs" / "tiny").stores
    return {(one.check.model, part): Path(str(one.check.folder)) for one in found for part in one.sets}


def labels(folder: Path) -> dict[str, list[float]]:
    return {row["pair_id"]: row["logits"] for part in folder.glob("part-*") for row in pq.read_table(part).to_pylist()}


def contents(workspace: Path) -> dict[str, bytes]:
    """Every file of the finished steps."""
    return {
        str(path.relative_to(workspace)): path.read_bytes()
        for path in (workspace / "steps").rglob("*")
        if path.is_file()
    }


def test_show_says_what_is_labelled_and_how_far_the_teachers_agree(workspace: Path) -> None:
    found = WorkspaceLabels(workspace).show(workspace / "runs" / "tiny")
    assert found.unknown == ""
    sizes = {"train": 64, "dev": 32, "test": 32, "pool": 32}
    assert found.sizes == sizes
    assert found.coverage == {part: {"a": size, "b": size} for part, size in sizes.items()}
    of_teachers = {(one.check.model, one.sets): one for one in found.stores if one.check.model in ("a", "b")}
    assert len(of_teachers) == 8
    for (_, (part,)), one in of_teachers.items():
        assert (one.check.count, one.check.labelled, one.check.not_finite) == (sizes[part], sizes[part], 0)
        assert one.to_json()["finished"]
        assert one.size == sum(path.stat().st_size for path in Path(str(one.check.folder)).iterdir())
        assert one.runs == ("tiny",)
    everything = WorkspaceLabels(workspace).show()
    assert [one.check for one in everything.stores] == [one.check for one in found.stores]
    assert (everything.agreement, everything.coverage) == ((), {})

    pairs = Run.open(workspace / "runs" / "tiny").data.pool
    scores, stores = [], stores_of(workspace)
    for name in ("a", "b"):
        stored = labels(stores[name, "pool"])
        scores.append(log_odds(np.array([stored[one] for one in pairs.pair_ids])))
    rows = [[row for row, one in enumerate(pairs.qids) if one == qid] for qid in dict.fromkeys(pairs.qids)]
    taus = [kendalltau(scores[0][some], scores[1][some]).statistic for some in rows]
    (pool,) = [one for one in found.agreement if one.part == "pool"]
    assert (pool.first, pool.second, pool.questions) == ("a", "b", 8)
    assert pool.tau == pytest.approx(np.mean(taus))


def test_repaired_labels_are_made_again_alone_and_all_that_hangs_on_them_stays_right(
    workspace: Path, whole: Path, tmkd: Tmkd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two finished steps: a part that is cut, and one of the other teacher that the manifest trusts."""
    stores = stores_of(workspace)
    cut, swapped, other = stores["a", "pool"], stores["a", "train"], stores["b", "train"]
    before, logits = contents(workspace), {folder: labels(folder) for folder in (cut, swapped)}
    report = json.loads((workspace / "runs" / "tiny" / "report" / "results.json").read_text())
    part = cut / "part-00002.parquet"
    gone = set(pq.read_table(part).column("pair_id").to_pylist())
    part.write_bytes(part.read_bytes()[:-20])
    swapped_part = swapped / "part-00001.parquet"
    gone_too = set(pq.read_table(swapped_part).column("pair_id").to_pylist())
    put_in_place(other / swapped_part.name, swapped, trusted=True)

    refused = tmkd("labels", "verify", "-w", workspace, check=False)
    assert refused.returncode == 1
    lines = sorted(refused.stdout.splitlines())
    assert len(lines) == 2
    assert any(line.startswith(f"{part} does not have the checksum") for line in lines)
    assert f"{swapped_part} holds labels of another teacher" in lines
    done = json.loads(tmkd("labels", "repair", "-w", workspace, "--json").stdout)
    assert [(one["dropped"], one["missing"]) for one in done] == [(8, 8), (8, 8)]
    assert tmkd("labels", "verify", "-w", workspace).stdout == ""

    asked: list[str] = []
    scored = label_module._scored

    def counting(*given: Any) -> Any:
        asked.extend(given[-1].pair_ids)
        return scored(*given)

    monkeypatch.setattr(label_module, "_scored", counting)
    again = tmkd("run", whole / "recipe.yaml", "-w", workspace, "--json")
    assert sorted(asked) == sorted([*gone, *gone_too])
    after = contents(workspace)
    new = {cut / "part-00004.parquet", swapped / "part-00008.parquet"}
    assert {workspace / name for name in after.keys() - before.keys()} == new
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert {name.rpartition("/")[0] for name in changed} == {str(one.relative_to(workspace)) for one in (cut, swapped)}
    assert all(name.endswith("manifest.json") for name in changed)
    for folder, stored in logits.items():
        found = labels(folder)
        assert found.keys() == stored.keys()
        np.testing.assert_allclose([found[one] for one in stored], list(stored.values()), atol=1e-5)
    figures = json.loads(again.stdout)
    for row, earlier in zip(figures["methods"], report["methods"], strict=True):
        assert (row["name"], row["auc"], row["mrr"]) == (earlier["name"], earlier["auc"], earlier["mrr"])


def test_a_run_that_finds_damage_itself_holds_the_step_while_it_labels(
    workspace: Path, whole: Path, tmkd: Tmkd, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stores_of(workspace)["b", "train"]
    (folder / "part-00003.parquet").unlink()
    held: list[bool] = []
    scored = label_module._scored

    def looking(*given: Any) -> Any:
        held.append((workspace / "locks" / folder.name).exists())
        return scored(*given)

    monkeypatch.setattr(label_module, "_scored", looking)
    done = tmkd("label", whole / "recipe.yaml", "-w", workspace)
    assert "part-00003.parquet is missing; its 8 pairs will be labelled again" in " ".join(done.stderr.split())
    assert held == [True]
    assert len(labels(folder)) == 64


def test_a_damaged_cosine_is_computed_again(workspace: Path, whole: Path, tmkd: Tmkd) -> None:
    """It lies in a store of the same kind, and no label of a teacher depends on it."""
    stores = sorted((workspace / "steps").glob("cosine-*"))
    for folder in stores:
        (folder / "part-00000.parquet").write_bytes(b"damaged")
    tmkd("evaluate", workspace / "runs" / "tiny", "--pairs", whole / "test.jsonl", "--no-speed")
    computed = [folder for folder in stores if (folder / "part-00000.parquet").read_bytes() != b"damaged"]
    assert [len(labels(folder)) for folder in computed] == [32]


@pytest.mark.parametrize("extension", [".jsonl", ".csv", ".parquet"])
def test_export_has_every_teacher_and_the_ensemble_by_name(workspace: Path, tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"labels{extension}"
    done = export_labels(workspace / "runs" / "tiny", path)
    assert (done.rows, done.missing) == ({"train": 64, "dev": 32, "pool": 32}, {})
    rows = read_rows(path)
    assert list(rows[0]) == ["part", "pair_id", "question", "passage", "label", "a", "b", "teacher-ensemble"]
    assert {row["part"] for row in rows} == {"train", "dev", "pool"}
    run, stores = Run.open(workspace / "runs" / "tiny"), stores_of(workspace)
    for part, pairs in {"train": run.data.train, "dev": run.data.dev, "pool": run.data.pool}.items():
        mine = [row for row in rows if row["part"] == part]
        assert [row["pair_id"] for row in mine] == pairs.pair_ids
        assert [(row["question"], row["passage"]) for row in mine] == list(
            zip(pairs.questions, pairs.passages, strict=True)
        )
        given = [-1 if row["label"] in (None, "") else int(row["label"]) for row in mine]
        assert given == pairs.labels.tolist()
        logits = []
        for name in ("a", "b"):
            stored = labels(stores[name, part])
            logits.append(np.array([stored[one] for one in pairs.pair_ids]))
            np.testing.assert_allclose([float(row[name]) for row in mine], log_odds(logits[-1]), atol=1e-6)
        together = log_odds(log_mean_softmax(np.stack(logits, axis=1)))
        np.testing.assert_allclose([float(row["teacher-ensemble"]) for row in mine], together, atol=1e-6)


def test_an_export_is_a_file_for_a_scores_teacher(workspace: Path, tmp_path: Path) -> None:
    export_labels(workspace / "runs" / "tiny", tmp_path / "labels.csv")
    from tmkd.teachers.score_file import ScoreFileTeacher

    pairs = Run.open(workspace / "runs" / "tiny").data.pool
    teacher = ScoreFileTeacher(tmp_path / "labels.csv", "a", "logit", "a")
    stored = labels(stores_of(workspace)["a", "pool"])
    expected = log_odds(np.array([stored[one] for one in pairs.pair_ids]))
    np.testing.assert_allclose(log_odds(teacher.logits(pairs)), expected, atol=1e-5)


def test_damaged_labels_are_not_exported(workspace: Path, tmp_path: Path) -> None:
    (stores_of(workspace)["b", "dev"] / "part-00001.parquet").unlink()
    with pytest.raises(LabelError, match="of 32 pairs 8 have no labels"):
        export_labels(workspace / "runs" / "tiny", tmp_path / "labels.csv")
    assert not (tmp_path / "labels.csv").exists()
    shown = WorkspaceLabels(workspace).show(workspace / "runs" / "tiny")
    assert "of 32 pairs 8 have no labels" in shown.unknown
    assert sum(len(one.check.faults) for one in shown.stores) == 1


def test_labels_of_a_teacher_are_shown_where_another_is_not_trained(workspace: Path) -> None:
    for path in workspace.glob("steps/teacher-*/step.json"):
        if json.loads(path.read_text())["label"] == "teacher a":
            shutil.rmtree(path.parent)
    sizes = {"train": 64, "dev": 32, "test": 32, "pool": 32}
    found = WorkspaceLabels(workspace).show(workspace / "runs" / "tiny")
    assert found.coverage == {part: {"a": 0, "b": size} for part, size in sizes.items()}


def run_by_ids(
    files: Path, folder: Path, scores: dict[tuple[str, str], float], method: str, *, train: str, pool: str, **keys: Any
) -> Run:
    """A run of one method and one file of scores by qid and pid; it is named after the method."""
    rows = [{"qid": qid, "pid": pid, "score": score} for (qid, pid), score in scores.items()]
    judge = {"name": "judge", "file": str(write_jsonl(folder / "judge.jsonl", rows)), "holds": "logit", **keys}
    recipe = content(files, teachers=[judge], name=method, methods=["teacher", method], take=method)
    own = {"train": str(folder / f"{train}.jsonl"), "pool": str(folder / f"{pool}.jsonl")}
    return Run(parse_recipe({**recipe, "data": {**recipe["data"], **own}}, "test"), folder / "workspace")


def test_a_score_under_another_pid_is_a_label_of_the_pair_wherever_it_stands(files: Path, tmp_path: Path) -> None:
    """Labels are stored by the texts, and a file of qid and pid may name a pair in one place only."""
    train = [{**row, "label": int(n % 4 == 0), "qid": str(n // 4), "pid": f"{n}{copy}"}
             for n, row in enumerate(pool_rows()) for copy in "AB"]  # fmt: skip
    pool = [{**{name: row[name] for name in ("question", "passage", "qid")}, "pid": f"{n}C"}
            for n, row in enumerate(train[::2])]  # fmt: skip
    for name, rows in (("train", train), ("pool", pool)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)

    def run_of(scores: dict[tuple[str, str], float], method: str = "tkd", **keys: Any) -> Run:
        return run_by_ids(files, tmp_path, scores, method, train="train", pool="pool", **keys)

    second = {(str(row["qid"]), str(row["pid"])): n / 8 for n, row in enumerate(train) if str(row["pid"])[-1] == "B"}
    run_of(second, partial=True).label()
    done = export_labels(tmp_path / "workspace" / "runs" / "tkd", tmp_path / "labels.parquet")
    assert done.missing == {}
    assert done.rows == {"train": 64, "pool": 32}
    rows = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    expected = [n / 8 for n in range(1, 64, 2)]
    assert [row["judge"] for row in rows] == [*np.repeat(expected, 2), *expected]
    unlike = {(str(row["qid"]), str(row["pid"])): -1.5 for row in pool}
    with pytest.raises(DataError, match=r"stands under several qid and pid, and has two scores, 0\.125 and -1\.5"):
        run_of({**second, **unlike}, partial=True).label()

    # of the training pairs the file names 4, and the others where they stand in the pool, which one recipe does not use
    scores = {(str(row["qid"]), str(row["pid"])): n / 4 for n, row in enumerate(pool)}
    scores |= {(str(train[2 * n]["qid"]), str(train[2 * n]["pid"])): n / 4 for n in range(4)}
    names = []
    for method, missing in (("tkd", {}), ("1-o-1", {"train": {"judge": 56}})) * 2:
        run = run_of(scores, method, partial=True)
        run.label()
        done = export_labels(tmp_path / "workspace" / "runs" / method, tmp_path / "labels.parquet")
        assert done.missing == missing, "labels depend on the recipe, and not on what was labelled before"
        learned = run.labels.targets(METHODS[method], run.data.student_pairs, "train")
        assert learned is not None
        names.append(learned.names)
    assert names[:2] == names[2:]
    assert names[0] != names[1], "so a student that learned other labels is another one"


def test_scores_by_qid_and_pid_are_not_taken_from_other_data(files: Path, tmp_path: Path) -> None:
    """The same texts, under other pids, with scores of their own in the file."""
    scores: dict[tuple[str, str], float] = {}
    for sign, copy in ((1, "A"), (-1, "B")):
        rows = [{**row, "label": n % 2, "qid": str(n // 4), "pid": f"{n}{copy}"} for n, row in enumerate(pool_rows())]
        write_jsonl(tmp_path / f"{copy}.jsonl", rows)
        scores |= {(str(row["qid"]), str(row["pid"])): sign * n / 8 for n, row in enumerate(rows)}
    for sign, copy in ((1, "A"), (-1, "B")):
        run = run_by_ids(files, tmp_path, scores, "1-o-1", train=copy, pool=copy)
        run.label()
        (given,) = run.labels.logits(run.data.train, "train")
        assert log_odds(given).tolist() == [sign * n / 8 for n in range(32)]


def test_labels_by_qid_and_pid_are_shown_before_the_pool_is_mined(files: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": n % 2, "qid": str(n // 4), "pid": str(n)} for n, row in enumerate(pool_rows())]
    for name in ("train", "pool"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    scores = {(str(row["qid"]), str(row["pid"])): n / 8 for n, row in enumerate(rows[:20])}
    workspace = tmp_path / "workspace"
    run_by_ids(files, tmp_path, scores, "tkd", train="train", pool="pool", partial=True).label()
    for step in workspace.glob("steps/pool-*"):
        shutil.rmtree(step)
    found = WorkspaceLabels(workspace).show(workspace / "runs" / "tkd")
    assert found.sizes == {"train": 32, "dev": 32, "test": 32}
    assert found.coverage["train"] == {"judge": 20}


def test_labels_of_a_run_that_is_not_finished(files: Path, tmp_path: Path) -> None:
    """A partial file of scores, a teacher of the run; no student yet."""
    pool = [Pairs.build([row["question"]], [row["passage"]]) for row in pool_rows()]  # type: ignore[list-item]
    some = [{"pair_id": one.pair_ids[0], "score": number / 8} for number, one in enumerate(pool[:20])]
    file = str(write_jsonl(tmp_path / "judge.jsonl", some))
    judge = {"name": "judge", "file": file, "holds": "logit", "partial": True}
    keys = {**content(files), "teachers": [{"name": "a", "seed": 1, **NUMBERS}, judge], "name": "begun"}
    workspace = tmp_path / "workspace"
    run = Run(parse_recipe(keys, "test"), workspace)
    run.teach()
    with pytest.raises(TmkdError, match="no set of pairs is labelled yet; run `tmkd label`"):
        export_labels(workspace / "runs" / "begun", tmp_path / "labels.parquet")
    run.label()
    done = export_labels(workspace / "runs" / "begun", tmp_path / "labels.parquet")
    assert done.columns == ("a", "judge", "teacher-ensemble")
    assert done.rows == {"train": 64, "pool": 32}
    assert done.missing == {"train": {"judge": 64, "teacher-ensemble": 64}, "pool": {"judge": 12}}
    rows = [row for row in pq.read_table(tmp_path / "labels.parquet").to_pylist() if row["part"] == "pool"]
    assert [row["judge"] for row in rows] == [*(number / 8 for number in range(20)), *[None] * 12]
    assert rows[-1]["teacher-ensemble"] == pytest.approx(rows[-1]["a"])
    shown = WorkspaceLabels(workspace).show(workspace / "runs" / "begun")
    assert shown.coverage["pool"] == {"a": 32, "judge": 20}
    assert shown.coverage["test"] == {"a": 0, "judge": 0}
    (pool_agreement,) = [one for one in shown.agreement if one.part == "pool"]
    assert pool_agreement.questions == 5  # those with a score of the judge


def test_export_has_the_labels_that_students_learn(files: Path, tmp_path: Path) -> None:
    """Out-of-fold ones of the share of the training pairs, and of the sampled pool, that students see."""
    data = {**content(files)["data"], "train_share": 0.5}
    pool = {"sampling": {"kind": "top", "keep": 2}}
    keys = {**content(files), "data": data, "pool": pool, "teachers": [{"name": "a", "seed": 1, **NUMBERS}]}
    keys |= {"labels": "out-of-fold", "folds": 2, "name": "folds", "methods": ["teacher", "tkd"], "take": "tkd"}
    run = Run(parse_recipe(keys, "test"), tmp_path / "workspace")
    run.label()
    learned = {
        "train": run.labels.targets(METHODS["tkd"], run.data.student_pairs, "train"),
        "pool": run.labels.pool_targets(METHODS["tkd"]),
    }
    done = export_labels(tmp_path / "workspace" / "runs" / "folds", tmp_path / "labels.parquet")
    assert done.rows == {"train": len(run.data.student_pairs), "dev": 32, "pool": 16}
    assert len(run.data.student_pairs) < 64
    rows = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    for part, targets in learned.items():
        assert targets is not None
        found = [row["a"] for row in rows if row["part"] == part]
        np.testing.assert_allclose(found, log_odds(targets.logits[:, 0]), atol=1e-6)
    in_fold = log_odds(run.labels.logits(run.data.student_pairs, "train")[0])
    assert not np.allclose([row["a"] for row in rows if row["part"] == "train"], in_fold)
    shown = WorkspaceLabels(tmp_path / "workspace").show(tmp_path / "workspace" / "runs" / "folds")
    sets = {one.sets for one in shown.stores}
    assert sets >= {("pool",), ("all of the pool",), ("fold 1 of 2 of train",), ("fold 2 of 2 of train",)}
    assert not sets & {("train",), ("all of train",)}  # nobody learns what the teacher of all of them says of them


def test_label_alone_makes_the_out_of_fold_labels_that_students_learn(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = {**content(files), "teachers": [{"name": "a", "seed": 1, **NUMBERS}], "labels": "out-of-fold", "folds": 2}
    keys |= {"name": "folds", "methods": ["tkd"], "take": "tkd"}
    run = Run(parse_recipe(keys, "test"), tmp_path / "workspace")
    run.label()
    done = export_labels(run.folder, tmp_path / "labels.parquet")
    assert done.rows == {"train": 64, "dev": 32, "pool": 32}  # the development set says which teacher is the best
    assert not done.missing
    assert run.labels.targets(METHODS["tkd"], run.data.student_pairs, "train") is not None
    assert "label 32 pairs with a" in caplog.text
    assert "label 64 pairs with a" not in caplog.text  # no student learns what the teacher of all of them says


def test_lists_of_logits_for_more_than_two_classes(files: Path, tmp_path: Path) -> None:
    three = [{**row, "label": number % 3} for number, row in enumerate(pair_rows(1))]
    data = {part: str(files / f"{part}.jsonl") for part in ("dev", "test", "pool")}
    train = str(write_jsonl(tmp_path / "train.jsonl", three))
    keys = {**content(files), "classes": 3, "data": {**data, "train": train}, "name": "three"}
    Run(parse_recipe(keys, "test"), tmp_path / "workspace").label()
    export_labels(tmp_path / "workspace" / "runs" / "three", tmp_path / "labels.jsonl")
    row = json.loads((tmp_path / "labels.jsonl").read_text().splitlines()[0])
    assert [len(row[name]) for name in ("a", "b", "teacher-ensemble")] == [3, 3, 3]
    assert not WorkspaceLabels(tmp_path / "workspace").show(tmp_path / "workspace" / "runs" / "three").agreement


def test_what_is_no_run_and_names_that_are_taken(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(TmkdError, match=r"is not a run \(no manifest\.json"):
        export_labels(workspace, tmp_path / "labels.csv")
    (tmp_path / "other" / "steps").mkdir(parents=True)
    with pytest.raises(TmkdError, match="is a run of the workspace"):
        WorkspaceLabels(tmp_path / "other").show(workspace / "runs" / "tiny")
    path = workspace / "runs" / "tiny" / "manifest.json"
    path.write_text(path.read_text().replace('"name": "a"', '"name": "passage"'))
    with pytest.raises(DataError, match="a teacher is named passage, as another column"):
        export_labels(workspace / "runs" / "tiny", tmp_path / "labels.csv")
    with pytest.raises(DataError, match="unknown extension"):
        export_labels(workspace / "runs" / "tiny", tmp_path / "labels.xlsx")


def test_the_commands_print_tables_and_json(workspace: Path, tmkd: Tmkd, tmp_path: Path) -> None:
    run = workspace / "runs" / "tiny"
    shown = tmkd("labels", "show", run)
    for words in ("stored labels", "labelled pairs", "agreement of teachers", "Kendall's tau", "finished", "32 pool"):
        assert words in shown.stdout
    numbers = json.loads(tmkd("labels", "show", run, "--json").stdout)
    assert numbers["coverage"]["pool"] == {"pairs": 32, "teachers": {"a": 32, "b": 32}}
    assert {"part", "first", "second", "tau", "questions"} == set(numbers["agreement"][0])
    assert len(json.loads(tmkd("labels", "show", "-w", workspace, "--json").stdout)["stores"]) == len(numbers["stores"])
    good = tmkd("labels", "verify", "-w", workspace, "--json")
    assert json.loads(good.stdout)["faults"] == []
    assert "nothing to repair" in tmkd("labels", "repair", "-w", workspace).stderr
    exported = tmkd("labels", "export", run, "-o", tmp_path / "labels.csv", "--json", "-q")
    assert json.loads(exported.stdout)["rows"] == {"train": 64, "dev": 32, "pool": 32}
    scored = {"query": "a?", "pos": ["x"], "neg": ["y"], "pos_scores": [0.9], "neg_scores": [0.1], "prompt": "none"}
    imported = tmkd("labels", "import", write_jsonl(tmp_path / "s.jsonl", [scored]), "-o", tmp_path / "judge.jsonl")
    assert "2 pairs of 1 rows; 0 were there again" in imported.stderr
    assert "columns that were not read: prompt" in imported.stderr
    assert f"{{name: NAME, file: {tmp_path / 'judge.jsonl'}, holds: probability}}" in imported.stderr
    assert tmkd("labels", "verify", "-w", tmp_path / "gone", check=False).returncode == 1
