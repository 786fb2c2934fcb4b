"""The parts of `tmkd bench scale`, each in a process of its own: `python -m tmkd.bench.scale_parts PART FOLDER`.

Every process has one thread. The last line of its output is JSON: what the part measured, and the process's memory.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from tmkd.bench.scale_material import ENCODER, MAX_LENGTH, pairs_in, tokenizer, write_material
from tmkd.config.methods import METHODS
from tmkd.config.sections import Loss
from tmkd.core.hardware import describe, prepare
from tmkd.data.pairs import Pairs
from tmkd.models.checkpoint import load_encoder
from tmkd.models.encoders.find import find_encoder
from tmkd.models.encoders.forward import Batch
from tmkd.models.inputs import TokenInputs
from tmkd.models.predict import score
from tmkd.models.student import Student
from tmkd.pipeline.steps.label import CHUNK
from tmkd.pipeline.steps.stored_labels import Labels, stored
from tmkd.pipeline.store.fingerprint import depends_on
from tmkd.pipeline.store.token_cache import token_inputs
from tmkd.pipeline.store.workspace import Workspace
from tmkd.teachers.interface import Scored
from tmkd.training.gradients import on_device
from tmkd.training.targets import SoftLabelLoss, Targets
from tmkd.training.training_set import TrainingSet

TEACHERS = ("one", "two")
CLASSES = 2
BATCH = 32  # pairs of an optimiser step, as a recipe has them
_SAMPLE = 256  # pairs that a real teacher scores, where there are many
_TURNS = 3


class Memory:
    """The largest resident memory of this process, and the largest that no file backs (Linux)."""

    def __init__(self) -> None:
        self.before = _status("VmRSS")
        self.anonymous = 0
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.anonymous = max(self.anonymous, _status("RssAnon"))

    def found(self) -> dict[str, int]:
        """`resident` and `anonymous`, in bytes, the largest that were seen, and what was resident `before`."""
        self._stop.set()
        return {
            "before": self.before,
            "resident": _status("VmHWM"),
            "anonymous": max(self.anonymous, _status("RssAnon")),
        }


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def material(folder: Path, count: str) -> dict[str, Any]:
    """Write the pairs and their token ids."""
    write_material(folder, int(count))
    return {"bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())}


def labels_of(folder: Path, teacher: str, pairs: Pairs, scored: Callable[[Pairs], Iterator[Scored]]) -> Any:
    """The label store of a made-up teacher, filled as that of a real one is."""
    unique = pairs.distinct()
    content = depends_on(settings={"precision": "fp32"}, inputs={"model": teacher, "pairs": unique})
    header = {"teacher": teacher, "max_length": MAX_LENGTH, "classes": CLASSES, "dtype": "float32"}
    return stored(Workspace(folder), Labels("labels", header, content, unique, teacher), scored)


def store(folder: Path) -> dict[str, Any]:
    """Label every pair with two teachers whose logits cost nothing: the time is that of everything but the model."""
    seconds = []
    for number, teacher in enumerate(TEACHERS):
        model = 0.0

        def scored(pairs: Pairs, seed: int = number) -> Iterator[Scored]:
            nonlocal model
            generator = np.random.default_rng(seed)
            for first in range(0, len(pairs), CHUNK):
                begin = time.perf_counter()
                rows = np.arange(first, min(first + CHUNK, len(pairs)))
                logits = generator.normal(size=(len(rows), CLASSES)).astype(np.float32)
                model += time.perf_counter() - begin
                yield rows, logits

        pairs = pairs_in(folder)  # read again: in a run the second teacher is often labelled by another process
        begin = time.perf_counter()
        logits = labels_of(folder, teacher, pairs, scored).logits_for(pairs.ids)
        seconds.append(time.perf_counter() - begin - model)
        assert np.isfinite(logits).all()
        del logits
    return {"pairs": len(pairs), "seconds": seconds}


def never(_: Pairs) -> Iterator[Scored]:
    """The scores of a teacher whose labels are all there."""
    raise AssertionError("a pair has no label")
    yield  # an iterator


def training_data(folder: Path) -> tuple[TrainingSet, SoftLabelLoss]:
    """What stage 1 trains on, in the order of a run: the labels of two teachers, then token ids from the cache."""
    pairs = pairs_in(folder)
    loss = SoftLabelLoss(_targets(folder, pairs), Loss())
    return TrainingSet(token_inputs(Workspace(folder), tokenizer(), pairs)), loss


def _targets(folder: Path, pairs: Pairs) -> Targets:
    logits = [labels_of(folder, teacher, pairs, never).logits_for(pairs.ids) for teacher in TEACHERS]
    targets = Targets.choose(METHODS["tmkd"], list(TEACHERS), logits, best=0)
    assert targets is not None
    return targets.masked().mapped(folder)


def batches(folder: Path) -> dict[str, Any]:
    """Make every batch of an epoch, with its labels, as training does on this machine; and no step."""
    data, loss = training_data(folder)
    model: Any = SimpleNamespace(encoder=SimpleNamespace(packs=True))  # all that is asked of it
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    for rows in data.steps(BATCH, epoch=0, seed=0):
        for part in data.micro_batches(rows):
            batch, labels = data.inputs.batch(model, part, bf16=False), loss.soft[on_device(part)]
            assert isinstance(batch, Batch)
            count += len(labels)
    return {"pairs": count, "seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}


def teacher(folder: Path) -> dict[str, Any]:
    """Measure how many pairs cross-encoders of 3 and 6 layers label in a second of a core, and how many are tokenized.

    A second of a core is one of the process's own: what else runs on the machine does not make the teacher slow, and so
    the store's share small.
    """
    pairs = pairs_in(folder).take(np.arange(min(_SAMPLE, max(16, len(pairs_in(folder)) // 50))))
    found: dict[str, Any] = {"where": describe("auto")}
    for layers in (3, 6):
        model = Student(load_encoder(find_encoder(ENCODER), CLASSES, layers=layers), CLASSES)
        encoded = tokenizer().encode(pairs.questions, pairs.passages)
        rates = []
        for _ in range(_TURNS + 1):
            begin = time.process_time()
            score(model, TokenInputs(encoded, tokenizer().pad_id))
            rates.append(len(pairs) / (time.process_time() - begin))
        found[f"{layers} layers"] = statistics.median(rates[1:])
    reader, texts, begin = tokenizer(), list(pairs.texts()), time.process_time()
    for _ in reader.encode_chunks(texts):
        pass
    return {**found, "tokenized": len(pairs) / (time.process_time() - begin)}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "material": material,
    "store": store,
    "batches": batches,
    "teacher": teacher,
}


def main(name: str, folder: str, *more: str) -> None:
    """Run one part, and print what it measured."""
    prepare(threads=1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    memory = Memory()
    found = PARTS[name](Path(folder), *more)
    print(json.dumps({**found, "memory": memory.found()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
