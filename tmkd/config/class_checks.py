"""What a recipe says of the task's classes: that every label map names them all, and which is the positive one."""

from __future__ import annotations

from collections.abc import Sequence

from tmkd.config.sections import Data
from tmkd.config.teacher_sections import Teacher


def require_label_maps(data: Data, teachers: Sequence[Teacher], classes: int) -> None:
    """Each label map names every class of the task, and no other class.

    Raises:
        ValueError: a map does not, or graded labels of other than two classes.
    """
    if data.grades is not None and classes != 2:
        raise ValueError(f"data.grades makes two classes of the grades, and there are {classes} (`classes`)")
    maps = {"data.labels": {name: value for name, value in data.labels.items() if value is not None}}
    maps |= {f"teachers: {teacher.name}: label_map": teacher.label_map or {} for teacher in teachers}
    for where, found in maps.items():
        for name, value in found.items():
            if not 0 <= value < classes:
                raise ValueError(f"{where}: {name!r} is class {value}; there are {classes}, counted from 0")
        absent = sorted(set(range(classes)) - set(found.values()))
        if found and absent:
            raise ValueError(f"{where}: no name stands for class {absent[0]} of {classes}")


def require_positive(data: Data, classes: int) -> None:
    """The positive class is one of two, by its number or by a name that the label map knows.

    Raises:
        ValueError: it is not.
    """
    wanted = data.positive
    if classes != 2 and wanted != 1:
        raise ValueError(f"data.positive: {wanted!r} is for two classes, and there are {classes}; leave it out")
    names = [name for name, value in data.labels.items() if value is not None]
    if isinstance(wanted, str) and wanted not in names:
        known = f"; it maps {', '.join(names)}" if names else ", which is empty"
        raise ValueError(f"data.positive: {wanted!r} is not a class that data.labels names{known}")
    if not isinstance(wanted, str) and wanted not in (0, 1):
        raise ValueError(f"data.positive: {wanted} is not a class; the two classes are 0 and 1")


def positive_class(data: Data) -> int:
    """The class of the right passages, where there are two classes (`data.positive`)."""
    wanted = data.positive
    number = data.labels.get(wanted) if isinstance(wanted, str) else wanted
    return 1 if number is None else number  # `require_positive` has refused a name that stands for no class


def class_names(data: Data) -> tuple[str, ...] | None:
    """The names of the classes, in their order; None where `data.labels` has none, or has numbers for names."""
    names: dict[int, str] = {}
    for name, value in data.labels.items():
        if value is not None:
            names.setdefault(value, name)  # of several spellings the first
    if not names or all(name.lstrip("+-").isdecimal() for name in names.values()):
        return None
    return tuple(names[value] for value in sorted(names))


def unlike_classes(mine: Data, theirs: Data) -> str:
    """Say which name stands for two classes in two recipes; empty where none does.

    Names are compared without regard to case; names that one recipe alone has say nothing, since files spell classes
    in different ways. Numbers for names are compared where both recipes map the same ones.
    """
    maps = [
        {name.strip().casefold(): value for name, value in data.labels.items() if value is not None}
        for data in (mine, theirs)
    ]
    first, second = maps
    if not first or not second or (first.keys() != second.keys() and not (class_names(mine) and class_names(theirs))):
        return ""
    for name in sorted(first.keys() & second.keys()):
        if first[name] != second[name]:
            return f"{name} is class {first[name]} in one and class {second[name]} in the other"
    return ""
