"""User code named `module:function`: find its source without running it, import it, and locate its errors.

Uses only the standard library, because every command with such a name needs it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

from kdistill.errors import KdistillError


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
