"""Hidden states of the tokens of questions: what is stored is what the teacher has, and what the objective compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from conftest import Tmkd
from encoder_fixtures import tiny

from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_encoder, save_student
from tmkd.models.encoders.interaction import InteractionEncoder, InteractionShape
from tmkd.models.encoders.text_batches import StateBatch
from tmkd.models.inputs import TokenInputs
from tmkd.models.student import Student, StudentOutput
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.steps.question_states import ABOUT, COUNTS, _question_tokens, _write, question_targets
from tmkd.training.question_states import QuestionStates, taught_layers

PAIRS = Pairs.build(
    ["how to sort", "why", "how to sort the keys by their values"],
    ["sort the keys by their values", "so", "sort " * 40],
)


def a_teacher(folder: Path, family: str = "bert") -> Path:
    torch.manual_seed(0)
    source = tiny(family, folder / "encoder", num_hidden_layers=4)
    save_student(Student(load_encoder(source, 2), 2), folder / "teacher", source, 32, {})
    return folder / "teacher"


def stored(folder: Path, teacher: Path, layers: int = 2) -> Path:
    """A folder as the step writes it."""
    folder.mkdir(exist_ok=True)
    tokenizer = PairTokenizer(teacher, 32)
    inputs = TokenInputs(tokenizer.encode(PAIRS.questions, PAIRS.passages), tokenizer.pad_id)
    counts = _question_tokens(TextTokenizer(teacher, 32), PAIRS, inputs.encoded)
    np.save(folder / COUNTS, counts)
    _write(folder, teacher, inputs, counts, layers, "fp32")
    return folder


def test_interaction_layers_stand_for_evenly_spaced_layers_of_the_teacher() -> None:
    assert taught_layers(6, 1) == [4]
    assert taught_layers(6, 2) == [2, 4]
    assert taught_layers(6, 3) == [1, 3, 4]
    assert taught_layers(12, 2) == [5, 10]


def test_the_stored_vectors_are_those_that_the_teacher_has_for_the_question(tmp_path: Path) -> None:
    teacher = a_teacher(tmp_path)
    targets = question_targets(stored(tmp_path / "step", teacher))
    encoder, tokenizer = load_encoder(teacher, 2).eval(), PairTokenizer(teacher, 32)
    wanted = taught_layers(4, 2)
    for row in range(3):
        inputs = TokenInputs(tokenizer.encode(PAIRS.questions[row : row + 1], PAIRS.passages[row : row + 1]), 0)
        batch = inputs.batch(Student(encoder, 2), np.array([0]), bf16=False)
        with torch.inference_mode():
            _, states = encoder.with_hidden_states(batch, wanted)
        whole = torch.cat([states[layer] for layer in wanted], dim=-1)[0]
        count = int(targets.counts[row])
        assert count == len(TextTokenizer(teacher, 32).encode([PAIRS.questions[row]]).ids[0])
        found = targets.stored.load([row], count)
        assert found is not None
        assert np.allclose(found[0], whole[:count].numpy(), atol=2e-3)


def test_a_family_without_segment_ids_has_the_same_first_tokens(tmp_path: Path) -> None:
    teacher = a_teacher(tmp_path, "mpnet")
    targets = question_targets(stored(tmp_path / "step", teacher))
    assert (targets.counts >= 3).all()


def test_an_interrupted_step_goes_on_with_the_pairs_that_are_left(tmp_path: Path) -> None:
    teacher = a_teacher(tmp_path)
    folder = stored(tmp_path / "step", teacher)
    before = (folder / "states.f16").read_bytes()
    targets = question_targets(folder)
    targets.stored.read[1:] = False
    targets.stored.values[int(targets.counts[0]) :] = 0
    del targets
    assert (stored(folder, teacher) / "states.f16").read_bytes() == before


def test_the_loss_is_zero_at_the_teachers_vectors_and_counts_the_questions_tokens_alone(tmp_path: Path) -> None:
    teacher = a_teacher(tmp_path)
    targets = question_targets(stored(tmp_path / "step", teacher))
    objective = QuestionStates(targets, weight=2.0)
    width, longest = json.loads((tmp_path / "step" / ABOUT).read_text())["width"], int(targets.counts.max())
    found = targets.stored.load([0, 1, 2], longest)
    assert found is not None
    first, second = torch.from_numpy(found).float().chunk(2, dim=-1)
    nothing, states = torch.zeros(3, 2), torch.zeros(3, 4, width)
    batch = StateBatch(
        torch.zeros(3, longest, width),
        torch.ones(3, longest),
        states,
        torch.ones(3, 4),
        nothing[:, 0],
    )
    rows = torch.arange(3)
    beyond = first.clone()
    beyond[1, int(targets.counts[1]) :] = 7.0  # padding
    same = StudentOutput(nothing, nothing[:, None], {0: beyond, 1: second[:, :1]})  # the first token alone asks
    assert torch.allclose(objective.loss(same, batch, rows), torch.zeros(3), atol=1e-6)
    other = StudentOutput(nothing, nothing[:, None], {0: first + 1, 1: second[:, :1]})
    assert torch.allclose(objective.loss(other, batch, rows), torch.full((3,), 0.5 / targets.scales[0]), rtol=1e-4)


def test_another_teachers_vectors_are_learned_through_a_projection(tmp_path: Path) -> None:
    targets = question_targets(stored(tmp_path / "step", a_teacher(tmp_path)))
    objective = QuestionStates(targets, weight=2.0, number=2)
    (projection,) = objective.projections.parameters()
    states = torch.randn(3, 4, len(projection))
    assert torch.equal(objective.projected(states), states)
    with torch.no_grad():
        projection.copy_(2 * torch.eye(len(projection)))
    assert torch.allclose(objective.projected(states), 2 * states)


def test_a_student_learns_them_in_a_run(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    numbers = "{learning_rate: 5.0e-3, epochs: 3, batch_size: 8"
    small = f"cached={{layers: 2, heads: 4, ffn: 32, state_size: 16, stage1: {numbers}, states: 10.0}}}}"
    tmkd("pretrain", tiny_recipe, "methods=[tmkd@cached]", "take=tmkd@cached", small)
    (step,) = (tmp_path / "workspace" / "steps").glob("stage1-*")
    losses = [point["loss"] for point in json.loads((step / "curve.json").read_text())]
    assert losses[-1] < 0.8 * losses[0]
    assert len(list((tmp_path / "workspace" / "steps").glob("question-states-*"))) == 1
    tmkd(
        "pretrain",
        tiny_recipe,
        "methods=[tmkd@cached]",
        "take=tmkd@cached",
        small.replace("10.0", "10.0, states_from: each"),
    )
    assert len(list((tmp_path / "workspace" / "steps").glob("question-states-*"))) == 2
    assert len(list((tmp_path / "workspace" / "steps").glob("stage1-*"))) == 2


def test_the_interaction_gives_as_many_layers_as_are_taught() -> None:
    encoder = InteractionEncoder(InteractionShape(32, 16, 32, layers=3, heads=4, ffn=16), Path())
    assert encoder.readable_layers == 3 == len(taught_layers(6, 3))
