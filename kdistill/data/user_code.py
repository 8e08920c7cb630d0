"""Code of the user's own, named `module:function`: found without running any of it, run, and told of where it fails.

Standard library only.
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
    """The source of the module in `module:function`; neither it nor its parents are imported.

    The current directory comes before the other places where Python looks.

    Args:
        name: `module:function`.
        option: the command line's name for it, for messages.

    Raises:
        KdistillError: if there is none, or it has no source.
    """
    importlib.invalidate_caches()
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    module, _, function = name.partition(":")
    if module.endswith(".py"):
        raise KdistillError(
            f"--{option} {name}: a module goes without .py: --{option} {module.removesuffix('.py')}:{function}"
        )
    top, *rest = module.split(".")
    specs = (find(top, None) for finder in sys.meta_path if (find := getattr(finder, "find_spec", None)))
    spec = next((spec for spec in specs if spec), None)
    for part in rest:
        places = list(spec.submodule_search_locations or ()) if spec else []
        spec = importlib.machinery.PathFinder.find_spec(part, places)
    if spec is None:
        raise KdistillError(f"--{option} {name}: there is no module {module!r} in {here}, nor where else Python looks")
    if not (spec.origin and spec.origin.endswith(".py")):
        raise KdistillError(f"--{option} {name}: {module!r} is no module with Python source")
    return Path(spec.origin).absolute()


def import_file(module: str, file: Path) -> ModuleType:
    """A module, from its bytes as they are now: byte code is told from its source by whole seconds alone."""
    parent = module.rpartition(".")[0]
    if parent:
        importlib.import_module(parent)
    inside = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(module, file, submodule_search_locations=inside)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[module] = made
    exec(compile(file.read_bytes(), file, "exec"), vars(made))  # noqa: S102 - running it is what was asked for
    return made


def error_location(error: BaseException, file: Path | None) -> str | None:
    """The innermost place in the user's code that an error came from, `file:line`; None if it came from none."""
    libraries = (
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
        str(Path(__file__).parents[1]),
        "<",
    )
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if each.filename == str(file) or not each.filename.startswith(libraries)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None
