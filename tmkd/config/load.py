"""Read a recipe: YAML, `key=value` overrides, and errors that name the key, its value and the nearest right key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tmkd.config.places import find_beside
from tmkd.config.pool_sections import OtherTask
from tmkd.config.recipe import Recipe
from tmkd.config.sections import Part
from tmkd.config.teacher_sections import NOT_ALWAYS_READ, Teacher
from tmkd.config.unused import RECORDED
from tmkd.core.errors import RecipeError

P = TypeVar("P", bound=Part)
_CHANGED_KEYS = re.compile(r"(pool\.sources\.\d+\.task\.keys|tasks\.\d+\.keys|variants\.[^.]+|grid)\.(.+)")
"""An override of one key that a recipe or a study changes in another recipe: the mapping of keys, the key within it."""


class _TwiceError(yaml.YAMLError):
    """A key that stands twice in one mapping; PyYAML would take the last and drop the others."""

    def __init__(self, key: str, lines: tuple[int, int]) -> None:
        first, again = lines
        where = f"in line {first}" if first == again else f"in lines {first} and {again}"
        super().__init__(f"the key {key!r} stands twice in one section, {where}; keep one of them")
        self.key = key


class _OnceLoader(yaml.SafeLoader):
    """Reads YAML, and refuses a key that stands twice in one mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":  # `<<` may be there
                key, line = self.construct_object(key_node), key_node.start_mark.line + 1
                same = (type(key), key)  # True == 1: data.labels says what is wrong with `{yes: 0, 1: 1}`
                if same in lines:
                    raise _TwiceError(key_node.value, (lines[same], line))
                lines[same] = line
        return node


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe.

    Example:
        recipe = load_recipe("recipes/demo.yaml", ["stage1.epochs=2", "name=short"])

    Args:
        path: the YAML file.
        overrides: `key=value`; the key has dots into sections, the value is YAML. A `stage1_from` among them replaces
            the file's `stage1`. Relative paths are looked for from where tmkd was called, then beside the file.

    Raises:
        RecipeError: the file is missing or no YAML, a key is unknown (the error names the nearest right one), or a
            value does not fit.
    """
    return parse_beside(read_content(Path(path), overrides), Path(path))


def load_other(task: OtherTask) -> Recipe:
    """Read the recipe that a source of a pool names.

    Args:
        task: its file, and the keys of it that are changed.

    Raises:
        RecipeError: as `load_recipe`.
    """
    path = Path(task.recipe)
    content = read_content(path)
    where = f"{path}, with the keys of pool.sources" if task.keys else str(path)
    set_keys(content, [(key, value, where) for key, value in task.keys.items()])
    return parse_beside(content, path, where)


def parse_beside(content: dict[str, Any], path: Path, where: str | None = None) -> Recipe:
    """Validate the content of a recipe's file, whose relative paths may be beside the file.

    Args:
        content: as `read_content` gives it, with keys changed or not; paths in it are resolved in place.
        path: the file.
        where: what errors call it; the file's path unless given.

    Raises:
        RecipeError: as `load_recipe`.
    """
    find_beside(content, path)
    return parse_recipe(content, where or str(path))


def read_content(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The content of a YAML file with overrides applied, not validated.

    Args:
        path: the YAML file.
        overrides: as in `load_recipe`.

    Raises:
        RecipeError: the file is missing or no YAML mapping, or an override does not fit it.
    """
    where = str(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe; see recipes/ for examples", where=where) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}", where=where) from error
    except _TwiceError as error:
        raise RecipeError(f"{path}: {error}", where=where, key=error.key) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}", where=where) from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of keys, this file holds {type(content).__name__}", where=where
        )
    set_keys(content, [_parse_override(override) for override in overrides or []])
    return content


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate the content of a recipe.

    Args:
        content: keys and values, as read from YAML or JSON.
        where: what begins an error's message, such as the file's name.

    Raises:
        RecipeError: a key is unknown or its value does not fit; names the key, its value and what would fit.
    """
    return validate(Recipe, content, where)


def parse_recorded_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe that a run recorded in its manifest; accepts what earlier versions of tmkd wrote there.

    Args:
        content: the recipe in the manifest.
        where: what begins an error's message, such as the manifest's name.

    Raises:
        RecipeError: as `parse_recipe`.
    """
    if isinstance(path := content.get("stage1"), str):  # before `stage1_from` was a key of its own
        content = {**{key: value for key, value in content.items() if key != "stage1"}, "stage1_from": path}
    if isinstance(content.get("teachers"), list):
        content = {**content, "teachers": list(map(_recorded_teacher, content["teachers"]))}
    return validate(Recipe, content, where, RECORDED)


def _recorded_teacher(teacher: Any) -> Any:
    """A recorded teacher; earlier versions accepted keys that do nothing for a teacher of its kind."""
    try:
        read = {key: value for key, value in teacher.items() if key not in NOT_ALWAYS_READ}
        unused = Teacher.model_validate(read, context=RECORDED).unused_keys
    except (AttributeError, ValidationError):  # what is wrong with it is said where the whole recipe is read
        return teacher
    return {key: value for key, value in teacher.items() if key not in unused}


def validate(kind: type[P], content: dict[str, Any], where: str, context: dict[str, Any] | None = None) -> P:
    """Validate a mapping as a recipe, a section of one, or a study.

    Args:
        kind: the class to make of it.
        content: keys and values.
        where: what begins an error's message.
        context: `RECORDED` for what a finished run has written.

    Raises:
        RecipeError: as `parse_recipe`.
    """
    try:
        return kind.model_validate(content, context=context)
    except ValidationError as error:
        details = error.errors()
        lines = [_explain(detail, kind) for detail in details]
        key = ".".join(map(str, details[0]["loc"])) or None
        raise RecipeError(
            f"{where}: " + f"\n{where}: ".join(dict.fromkeys(lines)), where=where, key=key, value=details[0]["input"]
        ) from error


def _parse_override(override: str) -> tuple[str, Any, str]:
    """The key, the value, and what errors call the override."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: write key=value, for example stage1.epochs=2", where=override)
    try:
        value = yaml.load(text, _OnceLoader)
    except _TwiceError as error:
        raise RecipeError(f"override {override!r}: {error}", where=override, key=error.key) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML", where=override) from error
    return key, value, f"override {override!r}"


def set_keys(content: dict[str, Any], changes: Sequence[tuple[str, Any, str]]) -> None:
    """Change keys of a recipe's content in place.

    A `stage1_from` among the changes replaces the `stage1` that the content had, and those of `cached` and `rates`,
    unless the changes set `stage1`, too; a `cached.stage1_from` replaces that of `cached` alone.

    Args:
        content: a recipe as read from YAML.
        changes: for each change the key (with dots into sections), its value, and what begins an error's message.

    Raises:
        RecipeError: a list does not have the index that a key names.
    """
    starts_from = any(key == "stage1_from" and value is not None for key, value, _ in changes)
    if starts_from and not any(key.partition(".")[0] == "stage1" for key, _, _ in changes):
        content.pop("stage1", None)
        if isinstance(cached := content.get("cached"), dict):
            cached.pop("stage1", None)
        _forget_stage1_rates(content)
    keys = {key: value for key, value, _ in changes}
    own = keys.get("cached.stage1_from") is not None and not any(key.startswith("cached.stage1.") for key in keys)
    if own and "cached.stage1" not in keys and isinstance(cached := content.get("cached"), dict):
        cached.pop("stage1", None)
    if own:
        _forget_stage1_rates(content, only="cached")
    for key, value, where in changes:
        _set_key(content, key, value, where)


def _forget_stage1_rates(content: dict[str, Any], only: str = "") -> None:
    """Drop the numbers of stage 1 that single methods have; of methods whose students are of one kind, if given."""
    student, rates = content.get("student"), content.get("rates")
    kind = student.get("kind", "layers") if isinstance(student, dict) else "layers"
    if not isinstance(rates, dict):
        return
    for name, own in list(rates.items()):
        known = isinstance(own, dict) and only in ("", name.partition("@")[2] or kind)
        if known and own.pop("stage1", None) is not None and not own:
            del rates[name]


def _set_key(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    inner = _CHANGED_KEYS.fullmatch(key)
    if inner and inner[1] == "grid" and last.isdigit():  # one value of a key of the grid
        parents, inner = ["grid", inner[2].rpartition(".")[0]], None
    elif inner:  # it changes one key of the other recipe, and not the section around it
        parents, last = inner[1].split("."), inner[2]
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
        if inner and inner[1] != "grid":  # whose order names the variants
            place.pop(last, None)  # the keys of a mapping are set in their order, and this one is the latest
        place[last] = value
    else:
        raise RecipeError(f"{where}: {place!r} holds no keys")


def _index(items: list[Any], text: str, where: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise RecipeError(f"{where}: {text!r} is not an index of a list of {len(items)} (they count from 0)")
    return int(text)


def number(value: Any) -> Any:
    """A text that is a number as that number (YAML 1.1 reads 1e-4 as text); anything else unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def describe() -> str:
    """The documentation of the recipe: one line for every key, with its meaning, its type and its default."""
    lines: list[str] = []
    _describe(Recipe, "", lines)
    return "\n".join(lines)


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also in a tuple or a union; None if it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inside in get_args(annotation) if (found := _inner(inside))), None)


def _is_mapping(annotation: Any) -> bool:
    """Whether a field holds sections by names that the recipe chooses."""
    return get_origin(annotation) is dict and _inner(annotation) is not None


def _describe(part: type[BaseModel], prefix: str, lines: list[str], unless_given: BaseModel | None = None) -> None:
    """Append a line for every key of a section; `unless_given` is the section that a recipe without it has, if any."""
    for name, field in part.model_fields.items():
        value = getattr(unless_given, name) if unless_given else None
        if unless_given is None and not field.is_required():
            value = field.get_default(call_default_factory=True)
        inner = _inner(field.annotation)
        if inner is None:
            parts = [_type_name(field.annotation)]
            if unless_given or not field.is_required():
                parts.append(f"default: {value!r}")
            if field.is_required():
                parts.append(f"required if {prefix[:-1]} is given" if unless_given else "required")
            lines.append(f"{prefix}{name}: {field.description or ''} ({'; '.join(parts)})")
            continue
        lines.append(f"{prefix}{name}: {field.description or ''}")
        within = ".0." if name in ("teachers", "sources") else ".METHOD." if _is_mapping(field.annotation) else "."
        _describe(inner, prefix + name + within, lines, value if isinstance(value, inner) else None)


_TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any value"}


def _type_name(annotation: Any) -> str:
    """The type of a key's values in the words of YAML."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(inside[0])
    if origin is Literal:
        return " or ".join(filter(None, (", ".join(inside[:-1]), inside[-1])))
    if origin is tuple:
        return f"list of {_type_name(inside[0])}"
    if origin is dict:
        return f"mapping of {' to '.join(map(_type_name, inside))}"
    if origin is not None:  # a union
        return " or ".join(dict.fromkeys(_type_name(one) for one in inside if one is not type(None)))
    return _TYPE_NAMES[annotation]


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
    named = False  # whether the next part of the location is a name that the recipe chooses
    for name in location:
        if named or name.isdigit():
            named = False
        elif part is not None:
            annotation = part.model_fields[name].annotation if name in part.model_fields else None
            part, named = _inner(annotation), _is_mapping(annotation)
    return list(part.model_fields) if part is not None else []
