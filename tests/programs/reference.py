"""Write kdistill/guides/reference.md: every command and option, generated from the settings.

python tests/programs/reference.py
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING
from pathlib import Path

from kdistill import guides
from kdistill.cli import COMMANDS, READ_ONLY, Session
from kdistill.settings import Field, format_value, options_of

HEAD = """# Reference

Every command and its options. This file is generated from the settings by `make reference`.
"""


def generate() -> str:
    """Return the text of the reference."""
    parts = [HEAD, _section("Options of every command", "", options_of(Session))]
    for name, settings in COMMANDS.items():
        parts.append(_section(f"kdistill {name}", inspect.getdoc(settings) or "", options_of(settings), name))
    return "\n".join(parts)


def _section(title: str, text: str, fields: tuple[Field, ...], command: str = "") -> str:
    lines = [f"## {title}\n"]
    if text:
        lines.append(f"{text}\n")
    if command in READ_ONLY:
        lines.append("Writes nothing, so it has no `--force` and no `--dry-run`.\n")
    groups: dict[str, list[Field]] = {}
    for field in fields:
        groups.setdefault(field.option.group, []).append(field)
    for group, members in groups.items():
        lines.append(f"### {group}\n" if command else "")
        lines += [_entry(field) for field in members]
        lines.append("")
    return "\n".join(lines)


def _entry(field: Field) -> str:
    declared = field.option
    value = "" if field.type is bool else f" {field.metavar}"
    short = f"`{declared.short}`, " if declared.short else ""
    notes = []
    if field.default is MISSING:
        notes.append("required")
    elif field.default not in (None, False, ()):
        notes.append(f"default: `{format_value(field.default)}`")
    if declared.variable:
        notes.append(f"environment: `{declared.variable}`")
    remarks = f" ({'; '.join(notes)})" if notes else ""
    return f"- {short}`--{field.flag}{value}`: {declared.help}{remarks}"


if __name__ == "__main__":
    (Path(guides.__file__).parent / "reference.md").write_text(generate(), encoding="utf-8")
