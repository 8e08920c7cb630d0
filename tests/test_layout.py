"""The layout: every room stands in the README's list, and imports point down it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rooms():
    """The rooms in the README's order, packages as one."""
    section = re.search(
        r"^## The code\n(.*?)^Imports point down", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    return [name.rstrip("/").removesuffix(".py") for name in re.findall(r"^      (\S+)", section[1], re.MULTILINE)]


def imported(file):
    """The rooms that a file imports, early or late, but for types alone."""
    tree = ast.parse(file.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in for_types:
            parts = node.module.split(".")
            if parts[0] == "kdistill":
                yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def room_of(file):
    return file.relative_to(ROOT / "kdistill").parts[0].removesuffix(".py")


def test_imports_point_down():
    order = rooms()
    files = [file for file in (ROOT / "kdistill").rglob("*.py") if file.name != "__main__.py"]
    assert {room_of(file) for file in files} == set(order)
    upward = {
        (room_of(file), other)
        for file in files
        for other in imported(file)
        if other in order and order.index(other) < order.index(room_of(file))
    }
    assert not upward
