"""Auxiliary objectives: how they enter the loss of a run, with numbers computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import pair_rows
from encoder_fixtures import tiny

from tmkd.models.checkpoint import load_encoder
from tmkd.models.encoders.forward import Batch
from tmkd.models.inputs import TokenInputs
from tmkd.models.student import AnyBatch, Student, StudentOutput
from tmkd.models.tokenizer import PairTokenizer
from tmkd.training import training_set
from tmkd.training.gradients import MicroBatchGradients, WholeStepGradients
from tmkd.training.losses import golden_loss
from tmkd.training.objectives import AuxiliaryObjective, TotalLoss
from tmkd.training.training_set import TrainingSet


class Squares(AuxiliaryObjective):
    """The square of the first golden logit."""

    def loss(self, output: StudentOutput, batch: AnyBatch, rows: torch.Tensor) -> torch.Tensor:
        """See `AuxiliaryObjective.loss`."""
        return output.golden[:, 0].square()


def test_the_total_loss_adds_each_objective_times_its_weight() -> None:
    output = StudentOutput(torch.tensor([[2.0, 0.0], [3.0, 0.0]]), torch.zeros(2, 0, 2))
    total = TotalLoss(lambda output, rows: rows.float(), [Squares(0.5, [1]), Squares(10.0, [0, 1])])
    model: Any = lambda batch, layers: output if layers == (0, 1) else None  # noqa: E731
    batch, rows = Batch(torch.zeros(2, 1), None, None), torch.tensor([100, 200])
    found, auxiliary = total.run(model, batch, rows)
    assert [term.tolist() for term in auxiliary] == [[2.0, 4.5], [40.0, 90.0]]
    assert total.total(found, auxiliary, rows).tolist() == [142.0, 294.5]


def test_an_objective_ends_after_its_share_of_the_steps() -> None:
    output = StudentOutput(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 0, 2))
    total = TotalLoss(lambda output, rows: rows.float(), [Squares(0.5, [1], until=0.5), Squares(10.0, [0])])
    asked: list[tuple[int, ...]] = []

    def model(batch: AnyBatch, layers: tuple[int, ...]) -> Any:
        asked.append(layers)
        return output

    batch, rows = Batch(torch.zeros(1, 1), None, None), torch.tensor([100])
    losses = []
    for done in (0.0, 0.25, 0.5, 0.75):
        total.begin_step(done)
        found, auxiliary = total.run(cast("Any", model), batch, rows)
        losses.append(total.total(found, auxiliary, rows).item())
    assert losses == [142.0, 142.0, 140.0, 140.0]
    assert asked == [(0, 1), (0, 1), (0,), (0,)]


@pytest.mark.parametrize("whole_step", [False, True])
def test_an_objective_has_the_gradient_of_a_loss_that_it_is_part_of(
    whole_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the main loss or inside it, in one micro-batch or many: the same loss and the same gradient."""
    source, rows = tiny("bert", tmp_path / "tiny"), pair_rows()
    labels = torch.tensor([int(str(row["label"])) for row in rows])
    tokenizer = PairTokenizer(source, 64)
    encoded = tokenizer.encode([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])

    def main(output: StudentOutput, which: torch.Tensor) -> torch.Tensor:
        return golden_loss(output.golden, labels[which])

    def gradient(loss: TotalLoss, budget: int, whole: bool) -> tuple[float, torch.Tensor]:
        monkeypatch.setattr(training_set, "batch_tokens", lambda: budget)
        torch.manual_seed(0)
        model = Student(load_encoder(source, 2, layers=1, dropout=0.0), 2).train()
        torch.nn.init.normal_(model.golden.weight)
        micro = MicroBatchGradients(model, TrainingSet(TokenInputs(encoded, tokenizer.pad_id)), loss, bf16=False)
        value = (WholeStepGradients(micro) if whole else micro)(np.arange(24), 5)
        return value, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    inside = TotalLoss(lambda output, which: main(output, which) + 0.25 * output.golden[:, 0].square())
    value, expected = gradient(inside, 100_000, False)
    for budget in (200, 20):
        found_value, found = gradient(TotalLoss(main, [Squares(0.25, [])]), budget, whole_step)
        assert found_value == pytest.approx(value, rel=1e-5)
        assert (found - expected).norm() / expected.norm() < 1e-5
