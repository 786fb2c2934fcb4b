"""tmkd: training, scoring in PyTorch, scoring an export; and the machine's matrix-product rate."""

import tempfile
import time
from pathlib import Path

from protocol import serve


def load(options):
    jobs = (train, train_cached, score, similarity, export, probe)
    return {job.__name__: job for job in jobs}[options["do_what"]](options)


def train(options):
    from tmkd.core.hardware import prepare
    from tmkd.models.checkpoint import load_encoder
    from tmkd.models.inputs import TokenInputs
    from tmkd.models.student import Student
    from tmkd.models.tokenizer import PairTokenizer

    prepare(options["threads"])
    folder = Path(options["model"])
    tokenizer = PairTokenizer(folder, options["max_length"])

    def read(questions, passages):
        return TokenInputs(tokenizer.encode(questions, passages), tokenizer.pad_id)

    return _epoch(Student(load_encoder(folder, 2), 2), read, precision=options.get("precision", "auto"))


def train_cached(options):
    """A student that reads passages once, and whose encoder is trained with it."""
    from tmkd.config.student_sections import Cached
    from tmkd.core.hardware import prepare
    from tmkd.models.checkpoint import hidden_width, load_encoder
    from tmkd.models.encoders.interaction import InteractionEncoder
    from tmkd.models.encoders.text_batches import TrainedReaders
    from tmkd.models.inputs import TextInputs, TextSide
    from tmkd.models.student import Student
    from tmkd.models.text_tokenizer import TextTokenizer
    from tmkd.pipeline.steps.student import READERS, shape_of

    prepare(options["threads"])
    folder = Path(options["model"])
    tokenizer = TextTokenizer(folder, options["max_length"])
    encoder = InteractionEncoder(shape_of(Cached(), hidden_width(folder)), folder)
    encoder.readers = TrainedReaders(load_encoder(folder, 2))

    def read(questions, passages):
        return TextInputs(TextSide.of(tokenizer, questions), TextSide.of(tokenizer, passages))

    return _epoch(Student(encoder, 2), read, by_passage=options["by_passage"], part=READERS, part_rate=1e-6)


def _epoch(model, read, *, by_passage=False, **numbers):
    """Trains the model for an epoch in each turn; it goes on in the next one, as the other tools do."""
    import torch

    from tmkd.training.losses import GoldenLoss
    from tmkd.training.trainer import Trainer, TrainerConfig
    from tmkd.training.training_set import TrainingSet

    config = TrainerConfig(1e-5, 1, 32, 0, **numbers)

    def run(questions, passages, labels):
        data = TrainingSet(read(questions, passages), by_passage=by_passage)
        loss = GoldenLoss(torch.tensor(labels))
        with tempfile.TemporaryDirectory() as state:
            Trainer(model, data, loss, config, name="tmkd", state_folder=Path(state)).fit()

    return run


def score(options):
    from tmkd.core.hardware import prepare
    from tmkd.models.checkpoint import load_student
    from tmkd.models.encoders.forward import ModuleEncoder
    from tmkd.models.inputs import TokenInputs
    from tmkd.models.predict import score
    from tmkd.models.tokenizer import PairTokenizer

    prepare(options["threads"])
    folder = Path(options["model"])
    tokenizer, model = PairTokenizer(folder, options["max_length"]), load_student(folder)
    if options.get("whole_module"):  # every token of every layer, as transformers computes it
        model.encoder = ModuleEncoder(model.encoder.model, dropout=0.0, freeze_embeddings=True)

    def run(questions, passages, labels):
        inputs = TokenInputs(tokenizer.encode(questions, passages), tokenizer.pad_id)
        logits = score(model, inputs, precision=options.get("precision", "auto"))
        return logits[:, 1] - logits[:, 0]

    return run


def similarity(options):
    from tmkd.core.hardware import prepare
    from tmkd.data.pairs import Pairs
    from tmkd.teachers.bi_encoder import BiEncoderTeacher

    prepare(options["threads"])
    teachers = []

    def run(questions, passages, labels):
        return teachers.pop().similarities(Pairs.build(questions, passages))

    def fresh(questions, passages):  # one that has embedded none of the texts, with its model open
        teachers[:] = [BiEncoderTeacher(options["model"])]
        teachers[0].similarities(Pairs.build(["question"], ["passage"]))

    run.prepare = fresh
    return run


def export(options):
    from tmkd.core.malloc import keep_freed_memory
    from tmkd.inference.scorer import Scorer

    keep_freed_memory()  # as `tmkd score` does
    states = options.get("states")  # of a cached student: `ready` before a call, or `computed` in it
    scorer = Scorer(
        Path(options["model"]),
        backend=options["backend"],
        threads=options["threads"],
        **({"cache_bytes": 0} if states == "computed" else {}),
    )
    scorer.warm_up()  # as the server does

    def run(questions, passages, labels):
        return scorer.scores(questions, passages)

    if states == "ready":
        run.prepare = scorer.scores
    return run


def probe(options):
    """Matrix products with the shapes of a layer. Returns one number, GFLOP/s, in place of scores."""
    import torch

    from tmkd.core.hardware import prepare

    prepare(options["threads"])
    kind = torch.bfloat16 if options["precision"] == "bf16" else torch.float32
    left, right = torch.randn(4096, 384).to(kind), torch.randn(384, 1536).to(kind)

    def run(questions, passages, labels):
        best = 0.0
        with torch.inference_mode():
            for _ in range(5):
                start = time.perf_counter()
                for _ in range(20):
                    left @ right
                best = max(best, 20 * 2 * 4096 * 384 * 1536 / (time.perf_counter() - start) / 1e9)
        return [best]

    return run


serve(load)
