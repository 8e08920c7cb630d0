"""Networks: the built-in ones, and what is written of a trained one and read again."""

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
from kdistill.settings import check_model

layers = keras.layers


def build(
    model: str, input_shape: tuple[int, ...], classes: int, *, role: str, seed: int, precision: str
) -> keras.Model:
    """A new network that gives logits, with weights drawn from the role and the seed.

    Args:
        model: `cnn` (the teacher of Tensorflow-Knowledge-Distillation), `small` (its student) or `mlp-H`.
        input_shape: of one row.
        classes: how many logits.
        role: `teacher` or `student`; names the last layer, and keeps the two from starting alike at one seed.
        seed: a whole number below 2^32.
        precision: a Keras dtype policy; logits are float32 under any.

    Raises:
        KdistillError: if there is no such network, or none for such inputs.
    """
    keras.utils.set_random_seed(role_seed(seed, role))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        body = _body(model, input_shape)
        logits = layers.Dense(classes, dtype="float32", name=f"{role}_logits")
        return keras.Sequential([keras.Input(input_shape), *body, logits], name=role)
    finally:
        keras.config.set_dtype_policy(before)


def role_seed(seed: int, role: str) -> int:
    """A seed of its own for each role."""
    return int(np.random.SeedSequence([seed, *role.encode()]).generate_state(1)[0])


def _body(model: str, input_shape: tuple[int, ...]) -> list[Any]:
    if model == "cnn":
        return _cnn(input_shape)
    if model == "small":
        return [layers.Flatten(), layers.Dense(10, activation="relu")]
    check_model("model", model)
    units = int(model.removeprefix("mlp-"))
    return [layers.Flatten(), *(layers.Dense(units, activation="relu") for _ in range(2))]


def _cnn(input_shape: tuple[int, ...]) -> list[Any]:
    """The network of Tensorflow-Knowledge-Distillation's README; 64,570 parameters on 28x28 inputs of 10 classes."""
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 10:
        raise KdistillError(
            f"--model cnn needs images of at least 10x10, and the rows here have shape {input_shape}: --model mlp-800"
        )
    channel = [layers.Reshape((*input_shape, 1))] if len(input_shape) == 2 else []
    convolutions = [
        layer for _ in range(2) for layer in (layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D())
    ]
    return [*channel, *convolutions, layers.Flatten(), *(layers.Dense(56, activation="relu") for _ in range(4))]


def table(model: keras.Model) -> list[tuple[str, str, str]]:
    """Name and type, output shape, and number of parameters of each layer, and the total."""
    rows = [
        (
            f"{layer.name} ({type(layer).__name__})",
            " x ".join(map(str, layer.output.shape[1:])),
            f"{layer.count_params():,}",
        )
        for layer in model.layers
    ]
    return [*rows, ("total", "", f"{model.count_params():,}")]


def save(model: keras.Model, directory: Path) -> None:
    """Write `saved_model/` and `model.keras` into a directory that is there.

    The SavedModel has one signature, `serving_default`: `inputs` (rows, ...) float32 to `logits` (rows, classes), for
    any number of rows. It is written through TensorFlow, since `keras.Model.export` stores every weight twice
    (Keras 3.15.1).
    """
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="inputs")
    served = tf.Module()
    served.weights = [variable.value for variable in model.variables]
    served.serve = tf.function(lambda inputs: {"logits": model(inputs, training=False)}, input_signature=[signature])
    with silent_stdout():
        tf.saved_model.save(served, str(directory / "saved_model"), signatures=served.serve)
        (directory / "saved_model" / "fingerprint.pb").unlink()  # optional, and random: the rest is the same each time
        model.save(directory / "model.keras")


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
