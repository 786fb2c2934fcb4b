"""Losses and weights against numbers computed by hand; a grouped loss whatever the token budget; its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tmkd, dying_after, pair_rows, write_jsonl
from encoder_fixtures import tiny

from tmkd.config.methods import METHODS
from tmkd.config.sections import Loss
from tmkd.core.errors import DataError
from tmkd.data.pairs import Pairs
from tmkd.models.batching import grouped_epoch_steps
from tmkd.models.checkpoint import load_encoder
from tmkd.models.inputs import TokenInputs
from tmkd.models.student import Student, StudentOutput
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.preflight import require_comparable
from tmkd.training import state, training_set
from tmkd.training.gradients import MicroBatchGradients, WholeStepGradients
from tmkd.training.list_losses import soft_margin_mse
from tmkd.training.losses import golden_loss, soft_kl, soft_loss, soft_mse, soft_mse_logits
from tmkd.training.objectives import TotalLoss
from tmkd.training.targets import Replay, SoftLabelLoss, Targets, questions_of, stage2_loss
from tmkd.training.teacher_weights import above_chance, confidence_weights, development_weights
from tmkd.training.trainer import Trainer, TrainerConfig
from tmkd.training.training_set import TrainingSet


def odds(values: list[list[float]]) -> torch.Tensor:
    """Logits [n, K, 2] of log-odds [n, K], with a shift that no loss may see."""
    found = torch.tensor(values)
    return torch.stack([-found / 2, found / 2], dim=-1) + 3.0


def test_mse_and_kl_against_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 3, 2, generator=generator), torch.randn(5, 3, 2, generator=generator)
    p, r = student.softmax(-1), teacher.softmax(-1)
    for row in range(5):
        for k in range(3):
            assert soft_mse(student, teacher)[row, k] == pytest.approx(float(((p - r)[row, k] ** 2).mean()), rel=1e-5)
            kl = float((r[row, k] * (r[row, k] / p[row, k]).log()).sum())
            assert soft_kl(student, teacher)[row, k] == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert float(soft_kl(teacher, teacher + 5.0).abs().max()) < 1e-6  # softmax does not see a common shift
    assert list(golden_loss(student[:2, 0], torch.tensor([-1, 1])) > 0) == [False, True]


def test_mse_and_kl_by_hand() -> None:
    student, teacher = odds([[0.0]]), odds([[np.log(3.0)]])  # probabilities 1/2, 1/2 and 1/4, 3/4
    assert float(soft_mse(student, teacher)) == pytest.approx(1 / 16)
    assert float(soft_kl(student, teacher)) == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5), rel=1e-5)
    softer = 1 / (1 + np.sqrt(3.0))  # of the first class at temperature 2
    expected = 4 * (softer * np.log(2 * softer) + (1 - softer) * np.log(2 * (1 - softer)))
    assert float(soft_kl(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-4)


def test_mse_of_centred_logits_by_hand() -> None:
    student, teacher = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[10.0, 10.0, 13.0]]])
    # centred: (-1, 0, 1) and (-1, -1, 2)
    assert float(soft_mse_logits(student, teacher)) == pytest.approx((0 + 1 + 1) / 3)
    assert float(soft_mse_logits(student, teacher - 7)) == pytest.approx(2 / 3)


def test_margins_by_hand() -> None:
    student, teacher = odds([[1.0], [0.0], [4.0], [2.0]]), odds([[3.0], [1.0], [2.0], [9.0]])
    questions = torch.tensor([5, 5, 5, 7])
    # errors of log-odds: -2, -1, 2; the fourth pair is alone with its question
    expected = [(1 + 16) / 2, (1 + 9) / 2, (16 + 9) / 2, 0]
    assert soft_margin_mse(student, teacher, questions)[:, 0].tolist() == pytest.approx(expected)
    shifted = student + torch.tensor([-4.0, 4.0]) * (questions == 5)[:, None, None]
    assert torch.allclose(soft_margin_mse(shifted, teacher, questions), soft_margin_mse(student, teacher, questions))


def test_a_recipe_names_the_loss_and_weights_its_heads() -> None:
    student, teacher = odds([[0.0, 1.0], [2.0, -1.0]]), odds([[1.0, 1.5], [0.0, 3.0]])
    weights, questions = torch.tensor([[0.25, 0.75], [1.0, 0.0]]), torch.tensor([0, 0])
    kinds = {
        "kl": soft_kl(student, teacher, 2.0),
        "mse": soft_mse(student, teacher),
        "mse_logits": soft_mse_logits(student, teacher),
        "margin_mse": soft_margin_mse(student, teacher, questions),
    }
    for kind, each in kinds.items():
        found = soft_loss(student, teacher, kind, 2.0, questions=questions)
        assert found.tolist() == pytest.approx(each.mean(1).tolist())
        found = soft_loss(student, teacher, kind, 2.0, weights=weights, questions=questions)
        hand = [0.25 * float(each[0, 0]) + 0.75 * float(each[0, 1]), float(each[1, 0])]
        assert found.tolist() == pytest.approx(hand)


def test_weights_by_development_metric() -> None:
    labels = np.array([0, 1, 1, 0, -1])
    right, half, wrong = ([-2.0, 1, 2, -1, 9], [0.0, 1, -1, -1, 9], [2.0, -1, -2, 1, 9])
    metrics = [above_chance(odds([[v] for v in one])[:, 0].numpy(), labels) for one in (right, half, wrong)]
    assert metrics == pytest.approx([0.5, (1 + 1 + 0 + 0.5) / 4 - 0.5, 0.0])
    assert development_weights(metrics).tolist() == pytest.approx([0.8, 0.2, 0.0])
    assert development_weights([0.0, 0.0]).tolist() == [0.5, 0.5]
    three = np.eye(3)[[0, 1, 2, 2]] * 5
    assert above_chance(three, np.array([0, 1, 2, 0])) == pytest.approx(3 / 4 - 2 / 4)


def test_weights_by_confidence() -> None:
    sure, wavers = np.log([0.9, 0.1]), np.log([0.5, 0.5])
    logits = np.array([[sure, wavers], [wavers, wavers], [sure, sure]])
    weights = confidence_weights(logits)
    c = 1 - (-(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)))
    assert weights[0].tolist() == pytest.approx([(c + 1e-6) / (c + 2e-6), 1e-6 / (c + 2e-6)])
    assert weights[1:].ravel().tolist() == pytest.approx([0.5] * 4)
    many = confidence_weights(np.random.default_rng(0).normal(size=(50, 4, 3)) * 9)
    np.testing.assert_allclose(many.sum(axis=1), 1)


def test_targets_are_weighed_where_there_is_more_than_one() -> None:
    generator = np.random.default_rng(0)
    logits = [generator.normal(size=(6, 2)).astype(np.float32) for _ in range(3)]

    def chosen(name: str) -> Targets:
        found = Targets.choose(METHODS[name], ["a", "b", "c"], logits, 1)
        assert found is not None
        return found

    def never() -> np.ndarray:
        raise AssertionError("the development set is not read")

    assert chosen("tmkd").weigh("uniform", never).weights is None
    assert chosen("1avg-tkd").weigh("development", never).weights is None  # one soft label: nothing to weigh
    by_metric = chosen("tmkd").weigh("development", lambda: np.array([0.5, 0.3, 0.2]))
    assert by_metric.weights is not None
    assert by_metric.weights.shape == (6, 3)
    assert by_metric.weighting == [0.5, 0.3, 0.2]
    by_confidence = chosen("tmkd").weigh("confidence", never)
    assert by_confidence.weights is not None
    np.testing.assert_allclose(by_confidence.weights.sum(1), 1, atol=1e-6)


def test_stage2_loss_by_hand() -> None:
    rows = Pairs.build(["q", "q"], ["p", "r"], labels=[1, None])
    targets = Targets(("a", "b"), odds([[0.0, 1.0], [2.0, -1.0]]).numpy())
    logits = StudentOutput(odds([[1.0], [0.5]])[:, 0], odds([[0.5, 0.5], [0.0, 0.0]]))
    loss = Loss(kind="mse", alpha=0.25)
    found = stage2_loss(rows, targets, loss)(logits, torch.tensor([0, 1]))
    sigmoid = torch.tensor([0.5, 1.0, 2.0, -1.0]).sigmoid().tolist()
    soft = [((sigmoid[0] - 0.5) ** 2 + (sigmoid[0] - sigmoid[1]) ** 2) / 2,
            ((0.5 - sigmoid[2]) ** 2 + (0.5 - sigmoid[3]) ** 2) / 2]  # fmt: skip
    golden = -np.log(sigmoid[1])
    assert found.tolist() == pytest.approx([0.75 * golden + 0.25 * soft[0], 0.25 * soft[1]], rel=1e-5)
    # One head (1-o-1, m-o-m, bilstm): it learns both.
    single = Targets(("a",), odds([[0.0], [2.0]]).numpy())
    alone = StudentOutput(logits.golden, torch.zeros(2, 0, 2))
    found = stage2_loss(rows, single, loss)(alone, torch.tensor([0, 1]))
    soft = [(sigmoid[1] - 0.5) ** 2, (sigmoid[0] - sigmoid[2]) ** 2]
    assert found.tolist() == pytest.approx([0.75 * golden + 0.25 * soft[0], 0.25 * soft[1]], rel=1e-5)


def test_the_soft_loss_takes_temperature_labels_and_weights_of_its_rows() -> None:
    """Two heads of three pairs; the batch holds the third and the first pair."""
    rows = Pairs.build(["q"] * 3, ["p", "r", "s"], labels=[0, 1, 1])
    taught = odds([[np.log(3.0), 0.0], [9.0, 9.0], [0.0, np.log(3.0)]]).numpy()
    weights = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], dtype=np.float32)
    targets = Targets(("a", "b"), taught, weights=weights)
    loss = stage2_loss(rows, targets, Loss(kind="kl", alpha=0.5, temperature=2.0))
    output = StudentOutput(odds([[0.0], [0.0]])[:, 0], odds([[0.0, 0.0], [0.0, 0.0]]))
    found = loss(output, torch.tensor([2, 0]))
    softer = 1 / (1 + np.sqrt(3.0))  # odds of 3 at temperature 2: the first class has 1 / (1 + sqrt 3)
    kl = 4 * (softer * np.log(2 * softer) + (1 - softer) * np.log(2 * (1 - softer)))
    golden = np.log(2.0)
    # of the third pair the first head counts alone, which is right; of the first pair it weighs a quarter
    assert found.tolist() == pytest.approx([0.5 * golden, 0.5 * golden + 0.5 * 0.25 * kl], rel=1e-4)
    other_labels = StudentOutput(odds([[2.0], [2.0]])[:, 0], output.soft)
    cross_entropies = [np.log(1 + np.exp(-2.0)), np.log(1 + np.exp(2.0))]  # of label 1, of label 0
    found = stage2_loss(rows, None, Loss())(other_labels, torch.tensor([2, 0]))
    assert found.tolist() == pytest.approx(cross_entropies, rel=1e-5)
    found = loss(other_labels, torch.tensor([2, 0]))
    assert found.tolist() == pytest.approx(
        [0.5 * cross_entropies[0], 0.5 * cross_entropies[1] + 0.5 * 0.25 * kl], rel=1e-4
    )


def test_one_teacher_or_the_mean_of_probabilities_by_hand() -> None:
    """Of the probabilities 3/4 and 1/2 the mean is 5/8, whose odds are 5 to 3; the mean of the logits has sqrt 3."""
    logits = [odds([[np.log(3.0)]])[:, 0].numpy(), odds([[0.0]])[:, 0].numpy()]
    one = Targets.choose(METHODS["1-o-1"], ["a", "b"], logits, 1)
    assert one is not None
    assert (one.names, one.logits.shape) == (("b",), (1, 1, 2))
    assert np.array_equal(one.logits[0, 0], logits[1][0])
    mean = Targets.choose(METHODS["1avg-tkd"], ["a", "b"], logits, 0)
    assert mean is not None
    assert (len(mean.names), mean.logits.shape) == (1, (1, 1, 2))
    assert float(mean.logits[0, 0, 1] - mean.logits[0, 0, 0]) == pytest.approx(np.log(5 / 3), rel=1e-5)
    every = Targets.choose(METHODS["tmkd"], ["a", "b"], logits, 0)
    assert every is not None
    assert every.names == ("a", "b")
    assert np.array_equal(every.logits[0], np.stack([logits[0][0], logits[1][0]]))
    assert Targets.choose(METHODS["finetune"], ["a", "b"], logits, 0) is None


def test_steps_keep_questions_together() -> None:
    generator = np.random.default_rng(0)
    questions = np.repeat(np.arange(40), generator.integers(2, 30, 40))
    generator.shuffle(questions)
    steps = grouped_epoch_steps(questions, 16, epoch=1, seed=7)
    assert sorted(np.concatenate(steps)) == list(range(len(questions)))
    assert max(len(step) for step in steps) <= 16
    assert (np.bincount(questions) > 16).any()  # there is a question that no step can hold
    for step in steps:
        names, counts = np.unique(questions[step], return_counts=True)
        assert counts.min() >= 2
        for name, count in zip(names, counts, strict=True):
            whole = int((questions == name).sum())
            assert count == whole or whole > 16
    again = grouped_epoch_steps(questions, 16, epoch=1, seed=7)
    assert all(np.array_equal(a, b) for a, b in zip(steps, again, strict=True))
    assert not np.array_equal(np.concatenate(steps), np.concatenate(grouped_epoch_steps(questions, 16, 2, 7)))


def grouped_run(folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch, die_at: int | None = None) -> torch.Tensor:
    """All weights after training with margins."""
    monkeypatch.setattr(training_set, "batch_tokens", lambda: budget)
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    source = tiny("bert", folder / "tiny")
    rows = pair_rows()
    pairs = Pairs.build([str(r["question"]) for r in rows], [str(r["passage"]) for r in rows],
                        labels=[int(str(r["label"])) for r in rows])  # fmt: skip
    generator = np.random.default_rng(0)
    targets = Targets(("a", "b"), generator.normal(size=(len(pairs), 2, 2)).astype(np.float32))
    loss = Loss(kind="margin_mse", alpha=0.6)
    questions = questions_of(pairs, loss)
    counted = dying_after(die_at, stage2_loss(pairs, targets, loss, questions))
    torch.manual_seed(0)
    model = Student(load_encoder(source, 2, layers=1, dropout=0.0), 2, 2)
    tokenizer = PairTokenizer(source, 64)
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    data = TrainingSet(TokenInputs(encoded, tokenizer.pad_id), questions)
    config = TrainerConfig(1e-3, 2, 12, seed=1, precision="fp32")
    Trainer(model, data, counted, config, name="t", state_folder=folder / "s").fit()
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_a_killed_grouped_run_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = grouped_run(tmp_path / "whole", 100, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        grouped_run(tmp_path / "cut", 100, monkeypatch, die_at=5)
    assert torch.equal(whole, grouped_run(tmp_path / "cut", 100, monkeypatch))


def gradient(
    source: Path, loss: Any, monkeypatch: pytest.MonkeyPatch, budget: int, whole_step: bool, dropout: float = 0.0
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step of 24 pairs, six questions."""
    monkeypatch.setattr(training_set, "batch_tokens", lambda: budget)
    rows = pair_rows()
    tokenizer = PairTokenizer(source, 64)
    encoded = tokenizer.encode([str(r["question"]) for r in rows], [str(r["passage"]) for r in rows])
    torch.manual_seed(0)
    model = Student(load_encoder(source, 2, layers=1, dropout=dropout), 2, 2).train()
    micro = MicroBatchGradients(model, TrainingSet(TokenInputs(encoded, tokenizer.pad_id)), TotalLoss(loss), bf16=False)
    found = (WholeStepGradients(micro) if whole_step else micro)(np.arange(24), 5)
    return found, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_margins_do_not_depend_on_the_token_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One micro-batch a step against micro-batches of one pair, which split every question."""
    source = tiny("bert", tmp_path / "tiny")
    rows = pair_rows()
    pairs = Pairs.build([str(r["question"]) for r in rows], [str(r["passage"]) for r in rows],
                        labels=[int(str(r["label"])) for r in rows])  # fmt: skip
    targets = Targets(("a", "b"), np.random.default_rng(0).normal(size=(len(pairs), 2, 2)).astype(np.float32))
    margins = Loss(kind="margin_mse", alpha=0.6)
    loss = stage2_loss(pairs, targets, margins, questions_of(pairs, margins))
    (whole, expected), (split, found) = (gradient(source, loss, monkeypatch, b, True) for b in (100_000, 20))
    assert split == pytest.approx(whole, rel=1e-5)
    assert (found - expected).norm() / expected.norm() < 1e-5
    _, apart = gradient(source, loss, monkeypatch, 20, False)  # what splitting would do
    assert (apart - expected).norm() / expected.norm() > 0.1


def test_a_whole_step_holds_the_activations_of_one_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny("bert", tmp_path / "tiny")
    alive = peak = 0

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal alive, peak
            self.tensor = tensor
            alive += tensor.numel()
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.tensor.numel()

    def most(budget: int) -> int:
        """The most numbers that a step keeps for its backward pass at once."""
        nonlocal alive, peak
        alive = peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            gradient(source, lambda output, _: output.golden.square().sum(dim=1), monkeypatch, budget, True)
        return peak

    assert most(20) < most(100_000) / 4


def test_the_second_forward_repeats_the_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss that is a sum over pairs, both ways to the gradient are the same, dropout and all."""
    source = tiny("bert", tmp_path / "tiny")
    labels = torch.tensor([int(str(r["label"])) for r in pair_rows()])

    def loss(output: StudentOutput, which: torch.Tensor) -> torch.Tensor:
        return golden_loss(output.golden, labels[which])

    (_, plain), (_, whole) = (gradient(source, loss, monkeypatch, 100, way, dropout=0.3) for way in (False, True))
    assert float(plain.abs().max()) > 1e-3
    assert torch.allclose(plain, whole, atol=1e-7)


def test_a_micro_batch_weighs_as_many_pairs_as_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient of a step are means over its 24 pairs, whatever parts it is cut into."""
    source = tiny("bert", tmp_path / "tiny")
    labels = torch.tensor([int(str(r["label"])) for r in pair_rows()])

    def loss(output: StudentOutput, which: torch.Tensor) -> torch.Tensor:
        return golden_loss(output.golden, labels[which])

    (whole, expected), *split = (gradient(source, loss, monkeypatch, budget, False) for budget in (100_000, 200, 20))
    assert whole == pytest.approx(np.log(2), abs=0.2)  # of one pair, not of 24: the head is nearly untrained
    for value, found in split:
        assert value == pytest.approx(whole, rel=1e-5)
        assert (found - expected).norm() / expected.norm() < 1e-5


def test_a_question_with_one_passage_is_named() -> None:
    rows = Pairs.build(["a?", "b?", "a?", "c?"], ["1", "2", "3", "4"], qids=["q1", "q2", "q1", "q3"])
    assert questions_of(rows, Loss(kind="kl")) is None
    numbers = questions_of(rows.take([0, 2]), Loss(kind="margin_mse"))
    assert numbers is not None
    assert numbers.tolist() == [0, 0]
    require_comparable(rows, "kl", "pool")
    require_comparable(rows.take([0, 2]), "margin_mse", "pool")
    with pytest.raises(
        DataError, match=r"2 of the 3 questions of the pool pairs have a single one, first 'b\?' \(qid q2\), pair 1"
    ):
        require_comparable(rows, "margin_mse", "pool")


def test_every_loss_and_weighting_trains(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    encoder = f"encoder={tiny('bert', tmp_path / 'tiny')}"
    before: list[str] = []
    for override in (
        "loss={kind: margin_mse, weighting: development}",
        "loss={kind: mse_logits, weighting: confidence}",
        "loss={kind: mse_logits}",
    ):
        done = tmkd("distill", recipe_file, encoder, "methods=[tmkd]", override)
        steps = [path.name.split("-")[0] for path in (tmp_path / "workspace" / "steps").iterdir()]
        assert [steps.count(kind) - before.count(kind) for kind in ("stage1", "student")] == [1, 1]
        assert ("weights in the loss: a 0." in done.stderr) == ("development" in override)
        before = steps


def test_errors_of_a_grouped_loss(tmkd: Tmkd, recipe_file: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [*pair_rows(2), {"question": "Lonely?", "passage": "x", "label": 0}])
    for override, expected in {
        "classes=3": "margin_mse is defined for two classes, and there are 3",
        "stage1.batch_size=2": "stage1.batch_size: 2 is too small for loss.kind margin_mse",
        f"data={{train: {tmp_path}/train.jsonl, dev: {tmp_path}/test.jsonl}}": "first 'Lonely?', pair 64",
    }.items():
        done = tmkd(
            "distill",
            recipe_file,
            "loss.kind=margin_mse",
            "methods=[finetune,1-o-1]",
            "take=1-o-1",
            override,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert expected in done.stderr, done.stderr


NAN = float("nan")


def test_a_partial_teachers_head_learns_from_the_pairs_alone_that_have_its_label() -> None:
    """Pair 0 has both labels, pair 1 the first teacher's, pair 2 none."""
    labels = np.array([[[0, 2], [0, -1]], [[0, 1], [NAN, NAN]], [[NAN, NAN], [NAN, NAN]]], dtype=np.float32)
    targets = Targets(("a", "b"), labels).masked()
    assert np.isfinite(targets.logits).all()
    assert targets.weights is not None
    np.testing.assert_allclose(targets.weights, np.array([[0.5, 0.5], [1, 0], [0, 0]]))
    student = torch.zeros(3, 2, 2, requires_grad=True)
    found = SoftLabelLoss(targets, Loss(kind="kl"))(StudentOutput(torch.zeros(3, 2), student), torch.arange(3))
    each = soft_kl(torch.zeros(2, 2, 2), torch.from_numpy(np.nan_to_num(labels[:2])))
    expected = [float(each[0].mean()), float(each[1, 0]), 0.0]
    np.testing.assert_allclose(found.detach(), expected, atol=1e-6)
    found.sum().backward()
    assert student.grad is not None
    assert not student.grad[1, 1].any()
    assert not student.grad[2].any()
    assert student.grad[0].any()
    whole = Targets(("a", "b"), labels[:1])
    assert whole.masked() is whole


def test_pairs_that_only_teachers_of_weight_0_label_are_counted() -> None:
    """Pair 0 has both labels, pair 1 that of the teacher at chance, pair 2 none."""
    labels = np.array([[[0, 2], [0, 1]], [[NAN, NAN], [0, 1]], [[NAN, NAN], [NAN, NAN]]], dtype=np.float32)
    targets = Targets(("a", "chance"), labels)
    assert targets.without_weight == 0
    weighed = targets.weigh("development", lambda: np.array([1.0, 0.0]))
    assert weighed.without_weight == 1
    assert weighed.masked().weights.tolist() == [[1, 0], [0, 0], [0, 0]]  # type: ignore[union-attr]


def test_the_mean_of_teachers_is_that_of_those_that_label_a_pair() -> None:
    first = np.array([[0, 2], [0, 1], [NAN, NAN]], dtype=np.float32)
    second = np.array([[0, -1], [NAN, NAN], [NAN, NAN]], dtype=np.float32)
    found = Targets.choose(METHODS["1avg-tkd"], ["a", "b"], [first, second], 0)
    assert found is not None
    probabilities = np.exp(found.logits[:2, 0]) / np.exp(found.logits[:2, 0]).sum(axis=1, keepdims=True)
    sigmoid = 1 / (1 + np.exp(-np.array([2.0, -1.0, 1.0])))
    np.testing.assert_allclose(probabilities[:, 1], [sigmoid[:2].mean(), sigmoid[2]], atol=1e-6)
    np.testing.assert_allclose(found.masked().weights, [[1], [1], [0]])  # type: ignore[arg-type]


def test_a_margin_needs_both_labels() -> None:
    labels = np.array([[[0, 3]], [[0, 1]], [[NAN, NAN]]], dtype=np.float32)
    targets, questions = Targets(("a",), labels).masked(), np.array([7, 7, 7])
    loss = SoftLabelLoss(targets, Loss(kind="margin_mse"), questions)
    found = loss(StudentOutput(torch.zeros(3, 2), torch.zeros(3, 1, 2)), torch.arange(3))
    assert found.tolist() == [4.0, 4.0, 0.0]


def test_replayed_pairs_keep_the_weights_of_partial_teachers() -> None:
    pairs = Pairs.build(["a", "b"], ["x", "y"], labels=[0, 1])
    gaps = np.array([[[0, 2], [NAN, NAN]], [[0, 1], [0, 1]]], dtype=np.float32)
    whole, partial = Targets(("a", "b"), np.zeros((2, 2, 2), dtype=np.float32)), Targets(("a", "b"), gaps).masked()
    _, found = Replay(pairs, partial).behind(pairs, whole)
    np.testing.assert_allclose(found.weights, [[0.5, 0.5], [0.5, 0.5], [1, 0], [0.5, 0.5]])  # type: ignore[arg-type]
