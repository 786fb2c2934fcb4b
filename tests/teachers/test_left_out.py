"""The pairs that a partial judge leaves out: noted at once, counted over commands, and named in errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_fixtures import Answer, stub

from tmkd.config.teacher_sections import Endpoint
from tmkd.core.errors import EndpointError
from tmkd.data.pairs import Pairs
from tmkd.pipeline.steps.label import label_stored
from tmkd.pipeline.store.workspace import Workspace
from tmkd.teachers.served import ServedTeacher

PAIRS = Pairs.build([f"question {n}" for n in range(200)], [f"passage {n}" for n in range(200)])


def judge(url: str, folder: Path, *, partial: bool = True, **keys: Any) -> ServedTeacher:
    prompt = folder / "prompt.txt"
    prompt.write_text("{question} {passage}")
    section = {"form": "chat", "model": "m", "prompt": str(prompt), "answers": {"yes": 1, "no": 0}, "retries": 0}
    return ServedTeacher(Endpoint(url=url, **section, concurrency=1, **keys), "judge", partial=partial)


def said(text: str) -> Answer:
    return 200, {"choices": [{"message": {"content": text}}]}


def number(body: dict[str, Any]) -> int:
    return int(body["messages"][0]["content"].rsplit(" ", 1)[1])


def test_the_limit_counts_what_earlier_commands_left_out(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    with stub(lambda body, _: said("I cannot say." if number(body) % 2 else "yes")) as server:
        with pytest.raises(EndpointError, match="max_requests: 30 requests are spent"):
            label_stored(workspace, judge(server.url, tmp_path, max_requests=30), PAIRS)
        with pytest.raises(EndpointError, match=r"21 of its answers .* more than 10 and 10% of the 200 pairs"):
            label_stored(workspace, judge(server.url, tmp_path, max_requests=30), PAIRS)


def test_what_was_refused_before_an_interruption_is_not_asked_about_again(tmp_path: Path) -> None:
    with stub(lambda body, _: said("I cannot say." if number(body) < 9 else "yes")) as server:
        first = judge(server.url, tmp_path)
        first.keep_in(tmp_path / "kept", len(PAIRS))
        for rows, _ in first.scored(PAIRS):
            if rows.max() > 20:
                break  # as Ctrl-C ends it
        before = {number(body) for body in server.asked}
        assert set(range(9)) <= before
        again = judge(server.url, tmp_path)
        again.keep_in(tmp_path / "kept", len(PAIRS))
        asked = len(server.asked)
        raw = again.raw(PAIRS)
        assert not {number(body) for body in server.asked[asked:]} & set(range(9))
    assert np.flatnonzero(np.isnan(raw[:, 0])).tolist() == list(range(9))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {"error": "content filter"}), "answers 400: .*content filter"),
        ((200, b"<html>"), "its answer is no JSON"),
    ],
)
def test_a_request_that_is_refused_names_its_pair_and_can_be_left_out(
    tmp_path: Path, answer: Answer, message: str
) -> None:
    with stub(lambda body, _: answer if number(body) == 7 else said("yes")) as server:
        raw = judge(server.url, tmp_path).raw(PAIRS)
        assert np.flatnonzero(np.isnan(raw[:, 0])).tolist() == [7]
        named = f"{message}.*'question 7' with 'passage 7' .pair_id {PAIRS.pair_ids[7]}.*say `partial: true`"
        with pytest.raises(EndpointError, match=named):
            judge(server.url, tmp_path, partial=False).raw(PAIRS)


def test_logits_of_class_0_can_be_learned(tmp_path: Path) -> None:
    import torch

    with stub(lambda *_: said("yes")) as server:
        teacher = judge(server.url, tmp_path)
        teacher.positive = 0
        logits = torch.from_numpy(teacher.logits(PAIRS.take([0, 1])))  # refuses an array that runs backwards
    assert (logits[:, 0] > logits[:, 1]).all()
