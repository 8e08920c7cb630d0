"""User code named `module:function`: find and digest its source without running it, import it, and locate its errors.

Uses only the standard library, because every command with such a name needs it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from kdistill import workspace
from kdistill.errors import KdistillError, first_line, one_line_errors


def find_source(name: str, option: str) -> Path:
    """Return the source file of the module in `module:function`, without importing it or its parent packages.

    The current directory comes first in the search path.

    Args:
        name: `module:function`.
        option: the command-line option with the name, for messages.

    Raises:
        KdistillError: if there is no such module, or it has no Python source.
    """
    importlib.invalidate_caches()
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    module, _, function = name.partition(":")
    if module.endswith(".py"):
        raise KdistillError(
            f"--{option} {name}: name the module without .py: --{option} {module.removesuffix('.py')}:{function}"
        )
    top, *rest = module.split(".")
    specs = (find(top, None) for finder in sys.meta_path if (find := getattr(finder, "find_spec", None)))
    spec = next((spec for spec in specs if spec), None)
    for part in rest:
        places = list(spec.submodule_search_locations or ()) if spec else []
        spec = importlib.machinery.PathFinder.find_spec(part, places)
    if spec is None:
        raise KdistillError(f"--{option} {name}: there is no module {module!r} in {here} or on Python's search path")
    if not (spec.origin and spec.origin.endswith(".py")):
        raise KdistillError(f"--{option} {name}: module {module!r} is not written in Python (expected a .py file)")
    return Path(spec.origin).absolute()


def digest(name: str, option: str) -> str:
    """Return a digest of a function: its name, the source of its module, and the files that the module's `ARTIFACTS` names.

    The module is not imported, so `ARTIFACTS` must be a literal list of paths, relative to the directory of the module.

    Args:
        name: `module:function`.
        option: the command-line option with the name, for messages.

    Raises:
        KdistillError: if there is no such module, its `ARTIFACTS` is not such a list, or a file is missing.
    """
    source = find_source(name, option)
    parts = [name.partition(":")[2], workspace.digest(source)]
    for artifact in _artifacts(source):
        if not (path := source.parent / artifact).exists():
            raise KdistillError(f"--{option} {name}: {path} is missing, which ARTIFACTS in {source} names")
        parts += [artifact, workspace.digest(path)]
    return "sha256:" + hashlib.sha256(repr(parts).encode()).hexdigest()


def _artifacts(source: Path) -> list[str]:
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):  # the import of the module says where
        return []
    if not any(isinstance(node, ast.Name) and node.id == "ARTIFACTS" for node in ast.walk(tree)):
        return []
    values = []
    for node in tree.body:
        match node:
            case ast.Assign([ast.Name("ARTIFACTS")], value) | ast.AnnAssign(
                ast.Name("ARTIFACTS"), _, ast.expr() as value
            ):
                values.append(value)
    with contextlib.suppress(ValueError):
        (value,) = map(ast.literal_eval, values)
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return list(value)
    raise KdistillError(
        f'{source}: ARTIFACTS must be assigned once, a list of paths written out, e.g. ARTIFACTS = ["weights.pt"]'
    )


def load_function(name: str, source: Path) -> Callable[..., Any]:
    """Import the module in `module:function` from its source, and return the function.

    Raises:
        KdistillError: if the import fails, or the module lacks the function.
    """
    module, _, function_name = name.rpartition(":")
    with one_line_failures(name, source):
        function = vars(import_file(module, source)).get(function_name)
    if not callable(function):
        raise KdistillError(f"{name}: {source} has no function {function_name}")
    return function  # type: ignore[no-any-return]


@contextlib.contextmanager
def one_line_failures(name: str, source: Path) -> Iterator[None]:
    """Raise any error of user code as one line with its location. What the code prints goes to standard error."""

    def describe(error: BaseException) -> str:
        return f"{type(error).__name__}: {first_line(error)} ({error_location(error, source) or source})"

    with one_line_errors(f"{name} failed", describe=describe), contextlib.redirect_stdout(sys.stderr):
        yield


def import_file(module: str, file: Path) -> ModuleType:
    """Import a module from its source file, never from cached bytecode, which can be up to a second out of date."""
    if parent := module.rpartition(".")[0]:
        importlib.import_module(parent)
    locations = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(module, file, submodule_search_locations=locations)
    assert spec is not None
    imported = importlib.util.module_from_spec(spec)
    sys.modules[module] = imported
    exec(compile(file.read_bytes(), file, "exec"), vars(imported))  # noqa: S102 - the user asked to run this file
    return imported


def error_location(error: BaseException, file: Path | None) -> str | None:
    """Return where in the user's code an error was raised, as `file:line`; None if it was raised elsewhere.

    Args:
        error: any exception.
        file: a source file of the user. Other files count as the user's unless they belong to a library.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    installed = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    libraries = (*installed, str(Path(__file__).parents[1]), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(file) or not frame.filename.startswith(libraries)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None
