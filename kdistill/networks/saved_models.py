"""Save networks, and load networks that output logits: SavedModels and `.keras` files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.backend import deterministic, keras, tf
from kdistill.console.native_stderr import silent_stdout
from kdistill.errors import KdistillError, first_line
from kdistill.networks import compilation, conventions
from kdistill.networks.canonical import canonical_keras, canonical_saved_model
from kdistill.networks.keras_files import load_keras_file
from kdistill.networks.layers import operations_in


def save(model: keras.Model, directory: Path, output: str = "logits") -> str | None:
    """Write `saved_model/` and `model.keras` to an existing directory.

    The SavedModel has one signature, `serving_default`: from `inputs` (rows, ...) of the model's input dtype to `logits`
    (rows, classes) float32, for any number of rows. It is written by TensorFlow because `keras.Model.export` stores all
    weights twice (Keras 3.15.1).

    Args:
        model: the network.
        directory: where to write.
        output: the name of the output, if it is not `logits`.

    Returns:
        A warning if Keras cannot write `model.keras` because of custom layers, else None.

    Raises:
        KdistillError: if TensorFlow cannot write the SavedModel.
    """
    saved_model, keras_file = directory / "saved_model", directory / "model.keras"
    inputs = model.inputs[0]
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    lookups = (getattr(operation, "_lookup_layer", operation) for operation in operations_in(model))
    tables = (getattr(lookup, "lookup_table", None) for lookup in lookups)
    module.tables = [table for table in tables if table is not None]
    module.serve = tf.function(
        lambda inputs: {output: tf.cast(model(inputs, training=False), tf.float32)},
        input_signature=[tf.TensorSpec(inputs.shape, inputs.dtype, name="inputs")],
        autograph=False,
    )
    with silent_stdout():
        try:
            tf.saved_model.save(module, str(saved_model), signatures=module.serve)
        except (AssertionError, ValueError) as error:
            raise KdistillError(f"TensorFlow cannot save this network: {first_line(error)}") from error
        (saved_model / "fingerprint.pb").unlink()  # It is optional and random.
        canonical_saved_model(saved_model / "saved_model.pb")
        try:
            model.save(keras_file)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a layer's get_config raises
            keras_file.unlink(missing_ok=True)
            reason = " ".join(str(error).split())[:200].strip()
            return f"model.keras is missing because Keras cannot save this network ({reason}); saved_model is complete"
        canonical_keras(keras_file)
    return None


def scale_inputs(inputs: Any) -> Any:
    """Return a tensor of inputs as networks take it: uint8 scaled to [0, 1], other integers as int32, floats as float32, texts."""
    if inputs.dtype == tf.string:
        return inputs
    if inputs.dtype == tf.uint8:
        return tf.cast(inputs, tf.float32) / 255.0
    return tf.cast(inputs, tf.int32 if inputs.dtype.is_integer else tf.float32)


@dataclass(frozen=True)
class SavedNetwork:
    """A network that was loaded from a SavedModel, without Keras objects, or from a `.keras` file.

    Attributes:
        path: the SavedModel or file.
        call: takes a tensor of inputs, and returns a tensor.
        input_shape: with the batch dimension; None if any shape fits.
        input_dtype: a TensorFlow dtype.
        classes: the size of the output; None if unknown.
        loaded: the loaded object, without which the variables would be deleted.
        raw: whether uint8 inputs stay 0 to 255 instead of being scaled to [0, 1].
        rows: the number of rows of each call, which fewer rows are padded to; None if any number fits.
    """

    path: Path
    call: Callable[[Any], Any]
    input_shape: tuple[int | None, ...] | None
    input_dtype: Any
    classes: int | None
    loaded: Any
    raw: bool = False
    rows: int | None = None
    parallel: ClassVar[bool] = True

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def load(
        cls, path: Path, *, signature: str | None = None, output: str | None = None, raw: bool = False
    ) -> SavedNetwork:
        """Load a network.

        Args:
            path: the directory of a SavedModel, or a `.keras` file.
            signature: the signature of a SavedModel. Default: `serving_default`, or the only one.
            output: the name of an output. Default: the only one.
            raw: whether uint8 inputs stay 0 to 255 instead of being scaled to [0, 1].

        Raises:
            KdistillError: if the file is damaged, the network has several inputs, or the signature or output is missing.
        """
        deterministic()
        network = _open_keras(path, output) if path.suffix == ".keras" else _open_saved_model(path, signature, output)
        return replace(network, raw=raw, rows=network.input_shape[0] if network.input_shape else None)

    def compiled(self, rows: int) -> SavedNetwork:
        """Return the network compiled by XLA for calls with this many rows, if there is a GPU and its inputs are not texts."""
        if not tf.config.list_logical_devices("GPU") or self.input_dtype == tf.string:
            return self
        return replace(self, call=compilation.compiled_if_possible(self.call), rows=self.rows or rows)

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int | None, dataset: str) -> None:
        """Check that the rows and the number of outputs of a dataset fit the network; None fits any number.

        Raises:
            KdistillError: with both shapes, or both numbers of classes.
        """
        shape = None if self.input_shape is None else self.input_shape[1:]
        fits = shape is None or conventions.fits(shape, input_shape)
        if not fits or (self.input_dtype != "string" if input_dtype == "string" else not _is_number(self.input_dtype)):
            raise KdistillError(
                f"{self.path} takes rows of shape {'any' if shape is None else shape} {self.input_dtype.name}, but the "
                f"rows of {dataset} have shape {input_shape} {input_dtype}"
            )
        conventions.check_outputs(self.classes, classes, self.path, dataset)

    def restore(self, path: Path) -> SavedNetwork | None:
        """Read the weights of another SavedModel with the same graph, both written by `save`, into this network.

        Returns:
            The network with its new path, or None if the weights do not fit. In either case, do not use this one again.
        """
        variables = getattr(self.loaded, "weights", ())
        names = [f"weights/{place}/.ATTRIBUTES/VARIABLE_VALUE" for place in range(len(variables))]
        try:
            reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
            if {*names, "_CHECKPOINTABLE_OBJECT_GRAPH"} != set(reader.get_variable_to_shape_map()):
                return None
            for variable, name in zip(variables, names, strict=True):
                variable.assign(reader.get_tensor(name))
        except (ValueError, TypeError, RuntimeError, tf.errors.OpError):
            return None
        return replace(self, path=path)

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the output for a block of inputs (rows, ...), (rows, classes).

        External networks may output probabilities instead of logits.

        Raises:
            KdistillError: if the network fails or its output has another shape.
        """
        return conventions.in_batches(self._call, inputs, self.rows)

    def _call(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        tensor = tf.raw_ops.Identity(input=inputs)  # copies once; `convert_to_tensor` copies twice
        raw = self.raw or (tensor.dtype == tf.uint8 and self.input_dtype.is_integer)
        try:
            output = np.asarray(tf.cast(self.call(_as_inputs(tensor, self.input_dtype, raw=raw)), tf.float32))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError, TypeError) as error:
            raise KdistillError(f"{self.path} fails on rows of shape {inputs.shape[1:]}: {first_line(error)}") from None
        conventions.check_output(output, inputs, self.path)
        return output


@tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]  # divides in place
def _as_inputs(inputs: Any, dtype: Any, *, raw: bool) -> Any:
    """Return a tensor of inputs, scaled unless they are `raw`, with the type that a network takes."""
    return tf.cast(inputs if raw else scale_inputs(inputs), dtype)


def _is_number(dtype: Any) -> bool:
    return bool(dtype.is_floating or dtype.is_integer)


def _open_saved_model(path: Path, signature: str | None, output: str | None) -> SavedNetwork:
    try:
        loaded = tf.saved_model.load(str(path))
    except tf.errors.ResourceExhaustedError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, tf.errors.OpError) as error:
        raise KdistillError(
            f"{path} is not a SavedModel or is damaged: {first_line(error)}; write or copy it again"
        ) from None
    if not loaded.signatures:
        raise KdistillError(
            f"{path} lacks signatures; write it with tf.saved_model.save(model, path, signatures=function)"
        )
    default = "serving_default" if "serving_default" in loaded.signatures else None
    function = loaded.signatures[conventions.choose("signature", list(loaded.signatures), signature or default, path)]
    inputs = function.structured_input_signature[1]
    conventions.check_one_input(path, list(inputs))
    ((input_name, spec),) = inputs.items()
    output = conventions.choose("output", list(function.structured_outputs), output, path)
    shape = function.structured_outputs[output].shape
    return SavedNetwork(
        path=path,
        call=lambda inputs: function(**{input_name: inputs})[output],
        input_shape=None if spec.shape.rank is None else tuple(spec.shape),
        input_dtype=spec.dtype,
        classes=shape[-1] if shape.rank else None,
        loaded=loaded,
    )


def _open_keras(path: Path, output: str | None) -> SavedNetwork:
    model = load_keras_file(path, "save it as a SavedModel, which needs no code: model.export(DIRECTORY)")
    conventions.check_one_input(path, model.inputs)
    names = [str(name) for name in getattr(model, "output_names", ["output"])]
    place = names.index(conventions.choose("output", names, output, path))
    predict = tf.function(lambda inputs: keras.tree.flatten(model(inputs, training=False))[place])
    return SavedNetwork(
        path=path,
        call=predict,
        input_shape=tuple(model.inputs[0].shape),
        input_dtype=tf.as_dtype(model.inputs[0].dtype),
        classes=model.outputs[place].shape[-1],
        loaded=model,
    )
