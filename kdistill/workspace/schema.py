"""Checks of a manifest that is read from disk: every value that later code relies on has its type.

A schema is a mapping of keys to types, written as annotations or as further schemas; `[schema]` is a list of objects.
Keys that it does not name are allowed, since other versions of kdistill write them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, get_args, get_origin

from kdistill.errors import KdistillError
from kdistill.settings import NAME, TASKS, Field, Selection, options_of
from kdistill.workspace.kinds import INPUTS, KINDS, Schema

ANY_SETTING = str | int | float | bool | list[str] | list[int] | list[float] | None
LARGEST = 2**63  # larger integers are not counts, and floats cannot hold them
ORIGIN = {"kind": str, "created": str, "seconds": float, "format": int, "versions": dict[str, str], "threads": int}


@dataclass(frozen=True)
class Input:
    """Something that an artifact was made from.

    Attributes:
        kind: a name of `kinds.INPUTS`.
        name: of a dataset, a file or an artifact.
        digest: `sha256:` and 64 hexadecimal digits.
        index: from 1, among the inputs of the kind.
    """

    kind: str
    name: str
    digest: str
    index: int = 1

    @property
    def role(self) -> str:
        """What it is called in messages: `teacher`, `teacher 2`."""
        return self.kind.replace("_", " ") + (f" {self.index}" if self.index > 1 else "")


def problems(fields: Mapping[str, Any], *, finished: bool) -> Iterator[str]:
    """Yield what is wrong with a manifest.

    Args:
        fields: the manifest as JSON has it.
        finished: whether it is that of a finished artifact; otherwise nothing is required.
    """
    yield from _wrong(fields, ORIGIN, "")
    kind = KINDS.get(fields["kind"]) if isinstance(fields.get("kind"), str) else None
    if kind is None:
        yield f"kind {fields.get('kind')!r}"
        return
    for part, container in (("settings", dict), ("inputs", list), ("outputs", dict), ("results", dict)):
        if not isinstance(fields.get(part), container):
            yield part
            return
    settings, inputs, outputs, results = (fields[part] for part in ("settings", "inputs", "outputs", "results"))
    yield from (f"settings.{key}" for key, value in settings.items() if not is_setting(kind.name, key, value))
    yield from (f"inputs[{number}]" for number, each in enumerate(inputs) if not is_input(each))
    yield from (f"outputs.{name}" for name, value in outputs.items() if not (_is_file_name(name) and fits(value, str)))
    if not _is_selection(settings):
        yield "settings.fraction"
    if settings.get("views") is not None and None in (settings.get("augment"), settings.get("seed")):
        yield "settings.views"
    if not finished:
        return
    kinds = tuple(each["kind"] for each in inputs if is_input(each))
    maker = kind.maker(kinds)
    yield from (f"settings.{key}" for key in kind.required if settings.get(key) is None)
    yield from (f"inputs: no {group[0]}" for group in maker.inputs if not any(each in kinds for each in group))
    yield from (f"outputs.{name}" for name in maker.outputs if name not in outputs)
    yield from _wrong(results, maker.results, "results.")
    if "task" in maker.results and results.get("task") not in TASKS:
        yield "results.task"


@cache
def _options(kind: str) -> dict[str, Field]:
    return {each.name: each for maker in reversed(KINDS[kind].makers) for each in options_of(maker.settings)}


def is_setting(kind: str, name: str, value: Any) -> bool:
    """Return whether a setting has a value that its option allows; if there is no such option, that any option allows."""
    option = _options(kind).get(name)
    if value is None or option is None:
        return fits(value, ANY_SETTING)
    if isinstance(value, list) != option.many:
        return False
    check = option.option.check
    return all(
        fits(item, option.type) and (check is None or check.passes(item))
        for item in (value if option.many else [value])
    )


def is_input(value: Any) -> bool:
    """Return whether a value is an input with a name that its kind can have."""
    if not fits(value, {"kind": str, "name": str, "digest": str, "index": int}) or len(value) != 4:
        return False
    kind, name = INPUTS.get(value["kind"]), value["name"]
    if kind is None:
        return False
    if kind.data:
        return bool(name)
    mark = {"student": "/", "export": "@"}.get(value["kind"])  # SWEEP/STUDENT, and SWEEP@STUDENT-FORMAT
    parts = name.split(mark) if mark else [name]
    named = kind.artifact is not None and len(parts) <= 2 and all(map(NAME.fullmatch, parts))
    return named or kind.is_function(name) or (kind.file and PurePath(name).is_absolute())


def fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has a type: a schema, a class, a union, a list or a dict of texts."""
    if isinstance(hint, Mapping):
        return isinstance(value, dict) and not any(_wrong(value, hint, ""))
    if isinstance(hint, list):
        return isinstance(value, list) and all(fits(item, hint[0]) for item in value)
    return _check(hint)(value)


@cache
def _check(hint: Any) -> Callable[[Any], bool]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is list:
        return lambda value: isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin is dict:
        return lambda value: (
            isinstance(value, dict) and all(_is_text(key) and fits(item, parts[1]) for key, item in value.items())
        )
    if origin:  # a union
        checks = [_check(part) for part in parts]
        return lambda value: any(check(value) for check in checks)
    return _CHECKS.get(hint, lambda value: hint is Any or type(value) is hint)


def _wrong(fields: Mapping[str, Any], schema: Schema, prefix: str) -> Iterator[str]:
    """Yield the keys that are missing or have a value of another type."""
    return (f"{prefix}{key}" for key, hint in schema.items() if key not in fields or not fits(fields[key], hint))


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) < LARGEST


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (type(value) is float and math.isfinite(value))


def _is_text(value: Any) -> bool:
    """Return whether a value is text that can be printed and can name a file."""
    try:
        return isinstance(value, str) and "\0" not in value and (value.isascii() or bool(value.encode()))
    except UnicodeEncodeError:
        return False


_CHECKS: dict[Any, Callable[[Any], bool]] = {int: _is_integer, float: _is_number, str: _is_text}


def _is_file_name(name: str) -> bool:
    return _is_text(name) and "/" not in name and name not in ("", ".", "..") and len(name.encode()) <= 255


def _is_selection(settings: Mapping[str, Any]) -> bool:
    try:
        Selection.of(settings)
    except (ValueError, TypeError, AttributeError, KdistillError):
        return False
    return True
