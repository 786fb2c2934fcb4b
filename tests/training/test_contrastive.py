"""Contrastive fine-tuning: what is compared with what, the loss by hand, and the loss of sentence-transformers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import dying_after, pair_rows
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from tmkd.data.pairs import Pairs
from tmkd.teachers.bi_encoder import BiEncoderTeacher, Prompts
from tmkd.training import state
from tmkd.training.contrastive import Contrast, ContrastiveGradients
from tmkd.training.gradients import dropout_seed
from tmkd.training.trainer import Loop, TrainerConfig

ROWS = [
    ("mount a disk", "use mount", 1),
    ("mount a disk", "use udisksctl", 1),
    ("mount a disk", "apache listens", 0),
    ("mount a disk", "use cp", 0),
    ("attach a disk", "use mount", 1),
    ("attach a disk", "use cp", 0),
    ("copy a file", "use cp", 1),
    ("copy a file", "apache listens", 0),
    ("list files", "use ls", -1),
]
PAIRS = Pairs.build([q for q, _, _ in ROWS], [p for _, p, _ in ROWS], labels=[label for _, _, label in ROWS])


def minilm(prompts: Prompts | None = None) -> Any:
    return BiEncoderTeacher("builtin:minilm-l6", precision="fp32", prompts=prompts).library_model()


def test_an_example_is_a_question_with_a_right_passage() -> None:
    contrast = Contrast(PAIRS, 1, 2)
    named = [(contrast.questions[q], contrast.passages[p]) for q, p in contrast.examples]
    assert sorted(named) == sorted((q, p) for q, p, label in ROWS if label == 1)
    turned = Contrast(PAIRS, 0, 2)
    assert len(turned.examples) == 4


def test_right_passages_of_others_and_repeated_ones_are_left_out() -> None:
    contrast = Contrast(PAIRS, 1, 2)
    batch = contrast.batch(np.arange(len(contrast.examples)), seed=0)
    flat = [contrast.passages[one] if one >= 0 else None for one in batch.passages.T.ravel()]
    right = {q: {p for a, p, label in ROWS if a == q and label == 1} for q, _, _ in ROWS}
    for place, question in enumerate(batch.questions):
        name = contrast.questions[question]
        compared = [text for text, out in zip(flat, batch.left_out[place], strict=True) if not out]
        asked = flat[place]
        assert compared.count(asked) == 1
        others = [text for text in compared if text != asked]
        assert not set(others) & right[name]
        assert None not in others
        assert len(set(others)) == len(others)
        assert set(others) == {text for text in flat if text is not None} - right[name]
    assert batch.right.sum() > 0
    assert batch.again.sum() > 0


def test_random_batches_compare_what_sets_say() -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        rows = [(f"q{q}", f"p{p}", int(label)) for q, p, label in draw.integers([0, 0, -1], [8, 12, 2], (60, 3))]
        contrast = Contrast(Pairs.build(*zip(*[row[:2] for row in rows], strict=True),
                                        labels=[row[2] for row in rows]), 1, 2)  # fmt: skip
        right = {(q, p) for q, p, label in rows if label == 1}
        wrong = {(q, p) for q, p, label in rows if label == 0} - right
        batch = contrast.batch(np.arange(min(7, len(contrast.examples))), seed)
        flat = [contrast.passages[one] if one >= 0 else "" for one in batch.passages.T.ravel()]
        asked = [contrast.questions[one] for one in batch.questions]
        assert batch.right.tolist() == [
            [(question, text) in right and place != row for place, text in enumerate(flat)]
            for row, question in enumerate(asked)
        ]
        for question, *passages in np.column_stack([batch.questions, batch.passages[:, 1:]]).tolist():
            own = {(contrast.questions[question], contrast.passages[one]) for one in passages if one >= 0}
            assert own <= wrong


def test_memory_of_a_step_does_not_grow_with_the_right_pairs() -> None:
    names = [str(one) for one in range(20_000)]
    contrast = Contrast(Pairs.build(names, names, labels=[1] * len(names)), 1, 1)
    tracemalloc.start()
    try:
        contrast.batch(np.arange(8), seed=0)
        assert tracemalloc.get_traced_memory()[1] < 100_000  # a sort of all right pairs takes as many bytes, and more
    finally:
        tracemalloc.stop()


def test_wrong_passages_are_the_questions_own() -> None:
    contrast = Contrast(PAIRS, 1, 1)
    seen = set()
    for seed in range(20):
        batch = contrast.batch(np.arange(len(contrast.examples)), seed)
        for question, (_, wrong) in zip(batch.questions, batch.passages, strict=True):
            assert (contrast.questions[question], contrast.passages[wrong], 0) in ROWS
            seen.add((int(question), int(wrong)))
    assert len(seen) == 4  # all of them, in time


def test_what_is_compared_is_counted() -> None:
    contrast = Contrast(PAIRS, 1, 2)
    expected = dict.fromkeys(("compared", "right", "again"), 0)
    step = 0
    for epoch in range(3):
        for rows in contrast.steps(2, epoch, 5):
            batch = contrast.batch(rows, dropout_seed(5, step))
            expected["compared"] += int((~batch.left_out).sum()) - len(rows)
            expected["right"] += int(batch.right.sum())
            expected["again"] += int(batch.again.sum())
            step += 1
    assert contrast.count(2, 3, 5) == expected
    assert all(expected.values())


def test_steps_have_every_example_once_and_none_is_left_over() -> None:
    contrast = Contrast(PAIRS, 1, 0)
    for epoch in range(3):
        steps = contrast.steps(3, epoch, seed=1)
        assert [len(rows) for rows in steps] == [2, 2]
        assert sorted(np.concatenate(steps)) == list(range(4))
    assert [step.tolist() for step in contrast.steps(3, 0, 1)] == [step.tolist() for step in contrast.steps(3, 0, 1)]


def test_the_loss_by_hand_and_that_of_the_library() -> None:
    model = minilm()
    clean = Pairs.build(["mount a disk", "copy a file", "mount a disk", "copy a file"],
                        ["use mount", "use cp", "apache listens", "press save"], labels=[1, 1, 0, 0])  # fmt: skip
    contrast = Contrast(clean, 1, 1)
    model.eval()
    loss = ContrastiveGradients(model, contrast, 20.0, bf16=False)(np.arange(2), seed=3)
    texts = {text: model.encode(text) for text in [*contrast.questions, *contrast.passages]}
    batch = contrast.batch(np.arange(2), 3)
    columns = [np.stack([texts[contrast.passages[p]] for p in column]) for column in batch.passages.T]
    questions = np.stack([texts[contrast.questions[q]] for q in batch.questions])
    similar = 20 * questions @ np.concatenate(columns).T
    by_hand = np.mean([np.log(np.exp(row).sum()) - row[n] for n, row in enumerate(similar)])
    assert loss == pytest.approx(by_hand, abs=1e-4)
    tensors = [torch.from_numpy(one) for one in (questions, *columns)]
    theirs = MultipleNegativesRankingLoss(model, scale=20.0).compute_loss_from_embeddings(tensors, None)
    assert loss == pytest.approx(float(theirs), abs=1e-4)


def test_texts_are_compared_as_the_models_files_say() -> None:
    """Tuned by another similarity than it labels with, a model would learn an order that nobody asks for."""
    model = minilm()
    model.similarity_fn_name = "euclidean"
    vectors = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    gradients = ContrastiveGradients(model, Contrast(PAIRS, 1, 0), 1.0, bf16=False)
    gradients._left_out = torch.zeros(2, 2, dtype=torch.bool)
    apart = torch.tensor([[0.0, -(10**0.5)], [-(10**0.5), 0.0]])
    torch.testing.assert_close(gradients._masked(vectors, vectors), apart, atol=1e-3, rtol=0)


def test_what_is_left_out_has_no_gradient() -> None:
    """Of two questions with the same right passage, each is compared with nothing: the loss and its gradient are 0."""
    model = minilm()
    model.eval()
    same = Pairs.build(["mount a disk", "attach a disk"], ["use mount", "use mount"], labels=[1, 1])
    loss = ContrastiveGradients(model, Contrast(same, 1, 2), 20.0, bf16=False)(np.arange(2), seed=0)
    assert loss == pytest.approx(0, abs=1e-6)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(one).all()) and float(one.abs().max()) < 1e-6 for one in gradients)


def test_prompts_are_those_that_the_model_is_asked_with_afterwards() -> None:
    model = minilm(Prompts(query="question: ", passage="answer: "))
    model.eval()
    pairs = Pairs.build(["mount a disk"] * 2, ["use mount", "use cp"], labels=[1, 0])
    contrast = Contrast(pairs, 1, 1)
    loss = ContrastiveGradients(model, contrast, 20.0, bf16=False)(np.arange(1), seed=0)
    question, (right, wrong) = model.encode_query(["mount a disk"])[0], model.encode_document(["use mount", "use cp"])
    assert loss == pytest.approx(np.log1p(np.exp(20 * (question @ wrong - question @ right))), abs=1e-4)


def test_a_killed_training_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    rows = pair_rows()
    pairs = Pairs.build([str(r["question"]) for r in rows], [str(r["passage"]) for r in rows],
                        labels=[int(str(r["label"])) for r in rows])  # fmt: skip
    contrast = Contrast(pairs, 1, 2)

    def go(folder: Path, die_at: int | None) -> torch.Tensor:
        model = minilm()
        gradients = dying_after(die_at, ContrastiveGradients(model, contrast, 20.0, bf16=False))
        trained = {name: one for name, one in model.named_parameters() if "layer.5" in name}
        config = TrainerConfig(1e-4, 2, 4, seed=3, precision="fp32")
        Loop(trained, lambda epoch: contrast.steps(4, epoch, 3), gradients, config, name="t",
             state_folder=folder).fit(model)  # fmt: skip
        return torch.cat([one.detach().flatten() for one in trained.values()])

    whole = go(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", 3)
    assert torch.equal(whole, go(tmp_path / "cut", None))
