"""ONNX networks as teachers: run by ONNX Runtime, with images in the axis order that the network takes."""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill import workspace
from kdistill.errors import KdistillError, one_line_errors
from kdistill.networks import conventions
from kdistill.networks.exports import error_line

FLOATS = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(double)": "f8"}
NUMBERS = FLOATS | {f"tensor({name})": name for name in ("uint8", "int8", "uint16", "int16", "int32", "int64")}
LAYOUTS = ("channels-last", "channels-first")
# CUDA must not round to TF32, nor choose its convolutions by a measurement: the same rows must have the same logits.
PROVIDERS = {
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"},
    "CPUExecutionProvider": {},
}
# onnx.proto: a tensor outside the file has the entry (key 1: "location", value 2: a path relative to the file).
EXTERNAL_DATA = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")


def digest(path: Path) -> str:
    """Return a digest of an `.onnx` file and of the files beside it with its weights, if there are any."""
    own = workspace.digest(path)
    with path.open("rb") as stream:
        if not path.stat().st_size:
            return own
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            ends = {match.end(): match[1][0] for match in EXTERNAL_DATA.finditer(content)}
            names = {content[end : end + length].decode(errors="replace") for end, length in ends.items()}
    files = sorted(name for name in names if "\0" not in name and (path.parent / name).is_file())
    if not files:
        return own
    parts = [own, *(f"{name} {workspace.digest(path.parent / name)}" for name in files)]
    return "sha256:" + hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class OnnxNetwork:
    """A network in an `.onnx` file.

    Attributes:
        session: ONNX Runtime's.
        input_name: the name of the input.
        input_shape: with the batch dimension, and None for unknown sizes; None if any shape fits.
        input_dtype: the type of the input.
        output: the name of the output.
        classes: the size of the output; None if unknown.
        raw: whether uint8 inputs stay 0 to 255 instead of being scaled to [0, 1].
        layout: of images, one of `LAYOUTS`; None if the shapes decide.
    """

    path: Path
    session: Any
    input_name: str
    input_shape: tuple[int | None, ...] | None
    input_dtype: np.dtype[Any]
    output: str
    classes: int | None
    raw: bool = False
    layout: str | None = None
    parallel: ClassVar[bool] = False  # a call uses all cores

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def load(cls, path: Path, *, output: str | None, raw: bool, layout: str | None) -> OnnxNetwork:
        """Load a network, on a GPU if ONNX Runtime has its CUDA provider.

        Args:
            path: an `.onnx` file. Weights in other files must be in its directory.
            output: the name of an output. Default: the only one with floats.
            raw: whether uint8 inputs stay 0 to 255 instead of being scaled to [0, 1].
            layout: of images, one of `LAYOUTS`; None if the shapes decide.

        Raises:
            KdistillError: if ONNX Runtime is not installed, the file is damaged, the network does not have one input of
                numbers, or the output is missing.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise KdistillError(f"{path} needs onnxruntime, which is not installed: pip install 'kdistill[onnx]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = workspace.threads()
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # Its errors are raised as well.
        available = onnxruntime.get_available_providers()
        providers = [(name, settings) for name, settings in PROVIDERS.items() if name in available]
        with one_line_errors(f"{path} cannot be loaded by ONNX Runtime", describe=_describe):
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        conventions.check_one_input(path, session.get_inputs())
        (entry,) = session.get_inputs()
        if entry.type not in NUMBERS:
            raise KdistillError(f"{path} takes {entry.type} (expected one of {', '.join(NUMBERS)})")
        outputs = {each.name: each for each in session.get_outputs() if each.type in FLOATS}
        if not outputs:
            types = ", ".join(f"{each.name}: {each.type}" for each in session.get_outputs())
            hint = "; convert it again with options={'zipmap': False}" if "seq(map(" in types else ""
            raise KdistillError(
                f"{path} has no output of floats, i.e. logits or probabilities (outputs: {types}{hint})"
            )
        chosen = outputs[conventions.choose("output", list(outputs), output, path)]
        return cls(
            path=path,
            session=session,
            input_name=entry.name,
            input_shape=_known_sizes(entry.shape),
            input_dtype=np.dtype(NUMBERS[entry.type]),
            output=chosen.name,
            classes=(_known_sizes(chosen.shape) or (None,))[-1],
            raw=raw,
            layout=layout,
        )

    def check(self, input_shape: tuple[int, ...], input_dtype: str, classes: int | None, dataset: str) -> None:
        """Check that the rows and classes of a dataset fit the network.

        Raises:
            KdistillError: with both shapes, or both numbers of classes.
        """
        self._layout(input_shape, f"the rows of {dataset} have shape {input_shape} {input_dtype}")
        conventions.check_outputs(self.classes, classes, self.path, dataset)

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the output for a block of inputs (rows, ...), (rows, classes): logits or probabilities.

        Raises:
            KdistillError: if the network fails or its output has another shape.
        """
        raw = self.raw or self.input_dtype.kind != "f"
        if inputs.dtype == np.uint8 and not raw:
            inputs = inputs.astype(np.float32) / np.float32(255)
        layout = self._layout(inputs.shape[1:], f"the rows have shape {inputs.shape[1:]}")
        values = np.ascontiguousarray(_arranged(inputs, layout), dtype=self.input_dtype)
        return conventions.in_batches(self._call, values, self.input_shape[0] if self.input_shape else None)

    def _layout(self, row_shape: tuple[int, ...], rows: str) -> str | None:
        """Return the layout that makes rows of a shape fit the network; None for rows as they are, without channels.

        Args:
            row_shape: without the batch dimension.
            rows: the rows in words, for messages.

        Raises:
            KdistillError: if the rows do not fit, or fit in both layouts.
        """
        shape = self.input_shape and self.input_shape[1:]
        images = len(row_shape) == 3 or (len(row_shape) == 2 and shape is not None and len(shape) == 3)
        layouts: list[str | None] = [None]
        if images:
            layouts = [self.layout] if self.layout else [*LAYOUTS]
        no_rows = np.empty((0, *row_shape), bool)
        found = [
            each for each in layouts if shape is None or conventions.fits(shape, _arranged(no_rows, each).shape[1:])
        ]
        if len(found) == 1:
            return found[0]
        takes = f"{self.path} takes rows of shape {'any' if shape is None else shape} {self.input_dtype}"
        if found:
            raise KdistillError(
                f"{takes}, and {rows}, so both axis orders are possible: pass --teacher-layout {' or '.join(LAYOUTS)}"
            )
        raise KdistillError(
            f"{takes}, but {rows}{f' (--teacher-layout {self.layout})' if images and self.layout else ''}"
        )

    def _call(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        with one_line_errors(f"{self.path} fails on rows of shape {inputs.shape[1:]}", describe=_describe):
            (output,) = self.session.run([self.output], {self.input_name: inputs})
        conventions.check_output(output, inputs, self.path)
        return np.asarray(output, np.float32)


def _arranged(inputs: NDArray[Any], layout: str | None) -> NDArray[Any]:
    """Return images (rows, height, width) or (rows, height, width, channels) with four axes in a layout.

    Without a layout, return any inputs as they are.
    """
    if layout is None:
        return inputs
    images = inputs[..., None] if inputs.ndim == 3 else inputs
    return np.moveaxis(images, -1, 1) if layout == "channels-first" else images


def _known_sizes(shape: list[Any]) -> tuple[int | None, ...] | None:
    """Return the sizes that ONNX Runtime reports, None for those with a name; None for an empty shape: it is unknown."""
    return tuple(size if isinstance(size, int) else None for size in shape) or None


def _describe(error: BaseException) -> str:
    return error_line(error).rpartition(" : ")[2]  # after "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : "
