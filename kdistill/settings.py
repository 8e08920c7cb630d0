"""What the stages can be told: frozen, validated once, where a wrong value is first seen. Standard library only."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

from kdistill.errors import UsageError

Schedule = Literal["constant", "cosine"]
Optimizer = Literal["adam", "sgd", "rmsprop", "adamw"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Xla = Literal["auto", "on", "off"]
PictureFormat = Literal["png", "svg", "pdf"]
ExportFormat = Literal["tflite", "onnx"]
Quantize = Literal["none", "int8", "float16"]

TEMPERATURES = (0.01, 10_000.0)  # beyond these a softmax in float32 is an arg max or a constant
MODELS = "cnn, small, or mlp-H with H units in each of two hidden layers, as mlp-800"
MLP = re.compile(r"mlp-([1-9]\d{0,4})")
NAME = re.compile(r"[^\W_][\w.-]{0,99}", re.ASCII)


def _whole(option: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        need = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UsageError(f"--{option} is {value}: it needs a whole number, {need}")


def _choice(option: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise UsageError(f"--{option} is {value!r}: it needs one of {', '.join(get_args(choices))}")


def check_name(option: str, name: str) -> str:
    """A name of an artifact, which becomes a file name and must not leave its directory.

    Raises:
        UsageError: if it is not 1 to 100 ASCII letters, digits, `-`, `_` or `.`, the first a letter or a digit.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"--{option} is {name!r}: a name has 1 to 100 letters, digits, '-', '_' or '.', and begins with a letter "
            "or a digit"
        )
    return name


def check_temperature(temperature: float) -> float:
    """A temperature T for softmax(logits / T).

    Raises:
        UsageError: if it is not a number in `TEMPERATURES`.
    """
    low, high = TEMPERATURES
    if not low <= temperature <= high:  # false for NaN too
        raise UsageError(f"--temperature is {temperature:g}: it needs a number from {low:g} to {high:g}")
    return temperature


def check_alpha(alpha: float) -> float:
    """The weight of the hard labels.

    Raises:
        UsageError: if it is not in [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"--alpha is {alpha:g}: the weight of the hard labels is a number from 0 to 1")
    return alpha


def check_model(option: str, model: str) -> str:
    """The name of a built-in network.

    Raises:
        UsageError: listing them.
    """
    if model not in ("cnn", "small") and not MLP.fullmatch(model):
        raise UsageError(f"--{option} {model} is unknown: the networks are {MODELS}")
    return model


def check_batch_size(batch_size: int) -> int:
    """Rows a call.

    Raises:
        UsageError: if it is below 1.
    """
    _whole("batch-size", batch_size, 1)
    return batch_size


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained; teachers and students have the same choices.

    Raises:
        UsageError: naming the option, the value it got and what it needs.
    """

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    optimizer: Optimizer = "adam"
    early_stopping: int | None = None
    validation_fraction: float = 0.0
    seed: int = 0
    precision: Precision = "float32"
    xla: Xla = "auto"

    def __post_init__(self) -> None:
        _whole("epochs", self.epochs, 1)
        check_batch_size(self.batch_size)
        _whole("seed", self.seed, 0, 2**32 - 1)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"--learning-rate is {self.learning_rate:g}: it needs a finite number above 0")
        if not 0.0 <= self.validation_fraction <= 0.9:
            raise UsageError(f"--validation-fraction is {self.validation_fraction:g}: it needs a number from 0 to 0.9")
        _choice("schedule", self.schedule, Schedule)
        _choice("optimizer", self.optimizer, Optimizer)
        _choice("precision", self.precision, Precision)
        _choice("xla", self.xla, Xla)
        if self.early_stopping is not None:
            _whole("early-stopping", self.early_stopping, 1)
            if self.validation_fraction == 0:
                raise UsageError(
                    "--early-stopping chooses an epoch, and the test split is not for choosing: "
                    "add --validation-fraction 0.1"
                )


@dataclass(frozen=True, kw_only=True)
class TrainTeacher:
    """The settings of `train-teacher`."""

    dataset: str = "digits"
    model: str = "cnn"
    name: str = "teacher"
    training: Training = Training()

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_model("model", self.model)


@dataclass(frozen=True, kw_only=True)
class Soften:
    """The settings of `soften`. A dataset of None is the one that the teacher was trained on."""

    temperature: float = 20.0
    teacher: str = "teacher"
    dataset: str | None = None
    name: str = "soft-targets"
    batch_size: int = 1000

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_name("teacher", self.teacher)
        check_name("name", self.name)
        check_batch_size(self.batch_size)


@dataclass(frozen=True, kw_only=True)
class TrainStudent:
    """The settings of `train-student`.

    None stands for what the soft-target file says: its temperature, its dataset, its teacher's architecture.
    """

    alpha: float = 0.1
    temperature: float | None = None
    soft_targets: str = "soft-targets"
    model: str | None = None
    dataset: str | None = None
    name: str = "student"
    training: Training = Training()

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.temperature is not None:
            check_temperature(self.temperature)
        check_name("soft-targets", self.soft_targets)
        check_name("name", self.name)
        if self.model is not None:
            check_model("model", self.model)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The settings of `plot`. No networks means all of the workspace."""

    networks: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("png",)
    soft_targets: str = "soft-targets"

    def __post_init__(self) -> None:
        for name in self.networks:
            check_name("network", name)
        for picture_format in self.formats:
            _choice("format", picture_format, PictureFormat)
        check_name("soft-targets", self.soft_targets)


@dataclass(frozen=True, kw_only=True)
class Export:
    """The settings of `export`; an export's name says them all, `NETWORK-FORMAT` or `NETWORK-FORMAT-QUANTIZE`."""

    network: str = "student"
    format: ExportFormat = "tflite"
    quantize: Quantize = "none"

    def __post_init__(self) -> None:
        check_name("network", self.network)
        _choice("format", self.format, ExportFormat)
        _choice("quantize", self.quantize, Quantize)

    @property
    def name(self) -> str:
        return f"{self.network}-{self.format}" + ("" if self.quantize == "none" else f"-{self.quantize}")

    @classmethod
    def named(cls, name: str) -> Export | None:
        """The settings of an export with this name, None where no export is so called."""
        for file_format, quantize in product(get_args(ExportFormat), get_args(Quantize)):
            ending = cls(format=file_format, quantize=quantize).name.removeprefix(cls.network)
            if name.endswith(ending) and NAME.fullmatch(name.removesuffix(ending)):
                return cls(network=name.removesuffix(ending), format=file_format, quantize=quantize)
        return None
