"""Sentences and passages in the scripts of the world."""

from __future__ import annotations

import unicodedata

import pytest

from tmkd.data.documents.passages import MOST_WORDS, cut, section_passages, size
from tmkd.data.documents.sections import Block, Section
from tmkd.data.documents.sentences import sentences
from tmkd.inference.qa.marking import sentences as markable

SENTENCES = {
    "Hindi": ["भारत एक विशाल देश है।", "इसकी राजधानी दिल्ली है।", "डॉ. राम कहाँ रहते हैं?", "वे मुंबई में रहते हैं।"],
    "Thai": ["กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "มีวัดต่าง ๆ มากมาย", "แม่น้ำเจ้าพระยาไหลผ่านเมือง"],
    "Arabic": ["القاهرة هي عاصمة مصر.", "ما هو أطول نهر؟", "إنه نهر النيل!", "قال د. أحمد ذلك أمس."],
    "Russian": [
        "Москва — столица России.",
        "А. С. Пушкин родился в г. Москва в 1799 г.",
        "Он писал стихи!",
        "См. рис. 5.",
    ],
    "Urdu": ["لاہور ایک شہر ہے۔", "یہ پاکستان میں ہے۔"],
    "French": ["Voilà.", "Écoute-moi !", "« Oui », dit-il.", "À demain…", "Ça va ?"],
}
UNSPACED = {
    "Chinese": ["北京是中国的首都。", "长江有多长？", "它是亚洲最长的河流！", "“我知道。”", "他说。"],
    "Japanese": ["東京は日本の首都です。", "「はい。」と彼は答えた。", "本当ですか！？", "富士山は高い。"],
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_end_where_their_script_ends_them(language: str) -> None:
    assert sentences(" ".join(SENTENCES[language])) == SENTENCES[language]


@pytest.mark.parametrize("language", UNSPACED)
@pytest.mark.parametrize("blank", ["", " ", "\u3000"])
def test_no_blank_need_follow_a_wide_full_stop(language: str, blank: str) -> None:
    assert sentences(blank.join(UNSPACED[language])) == UNSPACED[language]


PROSE = {
    "Hindi": "गंगा भारत की सबसे लंबी और सबसे पवित्र नदी मानी जाती है। यह हिमालय के गंगोत्री हिमनद से निकलती है। ",
    "Thai": "แม่น้ำเจ้าพระยาเป็นแม่น้ำสายสำคัญของประเทศไทย ไหลผ่านกรุงเทพมหานครแล้วลงสู่อ่าวไทย ",
    "Arabic": "نهر النيل هو أطول أنهار قارة أفريقيا. ينبع من بحيرة فيكتوريا ويصب في البحر المتوسط. ",
    "Chinese": "长江是亚洲第一长河，发源于青藏高原。它流经十一个省市，最后在上海注入东海。",
    "Japanese": "富士山は日本で最も高い山であり、静岡県と山梨県にまたがる。夏には多くの登山者が訪れる。",
    "Russian": "Волга является самой длинной рекой Европы. Она берёт начало на Валдайской возвышенности. ",
}


@pytest.mark.parametrize("language", PROSE)
def test_passages_of_every_script_are_cut_at_sentences_near_the_target(language: str) -> None:
    text = (PROSE[language] * 30).strip()
    found = [passage for passage, _ in cut([Block(text)])]
    assert len(found) > 3
    assert all(50 <= size(passage) <= MOST_WORDS for passage in found)
    ends = {sentence[-1] for sentence in sentences(text)}
    assert all(passage[-1] in ends for passage in found)
    joint = "" if language in UNSPACED else " "
    assert joint.join(found) == text  # no blank is added and no letter lost


@pytest.mark.parametrize("language", PROSE)
def test_a_sentence_without_an_end_is_cut_between_letters_and_their_marks(language: str) -> None:
    unspaced = language in (*UNSPACED, "Thai")
    text = "".join(char for char in PROSE[language] if char not in "。.।，、" and not (unspaced and char == " ")) * 30
    found = [passage for passage, _ in cut([Block(text.strip())])]
    assert len(found) > 3
    assert all(size(passage) <= MOST_WORDS for passage in found)
    assert not any(unicodedata.category(passage[0]).startswith("M") for passage in found)
    assert ("" if unspaced else " ").join(found) == text.strip()


def test_parts_of_one_long_sentence_are_joined_as_they_stood() -> None:
    """A passage of several parts of one sentence has no blank that the text has not."""
    text = "，".join(["长江是亚洲第一长河" * 4] * 9) + "。"
    assert "".join(passage for passage, _ in cut([Block(text)])) == text
    assert " " not in "".join(passage for passage, _ in cut([Block(text)]))


def test_a_chinese_sentence_is_a_passage_and_not_a_single_word() -> None:
    sections = [Section("首都", (), "", [Block("北京是中国的首都。")])]
    assert [passage.text for passage in section_passages(sections, "", "")] == ["北京是中国的首都。"]


def test_a_single_word_that_is_cut_off_goes_to_the_passage_beside_it() -> None:
    long = " ".join(["word"] * MOST_WORDS)
    blob = "x" * 3000
    for blocks, texts in (
        ([Block(f"{long}."), Block("Yes.")], [f"{long}. Yes."]),
        ([Block("Yes."), Block(f"{long}.")], [f"Yes. {long}."]),
        ([Block(f"{long}."), Block("yes", code=True)], [f"{long}.\nyes"]),
        ([Block(f"{long}."), Block(blob, code=True)], [f"{long}.", blob]),
        ([Block(f"{long}."), Block("-" * 3000, code=True)], [f"{long}."]),
    ):
        assert [one.text for one in section_passages([Section("", (), "", blocks)], "", "")] == texts


@pytest.mark.parametrize("language", [*UNSPACED, "Hindi", "Thai", "Arabic"])
def test_one_sentence_of_an_answer_can_be_marked(language: str) -> None:
    parts = UNSPACED.get(language) or SENTENCES[language]
    text = ("" if language in UNSPACED else " ").join(parts)
    marked = [text[start:stop] for start, stop in markable(text, None)]
    assert len(marked) > 1
    assert set(marked) <= set(parts)
