"""What a manifest must hold: the keys of each kind of artifact that anything reads, and their types.

Standard library only. A schema is a mapping of keys to types, written as annotations or as further schemas. Keys that
are not in it may be there too, as other versions of kdistill write them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin

from kdistill.errors import KdistillError
from kdistill.settings import (
    NAME,
    CorrectBias,
    Export,
    Field,
    Plot,
    Selection,
    Soften,
    Sweep,
    TrainStudent,
    TrainTeacher,
    options_of,
)

ANY_SETTING = str | int | float | bool | list[str] | None
LARGEST = 2**63  # whole numbers beyond it are no counts, and no float holds them

Schema = Mapping[str, Any]


KNOWN_SETTINGS: dict[str, dict[str, Field]] = {  # some may be missing, as older versions had fewer options
    kind: {each.name: each for settings in classes for each in options_of(settings)}
    for kind, classes in {
        "teacher": (TrainTeacher,),
        "student": (CorrectBias, TrainStudent),
        "soft targets": (Soften,),
        "sweep": (Sweep,),
        "export": (Export,),
        "plots": (Plot,),
    }.items()
}
SETTINGS: dict[str, Schema] = {  # what is read of them without a default
    "teacher": {"model": str, "precision": str, "epochs": int},
    "student": {
        "model": str,
        "precision": str,
        "epochs": int,
        "seed": int,
        "alpha": float,
        "temperature": float | None,
    },
    "soft targets": {
        "temperature": float,
        "dtype": str,
        "top_k": int | None,
        "mean": str | None,
        "signature": str | None,
        "output": str | None,
        "teacher_input": str,
    },
    "sweep": {
        "model": list[str],
        "temperature": list[float],
        "alpha": list[float],
        "loss": list[str],
        "seeds": list[int],
    },
    "export": {"format": str, "quantize": str},
    "plots": {"format": list[str]},
}
_NETWORK = {
    "model": str,
    "parameters": int,
    "test_errors": int,
    "test_rows": int,
    "held_out_rows": int,
    "best_epoch": int,
    "epochs_run": int,
}
_RATES = {"agreement": float, "latency_ms": float, "rows_per_second": float}
RESULTS: dict[str, dict[str, Any]] = {
    "teacher": _NETWORK,
    "student": {**_NETWORK, "teacher": str | None},
    "soft targets": {
        "rows": int,
        "classes": int,
        "labelled": int,
        "correct": int,
        "teacher": {"model": str | None, "parameters": int | None, "probabilities": list[bool]},
    },
    "sweep": {"students": dict[str, str]},
    "export": {
        "test_errors": int,
        "original_test_errors": int,
        "test_rows": int,
        "batch_rows": int,
        "threads": int,
        "bytes": int,
        "original_bytes": int,
        **_RATES,
        "original_latency_ms": float,
        "original_rows_per_second": float,
    },
    "plots": {},
}
CORRECTED: dict[str, Any] = {  # the results of a student whose biases were corrected, besides a student's
    "classes": list[dict[str, Any]],
    "inputs": int,
    "student_test_errors": int,
}
CLASS: Schema = {"name": str, "wanted": int, "before": int, "after": int, "shift": float}
OUTPUTS: dict[str, tuple[str, ...]] = {
    "teacher": ("saved_model", "history.csv"),
    "student": ("saved_model",),
    "soft targets": ("content",),
    "sweep": ("table.csv",),
}
INPUTS: dict[str, tuple[tuple[str, ...], ...]] = {  # of each group there must be one
    "teacher": (("dataset",),),
    "student": (("dataset",),),
    "soft targets": (("dataset",), ("teacher", "logits")),
    "sweep": (("dataset",), ("soft_targets",)),
    "export": (("dataset",), ("student", "teacher")),
}
IN_WORKSPACE = ("teacher", "student", "soft_targets", "other_soft_targets")  # inputs that name artifacts
FILES = ("teacher", "model", "weights", "logits")  # inputs that name files, by absolute paths
DATA = ("dataset", "transfer_set", "inputs")
ORIGINS = {"kind": str, "created": str, "seconds": float, "format": int, "versions": dict[str, str], "threads": int}


def problems(fields: Mapping[str, Any], *, finished: bool) -> Iterator[str]:
    """What is wrong with the fields of a manifest, the first thing first.

    Args:
        fields: of a `Manifest`, as JSON has them.
        finished: whether it is of a finished artifact; of one that is being made nothing is required.
    """
    yield from _missing_or_wrong({"threads": 0, **fields}, ORIGINS, "")
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in SETTINGS:
        yield f"kind {kind!r}"
        return
    for part in ("settings", "inputs", "outputs", "results"):
        if not isinstance(fields.get(part), dict):
            yield part
            return
    settings, inputs, outputs = (fields[part] for part in ("settings", "inputs", "outputs"))
    yield from (f"settings.{key}" for key, value in settings.items() if not sound_setting(kind, key, value))
    yield from (f"inputs.{role}" for role, made_from in inputs.items() if not sound_input(role, made_from))
    yield from (
        f"outputs.{name}" for name, digest in outputs.items() if not (_is_file_name(name) and fits(digest, str))
    )
    if not _passes(Selection.of, settings):
        yield "settings.fraction"
    if kind == "soft targets" and settings.get("views") is not None and None in map(settings.get, ("augment", "seed")):
        yield "settings.views"
    if not finished:
        return
    yield from _missing_or_wrong(settings, SETTINGS[kind], "settings.")
    for group in INPUTS.get(kind, ()):
        if not any(role in inputs for role in group):
            yield f"inputs.{group[0]}"
    corrected = kind == "student" and "student" in inputs
    trained = ("history.csv",) if kind == "student" and not corrected else ()
    yield from (f"outputs.{name}" for name in (*OUTPUTS.get(kind, ()), *trained) if name not in outputs)
    yield from _missing_or_wrong(fields["results"], RESULTS[kind] | (CORRECTED if corrected else {}), "results.")
    if corrected and not all(fits(one, CLASS) for one in fields["results"].get("classes", ())):
        yield "results.classes"


def sound_setting(kind: str, key: str, value: Any) -> bool:
    """Whether a setting has a value that its option could have, or, if its key is not known, that any option could."""
    field = KNOWN_SETTINGS[kind].get(key)
    if value is None or field is None:
        return fits(value, ANY_SETTING)
    items = value if field.many and isinstance(value, list) else [value]
    check = field.option.check
    return isinstance(value, list) == field.many and all(
        fits(item, field.type) and (check is None or check.passes(item)) for item in items
    )


def sound_input(role: str, made_from: Any) -> bool:
    """Whether an input has a name that its role may have, and a digest."""
    if not (fits(made_from, {"name": str, "digest": str}) and len(made_from) == 2 and role.split()):
        return False
    kind, name = role.split(maxsplit=1)[0], made_from["name"]
    if kind in DATA:
        return bool(name)
    if kind == "student" and name.count("/") == 1:  # a student of a sweep
        return all(map(NAME.fullmatch, name.split("/")))
    return (kind in IN_WORKSPACE and bool(NAME.fullmatch(name))) or (kind in FILES and PurePath(name).is_absolute())


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON's is of a type: a schema, a class, a union, a `Literal`, a list or a dict of texts."""
    if isinstance(hint, dict):
        return isinstance(value, dict) and not any(_missing_or_wrong(value, hint, ""))
    return _check(hint)(value)


@cache
def _check(hint: Any) -> Callable[[Any], bool]:
    """A function that says whether a value is of a type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in parts
    if origin is list:
        return lambda value: isinstance(value, list) and all(fits(one, parts[0]) for one in value)
    if origin is dict:
        return lambda value: (
            isinstance(value, dict) and all(_is_text(k) and fits(v, parts[1]) for k, v in value.items())
        )
    if origin:  # a union
        checks = [_check(part) for part in parts]
        return lambda value: any(check(value) for check in checks)
    return _CHECKS.get(hint, lambda value: hint is Any or type(value) is hint)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < LARGEST


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (type(value) is float and math.isfinite(value))


def _missing_or_wrong(fields: Mapping[str, Any], schema: Schema, where: str) -> Iterator[str]:
    return (f"{where}{key}" for key, hint in schema.items() if key not in fields or not fits(fields[key], hint))


def _is_text(value: Any) -> bool:
    """Whether a value is text that can be printed and can name a file."""
    try:
        return isinstance(value, str) and "\0" not in value and (value.isascii() or bool(value.encode()))
    except UnicodeEncodeError:
        return False


_CHECKS: dict[Any, Callable[[Any], bool]] = {int: _is_whole, float: _is_number, str: _is_text}


def _is_file_name(name: str) -> bool:
    return _is_text(name) and "/" not in name and name not in ("", ".", "..") and len(name.encode()) <= 255


def _passes(check: Any, value: Any) -> bool:
    try:
        check(value)
    except (ValueError, TypeError, AttributeError, KdistillError):
        return False
    return True
