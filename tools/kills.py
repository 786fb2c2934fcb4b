"""Kill a run at random moments, run it again, and compare what it made, byte for byte.

    python tools/kills.py --kills 50 --json docs/results/kills.json

A small recipe is run once without a kill: real text (this project's documentation), a warm start, a fine-tuned and an
embedding teacher, both stages, both kinds of students, export, report. Then, for every kill, a step of it is drawn, and
a moment of that step. The run starts in a workspace with the steps that come before; at that moment it is killed with
its children (SIGKILL); the same command then runs to its end. All models, labels, exports and figures must be those of
the run without a kill. Each kill's step, moment and result is logged; a call that is interrupted continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]
# a state of a training is saved every half minute; here, where trainings are short, ten times a second
COMMAND = """
import sys
import tmkd.training.state as state, tmkd.pipeline.steps.label as label, tmkd.pipeline.steps.states as states
state.SAVE_SECONDS, label.CHUNK, states.PART = 0.1, 64, 64
from tmkd.cli.main import main
sys.argv = ["tmkd", "run", "recipe.yaml", "--json", "results.json"]
main()
"""


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        number: which one, from 0.
        step: the step that was to be killed.
        moment: when, as a share of the step's seconds.
        during: the unfinished steps that lay in the workspace after the kill; empty where none did.
        identical: whether everything that was made afterwards is that of the run without a kill.
        differs: the first things that are not.
    """

    number: int
    step: str
    moment: float
    during: tuple[str, ...]
    identical: bool
    differs: tuple[str, ...]


def rows() -> list[dict[str, Any]]:
    """Headings of the documentation with the paragraph below (1) and with those of three other headings (0)."""
    found = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        for heading, text in re.findall(r"^#+ (.+)\n\n([^\n#|`-][^\n]+(?:\n[^\n]+)*)", page.read_text(), re.MULTILINE):
            found.append((heading, " ".join(text.split())[:400]))
    found = list(dict(found).items())[:100]
    return [
        {"question": heading, "passage": found[(place + step) % len(found)][1], "label": int(step == 0)}
        for place, (heading, _) in enumerate(found)
        for step in (0, 1, 7, 31)
    ]


def write_recipe(folder: Path) -> None:
    """The recipe and its pairs."""
    every = rows()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every))
    pool = [{"question": one["question"], "passage": other["passage"]}
            for one, other in zip(every[::2], [*every[41::2], *every[1:41:2]], strict=True)]  # fmt: skip
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool))
    numbers = {"learning_rate": 1.0e-4, "epochs": 1, "batch_size": 16}
    recipe = {
        "name": "kills", "encoder": "builtin:minilm-l6", "max_length": 48, "precision": "fp32",
        "data": {"train": "train.jsonl", "hold_out": {"dev": 0.1, "test": 0.2}, "pool": "pool.jsonl"},
        "warm_up": numbers,
        "teachers": [
            {"name": "t1", "seed": 1, **numbers},
            {"name": "minilm", "kind": "bi_encoder", "model": "builtin:minilm-l6"},
        ],
        "student": {"layers": 2, "start": "teacher"}, "stage1": {**numbers, "states": 10.0}, "stage2": numbers,
        "cached": {"layers": 1, "stage1": numbers, "stage2": numbers},
        "methods": ["teacher", "teacher-ensemble", "cosine", "tmkd", "tmkd@cached"], "take": "tmkd",
        "export": {"backends": ["onnx-fp32"]}, "seeds": [0],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the run in a folder, as the leader of a group of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND], cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )


Timed = list[tuple[str, float, float]]
"""Steps in the order in which they were begun, with the times of beginning and end; a step may lie within another."""


def timed_steps(folder: Path) -> Timed:
    """Run the recipe once."""
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    process = start(folder, folder / "log.txt")
    while process.poll() is None:
        for path in (folder / "workspace" / "steps").glob("*"):
            name = path.name.removesuffix(".partial")
            began.setdefault(name, time.time())
            if path.name == name:
                ended.setdefault(name, time.time())
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"the run without a kill failed: {(folder / 'log.txt').read_text()[-2000:]}")
    return [(name, began[name], ended[name]) for name in began if name in ended]


def made(folder: Path) -> dict[str, str]:
    """A digest of everything that the run made: models, labels, states, exports and figures; no times."""
    found = {}
    steps = folder / "workspace" / "steps"
    for path in sorted(steps.rglob("*")):
        name = path.relative_to(steps).as_posix()
        if path.suffix in (".safetensors", ".npy", ".onnx", ".bin") and "/state/" not in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for store in sorted({path.parent for path in steps.glob("*/part-*.parquet")}):
        labels = sorted(str(row) for part in store.glob("part-*.parquet") for row in pq.read_table(part).to_pylist())
        found[f"{store.name}/labels"] = hashlib.sha256("\n".join(labels).encode()).hexdigest()
    run = folder / "workspace" / "runs" / "kills"
    for path in sorted([*run.glob("student/*.safetensors"), *run.glob("methods/*/student/*.safetensors")]):
        found[f"run/{path.relative_to(run)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    results = json.loads((folder / "results.json").read_text())
    for method in results["methods"]:
        quality = {name: value for name, value in method.items() if name not in ("pairs_per_second", "milliseconds")}
        found[f"figures of {method['name']}"] = json.dumps(quality, sort_keys=True)
    return found


def copy_until(reference: Path, workspace: Path, order: Timed, began: float) -> None:
    """Put a workspace into the state that the reference had at a moment: its finished steps, and its caches."""
    (workspace / "steps").mkdir(parents=True)
    for name, _, ended in order:
        if ended <= began:
            shutil.copytree(reference / "steps" / name, workspace / "steps" / name)
    for path in (reference / "tokens").rglob("*"):
        if path.is_file() and path.stat().st_mtime <= began:
            target = workspace / path.relative_to(reference)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def kill_once(reference: Path, folder: Path, order: Timed, number: int, seed: int) -> Kill:
    """Draw a step and a moment, kill the run there, run it to its end, and compare."""
    draw = random.Random(f"{seed} {number}")
    place, moment = draw.randrange(len(order)), draw.random()
    step, began, ended = order[place]
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for name in ("recipe.yaml", "train.jsonl", "pool.jsonl"):
        shutil.copy(reference / name, folder)
    copy_until(reference / "workspace", folder / "workspace", order, began)
    steps = folder / "workspace" / "steps"
    process = start(folder, folder / "killed.txt")
    while process.poll() is None and not (steps / f"{step}.partial").exists() and not (steps / step).exists():
        time.sleep(0.002)
    time.sleep(moment * (ended - began))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    during = tuple(sorted(path.name.removesuffix(".partial") for path in steps.glob("*.partial")))
    if start(folder, folder / "log.txt").wait():
        return Kill(number, step, moment, during, False, ((folder / "log.txt").read_text()[-500:],))
    wanted, found = made(reference), made(folder)
    differs = [name for name in wanted if found.get(name) != wanted[name]]
    return Kill(number, step, moment, during, not differs, tuple(differs[:5]))


def main() -> int:
    """Kill so many times; exit status 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other steps and moments")
    parser.add_argument("--folder", type=Path, default=Path("build/kills"), help="where the runs are made")
    parser.add_argument("--json", type=Path, help="the log of all kills")
    given = parser.parse_args()
    reference, times = given.folder / "reference", given.folder / "times.json"
    if not times.is_file():
        shutil.rmtree(reference, ignore_errors=True)
        reference.mkdir(parents=True)
        write_recipe(reference)
        times.write_text(json.dumps(timed_steps(reference)))
    order = [(str(name), float(began), float(ended)) for name, began, ended in json.loads(times.read_text())]
    log = given.folder / f"kills-{given.seed}.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    for number in sorted(set(range(given.kills)) - {one["number"] for one in done}):
        found = asdict(kill_once(reference, given.folder / "run", order, number, given.seed))
        with log.open("a") as file:
            file.write(json.dumps(found) + "\n")
        done.append(found)
        result = "identical" if found["identical"] else f"differs: {', '.join(found['differs'])}"
        print(f"{number + 1}: {found['step']} at {found['moment']:.0%}: {result}", flush=True)
    good = sum(one["identical"] for one in done)
    kinds = sorted({one["step"].rpartition("-")[0] for one in done})
    print(f"{good} of {len(done)} kills gave identical results; kinds of steps: {', '.join(kinds)}")
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "identical": good, "kills": done}, indent=1) + "\n")
    return int(good < len(done))


if __name__ == "__main__":
    sys.exit(main())
