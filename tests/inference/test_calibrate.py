"""The no-answer threshold and the temperature: chosen by the criterion that is stated, measured on other questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Tmkd, write_jsonl
from export_fixtures import exported
from qa_fixtures import OverlapScorer, asked, index_of

from tmkd.core.errors import DataError, ExportError
from tmkd.inference.qa import Calibration, QuestionAnswerer
from tmkd.inference.qa.calibrate import (
    CalibrationResult,
    Outcomes,
    area,
    best_f1,
    calibrate,
    risk_coverage,
    with_room,
    within_risk,
)
from tmkd.inference.qa.calibration import FILE, of_the_same_student
from tmkd.inference.qa.cases import ask_all, from_file, scored_pairs
from tmkd.inference.qa.report import write_report
from tmkd.inference.qa.retrieval_weights import candidates_recall, reciprocal_rank, with_retrieval
from tmkd.inference.qa.temperature import calibration_error, fit_temperature

TEXTS = {f"{name}.md": f"The {name} command changes a {name} at once." for name in ("disk", "file", "port", "key")}


def outcomes(count: int = 40, seed: int = 0) -> Outcomes:
    """Scores that tell a little about what is right; some equal, one question that found nothing."""
    generator = np.random.default_rng(seed)
    present = np.arange(2 * count) < count
    right = present & (generator.random(2 * count) < 0.7)
    scores = np.round(generator.normal(size=2 * count) + 1.5 * right.astype(float), 1)
    scores[-1] = -np.inf
    return Outcomes(scores, right, present)


def test_the_temperature_is_the_one_that_the_labels_were_drawn_with() -> None:
    generator = np.random.default_rng(0)
    odds = generator.normal(size=40_000) * 2
    labels = (generator.random(40_000) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    for temperature in (0.4, 1.0, 3.0):
        assert fit_temperature(odds * temperature, labels) == pytest.approx(temperature, rel=0.05)
    sure = calibration_error(1 / (1 + np.exp(-3 * odds)), labels)
    assert calibration_error(1 / (1 + np.exp(-odds)), labels) < 0.02 < sure
    with pytest.raises(DataError, match="both labels"):
        fit_temperature(odds, np.ones(40_000, dtype=np.int64))


def test_separated_pairs_keep_their_probabilities_from_0_and_1(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(8) % 2
    signs = np.where(labels == 1, 1.0, -1.0)
    for size in (1.2, 8.0):
        temperature = fit_temperature(size * signs, labels)
        assert Calibration(temperature).probability(size) == pytest.approx(5 / 6)  # four pairs and two more, one wrong
    assert "all 8 development pairs have the right sign" in caplog.text
    many = fit_temperature(np.tile(signs, 1000), np.tile(labels, 1000))
    assert Calibration(many).probability(1.0) == pytest.approx(4001 / 4002)
    caplog.clear()
    assert fit_temperature(-signs, labels) == fit_temperature(np.zeros(8), labels) == 100
    assert "do not tell the right passages from the others" in caplog.text
    caplog.clear()
    tiny = np.where(np.arange(42) < 40, 1e-4, -1e-4)  # two of the wrong sign
    assert fit_temperature(tiny, np.ones(42, dtype=np.int64) - (np.arange(42) == 0)) == 0.01
    assert "right sign" not in caplog.text
    assert "so close to 0 that the temperature ends at its bound, 0.01" in caplog.text
    caplog.clear()
    fit_temperature(np.array([2.0, 1.0, -3.0, 0.5]), np.array([1, 1, 0, 0]))
    assert not caplog.records


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([0.01, 0.05, 0.99, 1.0])
    labels = np.array([0, 1, 1, 1])
    assert calibration_error(probabilities, labels) == pytest.approx((0.94 + 0.01) / 4)


def test_the_threshold_of_the_best_f1_is_found() -> None:
    for seed in range(5):
        one = outcomes(seed=seed)

        def f1(least: float, one: Outcomes = one) -> float:
            given = one.scores >= least
            return float(2 * (given & one.right).sum() / (given.sum() + one.present.sum()))

        assert f1(best_f1(one)) == max(f1(least) for least in one.scores[np.isfinite(one.scores)])
        counts = one.at(best_f1(one))
        assert f1(best_f1(one)) == pytest.approx(2 * counts["right"].sum() / (counts["given"] + 1).sum())


def test_the_lowest_threshold_within_a_risk_is_found() -> None:
    one = outcomes()
    least = within_risk(one, 0.3)

    def risk(least: float) -> float:
        return float(1 - one.right[one.scores >= least].mean())

    assert risk(least) <= 0.3
    below = [lower for lower in one.scores[np.isfinite(one.scores)] if lower < least]
    assert below
    assert min(risk(lower) for lower in below) > 0.3
    wrong = Outcomes(one.scores, np.zeros_like(one.right), one.present)
    with pytest.raises(
        DataError, match=r"no threshold keeps the share of wrong answers at 0\.2; the least .* is 1\.00"
    ):
        within_risk(wrong, 0.2)


def test_risk_over_coverage() -> None:
    one = Outcomes(
        np.array([3.0, 2.0, 1.0, -np.inf]), np.array([True, False, True, False]), np.array([True, True, False, False])
    )
    assert risk_coverage(one) == {"coverage": [0.25, 0.5, 0.75], "risk": [0.0, 0.5, 0.3333]}
    assert area(one) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_the_retrieval_weight_is_the_least_of_the_best_reciprocal_rank() -> None:
    questions = [asked("q1", "axy", "xay", "a"), asked("q2", "bxy", "bxy", "by"), asked("q3", "xy", "xy", "c")]
    assert reciprocal_rank(questions, Calibration()) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert reciprocal_rank(questions, Calibration(retrieval_weight=1.0)) == pytest.approx((1 + 1 + 0) / 3)
    assert with_retrieval(questions) == Calibration(retrieval_weight=1.0)
    assert with_retrieval(questions[1:]) == Calibration()


def test_the_share_of_dense_search_is_the_one_that_finds_most_right_passages() -> None:
    by_words = asked("q1", "abcd", "abcdwxyz", "abcd", by_dense="wxyz")
    by_meaning = asked("q2", "abcd", "abcdwxyz", "wxyz", by_dense="wxyz")
    for questions, share in (([by_words], 0.2), ([by_meaning], 0.8)):
        found = with_retrieval(questions)
        assert candidates_recall(questions, found.dense_share) == 1
        assert (found.dense_share < 0.5) == (share < 0.5)
        assert candidates_recall(questions, 1 - found.dense_share) < 1
    assert candidates_recall([by_words], 0.0) == candidates_recall([by_meaning], 1.0) == 1


def test_the_weight_of_the_cosine_is_chosen_like_that_of_bm25() -> None:
    questions = [asked("q1", "abcd", "abcd", "d", by_dense="dcba")]  # the student and BM25 are both wrong
    found = with_retrieval(questions)
    assert (found.retrieval_weight, found.dense_weight) == (0.0, 20.0)  # d is 3 behind, and 0.24 nearer
    first = questions[0].ranked(found)[0]
    assert (first.retrieved.pid, first.score) == ("d", -3.0)  # the nearest loses nothing


def test_an_answer_at_the_threshold_is_given() -> None:
    one = Outcomes(
        np.array([1.0, 0.9, 1.0, -np.inf]), np.array([True, True, False, False]), np.array([True, True, False, False])
    )
    counts = {name: values.tolist() for name, values in one.at(1.0).items()}
    assert counts == {"given": [2.0, 0.0], "right": [1.0, 0.0], "given_without_sources": [1.0, 0.0]}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = []
    names = list(TEXTS)
    for place, key in enumerate(names):
        name = key.removesuffix(".md")
        for other in (place, (place + 1) % len(names)):
            passage, label = TEXTS[names[other]], int(other == place)
            rows.append({"question": f"Which command changes a {name}?", "passage": passage, "label": label})
    rows.append({"question": "Which is nowhere?", "passage": "Nowhere in the index.", "label": 1})
    return write_jsonl(tmp_path / "dev.jsonl", rows)


@pytest.fixture
def answerer(tmp_path: Path) -> QuestionAnswerer:
    return QuestionAnswerer(OverlapScorer(), index_of(tmp_path / "index", TEXTS))


def test_questions_are_asked_with_and_without_their_sources(answerer: QuestionAnswerer, pairs: Path) -> None:
    questions = ask_all(answerer, from_file(pairs, answerer.index), 10)
    assert len(questions) == 4  # the fifth has no answer in the index
    for one in questions:
        assert one.ranked(Calibration())[0].retrieved.pid in one.case.right
        without = one.ranked(Calibration(), sources=False)
        assert without
        assert not {ranked.found.document for ranked in without} & one.case.documents
    assert isinstance(answerer.scorer, OverlapScorer)
    scored = answerer.scorer.asked
    assert len(scored) == len(set(scored))


def test_calibrate_writes_what_ask_then_uses(answerer: QuestionAnswerer, pairs: Path, tmp_path: Path) -> None:
    material = from_file(pairs, answerer.index)
    found = calibrate(answerer, material, material, candidates=10)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "probes.json").write_text("{}")
    found.save(tmp_path / "export")
    content = json.loads((tmp_path / "export" / FILE).read_text())
    assert content["test"] == content["development"]  # of the same material
    assert content["test"]["f1"]["mean"] == content["test"]["recall"]["mean"] == 1
    assert content["test"]["answered_without_sources"]["mean"] == 0
    chosen = Calibration.read(tmp_path / "export")
    assert chosen == found.calibration
    careful = QuestionAnswerer(answerer.scorer, answerer.index, calibration=chosen)
    assert careful.ask("Which command changes a disk?").answered
    assert not careful.ask("Which command changes a mouse?").answered
    write_report(content, tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text()
    assert "<svg" in page
    assert "dev.jsonl" in page
    assert any("F1 1.000" in sentence for sentence in found.sentences())


@pytest.fixture
def separated(tmp_path: Path) -> Path:
    """Pairs whose scores all have the right sign; without its sources a question finds passages with scores above 0."""
    rows = []
    for name, passage in TEXTS.items():
        question = f"Which command changes a {name.removesuffix('.md')}?"
        rows.append({"question": question, "passage": passage, "label": 1})
        rows.append({"question": question, "passage": "Nothing of it.", "label": 0})
    return write_jsonl(tmp_path / "separated.jsonl", rows)


@pytest.mark.parametrize("risk", [None, 0.0])
def test_what_is_measured_is_what_is_answered_where_probabilities_are_all_1(
    answerer: QuestionAnswerer, separated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, risk: float | None
) -> None:
    monkeypatch.setattr("tmkd.inference.qa.calibrate.fit_temperature", lambda *_: 0.01)
    found = calibrate(answerer, from_file(separated, answerer.index), None, candidates=10, risk=risk)
    assert found.report["development"]["answered_without_sources"]["mean"] == 0
    found.save(tmp_path)
    chosen = Calibration.read(tmp_path)
    assert (chosen, chosen.threshold) == (found.calibration, 1.0)
    careful = QuestionAnswerer(answerer.scorer, answerer.index, calibration=chosen)
    good, bad = careful.ask("Which command changes a disk?"), careful.ask("Which command changes a mouse?")
    assert (good.answered, bad.answered) == (True, False)
    assert good.answers[0].probability == bad.answers[0].probability == 1.0


def test_a_threshold_that_was_changed_decides_by_the_probability(tmp_path: Path) -> None:
    chosen = Calibration(2.0).from_score(1.0)
    assert [chosen.accepts(score) for score in (0.999999, 1.0)] == [False, True]
    CalibrationResult(chosen, {}).save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    assert content["threshold"] == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)
    for changes, least in (({"threshold": 0.5}, 0.0), ({"threshold": 0.9}, 4.3945), ({"temperature": 1}, 0.5)):
        (tmp_path / FILE).write_text(json.dumps({**content, **changes}))
        edited = Calibration.read(tmp_path)
        assert [edited.accepts(least + more) for more in (-0.001, 0.001)] == [False, True]
    (tmp_path / FILE).write_text(json.dumps({**content, "threshold": None}))
    assert Calibration.read(tmp_path).accepts(-1e6)
    del content["least_score"]  # an older file
    (tmp_path / FILE).write_text(json.dumps(content))
    assert [Calibration.read(tmp_path).accepts(score) for score in (0.999, 1.0)] == [False, True]


def test_the_answer_that_set_the_threshold_has_room_for_rounding() -> None:
    one = outcomes()
    for least in one.scores[np.isfinite(one.scores)]:
        lower = with_room(one, float(least))
        assert least - 1e-4 <= lower < least
        assert ((one.scores >= lower) == (one.scores >= least)).all()
    near = Outcomes(np.array([1.0, 1.0 - 1e-6]), np.array([True, False]), np.array([True, False]))
    assert 1.0 - 1e-6 < with_room(near, 1.0) < 1.0


def test_the_command_writes_into_the_export(pairs: Path, tmp_path: Path, tmkd: Tmkd) -> None:
    export = Path(shutil.copytree(exported("minilm") / "out", tmp_path / "export"))
    index_of(tmp_path / "index", TEXTS)
    arguments = ("calibrate", export, "--index", "index", "--candidates", "10")
    done = tmkd(*arguments, "--pairs", pairs, "--test", pairs, "--report", "report.html", "--json")
    content = json.loads(done.stdout)
    assert {**content, "student": ""} == {**json.loads((export / FILE).read_text()), "student": ""}
    assert content["development"] == content["test"]
    assert "4 questions: 1.000 of the right passages are candidates; MRR" in done.stderr
    assert "<svg" in (tmp_path / "report.html").read_text()
    chosen = Calibration.read(export)
    answers = json.loads(tmkd("ask", "disk", "--model", export, "--index", "index", "--json").stdout)
    assert answers["answers"][0]["probability"] == pytest.approx(chosen.probability(answers["answers"][0]["score"]))
    (export / FILE).write_text("{")  # a damaged one is written anew
    tmkd(*arguments, "--pairs", pairs, "--risk", "1")
    assert json.loads((export / FILE).read_text())["criterion"] == "at most 1 of the answers wrong"
    assert "--test without --pairs" in tmkd(*arguments, "--test", pairs, check=False).stderr


def test_what_a_quote_means_is_an_option(pairs: Path, tmp_path: Path, tmkd: Tmkd) -> None:
    export = Path(shutil.copytree(exported("minilm") / "out", tmp_path / "export"))
    index_of(tmp_path / "index", TEXTS)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    rows[0]["question"] = f'"{rows[0]["question"]}'  # a quote that is never closed
    names = [name for name in ("question", "passage", "label", "qid") if name in rows[0]]
    lines = ["\t".join(names), *("\t".join(str(row[name]) for name in names) for row in rows)]
    table = tmp_path / "pairs.tsv"
    table.write_text("\n".join(lines) + "\n")
    arguments = ("calibrate", export, "--index", "index", "--pairs", table, "--candidates", "5", "--quoting")
    assert "pairs.tsv:2" in tmkd(*arguments, "csv", check=False).stderr.replace("\n", "")
    tmkd(*arguments, "none")
    assert (export / FILE).is_file()


def test_labels_of_a_task_whose_right_passages_have_label_0(answerer: QuestionAnswerer, pairs: Path) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    turned = pairs.with_name("turned.jsonl")
    turned.write_text("".join(json.dumps({**row, "label": 1 - row["label"]}) + "\n" for row in rows))
    wanted, found = from_file(pairs, answerer.index), from_file(turned, answerer.index, positive=0)
    assert found.cases == wanted.cases
    assert scored_pairs(answerer, found) == scored_pairs(answerer, wanted)


def test_a_calibration_stays_with_its_student(tmp_path: Path) -> None:
    for name, probes in (("old", "{}"), ("same", "{}"), ("other", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "probes.json").write_text(probes)
    assert of_the_same_student(tmp_path / "old", tmp_path / "same") is None
    CalibrationResult(Calibration(1.5, 0.25), {}).save(tmp_path / "old")
    kept = of_the_same_student(tmp_path / "old", tmp_path / "same")
    assert kept is not None
    for name in ("same", "other"):
        (tmp_path / name / FILE).write_text(kept)
    assert Calibration.read(tmp_path / "same") == Calibration(1.5, 0.25)
    assert of_the_same_student(tmp_path / "old", tmp_path / "other") is None
    with pytest.raises(ExportError, match="was made for another student"):
        Calibration.read(tmp_path / "other")


def test_pairs_of_other_passages_are_refused(answerer: QuestionAnswerer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"question": "a", "passage": "b", "label": 1}])
    with pytest.raises(DataError, match=r"none of the passages that it labels 1 is in .*index"):
        from_file(path, answerer.index)
    path = write_jsonl(tmp_path / "named.jsonl", [{"query": "a", "passage": "b", "label": 1}])
    with pytest.raises(DataError, match=r"no column 'question'.*are called question, passage and label; rename yours"):
        from_file(path, answerer.index)


@pytest.mark.parametrize(
    "content",
    [
        '{"format": 1, "temperature": 1, "threshold": null, "retrieval_weight": -1}',
        '{"format": 1, "temperature": 1, "threshold": null, "dense_weight": "much"}',
        '{"format": 1, "temperature": 1, "threshold": null, "dense_share": 1.5}',
        '{"format": 1, "temperature": 1, "threshold": 0.5, "least_score": NaN}',
        '{"format": 1, "temperature": 1, "threshold": 0.5, "candidates": "many"}',
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 1, "temperature": 0, "threshold": null}',
        '{"format": 2}',
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path: Path, content: str) -> None:
    assert Calibration.read(tmp_path) == Calibration()
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ExportError, match=r"calibration\.json|the temperature is 0|the retrieval weight is -1"):
        Calibration.read(tmp_path)


def test_an_older_calibration_has_the_usual_share_of_dense_search(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": 1, "temperature": 2, "threshold": null, "retrieval_weight": 0.7}')
    found = Calibration.read(tmp_path)
    assert found == Calibration(2.0, None, 0.7)
    assert (found.dense_weight, found.dense_share) == (0.0, 0.7)


def test_probabilities_of_any_score() -> None:
    assert [Calibration().probability(score) for score in (-1e6, 0.0, 1e6)] == pytest.approx([0, 0.5, 1])
    assert Calibration(2.0).probability(2.0) == pytest.approx(1 / (1 + np.exp(-1)))
    assert Calibration(2.0).probability(-1.0) == pytest.approx(1 / (1 + np.exp(0.5)))
