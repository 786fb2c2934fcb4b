"""The pool of stage 1: what is mined, in which shares, and what is kept out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import TOPICS, write_jsonl
from pairs_fixtures import refused

from tmkd.config.load import load_recipe, parse_recipe
from tmkd.config.recipe import Recipe
from tmkd.core.errors import RecipeError
from tmkd.data import decontamination
from tmkd.data.decontamination import HeldOut, NearTexts
from tmkd.data.documents.text import jaccard, tokens
from tmkd.data.mining import choose_pairs, decontaminate
from tmkd.data.pairs import Pairs
from tmkd.data.row_counts import RowCounts
from tmkd.data.tasks import TaskData
from tmkd.pipeline.steps.pool import pool_of
from tmkd.pipeline.store.workspace import Workspace

QUESTIONS = [question for question, _ in TOPICS.values()]
PASSAGES = [passage for _, passage in TOPICS.values()]


def labelled(names: list[str], *, right: bool = True) -> Pairs:
    """Each topic's question with its own answer (1) and the next topic's (0)."""
    rows = [(*TOPICS[name], 1) for name in names if right]
    rows += [(TOPICS[name][0], TOPICS[names[place - 1]][1], 0) for place, name in enumerate(names)]
    return Pairs.build([row[0] for row in rows], [row[1] for row in rows], labels=[row[2] for row in rows])


@pytest.fixture
def task() -> TaskData:
    """Six topics to train on, one for development, one for test."""
    names = list(TOPICS)
    return TaskData(labelled(names[:6]), labelled(names[6:7]), labelled(names[7:]), None)


@pytest.fixture
def mined(task: TaskData, tmp_path: Path) -> Callable[..., Pairs]:
    """The pool that the keys of `pool:` give."""

    def call(*, classes: int = 2, **keys: object) -> Pairs:
        recipe = _recipe(keys, classes)
        return pool_of(Workspace(tmp_path / "workspace"), recipe, task, {})[0]

    return call


def _recipe(pool: dict[str, object], classes: int = 2) -> Recipe:
    data = {"train": "t.jsonl", "pool": None if "sources" in pool else "p.jsonl"}
    return parse_recipe({"data": data, "teachers": TEACHERS, "classes": classes, "pool": pool}, "r")


TEACHERS = [{"name": "a"}, {"name": "b"}]
OWN = {"questions": "own", "passages": "own"}


def test_questions_find_passages_best_first_and_nothing_held_out_comes_in(
    mined: Callable[..., Pairs], task: TaskData, tmp_path: Path
) -> None:
    near = QUESTIONS[7].replace("What does", "what DOES").rstrip("?")
    other = ["a list, a merge, a file, a hash and their values", TOPICS["mail"][1] + "!"]
    write_jsonl(tmp_path / "q.jsonl", [{"question": near}, {"question": "How is a hash sorted by its values?"}])
    (tmp_path / "c.txt").write_text("\n\n".join([*PASSAGES, *other, "How do I report a bug? Ask, a hash of values."]))
    pool = mined(sources=[OWN, {"questions": "q.jsonl", "passages": "c.txt"}], passages_per_question=2)
    assert near not in pool.questions
    assert not set(QUESTIONS[6:]) & set(pool.questions)
    assert not set(PASSAGES[6:]) & set(pool.passages)  # answers of development and test questions
    assert other[1] not in pool.passages  # nearly one
    assert not any("report a bug" in passage for passage in pool.passages)  # quotes such a question
    found = [
        p for q, p in zip(pool.questions, pool.passages, strict=True) if q == "How is a hash sorted by its values?"
    ]
    assert set(found) == {TOPICS["sort"][1], other[0]}
    assert len(set(pool.pair_ids)) == len(pool)
    assert max(pool.questions.count(question) for question in QUESTIONS) <= 2
    (step,) = (tmp_path / "workspace" / "steps").iterdir()
    counts = json.loads((step / "counts.json").read_text())
    assert counts[1]["dropped"] == {"questions": 1, "passages": 4, "pairs": 0}
    assert not pool.has_labels


def test_passages_can_ask_and_do_not_find_their_own_question(mined: Callable[..., Pairs], task: TaskData) -> None:
    pool = mined(sources=[{**OWN, "ask": "passages"}], passages_per_question=3)
    assert len(pool) > 0
    assert set(pool.questions) <= set(task.train.questions)
    assert set(pool.passages) <= set(task.train.passages)
    assert not set(pool.pair_ids) & set(task.train.pair_ids)


def test_shares_and_nested_sizes(mined: Callable[..., Pairs], tmp_path: Path) -> None:
    ready = [{"q": f"question {n}", "p": f"passage {n}"} for n in range(40)]
    write_jsonl(tmp_path / "ready.jsonl", ready)
    pairs = {"pairs": {"file": "ready.jsonl", "question": "q", "passage": "p"}, "share": 3}
    pools = {size: mined(sources=[OWN, pairs], size=size, passages_per_question=4) for size in (4, 8, 16)}
    assert {size: len(pool) for size, pool in pools.items()} == {4: 4, 8: 8, 16: 16}
    assert sum(passage.startswith("passage ") for passage in pools[16].passages) == 12
    assert set(pools[4].pair_ids) < set(pools[8].pair_ids) < set(pools[16].pair_ids)
    assert mined(sources=[OWN, pairs], size=8, passages_per_question=4, seed=1).digest() != pools[8].digest()
    everything = mined(sources=[pairs | {"share": 1}])
    assert len(everything) == 40


def test_a_source_that_holds_too_little_gives_all_and_says_so(
    mined: Callable[..., Pairs], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(tmp_path / "ready.jsonl", [{"question": "one more", "passage": "and its passage"}])
    pool = mined(sources=[{"pairs": "ready.jsonl"}], size=10)
    assert len(pool) == 1
    assert "(10 were wanted; it holds no more)" in " ".join(caplog.text.split())


def test_the_same_pool_is_mined_once(mined: Callable[..., Pairs], caplog: pytest.LogCaptureFixture) -> None:
    first = mined(sources=[OWN])
    caplog.clear()
    assert mined(sources=[OWN]).digest() == first.digest()
    assert "done before" in caplog.text
    caplog.clear()
    mined(sources=[OWN], passages_per_question=2)
    assert "done before" not in caplog.text


def test_whole_documents_are_cut(mined: Callable[..., Pairs], tmp_path: Path) -> None:
    sentence = "A hash is sorted by the values that its keys stand for, one after the other. "
    write_jsonl(tmp_path / "documents.jsonl", [{"body": sentence * 20}])
    passages = {"file": "documents.jsonl", "column": "body", "cut": True}
    pool = mined(sources=[{"questions": "own", "passages": passages}])
    assert 0 < max(len(passage.split()) for passage in pool.passages) <= 95


def test_errors_name_the_source_and_the_fix(mined: Callable[..., Pairs], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "far.jsonl", [{"passage": "völlig andere Wörter"}])
    (tmp_path / "q.txt").write_text("Was ist das\n")
    far = {"questions": "own", "passages": "far.jsonl"}
    refused(lambda: mined(sources=[far]), "not a single hit for 6 queries in 1 texts", "far.jsonl")
    refused(lambda: mined(sources=[OWN, far]), "not a single hit")
    asked = {"questions": "own", "passages": "debain-docs"}
    refused(lambda: mined(sources=[asked]), "pool.sources.0.passages", "'debain-docs'", "did you mean 'debian-docs'?")
    refused(lambda: mined(sources=[{"questions": "gone.jsonl", "passages": "own"}]), "'gone.jsonl' is neither a file")
    refused(lambda: mined(sources=[{"questions": "q.txt", "passages": "far.jsonl"}]), "not a single hit")
    wrong = {"questions": "own", "passages": {"file": "far.jsonl", "column": "text"}}
    refused(lambda: mined(sources=[wrong]), "no column 'text'", "passage", "column")
    write_jsonl(tmp_path / "held.jsonl", [{"question": QUESTIONS[7], "passage": "x"}])
    refused(
        lambda: mined(sources=[{"pairs": "held.jsonl"}]), "not a single pair is left of 1", "1 questions", "0 passages"
    )
    with pytest.raises(RecipeError, match=r"pool\.size: there is no pool to take from"):
        parse_recipe({"data": {"train": "t.jsonl"}, "teachers": TEACHERS, "pool": {"size": 5}}, "r")
    with pytest.raises(RecipeError, match=r"give pool\.sources or data\.pool, not both"):
        parse_recipe({"data": {"train": "t", "pool": "p"}, "teachers": TEACHERS, "pool": {"sources": [OWN]}}, "r")


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"size": 9, "sources": [{**OWN, "share": 0}]}, "the shares of pool.sources are 0; one must be above 0"),
        ({"sources": [{**OWN, "share": 1}, {**OWN, "share": 2}]}, "give pool.size"),
        ({"size": 9, "sources": [{**OWN, "share": -1}]}, "greater than or equal to 0, got -1"),
        ({"sources": [{"questions": "own"}]}, "give `questions` and `passages`, or `pairs`"),
        ({"sources": [{"questions": {}, "passages": "own"}]}, "give one of file, hub"),
        ({"sources": [{**OWN, "pasages": "own"}]}, "did you mean 'passages'"),
        ({"size": 0}, "greater than 0"),
    ],
)
def test_keys_that_make_no_pool(pool: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        _recipe(pool)
    assert message in str(caught.value)


def test_a_part_of_a_pool_that_is_there_is_nested(task: TaskData, tmp_path: Path) -> None:
    pool = Pairs.build([f"q{n}" for n in range(100)], ["p"] * 100)
    small, large = choose_pairs(pool, 10, 0), choose_pairs(pool, 30, 0)
    assert (len(small), len(large), len(choose_pairs(pool, 500, 0))) == (10, 30, 100)
    assert set(small.pair_ids) < set(large.pair_ids)
    assert large.questions == [question for question in pool.questions if question in set(large.questions)]
    given = TaskData(task.train, task.dev, task.test, pool)
    workspace = Workspace(tmp_path / "w")
    assert pool_of(workspace, _recipe({"size": 10}), given, {})[0].pair_ids == small.pair_ids
    assert pool_of(workspace, load_recipe(_without_pool(tmp_path)), given, {})[0].digest() == pool.digest()


def _without_pool(folder: Path) -> Path:
    path = folder / "plain.yaml"
    path.write_text(yaml.safe_dump({"data": {"train": "t.jsonl"}, "teachers": TEACHERS}))
    return path


def test_near_texts_agree_with_every_comparison() -> None:
    import random

    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefghij", k=draw.randint(1, 9))) for _ in range(300)]
    held, others = texts[:100], texts[100:]
    near = NearTexts(held)
    words = [frozenset(text.split()) for text in texts]
    by_hand = [any(len(mine & one) >= 0.8 * len(mine | one) for one in words[:100]) for mine in words[100:]]
    assert [text in near for text in others] == by_hand
    assert 20 < sum(by_hand) < 180


def test_texts_of_another_length_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def jaccard(_: frozenset[str], other: frozenset[str]) -> float:
        compared.append(len(other))
        return 0.0

    monkeypatch.setattr(decontamination, "jaccard", jaccard)
    letters = "abcdefghijklmnop"
    near = NearTexts(
        [" ".join(["rare", *letters[:count]]) for count in range(17)]
        + [" ".join([*letters, str(n)]) for n in range(20)]
    )
    assert "rare a b c d e f g" not in near
    assert sorted(compared) == [7, 8, 9, 10]  # words, of 1 to 17


def test_texts_are_near_from_four_fifths_of_their_words_on() -> None:
    near = NearTexts(["how do you copy files"])
    assert "How do you copy FILES?" in near
    assert "how do you copy big files" in near  # 5 of 6 words
    assert "do you copy files" in near  # 4 of 5: just enough
    assert "you copy files" not in near  # 3 of 5
    assert "how do you move files" not in near  # 4 of 6
    assert "" not in near


def test_each_passage_of_a_pool_is_judged_once() -> None:
    import random

    class Counting(HeldOut):
        def passage(self, text: str) -> bool:
            judged.append(text)
            return super().passage(text)

    draw, judged = random.Random(0), list[str]()
    texts = [" ".join(draw.choices("abcdefghijkl", k=draw.randint(3, 9))) for _ in range(40)]
    held = Counting([Pairs.build(texts[:4], texts[4:8], labels=[1, 0, 1, 1])], classes=2)
    pool = Pairs.build(draw.choices(texts, k=400), draw.choices(texts, k=400))
    kept = decontaminate(pool, held)
    assert len(judged) == len(set(judged)) > 20
    rows = [(q, p) for q, p in pool.texts() if not (held.pair(q, p) or held.question(q) or held.passage(p))]
    assert [*kept.texts()] == rows
    assert 0 < len(rows) < len(pool)


def test_a_pool_loses_pairs_questions_and_answers_of_the_held_out_set() -> None:
    question, answer = TOPICS["mail"]
    wrong = "The port is 80 unless the file says something else."
    held = HeldOut([Pairs.build([question, question], [answer, wrong], labels=[1, 0])], classes=2)
    pool = Pairs.build(
        ["Who sings?", "Who sings?", question, "Which port?", "Who quotes?"],
        ["A bird does.", answer, "Nobody knows.", wrong, f"They ask: {question}"],
    )
    kept = decontaminate(pool, held)
    assert kept.questions == ["Who sings?", "Which port?"]
    assert kept.passages == ["A bird does.", wrong]  # what does not answer may stay


@pytest.mark.parametrize("spelled", ["who SINGS", " Who sings ?", "Who\u200b sings?", "“Ｗｈｏ sings?”"])
def test_a_pool_loses_pairs_that_are_held_out_in_another_spelling(
    spelled: str, caplog: pytest.LogCaptureFixture
) -> None:
    held = HeldOut([Pairs.build(["Who sings?"], ["A bird, no more."], labels=[0])], classes=3)
    pool = Pairs.build([spelled, "?", "Who else?"], ["a bird, no more", "A bird.", "A bird, no more."])
    with caplog.at_level("INFO"):
        assert decontaminate(pool, held).questions == ["?", "Who else?"]
    assert held.pair(spelled, "a bird, no more")
    assert "pool: 2 of 3 pairs; removed as contamination" in caplog.text


def test_what_a_pool_loses_is_counted_for_the_report(task: TaskData, tmp_path: Path) -> None:
    spelled = [f" {QUESTIONS[6].upper()} ", f"{QUESTIONS[7].rstrip('?')} ?", "Who sings?"]
    given = replace(
        task, pool=Pairs.build(spelled, ["A bird, no more."] * 3), counts={"pool": RowCounts("pool (p.jsonl)", read=3)}
    )
    for _ in range(2):  # the second time, the step is there
        pool, _ = pool_of(Workspace(tmp_path / "workspace"), _recipe({}), given, {})
        assert pool.questions == ["Who sings?"]
        assert given.counts["pool"].to_json()["used"] == 1
        assert list(given.counts["pool"].left_out.values()) == [2]


def test_signs_keep_texts_apart_in_decontamination() -> None:
    held = HeldOut(
        [Pairs.build(["What does C++ do?", "Is x <= y?"], ["At -5 degrees.", "!"], labels=[1, 1])], classes=2
    )
    assert held.question("what does c++ do")
    assert not held.question("What does C# do?")
    assert not held.question("Is x >= y?")
    assert not held.passage("At 5 degrees.")
    assert held.passage("!")
    assert not held.passage("?")


HELD_OUT = {
    "Hindi": ("भारत की राजधानी कौन सी है?", "दिल्ली की राजधानी कौन सी है?"),
    "Thai": ("เมืองหลวงของประเทศไทยคือเมืองอะไร", "ประเทศไทยมีประชากรทั้งหมดกี่คน"),
    "Arabic": ("ما هي عاصمة مصر اليوم؟", "كم عدد سكان مصر اليوم؟"),
    "Chinese": ("中国的首都是哪个城市？", "中国最长的河流是哪条？"),
    "Japanese": ("日本の首都はどこですか？", "日本で一番高い山はどこですか？"),
    "Russian": ("Какой город является столицей России?", "Какая река в России самая длинная?"),
}


@pytest.mark.parametrize("language", HELD_OUT)
def test_decontamination_in_scripts_of_the_world(language: str) -> None:
    question, other = HELD_OUT[language]
    held = HeldOut([Pairs.build([question], ["!"], labels=[1])], classes=2)
    assert held.question(question.rstrip("?؟？"))
    assert not held.question(other)
    assert held.passage(f"«{question}» {other}")  # quotes the question
    assert not held.passage(other)


def test_vowel_signs_make_another_word() -> None:
    """Hindi के and की, and the Thai words for `come` and `dog`, differ in nothing but signs on the same letters."""
    assert tokens("के") != tokens("की")
    assert tokens("मेरा") != tokens("मारो")
    assert tokens("มา") != tokens("หมา")
    assert tokens("ไม้") != tokens("ไม่")
    assert tokens("كَتَبَ") != tokens("كُتُب")
    assert tokens("气温-5度") != tokens("气温5度")
    assert jaccard(tokens("今天北京的天气怎么样"), tokens("天气怎么样，今天，北京")) > 0.5
    assert jaccard(tokens("今天北京的天气怎么样"), tokens("上海有多少人口")) == 0


@pytest.mark.parametrize(
    ("question", "passage", "other"),
    [
        ("亚洲最长的河流是哪一条？", "长江是亚洲最长的河流。", "北京是中国的首都。"),
        ("一番高い山はどれですか？", "富士山は日本で一番高い山です。", "東京は日本の首都だ。"),
        ("ของหวานในฤดูร้อนคืออะไร", "ข้าวเหนียวมะม่วงเป็นของหวานในฤดูร้อน", "กรุงเทพเป็นเมืองหลวง"),
        ("제주도에는 어떤 산이 있습니까?", "한라산은 제주도에 있는 산이다.", "서울은 수도이다."),
        ("Какое озеро самое глубокое?", "Самое глубокое озеро - Байкал.", "Москва - столица."),
    ],
)
def test_questions_of_every_script_find_their_passage(
    mined: Callable[..., Pairs], tmp_path: Path, question: str, passage: str, other: str
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": question}])
    (tmp_path / "p.txt").write_text(f"{other}\n\n{passage}\n\nEnglish words.", encoding="utf-8")
    pool = mined(sources=[{"questions": "q.jsonl", "passages": "p.txt"}], passages_per_question=1)
    assert (pool.questions, pool.passages) == ([question], [passage])


def test_texts_that_differ_in_a_sign_are_all_mined_and_equal_ones_once(
    mined: Callable[..., Pairs], tmp_path: Path
) -> None:
    texts = ["It is -5 degrees in winter.", "It is +5 degrees in winter.", "It  is +5 degrees in\u00a0winter."]
    write_jsonl(tmp_path / "q.jsonl", [{"question": "What about winter degrees?"}])
    write_jsonl(tmp_path / "p.jsonl", [{"passage": text} for text in texts])
    pool = mined(sources=[{"questions": "q.jsonl", "passages": "p.jsonl"}], passages_per_question=3)
    assert sorted(pool.passages) == sorted(texts[:2])


def test_the_choice_of_pairs_does_not_depend_on_their_order() -> None:
    pairs = Pairs.build([f"q{n}" for n in range(100)], ["p"] * 100)
    chosen = choose_pairs(pairs, 30, seed=0)
    turned = choose_pairs(pairs.take(list(range(99, -1, -1))), 30, seed=0)
    assert chosen.questions == turned.questions[::-1]
    assert chosen.questions != [f"q{n}" for n in range(30)]


def test_of_three_classes_no_passage_counts_as_an_answer() -> None:
    rows = Pairs.build(["q", "q"], ["the right one here", "another wrong passage"], labels=[0, 1])
    turned = HeldOut([rows], classes=2, positive=0)
    assert turned.passage("the right one here")
    assert not turned.passage("another wrong passage")
    held = HeldOut([labelled(["mail"])], classes=3)
    assert held.question(TOPICS["mail"][0])
    assert not held.passage(TOPICS["mail"][1])
