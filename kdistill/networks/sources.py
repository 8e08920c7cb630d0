"""What a network is made of: from a name to the files it comes from.

The standard library's alone, and no user's code is run: whether a network is up to date is known without either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdistill import workspace
from kdistill.data import user_code
from kdistill.errors import KdistillError
from kdistill.settings import NEW_WEIGHTS

APPLICATIONS = "keras.applications"


@dataclass(frozen=True)
class ModelSource:
    """A network's name, resolved.

    `name` is `cnn`, `small`, `mlp-H`, `keras.applications:NAME`, `MODULE:FUNCTION`, or the absolute path of a `.keras`.
    `file` is the function's source or the `.keras`; None where kdistill or Keras makes the network. `weights` is the
    file of the weights it begins with, `new` for a `.keras` whose weights are drawn anew, or None.
    """

    name: str
    file: Path | None = None
    weights: str | None = None

    def settings(self) -> dict[str, str]:
        """What a manifest's settings say of it."""
        return {"model": self.name} | ({"weights": NEW_WEIGHTS} if self.weights == NEW_WEIGHTS else {})

    def inputs(self) -> dict[str, workspace.Input]:
        """What a manifest's inputs say of it: the files it comes from, with their digests now."""
        files = {"model": self.file, "weights": self.weights_file}
        return {role: workspace.Input(str(file), workspace.digest(file)) for role, file in files.items() if file}

    @property
    def weights_file(self) -> Path | None:
        return None if self.weights in (None, NEW_WEIGHTS) else Path(str(self.weights))


def resolve(model: str, weights: str | None = None) -> ModelSource:
    """Find what a network's name stands for.

    Args:
        model: as `TrainTeacher.model` lets through.
        weights: a file, `new`, or None.

    Raises:
        KdistillError: if a file or a module is not there.
    """
    if weights not in (None, NEW_WEIGHTS):
        weights = str(_file("weights", str(weights)))
    if model.endswith(".keras"):
        file = _file("model", model)
        return ModelSource(str(file), file, weights)
    weights = None if weights == NEW_WEIGHTS else weights  # all others begin with new ones
    module, _, function = model.partition(":")
    if not function or module == APPLICATIONS:
        return ModelSource(model, None, weights)
    return ModelSource(model, user_code.source(model, "model"), weights)


def _file(option: str, name: str) -> Path:
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise KdistillError(f"--{option} {name}: there is no such file")
    return path
