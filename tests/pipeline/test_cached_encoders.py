"""The encoders of cached students: trained with them, fewer layers, an encoder of questions of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_run_fixtures import killed, run_of, weights, write_recipe
from encoder_fixtures import tiny
from safetensors.numpy import load_file

from tmkd.core.errors import EncoderError, RecipeError, TmkdError
from tmkd.data.pairs import Pairs
from tmkd.evaluation.report import cached_students
from tmkd.export.export import export_student
from tmkd.inference.scorer import Scorer
from tmkd.models.bi_encoder import cosine_logits
from tmkd.models.checkpoint import load_encoder, load_student
from tmkd.models.cut import lowest_layers
from tmkd.models.encoders.find import find_encoder, weights_fingerprint
from tmkd.models.encoders.interaction import InteractionEncoder, InteractionShape
from tmkd.models.encoders.text_batches import TrainedReaders
from tmkd.models.inputs import TextInputs, TextSide
from tmkd.models.predict import score
from tmkd.models.student import Student
from tmkd.models.text_reader import TextReader
from tmkd.models.text_tokenizer import TextTokenizer
from tmkd.pipeline.preflight import require_runnable
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps.speed import CachedScorer
from tmkd.pipeline.steps.states import TextReading
from tmkd.pipeline.store.workspace import Workspace

NO_STEPS = [f"cached.{stage}.learning_rate=1.0e-12" for stage in ("stage1", "stage2", "without_stage1")]
QUESTIONS = ["which command mounts a disk", "which command mounts a disk", "how do I stop a service"]
PASSAGES = ["Use mount. It needs root.", "systemctl stop ends a service.", "Use mount. It needs root."]


@pytest.fixture
def scored_recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def kinds(run: Run) -> list[str]:
    return [path.name.split("-")[0] for path in (run.workspace.root / "steps").iterdir()]


@pytest.mark.parametrize("family", ["mpnet", "bert"])
def test_a_trained_encoder_reads_each_text_of_a_batch_once_and_gives_what_the_frozen_one_gives(
    tmp_path: Path, family: str
) -> None:
    """The same logits from token ids as from states, and gradients in every layer of the encoder.

    BERT reads questions and passages at once, without padding; MPNet, whose bias depends on the width, padded.
    """
    folder = tiny(family, tmp_path / "tiny", max_position_embeddings=64)
    tokenizer = TextTokenizer(folder, 32)
    encoder = InteractionEncoder(InteractionShape(48, 16, 48, heads=4, ffn=32), folder)
    student = Student(encoder, 2, soft_heads=1).eval()
    reading = TextReading(folder, folder, 32, "fp32")
    inputs = TextInputs(TextSide.of(tokenizer, QUESTIONS), TextSide.of(tokenizer, PASSAGES))
    assert [len(side.encoded.ids) for side in (inputs.questions, inputs.passages)] == [2, 2]
    with pytest.raises(ValueError, match="reads states, not token ids"):
        score(student, inputs, precision="fp32")

    states = reading.inputs(Workspace(tmp_path / "workspace"), Pairs.build(QUESTIONS, PASSAGES))
    wanted = score(student, states, precision="fp32")
    encoder.readers = TrainedReaders(load_encoder(folder, 2)).eval()
    np.testing.assert_allclose(score(student, inputs, precision="fp32"), wanted, atol=2e-3)

    batch = inputs.batch(student, np.arange(3), bf16=False)
    texts = (batch.questions, batch.passages)
    assert [len(one.packing.starts) - 1 if one.packing else len(one.input_ids) for one in texts] == [2, 2]
    assert [one.packing is None for one in texts] == [family == "mpnet"] * 2
    student.golden(encoder(batch)).sum().backward()
    parts = encoder.readers.passage.base.encoder.layer.named_parameters()
    assert all(part.grad.abs().sum() > 0 for name, part in parts if name.endswith("weight"))
    untrained = [name for name, part in encoder.readers.named_parameters() if part.requires_grad and part.grad is None]
    assert not untrained


def test_a_trained_encoder_changes_in_both_stages_and_is_kept_with_the_student(scored_recipe: Path) -> None:
    run = run_of(scored_recipe, "methods=[tmkd]", "cached.encoder_learning_rate=1.0e-3")
    run.distill()
    assert "states" not in kinds(run)  # texts are not read beforehand
    source = scored_recipe.parent / "tiny"
    folder = run.students.taken().steps[0].folder
    first, last = (load_file(at / "encoder" / "model.safetensors") for at in (run.folder / "stage1", folder))
    before = load_file(source / "model.safetensors")
    for name in ("encoder.layer.0.attention.self.query.weight", "encoder.layer.2.output.dense.bias"):
        assert not np.array_equal(first[name], before[name])
        assert not np.array_equal(last[name], first[name])
    table = "embeddings.word_embeddings.weight"
    assert np.array_equal(last[table], before[table])  # student.freeze_embeddings

    test = run.data.test
    trained = TextReading.of_student(folder, "fp32").inputs(run.workspace, test)
    found = run.students.logits(run.students.taken(), test)[0]
    np.testing.assert_allclose(score(load_student(folder), trained, precision="fp32"), found, atol=1e-5)
    timed = CachedScorer(folder, "fp32", test.passages)
    np.testing.assert_allclose(timed(test.questions, test.passages), found, atol=1e-4)

    again = run_of(scored_recipe, "methods=[tmkd]", f"stage1_from={run.folder / 'stage1'}", "name=again")
    again.distill()  # frozen now: its states are those of the encoder that stage 1 trained
    kept = again.students.taken().steps[0].folder / "encoder"
    assert weights_fingerprint(kept) == weights_fingerprint(run.folder / "stage1" / "encoder")


def test_the_last_stage_alone_can_train_the_encoder(scored_recipe: Path) -> None:
    """Stage 1 is then the very step that a run with a frozen encoder has."""
    keys = ["cached.encoder_learning_rate=1.0e-3", "cached.trains_in=last"]
    frozen, run = run_of(scored_recipe, "methods=[tmkd]", "name=frozen"), run_of(scored_recipe, "methods=[tmkd]", *keys)
    frozen.distill()
    run.distill()
    assert run.students.taken().stage1[0].folder == frozen.students.taken().stage1[0].folder
    source, encoder = scored_recipe.parent / "tiny", run.students.taken().steps[0].folder / "encoder"
    name = "encoder.layer.0.attention.self.query.weight"
    before, after = (load_file(at / "model.safetensors")[name] for at in (source, encoder))
    assert not np.array_equal(before, after)
    assert "a peak learning rate of 0.001, in the last stage alone. 16 numbers" in cached_students(run.run().results)[0]
    with pytest.raises(RecipeError, match="trains_in: last trains no encoder; give encoder_learning_rate"):
        run_of(scored_recipe, "cached.trains_in=last")


def test_with_a_tiny_learning_rate_a_trained_encoder_is_the_frozen_one(scored_recipe: Path) -> None:
    """Both begin at the cosine of the encoder, and stay there."""
    run = run_of(scored_recipe, "methods=[finetune]", "take=finetune", *NO_STEPS, "cached.encoder_learning_rate=1e-12")
    run.distill()
    test = run.data.test
    wanted = cosine_logits(scored_recipe.parent / "tiny", test.questions, test.passages, 64, "fp32")
    np.testing.assert_allclose(run.students.logits(run.students.taken(), test)[0], wanted, atol=2e-3)


def test_a_killed_training_of_the_encoder_continues_with_the_same_bits(scored_recipe: Path) -> None:
    scored_recipe.write_text(scored_recipe.read_text().replace("cached: {", "cached: {encoder_learning_rate: 1.0e-3, "))
    killed(
        scored_recipe,
        "import tmkd.training.state as state\n"
        "state.SAVE_SECONDS, save, calls = 0.0, state.TrainingState.save, []\n"
        "def three(*a): (die if len(calls) == 3 else save)(*a); calls.append(1)\n"
        "state.TrainingState.save = three\n",
    )
    found, unbroken = (run_of(scored_recipe, "methods=[tmkd]", workspace=name) for name in ("workspace", "unbroken"))
    for run in (found, unbroken):
        run.distill()
    wanted = weights(unbroken)
    assert all(np.array_equal(part, wanted[file][name]) for file, parts in weights(found).items()
               for name, part in parts.items())  # fmt: skip
    encoders = [weights_fingerprint(run.students.taken().steps[0].folder / "encoder") for run in (found, unbroken)]
    assert encoders[0] == encoders[1] != weights_fingerprint(scored_recipe.parent / "tiny")


def test_only_the_lowest_layers_are_taken(scored_recipe: Path) -> None:
    source = scored_recipe.parent / "tiny"
    cut = lowest_layers(source, 2)
    assert json.loads((cut / "config.json").read_text())["num_hidden_layers"] == 2
    assert lowest_layers(source, 2) == cut
    assert lowest_layers(source, 3) == lowest_layers(source, None) == source
    with pytest.raises(EncoderError, match=r"cached.encoder_layers: 4, but .*tiny has 3 layers"):
        run_of(scored_recipe, "methods=[tmkd]", "cached.encoder_layers=4").distill()

    # the hidden states after two of the three layers, as transformers gives them
    from transformers import AutoModel

    ((_, found, _),) = TextReader(cut, 32, "fp32").read(["Use the mount command."])
    ids = torch.tensor(np.stack(TextTokenizer(source, 32).encode(["Use the mount command."]).ids).astype(np.int64))
    with torch.inference_mode():
        wanted = AutoModel.from_pretrained(source)(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)

    run = run_of(scored_recipe, "methods=[finetune]", "take=finetune", "cached.encoder_layers=2", *NO_STEPS)
    run.distill()
    folder, test = run.students.taken().steps[0].folder, run.data.test
    assert json.loads((folder / "encoder" / "config.json").read_text())["num_hidden_layers"] == 2
    cosine = cosine_logits(cut, test.questions, test.passages, 64, "fp32")
    np.testing.assert_allclose(run.students.logits(run.students.taken(), test)[0], cosine, atol=2e-3)


def test_the_layers_of_minilm_can_be_cut() -> None:
    cut = lowest_layers(find_encoder("builtin:minilm-l6"), 3)
    assert load_encoder(cut, 2).layers == 3
    assert TextTokenizer(cut, 64).fingerprint() == TextTokenizer(find_encoder("builtin:minilm-l6"), 64).fingerprint()


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_questions_have_an_encoder_of_their_own(scored_recipe: Path, rate: float) -> None:
    asking = tiny("bert", scored_recipe.parent / "asking", num_hidden_layers=1)
    run = run_of(scored_recipe, "methods=[tmkd]", f"cached.question_encoder={asking}",
                 f"cached.encoder_learning_rate={rate}")  # fmt: skip
    run.distill()
    folder, test = run.students.taken().steps[0].folder, run.data.test
    same = weights_fingerprint(folder / "question_encoder") == weights_fingerprint(asking)
    assert same == (rate == 0)
    found = run.students.logits(run.students.taken(), test)[0]
    timed = CachedScorer(folder, "fp32", test.passages)
    np.testing.assert_allclose(timed(test.questions, test.passages), found, atol=1e-4)
    row = next(one for one in run.evaluate(test).to_json()["methods"] if one["name"] == "tmkd")
    sizes = [sum(part.size for part in load_file(folder / name / "model.safetensors").values())
             for name in ("encoder", "question_encoder")]  # fmt: skip
    assert row["encoder_parameters"] == sum(sizes)

    stage1 = f"stage1_from={run.folder / 'stage1'}"
    run_of(scored_recipe, "methods=[tmkd]", stage1, f"cached.question_encoder={asking}", "name=again").distill()
    with pytest.raises(TmkdError, match=r"reads questions with another encoder than .*cached.question_encoder"):
        run_of(scored_recipe, "methods=[tmkd]", stage1).distill()


def test_training_starts_at_the_cosine_of_the_two_encoders(scored_recipe: Path) -> None:
    asking, source = tiny("bert", scored_recipe.parent / "asking", num_hidden_layers=1), scored_recipe.parent / "tiny"
    run = run_of(scored_recipe, "methods=[finetune]", "take=finetune", f"cached.question_encoder={asking}", *NO_STEPS)
    run.distill()
    test = run.data.test
    embeddings = [
        {texts[row]: embedding for row, (_, embedding) in TextReader(folder, 64, "fp32").states(texts)}
        for folder, texts in ((asking, list(test.questions)), (source, list(test.passages)))
    ]
    cosine = np.array([embeddings[0][question] @ embeddings[1][passage]
                       for question, passage in zip(test.questions, test.passages, strict=True)])  # fmt: skip
    found = run.students.logits(run.students.taken(), test)[0]
    np.testing.assert_allclose(found[:, 1] - found[:, 0], 10 * (cosine - 0.5), atol=2e-3)


def test_each_kind_of_student_starts_from_a_stage_1_of_its_own(scored_recipe: Path) -> None:
    both = ("methods=[tmkd@layers,tmkd@cached]", "take=tmkd@cached", "student={layers: 1}",
            "stage2={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}")  # fmt: skip
    first = run_of(scored_recipe, *both, "stage1={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}")
    first.distill()
    layered, cached = (one.stage1[0].folder for one in first.students.train_all())

    def again(*keys: str) -> list[bool]:
        """Whether the students of each kind were trained from a stage 1 of the second run."""
        run = run_of(scored_recipe, *both, *keys, workspace="again")
        run.distill()
        return [bool(one.stage1) for one in run.students.train_all()]

    assert again(f"stage1_from={layered}", f"cached.stage1_from={cached}") == [False, False]
    own = "stage1={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}"
    assert again(f"cached.stage1_from={cached}", own) == [True, False]
    with pytest.raises(TmkdError, match=r"is a layered one, and .* of tmkd@cached .*cached.stage1_from a cached one"):
        again(f"stage1_from={layered}")


def test_a_run_warns_before_training_of_questions_that_their_own_encoder_cuts(scored_recipe: Path) -> None:
    asking = tiny("bert", scored_recipe.parent / "asking")
    for keys, expected in (([f"cached.question_encoder={asking}"], True), ([], False)):
        run = run_of(scored_recipe, "methods=[tmkd]", "max_length=8", *keys)
        require_runnable(run.data)
        warnings = run.data.task.counts["train"].warnings
        warned = any("of the questions are longer than max_length (8 tokens)" in warning for warning in warnings)
        assert warned == expected, warnings


def test_an_encoder_of_questions_of_another_width_is_refused(scored_recipe: Path) -> None:
    narrow = tiny("bert", scored_recipe.parent / "narrow", hidden_size=32)
    with pytest.raises(TmkdError) as refused:
        run_of(scored_recipe, "methods=[tmkd]", f"cached.question_encoder={narrow}").distill()
    assert "cached.question_encoder: the hidden states of" in str(refused.value)
    assert "are 32 numbers" in str(refused.value)
    assert "are 48: the two embeddings have no cosine" in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 2e-5])
def test_mpnet_reads_the_texts_from_training_to_scoring(scored_recipe: Path, tmp_path: Path, rate: float) -> None:
    """The real weights, 768 numbers wide: trained, exported and scored, frozen and trained along."""
    run = run_of(scored_recipe, "methods=[finetune]", "take=finetune", "cached.encoder=builtin:mpnet",
                 f"cached.encoder_learning_rate={rate}", "cached.state_size=64", "cached.heads=6")  # fmt: skip
    run.distill()
    folder, dev = run.students.taken().steps[0].folder, run.data.dev
    mpnet = find_encoder("builtin:mpnet")
    assert (weights_fingerprint(folder / "encoder") == weights_fingerprint(mpnet)) == (rate == 0)
    wanted = run.students.logits(run.students.taken(), dev)[0]
    rows = export_student(folder, dev, tmp_path / "export", backends=["onnx-fp32"])
    assert rows[0]["passed"], rows[0]["reason"]
    scorer = Scorer(tmp_path / "export")
    assert scorer.text_encoder is not None
    assert (scorer.text_encoder.format.size, scorer.text_encoder.format.width) == (64, 768)
    found = scorer.scores(dev.questions, dev.passages)
    np.testing.assert_allclose(found, wanted[:, 1] - wanted[:, 0], atol=0.1)  # 8 bits of the states
    assert np.std(found) > 0.1
