"""The settings of the commands that use networks: plot, report, evaluate, export, predict, correct-bias, status, verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import PurePath
from typing import Annotated

from kdistill.errors import UsageError
from kdistill.settings.catalog import PREDICTION_FILES
from kdistill.settings.checks import (
    NAME,
    Check,
    artifact_name,
    integer,
    network_name,
    nonempty,
    one_of,
    parse_frequencies,
    parsed_by,
)
from kdistill.settings.groups import ReadOptions
from kdistill.settings.options import Only, Settings, option
from kdistill.settings.shared import (
    DATASET_HELP,
    Cluster,
    Formats,
    MovedDataset,
    ReadsDataset,
    SoftTargetsName,
)


@dataclass(frozen=True, kw_only=True)
class Plot(Settings):
    """Draw the learning curves and the soft targets."""

    networks: Annotated[
        tuple[str, ...],
        option(
            "Teacher or student to draw. Repeat for several. Default: all.",
            artifact_name(),
            "Data",
            metavar="NAME",
            name="network",
            recorded=False,
        ),
    ] = ()
    soft_targets: SoftTargetsName = "soft-targets"
    formats: Formats = ("png",)


@dataclass(frozen=True, kw_only=True)
class Report(ReadsDataset):
    """Write a report to show to others: one HTML file that needs no network.

    It compares a distilled student with its teacher and with the same network from hard labels, and describes all
    artifacts that were made from their dataset.
    """

    student: Annotated[
        str | None,
        option(
            "Student to report on, or SWEEP/STUDENT. Default: student, or else the first one with soft targets.",
            network_name(),
            "Data",
            metavar="NAME",
        ),
    ] = None
    dataset: MovedDataset = None
    read: ReadOptions = ReadOptions()


@dataclass(frozen=True, kw_only=True)
class Evaluate(ReadsDataset):
    """Measure networks on their training and test rows, or on other labeled rows."""

    networks: Annotated[
        tuple[str, ...],
        option(
            "Teacher or student, or SWEEP/STUDENT. Repeat for several. Default: all teachers and students.",
            network_name(),
            "Data",
            metavar="NAME",
            name="network",
            recorded=False,
        ),
    ] = ()
    dataset: Annotated[
        str | None,
        option(
            "Labeled data to measure the networks on: its test rows, or all rows if it has no test rows. If its content is "
            "that of a recorded dataset, e.g. one that you moved, it replaces that dataset.",
            nonempty(),
            "Data",
            metavar="DATA",
            recorded=False,
        ),
    ] = None
    read: ReadOptions = ReadOptions()
    per_class: Annotated[
        bool, option("Also print the measures of each class, and what it is confused with, on the test or other rows.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Export(ReadsDataset):
    """Convert a network to TFLite or ONNX, and measure it.

    The name of an export holds its settings: `NETWORK-FORMAT` or `NETWORK-FORMAT-QUANTIZE`. A student of a sweep is
    `SWEEP/STUDENT`, and `SWEEP@STUDENT` in the name.
    """

    network: Annotated[
        str,
        option(
            "Student, or SWEEP/STUDENT, or a teacher if no student has this name.",
            network_name(),
            "Data",
            metavar="NAME",
            recorded=False,
        ),
    ] = "student"
    format: Annotated[
        str, option("tflite for phones and small devices (LiteRT), onnx for servers.", one_of("tflite", "onnx"))
    ] = "tflite"
    quantize: Annotated[
        str,
        option(
            "int8: weights and arithmetic. float16: weights. Inputs and logits stay float32.",
            one_of("none", "int8", "float16"),
        ),
    ] = "none"
    dataset: MovedDataset = None
    read: ReadOptions = ReadOptions()

    @property
    def name(self) -> str:
        """The name of the export."""
        ending = "" if self.quantize == "none" else f"-{self.quantize}"
        return f"{self.network.replace('/', '@')}-{self.format}{ending}"

    @classmethod
    def named(cls, name: str) -> Export | None:
        """Return the settings of the export of a name; None if no export has such a name."""
        for file_format, quantize in product(("tflite", "onnx"), ("none", "int8", "float16")):
            ending = cls(format=file_format, quantize=quantize).name.removeprefix(cls.network)
            network = name.removesuffix(ending)
            if name.endswith(ending) and network.count("@") <= 1 and all(map(NAME.fullmatch, network.split("@"))):
                return cls(network=network.replace("@", "/"), format=file_format, quantize=quantize)
        return None


PREDICTING = Check(
    "the name of a network or an export, SWEEP/STUDENT, or a .tflite or .onnx file",
    lambda value: (
        value.endswith((".tflite", ".onnx")) or Export.named(value) is not None or network_name().accepts(value)
    ),
)
PREDICTION_FILE = Check(
    f"a file name that ends with {', '.join(PREDICTION_FILES)}",
    lambda value: PurePath(value).suffix.lower() in PREDICTION_FILES and value.isprintable(),
)


@dataclass(frozen=True, kw_only=True)
class Predict(Settings):
    """Predict the classes, numbers or vectors of rows, and write them to a file.

    DATA needs no labels. Labels that it has are ignored.
    """

    data: Annotated[
        str,
        option(f"Rows to predict: {DATASET_HELP}", group="Data", metavar="DATA", recorded=False, positional=True),
    ]
    network: Annotated[
        str,
        option(
            "Student, or SWEEP/STUDENT, or a teacher if no student has this name; or the name of an export, or its .tflite "
            "or .onnx file.",
            PREDICTING,
            "Data",
            metavar="NAME",
            recorded=False,
        ),
    ] = "student"
    split: Annotated[
        str, option("Rows to predict, if the data has training and test rows.", one_of("train", "test"), "Data")
    ] = "train"
    output: Annotated[
        str,
        option(
            f"File to write: {', '.join(PREDICTION_FILES)}.",
            PREDICTION_FILE,
            metavar="FILE",
            recorded=False,
        ),
    ] = "predictions.csv"
    all: Annotated[bool, option("Also write the probability of each class.")] = False
    batch_size: Annotated[int, option("Rows per call of the network.", integer(1), "Compute")] = 1000
    cluster: Cluster = Cluster()
    read: Annotated[ReadOptions, Only(("inputs", "missing", "max_pixels", "data_format"))] = ReadOptions()

    def check_combinations(self) -> None:
        if self.read.missing == "drop":
            raise UsageError("--missing drop does not apply to predict, which leaves out no row: use --missing mean")

    @property
    def source(self) -> str:
        """The name of the data with its read options."""
        return self.read.named(self.data)


@dataclass(frozen=True, kw_only=True)
class CorrectBias(Settings):
    """Shift a student's output biases to match class frequencies.

    For students whose transfer set lacked classes or had them in other proportions. Test labels are not used.
    """

    student: Annotated[
        str,
        option("Student to correct. It stays as it is.", artifact_name(), "Data", metavar="NAME", recorded=False),
    ] = "student"
    frequencies: Annotated[
        str,
        option(
            "How often each class should be predicted: training, as in the training rows; uniform; or a number per class, "
            "e.g. 0.2,0.5,0.3.",
            parsed_by(parse_frequencies, "training, uniform, or numbers from 0 to 1 that sum to 1, e.g. 0.2,0.5,0.3"),
            "Objective",
            metavar="HOW",
        ),
    ] = "training"
    inputs: Annotated[
        str | None,
        option(
            "Data on whose inputs predictions are counted, labels ignored. Default: the training rows.",
            nonempty(),
            "Data",
            metavar="DATA",
            recorded=False,
        ),
    ] = None
    dataset: MovedDataset = None
    name: Annotated[
        str | None,
        option("Name of the corrected student. Default: STUDENT-corrected.", artifact_name(), recorded=False),
    ] = None

    def check_combinations(self) -> None:
        artifact_name().require("name", self.corrected)
        if self.corrected == self.student:
            raise UsageError(f"--name {self.name} is the student to correct, which stays as it is: choose another name")

    @property
    def corrected(self) -> str:
        """The name of the corrected student."""
        return self.name or f"{self.student}-corrected"

    def numbers(self) -> Sequence[float] | None:
        """Return the frequencies that are given as numbers; None if the data decides."""
        return parse_frequencies(self.frequencies)


@dataclass(frozen=True, kw_only=True)
class Status(Settings):
    """Show all artifacts, which are stale, and the next command.

    Also shows why an artifact is stale, and work that was interrupted.
    """

    check: Annotated[
        bool,
        option(
            "Exit with 1 if an artifact is stale, damaged or unfinished, if one that it needs is missing, or if there is none."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Verify(ReadsDataset):
    """Check every artifact against what its manifest records. Exits with 1 if anything differs."""

    dataset: MovedDataset = None
    read: ReadOptions = ReadOptions()
