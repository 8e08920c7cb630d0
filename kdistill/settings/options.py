"""Options: declared once, as annotated fields of frozen dataclasses; everything else is derived from these.

A settings class has a field for each option, `epochs: Annotated[int, option("...", at_least(1))] = 30`, or for a group
of options that several commands share, `training: Training = Training()`. From the fields follow the checks, the
command line with its help, the manifest's settings, the commands that reproduce an artifact, and the reference.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from kdistill.errors import UsageError
from kdistill.settings.checks import Check, first_repeated, format_value, split_list


@dataclass(frozen=True)
class Option:
    """What an option is besides its type and its default.

    Attributes:
        help: one or two lines; the unit, and an example where the syntax is not obvious.
        check: the condition that its value, or each of its values, must meet.
        group: the heading in `--help`.
        metavar: the placeholder for its value.
        name: on the command line, if it differs from the field's.
        commas: whether a list is given as `1,2`; otherwise the option is repeated.
        recorded: whether it is part of a manifest's settings. Names, inputs and what does not change the result are not.
        short: a one-letter name.
        variable: the environment variable that sets it.
    """

    help: str
    check: Check | None = None
    group: str = "Output"
    metavar: str | None = None
    name: str | None = None
    commas: bool = False
    recorded: bool = True
    short: str | None = None
    variable: str | None = None


option = Option  # reads as a declaration: Annotated[int, option("Passes over the training rows.")]


@dataclass(frozen=True)
class Only:
    """Which options of a group a command takes: all but `omit`, or only `names`."""

    names: tuple[str, ...] = ()
    omit: tuple[str, ...] = ()

    def includes(self, name: str) -> bool:
        return name in self.names if self.names else name not in self.omit


@dataclass(frozen=True)
class Field:
    """One option of a settings class, found by `options_of`.

    Attributes:
        name: with underscores; unique among the options of the class.
        path: the names of the nested fields that lead to it.
        type: its type without None; the type of an item if it is a list.
        many: whether it is a list.
        optional: whether it can be None.
        default: MISSING if it is required.
        option: its declaration.
    """

    name: str
    path: tuple[str, ...]
    type: type
    many: bool
    optional: bool
    default: Any = field(compare=False)
    option: Option = field(compare=False)

    @property
    def flag(self) -> str:
        """Its name without the two dashes."""
        return self.name.replace("_", "-")

    def get(self, settings: Any) -> Any:
        """Return the value that settings give it."""
        for name in self.path:
            settings = getattr(settings, name)
        return settings

    def validate(self, value: Any) -> None:
        """Refuse a value that its declaration does not allow.

        Raises:
            UsageError: naming the option, the value and what is expected.
        """
        if value is None and self.optional:
            return
        if self.many:
            if self.option.commas and not value and self.default:
                raise self._empty()
            if (repeated := first_repeated(value)) is not None:
                raise UsageError(f"--{self.flag} contains {format_value(repeated)!r} twice")
        for item in value if self.many else (value,):
            if self.option.check:
                self.option.check.require(self.flag, item)

    @property
    def metavar(self) -> str:
        """The placeholder for its value in help."""
        check = self.option.check
        if check and check.choices and not self.many:
            return "|".join(check.choices)
        return self.option.metavar or {int: "N", float: "X"}.get(self.type, "TEXT")

    def parse(self, text: str | Sequence[str]) -> Any:
        """Parse a value from the command line or from a dataset's name.

        Args:
            text: the value, or all values of an option that is repeated.

        Raises:
            UsageError: if the text is not a value of the option.
        """
        if not self.many:
            return self._parse_item(str(text))
        if isinstance(text, str):
            if not text.strip():
                raise self._empty()
            text = split_list(text)
        return tuple(map(self._parse_item, text))

    def _parse_item(self, text: str) -> Any:
        try:
            return self.type(text)
        except ValueError:
            kind = {int: "an integer", float: "a number"}.get(self.type, "a text")
            expected = self.option.check.expected if self.option.check else kind
            raise UsageError(f"--{self.flag} is {text!r} (expected {expected})") from None

    def _empty(self) -> UsageError:
        return UsageError(f"--{self.flag} is empty (expected one value or more, separated by commas)")

    def words(self, value: Any) -> str:
        """Return the option and its value as typed in a shell; empty for None, False and an empty list."""
        if value is None or value is False or value in ((), []):
            return ""
        if value is True:
            return f"--{self.flag}"
        values = value if isinstance(value, (list, tuple)) and not self.option.commas else [value]
        return " ".join(f"--{self.flag} {shlex.quote(format_value(item))}" for item in values)


class Settings:
    """Base of the settings classes: checks each value against its declaration when an instance is made."""

    def __post_init__(self) -> None:
        for each in options_of(type(self)):
            if len(each.path) == 1:
                each.validate(each.get(self))
        self.check_combinations()

    def check_combinations(self) -> None:
        """Refuse options that exclude or require each other.

        Raises:
            UsageError: naming both options.
        """

    def recorded(self) -> dict[str, Any]:
        """Return the settings for a manifest: recorded options by name, as JSON has them."""
        values = {each.name: each.get(self) for each in options_of(type(self)) if each.option.recorded}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def options_of(settings: type) -> tuple[Field, ...]:
    """Return all options of a settings class, those of nested groups included, in the order of declaration."""
    return _cached_options(settings)


@cache
def _cached_options(settings: Any) -> tuple[Field, ...]:
    return tuple(_options(settings, {item.name: _default(item) for item in fields(settings)}))


def _options(settings: type[Any], defaults: Mapping[str, Any]) -> Iterator[Field]:
    hints = get_type_hints(settings, include_extras=True)
    for name, hint in ((item.name, hints[item.name]) for item in fields(settings)):
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        kind = type(defaults[name]) if kind is Settings else kind
        if is_dataclass(kind):
            only = next((extra for extra in extras if isinstance(extra, Only)), Only())
            nested = {item.name: getattr(defaults[name], item.name) for item in fields(kind)}
            for each in _options(kind, nested):
                if only.includes(each.name):
                    yield replace(each, path=(name, *each.path))
            continue
        declared = next((extra for extra in extras if isinstance(extra, Option)), None)
        if declared is None:
            continue
        types = [part for part in get_args(kind) if part is not type(None)] if _is_union(kind) else [kind]
        many = get_origin(types[0]) is tuple
        yield Field(
            name=(declared.name or name).replace("-", "_"),
            path=(name,),
            type=get_args(types[0])[0] if many else types[0],
            many=many,
            optional=_is_union(kind),
            default=defaults[name],
            option=declared,
        )


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _default(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def build(settings: type, values: Mapping[str, Any]) -> Any:
    """Return settings of a class from the values of its options, by name; options that are missing have their defaults.

    Raises:
        UsageError: if a value is not allowed.
    """
    tree: dict[str, Any] = {}
    for each in options_of(settings):
        if each.name in values:
            branch = tree
            for name in each.path[:-1]:
                branch = branch.setdefault(name, {})
            value = values[each.name]
            branch[each.path[-1]] = tuple(value) if each.many and value is not None else value
    return _build(settings, tree)


def _build(settings: type, tree: Mapping[str, Any]) -> Any:
    defaults = {item.name: _default(item) for item in fields(settings)}
    values = {
        name: _rebuild(defaults[name], value) if is_dataclass(defaults[name]) else value for name, value in tree.items()
    }
    return settings(**values)


def _rebuild(instance: Any, tree: Mapping[str, Any]) -> Any:
    values = {
        name: _rebuild(nested, value) if is_dataclass(nested := getattr(instance, name)) else value
        for name, value in tree.items()
    }
    return replace(instance, **values)


def overrides(settings: type[Settings], prefix: str, *names: str) -> type[Settings]:
    """Return a class with some options of another one, named `PREFIX-OPTION`, that are None by default.

    Its help refers to the original options. A field with the class is annotated as `Settings`.
    """
    chosen: dict[str, Any] = {}
    for each in options_of(settings):
        if each.name in names:
            changed = replace(each.option, help=f"--{each.flag} of the {prefix} only.", group=prefix.title(), name=None)
            chosen[f"{prefix}_{each.name}"] = Annotated[each.type | None, changed]
    members = [(name, hint, None) for name, hint in chosen.items()]
    return make_dataclass(f"{prefix.title()}Overrides", members, bases=(Settings,), frozen=True, kw_only=True)


def override(settings: Any, given: Settings) -> Any:
    """Return settings changed by the options that are given in an instance of their `overrides`."""
    values = {each.name.partition("_")[2]: each.get(given) for each in options_of(type(given))}
    return replace(settings, **{name: value for name, value in values.items() if value is not None})


def check_value(settings: type, name: str, value: Any) -> Any:
    """Return the value of one option, after the check that its declaration has.

    Raises:
        UsageError: naming the option, the value and what is expected.
    """
    next(each for each in options_of(settings) if each.name == name).validate(value)
    return value


def command_words(settings: type, values: Mapping[str, Any], always: Sequence[str] = ()) -> list[str]:
    """Return the options to type for values that differ from the defaults, in the order of declaration.

    Args:
        settings: the class that declares the options.
        values: by name, as recorded in a manifest; names of no option are left out.
        always: options to write even if they have their default value.
    """
    words = []
    for each in options_of(settings):
        value = values.get(each.name)
        default = list(each.default) if isinstance(each.default, tuple) else each.default
        differs = each.name in always or (list(value) if isinstance(value, tuple) else value) != default
        if differs and (text := each.words(value)):
            words.append(text)
    return words
