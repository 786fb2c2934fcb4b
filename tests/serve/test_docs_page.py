"""docs/serving.md and the Dockerfile say what is so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Done
from serve_fixtures import ROOT, command, in_process

from tmkd.serve.app import _REFUSALS

TEXT = (ROOT / "docs" / "serving.md").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def test_its_routes_statuses_and_flags_are_those_of_the_server(tmkd: Callable[..., Done]) -> None:
    with in_process() as app:
        described = app.get("/openapi.json").json()["paths"]
    told = set(re.findall(r"`(?:GET|POST) (/[a-z0-9/]*)`", TEXT))
    assert told == set(described)
    statuses = {int(number) for line in re.findall(r"^\| ([\d, ]+) \|", TEXT, flags=re.M) for number in line.split(",")}
    assert statuses == set(_REFUSALS) | {405}
    benches = (("bench", name) for name in ("serve", "soak", "fuzz"))
    page = "".join(tmkd(*words, "--help").stdout for words in (("serve",), *benches))
    flags = set(re.findall(r"`(--[a-z-]+)`", TEXT))
    assert {"--host", "--max-body", "--timeout"} <= flags
    assert flags <= set(re.findall(r"--[a-z-]+", page))  # as whole words: --max is not --max-body


def test_its_python_works_on_a_server() -> None:
    with command() as live:
        (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
        exec(compile(block.replace("http://127.0.0.1:8080", live.url), "docs/serving.md", "exec"), {})


def test_the_dockerfile_is_not_root_has_a_health_check_and_sets_what_there_is(tmkd: Callable[..., Done]) -> None:
    assert re.search(r"^USER \d+$", DOCKERFILE, flags=re.M)
    assert "HEALTHCHECK" in DOCKERFILE
    variables = set(re.findall(r"TMKD_[A-Z_]+", DOCKERFILE))
    assert variables
    assert variables <= set(re.findall(r"TMKD_[A-Z_]+", tmkd("serve", "--help").stdout))
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.M) for name in line.split()
    }
    assert "tmkd" in copied
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r"\.\[([a-z,]+)\]", DOCKERFILE)
    there = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(there)


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/bin")
    if linter is None:
        pytest.skip("hadolint is not installed; make dockerfile installs it")
    done = subprocess.run([linter, str(ROOT / "deploy" / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_server_imports_no_pytorch_and_no_engine() -> None:
    code = (
        "import sys, tmkd.serve.run, tmkd.serve.ask; "
        "print([name for name in ('torch', 'transformers', 'onnxruntime', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
