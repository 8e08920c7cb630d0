"""Export formats: how a network is written for another runtime, and run there. Each format needs an optional extra."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.errors import KdistillError

DESCRIPTION = "kdistill.json"  # the name of the description in a file's metadata
OPSET = 15  # of ONNX, supported by runtimes since 2021; quantization per channel needs at least 13
TIMED_CALLS = 200

Inputs = NDArray[np.float32]
Logits = NDArray[np.float32]
Runtime = Callable[[Inputs], Logits]  # inputs (rows, ...) to logits (rows, classes), for any number of rows


def write_tflite(saved_model: Path, file: Path, quantize: str, calibration: Inputs | None) -> None:
    """Write a SavedModel as a `.tflite` file; see `Format.write`."""
    from kdistill.backend import tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        converter.representative_dataset = lambda: ([row[None]] for row in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]  # an error rather than float32
    file.write_bytes(converter.convert())


def describe_tflite(content: bytes, description: str) -> bytes:
    """Add a description to the metadata of a `.tflite` file."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(description.encode(), np.uint8)
    entry.name, entry.buffer = DESCRIPTION, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def run_tflite(file: Path, threads: int) -> Runtime:
    """Load a `.tflite` file into LiteRT (formerly TensorFlow Lite) on the CPU."""
    from ai_edge_litert.interpreter import Interpreter

    interpreters: dict[tuple[int, ...], Any] = {}  # by the shape of the inputs

    def logits(inputs: Inputs) -> Logits:
        if inputs.shape not in interpreters:
            interpreter = Interpreter(model_path=str(file), num_threads=threads)
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], inputs.shape)
            interpreter.allocate_tensors()
            interpreters[inputs.shape] = interpreter
        interpreter = interpreters[inputs.shape]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))

    return logits


def write_onnx(saved_model: Path, file: Path, quantize: str, calibration: Inputs | None) -> None:
    """Write a SavedModel as an `.onnx` file; see `Format.write`. Leaves intermediate files beside it."""
    import onnx
    import tf2onnx

    from kdistill.backend import tf
    from kdistill.networks.canonical import canonical_onnx
    from kdistill.networks.saved_models import SavedNetwork

    network = SavedNetwork.load(saved_model)
    signature = [tf.TensorSpec(network.input_shape, network.input_dtype, name="inputs")]
    serve = tf.function(lambda inputs: {"logits": network.call(inputs)}, input_signature=signature)
    model, _ = tf2onnx.convert.from_function(serve, signature, opset=OPSET)
    canonical_onnx(model)
    if quantize == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    if calibration is not None:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        plain, prepared = file.with_name("plain.onnx"), file.with_name("prepared.onnx")
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # symbolic shapes need SymPy, and there are none
        rows = iter(calibration)
        reader = SimpleNamespace(get_next=lambda: next(({"inputs": row[None]} for row in rows), None))
        # Given the path instead of the model, it would write beside it, and only half of it on a full disk.
        quantization.quantize_static(onnx.load(prepared), file, reader, per_channel=True)
        model = onnx.load(file)
    file.write_bytes(model.SerializeToString(deterministic=True))


def describe_onnx(content: bytes, description: str) -> bytes:
    """Add a description to the `metadata_props` of an `.onnx` file."""
    import onnx

    model = onnx.load_from_string(content)
    model.metadata_props.add(key=DESCRIPTION, value=description)
    return bytes(model.SerializeToString(deterministic=True))


def run_onnx(file: Path, threads: int) -> Runtime:
    """Load an `.onnx` file into ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda inputs: np.asarray(session.run(None, {entry.name: inputs})[0])


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        packages: the names of the modules that it needs.
        write: takes a SavedModel with one input and one output, the file to write, the quantization (`none`, `float16`
            for the weights, or `int8` for the weights and the arithmetic), and, for int8, calibration rows (rows, ...).
            The file has float32 inputs and outputs for any number of rows.
        describe: takes the bytes of a file and a JSON text; returns the bytes with the text in the file's metadata.
        run: takes a file and a number of threads; returns the function that computes logits.
    """

    packages: tuple[str, ...]
    write: Callable[[Path, Path, str, Inputs | None], None]
    describe: Callable[[bytes, str], bytes]
    run: Callable[[Path, int], Runtime]


FORMATS = {
    "tflite": Format(("ai_edge_litert",), write_tflite, describe_tflite, run_tflite),
    "onnx": Format(("tf2onnx", "onnx", "onnxruntime"), write_onnx, describe_onnx, run_onnx),
}


def missing_packages(file_format: str) -> list[str]:
    """Return the packages of a format that are not installed."""
    return [package for package in FORMATS[file_format].packages if importlib.util.find_spec(package) is None]


def require_packages(file_format: str) -> None:
    """Check that the packages of a format are installed.

    Raises:
        KdistillError: with the command that installs them.
    """
    if packages := missing_packages(file_format):
        raise KdistillError(
            f"--format {file_format} needs {' and '.join(packages)}, not installed here: "
            f"pip install 'kdistill[{file_format}]'"
        )


def save_in_float32(model_file: Path, precision: str, directory: Path) -> Path:
    """Write a SavedModel that computes in float32 throughout, with the weights of a `model.keras`.

    A network that was trained in mixed precision computes in bfloat16 or float16, which LiteRT and ONNX Runtime do not
    support on a CPU. Its weights are float32.
    """
    from kdistill.backend import keras
    from kdistill.networks import saved_models

    trained = keras.models.load_model(model_file)
    network = keras.models.model_from_json(trained.to_json().replace(f'"{precision}"', '"float32"'))
    network.set_weights(trained.get_weights())
    saved_models.save(network, directory)
    return directory / "saved_model"


def runtime_inputs(inputs: NDArray[Any]) -> Inputs:
    """Return inputs (rows, ...) as a network takes them; see `saved_models.scale_inputs`."""
    from kdistill.backend import tf
    from kdistill.networks.saved_models import scale_inputs

    return np.asarray(scale_inputs(tf.convert_to_tensor(inputs)))


def error_line(error: BaseException) -> str:
    """Return the message of a converter's or runtime's error in one line, without TensorFlow's location in the graph."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line.rsplit("): ", 1)[-1]


def median_latency(runtime: Runtime, row: Inputs) -> float:
    """Return the median time of a call with one row, in milliseconds.

    Args:
        runtime: the network to measure.
        row: its inputs, (1, ...).
    """
    runtime(row)  # the first call may build something
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        runtime(row)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)
