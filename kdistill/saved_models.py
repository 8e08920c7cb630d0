"""SavedModels, out and in: what is written of a trained network, and any network that can be asked for logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import keras, tf
from kdistill.console import silent_stdout
from kdistill.errors import KdistillError
from kdistill.own_networks import operations_in


def save(model: keras.Model, directory: Path) -> str | None:
    """Write `saved_model/` and `model.keras` into a directory that is there.

    The SavedModel has one signature, `serving_default`: `inputs` (rows, ...), of the model's input dtype, to `logits`
    (rows, classes) float32, for any number of rows. It is written through TensorFlow, since `keras.Model.export`
    stores every weight twice (Keras 3.15.1).

    Returns:
        Why there is no `model.keras`, in words, or None: layers of the user's own may not let themselves be saved.

    Raises:
        KdistillError: if the SavedModel can't be written.
    """
    takes = model.inputs[0]
    signature = tf.TensorSpec(takes.shape, takes.dtype, name="inputs")
    served = tf.Module()
    served.weights = [variable.value for variable in model.variables]
    tables = (getattr(each, "lookup_table", None) for each in operations_in(model))
    served.tables = [table for table in tables if table is not None]
    served.serve = tf.function(
        lambda inputs: {"logits": tf.cast(model(inputs, training=False), tf.float32)}, input_signature=[signature]
    )
    with silent_stdout():
        try:
            tf.saved_model.save(served, str(directory / "saved_model"), signatures=served.serve)
        except (AssertionError, ValueError) as error:
            raise KdistillError(f"TensorFlow can't save this network: {str(error).splitlines()[0]}") from error
        (directory / "saved_model" / "fingerprint.pb").unlink()  # optional, and random: the rest is the same each time
        try:
            model.save(directory / "model.keras")
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a layer's get_config raises
            (directory / "model.keras").unlink(missing_ok=True)
            why = " ".join(str(error).split())[:200].strip()
            return f"model.keras is left out, as Keras can't save this network ({why}); saved_model is whole"
    return None


def scaled(inputs: Any) -> Any:
    """Inputs as a network takes them: uint8 scaled to [0, 1], all as float32. For tensors."""
    return tf.cast(inputs, tf.float32) / 255.0 if inputs.dtype == tf.uint8 else tf.cast(inputs, tf.float32)


@dataclass(frozen=True)
class SavedNetwork:
    """A SavedModel, loaded as one: no Keras object is made of it."""

    path: Path
    call: Any
    input_name: str
    input_shape: tuple[int | None, ...]
    input_dtype: Any
    output_name: str
    classes: int
    keep: Any  # the loaded object: its variables die with it

    @classmethod
    def load(cls, path: Path) -> SavedNetwork:
        """Load the serving signature.

        Raises:
            KdistillError: if it is no SavedModel, or has no single input and output.
        """
        try:
            loaded = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise KdistillError(f"{path} is no SavedModel: {str(error).splitlines()[0]}") from None
        if "serving_default" not in loaded.signatures:
            raise KdistillError(f"{path} has no signature serving_default: it has {', '.join(loaded.signatures)}")
        call = loaded.signatures["serving_default"]
        inputs, outputs = call.structured_input_signature[1], call.structured_outputs
        if len(inputs) != 1 or len(outputs) != 1:
            raise KdistillError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs: it needs one of each")
        ((input_name, input_spec),) = inputs.items()
        ((output_name, output_spec),) = outputs.items()
        return cls(
            path=path,
            call=call,
            input_name=input_name,
            input_shape=tuple(input_spec.shape),
            input_dtype=input_spec.dtype,
            output_name=output_name,
            classes=int(output_spec.shape[-1]),
            keep=loaded,
        )

    def check(self, input_shape: tuple[int, ...], classes: int, dataset: str) -> None:
        """Refuse data that does not fit.

        Raises:
            KdistillError: with both shapes.
        """
        fits = len(self.input_shape) == len(input_shape) + 1 and all(
            mine in (None, theirs) for mine, theirs in zip(self.input_shape[1:], input_shape, strict=True)
        )
        if not fits:
            raise KdistillError(
                f"{self.path} takes rows of shape {self.input_shape[1:]}, and those of {dataset} are {input_shape}"
            )
        if self.classes != classes:
            raise KdistillError(f"{self.path} gives {self.classes} logits, and {dataset} has {classes} classes")

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (rows, classes) of one block of inputs (rows, ...)."""
        tensor = tf.convert_to_tensor(inputs)
        fed = tensor if self.input_dtype == tensor.dtype == tf.uint8 else tf.cast(scaled(tensor), self.input_dtype)
        return np.asarray(tf.cast(self.call(**{self.input_name: fed})[self.output_name], tf.float32))

    def predict(self, blocks: Iterator[NDArray[Any]]) -> NDArray[np.float32]:
        """Logits of all blocks, (rows, classes)."""
        return np.concatenate([self.logits(block) for block in blocks])
