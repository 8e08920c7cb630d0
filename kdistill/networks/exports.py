"""A network as a file for another runtime, and that runtime. The packages for both are optional extras."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError

DESCRIPTION = "kdistill.json"  # the name of the metadata in a file that describes the network
OPSET = 15  # of ONNX, known to runtimes since 2021; quantization by channel takes 13
TIMED_CALLS = 200

Inputs = NDArray[np.float32]
Logits = NDArray[np.float32]
Runtime = Callable[[Inputs], Logits]  # inputs (rows, ...) to logits (rows, classes), for any number of rows


def in_float32(model_file: Path, precision: str, directory: Path) -> Path:
    """A SavedModel in `directory` with the weights of a `model.keras`, which computes in float32 throughout.

    A network that was trained in mixed precision computes in bfloat16 or float16, which TFLite and ONNX Runtime on a
    CPU do not; its weights are float32 all the same.
    """
    from kdistill.backend import keras
    from kdistill.networks import saved_models

    trained = keras.models.load_model(model_file)
    twin = keras.models.model_from_json(trained.to_json().replace(f'"{precision}"', '"float32"'))
    twin.set_weights(trained.get_weights())
    saved_models.save(twin, directory)
    return directory / "saved_model"


def to_tflite(saved_model: Path, file: Path, quantize: str, calibration: Inputs | None) -> None:
    """Write a SavedModel as a `.tflite` with float32 inputs and outputs, of which rows may be resized.

    Args:
        saved_model: with one input and one output.
        file: where to.
        quantize: `none`, `float16` (of the weights) or `int8` (of weights and everything that is computed).
        calibration: (rows, ...), from which int8 takes the ranges of what is computed.
    """
    from kdistill.backend import tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        converter.representative_dataset = lambda: ([row[None]] for row in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]  # or an error
    file.write_bytes(converter.convert())


def to_onnx(saved_model: Path, file: Path, quantize: str, calibration: Inputs | None) -> None:
    """Write a SavedModel as an `.onnx` with float32 inputs and outputs, `rows` of which are free; as `to_tflite`.

    Beside `file`, others are left that were on the way to it.
    """
    import onnx
    import tf2onnx

    from kdistill.backend import tf
    from kdistill.networks.saved_models import SavedNetwork

    network = SavedNetwork.load(saved_model)
    signature = [tf.TensorSpec(network.input_shape, network.input_dtype, name="inputs")]
    serve = tf.function(
        lambda inputs: {"logits": network.call(inputs)},
        input_signature=signature,
    )
    model, _ = tf2onnx.convert.from_function(serve, signature, opset=OPSET)
    model = _canonical(model)
    if quantize == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    if calibration is not None:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        plain, ready = file.with_name("plain.onnx"), file.with_name("ready.onnx")
        onnx.save(model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)  # shapes are plain here, and it takes SymPy
        model = onnx.load(ready)  # given its path, it would write beside it, and on a full disk only half
        quantization.quantize_static(model, file, _rows_of(calibration), per_channel=True)
        model = onnx.load(file)
    file.write_bytes(model.SerializeToString(deterministic=True))


def describe_tflite(content: bytes, description: str) -> bytes:
    """A `.tflite` with a text added to its metadata, in a buffer of its own."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(description.encode(), np.uint8)
    entry.name, entry.buffer = DESCRIPTION, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def describe_onnx(content: bytes, description: str) -> bytes:
    """An `.onnx` with a text added to its `metadata_props`."""
    import onnx

    model = onnx.load_from_string(content)
    model.metadata_props.add(key=DESCRIPTION, value=description)
    return bytes(model.SerializeToString(deterministic=True))


def _canonical(model: Any) -> Any:
    """The same graph with names and order given by the graph alone; in tf2onnx they hang on the order of sets."""
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return model  # a body of a loop sees the names around it
    names = {"": ""} | {value.name: value.name for value in (*graph.input, *graph.output)}
    for place, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{place}"
        for tensors in (node.input, node.output):
            tensors[:] = [names.setdefault(name, f"tensor_{len(names)}") for name in tensors]
    order = {name: place for place, name in enumerate(names)}
    weights = sorted((w for w in graph.initializer if w.name in order), key=lambda weight: order[weight.name])
    for weight in weights:
        weight.name = names[weight.name]
    kept = [weight.SerializeToString() for weight in weights]
    del graph.initializer[:]
    for weight in kept:
        graph.initializer.add().ParseFromString(weight)
    del graph.value_info[:]
    graph.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    return model


def _rows_of(calibration: Inputs) -> Any:
    """The rows as ONNX Runtime's quantization reads them, one at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Inputs] = iter(calibration)

        def get_next(self) -> dict[str, Inputs] | None:
            row = next(self.left, None)
            return None if row is None else {"inputs": row[None]}

    return Rows()


def litert(file: Path, threads: int) -> Runtime:
    """LiteRT (which was TensorFlow Lite) on the CPU."""
    from ai_edge_litert.interpreter import Interpreter

    interpreters: dict[tuple[int, ...], Any] = {}  # each is made for one shape

    def logits(inputs: Inputs) -> Logits:
        if inputs.shape not in interpreters:
            fresh = Interpreter(model_path=str(file), num_threads=threads)
            fresh.resize_tensor_input(fresh.get_input_details()[0]["index"], inputs.shape)
            fresh.allocate_tensors()
            interpreters[inputs.shape] = fresh
        interpreter = interpreters[inputs.shape]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))

    return logits


def onnx_runtime(file: Path, threads: int) -> Runtime:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda inputs: np.asarray(session.run(None, {given.name: inputs})[0])


@dataclass(frozen=True)
class Format:
    """A file format: which packages it needs, how it is written, described and run.

    `describe` takes the bytes of a file and the JSON text to add to its metadata, and returns the bytes of the new file.
    """

    packages: tuple[str, ...]
    write: Callable[[Path, Path, str, Inputs | None], None]
    describe: Callable[[bytes, str], bytes]
    run: Callable[[Path, int], Runtime]


FORMATS = {
    "tflite": Format(("ai_edge_litert",), to_tflite, describe_tflite, litert),
    "onnx": Format(("tf2onnx", "onnx", "onnxruntime"), to_onnx, describe_onnx, onnx_runtime),
}


def missing(file_format: str) -> list[str]:
    """The packages of a format that are not installed."""
    return [package for package in FORMATS[file_format].packages if importlib.util.find_spec(package) is None]


def require(file_format: str) -> None:
    """Refuse a format of which the packages are not installed.

    Raises:
        KdistillError: with the command that installs them.
    """
    if packages := missing(file_format):
        raise KdistillError(
            f"--format {file_format} needs {' and '.join(packages)}, not installed here: "
            f"pip install 'kdistill[{file_format}]'"
        )


def reason(error: Exception) -> str:
    """What a converter or a runtime complains of, in a line, without TensorFlow's places in its own graph."""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return first.rsplit("): ", 1)[-1]


def fed(inputs: NDArray[Any]) -> Inputs:
    """Inputs (rows, ...) as an exported network takes them, and every network: `saved_models.scale_inputs`."""
    from kdistill.backend import tf
    from kdistill.networks.saved_models import scale_inputs

    return np.asarray(scale_inputs(tf.convert_to_tensor(inputs)))


def median_latency(runtime: Runtime, row: Inputs) -> float:
    """Return the median time of a call with one row, in milliseconds.

    Args:
        runtime: The network to measure.
        row: Its inputs, (1, ...).
    """
    runtime(row)  # The first call also prepares the runtime.
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        runtime(row)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)
