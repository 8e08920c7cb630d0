"""The layout of the package: few entries, short modules, and imports between packages that point one way."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from helpers import ROOT

PACKAGE = ROOT / "kdistill"
ORDER = (  # a package imports only those to its right
    "cli __init__ stages cluster training teachers soft_targets networks data tasks evaluation workspace settings backend console errors"
).split()
MOST_ENTRIES = 18
MOST_LINES = 400


def modules():
    """Yield the modules of the package by name, e.g. `data.readers.npz`, with their paths."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"), path


def imported_names(path):
    """Return the dotted names that a module imports at any place, except those imported for type checkers only."""
    tree = ast.parse(path.read_text())
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    names = []
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def imported_packages(path):
    """Yield the packages of kdistill that a module imports."""
    for name in imported_names(path):
        root, _, rest = f"{name}.".partition(".")
        if root == "kdistill":
            package = rest.partition(".")[0]
            yield package if package in ORDER else "__init__"  # e.g. `from kdistill import __version__`


def test_package_shows_its_architecture():
    """The package has few entries, and each one that holds code has a place in the order."""
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"py.typed", "__pycache__"}
    assert len(entries) <= MOST_ENTRIES
    assert entries - {"__main__", "guides"} == set(ORDER)


def test_imports_point_one_way():
    """No package imports one that is built on it, `kdistill` itself for its `__version__` included."""
    place = {package: number for number, package in enumerate(ORDER)}
    wrong_way = {
        (package, other)
        for name, path in modules()
        if (package := name.partition(".")[0]) in place
        for other in imported_packages(path)
        if place[other] < place[package]
    }
    assert not wrong_way


def test_modules_are_short(record_property):
    """No module has more than 400 lines."""
    lines = {name: len(path.read_text().splitlines()) for name, path in modules()}
    record_property("total_lines", sum(lines.values()))
    print(f"kdistill: {sum(lines.values()):,} lines in {len(lines)} modules")
    assert not {name for name, count in lines.items() if count > MOST_LINES}


def test_imported_packages_are_declared():
    """`pyproject.toml` declares each distribution that kdistill imports."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    declared = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}
    distributions = packages_distributions()
    imported = {name.partition(".")[0] for _, path in modules() for name in imported_names(path)} - {"kdistill"}
    third_party = imported - set(sys.stdlib_module_names)
    assert third_party >= {"tensorflow", "keras", "numpy"}
    for name in third_party:
        assert declared & {distribution.lower() for distribution in distributions.get(name, [name])}, name
