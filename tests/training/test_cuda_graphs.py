"""Recorded steps give the numbers of steps that are not recorded. Without a GPU a recording is work that runs again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pair_rows
from encoder_fixtures import tiny

from tmkd.core.hardware import device
from tmkd.models.checkpoint import load_encoder, save_student
from tmkd.models.inputs import TokenInputs
from tmkd.models.student import Student
from tmkd.models.tokenizer import PairTokenizer
from tmkd.training import trainer, training_set
from tmkd.training.cuda_graphs import GraphedGradients, Work
from tmkd.training.gradients import GraphsWhereTheyFit, MicroBatchGradients
from tmkd.training.hidden_states import HiddenStatesConfig, hidden_states_objectives
from tmkd.training.losses import GoldenLoss, soft_kl
from tmkd.training.objectives import TotalLoss
from tmkd.training.trainer import Trainer, TrainerConfig
from tmkd.training.training_set import TrainingSet

CONFIG = TrainerConfig(1e-3, 2, 8, seed=0, precision="fp32")
STEPS = [np.arange(8), np.array([23, 3, 11, 5]), np.arange(8, 16), np.array([1, 20, 4, 9])]
"""The rows of steps of two sizes, each size twice: the second is a replay."""


def again(work: Work) -> Work:
    """Stand in for a recording: like a recording, it first runs the work a few times."""
    for _ in range(3):
        work()
    return work


recorders = pytest.mark.parametrize(
    "record",
    [
        pytest.param(again, id="run-again"),
        pytest.param(None, id="cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)


def set_of(folder: Path) -> TrainingSet:
    tokenizer, rows = PairTokenizer(folder, 64), pair_rows()
    encoded = tokenizer.encode([str(r["question"]) for r in rows], [str(r["passage"]) for r in rows])
    return TrainingSet(TokenInputs(encoded, tokenizer.pad_id))


def setting(folder: Path) -> MicroBatchGradients:
    """A student in stage 1 that also learns hidden states; its golden head learns nothing."""
    source = tiny("bert", folder / "encoder", num_hidden_layers=4)
    torch.manual_seed(0)
    save_student(Student(load_encoder(source, 2), 2), folder / "teacher", source, 64, {})
    student = Student(load_encoder(folder / "teacher", 2, layers=2, start="spaced"), 2, 2, use_golden=False)
    objectives = hidden_states_objectives(student.encoder, [folder / "teacher"], HiddenStatesConfig(10.0, "fp32"))
    assert len(objectives) == 1
    data = set_of(source)
    soft = torch.randn(len(data.inputs.lengths), 2, 2, generator=torch.Generator().manual_seed(1)).to(device())
    for module in (student, *objectives):
        module.to(device())
    loss = TotalLoss(lambda output, rows: soft_kl(output.soft, soft[rows]).sum(dim=1), objectives)
    return MicroBatchGradients(student.train(), data, loss, bf16=False)


def gradients(model: Student) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@recorders
def test_every_step_has_the_gradients_of_one_that_is_not_recorded(
    record: Callable[[Work], Work] | None, tmp_path: Path
) -> None:
    eager = setting(tmp_path)
    model = eager.model
    graphs = GraphedGradients(model, eager.data, eager.loss, bf16=False, record=record)
    take = GraphsWhereTheyFit(graphs, eager)
    for number, rows in enumerate(STEPS):
        model.zero_grad(set_to_none=True)
        expected = eager(rows, number), gradients(model)
        model.zero_grad(set_to_none=True)
        found = take(rows, number), gradients(model)
        assert found[0] == pytest.approx(expected[0], rel=1e-4)
        assert found[1]
        assert found[1].keys() == expected[1].keys()
        assert not any(name.startswith("golden") for name in found[1])
        for name, gradient in found[1].items():
            torch.testing.assert_close(gradient, expected[1][name], rtol=1e-3, atol=1e-5)
    assert len(graphs.shapes) == 2  # the first step shows which parameters learn, and is not recorded


@recorders
def test_a_step_of_several_micro_batches_is_not_recorded(
    record: Callable[[Work], Work] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = setting(tmp_path)
    model = eager.model
    graphs = GraphedGradients(model, eager.data, eager.loss, bf16=False, record=record)
    take = GraphsWhereTheyFit(graphs, eager)
    take(STEPS[0], 0)
    monkeypatch.setattr(training_set, "batch_tokens", lambda: 100)
    model.zero_grad(set_to_none=True)
    found = take(STEPS[2], 1), gradients(model)
    monkeypatch.undo()
    assert not graphs.shapes
    model.zero_grad(set_to_none=True)
    assert take(STEPS[2], 1) == pytest.approx(found[0], rel=1e-4)
    again = gradients(model)
    assert again
    assert again.keys() == found[1].keys()
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_ends_where_one_without_graphs_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([int(str(r["label"])) for r in pair_rows()]).to(device())
    ends = []
    for way in ("graphs", "eager"):
        folder = tiny("bert", tmp_path / way)
        torch.manual_seed(0)
        model = Student(load_encoder(folder, 2), 2)
        if way == "eager":
            monkeypatch.setattr(trainer, "gradients_of", MicroBatchGradients)
        Trainer(
            model, set_of(folder), GoldenLoss(labels), CONFIG, name="t", state_folder=tmp_path / way / "state"
        ).fit()
        ends.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=2e-4)
