"""The stages: one module per subcommand, each with a function `run(workspace, settings, *, force, reporter)`.

`run` returns a result that the command line prints as a table or as JSON. Stages parse no options and never exit.
"""

import importlib
from collections.abc import Callable
from typing import Any


def stage(command: str) -> Callable[..., Any]:
    """Return the function of a subcommand."""
    function: Callable[..., Any] = importlib.import_module(f"kdistill.stages.{command.replace('-', '_')}").run
    return function
