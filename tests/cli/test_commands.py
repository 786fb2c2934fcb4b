"""The command line as a whole: help, examples, options that mean the same everywhere, exit statuses, a fast start."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Tmkd, pair_rows, write_jsonl
from export_fixtures import exported
from typer.main import get_command

from tmkd.cli.main import COMMANDS, _named, app
from tmkd.cli.options import with_json_value

REPOSITORY = Path(__file__).parents[2]
ROOT: Any = get_command(app)
GROUPS = ("bench", "labels")
PATHS: list[tuple[str, ...]] = [(name,) for name in ROOT.commands if name not in GROUPS]
PATHS += [(group, name) for group in GROUPS for name in ROOT.commands[group].commands]
NO_RESULT = {("teach",), ("label",), ("pretrain",), ("distill",), ("serve",), ("recipe",)}


def command_of(path: tuple[str, ...]) -> Any:
    found = ROOT
    for name in path:
        found = found.commands[name]
    return found


def options_of(path: tuple[str, ...]) -> set[str]:
    return {option for one in command_of(path).params for option in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_the_example_of_every_command_parses(path: tuple[str, ...], tmp_path: Path) -> None:
    command = command_of(path)
    examples = re.findall(r"^Example: tmkd (.+)$", command.help, flags=re.M)
    assert len(examples) == 1
    words = shlex.split(examples[0])
    assert tuple(words[: len(path)]) == path
    context = command.make_context(" ".join(path), words[len(path) :])
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert given <= options_of(path)
    assert context.params.keys() == {one.name for one in command.params if one.name != "help"}


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_options_of_one_name_mean_the_same(path: tuple[str, ...]) -> None:
    assert path == ("recipe",) or {"--quiet", "-q"} <= options_of(path)
    assert path in NO_RESULT or "--json" in options_of(path)


def test_the_help_lists_every_command_under_a_title_and_the_exit_statuses(tmkd: Tmkd) -> None:
    page = tmkd("--help").stdout
    sections = dict(re.findall(r"^(\S[^\n]*):\n((?:  .*\n)+)", page, flags=re.M))
    for title, functions in COMMANDS.items():
        assert re.findall(r"^  ([a-z]+) ", sections[title], flags=re.M) == [one.__name__ for one in functions]
    assert re.findall(r"^  ([a-z]+) ", sections["Benchmarks"], flags=re.M) == ["bench"]
    assert re.findall(r"^  ([a-z]+) ", sections["Labels of teachers"], flags=re.M) == ["labels"]
    assert "..." not in page.partition("Train:")[2]  # no first sentence is cut
    assert set(re.findall(r"^    (\d+) ", page, flags=re.M)) == {"0", "1", "2", "130"}


def documented() -> list[str]:
    """Every command line of the docs that is written out, in code blocks and in running text."""
    found: list[str] = []
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))):
        text = page.read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.S)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        found += [line for line in lines if line.startswith("tmkd ")]
        inline = re.findall(r"`(tmkd bench [^`|]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        found += [" ".join(one.split()) for one in inline if "..." not in one]
    return found


def test_the_command_lines_of_the_docs_parse() -> None:
    lines = documented()
    assert len(lines) > 30
    assert len([line for line in lines if line.startswith("tmkd bench")]) > 10
    for line in lines:
        words = shlex.split(re.split(r" [<>|&] ", line)[0], comments=True)[1:]
        path = tuple(words[: 2 if words[0] in GROUPS else 1])
        command_of(path).make_context(" ".join(path), words[len(path) :])


@pytest.mark.parametrize(
    "words",
    ["latency --count 9", "factors --peers none", "profile --peers none", "qa --layers 3", "soak --rates 1",
     "fuzz --seconds 9", "serve --kills 1", "train --index i", "score --passages 3", "label --candidates 9"],
)  # fmt: skip
def test_a_bench_refuses_the_options_of_others(words: str, tmkd: Tmkd) -> None:
    refused = tmkd("bench", *words.split(), check=False)
    assert refused.returncode == 2
    assert f"No such option: {words.split()[1]}" in refused.stderr


def test_json_alone_means_standard_output() -> None:
    for given, meant in (
        (["--json"], ["--json", "-"]),
        (["--json", "--top", "1"], ["--json", "-", "--top", "1"]),
        (["--json", "seeds=[0]"], ["--json", "-", "seeds=[0]"]),
        (["--json", "out.json"], ["--json", "out.json"]),
        (["--json", "-"], ["--json", "-"]),
        (["--json=out.txt"], ["--json=out.txt"]),
    ):
        assert with_json_value(given) == meant


def test_a_result_is_not_written_over_another_file_of_the_command(tmkd: Tmkd, tmp_path: Path) -> None:
    pairs, linked, output = tmp_path / "pairs.json", tmp_path / "linked.json", tmp_path / "scored.json"
    pairs.write_text('[{"question": "a", "passage": "b"}]')
    linked.hardlink_to(pairs)
    (tmp_path / "by-name.json").symlink_to(pairs)
    score = ("score", "export", "--pairs", pairs, "--output", output)
    for arguments in (
        (*score, "--json", pairs),
        (*score, "--json", linked),
        (*score, "--json", "by-name.json"),
        (*score, "--json", tmp_path / "." / "scored.json"),  # which is not there yet
        ("evaluate", "run", "--pairs", pairs, "--json", pairs),
        ("evaluate", "run", "--pairs", pairs, "--json", "run/report/results.json"),
        ("calibrate", "export", "--pairs", pairs, "--report", pairs),
    ):
        refused = tmkd(*arguments, check=False)
        assert refused.returncode == 2, arguments
        assert "is another file of this command" in " ".join(refused.stderr.split())
    assert json.loads(pairs.read_text())[0]["question"] == "a"
    for allowed in (
        ("evaluate", "run", "--pairs", pairs, "--name", "webqa", "--json=webqa"),
        ("evaluate", "run", "--pairs", pairs, "--name", pairs, "--json=other"),
        ("calibrate", "export", "--report", "/dev/null", "--json=/dev/null"),
        ("run", "recipe.yaml", "name=by-name.json", "--json", "by-name.json"),
    ):
        assert "is another file of this command" not in tmkd(*allowed, check=False).stderr, allowed
    results = tmp_path / "results.json"
    results.write_text("{}")
    for runs in ("results.json", "results.json=map"):
        assert "is another file of this command" in tmkd("overall", runs, "--json", "results.json", check=False).stderr


def test_overall_does_not_write_over_results(tmkd: Tmkd, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps({"task": name, "methods": [], "differences": []}))
    refused = tmkd("overall", "--json", "a.json", "b.json", check=False)
    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    assert "a.json holds the results of a run, which would be lost" in said
    assert "--json=FILE" in said
    assert json.loads((tmp_path / "a.json").read_text())["task"] == "a.json"


def test_wrong_usage_is_status_2_and_a_refusal_status_1(tmkd: Tmkd) -> None:
    assert tmkd("run", check=False).returncode == 2
    unknown = tmkd("bench", "score", "--kills", "3", check=False)
    assert (unknown.returncode, "No such option: --kills" in unknown.stderr) == (2, True)
    refused = tmkd("run", "gone.yaml", check=False)
    assert (refused.returncode, refused.stderr.startswith("tmkd: "), refused.stdout) == (1, True, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line(number: int, status: int, tmp_path: Path) -> None:
    script = (
        "import os, sys, tmkd.cli.main as cli, tmkd.config.load as load\n"
        "sys.argv = ['tmkd', 'run', 'x.yaml']\n"
        f"load.load_recipe = lambda *_: os.kill(os.getpid(), {number})\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr == "\ntmkd: interrupted; finished work is kept, the same command continues\n"


HEAVY = ("torch", "transformers", "matplotlib", "sklearn", "scipy", "pandas", "pyarrow", "onnxruntime", "fastapi")


def _with_output(output: int, *arguments: str) -> tuple[int, str]:
    """The status and the standard error of Python with a standard output, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(output)
    return done.returncode, done.stderr


def _unread() -> int:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("columns", [1, 5000])  # less than a buffer of output, and more
def test_output_that_nobody_reads_any_more_is_no_error(tmp_path: Path, columns: int) -> None:
    unread = {f"column {number}": 1 for number in range(columns)}  # which the result lists
    row = {"query": "q", "pos": "p", "neg": "n", "pos_score": 1, "neg_score": 0, **unread}
    write_jsonl(tmp_path / "scored.jsonl", [row])
    words = ["labels", "import", str(tmp_path / "scored.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--json", "-q"]
    assert _with_output(_unread(), "-m", "tmkd", *words) == (0, "")


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("raise main.TmkdError('bad input')", (1, "tmkd: bad input\n")),
        ("os.kill(os.getpid(), 2)", (130, "\ntmkd: interrupted\n")),
        ("raise SystemExit(2)", (2, "")),
    ],
)
def test_a_command_that_fails_keeps_its_status_when_nobody_reads(end: str, expected: tuple[int, str]) -> None:
    """With output left in the buffer, which cannot be written any more."""
    script = f"import os\nfrom tmkd.cli import main\ndef app():\n    print('a')\n    {end}\nmain.app = app\nmain.main()"
    assert _with_output(_unread(), "-c", script) == expected


def test_a_program_that_calls_the_command_line_has_its_standard_output_back() -> None:
    script = (
        "import sys\nfrom tmkd.cli import main\nbefore, main.app = sys.stdout, print\n"
        "main.main()\nsys.exit(sys.stdout is not before)"
    )
    assert _with_output(os.open(os.devnull, os.O_WRONLY), "-c", script) == (0, "")


def test_the_console_of_windows_writes_its_letters_itself(tmp_path: Path) -> None:
    """It is no file there: bytes of UTF-8 that are written to its number show as other letters."""

    class WindowsConsole(io.RawIOBase):
        def fileno(self) -> int:
            return 1

        def writable(self) -> bool:
            return True

    with io.TextIOWrapper(io.BufferedWriter(WindowsConsole()), "utf-8") as console:
        assert _named(console) is console
    with (tmp_path / "out").open("w") as file:
        assert _named(file) is not file


def test_a_full_disk_behind_standard_output_is_named(tmp_path: Path) -> None:
    row = {"query": "q", "pos": "p", "neg": "n", "pos_score": 1, "neg_score": 0}
    write_jsonl(tmp_path / "scored.jsonl", [row])
    status, said = _with_output(
        os.open("/dev/full", os.O_WRONLY),
        "-m", "tmkd", "labels", "import", str(tmp_path / "scored.jsonl"),
        "-o", str(tmp_path / "out.jsonl"), "--json", "-q",
    )  # fmt: skip
    assert (status, said) == (1, "tmkd: standard output: No space left on device\n")


def test_no_page_of_help_imports_anything_heavy() -> None:
    pages = json.dumps([[*one, "--help"] for one in ((), *PATHS)])
    script = (
        "import sys; from tmkd.cli.main import app\n"
        f"for page in {pages}:\n"
        "    app(page, standalone_mode=False)\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_scoring_imports_no_torch(tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(1))
    arguments = ["score", str(exported("minilm") / "out"), "--pairs", str(pairs), "--output", "scored.jsonl"]
    script = (
        f"import sys; from tmkd.cli.main import app; app({arguments}, standalone_mode=False)\n"
        "print('heavy:', [name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert len((tmp_path / "scored.jsonl").read_text().splitlines()) == 32


def test_clean_lists_what_nothing_needs_then_removes_it(tmkd: Tmkd, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    for folder in ("steps/teacher-1", "steps/teacher-2", "steps/student-3.partial", "tokens"):
        (workspace / folder).mkdir(parents=True)
        (workspace / folder / "file").write_bytes(b"x" * 1024)
    (workspace / "runs" / "one").mkdir(parents=True)
    (workspace / "runs" / "one" / "manifest.json").write_text('{"steps": ["teacher-1"]}')
    (workspace / "locks").mkdir()
    (workspace / "locks" / "student-3").touch()  # of a process that was killed
    unused = [f"workspace/steps/{name}" for name in ("student-3.partial", "teacher-2")]
    listed = json.loads(tmkd("clean", "--json").stdout)
    assert listed == [{"folder": folder, "bytes": 1024, "removed": False} for folder in unused]
    assert tmkd("clean", "--yes", "--tokens").stdout.splitlines() == [
        f"removed {folder} (0.0 MiB)" for folder in (*unused, "workspace/tokens")
    ]
    assert sorted(path.name for path in workspace.glob("*")) == ["lock", "locks", "runs", "steps"]
    assert not list((workspace / "locks").iterdir())
    assert [path.name for path in (workspace / "steps").iterdir()] == ["teacher-1"]
    assert "every step is needed" in tmkd("clean").stderr
    said = " ".join(tmkd("clean", "--help").stdout.replace("│", " ").split())
    assert "token ids, mapped pools and embeddings" in said
    assert "refused.jsonl" in said
