"""Runs with teachers of other kinds: labelled once, calibrated on training labels, measured, taken up after a stop."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Tmkd, pair_rows, step_folders, write_jsonl
from encoder_fixtures import tiny
from kinds_fixtures import COSINE, NUMBERS, TKD, content
from served_fixtures import ranks, stub

from tmkd.config.load import parse_recipe, parse_recorded_recipe
from tmkd.config.teacher_sections import Endpoint
from tmkd.core.errors import DataError, EndpointError, RecipeError
from tmkd.core.logits import log_odds
from tmkd.core.places import Place
from tmkd.data.pairs import Pairs
from tmkd.pipeline.label_export import export_labels
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps.label import label_stored
from tmkd.pipeline.steps.stored_labels import Labels, stored
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.label_store import LabelStore
from tmkd.pipeline.store.workspace import Workspace
from tmkd.teachers.bi_encoder import BiEncoderTeacher
from tmkd.teachers.interface import Scored
from tmkd.teachers.served import ServedTeacher


def recipe_of(folder: Path, **keys: Any) -> Path:
    path = folder / "kinds.yaml"
    path.write_text(yaml.safe_dump(content(folder, **keys)))
    return path


def raw_scores() -> dict[str, float]:
    """Every stored raw score by pair id."""
    found: dict[str, float] = {}
    for folder in step_folders("labels"):
        header = json.loads((folder / "manifest.json").read_text())["header"]
        if header.get("holds") == "raw scores":
            store = LabelStore.open(folder, header=header)
            ids = sorted(store.done_ids())
            found |= dict(zip(ids, store.logits_for(ids)[:, 0].tolist(), strict=True))
    return found


def test_a_whole_run_with_a_bi_encoder(tmkd: Tmkd, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    tmkd("run", recipe)
    rows = pair_rows(4)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    cosine = BiEncoderTeacher("builtin:minilm-l6", precision="fp32").similarities(pairs)
    scores = raw_scores()
    expected = dict(zip(pairs.pair_ids, cosine, strict=True))
    run = Run.open("workspace/runs/kinds")
    parts = (run.data.train, run.data.dev, run.data.test)  # the development set chooses the best teacher
    assert scores.keys() == {name for part in parts for name in part.pair_ids}
    np.testing.assert_allclose([scores[one] for one in scores], [expected[one] for one in scores], atol=1e-4)

    (calibration,) = step_folders("calibration")
    fitted = json.loads((calibration / "calibration.json").read_text())
    assert fitted["fitted_on"]["pairs"] == len(run.data.train)  # neither the development nor the test set
    assert fitted["fitted_on"]["after"]["log_loss"] < fitted["fitted_on"]["before"]["log_loss"]

    report = json.loads(Path("workspace/runs/kinds/report/results.json").read_text())
    names = [row["name"] for row in report["methods"]]
    assert names == ["teacher:cosine", "teacher:mine", "teacher-ensemble", "tmkd"]
    assert ["pairs_per_second" not in row for row in report["methods"]] == [True, False, True, False]
    assert "parameters" not in report["methods"][2], "the embedding model is in the ensemble, too"
    assert set(report["reliability"]["teacher:cosine"]) == {"given", "calibrated"}
    assert set(report["reliability"]["teacher:mine"]) == {"given"}
    assert "Reliability of the teachers" in Path("workspace/runs/kinds/report/report.html").read_text()
    done = tmkd("evaluate", "workspace/runs/kinds", "--pairs", tmp_path / "train.jsonl", "--json", "-", "--no-speed")
    assert [row["name"] for row in json.loads(done.stdout)["methods"]] == names


def test_another_calibration_labels_nothing_again_and_brings_the_labels_onto_one_scale(tmp_path: Path) -> None:
    def labels(**keys: Any) -> tuple[Any, set[str]]:
        teacher = {**COSINE, **keys}
        run = Run(parse_recipe(content(tmp_path, teachers=[teacher], **TKD), "test"), Workspace(tmp_path / "workspace"))
        dev = run.data.dev
        (logits,) = run.labels.logits(dev, "dev")
        return log_odds(logits), {step.folder.name for step in run.workspace.used if step.kind == "labels"}

    given, first = labels(calibrate="none")
    platt, second = labels()
    isotonic, third = labels(calibrate="isotonic")
    assert second == first | second == third
    for found in (platt, isotonic):
        assert (np.diff(found[np.argsort(given)]) >= -1e-6).all()
        assert not np.allclose(found, given)


def test_a_teacher_that_is_trained_here_is_calibrated_on_pairs_that_it_did_not_see(tmp_path: Path) -> None:
    mine = {"name": "mine", "seed": 1, "calibrate": "platt", **NUMBERS}
    keys = {"teachers": [COSINE, mine], **TKD, "folds": 2}
    run = Run(parse_recipe(content(tmp_path, **keys), "test"), Workspace(tmp_path / "workspace"))
    (step,) = [step for step in (run.labels.calibration(n) for n in range(2)) if step and "mine" in
               json.loads((step.folder / "step.json").read_text())["label"]]  # fmt: skip
    depends = json.loads((step.folder / "step.json").read_text())["depends_on"]
    trained = {one.fingerprint for one in run.workspace.used if one.kind == "teacher"}
    assert len(trained) == 3  # the teacher, and one without each fold
    assert set(depends["inputs"]["teacher"]) < trained
    assert run.labels.teachers[1][1].fingerprint not in depends["inputs"]["teacher"]  # type: ignore[union-attr]


def test_a_killed_labelling_keeps_what_it_has(tmkd: Tmkd, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, teachers=[COSINE], **TKD)
    script = (
        "import os, sys, tmkd.teachers.bi_encoder as b\n"
        "from tmkd.pipeline.store.label_store import LabelStore\n"
        "b.CHUNK = 5\n"
        "append = LabelStore.append\n"
        "def dying(self, *given):\n"
        "    append(self, *given)\n"
        "    if len(self.manifest['parts']) == 2: os._exit(9)\n"
        "LabelStore.append = dying\n"
        "from tmkd.cli.main import main\n"
        f"sys.argv = ['tmkd', 'label', {str(recipe)!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    (partial,) = Path("workspace/steps").glob("labels-*.partial")
    kept = {str(file): pq.read_table(file) for file in partial.glob("part-*.parquet")}
    assert len(kept) == 2
    tmkd("label", recipe)
    finished = Path(str(partial).removesuffix(".partial"))
    for name, table in kept.items():
        assert pq.read_table(finished / Path(name).name).equals(table)
    ids = [one for file in finished.glob("part-*.parquet") for one in pq.read_table(file)["pair_id"].to_pylist()]
    assert len(ids) == len(set(ids))  # nothing twice


def test_what_cannot_work_is_said_before_anything_is_labelled(tmkd: Tmkd, tmp_path: Path) -> None:
    plain = tiny("bert", tmp_path / "plain")
    recipe = recipe_of(tmp_path)
    for change, message in (
        (f"teachers.0.model={plain}", "teacher cosine: " + str(plain) + " has no modules.json"),
        ("classes=3", "teachers: cosine: kind bi_encoder is for two classes, and there are 3"),
    ):
        done = tmkd("label", recipe, change, check=False)
        assert done.returncode != 0
        assert message in " ".join(done.stderr.split())
    assert not step_folders("labels")


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"kind": "bi_encoder"}, "kind bi_encoder needs `model`"),
        ({"kind": "reranker"}, "kind reranker needs `checkpoint`"),
        ({"kind": "bi_encoder", "checkpoint": "x"}, "`checkpoint` is not for kind bi_encoder; give `model`"),
        ({"model": "x"}, "`model` is not for kind encoder"),
        ({"pooling": "mean"}, "pooling is for kind bi_encoder, and this teacher is of kind encoder"),
        ({"kind": "biencoder"}, "teachers.0.kind"),
        (
            {"file": "x", "holds": "logit", "epochs": 5},
            "epochs is for kind encoder, which is trained here, and this teacher is of kind scores",
        ),
        ({"model": "x", "kind": "bi_encoder", "learning_rate": 0.1}, "what fine-tunes a bi_encoder is under `tune`"),
        ({"model": "x", "kind": "bi_encoder", "tune": {}, "seed": 1}, "seed is for kind encoder"),
        ({"checkpoint": "x", "epochs": 9}, "epochs is for kind encoder"),
        ({"endpoint": {"url": "http://a"}, "max_length": 64}, "max_length is for teachers that are models run here"),
        ({"scores": "s", "column": "x"}, "column is for a file of scores"),
    ],
)
def test_keys_of_another_kind_are_refused(tmp_path: Path, teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
        parse_recipe(content(tmp_path, teachers=[{"name": "a", **teacher}], **TKD), "test")


def test_a_recorded_teacher_may_have_keys_that_it_does_not_read(tmp_path: Path) -> None:
    cosine = {"name": "a", "kind": "bi_encoder", "model": "x"}
    written = content(tmp_path, teachers=[{**cosine, "seed": 3, "epochs": 9}], **TKD)
    assert parse_recorded_recipe(written, "test") == parse_recipe(content(tmp_path, teachers=[cosine], **TKD), "test")


def test_a_file_of_scores_is_joined_counted_and_refused_where_it_has_gaps(tmkd: Tmkd, tmp_path: Path) -> None:
    rows = pair_rows(4)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    scored = [{"pair_id": one, "score": 3.0 * int(str(row["label"])) + n % 3}
              for n, (one, row) in enumerate(zip(pairs.pair_ids, rows, strict=True))]  # fmt: skip
    file = write_jsonl(tmp_path / "judge.jsonl", [*scored, {"pair_id": "none of ours", "score": 1}])
    judge = {"name": "judge", "file": str(file), "holds": "logit", "calibrate": "platt"}
    recipe = recipe_of(tmp_path, teachers=[judge], **TKD)
    done = tmkd("run", recipe)
    assert "teacher judge: 1 of the 129 scores of" in " ".join(done.stderr.split())
    report = json.loads(Path("workspace/runs/kinds/report/results.json").read_text())
    assert [row["name"] for row in report["methods"]] == ["teacher:judge", "tkd"]
    assert report["methods"][0]["auc"]["mean"] == 1

    for kept, message in ((scored[1:], "no score for 1 of"), ([], "none of the 1 scores of")):
        write_jsonl(file, [*kept, {"pair_id": "none of ours", "score": 1}])
        done = tmkd("label", recipe, check=False)
        assert done.returncode == 1
        assert message in " ".join(done.stderr.split())


def test_a_file_of_scores_for_other_parts_than_the_training_pairs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge = {"name": "judge", "file": str(tmp_path / "judge.jsonl"), "holds": "logit"}
    keys: dict[str, Any] = {"teachers": [COSINE, judge], "methods": ["teacher", "tkd"], "take": "tkd"}
    given = parse_recipe(content(tmp_path, **keys), "test")
    data = Run(given, tmp_path / "workspace").data
    parts = {"train": data.train, "dev": data.dev, "test": data.test}

    def scores(*names: str) -> list[dict[str, Any]]:
        rows = [(part, row) for name in names for part in [parts[name]] for row in range(len(part))]
        return [{"qid": part.qids[row], "question": part.questions[row], "passage": part.passages[row],
                 "score": int(part.labels[row])} for part, row in rows]  # fmt: skip

    write_jsonl(tmp_path / "judge.jsonl", scores("dev", "test"))
    with caplog.at_level("INFO", logger="tmkd"):
        run = Run(given, tmp_path / "workspace")
        run.label()
        best = run.labels.best_of(run.recipe.chosen_methods[1])
    assert run.labels.teachers[best][0].name == "cosine", "the best on the development set has no training pair"
    assert "every value is a whole number from 0 to 1: these look like grades" in caplog.text
    pool = [{"question": f"What is {name}?", "passage": f"Nothing says what {name} is."} for name in "abcdef"]
    own = {**content(tmp_path)["data"], "pool": str(write_jsonl(tmp_path / "pool.jsonl", pool))}
    write_jsonl(tmp_path / "judge.jsonl", [*scores("dev"), *({**row, "score": 0.5} for row in pool)])
    each = {**keys, "methods": ["teacher", "tmkd"], "take": "tmkd", "data": own}
    with pytest.raises(DataError, match=r"has scores of the pool, and none of the \d+ training pairs"):
        Run(parse_recipe(content(tmp_path, **each), "test"), tmp_path / "workspace").label()
    write_jsonl(tmp_path / "judge.jsonl", [{"qid": "1", "pid": "1", "score": 1}])
    with pytest.raises(DataError, match="It names pairs by qid and pid: are these the run's own"):
        Run(given, tmp_path / "workspace").label()


def test_a_served_teacher_that_stops_is_taken_up_and_asked_for_nothing_twice(tmkd: Tmkd, tmp_path: Path) -> None:
    with stub(ranks) as server:
        endpoint = {"url": server.url, "request_size": 1, "max_requests": 9}
        recipe = recipe_of(tmp_path, teachers=[{"name": "big", "endpoint": endpoint, "calibrate": "none"}], **TKD)
        done = tmkd("label", recipe, check=False)
        assert done.returncode == 1
        assert "max_requests: 9 requests are spent" in " ".join(done.stderr.split())
        tmkd("label", recipe, "teachers.0.endpoint.max_requests=null")
        asked = [(body["query"], body["texts"][0]) for body in server.asked]
    assert len(asked) == len(set(asked)) == len(raw_scores())


def test_answers_of_an_unfinished_store_are_not_asked_for_again(tmp_path: Path) -> None:
    pairs = Pairs.build([f"question {n}" for n in range(100)], [n * "x" for n in range(1, 101)])
    workspace = Workspace(tmp_path)
    with stub(ranks) as server:

        def big(most: int) -> ServedTeacher:
            return ServedTeacher(Endpoint(url=server.url, request_size=1, max_requests=most), "big")

        with pytest.raises(EndpointError, match="max_requests"):
            label_stored(workspace, big(60), pairs)
        (partial,) = tmp_path.glob("steps/labels-*.partial")
        before = {path.name: path.read_bytes() for path in partial.iterdir()}
        store = label_stored(workspace, big(1000), pairs.take(range(70)))  # as where a row of the pool is left out
        asked = {body["query"] for body in server.asked}
        assert len(server.asked) == len(asked) == len(asked | set(pairs.questions[:70])) < 100
        assert store.logits_for(pairs.pair_ids[:70])[:, 0].tolist() == [len(text) for text in pairs.passages[:70]]
        assert {path.name: path.read_bytes() for path in partial.iterdir()} == before
        next(partial.glob("part-*")).unlink()  # as where the process that writes it merges its parts
        label_stored(workspace, big(1000), pairs.take(range(60, 100)))
        assert {body["query"] for body in server.asked} == set(pairs.questions)


def test_a_key_is_needed_where_something_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", "secret")
    with stub(ranks) as server:
        endpoint = {"url": server.url, "api_key_env": "BIG_KEY"}
        mine = {"name": "mine", "seed": 1, **NUMBERS}
        teachers = [{"name": "big", "endpoint": endpoint, "calibrate": "none"}, mine]
        recipe = parse_recipe(content(tmp_path, teachers=teachers, methods=["teacher", "tmkd"]), "test")
        Run(recipe, Workspace(tmp_path / "workspace")).run()
        assert {one["Authorization"] for one in server.headers} == {"Bearer secret"}
        monkeypatch.delenv("BIG_KEY")
        asked = len(server.asked)
        recorded = json.loads((tmp_path / "workspace/runs/kinds/manifest.json").read_text())["steps"]
        again = Run(recipe, Workspace(tmp_path / "workspace"))
        again.run()
        assert again.workspace.built == 0
        assert json.loads((tmp_path / "workspace/runs/kinds/manifest.json").read_text())["steps"] == recorded
        assert export_labels(tmp_path / "workspace/runs/kinds", tmp_path / "labels.csv").rows["train"]
        assert len(server.asked) == asked
        for keys in ({}, {"methods": ("teacher", "finetune"), "take": "finetune"}):
            fresh = Run(recipe.model_copy(update=keys), Workspace(tmp_path / "other"))
            with pytest.raises(EndpointError, match="the environment has no BIG_KEY"):
                fresh.run()
            assert fresh.workspace.used == [], "nothing is trained before"
        monkeypatch.setenv("BIG_KEY", "secret")
        Run(recipe, Workspace(tmp_path / "other")).label()  # a run that stops before its report
        monkeypatch.delenv("BIG_KEY")
        with pytest.raises(EndpointError, match="the environment has no BIG_KEY"):
            Run(recipe, Workspace(tmp_path / "other")).run()


def test_no_key_is_needed_where_a_shared_address_has_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_of(workspace: str) -> Run:
        return Run(recipe, Workspace(tmp_path / workspace, labels=Place.at(tmp_path / "shared")))

    monkeypatch.setenv("BIG_KEY", "secret")
    with stub(ranks) as server:
        endpoint = {"url": server.url, "api_key_env": "BIG_KEY"}
        teachers = [{"name": "big", "endpoint": endpoint}, {"name": "mine", "seed": 1, **NUMBERS}]
        recipe = parse_recipe(content(tmp_path, teachers=teachers, methods=["teacher", "tmkd"]), "test")
        run_of("one").label()
        monkeypatch.delenv("BIG_KEY")
        with pytest.raises(EndpointError, match="the environment has no BIG_KEY"):
            run_of("two").run()  # the test set has no labels yet
        monkeypatch.setenv("BIG_KEY", "secret")
        run_of("one").run()
        monkeypatch.delenv("BIG_KEY")
        asked = len(server.asked)
        run_of("two").run()
        assert len(server.asked) == asked


def test_labels_of_an_unfinished_store_of_another_precision_are_not_taken(tmp_path: Path) -> None:
    pairs = Pairs.build(["a?", "b?", "c?"], ["x", "y", "z"])
    header = {"teacher": "t", "classes": 1, "dtype": "float32"}

    def store_of(count: int, precision: str, value: float, *, stops: bool = False) -> Any:
        def scored(some: Pairs) -> Iterator[Scored]:
            yield np.arange(len(some)), np.full((len(some), 1), value, dtype=np.float32)
            if stops:
                raise EndpointError("stopped", url="")

        some = pairs.take(range(count))
        about = depends_on(settings={"precision": precision}, inputs={"model": "t", "pairs": some})
        return stored(Workspace(tmp_path), Labels("labels", header, about, some, "t"), scored)

    with pytest.raises(EndpointError, match="stopped"):
        store_of(3, "fp32", 1.0, stops=True)
    assert store_of(2, "bf16", 2.0).logits_for(pairs.pair_ids[:2])[:, 0].tolist() == [2, 2]
    assert store_of(2, "fp32", 3.0).logits_for(pairs.pair_ids[:2])[:, 0].tolist() == [1, 1]


def test_scores_of_an_endpoint_are_of_the_class_that_is_right_and_asked_for_once(tmp_path: Path) -> None:
    def run_of(positive: int, calibrate: str) -> Run:
        teacher = {"name": "big", "endpoint": {"url": server.url}, "calibrate": calibrate}
        recipe = content(tmp_path, teachers=[teacher], **TKD)
        recipe["data"]["positive"] = positive
        return Run(parse_recipe(recipe, "test"), Workspace(tmp_path / "workspace"))

    def relevance(body: dict[str, Any], _: int) -> tuple[int, Any]:
        return 200, [{"index": n, "score": right.get((body["query"], text), 0)} for n, text in enumerate(body["texts"])]

    right = {(str(row["question"]), str(row["passage"])): int(str(row["label"])) for row in pair_rows(4)}
    with stub(relevance) as server:
        one, other = run_of(1, "none"), run_of(0, "none")
        train = one.data.train
        (logits,), (mirrored,) = one.labels.logits(train, "train"), other.labels.logits(train, "train")
        np.testing.assert_array_equal(mirrored, logits[:, ::-1])
        found = [run.labels.targets(run.recipe.chosen_methods[1], train, "train") for run in (one, other)]
        assert found[0].names != found[1].names, "a student of the one is no student of the other"  # type: ignore[union-attr]
        assert run_of(1, "platt").labels.calibration(0) is not None
        with pytest.raises(DataError, match=r"scores fall where the training labels rise .*Check its model"):
            run_of(0, "platt").labels.calibration(0)
        asked = [(body["query"], text) for body in server.asked for text in body["texts"]]
        assert len(asked) == len(set(asked)), "nothing is asked twice"


def test_a_teacher_that_labels_only_a_part_of_the_pairs(tmkd: Tmkd, tmp_path: Path) -> None:
    rows = pair_rows(4)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    scored = [{"pair_id": one, "score": 3.0 * int(str(row["label"])) + n % 3}
              for n, (one, row) in enumerate(zip(pairs.pair_ids, rows, strict=True)) if n % 3]  # fmt: skip
    file = write_jsonl(tmp_path / "judge.jsonl", scored)
    judge = {"name": "judge", "file": str(file), "holds": "logit", "calibrate": "platt"}
    keys: dict[str, Any] = {"teachers": [COSINE, {**judge, "partial": True}], "methods": ["teacher", "tmkd"]}
    recipe = recipe_of(tmp_path, **{**keys, "teachers": [COSINE, judge]})
    done = tmkd("label", recipe, check=False)
    assert "or say `partial: true`" in " ".join(done.stderr.split())

    done = tmkd("run", recipe_of(tmp_path, **keys))
    report = json.loads(Path("workspace/runs/kinds/report/results.json").read_text())
    run = Run.open("workspace/runs/kinds")
    known = {str(one["pair_id"]) for one in scored}
    coverage = report["coverage"]["judge"]
    for part, there in (("train", run.data.train), ("dev", run.data.dev), ("test", run.data.test)):
        assert coverage[part] == {"pairs": len(there), "labelled": len(known & set(there.pair_ids))}
    assert 0 < coverage["train"]["labelled"] < coverage["train"]["pairs"]
    said = f"teacher judge labels {coverage['train']['labelled']:,} of {coverage['train']['pairs']:,} train pairs"
    assert said in " ".join(done.stderr.split())
    assert "What partial teachers label" in Path("workspace/runs/kinds/report/report.html").read_text()
    assert [row["name"] for row in report["methods"]] == ["teacher:cosine", "tmkd"]  # the test set has gaps
    gaps = coverage["test"]["pairs"] - coverage["test"]["labelled"]
    assert report["unmeasured"] == {"judge": f"it has no score for {gaps:,} of {coverage['test']['pairs']:,} pairs"}
    assert report["standing"][-1] == f"Not measured on these pairs: judge ({report['unmeasured']['judge']})."
    assert report["taught_by"] == 2
    page = Path("workspace/runs/kinds/report/report.html").read_text()
    assert "2 teachers became one student" in page
    assert "of cosine&#39;s ROC-AUC" in page
    targets = run.labels.targets(run.recipe.chosen_methods[1], run.data.train, "train")
    assert targets is not None
    assert targets.weights is not None
    there_is = np.array([one in known for one in run.data.train.pair_ids])
    np.testing.assert_allclose(targets.weights[there_is], 0.5)
    np.testing.assert_allclose(targets.weights[~there_is], [[1, 0]] * int((~there_is).sum()))
    calibration = json.loads((run.labels.calibration(1).folder / "calibration.json").read_text())  # type: ignore[union-attr]
    assert calibration["fitted_on"]["pairs"] == coverage["train"]["labelled"]


def test_a_partial_column_and_what_partial_is_not_for(tmp_path: Path) -> None:
    rows = [{**row, "judge": n % 5 if n % 2 else None} for n, row in enumerate(pair_rows(4))]
    write_jsonl(tmp_path / "train.jsonl", rows)
    tiny("bert", tmp_path / "encoder", max_position_embeddings=128)
    data = {"train": str(tmp_path / "train.jsonl"), "hold_out": {"dev": 0.2, "test": 0.2}, "scores": {"judge": "logit"}}
    judge = {"name": "judge", "scores": "judge", "partial": True}
    run = Run(parse_recipe(content(tmp_path, data=data, teachers=[COSINE, judge], **TKD), "test"),
              Workspace(tmp_path / "workspace"))  # fmt: skip
    _, logits = run.labels.logits(run.data.train, "train")
    assert 0 < int(np.isnan(logits[:, 1]).sum()) < len(logits)
    assert run.labels.measured == [0]
    for change, message in (
        ({"teachers": [{**COSINE, "partial": True}]}, "partial is for scores made elsewhere"),
        ({"teachers": [COSINE, judge], "ensemble": "stacked"}, r"needs every teacher's label, .* set ensemble: mean"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe(content(tmp_path, data=data, **change, **TKD), "test")


def test_a_judge_that_refuses_some_pairs_teaches_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "prompt.txt").write_text("{question} | {passage}")
    refusing = set[str]()

    def judged(body: dict[str, Any], _: int) -> tuple[int, Any]:
        text = "I cannot say." if body["messages"][0]["content"] in refusing else "Yes"
        return 200, {"choices": [{"message": {"content": text}}]}

    with stub(judged) as server:
        endpoint = {"url": server.url, "form": "chat", "model": "m", "prompt": str(tmp_path / "prompt.txt"),
                    "answers": {"yes": 0.9, "no": 0.1}}  # fmt: skip
        judge = {"name": "judge", "endpoint": endpoint, "partial": True, "calibrate": "none"}
        run = Run(parse_recipe(content(tmp_path, teachers=[COSINE, judge]), "test"), Workspace(tmp_path / "workspace"))
        train = run.data.train
        named = [f"{question} | {passage}" for question, passage in train.texts()]
        refusing |= {*named[:3], named[-1]}
        targets = run.labels.targets(run.recipe.chosen_methods[2], train, "train")
        asked = len(server.asked)
        again = Run(run.recipe, Workspace(tmp_path / "workspace"))  # as another command does
        again.labels.logits(train, "train")
        assert len(server.asked) == asked == len(set(train.pair_ids)), "what it refused is not asked about again"
    refused = np.array([one in refusing for one in named])
    assert targets is not None
    assert targets.weights is not None
    np.testing.assert_allclose(targets.weights[~refused], 0.5)
    np.testing.assert_allclose(targets.weights[refused], [[1, 0]] * int(refused.sum()))
    assert "pairs are left out, since its answer cannot be used; the first: teacher judge" in caplog.text
