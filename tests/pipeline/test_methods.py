"""The table of methods, and what is shared between them; the bilstm and m-o-m baselines; errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tmkd, pair_rows, write_jsonl
from encoder_fixtures import inputs, tiny

from tmkd.config.load import load_recipe
from tmkd.config.methods import METHODS
from tmkd.core.errors import EncoderError
from tmkd.core.logits import log_odds
from tmkd.models.checkpoint import load_encoder, load_student, save_student, word_embeddings
from tmkd.models.encoders.forward import Batch
from tmkd.models.encoders.lstm import LstmEncoder, LstmShape
from tmkd.models.inputs import TokenInputs
from tmkd.models.student import Student
from tmkd.pipeline.followed import correlation
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps.label import head_logits
from tmkd.teachers.ensemble import ensemble_logits

METHOD_TEXT = Path(__file__).parents[2] / "docs" / "METHOD.md"


def stated_methods() -> dict[str, dict[str, str]]:
    """The rows of METHOD.md's table, by method: column -> cell."""
    lines = METHOD_TEXT.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| name | what it is |"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    end = next(n for n, line in enumerate(lines[start:]) if not line.startswith("|"))
    head, _, *rows = cells[:end]
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}


def test_the_table_of_methods_is_that_of_the_method_text() -> None:
    stated = stated_methods()
    assert list(METHODS) == list(stated)
    for name, row in stated.items():
        method = METHODS[name]
        assert {"yes": True, "no": False}[row["stage 1"]] is method.stage1, name
        assert row["targets"] == method.targets, name
        assert row["headers"] == method.heads, name
        assert row["students"] == str(method.students), name
        assert row["encoder"] == method.encoder, name


@pytest.mark.parametrize("name", [name for name, row in stated_methods().items() if row["targets"] in ("mean", "each")])
def test_a_method_of_several_teachers_names_the_one_it_is_with_a_single_teacher(name: str) -> None:
    stated = stated_methods()
    alone = METHODS[name].alone
    if not METHODS[name].stage2:  # stage 1 alone is itself with one teacher, too
        assert alone is None
        return
    assert alone is not None
    assert stated[alone]["targets"] == "one"
    assert stated[alone]["stage 1"] == stated[name]["stage 1"]


FAST = "export.backends=[onnx-fp32]"
WARM = "warm_up={learning_rate: 1.0e-3, epochs: 1, batch_size: 8}"  # finetune-warm starts from it
ALL = f"methods=[{','.join(METHODS)}]"


def test_every_method_in_one_run(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    """Shared work is done once; m-o-m is the mean of its students and costs them all; bilstm is measured."""
    done = tmkd("run", tiny_recipe, ALL, "bilstm={width: 16, epochs: 1}", WARM, FAST, "--json")
    results = json.loads(done.stdout)
    rows = {row["name"]: row for row in results["methods"]}
    assert list(rows) == ["teacher:a", "teacher:b", *list(stated_methods())[1:]]
    workspace = tmp_path / "workspace"
    steps = [path.name.split("-")[0] for path in (workspace / "steps").iterdir()]
    # One 1-o-1 of the two in m-o-m is the best teacher's. Stage 1: self-taught, tkd, 1avg-tkd, tmkd, tmkd-paper.
    assert (steps.count("teacher"), steps.count("stage1"), steps.count("student")) == (2, 5, 13)

    one, all_k, lstm = rows["1-o-1"], rows["m-o-m"], rows["bilstm"]
    assert all_k["seeds"] == 1
    assert all_k["parameters"] == 2 * one["parameters"]
    assert all_k["bytes"] == 2 * one["bytes"]
    assert all_k["pairs_per_second"] == pytest.approx(one["pairs_per_second"] / 2)
    assert all_k["milliseconds"]["25"] == pytest.approx(2 * one["milliseconds"]["25"])
    assert lstm["layers"] == 1
    assert lstm["parameters"] != one["parameters"]
    assert lstm["bytes"] > 4 * lstm["parameters"]
    assert lstm["pairs_per_second"] > 0

    models = json.loads((workspace / "runs" / "tiny" / "manifest.json").read_text())["models"]
    by_name = {model["name"]: model["steps"] for model in models}
    assert len(by_name["m-o-m"]) == 2
    assert by_name["1-o-1"][0] in by_name["m-o-m"]

    overrides = [ALL, "bilstm={width: 16, epochs: 1}", WARM, FAST]
    run = Run(load_recipe(tiny_recipe, overrides), workspace)
    student = next(student for student in run.students.train_all() if student.method.name == "m-o-m")
    test = run.data.test
    together = run.students.logits(student, test)
    alone = np.stack([run.labels.logits_of(step, test, "x") for step in student.steps]).astype(np.float64)
    probabilities = np.exp(alone) / np.exp(alone).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(together[0]), probabilities.mean(0), atol=1e-6)

    left_out = {row["teacher"]: row for row in results["leave_one_out"]}
    assert set(left_out) == {"a", "b"}
    # Of two teachers, the ensemble without one is the other.
    assert left_out["a"]["auc"]["mean"] == pytest.approx(rows["teacher:b"]["auc"]["mean"])
    added = rows["teacher-ensemble"]["auc"]["mean"] - rows["teacher:b"]["auc"]["mean"]
    assert left_out["a"]["behind"]["auc"]["mean"] == pytest.approx(added)
    ways = {row["combination"]: row for row in results["combinations"]}
    assert list(ways) == ["logit", "probability", "golden"]
    assert ways["logit"]["auc"] == rows["tmkd"]["auc"]
    close = {row["model"]: row for row in results["agreement"]}
    assert next(iter(close)) == "tmkd"
    assert set(close) == {name for name, row in rows.items() if row["kind"] in ("student", "baseline")}
    top = ensemble_logits([run.labels.logits_of(step, test, "x") for _, step in run.labels.teachers if step])
    same = (together[0].argmax(-1) == top.argmax(-1)).mean()
    assert close["m-o-m"]["agreement"]["mean"] == pytest.approx(same)
    ahead = close["tmkd"]["agreement"]["mean"] - same
    assert close["m-o-m"]["behind"]["agreement"]["mean"] == pytest.approx(ahead)
    taken = next(student for student in run.students.train_all() if student.method.name == "tmkd")
    assert results["followed"].keys() == {"a", "b"}
    for name, pairs in (("stage1", run.labels.stage1_pool), ("train", run.data.student_pairs), ("test", test)):
        given = head_logits(run.workspace, taken.steps[0], pairs, name="x", precision=run.data.recipe.precision)
        heads = log_odds(given[:, 1:])  # the golden head stands first
        for place, (teacher, step) in enumerate(run.labels.teachers):
            assert step is not None
            of_teacher = log_odds(run.labels.logits_of(step, pairs, "x"))
            expected = np.corrcoef(heads[:, place], of_teacher)[0, 1]
            assert results["followed"][teacher.name][name] == pytest.approx(expected, abs=1e-4)
    page = (workspace / "runs" / "tiny" / "report" / "report.html").read_text()
    assert "Agreement with the teachers" in page
    assert "How closely the student follows its teachers" in page
    assert "What each teacher adds" in page
    assert "How the heads are combined" in page

    shown = tmkd("evaluate", workspace / "runs" / "tiny", "--pairs", tmp_path / "test.jsonl", "--no-speed")
    assert "the ensemble without each teacher" in shown.stdout
    assert "its heads combined" in shown.stdout
    assert "share of pairs decided as teacher-ensemble does" in shown.stdout


def test_how_closely_one_model_follows_another() -> None:
    first = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    assert correlation(first, 2 * first + 5) == pytest.approx(1)
    assert correlation(first, first[[1, 0, 2]]) == pytest.approx(0.5)  # (1, 2, 3) and (2, 1, 3)
    assert np.isnan(correlation(first, np.zeros((3, 2))))
    assert np.isnan(correlation(first[:0], first[:0]))
    three = np.array([[1.0, 2.0, 6.0], [0.0, 3.0, 0.0]])  # less their means: -2, -1, 3 and -1, 2, -1
    other = np.array([[4.0, 2.0, 0.0], [1.0, 4.0, 1.0]])  # 2, 0, -2 and -1, 2, -1
    assert correlation(three, other) == pytest.approx(-4 / np.sqrt(20 * 14))


def test_stage1_of_one_teacher_is_shared(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    """tkd of the best teacher, and of the only one, is one stage 1 and one student."""
    done = tmkd("distill", tiny_recipe, "methods=[tkd]", "take=tkd")
    best = "a" if "best teacher on the development set: a" in done.stderr else "b"
    place = "ab".index(best)
    only = load_recipe(tiny_recipe, ["methods=[tkd]", "take=tkd"]).teachers[place].model_dump(mode="json")
    again = tmkd("distill", tiny_recipe, "methods=[tkd]", "take=tkd", f"teachers=[{json.dumps(only)}]")
    assert "stage 1 of tkd, seed 0: done before" in again.stderr
    assert "tkd, seed 0: done before" in again.stderr


def lstm_student(folder: Path) -> Student:
    source = tiny("bert", folder / "tiny")
    table = word_embeddings(source)
    torch.manual_seed(0)
    vocabulary, width = table.shape
    encoder = LstmEncoder(LstmShape(vocabulary, width, 24, 102, 0))
    with torch.no_grad():
        encoder.embeddings.weight.copy_(table)
    return Student(encoder, 2).eval()


def test_bilstm_saves_and_loads(tmp_path: Path) -> None:
    student = lstm_student(tmp_path)
    ids, mask, types = inputs(tmp_path / "tiny")
    save_student(student, tmp_path / "saved", tmp_path / "tiny", 64, {})
    again = load_student(tmp_path / "saved").eval()
    with torch.no_grad():
        expected = student(Batch(ids, mask, types)).golden
        assert torch.equal(again(Batch(ids, mask, types)).golden, expected)
        # A pair's logits do not depend on what it is padded to, nor on its neighbours.
        length = int(mask[3].sum())
        assert torch.allclose(student(Batch(ids[3:4, :length], None, None)).golden, expected[3:4], atol=1e-6)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["num_labels"]) == ("bilstm", 24, 2)
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(EncoderError, match="train it again"):
        load_student(tmp_path / "saved")


def test_bilstm_is_a_bidirectional_lstm(tmp_path: Path) -> None:
    encoder = lstm_student(tmp_path).encoder
    assert isinstance(encoder, LstmEncoder)
    ids, mask, _ = inputs(tmp_path / "tiny")
    theirs = torch.nn.LSTM(48, 24, batch_first=True, bidirectional=True)
    theirs.load_state_dict(
        {**encoder.ahead.state_dict(), **{f"{n}_reverse": t for n, t in encoder.back.state_dict().items()}}
    )
    x = torch.randn(*ids.shape, 48)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(
            theirs(packed)[0], batch_first=True, total_length=ids.shape[1]
        )
        found = encoder._hidden_states(x, mask)
    assert torch.allclose(found * mask[..., None], expected, atol=1e-6)


def test_bilstm_reads_both_texts(tmp_path: Path) -> None:
    student = lstm_student(tmp_path)
    ids, mask, types = inputs(tmp_path / "tiny", 1)
    end = int((ids[0] == 102).nonzero()[0])
    with torch.no_grad():
        before = student(Batch(ids, mask, types)).golden
        for place in (1, end + 1):  # a word of the question, a word of the passage
            other = ids.clone()
            other[0, place] = 2000
            assert not torch.allclose(student(Batch(other, mask, types)).golden, before)


def test_bilstm_takes_embeddings_and_tokenizer_of_the_best_teacher(
    tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path
) -> None:
    other = tiny("mpnet", tmp_path / "mpnet")
    for path in (tmp_path / "train.jsonl", tmp_path / "test.jsonl"):
        path.write_text(
            path.read_text().replace('"label": 0', '"label": "wrong"').replace('"label": 1', '"label": "right"')
        )
    done = tmkd(
        "distill", tiny_recipe, f"teachers.1.encoder={other}", "methods=[bilstm,tkd]", "take=tkd",
        "bilstm={width: 8, epochs: 1}", "data.labels={wrong: 0, right: 1}",
    )  # fmt: skip
    best = int("best teacher on the development set: b" in done.stderr)
    models = json.loads((tmp_path / "workspace" / "runs" / "tiny" / "manifest.json").read_text())["models"]
    by_name = {model["name"]: tmp_path / "workspace" / "steps" / model["steps"][0] for model in models}
    teacher, student = by_name[f"teacher:{'ab'[best]}"], by_name["bilstm"]
    encoder = load_student(student).encoder
    assert isinstance(encoder, LstmEncoder)
    assert torch.equal(encoder.embeddings.weight, load_encoder(teacher, 2).base.embeddings.word_embeddings.weight)
    card = json.loads((student / "tmkd.json").read_text())
    assert (card["soft_headers"], card["labels"]) == (0, ["wrong", "right"])


def test_bilstm_learns(tmp_path: Path) -> None:
    """It tells right from wrong passages of questions that it was trained on."""
    from tmkd.data.pairs import Pairs
    from tmkd.models.predict import score
    from tmkd.models.tokenizer import PairTokenizer
    from tmkd.training.losses import GoldenLoss
    from tmkd.training.trainer import Trainer, TrainerConfig
    from tmkd.training.training_set import TrainingSet

    rows = pair_rows()
    pairs = Pairs.build([str(r["question"]) for r in rows], [str(r["passage"]) for r in rows],
                        labels=[int(str(r["label"])) for r in rows])  # fmt: skip
    student, tokenizer = lstm_student(tmp_path), PairTokenizer(tmp_path / "tiny", 64)
    encoded = tokenizer.encode(pairs.questions, pairs.passages)
    loss = GoldenLoss(torch.from_numpy(pairs.labels))
    data, config = TrainingSet(TokenInputs(encoded, tokenizer.pad_id)), TrainerConfig(5e-3, 20, 16, 0)
    Trainer(student, data, loss, config, name="t", state_folder=tmp_path / "s").fit()
    right = score(student, TokenInputs(encoded, tokenizer.pad_id)).argmax(1) == pairs.labels
    assert right.mean() > 0.95


def test_errors(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path) -> None:
    one = "teachers=[{name: a, epochs: 1}]"
    for overrides, expected in {
        (one, "methods=[tmkd]"): "tmkd needs two or more teachers, and a is the only one; add another, or take tkd",
        (one, "methods=[mkd]", "take=mkd"): "mkd needs two or more teachers",
        (one, "methods=[m-o-m,tkd]", "take=tkd"): "m-o-m needs two or more teachers",
        (one, "methods=[1avg-o-1,tkd]", "take=tkd"): "1avg-o-1 needs two or more teachers",
        (one, "methods=[1avg-tkd]", "take=1avg-tkd"): "1avg-tkd needs two or more teachers",
        (one, "methods=[tmkd-paper]", "take=tmkd-paper"): "tmkd-paper needs two or more teachers",
        ("methods=[finetune-warm]", "take=finetune-warm"): "methods: finetune-warm starts from the warm start, and the "
        "recipe has none; give it one, such as warm_up={learning_rate: 3.0e-4, epochs: 1}, or leave finetune-warm out",
        ("methods=[finetune-warm@cached]", "take=finetune-warm@cached"): "finetune-warm has no student of the kind "
        "cached: the warm start teaches an encoder to compare two texts in one sequence",
        ("methods=[finetune-whole@cached]", "take=finetune-whole@cached"): "finetune-whole has no kinds of students, "
        "its student is a whole encoder; write finetune-whole",
        ("methods=[m-o-m,tkd]", "take=m-o-m"): "take: m-o-m is several students, and cannot be exported",
        ("methods=[bilstm]", "take=bilstm"): "take: bilstm is an LSTM, no transformers checkpoint",
        ("loss.kind=margin",): "loss.kind: input should be 'kl', 'mse', 'mse_logits', 'list_kl', 'margin_mse', "
        "'margin_mse_scaled' or 'adr_mse', got 'margin'",
        ("loss.weighting=best",): "got 'best'",
        ("combination=mean",): "got 'mean'",
    }.items():
        done = tmkd("distill", tiny_recipe, *overrides, check=False)
        assert done.returncode == 1, (overrides, done.stderr)
        assert expected in done.stderr, (overrides, done.stderr)
    assert not list(tmp_path.glob("workspace/steps/*"))  # nothing was trained first


@pytest.mark.parametrize("ours", [True, False])
def test_a_teacher_of_other_classes_is_refused(tmkd: Tmkd, tiny_recipe: Path, tmp_path: Path, ours: bool) -> None:
    source = tiny("bert", tmp_path / "tiny")
    save_student(Student(load_encoder(source, 3, layers=1), 3), tmp_path / "three", source, 64, {})
    if not ours:
        (tmp_path / "three" / "tmkd.json").unlink()
    write_jsonl(tmp_path / "test.jsonl", [{**row, "question": f"Q: {row['question']}"} for row in pair_rows(1)])
    done = tmkd("teach", tiny_recipe, f"teachers.0={{name: a, checkpoint: {tmp_path / 'three'}}}", check=False)
    assert done.returncode == 1
    assert "a finished teacher needs a head of 2 classes, this one has 3" in done.stderr
