"""Which differences are significant, their sign, and the sentences that say so, on intervals made by hand."""

from __future__ import annotations

import pytest

from tmkd.evaluation.bootstrap import Interval
from tmkd.evaluation.significance import Difference, against_free_sentence, verdict


def difference(first: str, second: str, mean: float, low: float, high: float) -> Difference:
    """In MRR."""
    return Difference(first, second, "mrr", Interval(mean, low, high))


@pytest.mark.parametrize(
    ("mean", "low", "high", "significant", "sentence"),
    [
        (0.02, 0.01, 0.03, True, "a is significantly better than b in MRR by 0.020"),
        (-0.02, -0.03, -0.01, True, "a is significantly worse than b in MRR by 0.020"),
        (0.02, -0.01, 0.03, False, "a is better than b in MRR by 0.020"),
        (-0.02, -0.05, 0.01, False, "a is worse than b in MRR by 0.020"),
        (0.02, 0.0, 0.03, False, "a is better than b in MRR by 0.020"),  # an interval that touches 0 holds it
        (0.0001, -0.01, 0.01, False, "a is equal to b in MRR"),
    ],
)
def test_a_difference_is_significant_where_its_interval_excludes_0(
    mean: float, low: float, high: float, significant: bool, sentence: str
) -> None:
    found = difference("a", "b", mean, low, high)
    assert found.significant is significant
    ending = "" if significant else ": no significant difference"
    assert found.sentence() == f"{sentence} (95% interval {low:+.3f} to {high:+.3f}){ending}"
    turned = difference("b", "a", *vars(found.value.negated()).values())
    assert turned.significant is significant
    assert (turned.value.mean, turned.value.low, turned.value.high) == pytest.approx((-mean, -high, -low))


def test_a_small_difference_that_is_significant_is_not_shown_as_0() -> None:
    small = difference("a", "b", 0.0003, 0.0001, 0.0004)
    assert "significantly better than b" in small.sentence()
    assert "by 0.00030 (95% interval +0.00010 to +0.00040)" in small.sentence()
    assert verdict("b", [small]) == "In MRR b is significantly worse than a by 0.00030 (+0.00010 to +0.00040)."
    assert "by 0.00030 (" in against_free_sentence("a", small)
    assert "it is level with it" in against_free_sentence("a", difference("a", "b", 0.0, -0.01, 0.01))


def test_the_verdict_is_about_the_model_whichever_side_it_stands_on() -> None:
    found = verdict(
        "tmkd",
        [
            difference("tmkd", "finetune", 0.02, 0.01, 0.03),
            difference("mkd", "tmkd", -0.04, -0.06, -0.01),  # tmkd is ahead
            difference("teacher", "tmkd", 0.05, 0.02, 0.07),  # tmkd is behind
            difference("tkd", "tmkd", 0.01, -0.01, 0.04),
        ],
    )
    assert found == (
        "In MRR tmkd is significantly better than finetune by 0.020 (+0.010 to +0.030) and mkd by 0.040 "
        "(+0.010 to +0.060); it is significantly worse than teacher by 0.050 (+0.020 to +0.070); "
        "it does not differ significantly from tkd (-0.040 to +0.010)."
    )
