"""What the heads of a run's students have learned of their teachers, and whether the teachers' gradients conflict.

    python tools/heads.py workspace/runs/webqa-students
    python tools/heads.py workspace/runs/webqa-students --batches 100 --json heads.json

For every method of the run that has two stages and soft labels, the student of the first seed. Two tables. The first is
that of the run's report (`tmkd.pipeline.followed`). If teachers conflict, or the student is too small for all of them,
the student of one teacher follows that teacher more closely than the student of several does.

The second has the cosine of the gradients of two losses in the layers that the heads share (Yu et al. 2020, "Gradient
Surgery for Multi-Task Learning"), batch by batch: at the end of stage 1 on its pairs, and where stage 2 begins on the
training pairs. Where it is negative, what helps one head harms the other.

Run it in the folder from which the run was started. Nothing is trained; logits are kept in the workspace.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tmkd.config.methods import Method
from tmkd.core.console import progress
from tmkd.core.files import write_json
from tmkd.data.pairs import Pairs
from tmkd.evaluation.results import ENSEMBLE
from tmkd.models.checkpoint import load_student
from tmkd.pipeline.followed import followed, learned_sets, taught_by
from tmkd.pipeline.run import Run
from tmkd.pipeline.steps.finished_run import FinishedRun
from tmkd.pipeline.steps.states import model_inputs
from tmkd.pipeline.store.workspace import Step
from tmkd.training.losses import golden_loss, soft_loss
from tmkd.training.targets import Targets

BATCH = 32  # pairs of a batch


def main() -> None:
    """Measure the students of the run that the command line names, print both tables and write the JSON file."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    asked.add_argument("run", type=Path, help="folder of a finished run, workspace/runs/NAME")
    asked.add_argument("--batches", type=int, default=60, help=f"batches of {BATCH} pairs (default 60)")
    asked.add_argument("--json", type=Path, help="write the figures to this file")
    given = asked.parse_args()
    run = Run.open(given.run)
    run.prepare()
    finished, found = FinishedRun.read(given.run, run.workspace), {}
    for method in (one for one in run.students.methods if one.stage1 and one.stage2 and one.targets != "none"):
        found[method.name] = {
            "followed": followed(run.labels, finished, method.name, on_test(run, method)),
            "gradients": gradients(run, method, given.batches),
        }
        show(method.name, found[method.name])
    if given.json:
        write_json(given.json, {"run": run.recipe.name, "batches": given.batches, "methods": found})
        print(f"written to {given.json}")


def on_test(run: Run, method: Method) -> dict[str, NDArray[np.float32]]:
    """The logits of the test pairs of what a method's heads learn, [N, C], by its name in a report."""
    test = run.data.test
    if method.targets == "mean":
        targets = run.labels.targets(method, test, "test")
        return {} if targets is None else {ENSEMBLE: targets.logits[:, 0]}
    names = [f"teacher:{teacher.name}" for teacher, _ in run.labels.teachers]
    return dict(zip(names, run.labels.logits(test, "test"), strict=True))


def gradients(run: Run, method: Method, batches: int) -> dict[str, dict[str, dict[str, float]]]:
    """The cosines of gradients in a method's stage-1 student, by pairs."""
    first = run.students.pretrain(method, run.recipe.seeds[0])
    assert isinstance(first, Step), "this run's stage 1 is of another run; measure that one"
    found = {}
    for where, pairs, targets in learned_sets(run.labels, method):
        names = taught_by(run.labels, method, pairs)
        if where == "train":
            found["stage 2, begin"] = cosines(run, first, pairs, targets, [*names, "labels"], batches)
        else:
            found["stage 1, end"] = cosines(run, first, pairs, targets, names, batches)
    return found


def cosines(
    run: Run, step: Step, pairs: Pairs, targets: Targets, names: list[str], batches: int
) -> dict[str, dict[str, float]]:
    """The cosine of the gradients of every two losses in the layers that the heads share.

    The golden head, which learns labels, has random weights where stage 2 begins. So the loss on `labels` is taken of
    the mean of the soft heads.

    Args:
        run: the run.
        step: the stage-1 student.
        pairs: N pairs.
        targets: their soft labels, [N, K, C].
        names: the losses, those of the K heads first, then `labels` or nothing.
        batches: how many batches of the pairs are drawn.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(pairs))[: batches * BATCH])
    some, soft = pairs.take(rows), torch.from_numpy(np.asarray(targets.logits)[rows])
    model = load_student(step.folder).eval()
    inputs = model_inputs(run.workspace, step.folder, some, "fp32")
    shared = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    drawn: dict[tuple[str, str], list[float]] = {both: [] for both in itertools.combinations(names, 2)}
    for places in in_batches(len(some)) if drawn else ():
        output = model(inputs.batch(model, places, bf16=False))
        heads = range(output.soft.shape[1])
        losses = [soft_loss(output.soft[:, k : k + 1], soft[places, k : k + 1], "kl", 1.0).mean() for k in heads]
        if "labels" in names:
            losses.append(golden_loss(output.soft.mean(dim=1), torch.from_numpy(some.golden[places])).mean())
        found = {name: gradient_of(loss, shared) for name, loss in zip(names, losses, strict=True)}
        for first, second in drawn:
            cosine = torch.nn.functional.cosine_similarity(found[first], found[second], dim=0)
            drawn[first, second].append(float(cosine))
    return {
        f"{first} and {second}": {
            "mean": float(np.mean(values)),
            "standard_error": float(np.std(values) / np.sqrt(len(values))),
            "negative": float(np.mean(np.array(values) < 0)),
        }
        for (first, second), values in drawn.items()
    }


def in_batches(count: int) -> Iterator[NDArray[np.int64]]:
    """Random whole batches of so many rows, each row in one at most."""
    order = np.random.default_rng(1).permutation(count)
    starts = range(0, count - BATCH + 1, BATCH)
    with progress("compare gradients", len(starts), "batches") as bar:
        for start in starts:
            yield np.sort(order[start : start + BATCH])
            bar.advance(1)


def gradient_of(loss: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """The gradient of a loss in all of the parameters as one vector, 0 where the loss does not depend on them."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = (torch.zeros_like(one) if own is None else own for one, own in zip(parameters, found, strict=True))
    return torch.cat([part.flatten() for part in parts])


def show(method: str, found: dict[str, Any]) -> None:
    """Print both tables of one method."""
    print(f"\n{method}: correlation of its heads with their teachers")
    for teacher, by_set in found["followed"].items():
        print(f"  {teacher:20}" + "".join(f"  {where} {value:.3f}" for where, value in by_set.items()))
    for where, by_two in found["gradients"].items():
        for two, numbers in by_two.items():
            about = f"{numbers['mean']:+.3f} (standard error {numbers['standard_error']:.3f})"
            print(
                f"  cosine of gradients, {where}: {two} {about}, negative in {numbers['negative']:.0%} of the batches"
            )


if __name__ == "__main__":
    main()
