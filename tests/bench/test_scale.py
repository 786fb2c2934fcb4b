"""`tmkd bench scale` runs the data side of a run on synthetic pairs. No test depends on speed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Tmkd

from tmkd.bench import scale
from tmkd.bench.scale import Figure, ScaleFigures, overhead
from tmkd.bench.scale_material import MAX_LENGTH, pairs_in, tokenizer, write_material
from tmkd.core.errors import NoRoomError, TmkdError
from tmkd.pipeline.store.token_cache import tokens_of
from tmkd.pipeline.store.workspace import Workspace


def test_material_is_as_long_as_real_pairs_and_is_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmkd.bench.scale_material._CHUNK", 700)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_material(tmp_path / name, 2000)
    first, second = (pairs_in(tmp_path / name) for name in ("a", "b"))
    assert first.digest() == second.digest()
    assert len(set(first.pair_ids)) > 1990
    assert 190 <= len(set(first.questions)) <= 200
    words = [len(passage.split()) for passage in first.passages]
    assert 55 < np.mean(words) < 67
    assert min(words) >= 10
    found = tokens_of(Workspace(tmp_path / "a"), tokenizer(), first)  # from the file that was written
    assert len(list((tmp_path / "a" / "tokens").iterdir())) == 1
    assert 80 < found.lengths.mean() < 105
    assert found.lengths.max() <= MAX_LENGTH
    for ids, types in zip(found.ids[:50], found.type_ids[:50], strict=True):
        assert 1000 <= ids.min() <= ids.max() < 30_000
        assert types[0] == 0
        assert np.diff(types).sum() == 1


def test_the_command_measures_and_leaves_nothing_behind(tmkd: Tmkd, tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    shown = tmkd("bench", "scale", "--pairs", "3000", "--folder", tmp_path / "room", "--json", tmp_path / "f.json")
    assert "3,000 synthetic pairs" in shown.stdout
    content = json.loads((tmp_path / "f.json").read_text())
    figures = {figure["name"]: figure for figure in content["figures"]}
    assert len(figures) == 4
    assert all(figure["measured"] > 0 for figure in figures.values())
    assert content["parts"]["batches"]["pairs"] == content["parts"]["store"]["pairs"] == 3000
    memory = content["parts"]["batches"]["memory"]
    assert memory["before"] < memory["resident"]
    assert memory["anonymous"] < memory["resident"]
    assert list((tmp_path / "room").iterdir()) == []


def test_pairs_that_do_not_fit_on_the_disk_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=15_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(NoRoomError, match=r"20,000,000 pairs do not fit .*15,258\.8 MiB needed, 14,305\.1 MiB free"):
        scale.run(20_000_000, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TmkdError, match="no such folder"):
        scale.run(100, tmp_path / "none")


def test_a_part_that_fails_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "PARTS", ("store",))  # of which there is no material
    with pytest.raises(TmkdError, match=r"the part store ended with 1: FileNotFoundError.*pairs\.arrow"):
        scale.run(100, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_figures_say_what_is_kept() -> None:
    memory = {"before": 2**29, "resident": 2**31, "anonymous": 2**30}
    parts: dict[str, dict[str, Any]] = {
        "batches": {"cpu_seconds": 10.0, "seconds": 20.0, "memory": memory},
        "store": {"seconds": [10.0, 30.0], "memory": memory},
        "teacher": {"3 layers": 1000.0, "6 layers": 500.0, "where": "here", "tokenized": 9000.0},
    }
    figures = ScaleFigures(1_000_000, parts).figures
    assert [(one.measured, one.kept) for one in figures[:2]] == [(100_000, True), (2, False)]
    assert figures[2].measured == pytest.approx(100 * 20 / 1020)
    assert figures[3].measured == pytest.approx(100 * 20 / 2020)
    assert overhead(3, 97) == 0.03
    assert not Figure("x", "%", 3, least=False, measured=3).kept
