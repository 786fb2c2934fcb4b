"""Read a recipe: YAML, `key=value` overrides, and errors that name the key, its value and the nearest right key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tmkd.config.recipe import Recipe
from tmkd.config.sections import Part
from tmkd.core.errors import RecipeError

P = TypeVar("P", bound=Part)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` with dots into parts; the value is YAML.

    Raises:
        RecipeError: missing file, bad YAML, unknown or ill-typed key (the nearest right one is named).
    """
    return parse_recipe(read_content(path, overrides), str(path))


def read_content(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The mapping that a YAML file holds, with `key=value` overrides applied; not validated.

    Raises:
        RecipeError: missing file, bad YAML, an override that does not fit.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe; see recipes/ for examples") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, this file holds {type(content).__name__}")
    set_keys(content, [_parse_override(override) for override in overrides or []])
    return content


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate the content of a recipe; RecipeError says which key, what it holds and what fits."""
    return validate(Recipe, content, where)


def parse_recorded_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe that a run recorded in its manifest; accepts keys as earlier versions wrote them.

    Raises:
        RecipeError: as `parse_recipe`.
    """
    if isinstance(path := content.get("stage1"), str):  # before `stage1_from` was a key of its own
        content = {**{key: value for key, value in content.items() if key != "stage1"}, "stage1_from": path}
    return parse_recipe(content, where)


def validate(kind: type[P], content: dict[str, Any], where: str) -> P:
    """Validate a mapping as one kind of part; RecipeError says which key, what it holds and what fits."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(detail, kind) for detail in error.errors()]
        raise RecipeError(f"{where}: " + f"\n{where}: ".join(dict.fromkeys(lines))) from error


def _parse_override(override: str) -> tuple[str, Any, str]:
    """Key, value and what errors call it."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: write key=value, for example stage1.epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML") from error
    return key, value, f"override {override!r}"


def set_keys(content: dict[str, Any], changes: Sequence[tuple[str, Any, str]]) -> None:
    """Change keys of a recipe's content in place.

    A `stage1_from` among the changes replaces the `stage1` that the content had, unless the changes set that too.

    Args:
        content: a recipe as read from YAML.
        changes: for each change the key (with dots into parts), its value, and what begins an error's text.

    Raises:
        RecipeError: an index that a list does not have.
    """
    starts_from = any(key == "stage1_from" and value is not None for key, value, _ in changes)
    if starts_from and not any(key.partition(".")[0] == "stage1" for key, _, _ in changes):
        content.pop("stage1", None)
    for key, value, where in changes:
        _set_key(content, key, value, where)


def _set_key(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        if isinstance(place, list):
            place = place[_index(place, parent, where)]
        elif isinstance(place, dict):
            if not isinstance(place.get(parent), dict | list):
                place[parent] = {}
            place = place[parent]
    if isinstance(place, list):
        place[_index(place, last, where)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"{where}: {place!r} holds no keys")


def _index(items: list[Any], text: str, where: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise RecipeError(f"{where}: {text!r} is not an index of a list of {len(items)} (they count from 0)")
    return int(text)


def number(value: Any) -> Any:
    """The number that a text holds, since YAML 1.1 reads 1e-4 as text; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def describe() -> str:
    """The documentation of every key, one line each."""
    lines: list[str] = []
    _describe(Recipe, "", lines)
    return "\n".join(lines)


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The part that a field holds, alone, in a tuple or in a union; None where it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inside in get_args(annotation) if (found := _inner(inside))), None)


def _describe(part: type[BaseModel], prefix: str, lines: list[str]) -> None:
    for name, field in part.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        inner = _inner(field.annotation)
        lines.append(f"{prefix}{name}: {field.description or ''}" + ("" if inner else f" (default: {default})"))
        if inner is not None:
            _describe(inner, prefix + f"{name}" + (".0." if name in ("teachers", "sources") else "."), lines)


def _explain(detail: Any, root: type[BaseModel]) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location) or root.__name__.lower()
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _keys_at(location[:-1], root), n=1, cutoff=0.4)
        known = ", ".join(_keys_at(location[:-1], root))
        return f"{key}: unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known are: {known}")
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "value_error"):
        return message if message.startswith(f"{key}: ") else f"{key}: {message}"
    message = message.replace("a valid tuple", "a list, such as [a, b]").replace("Tuple", "The list")
    return f"{key}: {message[0].lower() + message[1:]}, got {detail['input']!r}"


def _keys_at(location: list[str], root: type[BaseModel]) -> list[str]:
    part: type[BaseModel] | None = root
    for name in location:
        if part is not None and not name.isdigit():
            part = _inner(part.model_fields[name].annotation) if name in part.model_fields else None
    return list(part.model_fields) if part is not None else []
