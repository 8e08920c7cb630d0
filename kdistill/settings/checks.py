"""Checks of option values: what a value must be, in words and as a test."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kdistill.errors import UsageError

NAME = re.compile(r"[^\W_][\w.-]{0,99}", re.ASCII)
_IMAGE_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")


@dataclass(frozen=True)
class Check:
    """A condition on the value of an option.

    Attributes:
        expected: the condition in words, e.g. "an integer of at least 1".
        accepts: whether a value meets it. A `TypeError` or `ValueError` counts as no.
        choices: the values, if there are only a few.
    """

    expected: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def passes(self, value: Any) -> bool:
        """Return whether a value meets the condition."""
        try:
            return bool(self.accepts(value))
        except (TypeError, ValueError, AttributeError):
            return False

    def require(self, option: str, value: Any) -> None:
        """Refuse a value that does not meet the condition.

        Raises:
            UsageError: naming the option, the value and what is expected.
        """
        if not self.passes(value):
            raise UsageError(f"--{option} is {format_value(value)!r} (expected {self.expected})")


def format_value(value: Any) -> str:
    """Return a value as it is typed on the command line: `2` for 2.0, `1,2` for a list."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(format_value, value))
    return text if isinstance(value, float) and float(text := f"{value:g}") == value else str(value)


def split_list(text: str | None) -> list[str]:
    """Return the items of a list such as `7,8`; none for None."""
    return [] if text is None else [item.strip() for item in text.split(",")]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def integer(low: int, high: int | None = None) -> Check:
    """Return the check for an integer from `low` to `high`."""
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    return Check(
        f"an integer {bounds}",
        lambda value: _is_integer(value) and low <= value <= (math.inf if high is None else high),
    )


def number(low: float, high: float) -> Check:
    """Return the check for a number from `low` to `high`."""
    return Check(f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


def fraction(*, one: bool = False) -> Check:
    """Return the check for a number between 0 and 1; with `one`, 1 is allowed too."""
    expected = "a number above 0 and at most 1" if one else "a number between 0 and 1, both excluded"
    return Check(expected, lambda value: 0 < value < 1 or (one and value == 1))


def positive() -> Check:
    """Return the check for a finite number above 0."""
    return Check("a finite number above 0", lambda value: math.isfinite(value) and value > 0)


def one_of(*choices: str) -> Check:
    """Return the check for one of some texts."""
    return Check(f"one of {', '.join(choices)}", lambda value: value in choices, choices)


def artifact_name() -> Check:
    """Return the check for the name of an artifact: it becomes a file name and must not leave its directory."""
    return Check(
        "1 to 100 letters, digits, '-', '_' or '.', starting with a letter or a digit",
        lambda value: NAME.fullmatch(value) is not None,
    )


def network_name() -> Check:
    """Return the check for the name of a teacher or student, or `SWEEP/STUDENT`."""

    def accepts(value: str) -> bool:
        parts = value.split("/")
        return len(parts) <= 2 and all(map(NAME.fullmatch, parts))

    return Check("the name of a teacher or student, or SWEEP/STUDENT", accepts)


def parsed_by(parse: Callable[[str], object], expected: str) -> Check:
    """Return the check for a text that a function can parse; the function raises ValueError for any other."""

    def accepts(value: str) -> bool:
        parse(value)
        return True

    return Check(expected, accepts)


def nonempty() -> Check:
    """Return the check for a printable text that is not empty."""
    return Check("a printable text that is not empty", lambda value: bool(value) and value.isprintable())


def parse_image_size(size: str) -> tuple[int, int]:
    """Return height and width in pixels from `HxW`, or from one number for both.

    Raises:
        ValueError: if it is neither.
    """
    match = _IMAGE_SIZE.fullmatch(size)
    if match is None:
        raise ValueError(size)
    return int(match[1]), int(match[2] or match[1])


def parse_dropout(dropout: str) -> tuple[float, float]:
    """Return the dropout rates of the inputs and of the hidden layers from `INPUT,HIDDEN`.

    Raises:
        ValueError: if these are not two rates from 0 to 0.9.
    """
    inputs, hidden = map(float, dropout.split(","))
    if not (0 <= inputs <= 0.9 and 0 <= hidden <= 0.9):
        raise ValueError(dropout)
    return inputs, hidden


def parse_schedule(schedule: str) -> tuple[str, list[float]]:
    """Return the kind of a learning rate schedule and the fractions of the run at which the rate drops.

    The kinds are `constant` and `cosine`, both without fractions, and `step`, e.g. `step:0.5,0.75`.

    Raises:
        ValueError: if the kind is unknown, or the fractions do not increase from above 0 to below 1.
    """
    kind, _, fractions = schedule.partition(":")
    drops = [float(item) for item in fractions.split(",")] if kind == "step" else []
    increasing = all(low < high for low, high in pairwise([0, *drops, 1]))
    if (schedule not in ("constant", "cosine") and kind != "step") or not increasing:
        raise ValueError(schedule)
    return kind, drops


def parse_classes(classes: str) -> list[str]:
    """Return the classes in a list such as `3` or `cat,dog`.

    Raises:
        ValueError: if an item is empty or repeated.
    """
    items = split_list(classes)
    if not all(items) or len(set(items)) < len(items):
        raise ValueError(classes)
    return items


def parse_frequencies(frequencies: str) -> list[float] | None:
    """Return class frequencies from `0.2,0.5,0.3`; None for `training` and `uniform`, which the data decides.

    Raises:
        ValueError: if a frequency is not from 0 to 1 or they do not sum to 1.
    """
    if frequencies in ("training", "uniform"):
        return None
    numbers = [float(item) for item in frequencies.split(",")]
    if not all(0 <= item <= 1 for item in numbers) or abs(sum(numbers) - 1) > 0.01:
        raise ValueError(frequencies)
    return numbers


def first_repeated(values: Sequence[Any]) -> Any:
    """Return the first value that occurs more than once, or None."""
    return next((value for value in values if values.count(value) > 1), None)
