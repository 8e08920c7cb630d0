"""SavedModels, out and in: what is written of a trained network, and any network that can be asked for logits."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import deterministic, keras, tf
from kdistill.console import silent_stdout
from kdistill.errors import KdistillError, first_line
from kdistill.networks.canonical import canonical_keras, canonical_saved_model
from kdistill.networks.layers import operations_in


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
            raise KdistillError(f"TensorFlow can't save this network: {first_line(error)}") from error
        (directory / "saved_model" / "fingerprint.pb").unlink()  # It is optional and random.
        canonical_saved_model(directory / "saved_model" / "saved_model.pb")
        try:
            model.save(directory / "model.keras")
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a layer's get_config raises
            (directory / "model.keras").unlink(missing_ok=True)
            why = " ".join(str(error).split())[:200].strip()
            return f"model.keras is left out, as Keras can't save this network ({why}); saved_model is whole"
        canonical_keras(directory / "model.keras")
    return None


def restore(loaded: Any, saved_model: Path) -> bool:
    """Give a loaded SavedModel of `save` the values that the variables of another have, which has the same graph.

    Returns:
        Whether that was possible; if not, the loaded one is of no use any more.
    """
    variables = getattr(loaded, "weights", ())
    names = [f"weights/{place}/.ATTRIBUTES/VARIABLE_VALUE" for place in range(len(variables))]
    try:
        reader = tf.train.load_checkpoint(str(saved_model / "variables" / "variables"))
        if {*names, "_CHECKPOINTABLE_OBJECT_GRAPH"} != set(reader.get_variable_to_shape_map()):
            return False
        for variable, name in zip(variables, names, strict=True):
            variable.assign(reader.get_tensor(name))
    except (ValueError, TypeError, RuntimeError, tf.errors.OpError):
        return False
    return True


def scale_inputs(inputs: Any) -> Any:
    """Inputs as a network takes them: uint8 scaled to [0, 1], other whole numbers as int32, the rest as float32.

    For tensors.
    """
    if inputs.dtype == tf.uint8:
        return tf.cast(inputs, tf.float32) / 255.0
    return tf.cast(inputs, tf.int32 if inputs.dtype.is_integer else tf.float32)


@dataclass(frozen=True)
class SavedNetwork:
    """A trained network, from a SavedModel (no Keras object is made of it) or a `.keras` file."""

    path: Path
    call: Callable[[Any], Any]
    input_shape: tuple[int | None, ...] | None  # with the batch dimension; None where it takes any
    input_dtype: Any
    classes: int | None
    keep: Any  # the loaded object: its variables die with it
    raw: bool = False

    @classmethod
    def load(
        cls, path: Path, *, signature: str | None = None, output: str | None = None, raw: bool = False
    ) -> SavedNetwork:
        """Load a network.

        Args:
            path: a SavedModel's directory, or a `.keras` file.
            signature: of a SavedModel that has several; `serving_default`, or the only one, unless told otherwise.
            output: of a network that has several.
            raw: give it uint8 inputs as they are, 0 to 255, and not scaled to [0, 1].

        Raises:
            KdistillError: if it is no such thing, or has no single input, or what was asked for isn't in it.
        """
        deterministic()
        if path.suffix == ".keras":
            return cls._load_keras(path, output, raw)
        try:
            loaded = tf.saved_model.load(str(path))
        except tf.errors.ResourceExhaustedError:
            raise
        except (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, tf.errors.OpError) as error:
            raise KdistillError(
                f"{path} is no SavedModel, or a damaged one: {first_line(error)}; write or copy it again"
            ) from None
        names = list(loaded.signatures)
        if not names:
            raise KdistillError(
                f"{path} has no signatures to call: write it with tf.saved_model.save(model, path, signatures=function)"
            )
        chosen = signature or ("serving_default" if "serving_default" in names else names[0])
        if chosen not in names or (signature is None and chosen != "serving_default" and len(names) > 1):
            there = "" if signature is None else f"no signature {signature!r}, only "
            raise KdistillError(
                f"{path} has {there or 'the signatures '}{', '.join(names)}: choose one with --signature"
            )
        function = loaded.signatures[chosen]
        inputs = function.structured_input_signature[1]
        if len(inputs) != 1:
            raise KdistillError(f"{path} has {len(inputs)} inputs ({', '.join(inputs)}): a network here takes one")
        ((input_name, spec),) = inputs.items()
        answer = _choose_output(list(function.structured_outputs), output, path)
        return cls(
            path=path,
            call=lambda fed: function(**{input_name: fed})[answer],
            input_shape=None if spec.shape.rank is None else tuple(spec.shape),
            input_dtype=spec.dtype,
            classes=_last(function.structured_outputs[answer].shape),
            keep=loaded,
            raw=raw,
        )

    @classmethod
    def _load_keras(cls, path: Path, output: str | None, raw: bool) -> SavedNetwork:
        if not zipfile.is_zipfile(path):
            raise KdistillError(f"{path} can't be loaded as a .keras file: it is none, or damaged")
        try:
            model = keras.saving.load_model(path, compile=False)
        except Exception as error:  # noqa: BLE001 - Keras raises what its layers raise
            raise KdistillError(
                f"{path} can't be loaded as a .keras file: {first_line(error).partition('. ')[0]}; as a SavedModel it needs no "
                "code: model.export(DIRECTORY)"
            ) from None
        if len(model.inputs) != 1:
            raise KdistillError(f"{path} has {len(model.inputs)} inputs: a network here takes one")
        names = [str(name) for name in getattr(model, "output_names", ["output"])]
        place = names.index(_choose_output(names, output, path))
        whole = tf.function(lambda fed: model(fed, training=False))

        def call(fed: Any) -> Any:
            return keras.tree.flatten(whole(fed))[place]

        (entry,) = model.inputs
        return cls(
            path=path,
            call=call,
            input_shape=tuple(entry.shape),
            input_dtype=tf.as_dtype(entry.dtype),
            classes=model.outputs[place].shape[-1],
            keep=model,
            raw=raw,
        )

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int, dataset: str) -> None:
        """Refuse data that does not fit.

        Raises:
            KdistillError: with both shapes, or both types.
        """
        mine = self.input_shape
        fits = mine is None or (
            len(mine) == len(input_shape) + 1
            and all(one in (None, other) for one, other in zip(mine[1:], input_shape, strict=True))
        )
        if not fits or not (self.input_dtype.is_floating or self.input_dtype.is_integer):
            wanted = "any shape" if mine is None else f"shape {mine[1:]}"
            raise KdistillError(
                f"{self.path} takes rows of {wanted} {self.input_dtype.name}, and those of {dataset} are {input_shape} "
                f"{input_dtype}"
            )
        if self.classes not in (None, classes):
            raise KdistillError(f"{self.path} gives {self.classes} logits, and {dataset} has {classes} classes")

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """What the network says of one block of inputs (rows, ...): (rows, classes).

        These are logits, or, of a network from outside, perhaps probabilities.

        Raises:
            KdistillError: if it says something of another shape, or fails.
        """
        fixed = self.input_shape[0] if self.input_shape else None
        if fixed is not None and len(inputs) != fixed:  # a network for batches of one size
            return np.concatenate([self._fixed(inputs[i : i + fixed], fixed) for i in range(0, len(inputs), fixed)])
        tensor = tf.convert_to_tensor(inputs)
        raw = self.raw or (self.input_dtype == tensor.dtype == tf.uint8)
        fed = tf.cast(tensor if raw else scale_inputs(tensor), self.input_dtype)
        try:
            said = np.asarray(tf.cast(self.call(fed), tf.float32))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError, TypeError) as error:
            raise KdistillError(f"{self.path} fails on rows of {inputs.shape[1:]}: {first_line(error)}") from None
        if said.ndim != 2 or len(said) != len(inputs):
            raise KdistillError(
                f"{self.path} gives {said.shape} for {len(inputs)} rows: it needs (rows, classes), one logit a class"
            )
        return said

    def _fixed(self, inputs: NDArray[Any], rows: int) -> NDArray[np.float32]:
        padding = [(0, rows - len(inputs)), *[(0, 0)] * (inputs.ndim - 1)]
        return self.logits(np.pad(inputs, padding))[: len(inputs)]


def _choose_output(names: list[str], wanted: str | None, path: Path) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        there = "the outputs " if wanted is None else f"no output {wanted!r}, only "
        raise KdistillError(f"{path} has {there}{', '.join(sorted(names))}: choose one with --output")
    return wanted


def _last(shape: Any) -> int | None:
    return shape[-1] if shape.rank else None
