"""When two texts are the same, and when two questions are."""

import pytest

from tmkd.data.documents.text import question_key, same_text, text_hash, unit_hash
from tmkd.data.row_counts import RowCounts


@pytest.mark.parametrize(
    ("one", "other"), [("-5 degrees", "+5 degrees"), ("x <= limit", "x >= limit"), ("good 👍", "good 👎"), ("C", "c")]
)
def test_texts_that_differ_in_a_sign_an_emoji_or_case_are_not_the_same(one: str, other: str) -> None:
    assert same_text(one) != same_text(other)
    assert text_hash(one) != text_hash(other)


def test_white_space_and_unicode_form_do_not_make_another_text() -> None:
    assert same_text(" cafe\u0301 \n\t au\u00a0lait ") == same_text("caf\u00e9 au lait") == "caf\u00e9 au lait"


@pytest.mark.parametrize(
    "spelling",
    [
        "How do I sort?",
        " how do I  sort ",
        "How do I sort ?",
        "HOW DO I SORT?!",
        "How\u00a0do I sort",
        "“How do I sort?”",
    ],
)
def test_spellings_of_one_question(spelling: str) -> None:
    assert question_key(spelling) == "how do i sort"
    assert unit_hash(spelling, "split") == unit_hash("How do I sort?", "split")  # the same side of every split


@pytest.mark.parametrize(("one", "other"), [("What is C#?", "What is C++?"), ("5", "-5"), (".NET", "NET"), ("?", "!")])
def test_signs_make_another_question(one: str, other: str) -> None:
    assert question_key(one) != question_key(other)


def test_row_counts_add_up(caplog: pytest.LogCaptureFixture) -> None:
    counts = RowCounts("test.tsv", read=10)
    counts.leave_out("duplicates of another row", 3, example="line 7")
    counts.leave_out("duplicates of another row", 1)
    counts.leave_out("empty", 0)
    assert counts.to_json() == {"read": 10, "used": 6, "left_out": {"duplicates of another row": 4}, "warnings": []}
    assert "test.tsv: 3 of 10 rows are left out: duplicates of another row, for example line 7" in caplog.text
