"""The report: names in its charts do not overlap, everything given is shown, and missing parts are absent."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import logits
from rich.console import Console

from tmkd.data.pairs import Pairs, Reference
from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.charts import learning_curves, quality_against_latency, spread
from tmkd.evaluation.comparison import ComparisonOptions, compare
from tmkd.evaluation.report import headline, write_report
from tmkd.evaluation.results import Kind, ModelOutput, ModelResult, Results

SMALL = ("bilstm", "finetune", "1-o-1", "1avg-o-1", "mkd", "tkd", "1avg-tkd", "tmkd")


def many() -> Results:
    """Three teachers, their ensemble and every small method; all small ones take the same time."""
    generator = np.random.default_rng(0)
    pairs = Pairs.build([f"q{i // 9}" for i in range(360)], [f"p{i}" for i in range(360)], labels=([1] + [0] * 8) * 40)

    def model(name: str, kind: Kind, strength: float, milliseconds: float) -> ModelOutput:
        odds = strength * pairs.labels - 1 + generator.normal(size=(1, len(pairs)))
        return ModelOutput(
            name, kind, logits(odds), parameters=10_000_000, bytes=40_000_000, layers=3 if milliseconds < 50 else 6,
            pairs_per_second=25_000 / milliseconds, milliseconds={25: milliseconds},
        )  # fmt: skip

    outputs = [model(f"teacher:t{i}", "teacher", 2.0, 60.0) for i in (1, 2, 3)]
    outputs.append(model("teacher-ensemble", "ensemble", 2.3, 180.0))
    for place, name in enumerate(SMALL):
        outputs.append(model(name, "student" if "kd" in name else "baseline", 1 + place / 9, 30.0))
    return compare(pairs, outputs, classes=2, task="t", options=ComparisonOptions(resamples=100))


def accuracy_only() -> Results:
    """Three classes, one teacher, nothing timed."""
    labels = [0, 1, 2] * 10
    pairs = Pairs.build([f"premise {i // 3}" for i in range(30)], [f"h{i}" for i in range(30)], labels=labels)
    outputs = [ModelOutput("teacher:a", "teacher", np.eye(3)[labels][None], layers=6),
               ModelOutput("tmkd", "student", np.eye(3)[labels][None], layers=1)]  # fmt: skip
    return compare(pairs, outputs, classes=3, task="nli", options=ComparisonOptions(resamples=50))


def test_every_model_is_named_in_the_chart_and_no_two_names_overlap() -> None:
    svg = quality_against_latency(many())
    ElementTree.fromstring(svg)
    boxes = []
    for x, y, name in re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)', svg):
        if name in (*SMALL, "teacher-ensemble") or name.startswith("teacher:"):
            boxes.append((float(x), float(y), 6.0 * len(name), name))
    assert {box[3] for box in boxes} == {*SMALL, "teacher-ensemble", "teacher:t1", "teacher:t2", "teacher:t3"}
    for place, (x, y, width, name) in enumerate(boxes):
        for other_x, other_y, other_width, other in boxes[:place]:
            apart = abs(y - other_y) >= 11 or x + width < other_x or other_x + other_width < x
            assert apart, f"{name} meets {other}"


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([50.0, 20.0], [50, 20]),  # far apart: left alone
        ([50.0, 49.0, 48.0], [50, 40, 30]),
        ([12.0, 11.0], [20, 10]),  # pushed up from the floor
        ([99.0, 98.0], [90, 80]),  # and down from the ceiling
    ],
)
def test_names_are_spread_no_further_than_needed(heights: list[float], expected: list[float]) -> None:
    assert spread(heights, 10, bottom=10, top=90) == expected


def test_charts_follow_the_pages_colours_and_share_no_id() -> None:
    svg = quality_against_latency(many())
    assert "var(--student)" in svg
    assert "currentColor" in svg
    assert not re.search(r"#1[02]\d{4}", svg)
    assert '<g id="' not in svg
    label = re.search(r'role="img" aria-label="([^"]*)"', svg)
    assert label is not None
    assert "tmkd 0." in label[1]
    assert "at 30 ms" in label[1]


def test_a_learning_curve_for_each_run_of_two_points_or_more() -> None:
    points = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    drawn = learning_curves({"a $x$ <b>": points, "one point": points[:1]})
    assert len(drawn) == 1
    ElementTree.fromstring(drawn[0])
    assert "a $x$ &lt;b&gt;" in drawn[0]
    assert "1 at the start, 0.333 at the end" in drawn[0]


def test_the_page_shows_the_students_differences_and_hides_the_others(tmp_path: Path) -> None:
    results = many()
    write_report(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    folded = page[page.index(" more, between the other models") : page.index("Paired bootstrap")]
    shown = page[page.index("Which differences are significant") : page.index(" more, between the other models")]
    lines = re.findall(r"<li[^>]*>([^<]*)</li>", shown)
    assert len(lines) == shown.count("<li") == 16  # ROC-AUC and MRR against seven methods and the ensemble
    assert all("tmkd" in line for line in lines)
    assert len(re.findall("<li", shown + folded)) == sum(d.metric in ("auc", "mrr") for d in results.differences)
    assert "ROC‑AUC kept<small>above chance</small>" in page
    assert not re.search(r"""(src|href)=["']?\s*(https?:)?//|@import|url\(\s*["']?(https?:)?//""", page)


def test_missing_parts_are_absent(tmp_path: Path) -> None:
    results = accuracy_only()
    results.taught_by = 1
    write_report(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    for absent in (
        "MRR",
        "ROC",
        "<svg",
        "speed</th>",
        "The export",
        "Learning curves",
        "Repeat this run",
    ):
        assert absent not in page
    assert headline(results) == (
        "1 teacher of 6 layers became one student of 1 layer that keeps 100.0% (100.0 to 100.0) of the teacher's "
        "accuracy."
    )
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored == results.to_json()
    assert not {"auc", "mrr", "map", "ndcg@10", "pairs_per_second", "milliseconds"} & set(stored["methods"][0])
    assert not list(tmp_path.glob("*.tmp"))


def test_the_ends_of_an_interval_are_told_apart_where_one_is_negative() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    for low, high, shown in ((-0.1, -0.02, "-0.10 to -0.02"), (-0.1, 0.02, "-0.10 to 0.02"), (0.71, 0.82, "0.71-0.82")):
        results = Results("t", 4, 2, [ModelResult("a", "student", 1, {"spearman": Interval(0.0, low, high)})], [])
        console.print(results.table())
        assert shown in console.export_text()


def test_the_terminals_table_names_what_is_kept() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(many().table())
    console.print(accuracy_only().table())
    text = console.export_text()
    assert "kept (AUC, MRR)" in text
    assert "kept (accuracy)" in text


def test_the_taken_model_is_compared_with_every_other_once() -> None:
    results = many()
    *sentences, seeds = results.verdicts()
    assert seeds.startswith("bilstm, finetune, 1-o-1, 1avg-o-1, mkd, tkd, 1avg-tkd and tmkd have one seed each: ")
    assert [sentence.split(" tmkd ")[0] for sentence in sentences] == ["In ROC-AUC", "In MRR"]
    for sentence in sentences:
        for name in (*SMALL[:-1], "teacher-ensemble"):
            assert len(re.findall(rf"[ ,]{name} (by|\()", sentence)) == 1, (name, sentence)
    baseline = results.verdicts("1-o-1")[0]  # a method without stage 1 may be the one that is taken
    assert re.search(r"1avg-o-1 (by|\()", baseline)
    assert results.to_json()["verdicts"] == [*sentences, seeds]


def test_what_is_not_trained_has_no_seed() -> None:
    results = many()
    results.methods[-1].name = "cosine (another run)"
    assert "cosine" not in results.verdicts("1-o-1")[-1]


def test_the_page_gives_the_verdict_in_a_sentence(tmp_path: Path) -> None:
    results = many()
    write_report(tmp_path, results)
    assert f"<p>{results.verdicts()[0]}</p>" in (tmp_path / "report.html").read_text()


def test_a_report_against_a_reference_says_so(tmp_path: Path) -> None:
    pairs = Pairs.build([f"q{i}" for i in range(8)], ["p"] * 8, scores={"judge": [0.1 * (i + 1) for i in range(8)]})
    logits = np.random.default_rng(0).normal(size=(1, 8, 2))
    outputs = [ModelOutput("tmkd", "student", logits)]
    referred = pairs.with_reference(Reference("judge", "probability"))
    results = compare(referred, outputs, classes=2, task="web", options=ComparisonOptions(resamples=20))
    write_report(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    assert "the score column <em>judge</em> is the reference" in page
    assert "Spearman" in page
    write_report(tmp_path, accuracy_only())
    assert "is the reference" not in (tmp_path / "report.html").read_text()
    table = io.StringIO()
    Console(file=table, width=200).print(results.table())
    assert "against the reference 'judge' (no golden labels)" in table.getvalue()


def test_the_report_says_what_became_of_the_rows(tmp_path: Path) -> None:
    results = many()
    results.data = {
        "train": {"read": 1200, "used": 1150, "left_out": {"held out as dev": 50}, "warnings": []},
        "test": {"read": 360, "used": 360, "left_out": {}, "warnings": ["every row is of one class"]},
    }
    write_report(tmp_path, results)
    page = " ".join(re.sub("<[^>]*>", " ", (tmp_path / "report.html").read_text()).split())
    assert "train 1,200 1,150 50: held out as dev" in page
    assert "test: every row is of one class" in page
    assert json.loads((tmp_path / "results.json").read_text())["data"] == results.data
