"""The tasks, losses, built-in networks, augmentation steps and file formats: what options can name, without TensorFlow.

The functions and classes themselves are in `tasks`, `training.losses`, `networks.built_in`, `data.augmentation`,
`data.readers` and `stages.prediction_files`, under the names given here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

CLASSIFICATION, MULTI_LABEL, REGRESSION, EMBEDDING = "classification", "multi-label", "regression", "embedding"


@dataclass(frozen=True)
class TaskEntry:
    """A task: the kind of outcome that a dataset has.

    Attributes:
        module: of the task in `tasks`, and of its losses in `training.losses`.
        help: one line.
        hard_part: the formula of the hard part of the objective; empty if there is none.
    """

    module: str
    help: str
    hard_part: str


TASKS = {
    CLASSIFICATION: TaskEntry("classification", "one class per row", "CE"),
    MULTI_LABEL: TaskEntry("multi_label", "any number of classes per row", "BCE"),
    REGRESSION: TaskEntry("regression", "one or more numbers per row", "MSE"),
    EMBEDDING: TaskEntry("embedding", "a vector per row, from the teacher", ""),
}


@dataclass(frozen=True)
class SoftLoss:
    """A loss for the soft part of the objective.

    Attributes:
        function: its name in the modules of `training.losses`.
        formulas: for each task that it applies to, a short formula. It is printed when training starts.
        source: the paper.
        help: one line.
        temperature: whether it depends on T.
        labels: whether it needs the labels.
        whole_batch: whether the loss of a row depends on the other rows of its batch.
    """

    function: str
    formulas: Mapping[str, str]
    source: str
    help: str
    temperature: bool = True
    labels: bool = False
    whole_batch: bool = False


LOSSES = {  # the first one of a task is its default
    "kd": SoftLoss(
        "soft_loss",
        {CLASSIFICATION: "T^2 * KL(soft targets)", MULTI_LABEL: "T^2 * sum of KL(soft targets)"},
        "arXiv:1503.02531",
        "KL divergence to the soft targets",
    ),
    "cosine": SoftLoss(
        "cosine_loss",
        {EMBEDDING: "cosine distance"},
        "arXiv:1910.01108",
        "cosine distance to the teacher's vector",
        temperature=False,
    ),
    "mse": SoftLoss(
        "mse_loss",
        {
            CLASSIFICATION: "MSE(logits) / 2",
            MULTI_LABEL: "MSE(logits) / 2",
            REGRESSION: "MSE(teacher)",
            EMBEDDING: "MSE(teacher)",
        },
        "arXiv:1312.6184",
        "squared error of the teacher's outputs, without T",
        temperature=False,
    ),
    "huber": SoftLoss(
        "huber_loss",
        {REGRESSION: "Huber(teacher)"},
        "doi:10.1214/aoms/1177703732",
        "squared error up to one standard deviation, linear beyond",
        temperature=False,
    ),
    "dkd": SoftLoss(
        "dkd_loss",
        {CLASSIFICATION: "T^2 * (TCKD + 8 * NCKD)(soft targets)"},
        "arXiv:2203.08679",
        "decoupled distillation: target class and other classes apart",
        labels=True,
    ),
    "dist": SoftLoss(
        "dist_loss",
        {CLASSIFICATION: "T^2 * (2 - r_inter - r_intra)(soft targets)"},
        "arXiv:2205.10536",
        "correlation with the soft targets, by row and by class",
        whole_batch=True,
    ),
    "jsd": SoftLoss(
        "jsd_loss", {CLASSIFICATION: "T^2 * JSD(soft targets)"}, "arXiv:2306.13649", "Jensen-Shannon divergence"
    ),
    "reverse-kl": SoftLoss(
        "reverse_kl_loss",
        {CLASSIFICATION: "T^2 * KL(student || soft targets)"},
        "arXiv:2306.08543",
        "KL divergence, reversed",
    ),
}


def default_loss(task: str) -> str:
    """Return the name of the soft loss of a task, if `--loss` is not given."""
    return next(name for name, loss in LOSSES.items() if task in loss.formulas)


def uses_temperature(task: str) -> bool:
    """Return whether the default loss of a task depends on T."""
    return LOSSES[default_loss(task)].temperature


@dataclass(frozen=True)
class BuiltIn:
    """A built-in network.

    Attributes:
        pattern: of its name; the groups are the arguments of the function.
        function: its name in `networks.built_in`.
        help: one line.
        text: whether the rows are texts instead of numbers.
    """

    pattern: str
    function: str
    help: str
    text: bool = False


NETWORKS = {
    "cnn": BuiltIn("cnn", "cnn", "two convolutions and four dense layers"),
    "small": BuiltIn("small", "small", "one hidden layer of 10 units"),
    "mlp-H": BuiltIn(r"mlp-([1-9]\d{0,4})", "mlp", "two hidden layers of H units, e.g. mlp-800"),
    "resnet-8|14|20": BuiltIn(r"resnet-(8|14|20)", "resnet", "residual network of 8, 14 or 20 layers"),
    "text-H": BuiltIn(
        r"text-([1-9]\d{0,4})", "text", "for texts: mean of word vectors, one layer of H units", text=True
    ),
}
FUNCTION_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # module:function
OWN_NETWORK = re.compile(rf".+\.keras|{FUNCTION_NAME.pattern}")
MODEL_NAMES = f"{', '.join(NETWORKS)}, MODULE:FUNCTION, FILE.keras or keras.applications:NAME"
MODEL_HELP = (
    ", ".join(f"{name} ({network.help})" for name, network in NETWORKS.items())
    + "; or your own: MODULE:FUNCTION, called with (input_shape, classes), FILE.keras, or keras.applications:NAME"
)


def built_in(model: str) -> BuiltIn | None:
    """Return the built-in network of a name, or None."""
    return next((network for network in NETWORKS.values() if re.fullmatch(network.pattern, model)), None)


def is_model(model: str) -> bool:
    """Return whether a name can be that of a network, built-in or the user's own."""
    return built_in(model) is not None or OWN_NETWORK.fullmatch(model) is not None


@dataclass(frozen=True)
class DataFormat:
    """A file format for datasets.

    Attributes:
        reader: the module and class of its reader in `data.readers`.
        extensions: those of its files.
    """

    reader: str
    extensions: tuple[str, ...]


DATA_FORMATS = {
    "npz": DataFormat("npz:Npz", (".npz",)),
    "npy": DataFormat("npy:Npy", (".npy",)),
    "hdf5": DataFormat("hdf5:Hdf5", (".h5", ".hdf5")),
    "csv": DataFormat("tables:Table", (".csv",)),
    "parquet": DataFormat("tables:Table", (".parquet",)),
}

PREDICTION_FILES = {  # by extension, the functions in `stages.prediction_files` that write them
    ".csv": "write_csv",
    ".parquet": "write_parquet",
    ".npz": "write_npz",
    ".h5": "write_hdf5",
    ".hdf5": "write_hdf5",
}


@dataclass(frozen=True)
class AugmentationStep:
    """One step of `--augment`: the range of its amount, in whole numbers or not."""

    low: float
    high: float
    unit: str
    whole: bool = False


AUGMENTATIONS = {
    "shift": AugmentationStep(1, 1000, "PIXELS", whole=True),
    "crop": AugmentationStep(1, 1000, "PIXELS", whole=True),
    "flip": AugmentationStep(0, 0, ""),
    "rotate": AugmentationStep(0.1, 180, "DEGREES"),
    "zoom": AugmentationStep(0.001, 0.9, "FRACTION"),
    "elastic": AugmentationStep(0.1, 1000, "PIXELS"),
}
AUGMENT_SYNTAX = ", ".join(f"{name}:{step.unit}" if step.unit else name for name, step in AUGMENTATIONS.items())


def parse_augment(augment: str) -> tuple[tuple[str, float], ...]:
    """Return the steps of an augmentation and their amounts, from e.g. `shift:2,flip`.

    Raises:
        ValueError: if a step is unknown or repeated, its amount is out of range, or both `shift` and `crop` are given.
    """
    steps: dict[str, float] = {}
    for item in augment.split(","):
        name, _, amount = item.partition(":")
        step = AUGMENTATIONS.get(name)
        value = float(amount) if amount or name != "flip" else 0.0
        if step is None or name in steps or not step.low <= value <= step.high or (step.whole and value % 1):
            raise ValueError(augment)
        steps[name] = value
    if {"shift", "crop"} <= steps.keys():
        raise ValueError(augment)
    return tuple(steps.items())
