"""Numbers in files that are mapped into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tmkd.core.mapped import mapped_numbers
from tmkd.training.targets import Targets


def test_mapped_numbers_are_equal_and_their_file_has_no_name(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(300, 2, 3)).astype(np.float32)
    mapped = mapped_numbers(numbers[:, ::-1], tmp_path / "new")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, numbers[:, ::-1])
    assert list((tmp_path / "new").iterdir()) == []
    mapped[0] = 7.0  # in memory alone
    np.testing.assert_array_equal(mapped[1:], numbers[1:, ::-1])


def test_soft_labels_of_a_large_pool_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = Targets(("a", "b"), np.random.default_rng(0).normal(size=(50, 2, 2)).astype(np.float32))
    assert targets.mapped(tmp_path) is targets
    monkeypatch.setattr("tmkd.training.targets._IN_MEMORY", 50 * 2 * 2 * 4 - 1)
    mapped = targets.mapped(tmp_path)
    assert isinstance(mapped.logits, np.memmap)
    rows = torch.tensor([40, 3, 3])
    torch.testing.assert_close(torch.from_numpy(mapped.logits)[rows], torch.from_numpy(targets.logits)[rows])
