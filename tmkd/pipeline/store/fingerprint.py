"""Fingerprints: one mechanism that says when a step's result can be used again.

A step's fingerprint hashes three things:

- its settings: the fields of the component's configuration that differ from their defaults, and values that the run
  derives (a resolved length, a seed). A field that the result cannot depend on, such as a name, is excluded by the
  caller, so a field that is added later counts until somebody excludes it;
- its inputs: the fingerprints of the pairs, steps and checkpoints that it reads;
- the version of its kind in `STEP_VERSIONS`.

`tests/pipeline/test_fingerprints.py` changes every field of the recipe and looks at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from tmkd.config.recipe import Recipe
from tmkd.core.files import digest_of
from tmkd.core.hardware import resolved_precision
from tmkd.data.pairs import Pairs
from tmkd.models.encoders.find import encoder_fingerprint

STEP_VERSIONS: dict[str, int] = {
    "pool": 3,
    "cosine": 2,
    "token-cosine": 3,
    "warmup": 2,
    "teacher": 2,
    "tuned": 2,  # attention runs as `hardware.attention` says, on a CPU by plain products, which round otherwise
    "labels": 2,
    "calibration": 1,
    "ensemble": 2,  # fitted to the order of each question's passages
    "states": 2,
    "headers": 2,
    "question-states": 1,
    "stage1": 2,
    "student": 2,
    "export": 4,
    "speed": 1,
    "exports": 1,
}
"""The version of every kind of step. Raise it when the same settings and inputs give another result than before: the
code (a loss, the graph of an export), the file format or the default of a setting changed. Older results are then built
anew."""


@runtime_checkable
class _Fingerprinted(Protocol):
    @property
    def fingerprint(self) -> str: ...


def with_precision_of_machine(recipe: Recipe) -> Recipe:
    """A recipe whose `precision: auto` is what this machine computes with: steps depend on that, not on the wish."""
    return recipe.model_copy(update={"precision": resolved_precision(recipe.precision)})


def non_defaults(config: BaseModel, *, without: set[str] | None = None) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults, nested ones too, as JSON-like content.

    Args:
        config: any part of a recipe.
        without: fields that the result does not depend on, or that enter as an input (a path, whose content counts).
    """
    return config.model_dump(mode="json", exclude_defaults=True, exclude=without)


def depends_on(*, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a step's result depends on: the readable content of `step.json`, which `fingerprint` hashes.

    Args:
        settings: by name: JSON-like content (`non_defaults`), or a configuration whose fields all count.
        inputs: by name: pairs, steps and teachers (all that have a `fingerprint`), the folder of a checkpoint, a string
            that is a fingerprint already, or sequences of these.

    Returns:
        {"settings": ..., "inputs": ...}, without the names whose value is None or empty.

    Raises:
        TypeError: an input of another type.
    """
    plain = {name: non_defaults(value) if isinstance(value, BaseModel) else value for name, value in settings.items()}
    found = {name: _identity(value) for name, value in inputs.items()}
    return {"settings": _given(plain), "inputs": _given(found)}


def fingerprint(kind: str, content: Any) -> str:
    """The fingerprint of a step, 12 hex digits.

    Args:
        kind: the kind of step, a key of `STEP_VERSIONS`.
        content: what its result depends on, as `depends_on` gives it.

    Raises:
        ValueError: a kind that has no version.
    """
    if kind not in STEP_VERSIONS:
        raise ValueError(f"{kind!r} is not a kind of step; there are: {', '.join(STEP_VERSIONS)}")
    return digest_of({"kind": kind, "version": STEP_VERSIONS[kind], "content": content})


def differ_alone_in(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two steps of a kind depend on the same but for the input of this name; both are as of `depends_on`."""
    one, other = ({**content, "inputs": {**content["inputs"], name: None}} for content in (first, second))
    return one == other


def _identity(value: Any) -> Any:
    """The fingerprint of an input; a list of them for a sequence."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Pairs):
        reference = value.reference
        return value.digest() if reference is None else f"{value.digest()} by {reference.column} ({reference.kind})"
    if isinstance(value, Path):
        return encoder_fingerprint(value)
    if isinstance(value, _Fingerprinted):
        return value.fingerprint
    if isinstance(value, list | tuple):
        return [_identity(one) for one in value]
    raise TypeError(f"a {type(value).__name__} has no fingerprint")


def _given(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None and value not in ({}, [], ())}
