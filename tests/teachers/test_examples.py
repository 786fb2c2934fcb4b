"""The examples in docstrings of teachers and of the label store run, and give what they say."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from tmkd.pipeline.store import label_store
from tmkd.teachers import encoder, scores


@pytest.mark.parametrize("module", [encoder, scores, label_store], ids=lambda module: module.__name__)
def test_examples_of_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
