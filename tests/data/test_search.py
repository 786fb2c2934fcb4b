"""Search in the scripts of the world: what is written in one form is found in another."""

from __future__ import annotations

import math
import random
import tracemalloc
from pathlib import Path

import pytest
from qa_fixtures import document, index_of

from tmkd.core.errors import DataError
from tmkd.data.documents.bm25 import PassageIndex, pair_scores
from tmkd.data.documents.index import DocumentIndex, update_index
from tmkd.data.documents.index_files import CARD
from tmkd.data.documents.passages import Passage
from tmkd.data.documents.words import terms


def first(texts: list[str], question: str) -> str | None:
    """The text that is found first."""
    found = PassageIndex.build([Passage(str(n), text, "", (), "", "") for n, text in enumerate(texts)]).search(
        question, 1
    )
    return texts[found[0][0]] if found else None


TEXTS = {
    "Hindi": (
        "दिल्ली भारत की राजधानी है और यमुना नदी के किनारे बसी है।",
        "हिमालय की सबसे ऊँची चोटी का नाम एवरेस्ट है।",
        "सबसे ऊँची चोटी कौन सी है?",
    ),
    "Thai": (
        "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทยและมีประชากรมากที่สุด",
        "ข้าวเหนียวมะม่วงเป็นของหวานที่นิยมในฤดูร้อน",
        "ของหวานในฤดูร้อนคืออะไร",
    ),
    "Arabic": (
        "القاهرة هي عاصمة مصر وأكبر مدنها من حيث عدد السكان.",
        "يعد نهر النيل أطول أنهار قارة أفريقيا.",
        "ما هو أطول أنهار أفريقيا؟",
    ),
    "Chinese": (
        "北京是中华人民共和国的首都，位于华北平原的北部。",
        "长江是亚洲最长的河流，全长六千三百余公里。",
        "亚洲最长的河流是哪一条？",
    ),
    "Japanese": (
        "東京は日本の首都であり、世界でも最大級の都市である。",
        "富士山は日本で一番高い山で、標高は三七七六メートルである。",
        "一番高い山はどれですか？",
    ),
    "Korean": (
        "서울은 대한민국의 수도이자 가장 큰 도시이다.",
        "한라산은 제주도에 있으며 남한에서 가장 높은 산이다.",
        "제주도에는 어떤 산이 있습니까?",
    ),
    "Russian": (
        "Москва является столицей России и крупнейшим городом страны.",
        "Озеро Байкал считается самым глубоким озером на планете.",
        "Какое озеро самое глубокое? Байкал?",
    ),
}


@pytest.mark.parametrize("language", TEXTS)
def test_the_passage_that_answers_is_found_first_in_every_script(language: str) -> None:
    other, right, question = TEXTS[language]
    everything = [text for rows in TEXTS.values() for text in rows[:2]]
    assert first([other, right, *everything], question) == right


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("cafe\u0301 au lait", "café"),
        ("café au lait", "CAFE\u0301"),
        ("edit con\u00adfig", "config"),
        ("edit config", "con\u00adfig"),
        ("zero\u200bwidth", "zerowidth"),
        ("ﬁnd the oﬃce", "office"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),  # Hangul in single letters
        ("ﾃﾞｰﾀ", "データ"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "width"),
        ("Straße", "STRASSE"),
        ("Достопримечательности", "достопримечательности"),  # 21 characters, 42 bytes
        ("Donaudampfschifffahrtsgesellschaftskapitän", "donaudampfschifffahrtsgesellschaftskapitän"),
        ("the hash " + "0123456789abcdef" * 4, "0123456789abcdef" * 4),
        ("猫が好き", "猫"),
        ("물을 마신다", "물"),
        ("use snake_case", "case"),
        ("mañana y niñez", "niñez"),
        ("कर्म करो", "कर्म"),
    ],
)
def test_one_normal_form_for_text_and_question(written: str, asked: str) -> None:
    assert first(["nothing of it", written], asked) == written
    assert first(["कर करम", "cafe", "fond", "결"], asked) is None  # no part of a word is the word


def test_signs_rank_and_bare_words_are_found_too() -> None:
    texts = ["Sort a list in C# with Sort.", "Sort a list in C++ with sort.", "It is 5 below.", "It is -5 below."]
    for asked, right in (("list in C++", 1), ("list in C#", 0), ("below -5", 3)):
        assert first(texts, asked) == texts[right]
    assert first(["Written in C++."], "C") == "Written in C++."


def test_terms_of_texts_without_blanks() -> None:
    assert terms("東京へ。C言語") == ["東", "京", "へ", "東京", "京へ", "c", "言", "語", "言語"]
    assert terms("東京へ。C言語", asked=True) == ["東京", "京へ", "c", "言語"]
    assert terms("한국 어", asked=True) == ["한국", "어"]  # never across a blank
    assert terms("x" * 129 + " ok") == ["ok"]


def test_the_index_on_disk_searches_texts_and_headings_of_every_script(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", {"富士山.md": "一番高い山です。", "café.md": "au lait", "b.md": "other"})
    assert [found.document for found in index.search("高い", 3)] == ["富士山.md"]
    assert [found.document for found in index.search("富士山", 3)] == ["富士山.md"]  # the title
    assert [found.document for found in index.search("cafe\u0301", 3)] == ["café.md"]
    assert [found.document for found in DocumentIndex.open(index.folder).search("高い", 3)] == ["富士山.md"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Winter: it is -5 degrees outside.", "Winter: it is +5 degrees outside."),
        ("Stop where x <= limit holds.", "Stop where x >= limit holds."),
        ("That was good 👍", "That was good 👎"),
        ("Set the path to /A/b.", "Set the path to /a/b."),
    ],
)
def test_passages_that_differ_in_a_sign_are_both_found(tmp_path: Path, one: str, other: str) -> None:
    index = index_of(tmp_path / "index", {"one.md": one, "other.md": other})
    assert {found.passage.text for found in index.search(one, 5)} == {one, other}
    update_index(index.folder, lambda: [document("one.md", one), document("other.md", one)])  # the other one changes
    index.refresh()
    assert [found.passage.text for found in index.search(one, 5)] == [one]
    assert {frozenset(keys) for keys in index.holding([index.search(one, 1)[0].passage.pid]).values()} == {
        frozenset({"one.md", "other.md"})
    }


def test_an_index_of_an_older_version_says_what_to_run(tmp_path: Path) -> None:
    folder = index_of(tmp_path / "index").folder
    (folder / CARD).write_text('{"format": 1}')
    with pytest.raises(DataError, match=r"index of format 1, this version reads 2; remove it and make one with: tmkd"):
        DocumentIndex.open(folder)


def test_the_score_of_a_pair_is_that_of_the_index_and_by_hand() -> None:
    passages = ["The kernel boots.", "Booting the kernel needs a loader and an initial disk.", "Cheese is yellow."]
    questions = ["How do kernels boot?"] * 3
    found = pair_scores(questions, passages)
    # Stems kernel and boot, each in 2 of 3 passages of 3, 10 and 3 words: idf ln(1 + 1.5 / 2.5), mean length 16 / 3.
    rarity, mean = math.log(1 + 1.5 / 2.5), 16 / 3
    by_hand = [2 * rarity * 2.2 / (1 + 1.2 * (0.25 + 0.75 * length / mean)) for length in (3, 10)]
    assert found == pytest.approx([*by_hand, 0])
    index = PassageIndex.build([Passage(str(n), text, "", (), "", "") for n, text in enumerate(passages)])
    assert [score for _, score in index.search(questions[0], 3)] == pytest.approx(by_hand, rel=1e-4)
    assert pair_scores(["of the"], ["of the people"])[0] > 0  # function words alone are searched for


def test_scores_of_many_pairs_are_those_of_plain_sums_to_the_last_bit() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{number}x" for number in range(60)]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(0, 12))) for _ in range(40)]
    questions, passages = draw.choices(texts, k=200), draw.choices(texts, k=200)
    found = {text: text.split() for text in passages}
    mean = sum(map(len, found.values())) / len(found)
    for question, passage, score in zip(questions, passages, pair_scores(questions, passages), strict=True):
        plain, long = 0.0, 0.75 * len(found[passage]) / mean + 1 - 0.75
        for word in dict.fromkeys(question.split()):
            having, count = sum(word in words for words in found.values()), found[passage].count(word)
            if count:
                rarity = math.log(1 + (len(found) - having + 0.5) / (having + 0.5))
                plain += rarity * count * 2.2 / (count + 1.2 * long)
        assert score == plain


def test_scores_of_pairs_keep_no_words_of_passages() -> None:
    passages = [" ".join(f"n{(number * 7 + place * 13) % 1000}x" for place in range(70)) for number in range(1000)]
    tracemalloc.start()
    try:
        pair_scores(["n5x and n9x"] * len(passages), passages)
        assert tracemalloc.get_traced_memory()[1] < 1000 * len(passages)  # a table of each one's words: 4 times that
    finally:
        tracemalloc.stop()
