"""Configuration files: TOML with a table per stage, whose keys are the options' names."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdistill.errors import KdistillError, UsageError
from kdistill.settings import COMMANDS, Field, Settings, TrainStudent, build, format_value, options_of
from kdistill.workspace import Workspace, commands

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STAGES = ("train-teacher", "soften", "train-student", "sweep", "correct-bias", "export", "plot", "report")  # in order
DEFAULT_FILE = "kdistill.toml"


@dataclass(frozen=True)
class Step:
    """A stage to run: its command and its settings."""

    command: str
    settings: Settings


def read(file: str) -> tuple[Step, ...]:
    """Return the stages of a configuration file, sorted as in `STAGES`.

    A stage has a table, or an array of tables to run several times. A stage without a table does not run.

    Raises:
        UsageError: if the file does not exist or is not TOML, or if a table, a key or a value is wrong.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"--config {file}: there is no such file (kdistill run --write-config writes one)")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {file} is not valid TOML: {error}") from None
    for name, content in tables.items():
        if not isinstance(content, dict) and not _is_array(content):
            raise UsageError(
                f"{file}: {name!r} is not in the table of a stage (expected a line above it, e.g. [{STAGES[0]}])"
            )
        if name not in STAGES:
            raise UsageError(f"{file}: unknown table [{name}]{_nearest(name, STAGES)}")
    steps = tuple(Step(name, each) for name in STAGES if name in tables for each in _settings(file, name, tables[name]))
    if not steps:
        raise UsageError(f"{file} has no stages (expected one table or more, e.g. [{STAGES[0]}])")
    return steps


def _is_array(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(each, dict) for each in content)


def _settings(file: str, name: str, content: Any) -> Iterator[Settings]:
    """Yield the settings of each table of a stage."""
    known = {each.flag: each for each in options_of(COMMANDS[name])}
    for number, table in enumerate(content if isinstance(content, list) else [content], 1):
        where = f"{file}, {f'[[{name}]] {number}' if isinstance(content, list) else f'[{name}]'}"
        for key in table:
            if key not in known:
                raise UsageError(f"{where}: unknown key {key!r}{_nearest(key, known)}; help: kdistill {name} -h")
        try:
            yield build(COMMANDS[name], {known[key].name: _value(known[key], value) for key, value in table.items()})
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else f" (expected one of {', '.join(known)})"


def _value(option: Field, value: Any) -> Any:
    """Return the value of an option from TOML's: a list, or what could be typed on the command line.

    Raises:
        UsageError: if it is not a value of the option.
    """
    if option.type is bool:
        if isinstance(value, bool):
            return value
        raise UsageError(f"--{option.flag} is {value!r} (expected true or false)")
    items = value if isinstance(value, list) else [value]
    if not all(type(item) in (str, int, float) for item in items):
        expected = option.option.check.expected if option.option.check else "a text or a number"
        raise UsageError(f"--{option.flag} is {value!r} (expected {expected})")
    repeated = option.many and not option.option.commas
    return option.parse([format_value(item) for item in items] if repeated else format_value(value))


def of_workspace(workspace: Workspace) -> str:
    """Return the text of the configuration file that makes the artifacts of a workspace.

    Students of sweeps belong to their sweep.

    Raises:
        KdistillError: if there is no artifact, or the manifest of one is damaged.
    """
    tables = []
    for artifact in workspace.artifacts():
        command, values = commands.options(artifact, artifact.require())
        implied = set(_implied(workspace, command, values))
        tables.append((command, {name: value for name, value in values.items() if name not in implied}))
    if not tables:
        raise KdistillError(f"{workspace.root} has no artifacts: {commands.command(workspace.root, 'run')}")
    tables.sort(key=lambda table: STAGES.index(table[0]))
    names = [name for name, _ in tables]
    return "\n".join(
        "\n".join([f"[[{name}]]" if names.count(name) > 1 else f"[{name}]", *_lines(name, values), ""])
        for name, values in tables
    )


def _implied(workspace: Workspace, command: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options whose values follow from other artifacts by default, so that changes of these are followed."""
    if command == "train-student":
        soft = workspace.soft_targets(values.get("soft_targets", TrainStudent.soft_targets)).manifest()
        if soft and soft.settings.get("temperature") == values.get("temperature"):
            yield "temperature"
    if command == "plot":
        networks = workspace.artifacts("teacher", "student")
        if {network.name for network in networks if "history.csv" in network.require().outputs} == set(
            values["network"]
        ):
            yield "network"


def _lines(command: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line per option whose value is not the default."""
    for option in options_of(COMMANDS[command]):
        value, default = values.get(option.name), option.default
        if option.many and value is not None:
            value, default = list(dict.fromkeys(value)), list(default)
        if value is not None and value != default:
            yield f"{option.flag} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    text = json.dumps(value, ensure_ascii=False)  # also TOML, except that TOML escapes DEL
    return text.replace("\x7f", "\\u007f")
