"""Build the wheel, check it, install it with each extra into an empty environment, and score with it there.

Run it as `make wheel`. It needs the packages `build` and `twine`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
TORCH = "torch==2.13.0"  # installed before the extras that need it, so that pip takes the same build as `make setup`

SCORE = """
import sys
import tmkd
scorer = tmkd.Scorer({export!r}, backend={backend!r})
question = "how do i mount a disk"
scores = scorer.scores([question] * 2, ["use option to mount the disk", "password of the user group"])
expected = {expected!r}  # of the environment that built the wheel, in fp32
assert all(abs(score - right) < {tolerance} for score, right in zip(scores, expected, strict=True)), (scores, expected)
assert "torch" not in sys.modules, "scoring must not import torch"
print(tmkd.__version__, [round(float(score), 4) for score in scores])
"""
# What each extra adds, beside scoring. {export} and {folder} are filled in; each ends with an error or prints a line.
EXTRAS = {
    "": "import importlib.util as u; assert u.find_spec('torch') is None; print('no torch installed')",
    "fast": SCORE.replace("{backend!r}", "'openvino-bf16'").replace("{tolerance}", "0.1"),
    "qa": """
import subprocess, sys
from pathlib import Path
folder = Path({folder!r})
text = "# Disks\\n\\n## How do I mount a disk?\\n\\nUse the command mount and name the disk.\\n"
(folder / "disks.md").write_text(text)
call = [sys.executable, "-m", "tmkd"]
subprocess.run([*call, "index", str(folder / "disks.md"), "--out", str(folder / "index")], check=True)
asked = [*call, "ask", "How do I mount a disk?", "--index", str(folder / "index"), "--model", {export!r}]
done = subprocess.run(asked, check=True, capture_output=True, text=True)
assert "mount" in done.stdout, done.stdout
print("indexed and answered")
""",
    "ann": """
import numpy as np
from usearch.index import Index
from tmkd.inference.dense_graph import Graph
vectors = np.eye(8, dtype=np.float16)
index = Index(ndim=8, metric="ip", dtype="f16")
index.add(np.arange(8), vectors)
assert Graph(index, 8).search(vectors[3].astype(np.float32), 1).tolist() == [3]
print("searched a graph")
""",
    "remote": "from tmkd.core.places import Place; print('opened', Place.at('s3://bucket/labels'))",
    "serve": """
import json, socket, subprocess, sys, time, urllib.request
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "tmkd", "serve", "--model", {export!r}, "--port", str(port)]
server = subprocess.Popen(command)
try:
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{{port}}/health", timeout=5)
            break
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.25)
    body = json.dumps({{"query": "mount a disk", "texts": ["use option to mount the disk", "password"]}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{{port}}/rerank", body, {{"content-type": "application/json"}})
    ranked = json.load(urllib.request.urlopen(request, timeout=30))
    assert len(ranked) == 2, ranked
    print("served", ranked[0])
finally:
    server.terminate()
    server.wait(30)
""",
    "train": """
import torch, tmkd
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained({export!r})
assert tmkd.load_recipe and tmkd.Run and model.num_labels >= 1
print("opened with transformers, torch", torch.__version__)
""",
    "teachers": """
import importlib.metadata as metadata
wanted = [one for one in metadata.requires("tmkd") if "teachers" in one.partition(";")[2]]
assert {{one.split(">")[0] for one in wanted}} == {{"sentence-transformers", "httpx"}}, wanted
import httpx
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
question, texts = "how do i mount a disk", ["use option to mount the disk", "password of the user group"]
found = CrossEncoder({export!r}).predict([(question, text) for text in texts])
assert len(found) == 2, found
print("opened by sentence-transformers", metadata.version("sentence-transformers"), "and httpx", httpx.__version__)
""",
    "hub": "import datasets; print('datasets', datasets.__version__)",
}


def build() -> Path:
    """Build sdist and wheel and check both; returns the wheel."""
    for old in DIST.glob("tmkd-*"):
        old.unlink()
    _run([sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT)])
    _run([sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(DIST.glob("tmkd-*")))])
    (wheel,) = DIST.glob("tmkd-*.whl")
    return wheel


def check(wheel: Path, extra: str, export: Path, expected: list[float]) -> float:
    """Install the wheel with one extra into an empty environment and use it.

    Args:
        wheel: The wheel.
        extra: The extra; empty for the base install.
        export: The export to score with.
        expected: The scores of the two pairs in `SCORE`.

    Returns:
        The seconds that it took.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        python = str(folder / "env" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if extra in ("train", "teachers"):
            _run([*pip, TORCH])
        _run([*pip, f"{wheel}[{extra}]" if extra else str(wheel)])
        for code in (SCORE, EXTRAS[extra]):
            filled = code.format(
                export=str(export), folder=str(folder), backend="onnx-fp32", tolerance=1e-4, expected=expected
            )
            _run([python, "-P", "-c", filled], cwd=folder)
    return time.monotonic() - began


def small_export() -> Path:
    """A small student with the packaged MiniLM's weights, exported with every backend."""
    sys.path.insert(0, str(ROOT / "tests"))
    return Path(importlib.import_module("export_fixtures").with_every_backend("ranking"))


def _run(command: list[str], cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nfailed with {done.returncode}: {' '.join(command)[:200]}")
    if done.stdout.strip():
        print("   ", done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Build, check, and try every extra."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", action="append", help=f"only these extras, of: {json.dumps(list(EXTRAS))}")
    parser.add_argument("--export", type=Path, help="an export to score with; a small one is made unless given")
    options = parser.parse_args()
    wheel = build()
    print(f"{wheel.name}: {wheel.stat().st_size / 1024:,.0f} KiB")
    export = (options.export or small_export()).resolve()
    from tmkd import Scorer

    question = "how do i mount a disk"
    passages = ["use option to mount the disk", "password of the user group"]
    scores = Scorer(export, backend="onnx-fp32").scores([question] * 2, passages)
    expected = [float(score) for score in scores]
    for extra in options.extra or EXTRAS:
        print(f"tmkd[{extra}]" if extra else "tmkd")
        print(f"    installed and used in {check(wheel, extra, export, expected):.0f} s")


if __name__ == "__main__":
    main()
