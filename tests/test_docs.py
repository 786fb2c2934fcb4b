"""The documentation is run: its Python as it stands, its recipes, its commands; its links and figures are checked."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TOPICS, Tmkd, pair_rows, pool_rows, write_jsonl
from export_fixtures import dev_pairs, ranking_student
from qa_fixtures import index_of
from typer.main import get_command

import tmkd as tmkd_package
from tmkd.cli.main import app
from tmkd.config.load import load_recipe, parse_recipe
from tmkd.core.errors import RecipeError
from tmkd.data.pairs import Pairs
from tmkd.export.export import export_student

ROOT = Path(__file__).parents[1]
AT_ROOT = {name: ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")}
PAGES = AT_ROOT | {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "docs").rglob("*.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
README, ANSWERING, STUDIES, TASKS = (
    TEXTS[name] for name in ("README.md", "docs/answering.md", "docs/studies.md", "docs/tasks.md")
)
CLI: Any = get_command(app)


def blocks(language: str, text: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def shown(text: str) -> list[list[str]]:
    """Every call of tmkd on a page, in blocks and in the running text, as words; `$VARIABLES` stay as they are."""
    lines = [line for block in blocks("sh", text) for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines += [re.sub(r"\s+", " ", span) for span in re.findall(r"`(tmkd [^`]+)`", prose)]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("tmkd ")]


CALLS = [(name, words) for name, text in TEXTS.items() for words in shown(text)]


@pytest.mark.parametrize(("name", "words"), CALLS, ids=lambda value: value if isinstance(value, str) else value[1])
def test_every_command_of_the_docs_parses(name: str, words: list[str]) -> None:
    """The command exists, and so does every option that is shown."""
    command, rest = CLI, words[1:]
    while hasattr(command, "commands") and rest and not re.match(r"-|\.{3}|[A-Z]+$", rest[0]):
        assert rest[0] in command.commands, f"{name}: {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    rest = rest[: next((place for place, word in enumerate(rest) if word in ("<", ">", "|", "...")), len(rest))]
    command.make_context("tmkd", rest, resilient_parsing=True)


def test_enough_commands_are_found_to_mean_something() -> None:
    assert len(CALLS) > 80
    assert {words[1] for _, words in CALLS} >= {"run", "score", "evaluate", "ask", "serve", "study", "bench", "overall"}


def recipes_shown() -> list[tuple[str, list[str]]]:
    """Calls that read one of the repository's recipes, with the keys that they set."""
    readers = {"run", "teach", "label", "pretrain", "distill", "export"}
    return [
        (n, words[2:]) for n, words in CALLS if words[1] in readers and words[2:3] and words[2].startswith("recipes/")
    ]


@pytest.mark.parametrize(("name", "words"), recipes_shown(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_recipe_of_the_docs_loads_with_the_keys_that_are_shown(name: str, words: list[str]) -> None:
    keys = [word for word in words[1:] if re.match(r"[a-z][\w.]*=", word)]
    load_recipe(ROOT / words[0], keys)


def test_every_study_of_the_docs_loads_with_the_keys_that_are_shown(tmp_path: Path) -> None:
    from tmkd.pipeline.study.plan import load_study

    calls = [words[2:] for _, words in CALLS if words[1] == "study" and words[2:3] and words[2].startswith("recipes/")]
    assert len(calls) > 8
    for path, *keys in calls:
        load_study(ROOT / path, [word for word in keys if re.match(r"[a-z][\w.]*=", word)])
    listed = re.findall(r"^\| `([a-z-]+\.yaml)` \|", STUDIES, flags=re.M)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "recipes" / "studies").glob("*.yaml"))
    (example,) = blocks("yaml", STUDIES)
    (tmp_path / "study.yaml").write_text(
        example.replace("../demo-small.yaml", str(ROOT / "recipes" / "demo-small.yaml"))
    )
    assert len(load_study(tmp_path / "study.yaml").cells) == 18


def test_the_recipes_of_the_tasks_page_are_valid_and_its_table_names_every_one() -> None:
    whole, graded, pool = (yaml.safe_load(block) for block in blocks("yaml", TASKS))
    (teachers,) = (yaml.safe_load(block) for block in blocks("yaml", TEXTS["docs/teachers.md"]))
    parse_recipe(whole, "docs/tasks.md")
    parse_recipe({**whole, **graded, "classes": 2}, "docs/tasks.md")
    parse_recipe({**whole, **pool, "classes": 3, "data": whole["data"]}, "docs/tasks.md")
    scored = {"train": "nli.csv", "scores": {"judge": "probability"}}
    with pytest.raises(RecipeError, match="two classes only"):
        parse_recipe({**whole, **teachers, "data": scored}, "docs/tasks.md")
    recipe = parse_recipe({**whole, **teachers, "classes": 2, "data": scored}, "docs/teachers.md")
    assert [one.of_kind for one in recipe.teachers] == ["encoder", "reranker", "bi_encoder", "served", "scores"]
    table = set(re.findall(r"^\| `([a-z-]+\.yaml)`(?:, `([a-z-]+\.yaml)`)?", TASKS, flags=re.M))
    assert {name for row in table for name in row if name} == {path.name for path in (ROOT / "recipes").glob("*.yaml")}


def test_the_make_targets_of_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for text in TEXTS.values() for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.M)}
    assert targets >= {"demo", "test", "serve", "docs", "setup"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@pytest.mark.parametrize("name", [name for name in PAGES if name != "CHANGELOG.md"])
def test_every_file_that_a_page_names_exists(name: str) -> None:
    """Paths of the repository, or of the package as in `training/trainer.py`; what a run writes is not among them."""
    ours = r"`((?:tmkd|tests|recipes|tools|examples|deploy|docs)/[\w./-]+|[a-z]+/[\w/]+\.py)`"
    for path in re.findall(ours, TEXTS[name]):
        assert (ROOT / path).exists() or (ROOT / "tmkd" / path).exists(), f"{name}: {path}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    plain = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in re.findall(r"^#+ (.+)$", prose, flags=re.M))
    return {re.sub(r"\s", "-", title) for title in plain}


@functools.cache
def not_committed() -> set[Path]:
    """The files of this folder that git does not know; none where it is no git checkout."""
    call = ["git", "ls-files", "--others", "-z"]
    listed = subprocess.run(call, cwd=ROOT, capture_output=True, text=True) if (ROOT / ".git").exists() else None
    return {ROOT / one for one in listed.stdout.split("\0") if one} if listed is not None else set()


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    """To a file of the repository, which others have, too, and to a heading of it where one is named."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert found.exists(), f"{name}: {target}"
        assert found not in not_committed(), f"{name}: {target} is here alone; add it to git"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{name}: {target}"


def test_the_readme_is_short_and_says_what_the_student_does_not_do_better() -> None:
    assert len(README.splitlines()) <= 120
    demo = json.loads((ROOT / "docs" / "results" / "demo.json").read_text())
    means = {row["name"]: (row["auc"]["mean"], row["mrr"]["mean"]) for row in demo["methods"]}
    for method in ("tmkd", "tmkd@cached", "cosine", "teacher-ensemble", "finetune"):
        assert f"{means[method][0]:.3f} / {means[method][1]:.3f}" in README, method


@pytest.mark.parametrize("name", PAGES)
def test_no_page_names_a_folder_of_one_machine(name: str) -> None:
    assert not re.search(r"(?<![\w.-])/(work|tmp|home|root)/", TEXTS[name])


def test_the_page_on_the_api_has_every_public_name() -> None:
    listed = re.findall(r"^::: tmkd\.api\.(\w+)$", TEXTS["docs/api.md"], flags=re.M)
    assert sorted(listed) == sorted(set(tmkd_package.__all__) - {"__version__"})


COLUMNS = {
    "ROC-AUC": "auc",
    "MRR": "mrr",
    "MAP": "map",
    "nDCG@10": "ndcg@10",
    "accuracy": "accuracy",
    "Spearman": "spearman",
}


def figures() -> list[tuple[str, str, list[str], list[list[str]]]]:
    """The tables of methods that stand under a link to their JSON file: page, file, head, rows."""
    found = []
    for name, text in TEXTS.items():
        for file, after in re.findall(
            r"\[all\s+figures\]\(([\w-]+\.json)\)(.*?)(?=\[all\s+figures\]|\Z)", text, flags=re.S
        ):
            table = re.search(r"^\|.*\|\n\|[-|]+\|\n(?:\|.*\|\n?)+", after, flags=re.M)
            if table:
                head, _, *rows = [
                    [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()
                ]
                found.append((name, file, head, rows))
    return found


def cells(
    folder: Path, file: str, head: list[str], rows: list[list[str]]
) -> list[tuple[dict[str, dict[str, float]], str, str]]:
    """The cells of a table that name a method and a metric: the method's figures, the metric, the text.

    A method is a row and a metric a column, or the other way round; then a row may name a file of its own.
    """

    def methods(of: str) -> dict[str, dict[str, dict[str, float]]]:
        return {row["name"]: row for row in json.loads((folder / of).read_text()).get("methods", [])}

    found, known = [], methods(file)
    for row in rows:
        of_row = methods(other[1]) if (other := re.search(r"\]\(([\w-]+\.json)\)", row[0])) else known
        for title, cell in zip(head, row, strict=True):
            if (method := row[0].strip("`")) in known and title in COLUMNS:
                found.append((known[method], COLUMNS[title], cell))
            if (metric := row[0].partition(",")[0]) in COLUMNS and title.strip("`") in of_row:
                found.append((of_row[title.strip("`")], COLUMNS[metric], cell))
    return found


QA = "qa.json"  # has a table of another form
OF_METHODS = [table for table in figures() if table[1] != QA]


def test_every_task_has_a_table_with_its_file() -> None:
    """Else the next test would compare nothing."""
    pages = {name for name, *_ in figures()}
    assert pages == {f"docs/results/{task}.md" for task in ("debian-docs", "general", "mnli", "qnli", "rte", "snli",
                                                            "studies", "webqa", "wikiqa")}  # fmt: skip


@pytest.mark.parametrize(("name", "file", "head", "rows"), OF_METHODS, ids=lambda v: v if isinstance(v, str) else "")
def test_the_tables_of_methods_are_those_of_the_files(
    name: str, file: str, head: list[str], rows: list[list[str]]
) -> None:
    """Mean and interval of every method, as the run's results.json has them."""
    compared = 0
    for method, metric, cell in cells(PAGES[name].parent, file, head, rows):
        numbers = re.fullmatch(r"(\d\.\d{3})(?: \((\d\.\d{3})-(\d\.\d{3})\))?", cell)
        assert numbers, cell
        wanted = [f"{method[metric][part]:.3f}" for part in ("mean", "low", "high")]
        assert [n for n in numbers.groups() if n] == wanted[: 3 if numbers[2] else 1], (file, metric, cell)
        compared += 1
    assert compared >= 4, (name, file)


def test_the_table_of_answering_is_that_of_its_file() -> None:
    ((name, file, head, rows),) = (table for table in figures() if table[1] == QA)
    quality = json.loads((PAGES[name].parent / file).read_text())["quality"]
    assert head == ["", "BM25 alone", "dense alone", "BM25 and dense", "retrieve and rank", "minus BM25"]
    assert len(rows) == 6
    for metric, *texts in rows:
        plain = [f"{quality[metric][kind]['mean']:.3f}" for kind in ("bm25", "dense", "bm25 and dense")]
        both, difference = quality[metric]["retrieve and rank"], quality[metric]["difference"]
        ahead, low, high = (f"{difference[part]:+.3f}" for part in ("mean", "low", "high"))
        ranked = f"{both['mean']:.3f} ({both['low']:.3f}-{both['high']:.3f})"
        assert texts == [*plain, ranked, f"{ahead} ({low} to {high})"], metric


def test_the_table_of_texts_that_occur_again_is_that_of_its_file() -> None:
    page = PAGES["docs/performance.md"]
    found = json.loads((page.parent / "results" / "bench-label-reuse.json").read_text())["rows"]
    rates = {(row["name"], row["unit"]): row for row in found}
    rows = re.findall(
        r"^\| (\d+) pairs?\b.* \| (\d+) \| ([\d,]+) \| ([\d,]+) \(([\d.]+)x\) \|$", page.read_text(), flags=re.M
    )
    assert [row[0] for row in rows] == ["1", "4", "16"]
    for times, texts, *cells, ratio in rows:
        unit = f"pairs/s, each text in {times}"
        cross, cosine = (rates[name, unit] for name in ("tmkd, cross-encoder", "tmkd, MiniLM's cosine"))
        assert cells == [f"{row['median']:,.0f}" for row in (cross, cosine)]
        assert int(texts) == 512 // int(times) + min(114, 512 // int(times))  # passages and questions
        assert ratio == f"{cross['slower'] if 'slower' in cross else 1 / cosine['slower']:.1f}"


def test_the_table_of_steps_by_passage_is_that_of_its_file() -> None:
    page = PAGES["docs/performance.md"]
    found = json.loads((page.parent / "results" / "bench-train-reuse.json").read_text())["rows"]
    rates = {(row["name"], row["unit"]): row["median"] for row in found}
    rows = re.findall(r"^\| (\d+) pairs?\b[^|]* \| (\d+) \| (\d+) \|$", page.read_text(), flags=re.M)
    assert [row[0] for row in rows] == ["1", "4", "16"]
    for times, *cells in rows:
        names = ("tmkd cached, random steps", "tmkd cached, steps by passage")
        assert cells == [f"{rates[name, f'pairs/s, each text in {times}']:.0f}" for name in names]


def test_the_figures_of_a_served_teacher_are_those_of_its_file() -> None:
    alone, teacher = json.loads((ROOT / "docs" / "results" / "bench-label-served.json").read_text())["rows"]
    shown = (
        f"labels {teacher['median']:.0f} pairs/s where its server alone answers {alone['median']:.0f} to prepared "
        f"requests, {alone['slower']:.2f} times as many"
    )
    assert shown in " ".join(TEXTS["docs/performance.md"].split())


def test_the_figures_of_labelling_on_ray_are_those_of_its_file() -> None:
    rows = json.loads((ROOT / "docs" / "results" / "bench-label-ray.json").read_text())["rows"]
    (here, here_first), (ray, ray_first) = ([row["median"] for row in rows[start : start + 2]] for start in (0, 2))
    text = " ".join(TEXTS["docs/scale.md"].split())
    assert (
        f"two workers label {ray:.0f} pairs/s and one process with two threads {here:.0f}, {ray / here:.2f} times"
        in text
    )
    assert f"before the first labels ({ray_first:.0f} s with Ray, {here_first:.0f} s without) is not counted" in text


def test_the_kills_are_those_of_their_file() -> None:
    found = json.loads((ROOT / "docs" / "results" / "kills.json").read_text())
    kinds = {one["step"].rpartition("-")[0] for one in found["kills"]}
    unfinished = sum(bool(one["during"]) for one in found["kills"])
    assert all(one["identical"] for one in found["kills"])
    text = " ".join(TEXTS["docs/scale.md"].split())
    assert f"{len(found['kills'])} kills gave [{found['identical']} identical results]" in text
    assert f"They fell in {len(kinds)} of 14 kinds of steps, and {unfinished} of them left a step unfinished" in text


def test_the_table_of_what_many_pairs_cost_is_that_of_its_file() -> None:
    found = json.loads((ROOT / "docs" / "results" / "bench-scale.json").read_text())
    page = TEXTS["docs/scale.md"]
    assert len(found["figures"]) == 4
    for one in found["figures"]:
        measured = f"{one['measured']:,.0f}" if one["least"] else f"{one['measured']:.2f}"
        needed = f"{'at least' if one['least'] else 'below'} {one['needed']:,g}"
        assert f"| {one['name']}, {one['unit']} | {needed} | {measured} |" in page
        assert one["kept"]
    assert f"{found['pairs']:,} pairs" in page


@pytest.mark.parametrize("page", ["docs/results.md"])
def test_the_tables_over_the_tasks_are_what_their_command_prints(page: str, tmkd: Tmkd, monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    calls = [
        words
        for words in shown("\n".join(f"```sh\n{b}```" for b in blocks("sh", TEXTS[page])))
        if words[1] == "overall"
    ]
    assert len(calls) == 3
    tables = re.findall(r"^\| kept above chance \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", TEXTS[page], flags=re.M)
    for words, table in zip(calls, tables, strict=True):
        printed = tmkd(*words[1:]).stdout
        for row in table.splitlines():
            kept = re.findall(r"\d+\.\d%", row)
            assert len(kept) == row.count("|") - 3  # all cells but the name and the difference
            assert set(kept) <= set(re.findall(r"\d+\.\d%", printed)), (words, row)


@pytest.fixture(scope="module")
def small_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a two-layer student that has learned which of a few passages answers which question."""
    folder = tmp_path_factory.mktemp("docs")
    rows = pair_rows(1)
    pairs = Pairs.build(
        [str(row["question"]) for row in rows],
        [str(row["passage"]) for row in rows],
        labels=[int(str(row["label"])) for row in rows],
    )
    export_student(ranking_student(folder / "student", pairs), dev_pairs(), folder / "out", backends=["onnx-fp32"])
    return folder / "out"


@pytest.mark.parametrize(
    "name", [name for name, text in TEXTS.items() if blocks("python", text) and name != "docs/serving.md"]
)
def test_the_python_of_a_page_runs_as_it_stands(
    name: str, small_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one go, in a folder where the demo's exports are a small student's (docs/serving.md: tests/serve)."""
    assert TOPICS["sort"][0] in README
    for run in ("demo", "demo-layers"):
        (tmp_path / "workspace" / "runs" / run).mkdir(parents=True)
        (tmp_path / "workspace" / "runs" / run / "export").symlink_to(small_export)
    index_of(tmp_path / "workspace" / "index")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    scope: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks("python", TEXTS[name])):
        exec(compile(block, f"{name}, block {number}", "exec"), scope)
    if name == "docs/answering.md":
        assert "mount.md" in capsys.readouterr().out


def test_the_readmes_recipe_and_its_commands_run(recipe_file: Path, tmp_path: Path, tmkd: Tmkd) -> None:
    """On files of the names and columns that it shows; depth, passes, length and backends are set smaller."""
    small = yaml.safe_load(recipe_file.read_text())
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
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
    write_jsonl(
        tmp_path / "labelled.jsonl",
        [{"query": f"Now: {r['question']}", "text": r["passage"], "relevant": r["label"]} for r in rows[:16]],
    )
    (tmp_path / "mine.yaml").write_text(blocks("yaml", README)[0])
    smaller = [f"{key}={small[key]}" for key in ("student", "stage1", "stage2", "max_length")]
    smaller += [
        "teachers.0.epochs=1",
        "teachers.1.epochs=1",
        "cached.stage1.epochs=1",
        "export.backends=[onnx-fp32]",
        "-q",
    ]
    calls = [words[1:] for words in shown(README) if "mine" in " ".join(words) and words[1] in ("run", "evaluate")]
    first, second, measured = calls
    assert (first, measured[:2]) == (["run", "mine.yaml"], ["evaluate", "workspace/runs/mine"])
    tmkd(*first, *smaller)
    assert {path.name for path in (tmp_path / "workspace" / "runs" / "mine").iterdir()} >= {
        "student",
        "export",
        "report",
    }
    tmkd(*second, *smaller)
    tmkd(*measured, "--no-speed", "-q", "--json", "numbers.json")
    assert {"teacher:t1", "teacher:t2", "cosine", "finetune", "tmkd", "tmkd@cached", "tmkd@cached (long)"} <= {
        row["name"] for row in json.loads((tmp_path / "numbers.json").read_text())["methods"]
    }
