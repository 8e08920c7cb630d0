"""What the stages can be told: frozen, validated once, where a wrong value is first seen. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, quote, urlencode

from kdistill.errors import UsageError

Schedule = Literal["constant", "cosine"]
Optimizer = Literal["adam", "sgd", "rmsprop", "adamw"]
Loss = Literal["kd", "mse", "dkd", "dist", "jsd", "reverse-kl"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Xla = Literal["auto", "on", "off"]
PictureFormat = Literal["png", "svg", "pdf"]
Mean = Literal["arithmetic", "geometric"]
TeacherOutput = Literal["auto", "logits", "probabilities"]
TeacherInput = Literal["scaled", "raw"]
Dtype = Literal["float32", "float16"]
DataFormat = Literal["npz", "npy", "hdf5", "csv", "parquet"]
ExportFormat = Literal["tflite", "onnx"]
Quantize = Literal["none", "int8", "float16"]

UNTEMPERED: tuple[Loss, ...] = ("mse",)
TEMPERATURES = (0.01, 10_000.0)  # beyond these a softmax in float32 is an arg max or a constant
MODELS = (
    "cnn, small, or mlp-H with H units in each of two hidden layers, as mlp-800; or your own: MODULE:FUNCTION, "
    "FILE.keras or keras.applications:NAME"
)
MLP = re.compile(r"mlp-([1-9]\d{0,4})")
OWN = re.compile(r".+\.keras|[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
NEW_WEIGHTS = "new"
AUGMENTATIONS = {
    "shift": (1, 1000),
    "crop": (1, 1000),
    "flip": (0, 0),
    "rotate": (0.1, 180),
    "zoom": (0.001, 0.9),
    "elastic": (0.1, 1000),
}
MOST_VIEWS = 10_000
WHOLE = ("shift", "crop")  # of these, in pixels
_PIXELS = re.compile(r"[1-9]\d{0,17}")
MAX_PIXELS = 50_000_000  # the default of --max-pixels
_IMAGE_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")
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


def check_network(option: str, name: str) -> str:
    """The name of a teacher or student, or `SWEEP/STUDENT` for a student of a sweep.

    Raises:
        UsageError: if it is no such name.
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(map(NAME.fullmatch, parts)):
        raise UsageError(f"--{option} is {name!r}: it needs the name of a teacher or student, or SWEEP/STUDENT")
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
    """The name of a network: a built-in one, a function of the user's, a file, or one of `keras.applications`.

    Raises:
        UsageError: listing the forms.
    """
    if model not in ("cnn", "small") and not MLP.fullmatch(model) and not OWN.fullmatch(model):
        raise UsageError(f"--{option} {model} is unknown: the networks are {MODELS}")
    return model


def check_weights(weights: str | None) -> str | None:
    """The weights that a network begins with: a file, or `new`; None is what goes with the network.

    Raises:
        UsageError: if it is no such name.
    """
    if weights not in (None, NEW_WEIGHTS) and not str(weights).endswith((".weights.h5", ".keras")):
        raise UsageError(
            f"--weights is {weights}: it needs a .weights.h5 or .keras file of the network, or {NEW_WEIGHTS}"
        )
    return weights


def check_batch_size(batch_size: int) -> int:
    """Rows a call.

    Raises:
        UsageError: if it is below 1.
    """
    _whole("batch-size", batch_size, 1)
    return batch_size


def check_augment(augment: str) -> tuple[tuple[str, float], ...]:
    """The steps of an augmentation, each a name of `AUGMENTATIONS` and how much of it, from `shift:2,flip` and the like.

    Raises:
        UsageError: if it is no such list.
    """
    found: dict[str, float] = {}
    for step in augment.split(","):
        name, _, amount = step.partition(":")
        low, high = AUGMENTATIONS.get(name, (1.0, 0.0))
        value = _number(amount) if amount or name != "flip" else 0.0
        if not low <= value <= high or (name in WHOLE and value != int(value)) or name in found:
            raise UsageError(
                f"--augment is {augment!r}: it needs one or more of shift:PIXELS, crop:PIXELS, flip, rotate:DEGREES, "
                "zoom:SHARE and elastic:PIXELS, each once, as shift:2,flip"
            )
        found[name] = value
    if "shift" in found and "crop" in found:
        raise UsageError(f"--augment is {augment!r}: shift and crop both move the picture: take one of them")
    return tuple(found.items())


def _number(text: str) -> float:
    """A number, or NaN where the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_dropout(dropout: str) -> tuple[float, float]:
    """The shares of inputs and of hidden units that are dropped, from `INPUT,HIDDEN`.

    Raises:
        UsageError: if it is no such pair.
    """
    shares = tuple(_number(share) for share in dropout.split(","))
    if len(shares) != 2 or not all(0 <= share <= 0.9 for share in shares):
        raise UsageError(f"--dropout is {dropout!r}: it needs two shares from 0 to 0.9, of inputs and of hidden units")
    return shares[0], shares[1]


def _positive(option: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"--{option} is {value:g}: it needs a finite number above 0")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained; teachers and students have the same choices.

    None is for what is not used. `dropout` is `INPUT,HIDDEN`, `augment` a list as `shift:2,flip`.

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
    memory: int = 512
    dropout: str | None = None
    max_norm: float | None = None
    weight_decay: float | None = None
    augment: str | None = None
    label_smoothing: float | None = None

    def __post_init__(self) -> None:
        if self.dropout is not None:
            check_dropout(self.dropout)
        if self.augment is not None:
            check_augment(self.augment)
        _positive("max-norm", self.max_norm)
        _positive("weight-decay", self.weight_decay)
        _whole("epochs", self.epochs, 1)
        check_batch_size(self.batch_size)
        _whole("seed", self.seed, 0, 2**32 - 1)
        _whole("memory", self.memory, 1)
        _positive("learning-rate", self.learning_rate)
        if not 0.0 <= self.validation_fraction <= 0.9:
            raise UsageError(f"--validation-fraction is {self.validation_fraction:g}: it needs a number from 0 to 0.9")
        if self.label_smoothing is not None and not 0 < self.label_smoothing < 1:
            raise UsageError(
                f"--label-smoothing is {self.label_smoothing:g}: it needs a number between 0 and 1, or to be left out"
            )
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
class Selection:
    """Which rows of a transfer set are used: all, unless told otherwise.

    Classes are lists such as `3` or `cat,dog`, of names or else numbers. `fraction` is of the rows that the classes
    leave, of each class alike; `rows_seed`, 0 unless told otherwise, says which.

    Raises:
        UsageError: naming the option, the value it got and what it needs.
    """

    omit_class: str | None = None
    only_classes: str | None = None
    fraction: float | None = None
    rows_seed: int | None = None

    def __post_init__(self) -> None:
        for option, value in (("omit-class", self.omit_class), ("only-classes", self.only_classes)):
            classes = listed(value)
            if not all(classes):
                raise UsageError(f"--{option} is {value!r}: it needs names or numbers of classes, as 3 or 7,8")
            if repeated := [one for one in classes if classes.count(one) > 1]:
                raise UsageError(f"--{option} {value} has {repeated[0]} twice")
        if self.omit_class is not None and self.only_classes is not None:
            raise UsageError("--omit-class and --only-classes say the same thing from either side: leave one out")
        if self.fraction is not None and not 0.0 < self.fraction <= 1.0:  # false for NaN too
            raise UsageError(f"--fraction is {self.fraction:g}: it needs a number above 0, and at most 1")
        if self.rows_seed is not None:
            _whole("rows-seed", self.rows_seed, 0, 2**32 - 1)
            if self.fraction is None:
                raise UsageError("--rows-seed says which rows a --fraction keeps: add --fraction 0.1, say")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Selection:
        """What a manifest's settings say, which may be older than the options."""
        return cls(**{field.name: settings.get(field.name) for field in fields(cls)})

    def settings(self) -> dict[str, Any]:
        """For a manifest: None where nothing is chosen by it."""
        return asdict(self) | {"rows_seed": None if self.fraction is None else self.seed}

    @property
    def seed(self) -> int:
        return self.rows_seed or 0

    def __str__(self) -> str:
        """As on the command line; empty where all rows are used."""
        said = ((name, value) for name, value in self.settings().items() if value is not None)
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in said)


def listed(values: str | None) -> list[str]:
    """The members of a list such as `7,8`."""
    return [] if values is None else [value.strip() for value in values.split(",")]


@dataclass(frozen=True, kw_only=True)
class TrainTeacher:
    """The settings of `train-teacher`. With `tensorboard` its event files are written beside the artifacts."""

    dataset: str = "digits"
    model: str = "cnn"
    weights: str | None = None
    name: str = "teacher"
    training: Training = Training()
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_model("model", self.model)
        check_weights(self.weights)


@dataclass(frozen=True, kw_only=True)
class Soften:
    """The settings of `soften`.

    A dataset of None is the one that the teachers were trained on; no transfer sets means its training rows. A teacher
    is a name in the workspace, a SavedModel's directory or a `.keras` file, `teacher` unless told otherwise; `logits`, a
    file of what one said of the whole transfer set, stands in for all of them. With `augment` it is asked about `views`
    of each row: the row as it is, and augmented ones drawn by `seed`.
    """

    temperature: float = 20.0
    teachers: tuple[str, ...] = ()
    mean: Mean = "arithmetic"
    signature: str | None = None
    output: str | None = None
    teacher_output: TeacherOutput = "auto"
    teacher_input: TeacherInput = "scaled"
    logits: str | None = None
    dataset: str | None = None
    transfer_sets: tuple[str, ...] = ()
    selection: Selection = Selection()
    dtype: Dtype = "float32"
    top_k: int | None = None
    augment: str | None = None
    views: int | None = None
    seed: int | None = None
    name: str = "soft-targets"
    batch_size: int = 1000

    def __post_init__(self) -> None:
        self._check_views()
        check_temperature(self.temperature)
        check_name("name", self.name)
        check_batch_size(self.batch_size)
        _choice("mean", self.mean, Mean)
        _choice("teacher-output", self.teacher_output, TeacherOutput)
        _choice("teacher-input", self.teacher_input, TeacherInput)
        _choice("dtype", self.dtype, Dtype)
        if self.top_k is not None:
            _whole("top-k", self.top_k, 1)
        if unreadable := [teacher for teacher in self.teachers if not teacher or not teacher.isprintable()]:
            raise UsageError(f"--teacher is {unreadable[0]!r}: it needs a name or a path")
        if self.logits is not None and self.teachers:
            raise UsageError("--logits stands in for a teacher: leave out --teacher")
        for option, given in (("teacher", self.teachers), ("transfer-set", self.transfer_sets)):
            if repeated := [one for one in given if given.count(one) > 1]:
                raise UsageError(f"--{option} {repeated[0]} is given twice")

    def _check_views(self) -> None:
        if self.augment is not None:
            check_augment(self.augment)
            if self.logits is not None:
                raise UsageError("--augment asks the teacher about inputs that --logits says nothing of: leave one out")
        if (self.augment is None) != (self.views is None):
            raise UsageError("--augment and --views belong together, as --augment shift:2 --views 16")
        if self.views is not None:
            _whole("views", self.views, 2, MOST_VIEWS)
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**32 - 1)
            if self.augment is None:
                raise UsageError("--seed is of the views that --augment makes: leave it out, or add --augment")


@dataclass(frozen=True, kw_only=True)
class TrainStudent:
    """The settings of `train-student`.

    None stands for what the soft-target file says: its temperature, its dataset, its teacher's architecture. Rows are
    selected from those of the file, or, at alpha 1, from the dataset's training rows. With `permute_soft_targets` each
    row is told what the teacher said of another one of its label: a control.

    Raises:
        UsageError: naming the option, the value it got and what it needs; also of one that would mean nothing.
    """

    alpha: float = 0.1
    temperature: float | None = None
    loss: Loss = "kd"
    standardize_logits: bool = False
    soft_targets: str = "soft-targets"
    model: str | None = None
    weights: str | None = None
    dataset: str | None = None
    permute_soft_targets: bool = False
    name: str = "student"
    selection: Selection = Selection()
    training: Training = Training()
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.training.augment and self.alpha < 1:
            raise UsageError(
                f"--augment {self.training.augment} gives the student inputs that the teacher wasn't asked about: "
                f"kdistill soften --augment {self.training.augment} --views 16, which students replay; or --alpha 1"
            )
        if self.temperature is not None:
            check_temperature(self.temperature)
        check_name("soft-targets", self.soft_targets)
        check_name("name", self.name)
        if self.model is not None:
            check_model("model", self.model)
        check_weights(self.weights)
        if self.permute_soft_targets and self.alpha == 1.0:
            raise UsageError("--permute-soft-targets has nothing to permute at --alpha 1: leave one of them out")
        _choice("loss", self.loss, Loss)
        if self.alpha == 1 and (self.loss != "kd" or self.standardize_logits):
            option = "--standardize-logits" if self.loss == "kd" else f"--loss {self.loss}"
            raise UsageError(f"{option} means nothing at --alpha 1, which leaves soft targets out: a lower --alpha")
        if self.loss in UNTEMPERED and self.temperature is not None:
            raise UsageError(f"--temperature means nothing for --loss {self.loss}, which has no T: leave it out")
        if self.alpha == 0 and self.training.label_smoothing is not None:
            raise UsageError("--label-smoothing means nothing at --alpha 0, which leaves labels out: a higher --alpha")

    def hard(self) -> TrainStudent:
        """The same student from hard labels alone: without what can only be said of soft targets."""
        soft = ("temperature", "loss", "standardize_logits", "permute_soft_targets")
        return replace(self, alpha=1.0, **{name: getattr(TrainStudent, name) for name in soft})

    def seeded(self, seed: int) -> TrainStudent:
        """The same student from another seed."""
        return replace(self, training=replace(self.training, seed=seed))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The settings of `sweep`: every model at every loss, temperature and alpha, and from hard labels, by every seed.

    No models means the one of `student`, which has what all students have in common; its own temperature, alpha, loss,
    name and seed don't count. `other_soft_targets` names another teacher's, for a control.

    Raises:
        UsageError: naming the option, the value it got and what it needs.
    """

    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 20.0)
    alphas: tuple[float, ...] = (0.1,)
    losses: tuple[Loss, ...] = (TrainStudent.loss,)
    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    student: TrainStudent = TrainStudent()
    name: str = "sweep"
    controls: bool = False
    other_soft_targets: str | None = None

    def __post_init__(self) -> None:
        _each("temperature", self.temperatures, check_temperature)
        _each("alpha", self.alphas, check_alpha)
        _each("loss", self.losses, lambda loss: _choice("loss", loss, Loss))
        _each("seeds", self.seeds, lambda seed: _whole("seeds", seed, 0, 2**32 - 1))
        if self.models:
            _each("model", self.models, lambda model: check_model("model", model))
        if 1.0 in self.alphas:
            raise UsageError("--alpha 1 is the student of hard labels, which every sweep has: leave it out")
        check_name("name", self.name)
        if self.other_soft_targets is not None:
            check_name("other-soft-targets", self.other_soft_targets)
            if not self.controls:
                raise UsageError("--other-soft-targets is for a control: add --controls")
            if self.other_soft_targets == self.student.soft_targets:
                raise UsageError(
                    f"--other-soft-targets {self.other_soft_targets} are the --soft-targets: name another teacher's"
                )


def _each(option: str, values: Sequence[Any], check: Callable[[Any], object]) -> None:
    """One value or more, none of them twice, each of which passes a check."""
    if not values:
        raise UsageError(f"--{option} is empty: it needs one value or more")
    for value in values:
        check(value)
    if repeated := [value for value in values if values.count(value) > 1]:
        raise UsageError(f"--{option} has {written(repeated[:1])} twice")


def written(values: Sequence[Any]) -> str:
    """Values as a list on the command line: 1,2.5,20."""
    return ",".join(map(short, values))


def short(value: Any) -> str:
    """A value as on the command line: 2 and not 2.0, and whatever else it takes to be read as the same."""
    return text if isinstance(value, float) and float(text := f"{value:g}") == value else str(value)


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
class Promote:
    """The settings of `promote`: which student of a sweep, `SWEEP/STUDENT`, and its new name; none means the old one."""

    student: str
    name: str | None = None

    def __post_init__(self) -> None:
        check_network("student", self.student)
        if "/" not in self.student:
            raise UsageError(f"--student is {self.student!r}: it needs a student of a sweep, SWEEP/STUDENT")
        check_name("name", self.promoted)

    @property
    def promoted(self) -> str:
        """The name of the student in `students/`."""
        return self.student.split("/")[1] if self.name is None else self.name


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The settings of `evaluate`.

    No networks means all teachers and students. A `dataset` is where the data lies now that the networks were trained on.
    """

    networks: tuple[str, ...] = ()
    dataset: str | None = None

    def __post_init__(self) -> None:
        for name in self.networks:
            check_network("network", name)


@dataclass(frozen=True, kw_only=True)
class CorrectBias:
    """The settings of `correct-bias`.

    No name means the student's and `-corrected`; no inputs those of the training rows. `frequencies` says how often
    each class should be predicted: as often as in the training set, all alike, or numbers with commas between them.
    A `dataset` is where the data lies now that the student was trained on.
    """

    student: str = "student"
    name: str | None = None
    frequencies: str = "training"
    inputs: str | None = None
    dataset: str | None = None

    def __post_init__(self) -> None:
        check_name("student", self.student)
        if self.name is not None:
            check_name("name", self.name)
        check_name("name", self.corrected)
        if self.corrected == self.student:
            raise UsageError(f"--name {self.name} is the student that is corrected, which stays as it is: another name")
        if self.frequencies in ("training", "uniform"):
            return
        try:
            numbers = self.numbers()
        except ValueError:
            raise UsageError(
                f"--frequencies is {self.frequencies!r}: it needs training, uniform, or a number a class, as 0.2,0.5,0.3"
            ) from None
        if wrong := [number for number in numbers if not 0 <= number <= 1]:  # NaN too
            raise UsageError(f"--frequencies holds {wrong[0]:g}: a class's frequency is a number from 0 to 1")
        if abs(sum(numbers) - 1) > 0.01:
            raise UsageError(f"--frequencies sum to {sum(numbers):g}: those of all classes sum to 1")

    @property
    def corrected(self) -> str:
        """What the corrected student is called."""
        return self.name or f"{self.student}-corrected"

    def numbers(self) -> list[float]:
        """The frequencies that are given as numbers."""
        return [float(number) for number in self.frequencies.split(",")]


def image_size(size: str) -> tuple[int, int]:
    """Height and width.

    Raises:
        UsageError: if it is neither `HxW` nor one number for both.
    """
    match = _IMAGE_SIZE.fullmatch(size)
    if match is None:
        raise UsageError(f"--image-size is {size}: it needs height and width in pixels, as 24x32, or one for both")
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How a dataset is to be read, where its format leaves a choice; each format takes some of these.

    Raises:
        UsageError: naming the option, the value it got and what it needs.
    """

    inputs: str | None = None
    labels: str | None = None
    test_inputs: str | None = None
    test_labels: str | None = None
    image_size: str | None = None
    max_pixels: str | None = None
    test_fraction: str | None = None
    data_format: str | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not value:
                raise UsageError(f"--{name} is empty: it needs a value, or to be left out")
        if self.test_fraction is not None and not 0 < _number(self.test_fraction) < 1:
            raise UsageError(f"--test-fraction is {self.test_fraction}: it needs a number between 0 and 1")
        if self.image_size is not None:
            image_size(self.image_size)
        if self.max_pixels is not None and not _PIXELS.fullmatch(self.max_pixels):
            raise UsageError(
                f"--max-pixels is {self.max_pixels}: it needs a whole number of pixels, at least 1, e.g. {MAX_PIXELS}"
            )
        if self.data_format is not None:
            _choice("data-format", self.data_format, DataFormat)

    @classmethod
    def of(cls, name: str) -> tuple[str, ReadOptions]:
        """A place, and how it is to be read, from a name that may say both, as `named` writes it."""
        place, mark, query = name.rpartition("?")
        if not mark or "=" not in query:
            return name, cls()
        said = dict(parse_qsl(query, keep_blank_values=True))
        known = [field.name.replace("_", "-") for field in fields(cls)]
        if unknown := [key for key in said if key not in known]:
            raise UsageError(f"{name}: {unknown[0]!r} is no option of reading data, only {', '.join(known)}")
        return place, cls(**{key.replace("-", "_"): value for key, value in said.items()})

    def named(self, name: str) -> str:
        """A dataset's name with these options put on it, after `?` as in a URL; others that it has are kept."""
        place, said = ReadOptions.of(name)
        given = said.given() | self.given()
        return f"{place}?{urlencode(given, quote_via=quote, safe='/:,')}" if given else place

    def given(self) -> dict[str, str]:
        """Those that are set, by the name of their option."""
        pairs = ((field.name.replace("_", "-"), getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}

    def absolute(self, names: Sequence[str]) -> ReadOptions:
        """The same, the files among them, which `names` are, by their full paths."""
        given = self.given()
        paths = {name.replace("-", "_"): Path(given[name]).expanduser().absolute() for name in names if name in given}
        return replace(self, **{name: str(path) for name, path in paths.items()})

    def allow(self, what: str, *names: str) -> None:
        """Refuse options that mean nothing to a format.

        Raises:
            UsageError: naming the first of them.
        """
        for name in self.given():
            if name not in names:
                takes = f", which takes --{', --'.join(names)}" if names else ""
                raise UsageError(f"--{name} means nothing for {what}{takes}")


@dataclass(frozen=True, kw_only=True)
class Export:
    """The settings of `export`; an export's name says them all, `NETWORK-FORMAT` or `NETWORK-FORMAT-QUANTIZE`.

    A student of a sweep is `SWEEP/STUDENT`, and `SWEEP@STUDENT` in the name of its export. A `dataset` is where the data
    lies now that the network was trained on.
    """

    network: str = "student"
    format: ExportFormat = "tflite"
    quantize: Quantize = "none"
    dataset: str | None = None

    def __post_init__(self) -> None:
        check_network("network", self.network)
        _choice("format", self.format, ExportFormat)
        _choice("quantize", self.quantize, Quantize)

    @property
    def name(self) -> str:
        return f"{self.network.replace('/', '@')}-{self.format}" + (
            "" if self.quantize == "none" else f"-{self.quantize}"
        )

    @classmethod
    def named(cls, name: str) -> Export | None:
        """The settings of an export with this name, None where no export is so called."""
        for file_format, quantize in product(get_args(ExportFormat), get_args(Quantize)):
            ending = cls(format=file_format, quantize=quantize).name.removeprefix(cls.network)
            network = name.removesuffix(ending)
            if name.endswith(ending) and network.count("@") <= 1 and all(map(NAME.fullmatch, network.split("@"))):
                return cls(network=network.replace("@", "/"), format=file_format, quantize=quantize)
        return None
