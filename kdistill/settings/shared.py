"""Options that several commands declare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from kdistill.errors import UsageError
from kdistill.settings.catalog import MODEL_HELP, MODEL_NAMES, is_model
from kdistill.settings.checks import (
    Check,
    artifact_name,
    integer,
    nonempty,
    number,
    one_of,
)
from kdistill.settings.groups import ReadOptions
from kdistill.settings.objective import TEMPERATURES
from kdistill.settings.options import Settings, option

NEW_WEIGHTS = "new"
MODEL = Check(f"{MODEL_NAMES}, where H is a number, e.g. mlp-800", is_model)
WEIGHTS = Check(
    f"a .weights.h5 or .keras file of the same network, or {NEW_WEIGHTS}",
    lambda value: value == NEW_WEIGHTS or value.endswith((".weights.h5", ".keras")),
)
DATASET_HELP = (
    "digits, mnist, fashion_mnist, cifar10, cifar100, tfds:NAME, package.module:function, a folder of images, or a file: "
    ".npz, .npy, .h5, .hdf5, .csv, .parquet."
)
FORMATS = ("png", "svg", "pdf")


class ReadsDataset(Settings):
    """Settings with a dataset that need not be given, and options that say how it is read."""

    dataset: str | None
    read: ReadOptions

    def check_combinations(self) -> None:
        if self.dataset is None and (given := self.read.given()):
            raise UsageError(f"--{next(iter(given))} needs --dataset, since it applies to that dataset: add --dataset")

    @property
    def data(self) -> str | None:
        """The dataset's name with its read options; None if it was not given."""
        return None if self.dataset is None else self.read.named(self.dataset)


@dataclass(frozen=True, kw_only=True)
class Tracking(Settings):
    """Where the history of a network is written, besides `history.csv`."""

    tensorboard: Annotated[
        bool, option("Also write event files, for tensorboard --logdir WORKSPACE.", group="Tracking", recorded=False)
    ] = False
    mlflow: Annotated[
        bool, option("Also log settings, history and results to MLflow.", group="Tracking", recorded=False)
    ] = False


@dataclass(frozen=True, kw_only=True)
class Cluster(Settings):
    """Which workers do the work. The result does not depend on them."""

    ray: Annotated[
        str | None,
        option(
            "Work on a Ray cluster: local starts Ray on this machine; auto, HOST:PORT or ray://HOST:PORT joins a cluster. "
            "Default: work in this process.",
            nonempty(),
            "Cluster",
            metavar="ADDRESS",
            recorded=False,
        ),
    ] = None
    ray_cpus: Annotated[int, option("CPU cores per worker.", integer(1), "Cluster", recorded=False)] = 1
    ray_gpus: Annotated[
        float | None,
        option(
            "GPUs per worker, e.g. 0.5. Default: 1 if the cluster has GPUs, else 0.",
            number(0, 1024),
            "Cluster",
            metavar="X",
            recorded=False,
        ),
    ] = None

    def check_combinations(self) -> None:
        for flag, given in (("cpus", self.ray_cpus != Cluster.ray_cpus), ("gpus", self.ray_gpus is not None)):
            if given and self.ray is None:
                raise UsageError(f"--ray-{flag} needs --ray, e.g. --ray local: add it, or remove --ray-{flag}")


@dataclass(frozen=True, kw_only=True)
class TrainingCluster(Cluster):
    """Which workers share one training. The manifest records the number of replicas as a result."""

    workers: Annotated[
        int,
        option(
            "Number of workers on the Ray cluster that share each batch. The batch size is that of all together.",
            integer(1),
            "Cluster",
            recorded=False,
        ),
    ] = 1

    def check_combinations(self) -> None:
        super().check_combinations()
        if self.workers > 1 and self.ray is None:
            raise UsageError(f"--workers {self.workers} needs --ray, e.g. --ray auto: add it, or remove --workers")
        if self.workers > 1 and self.ray_gpus and self.ray_gpus % 1:
            raise UsageError(
                f"--ray-gpus is {self.ray_gpus:g}, but {self.workers} workers of one training cannot share a GPU: use "
                "--ray-gpus 1"
            )


# Options that several commands declare. A dataset is an input of the manifest, not one of its settings.
Dataset = Annotated[str, option(f"Dataset: {DATASET_HELP}", nonempty(), "Data", recorded=False)]
OtherDataset = Annotated[
    str | None,
    option(
        "Dataset to use instead of the recorded one, that of the teacher or the soft targets.",
        nonempty(),
        "Data",
        recorded=False,
    ),
]
MovedDataset = Annotated[
    str | None,
    option(
        "Where the dataset of the network is now, if it was moved. Its content must be the same.",
        nonempty(),
        "Data",
        recorded=False,
    ),
]
Model = Annotated[str, option(f"Network: {MODEL_HELP}.", MODEL, "Network")]
StudentModel = Annotated[
    str | None,
    option("Network, as for train-teacher. Default: the teacher's architecture, with new weights.", MODEL, "Network"),
]
Weights = Annotated[
    str | None,
    option(
        "Initial weights: a .weights.h5 or .keras file of the same network; or new, to ignore those of a .keras model.",
        WEIGHTS,
        "Network",
        metavar="FILE",
        recorded=False,
    ),
]
SoftTargetsName = Annotated[
    str, option("Name of the soft targets.", artifact_name(), "Data", metavar="NAME", recorded=False)
]
TemperatureOption = Annotated[
    float, option("Temperature T of softmax(logits / T).", number(*TEMPERATURES), "Objective", metavar="T")
]
Formats = Annotated[
    tuple[str, ...],
    option("File format: png, svg or pdf. Repeat for several.", one_of(*FORMATS), name="format", metavar="FORMAT"),
]
