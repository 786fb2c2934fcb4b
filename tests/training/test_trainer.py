"""The loop: what a step is, exact resume, losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import dying_after, pair_rows
from encoder_fixtures import tiny

from tmkd.core import hardware
from tmkd.core.errors import Diverged
from tmkd.data.pairs import Pairs
from tmkd.models.batching import epoch_steps, length_sorted_batches, micro_batches
from tmkd.models.checkpoint import load_encoder
from tmkd.models.encoders.find import find_encoder
from tmkd.models.encoders.forward import PairEncoder
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import score
from tmkd.models.student import AnyBatch, Student, StudentOutput
from tmkd.models.tokenizer import PairTokenizer
from tmkd.training import state, training_set
from tmkd.training.gradients import dropout_seed
from tmkd.training.losses import GoldenLoss, golden_loss
from tmkd.training.objectives import AuxiliaryObjective, PairLoss
from tmkd.training.state import CurvePoint, LearningCurve
from tmkd.training.trainer import Trainer, TrainerConfig
from tmkd.training.training_set import TrainingSet


def setting(dropout: float = 0.1) -> tuple[Student, PairTokenizer, Pairs]:
    folder = find_encoder("builtin:minilm-l6")
    torch.manual_seed(0)
    rows = pair_rows()
    pairs = Pairs.build(
        [str(r["question"]) for r in rows],
        [str(r["passage"]) for r in rows],
        labels=[int(str(r["label"])) for r in rows],
    )
    return Student(load_encoder(folder, 2, layers=1, dropout=dropout), 2), PairTokenizer(folder, 64), pairs


def weights(model: Student) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_killed_run_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainerConfig(1e-4, 2, 8, seed=3, precision="fp32")
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)

    def go(folder: Path, die_at: int | None) -> Student:
        model, tokenizer, pairs = setting()
        loss = dying_after(die_at, GoldenLoss(torch.from_numpy(pairs.labels)))
        encoded = tokenizer.encode(pairs.questions, pairs.passages)
        data = TrainingSet(TokenInputs(encoded, tokenizer.pad_id))
        Trainer(model, data, loss, config, name="t", state_folder=folder).fit()
        return model

    whole = go(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", 5)
    resumed = go(tmp_path / "cut", None)
    assert torch.equal(weights(whole), weights(resumed))


def test_micro_batches_give_the_gradient_of_the_whole_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for budget in (100_000, 100):
        monkeypatch.setattr(training_set, "batch_tokens", lambda budget=budget: budget)
        model, tokenizer, pairs = setting(dropout=0.0)
        encoded = tokenizer.encode(pairs.questions, pairs.passages)
        config = TrainerConfig(1e-4, 1, 16, seed=0, precision="fp32")
        loss = GoldenLoss(torch.from_numpy(pairs.labels))
        data = TrainingSet(TokenInputs(encoded, tokenizer.pad_id))
        Trainer(model, data, loss, config, name="t", state_folder=tmp_path / str(budget)).fit()
        results.append(score(model, TokenInputs(encoded, tokenizer.pad_id), precision="fp32"))
    np.testing.assert_allclose(results[0], results[1], atol=2e-4)


def trained(model: Student, tokenizer: PairTokenizer, pairs: Pairs, loss: PairLoss, config: TrainerConfig,
            folder: Path) -> tuple[Trainer, list[CurvePoint]]:  # fmt: skip
    """A trainer that has trained, and its curve."""
    data = TrainingSet(TokenInputs(tokenizer.encode(pairs.questions, pairs.passages), tokenizer.pad_id))
    trainer = Trainer(model, data, loss, config, name="t", state_folder=folder)
    return trainer, trainer.fit()


def test_the_learning_rate_rises_and_falls_linearly(tmp_path: Path) -> None:
    """METHOD.md, "Defaults": 10% warm-up, then a linear decay. Here a fifth of ten steps."""
    rate = TrainerConfig(8.0, 1, 8, 0, warmup=0.2).schedule(10)
    assert [rate(step) for step in range(11)] == pytest.approx([4, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    model, tokenizer, pairs = setting()
    config = TrainerConfig(8e-5, 1, 16, seed=0, warmup=0.5, precision="fp32")
    loss = GoldenLoss(torch.from_numpy(pairs.labels))
    _, curve = trained(model, tokenizer, pairs, loss, config, tmp_path)
    assert [point["learning_rate"] for point in curve] == pytest.approx([4e-5, 8e-5, 8e-5, 4e-5])  # 64 pairs


def test_a_point_of_the_curve_is_the_mean_since_the_last() -> None:
    curve = LearningCurve([], total=200, epochs=4, pairs=1600)  # a point every second step
    for step, loss in enumerate([4.0, 2.0, 7.0, 1.0], start=1):
        curve.add(step, loss, 0.5, 8)
    rows = [{name: point[name] for name in ("step", "epoch", "loss", "pairs")} for point in curve.points]
    assert rows == [
        {"step": 2, "epoch": 0.04, "loss": 3.0, "pairs": 16.0},
        {"step": 4, "epoch": 0.08, "loss": 4.0, "pairs": 32.0},
    ]


def test_weight_decay_shrinks_matrices_and_leaves_vectors(tmp_path: Path) -> None:
    """One step at rate 0.1 with a gradient of 0: AdamW multiplies a matrix by 1 - 0.1 * 0.5, and does nothing else."""
    model, tokenizer, pairs = setting()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    config = TrainerConfig(0.1, 1, 64, seed=0, weight_decay=0.5, precision="fp32")
    trained(model, tokenizer, pairs, lambda output, rows: 0 * output.golden.sum(dim=1), config, tmp_path)
    after = dict(model.named_parameters())
    vectors = {name for name in before if name.endswith("bias") or "LayerNorm" in name}
    learning = {name for name in before if after[name].grad is not None}
    assert learning & vectors
    assert learning - vectors
    for name, old in before.items():
        shrunk = old * 0.95 if name in learning - vectors else old
        torch.testing.assert_close(after[name].detach(), shrunk, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("clip", "expected"), [(0.25, 0.25), (1e9, 3.0)])
def test_the_gradient_norm_over_all_parameters_is_clipped(clip: float, expected: float, tmp_path: Path) -> None:
    """The gradient of 3 b[0] is 3 at the golden head's first bias and 0 elsewhere."""
    model, tokenizer, pairs = setting(dropout=0.0)
    torch.nn.init.zeros_(model.golden.weight)
    config = TrainerConfig(1e-4, 1, 64, seed=0, clip=clip, precision="fp32")

    def loss(output: StudentOutput, rows: torch.Tensor) -> torch.Tensor:
        return 3 * model.golden.bias[0].expand(len(rows)) + 0 * output.golden.sum(dim=1)

    trainer, _ = trained(model, tokenizer, pairs, loss, config, tmp_path)
    gradients = torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])
    assert float(gradients.norm()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
@pytest.mark.parametrize("family", ["minilm", "mpnet", "roberta"])
def test_every_attention_gives_the_same_outputs_and_gradients(
    family: str, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = find_encoder("builtin:minilm-l6") if family == "minilm" else tiny(family, tmp_path / "tiny")
    torch.manual_seed(0)
    model = Student(load_encoder(folder, 2, layers=2), 2)
    torch.nn.init.normal_(model.golden.weight, std=0.5)
    tokenizer, pairs = PairTokenizer(folder, 64), setting()[2]
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    found = []
    for how in ("matmul", attention):
        monkeypatch.setattr(hardware, "_forced_attention", how)
        model.zero_grad()
        output = model(TokenInputs(encoded, tokenizer.pad_id).batch(model, np.arange(len(pairs)), bf16=False))
        golden_loss(output.golden, torch.from_numpy(pairs.labels)).mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((output.golden.detach(), gradient))
    (plain, plain_gradient), (other, other_gradient) = found
    assert model.encoder.packs == (family != "mpnet")  # a bias by distance: padded, whatever is forced
    assert torch.allclose(plain, other, atol=1e-5)
    assert (plain_gradient - other_gradient).norm() / plain_gradient.norm() < 1e-4


def test_training_learns_and_frozen_embeddings_stay(tmp_path: Path) -> None:
    model, tokenizer, pairs = setting()
    topics = sorted(set(pairs.passages))
    labels = torch.tensor([topics.index(passage) % 2 for passage in pairs.passages])
    assert isinstance(model.encoder, PairEncoder)
    before = model.encoder.base.embeddings.word_embeddings.weight.clone()
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    data, config = TrainingSet(TokenInputs(encoded, tokenizer.pad_id)), TrainerConfig(3e-4, 12, 8, seed=0)
    curve = Trainer(model, data, GoldenLoss(labels), config, name="t", state_folder=tmp_path).fit()
    losses = [point["loss"] for point in curve]  # one point per step, 8 steps an epoch
    assert np.mean(losses[-8:]) < 0.2 * np.mean(losses[:8])
    assert torch.equal(before, model.encoder.base.embeddings.word_embeddings.weight)


def test_an_objective_ends_after_its_share_of_all_steps(tmp_path: Path) -> None:
    asked: list[int] = []

    class Nothing(AuxiliaryObjective):
        def loss(self, output: StudentOutput, batch: AnyBatch, rows: torch.Tensor) -> torch.Tensor:
            asked.append(len(rows))
            return output.golden.sum(dim=1) * 0

    model, tokenizer, pairs = setting(dropout=0.0)
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    data, labels = TrainingSet(TokenInputs(encoded, tokenizer.pad_id)), torch.from_numpy(pairs.labels)
    config, objective = TrainerConfig(1e-4, 3, 8, seed=0), Nothing(1.0, [], until=0.5)
    curve = Trainer(
        model, data, GoldenLoss(labels), config, objectives=[objective], name="t", state_folder=tmp_path
    ).fit()
    assert curve[-1]["step"] == 24  # three epochs of eight
    assert sum(asked) == 12 * 8


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    model, tokenizer, pairs = setting()
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    data, config = TrainingSet(TokenInputs(encoded, tokenizer.pad_id)), TrainerConfig(1e-4, 1, 8, 0)
    trainer = Trainer(
        model, data, lambda output, rows: output.golden.sum(1) * torch.nan, config, name="t", state_folder=tmp_path
    )
    with pytest.raises(Diverged, match="learning rate"):
        trainer.fit()


def test_every_row_once_and_the_same_order_on_every_call() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, 333)
    steps = epoch_steps(lengths, 32, epoch=1, seed=7)
    again = epoch_steps(lengths, 32, epoch=1, seed=7)
    assert sorted(np.concatenate(steps)) == list(range(333))
    assert all(np.array_equal(a, b) for a, b in zip(steps, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(steps, epoch_steps(lengths, 32, 2, 7), strict=True))
    batches = length_sorted_batches(lengths, 256, max_pairs=8)
    assert sorted(np.concatenate(batches)) == list(range(333))
    assert all(lengths[batch].max() * len(batch) <= 256 and len(batch) <= 8 for batch in batches)


def test_micro_batches_of_one_size_keep_to_the_budget() -> None:
    """Widths are multiples of 8, and the longest pair counts: two pairs of 16 tokens fill a budget of 32."""
    lengths = np.array([8, 3, 16, 9, 7])
    assert [part.tolist() for part in micro_batches(lengths, 32)] == [[2, 3], [0, 4], [1]]
    assert [part.tolist() for part in micro_batches(lengths[[0, 1, 4]], 32)] == [[0, 2, 1]]
    assert [part.tolist() for part in micro_batches(lengths, 10)] == [[2], [3], [0], [4], [1]]  # too long: alone


def test_dropout_depends_on_the_seed_and_on_the_step() -> None:
    def draws(seed: int, step: int) -> tuple[float, ...]:
        torch.manual_seed(dropout_seed(seed, step))
        return tuple(torch.rand(4).tolist())

    assert len({draws(seed, step) for seed in range(4) for step in range(4)}) == 16
    assert draws(1, 2) == draws(1, 2)


def test_the_order_of_an_epoch_is_that_of_earlier_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted before an update continues with the same pairs."""
    lengths = np.random.default_rng(0).integers(5, 90, 333)
    monkeypatch.setattr("tmkd.models.batching.WINDOW", 4)

    def of_lists(epoch: int, seed: int) -> list[list[int]]:
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(lengths))
        steps = []
        for start in range(0, len(order), 4 * 8):
            rows = order[start : start + 4 * 8]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            cuts = [rows[place : place + 8].tolist() for place in range(0, len(rows), 8)]
            steps += [cuts[place] for place in generator.permutation(len(cuts))]
        return steps

    for epoch, seed in ((0, 7), (1, 7), (0, 8)):
        found = epoch_steps(lengths.astype(np.int32), 8, epoch, seed)
        assert [step.tolist() for step in found] == of_lists(epoch, seed)
        assert found.order.dtype == np.int32
        assert found[0].dtype == np.int64
        assert found[-1].tolist() == found[len(found) - 1].tolist() == of_lists(epoch, seed)[-1]
        assert [step.tolist() for step in found[2:5]] == of_lists(epoch, seed)[2:5]
        with pytest.raises(IndexError):
            found[len(found)]
    assert len(epoch_steps(lengths[:0], 8, 0, 0)) == 0
