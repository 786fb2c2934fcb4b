"""What a study says: verdicts, tables and figures from logits whose truth is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pytest

from tmkd.config.load import parse_recipe
from tmkd.data.pairs import Pairs
from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.significance import Difference, verdict
from tmkd.pipeline.provenance import provenance
from tmkd.pipeline.study.page import write_study
from tmkd.pipeline.study.plan import Cell, Study
from tmkd.pipeline.study.results import MeasuredCell, StudyResults, compare_variants

SEEDS = [0, 1, 2]


def study(**keys: Any) -> Study:
    return Study.model_validate({"name": "s", "tasks": [{"recipe": "r"}], "seeds": SEEDS, **keys})


def rows(questions: int = 80) -> Pairs:
    """One positive among six passages of each question."""
    return Pairs.build(
        [f"question {i // 6}" for i in range(6 * questions)],
        [f"passage {i}" for i in range(6 * questions)],
        labels=([1] + [0] * 5) * questions,
    )


def outcome(
    asked: Study, strengths: list[float], tasks: tuple[str, ...] = ("t",), pairs: Pairs | None = None
) -> StudyResults:
    """Variants whose positives stand so many standard deviations above the rest; the noise of a seed is shared."""
    pairs = pairs or rows()
    cells = []
    for task in tasks:
        for variant, strength in zip(asked.all_variants(), strengths, strict=True):
            for seed in asked.seeds:
                noise = np.random.default_rng([seed, len(task)]).normal(size=len(pairs))
                own = np.random.default_rng([seed, len(task), int(100 * strength)]).normal(size=len(pairs)) / 10
                odds = strength * pairs.labels + noise + own
                recipe = SimpleNamespace(positive_class=1)
                cell = cast(Cell, SimpleNamespace(task=task, variant=variant, seed=seed, recipe=recipe))
                cells.append((cell, MeasuredCell(np.stack([-odds / 2, odds / 2], axis=-1), 12.0)))
    return compare_variants(asked, cells, dict.fromkeys(tasks, pairs))


NAMED = {"variants": {"plain": {}, "same": {"a": 1}, "better": {"a": 2}, "worse": {"a": 3}}}


def test_the_verdict_separates_what_is_real_from_what_is_not_shown() -> None:
    found = outcome(study(**NAMED), [1.0, 1.0, 1.6, 0.5])
    (sentence,) = found.sentences()
    said = re.fullmatch(
        r"In ROC-AUC plain is significantly better than worse by 0\.\d+ \(.*\); "
        r"it is significantly worse than better by 0\.\d+ \(.*\); "
        r"it does not differ significantly from same \(.*\)\.",
        sentence,
    )
    assert said, sentence
    real = {(d.first, d.second): d.significant for d in found.differences["t"] if d.metric == "mrr"}
    assert real == {
        ("same", "plain"): False, ("better", "plain"): True, ("worse", "plain"): True,
        ("better", "same"): True, ("worse", "same"): True, ("worse", "better"): True,
    }  # fmt: skip


def test_a_verdict_takes_the_side_of_the_one_it_is_about() -> None:
    difference = Difference("new", "old", "auc", Interval(0.02, 0.01, 0.03))
    assert verdict("old", [difference]) == "In ROC-AUC old is significantly worse than new by 0.020 (+0.010 to +0.030)."
    assert (
        verdict("new", [difference]) == "In ROC-AUC new is significantly better than old by 0.020 (+0.010 to +0.030)."
    )


def test_any_variant_can_be_the_one_that_others_are_held_against() -> None:
    found = outcome(study(grid={"student.layers": [1, 2, 3]}, against="layers=3"), [0.5, 1.0, 1.5])
    assert found.sentences()[0].startswith("In ROC-AUC layers=3 is significantly better than layers=1 by")
    assert found.against_reference("t", "layers=1", "auc") is not None
    assert [line[2] for line in found.lines()][2] == ""  # the reference has nothing to stand against


def test_many_variants_are_counted_in_the_lead() -> None:
    found = outcome(study(grid={"x": [1, 2, 3, 4, 5, 6]}), [1.0, 1.6, 1.5, 1.0, 0.2, 0.1])
    assert re.fullmatch(
        r"Of the 5 other variants 2 are significantly better in ROC-AUC than x=1 \(0\.\d+\), 2 significantly worse, "
        r"1 not significantly different; the highest is x=2 \(0\.\d+\)\.",
        found.lead(),
    ), found.lead()


def test_the_mean_over_tasks_has_what_every_task_has() -> None:
    found = outcome(study(**NAMED), [1.0, 1.0, 1.6, 0.5], tasks=("t", "other"))
    assert found.tasks == ["t", "other", "all"]
    value = {(row.task, row.variant): row.metrics["map"].mean for row in found.rows}
    assert value["all", "better"] == pytest.approx((value["t", "better"] + value["other", "better"]) / 2)
    assert [sentence.split(":")[0] for sentence in found.sentences()] == ["t", "other", "mean of all tasks"]
    width = {
        task: (d := next(d for d in found.differences[task] if (d.first, d.metric) == ("better", "auc"))).value.high
        - d.value.low
        for task in found.tasks
    }
    assert width["all"] < max(width["t"], width["other"])  # two tasks say more than one


def test_the_margin_looks_at_the_lower_bound() -> None:
    found = outcome(study(**NAMED, margin=0.02), [1.0, 1.0, 1.6, 0.5])
    assert found.no_worse == {"same": True, "better": False, "worse": True}
    assert "plain is not shown to be as good as better (margin 0.02)" in found.sentences()
    assert "no_worse" not in outcome(study(**NAMED), [1.0, 1.0, 1.6, 0.5]).to_json()


def test_one_question_shows_nothing() -> None:
    pairs = Pairs.build(["q"] * 4, list("abcd"), labels=[1, 0, 0, 1])
    found = outcome(study(variants={"a": {}, "b": {"x": 1}}), [0.5, 2.0], pairs=pairs)
    assert found.differences == {"t": []}
    assert found.sentences() == ["nothing to compare on one question"]


def charts(folder: Path) -> dict[str, str]:
    found = {path.name: path.read_text() for path in (folder / "figures").iterdir()}
    for text in found.values():
        ElementTree.fromstring(text)
        assert "var(--" not in text  # a file of its own has no style sheet
    return found


def test_a_grid_of_numbers_is_drawn_over_its_values(tmp_path: Path) -> None:
    sizes = [100, 1000, 10000]
    write_study(tmp_path, outcome(study(grid={"pool.size": sizes}), [0.5, 1.0, 1.5]))
    found = charts(tmp_path)
    assert found.keys() == {"t-values.svg", "t-differences.svg"}
    assert "pool.size (log scale)" in found["t-values.svg"]
    ticks = re.findall(r">([\d,]+)</text>", found["t-values.svg"])
    assert [tick for tick in ticks if tick in ("100", "1,000", "10,000")] == ["100", "1,000", "10,000"]
    write_study(tmp_path / "near", outcome(study(grid={"loss.alpha": [0.1, 0.5, 0.9]}), [0.5, 1.0, 1.5]))
    assert "log scale" not in charts(tmp_path / "near")["t-values.svg"]


def test_two_keys_are_lines_and_named_variants_are_dots(tmp_path: Path) -> None:
    two = study(grid={"loss.kind": ["kl", "mse"], "loss.alpha": [0.1, 0.9]})
    write_study(tmp_path / "two", outcome(two, [0.5, 1.0, 1.5, 1.6]))
    drawn = charts(tmp_path / "two")["t-values.svg"]
    assert re.findall(r">(kl|mse|loss\.kind|loss\.alpha)</text>", drawn) == ["loss.alpha", "loss.kind", "kl", "mse"]
    write_study(tmp_path / "named", outcome(study(**NAMED), [1.0, 1.0, 1.6, 0.5]))
    found = charts(tmp_path / "named")
    assert found.keys() == {"t-differences.svg"}
    assert re.findall(r">(same|better|worse|plain)</text>", found["t-differences.svg"]) == ["same", "better", "worse"]
    assert "ROC-AUC against plain" in found["t-differences.svg"]


def test_two_variants_of_one_name_are_refused() -> None:
    for keys in ({"variants": {"alpha=0.1": {"a": 1}}, "grid": {"loss.alpha": [0.1, 0.9]}},
                 {"grid": {"data.pool": [None, "None", "a"]}}):  # fmt: skip
        with pytest.raises(ValueError, match=r"two variants are called '(alpha=0.1|pool=None)'"):
            study(**keys)


def test_a_figure_is_called_what_it_shows_where_one_question_has_nothing_to_compare(tmp_path: Path) -> None:
    pairs = Pairs.build(["q"] * 4, list("abcd"), labels=[1, 0, 0, 1])
    write_study(tmp_path, outcome(study(grid={"loss.alpha": [0.1, 0.9]}), [0.5, 1.0], pairs=pairs))
    assert charts(tmp_path).keys() == {"t-values.svg"}


def test_every_task_has_figures_of_its_own(tmp_path: Path) -> None:
    write_study(tmp_path, outcome(study(**NAMED), [1.0, 1.0, 1.6, 0.5], tasks=("a b", "a/b", "A-b", "a-b-2")))
    names = ["a-b", "a-b-2", "A-b-3", "a-b-2-2", "all"]
    assert charts(tmp_path).keys() == {f"{name}-differences.svg" for name in names}


def test_the_page_is_one_file_and_the_table_is_markdown(tmp_path: Path) -> None:
    found = outcome(study(variants={"<i>a</i>": {}, "b|c": {"x": 1}}), [1.0, 1.5])
    given = parse_recipe({"data": {"train": "t"}, "teachers": [{"name": "a"}, {"name": "b"}]}, "r")
    where_from = provenance(given, {"train": "t"})
    write_study(tmp_path, replace(found, provenance=where_from))
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?\s*(https?:)?//|@import|url\(\s*["']?(https?:)?//""", page)
    assert "<i>a</i>" not in page
    assert found.sentences()[0].split(" by ")[1] in page
    assert page.count("<svg") == 1
    assert json.loads((tmp_path / "results.json").read_text()) == found.to_json() | {"provenance": where_from}
    assert where_from["machine"] in page
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith("| variant | ROC-AUC | ROC-AUC against <i>a</i> | accuracy | MRR | MAP | nDCG@10 |")
    assert {line.replace("\\|", "").count("|") for line in lines[:4]} == {lines[0].count("|")}
    assert "480 pairs of 80 questions" in lines[5]
    assert not list(tmp_path.glob("*.tmp"))
