"""The bi-encoder cosine as a teacher: the warm start, which teachers begin with it, and token cosine in stage 1."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from conftest import Tmkd, pair_rows
from encoder_fixtures import tiny
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_numpy

from tmkd.config.load import load_recipe
from tmkd.config.sections import Training, WarmUp
from tmkd.data.arrow_file import ArrowFile, write_arrow
from tmkd.data.pairs import Pairs
from tmkd.models.batching import pack, pad
from tmkd.models.bi_encoder import cosine_logits, embed
from tmkd.models.checkpoint import load_encoder, load_student
from tmkd.models.encoders.forward import Batch, Packing
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import score
from tmkd.models.student import SHARPNESS, Student
from tmkd.models.text_reader import TextReader
from tmkd.models.tokenizer import PairTokenizer
from tmkd.pipeline.run_data import RunCache, RunData
from tmkd.pipeline.steps.bi_encoder_cosine import bi_encoder_cosine, write_cosine
from tmkd.pipeline.steps.warm_up import Judgement, warm_up
from tmkd.pipeline.store.workspace import Workspace
from tmkd.training.token_cosine import (
    TARGETS,
    TOKENS,
    TokenCosine,
    TokenCosineConfig,
    TokenTargets,
    soft_labels,
    token_cosine_objective,
)

WARM = "warm_up={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}"


def test_it_learns_the_encoders_bi_encoder_cosine(tiny_recipe: Path, tmp_path: Path) -> None:
    rows = pair_rows(2)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    recipe = load_recipe(tiny_recipe)
    numbers = Training(learning_rate=2e-3, epochs=12, batch_size=8)
    step = warm_up(Workspace(tmp_path / "w"), recipe, numbers, pairs)
    model, tokenizer = load_student(step.folder), PairTokenizer(step.folder, 64)
    assert model.encoder.layers == 3  # whole, not cut as the student is
    logits = score(
        model, TokenInputs(tokenizer.encode(pairs.questions, pairs.passages), tokenizer.pad_id), precision="fp32"
    )
    cosine = cosine_logits(Path(recipe.encoder), pairs.questions, pairs.passages, 64)[:, 1]
    learned, expected = (_minus_its_question(values, pairs) for values in (logits[:, 1] - logits[:, 0], cosine))
    assert np.corrcoef(learned, expected)[0, 1] > 0.8


def test_it_learns_what_a_teacher_says_of_the_pairs(tiny_recipe: Path, tmp_path: Path) -> None:
    rows = pair_rows(2)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    said = np.random.default_rng(0).normal(size=len(pairs)).astype(np.float32)
    recipe, workspace = load_recipe(tiny_recipe), Workspace(tmp_path / "w")
    numbers = WarmUp(learning_rate=2e-3, epochs=20, batch_size=8)
    step = warm_up(workspace, recipe, numbers, pairs, Judgement("a-teacher", said))
    assert step.folder != warm_up(workspace, recipe, numbers, pairs).folder
    model, tokenizer = load_student(step.folder), PairTokenizer(step.folder, 64)
    inputs = TokenInputs(tokenizer.encode(pairs.questions, pairs.passages), tokenizer.pad_id)
    logits = score(model, inputs, precision="fp32")
    learned, expected = (_minus_its_question(values, pairs) for values in (logits[:, 1] - logits[:, 0], said))
    assert np.corrcoef(learned, expected)[0, 1] > 0.8


def test_a_run_warms_up_on_a_bi_encoders_scores(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    encoder = load_recipe(tiny_recipe).encoder
    teachers = f"teachers=[{{name: mine, kind: bi_encoder, model: {encoder}, pooling: mean}}, {{name: t, epochs: 1}}]"
    warm = "warm_up={learning_rate: 1.0e-3, epochs: 1, batch_size: 8, teacher: %s}"
    tmkd("teach", tiny_recipe, teachers, warm % "mine", "methods=[tkd]", "take=tkd", "-w", tmp_path / "w")
    (step,) = (tmp_path / "w" / "steps").glob("warmup-*")
    content = json.loads((step / "step.json").read_text())
    assert content["depends_on"]["inputs"]["teacher"]
    for name, said in (("t", "finished model"), ("none", "finished model; there are: mine")):
        refused = tmkd("teach", tiny_recipe, teachers, warm % name, "methods=[tkd]", "take=tkd", check=False)
        assert said in refused.stderr


def test_it_sees_a_share_of_the_pools_questions(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    """Those of a smaller share are among those of a larger one, and a share without a question is refused."""
    recipe = load_recipe(tiny_recipe, [WARM.replace("}", ", share: 0.5}")])
    data = RunData(recipe, Workspace(tmp_path / "w"), RunCache())
    some = data.warm_up_pairs
    assert 0 < len(some) < len(data.pool)
    assert set(some.questions).isdisjoint(set(data.pool.questions) - set(some.questions))
    wider = RunData(load_recipe(tiny_recipe, ["stage1.share=0.7"]), Workspace(tmp_path / "w"), RunCache())
    assert set(some.pair_ids) <= set(wider.stage1_share(wider.pool).pair_ids)
    tmkd("teach", tiny_recipe, WARM.replace("}", ", share: 0.5}"), "-w", tmp_path / "w")
    (step,) = (tmp_path / "w" / "steps").glob("warmup-*")
    assert json.loads((step / "curve.json").read_text())[-1]["step"] == -(-len(some) // 8)
    refused = tmkd("teach", tiny_recipe, WARM.replace("}", ", share: 0.0001}"), "-w", tmp_path / "w", check=False)
    assert "warm_up.share: 0.0001 leaves none of the" in refused.stderr


def _minus_its_question(values: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float64]:
    _, question, counts = np.unique(pairs.questions, return_inverse=True, return_counts=True)
    return np.asarray(values - (np.bincount(question, values) / counts)[question])


def test_soft_labels_of_cosines_by_hand(tmp_path: Path) -> None:
    """Each question's mean is subtracted, that of all from a question with one passage; the deviation becomes 2."""
    cosine = np.array([0.9, 0.5, 0.2, 0.4, 0.5], dtype=np.float32)
    save_numpy({"cosine": cosine}, tmp_path / "cosine.safetensors")
    pairs = Pairs.build(["a", "a", "b", "b", "c"], list("pqrst"))
    level = np.array([0.7, 0.7, 0.3, 0.3, 0.5])
    odds = np.array([0.2, -0.2, -0.1, 0.1, 0.0])
    np.testing.assert_allclose(cosine - level, odds, atol=1e-6)
    deviation = np.sqrt(0.1 / 5)  # 0.04 + 0.04 + 0.01 + 0.01 over five pairs
    found = soft_labels(tmp_path, pairs)
    np.testing.assert_allclose(found, np.stack([np.zeros(5), odds * 2 / deviation], axis=1), rtol=1e-5, atol=1e-6)


def test_it_reads_the_layer_below_the_last(tiny_recipe: Path, tmp_path: Path) -> None:
    encoder = load_encoder(Path(load_recipe(tiny_recipe).encoder), 2)  # of three layers: 0, 1, 2
    targets = cosine_targets(tiny_recipe, tmp_path / "w", Pairs.build(["why"], ["so"]), 64)
    assert TokenCosine(encoder, targets, TokenCosineConfig(1.0, 64)).layers == (1,)


@pytest.mark.parametrize("together", [65_536, 1])
def test_tokens_add_up_to_the_cosine(
    together: int, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmkd.pipeline.steps.bi_encoder_cosine._TOGETHER", together)
    questions = ["how to sort", "why", "how to sort", "why"]
    passages = ["sort the keys", "a much longer passage about the keys", "a much longer passage about the keys", "so"]
    pairs = Pairs.build(questions, passages)
    recipe = load_recipe(tiny_recipe)
    encoder, step = Path(recipe.encoder), bi_encoder_cosine(Workspace(tmp_path / "w"), recipe, pairs)
    held, tokens = load_file(step.folder / TARGETS), np.fromfile(step.folder / TOKENS, np.float16)
    expected = cosine_logits(encoder, questions, passages, 64, "fp32")[:, 1] / SHARPNESS + 0.5
    assert np.allclose(held["cosine"], expected, atol=1e-5)
    places, asked = PairTokenizer(encoder, 64).passage_places(pairs.texts(), 4), embed(encoder, questions, 64, "fp32")
    ends = np.sort(np.append(held["firsts"], len(tokens)))
    reader = TextReader(encoder, 64, "fp32")
    for pair, (start, end) in enumerate(places):
        first = held["firsts"][pair]
        assert ends[np.searchsorted(ends, first) + 1] == first + end - start
        ((_, hidden, own),) = reader.read([passages[pair]])
        assert np.allclose(tokens[first : first + end - start], hidden[own] @ asked[pair], atol=2e-3)
    cut = PairTokenizer(encoder, 10).passage_places(pairs.texts(), 4)
    encoded = PairTokenizer(encoder, 10).encode(questions, passages)
    assert [int(end) + 1 for _, end in cut] == [len(ids) for ids in encoded.ids]  # then the last separator


class Embedder:
    """In place of an encoder: three tokens for every text, in a space of four dimensions."""

    width = 4

    def read(self, texts: list[str]) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
        for row in range(len(texts)):
            yield row, np.ones((3, 4), dtype=np.float32), np.array([False, True, False])


def test_the_texts_of_a_pool_are_never_in_memory_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of a pair are 500 bytes, those of 32,768 pairs are read at the same time."""
    monkeypatch.setattr("tmkd.pipeline.steps.bi_encoder_cosine._TOGETHER", 2048)
    count = 200_000
    texts = [f"question {n // 20} " + "word " * 20 for n in range(count)]
    plain = Pairs.build(texts, [f"passage {n} " * 20 for n in range(count)])
    write_arrow(tmp_path / "pairs.arrow", plain.table.schema, [plain.table])
    pairs, reader = Pairs.mapped(ArrowFile(tmp_path / "pairs.arrow")), cast(TextReader, Embedder())
    write_cosine(tmp_path, reader, pairs.take(np.arange(9)))  # modules are imported
    tracemalloc.start()
    write_cosine(tmp_path, reader, pairs)
    peak = tracemalloc.get_traced_memory()[1] / count
    tracemalloc.stop()
    assert sorted(load_file(tmp_path / TARGETS)["firsts"]) == list(range(count))
    assert peak < 150, f"{peak:.0f} bytes a pair"


@pytest.mark.parametrize("family", ["bert", "mpnet", "distilbert"])
def test_every_family_warms_up(family: str, recipe_file: Path, tmp_path: Path) -> None:
    encoder = tiny(family, tmp_path / "encoder")
    recipe_file.write_text(recipe_file.read_text().replace("builtin:minilm-l6", str(encoder)))
    rows = pair_rows(2)
    pairs = Pairs.build([str(row["question"]) for row in rows], [str(row["passage"]) for row in rows])
    numbers = Training(learning_rate=1e-3, epochs=2, batch_size=8)
    step = warm_up(Workspace(tmp_path / "w"), load_recipe(recipe_file), numbers, pairs)
    curve = json.loads((step.folder / "curve.json").read_text())
    assert curve[-1]["loss"] < curve[0]["loss"]


def cosine_targets(recipe_file: Path, workspace: Path, pairs: Pairs, length: int) -> TokenTargets:
    """What the tokens of the pairs learn, by the recipe's encoder."""
    recipe = load_recipe(recipe_file, [f"max_length={length}"])
    step = bi_encoder_cosine(Workspace(workspace), recipe, pairs)
    return TokenTargets(step.folder, pairs, PairTokenizer(Path(recipe.encoder), length))


def test_packed_and_padded_batches_read_the_same_numbers(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = Path(load_recipe(tiny_recipe).encoder)
    pairs = Pairs.build(["how to sort", "why"], ["sort the keys by their values", "so"])
    torch.manual_seed(0)
    model, tokenizer = Student(load_encoder(folder, 2), 2), PairTokenizer(folder, 32)
    targets = cosine_targets(tiny_recipe, tmp_path / "w", pairs, 32)
    objective = TokenCosine(model.encoder, targets, TokenCosineConfig(1.0, 32))
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    ids, mask, types = (torch.from_numpy(a) for a in pad(encoded.ids, encoded.type_ids, [0, 1], tokenizer.pad_id))
    rectangle = Batch(ids, mask, types)
    ids, types, starts = (torch.from_numpy(a) for a in pack(encoded.ids, encoded.type_ids, [0, 1]))
    line = Batch(ids, None, types, Packing(starts, 32))
    padded, packed = (model(batch, objective.layers) for batch in (rectangle, line))
    read = objective.read(padded, rectangle), objective.read(packed, line)
    for row, length in enumerate(len(ids) for ids in encoded.ids):
        assert torch.allclose(read[0][row, :length], read[1][row, :length], atol=1e-5)
    assert read[0].shape == read[1].shape == (2, 32)
    assert torch.allclose(padded.golden, packed.golden, atol=1e-5)
    losses = [objective.loss(*given, torch.arange(2)) for given in ((padded, rectangle), (packed, line))]
    assert torch.allclose(losses[0], losses[1], atol=1e-5)


def test_no_token_is_read_where_there_is_no_layer_below_the_last(tiny_recipe: Path, tmp_path: Path) -> None:
    targets = cosine_targets(tiny_recipe, tmp_path / "w", Pairs.build(["why"], ["so"]), 64)
    flat = load_encoder(Path(load_recipe(tiny_recipe).encoder), 2, layers=1)
    theirs = load_encoder(tiny("distilbert", tmp_path / "other"), 2)
    for encoder in (flat, theirs):
        assert token_cosine_objective(encoder, targets, TokenCosineConfig(1.0, 64)) == []
        with pytest.raises(ValueError, match="gives the hidden states of its first 0 layers"):
            Student(encoder, 2)(Batch(torch.ones(1, 3, dtype=torch.long), None, None), [0])


def test_teachers_of_the_recipes_encoder_begin_with_it(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    steps = tmp_path / "workspace" / "steps"
    tmkd("teach", tiny_recipe)
    cold = {path.name for path in steps.glob("teacher-*")}
    other = tiny("mpnet", tmp_path / "other")
    first = tmkd("teach", tiny_recipe, WARM, f"teachers.1.encoder={other}")
    assert len(list(steps.glob("warmup-*"))) == 1
    assert "warm-up of the encoder: done in" in first.stderr
    assert "teacher a: done before" not in first.stderr
    again = tmkd("teach", tiny_recipe, WARM, f"teachers.1.encoder={other}")
    assert "warm-up of the encoder: done before" in again.stderr
    tmkd("teach", tiny_recipe, f"teachers.1.encoder={other}")  # without it the other encoder's teacher is the same
    assert len(list(steps.glob("teacher-*"))) == len(cold) + 2


def test_the_loss_of_tokens_is_the_mean_over_the_passages_own(
    tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmkd.training.token_cosine._TOGETHER", 3)
    pairs = Pairs.build(["how to sort", "why"], ["sort the keys by their values", "so"])
    targets = cosine_targets(tiny_recipe, tmp_path / "w", pairs, 64)
    everything = targets.tokens.double()
    standardised = ((everything - everything.mean()) / everything.std(correction=0)).float()
    read = torch.full((2, 64), 7.0)  # what is not of the passage does not count
    lengths = (targets.ends - targets.starts).tolist()
    assert sum(lengths) == len(everything) > 3
    for row, length in enumerate(lengths):
        start, first = int(targets.starts[row]), int(targets.offsets[row] + targets.starts[row])
        read[row, start : start + length] = standardised[first : first + length]
    assert torch.allclose(targets.loss(read, torch.tensor([0, 1])), torch.zeros(2))
    read[0, targets.starts[0]] += 2.0
    expected = 4.0 / lengths[0]
    assert torch.allclose(targets.loss(read, torch.tensor([0, 1])), torch.tensor([expected, 0.0]))


@pytest.mark.parametrize("loss", ["kl", "margin_mse"])
def test_stage_1_learns_it_beside_the_soft_labels(loss: str, tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    steps = tmp_path / "workspace" / "steps"
    two = ("student.layers=2", f"loss.kind={loss}", "stage1.batch_size=8")
    tmkd("pretrain", tiny_recipe, *two)
    assert not list(steps.glob("token-cosine-*"))
    (alone,) = steps.glob("stage1-*")
    done = tmkd("pretrain", tiny_recipe, *two, "stage1.cosine=1.0", "seeds=[0,1]")
    assert "bi-encoder cosine, token by token: done in" in done.stderr
    both = sorted(set(steps.glob("stage1-*")) - {alone})
    assert len(both) == 2
    assert len(list(steps.glob("token-cosine-*"))) == 1  # once, for every seed
    saved = load_file(both[0] / "model.safetensors")
    assert not any(name.startswith("token.") for name in saved)  # an ordinary student
    losses = [json.loads((step / "curve.json").read_text())[0]["loss"] for step in (alone, both[0])]
    assert losses[1] > losses[0] + 0.3  # the tokens' targets have a variance of 1


def test_students_without_stage_1_know_nothing_of_it(tmkd: Tmkd, tiny_recipe: Path) -> None:
    alone = ("methods=[finetune]", "take=finetune", "student.layers=1")
    tmkd("distill", tiny_recipe, *alone)
    again = tmkd("distill", tiny_recipe, *alone, WARM, "stage1.cosine=1.0")
    assert "finetune, seed 0: done before" in again.stderr


def test_a_student_without_teachers_reads_none_of_their_labels(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    alone = ("methods=[self-taught]", "take=self-taught", "student.layers=2")
    tmkd("distill", tiny_recipe, *alone)
    (first,) = (tmp_path / "workspace" / "steps").glob("stage1-*")
    again = tmkd("distill", tiny_recipe, *alone, "teachers.0.learning_rate=2.0e-4", "stage1.cosine=1.0")
    assert "teacher a" not in again.stderr
    assert "stage 1 of self-taught, seed 0: done before" in again.stderr  # tokens weigh 1 by default
    assert "self-taught, seed 0: done before" in again.stderr
    assert load_student(first).heads == 1
    refused = tmkd("distill", tiny_recipe, *alone, f"stage1_from={first}", check=False)
    assert refused.returncode != 0
    assert "self-taught makes a stage 1 of its own" in refused.stderr
