"""`DistinctTexts` gives each distinct text one number."""

from __future__ import annotations

import random

import pyarrow as pa

from tmkd.data.pair_ids import DistinctTexts


def test_distinct_texts_are_those_of_a_dictionary() -> None:
    texts = [str(random.Random(seed).randrange(40)) for seed in range(200)]
    place: dict[str, int] = {}
    number = [place.setdefault(text, len(place)) for text in texts]
    found = DistinctTexts.of((pa.array(texts[start : start + 60]) for start in range(0, 200, 60)), len(texts))
    assert found.number.tolist() == number
    assert found.firsts.tolist() == [texts.index(text) for text in place]
