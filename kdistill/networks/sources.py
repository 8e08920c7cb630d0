"""Resolve the name of a network to the files that it comes from. No user code is run, and TensorFlow is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdistill.data import user_code
from kdistill.errors import KdistillError
from kdistill.settings import NEW_WEIGHTS
from kdistill.workspace import Input, digest

APPLICATIONS = "keras.applications"


@dataclass(frozen=True)
class ModelSource:
    """A network's name and the files that it comes from.

    Attributes:
        name: the name of a built-in network, `keras.applications:NAME`, `MODULE:FUNCTION`, or the absolute path of a
            `.keras` file.
        file: the source of the function or the `.keras` file; None for networks of kdistill and Keras.
        weights: the path of a file with the initial weights; `new` to initialize the network of a `.keras` file afresh;
            else None.
    """

    name: str
    file: Path | None = None
    weights: str | None = None

    @property
    def weights_file(self) -> Path | None:
        """The file with the initial weights."""
        return None if self.weights in (None, NEW_WEIGHTS) else Path(str(self.weights))

    def settings(self) -> dict[str, str]:
        """Return the entries for the settings of a manifest."""
        return {"model": self.name} | ({"weights": NEW_WEIGHTS} if self.weights == NEW_WEIGHTS else {})

    def inputs(self, index: int = 1) -> list[Input]:
        """Return the entries for the inputs of a manifest: the files and their current digests."""
        files = {"model": self.file, "weights": self.weights_file}
        return [Input(kind, str(file), digest(file), index) for kind, file in files.items() if file]


def resolve_model(model: str, weights: str | None = None) -> ModelSource:
    """Return the source of a network.

    Args:
        model: a valid value of `TrainTeacher.model`.
        weights: a file, `new`, or None.

    Raises:
        KdistillError: if a file or module does not exist.
    """
    if weights not in (None, NEW_WEIGHTS):
        weights = str(_existing("weights", str(weights)))
    if model.endswith(".keras"):
        file = _existing("model", model)
        return ModelSource(str(file), file, weights)
    if weights == NEW_WEIGHTS:
        weights = None  # only a `.keras` file has weights that could be kept
    module, _, function = model.partition(":")
    is_function = function and module != APPLICATIONS
    return ModelSource(model, user_code.find_source(model, "model") if is_function else None, weights)


def _existing(option: str, name: str) -> Path:
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise KdistillError(f"--{option} {name} does not exist; pass the path of a file")
    return path
