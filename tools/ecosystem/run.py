"""Open an export in the packages that people rerank with, each in its own pinned environment, and compare.

Run it as `make ecosystem`. Every tool gets the folder and no option beyond what it needs to find the files. Its order
and its scores must be those of the export's log-odds in fp32. The environments are in build/ecosystem/ and are built
once; a second call goes on where the first stopped. Exit status: 0, or 1 where a tool differs or cannot be run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmkd import Scorer
from tmkd.bench.environments import REQUIREMENTS, environment
from tmkd.core.errors import TmkdError
from tmkd.core.logits import sigmoid
from tmkd.inference.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "ecosystem"
DEMO = ROOT / "workspace" / "runs" / "demo-layers" / "export"
TOLERANCE = 1e-4  # of a log-odds
PASSAGES = 12  # of a question
QUESTIONS = 6
SECONDS = 900  # for one tool, loading included


@dataclass(frozen=True)
class Tool:
    """One way to rank with the export.

    Attributes:
        title: what it is called in the table.
        opener: its name in openers.py.
        pins: the list of packages that it runs with.
    """

    title: str
    opener: str
    pins: Path


def _tools() -> list[Tool]:
    recent, older = HERE / "transformers.txt", REQUIREMENTS / "sentence-transformers.txt"
    infinity = HERE / "infinity.txt"
    return [
        Tool("transformers pipeline", "pipeline", recent),
        Tool("transformers pipeline, raw", "pipeline-raw", recent),
        Tool("CrossEncoder.predict, torch", "predict-torch", recent),
        Tool("CrossEncoder.rank, torch", "rank-torch", recent),
        *(
            Tool(f"CrossEncoder.{what}, {backend}", f"{what}-{backend}", older)
            for backend in ("torch", "onnx", "openvino")
            for what in ("predict", "rank")
        ),
        Tool("fastembed TextCrossEncoder", "fastembed", REQUIREMENTS / "fastembed.txt"),
        Tool("rerankers", "rerankers", HERE / "rerankers.txt"),
        Tool("FlashRank", "flashrank", REQUIREMENTS / "flashrank.txt"),
        Tool("infinity, torch", "infinity", infinity),
        Tool("infinity, torch, raw scores", "infinity-raw", infinity),
        Tool("CrossEncoder.predict, torch", "predict-torch", infinity),  # the oldest sentence-transformers of all
    ]


def questions_of(export: Path) -> list[dict[str, Any]]:
    """Questions with passages to rank: the export's own probes, a text that is cut, a short one, other scripts."""
    probes = json.loads((export / "probes.json").read_text(encoding="utf-8"))
    asked, passages = list(dict.fromkeys(probes["questions"])), list(dict.fromkeys(probes["passages"]))
    odd = [" ".join(passages[:40]) * 4, "?", "Wie öffne ich eine Datei? naïve café ☕ Как открыть файл 如何打开文件"]
    few = PASSAGES - len(odd)
    return [
        {"question": question, "passages": [*(passages * few)[row * few : (row + 1) * few], *odd]}
        for row, question in enumerate(asked[:QUESTIONS])
    ]


def ask(tool: Tool, export: Path, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Let a tool rank; returns its answer as openers.py describes it.

    Raises:
        TmkdError: its environment cannot be built, or it ended with an error; the message holds the last line.
    """
    python = environment(tool.pins, BUILD / tool.pins.stem)
    log = BUILD / f"{tool.opener}-{tool.pins.stem}.log"
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    variables.pop("PYTHONPATH", None)
    with log.open("w") as errors:
        try:
            done = subprocess.run(
                [str(python), str(HERE / "openers.py"), tool.opener, str(export)],
                input=json.dumps(questions), stdout=subprocess.PIPE, stderr=errors, text=True, env=variables,
                timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TmkdError(f"no answer within {SECONDS} s (see {log})") from None
    if done.returncode:
        said = log.read_text(errors="replace").strip().splitlines()
        raise TmkdError(f"{said[-1] if said else 'it ended without a word'} (see {log})")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def difference(answer: dict[str, Any], wanted: list[NDArray[np.float64]]) -> tuple[float, str]:
    """Compare a tool's answer with the log-odds.

    Args:
        answer: as openers.py gives it.
        wanted: the log-odds of the passages of each question.

    Returns:
        The largest difference, of log-odds or of probabilities, and what is wrong; an empty text where nothing is.
    """
    largest, wrong = 0.0, ""
    for number, (ranked, odds) in enumerate(zip(answer["ranked"], wanted, strict=True), 1):
        rows = [int(row) for row, _ in ranked]
        if sorted(rows) != list(range(len(odds))):
            return np.inf, f"question {number}: passages {rows} came back of {len(odds)}"
        scores = np.array([score for _, score in ranked], dtype=float)
        right = odds[rows] if answer["kind"] == "logit" else sigmoid(odds[rows])
        largest = max(largest, float(np.abs(scores - right).max()))
        falls = np.diff(odds[rows]).max(initial=-np.inf)
        if falls > 2 * TOLERANCE:  # a passage stands behind one that is worse by more than the tolerance explains
            first, best = ranked[0][0], int(odds.argmax())
            wrong = f"question {number}: another order (first is passage {first}, and {best} should be)"
    if not wrong and not largest <= TOLERANCE:
        wrong = f"scores differ by {largest:.1e}"
    return largest, wrong


def main() -> None:
    """Build what is missing, let every tool rank, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--export",
        type=Path,
        default=DEMO,
        help="an export of a layered student of two classes; the demo's unless given",
    )
    parser.add_argument("--only", action="append", help="beginning of an opener's name in openers.py; may be repeated")
    options = parser.parse_args()
    export = options.export.resolve()
    if not (export / "tmkd.json").is_file():
        raise SystemExit(f"there is no export at {export}; run: make demo ecosystem, or name one with --export")
    if read_manifest(export).states:
        raise SystemExit(
            f"{export} holds a cached student, which tmkd alone opens; export a layered one with take=tmkd"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scorer = Scorer(export, backend="onnx-fp32")
    questions = questions_of(export)
    wanted = [scorer.scores([row["question"]] * len(row["passages"]), row["passages"]) for row in questions]
    tools = [tool for tool in _tools() if not options.only or tool.opener.startswith(tuple(options.only))]
    print(f"{export}: {len(questions)} questions with {PASSAGES} passages each")
    rows: list[tuple[str, ...]] = [("tool", "version", "gives", "differs by", "order")]
    failed: list[str] = []
    for tool in tools:
        try:
            answer = ask(tool, export, questions)
        except TmkdError as error:
            rows.append((tool.title, "-", "-", "-", "not run"))
            failed.append(f"{tool.title} ({tool.pins.stem}) cannot be run: {error}")
            continue
        largest, wrong = difference(answer, wanted)
        order = "another" if "order" in wrong or "came back" in wrong else "the same"
        rows.append((tool.title, answer["version"], answer["kind"], f"{largest:.1e}", order))
        if wrong:
            failed.append(f"{tool.title} {answer['version']}: {wrong}")
        print(f"    {tool.title}: {wrong or 'agrees'}", flush=True)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in failed:
        print(line, file=sys.stderr)
    if failed:
        raise SystemExit(1)
    print(f"all {len(tools)} rank as the export does, to {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
