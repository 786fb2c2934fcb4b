"""Losses over the passages of a question against numbers computed by hand, and what each of them does not see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tmkd
from encoder_fixtures import tiny

from tmkd.training.list_losses import soft_adr_mse, soft_list_kl, soft_margin_mse, soft_scaled_margin_mse
from tmkd.training.losses import GROUPED, soft_loss

QUESTIONS = torch.tensor([5, 5, 5, 7])


def odds(values: list[float]) -> torch.Tensor:
    """Logits [n, 1, 2] of log-odds [n], with a shift that no loss may see."""
    found = torch.tensor(values, dtype=torch.float32)[:, None]
    return torch.stack([-found / 2, found / 2], dim=-1) + 3.0


def test_list_kl_by_hand() -> None:
    student, teacher = odds([0.0, 0.0, 0.0, 9.0]), odds([np.log(2.0), 0.0, 0.0, -4.0])
    # The teacher's softmax over the first question is 1/2, 1/4, 1/4; the student's 1/3 each; the last pair is alone.
    by_hand = 0.5 * np.log(1.5) + 2 * 0.25 * np.log(0.75)
    assert soft_list_kl(student, teacher, QUESTIONS)[:, 0].tolist() == pytest.approx([by_hand] * 3 + [0], abs=1e-6)
    hotter = odds([2 * np.log(2.0), 0.0, 0.0, 1.0])
    found = soft_list_kl(student, hotter, QUESTIONS, temperature=2.0)[:, 0]
    assert found.tolist() == pytest.approx([4 * by_hand] * 3 + [0], abs=1e-6)


def test_scaled_margins_by_hand() -> None:
    student, teacher = odds([1.0, 0.0, -1.0, 2.0]), odds([10.0, -10.0, 0.0, 3.0])
    # Mean squared margins: the student's 5/2, 1, 5/2, their mean 2; the teacher's 250, 250, 100, their mean 200.
    scaled = [10 / np.sqrt(200), -10 / np.sqrt(200), 0.0]
    errors = np.array([1.0, 0.0, -1.0]) / np.sqrt(2) - scaled
    by_hand = [np.mean([(errors[i] - errors[j]) ** 2 for j in range(3) if j != i]) for i in range(3)]
    assert soft_scaled_margin_mse(student, teacher, QUESTIONS)[:, 0].tolist() == pytest.approx([*by_hand, 0])
    for size in (0.01, 100):
        again = soft_scaled_margin_mse(student * size, teacher, QUESTIONS)
        assert again[:, 0].tolist() == pytest.approx([*by_hand, 0], rel=1e-4)
    still = soft_scaled_margin_mse(odds([0.0] * 4).requires_grad_(), teacher, QUESTIONS)
    assert torch.isfinite(still).all()


def test_ranks_by_hand() -> None:
    student, teacher = odds([0.0, np.log(3.0), 0.0, 5.0]), odds([9.0, 4.0, 4.0, 1.0])
    # The teacher's ranks are 1, 2.5 and 2.5; sigmoid(ln 3) = 3/4, so the student's are 1 + 3/4 + 1/2, 1 + 2/4, 2.25.
    by_hand = [(1 - 2.25) ** 2 / 1, (2.5 - 1.5) ** 2 / np.log2(3.5), (2.5 - 2.25) ** 2 / np.log2(3.5), 0]
    assert soft_adr_mse(student, teacher, QUESTIONS)[:, 0].tolist() == pytest.approx(by_hand, abs=1e-6)
    order = soft_adr_mse(student, odds([100.0, -4.0, -4.0, 1.0]), QUESTIONS)
    assert torch.equal(order, soft_adr_mse(student, teacher, QUESTIONS))  # only the teacher's order counts


@pytest.mark.parametrize("loss", [soft_list_kl, soft_margin_mse, soft_scaled_margin_mse, soft_adr_mse])
def test_the_level_of_a_question_stays_free_and_learning_finds_the_teachers_order(
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    student, teacher = odds([0.1, 0.0, 0.2, 1.0]), odds([3.0, 2.0, -1.0, 0.0])
    shifted = student + torch.tensor([-4.0, 4.0]) * (QUESTIONS == 5)[:, None, None]
    assert torch.allclose(loss(shifted, teacher, QUESTIONS), loss(student, teacher, QUESTIONS), atol=1e-5)
    learned = student.clone().requires_grad_()
    optimiser = torch.optim.Adam([learned], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        loss(learned, teacher, QUESTIONS).mean().backward()
        optimiser.step()
    found = (learned[:3, 0, 1] - learned[:3, 0, 0]).tolist()
    assert found == sorted(found, reverse=True)
    if loss is not soft_adr_mse:  # its ranks are only nearly those of the order
        assert float(loss(learned, teacher, QUESTIONS).detach().mean()) < 0.01


@pytest.mark.parametrize("loss", [soft_list_kl, soft_margin_mse, soft_scaled_margin_mse, soft_adr_mse])
def test_a_pair_without_a_label_is_compared_with_none(loss: Callable[..., torch.Tensor]) -> None:
    questions = torch.tensor([5, 5, 5, 5, 8, 8])
    student, teacher = odds([0.1, 0.7, 0.2, 1.0, 3.0, 1.0]), odds([3.0, 2.0, -1.0, 0.5, 0.0, 9.0])
    known = torch.tensor([True, False, True, True, False, False])
    learned = student.clone().requires_grad_()
    found = loss(learned, teacher, questions, known[:, None])
    only = loss(student[known], teacher[known], questions[known])
    assert torch.allclose(found[known], only, atol=1e-6)
    found[known].sum().backward()
    assert learned.grad is not None
    assert torch.isfinite(learned.grad).all()
    assert not learned.grad[~known].any()


def test_a_recipe_names_each_of_them() -> None:
    student, teacher = odds([0.0, 2.0, 1.0, 1.0]), odds([1.0, 3.0, -2.0, 0.0])
    wanted = {
        "list_kl": soft_list_kl(student, teacher, QUESTIONS, temperature=2.0),
        "margin_mse": soft_margin_mse(student, teacher, QUESTIONS),
        "margin_mse_scaled": soft_scaled_margin_mse(student, teacher, QUESTIONS),
        "adr_mse": soft_adr_mse(student, teacher, QUESTIONS),
    }
    assert set(wanted) == set(GROUPED)
    for kind, each in wanted.items():
        assert torch.equal(soft_loss(student, teacher, kind, 2.0, questions=QUESTIONS), each[:, 0])
        with pytest.raises(ValueError, match=f"{kind} compares the passages of a question"):
            soft_loss(student, teacher, kind, 2.0)


@pytest.mark.parametrize("kind", ["list_kl", "margin_mse_scaled", "adr_mse"])
def test_each_of_them_trains_a_student(tmkd: Tmkd, recipe_file: Path, tmp_path: Path, kind: str) -> None:
    encoder = f"encoder={tiny('bert', tmp_path / 'tiny')}"
    done = tmkd("distill", recipe_file, encoder, "methods=[tkd]", "take=tkd", f"loss.kind={kind}")
    assert "stage 1 of tkd" in done.stderr
