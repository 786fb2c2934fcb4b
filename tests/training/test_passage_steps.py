"""Steps that keep the pairs of a passage together, so that an encoder that is trained reads it once for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cached_run_fixtures import run_of, write_recipe
from encoder_fixtures import tiny

from tmkd.core.errors import RecipeError
from tmkd.models.batching import passage_steps
from tmkd.models.checkpoint import load_encoder
from tmkd.models.encoders.interaction import InteractionEncoder, InteractionShape
from tmkd.models.encoders.text_batches import TextBatch, TrainedReaders
from tmkd.models.inputs import TextInputs, TextSide
from tmkd.models.student import Student
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.training import training_set
from tmkd.training.gradients import MicroBatchGradients
from tmkd.training.objectives import TotalLoss
from tmkd.training.training_set import TrainingSet

QUESTIONS = [f"how do I mount disk {n % 5}" for n in range(24)]
PASSAGES = [f"passage {n // 4}: use the mount command" + " and wait" * (n // 4) for n in range(24)]


def texts(folder: Path) -> TextInputs:
    tokenizer = TextTokenizer(tiny("bert", folder, max_position_embeddings=64), 48)
    return TextInputs(TextSide.of(tokenizer, QUESTIONS), TextSide.of(tokenizer, PASSAGES))


def test_the_pairs_of_a_passage_stand_together_and_every_pair_once() -> None:
    passages = np.random.default_rng(1).integers(0, 300, 2000)
    lengths = np.random.default_rng(2).integers(8, 128, 300)[passages]
    steps = list(passage_steps(passages, lengths, 32, epoch=1, seed=7))
    assert sorted(np.concatenate(steps).tolist()) == list(range(2000))
    assert max(map(len, steps)) == 32
    read = sum(len(np.unique(passages[rows])) for rows in steps)
    assert read <= 300 + len(steps)  # a step ends within one passage at most
    wasted = [1 - lengths[rows].mean() / lengths[rows].max() for rows in steps]
    assert np.mean(wasted) < 0.2
    again = passage_steps(passages, lengths, 32, epoch=1, seed=7)
    assert all(np.array_equal(a, b) for a, b in zip(steps, again, strict=True))
    assert not np.array_equal(np.concatenate(steps), np.concatenate(passage_steps(passages, lengths, 32, 2, 7)))


def test_a_step_is_cut_by_the_tokens_of_its_distinct_texts(tmp_path: Path) -> None:
    inputs = texts(tmp_path)
    rows = np.arange(24)
    assert [part.tolist() for part in inputs.cut(rows, 10_000)] == [rows.tolist()]
    budget = 60
    parts = inputs.cut(rows, budget)
    assert np.concatenate(parts).tolist() == rows.tolist()
    most = budget + int((inputs.questions.lengths + 2 * inputs.passages.lengths).max())
    for part in parts:
        _, first = np.unique(inputs.passages.rows[part], return_index=True)
        tokens = inputs.questions.lengths[part].sum() + inputs.passages.lengths[part][first].sum()
        assert tokens <= most
    assert len(parts) < 24


def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = texts(tmp_path / "tiny")
    torch.manual_seed(0)
    encoder = InteractionEncoder(InteractionShape(48, 16, 48, heads=4, ffn=32), tmp_path / "tiny")
    encoder.readers = TrainedReaders(load_encoder(tmp_path / "tiny", 2))
    model = Student(encoder, 2)
    wanted = torch.linspace(-1, 1, 24)

    def gradients(data: TrainingSet, tokens: int) -> list[np.ndarray]:
        monkeypatch.setattr(training_set, "batch_tokens", lambda: tokens)
        model.zero_grad()
        loss = TotalLoss(lambda output, places: (output.golden[:, 1] - wanted[places]) ** 2)
        MicroBatchGradients(model, data, loss, bf16=False)(rows, 0)
        return [part.grad.numpy().copy() for part in model.parameters() if part.grad is not None]

    together = TrainingSet(inputs, by_passage=True)
    (rows,) = together.steps(24, epoch=0, seed=3)
    whole, cut, plain = gradients(together, 10_000), gradients(together, 60), gradients(TrainingSet(inputs), 10_000)
    assert len(whole) > 40
    for one, two, three in zip(whole, cut, plain, strict=True):
        np.testing.assert_allclose(two, one, atol=2e-6)
        np.testing.assert_allclose(three, one, atol=2e-6)


def test_texts_without_padding_give_what_padded_ones_give(tmp_path: Path) -> None:
    """The same h, and the same gradients of the encoder, of texts of many lengths."""
    tokenizer = TextTokenizer(tiny("bert", tmp_path, max_position_embeddings=64), 48)
    asked = [" ".join(["mount"] * (1 + n % 7)) for n in range(24)]
    read = [" ".join(["use the disk"] * (1 + 5 * n % 13)) for n in range(24)]
    inputs = TextInputs(TextSide.of(tokenizer, asked), TextSide.of(tokenizer, read))
    torch.manual_seed(0)
    encoder = InteractionEncoder(InteractionShape(48, 16, 48, heads=4, ffn=32), tmp_path)
    encoder.readers = TrainedReaders(load_encoder(tmp_path, 2))
    rows, found = np.random.default_rng(0).permutation(24), []
    for packed in (False, True):
        encoder.zero_grad()
        questions, passages = (side.batch(rows, packed=packed) for side in (inputs.questions, inputs.passages))
        h = encoder(TextBatch(*questions, *passages))
        (h * torch.linspace(-1, 1, h.numel()).sin().view(h.shape)).sum().backward()
        found.append([h.detach().numpy(), *(p.grad.numpy().copy() for p in encoder.parameters() if p.grad is not None)])
    assert len(found[0]) > 40
    for padded, without in zip(*found, strict=True):
        np.testing.assert_allclose(without, padded, atol=1e-5)


def test_several_processes_share_a_step_out_by_passage(tmp_path: Path) -> None:
    inputs = texts(tmp_path)
    data = TrainingSet(inputs, by_passage=True)
    (rows,) = data.steps(24, epoch=0, seed=3)
    shares = [data.share(rows, rank, 2) for rank in range(2)]
    assert np.concatenate(shares).tolist() == rows.tolist()
    assert [len(np.unique(inputs.passages.rows[share])) for share in shares] == [3, 3]
    assert sorted(np.concatenate([TrainingSet(inputs).share(rows, rank, 3) for rank in range(3)]).tolist()) == sorted(
        rows.tolist()
    )


def test_a_run_trains_the_encoder_passage_by_passage(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    keys = ["methods=[tmkd]", "cached.encoder_learning_rate=1.0e-3"]
    run, other = run_of(recipe, *keys, "cached.stage1.by_passage=true"), run_of(recipe, *keys, "name=other")
    run.distill()
    other.distill()
    assert run.students.taken().stage1[0].folder != other.students.taken().stage1[0].folder
    for without in ([], ["cached.encoder_learning_rate=1.0e-3", "cached.trains_in=last"]):
        with pytest.raises(RecipeError, match=r"by_passage: stage 1 trains no encoder .* trains_in: all"):
            run_of(recipe, "cached.stage1.by_passage=true", *without)
    with pytest.raises(RecipeError, match=r"keeps passages together, and loss\.kind list_kl questions"):
        run_of(recipe, *keys, "cached.stage1.by_passage=true", "loss.kind=list_kl")
