"""The settings of sweep, and of promote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from kdistill.errors import UsageError
from kdistill.settings.catalog import LOSSES
from kdistill.settings.checks import (
    Check,
    artifact_name,
    network_name,
    number,
    one_of,
)
from kdistill.settings.distill import TrainStudent
from kdistill.settings.groups import SEEDS
from kdistill.settings.objective import TEMPERATURES
from kdistill.settings.options import Only, Settings, option
from kdistill.settings.shared import MODEL, Cluster

SWEEP_STUDENT = Check(
    "a student of a sweep, SWEEP/STUDENT", lambda value: "/" in value and network_name().accepts(value)
)


@dataclass(frozen=True, kw_only=True)
class Sweep(Settings):
    """Train and compare students on a grid of settings.

    A student is trained for every model, loss, temperature, alpha and seed, and one from hard labels only for every
    model and seed, to compare with. The options that are not part of the grid apply to all students.
    """

    temperatures: Annotated[
        tuple[float, ...],
        option(
            "Temperatures, separated by commas.",
            number(*TEMPERATURES),
            "Grid",
            metavar="T,...",
            name="temperature",
            commas=True,
        ),
    ] = (1.0, 2.0, 4.0, 8.0, 20.0)
    alphas: Annotated[
        tuple[float, ...],
        option(
            "Weights of the hard labels, below 1. Students with alpha 1 are always part of a sweep.",
            number(0, 1),
            "Grid",
            metavar="A,...",
            name="alpha",
            commas=True,
        ),
    ] = (0.1,)
    losses: Annotated[
        tuple[str, ...],
        option(
            f"Losses of train-student: {', '.join(LOSSES)}. Default: the default of the task.",
            one_of(*LOSSES),
            "Grid",
            metavar="LOSS,...",
            name="loss",
            commas=True,
        ),
    ] = ()
    models: Annotated[
        tuple[str, ...],
        option(
            "Networks, as for train-teacher. Default: the teacher's architecture.",
            MODEL,
            "Grid",
            metavar="MODEL,...",
            name="model",
            commas=True,
        ),
    ] = ()
    seeds: Annotated[
        tuple[int, ...],
        option("Seeds. Each trains a student of every setting.", SEEDS, "Grid", metavar="N,...", commas=True),
    ] = (0, 1, 2)
    controls: Annotated[
        bool,
        option(
            "Compare each model's best setting with label smoothing, permuted soft targets and temperature scaling.",
            group="Grid",
        ),
    ] = False
    other_soft_targets: Annotated[
        str | None,
        option(
            "Soft targets of another teacher, for one more control.",
            artifact_name(),
            "Grid",
            metavar="NAME",
            recorded=False,
        ),
    ] = None
    student: Annotated[
        TrainStudent,
        Only(
            omit=(
                *("alpha", "temperature", "loss", "permute_soft_targets", "model", "seed"),
                *("weights", "augment", "name", "tensorboard", "mlflow"),
                *("ray", "ray_cpus", "ray_gpus", "workers"),
            )
        ),
    ] = TrainStudent()
    cluster: Cluster = Cluster()
    name: Annotated[str, option("Name of the sweep.", artifact_name(), recorded=False)] = "sweep"

    def check_combinations(self) -> None:
        if 1.0 in self.alphas:
            raise UsageError("--alpha contains 1, hard labels only, which is part of every sweep: remove it")
        if self.other_soft_targets is not None:
            if not self.controls:
                raise UsageError("--other-soft-targets needs --controls: add it")
            if self.other_soft_targets == self.student.soft_targets:
                raise UsageError(
                    f"--other-soft-targets {self.other_soft_targets} is the same as --soft-targets: name the soft targets "
                    "of another teacher"
                )


@dataclass(frozen=True, kw_only=True)
class Promote(Settings):
    """Copy a student of a sweep to the students of the workspace."""

    student: Annotated[
        str,
        option(
            "Student of a sweep. It stays where it is.",
            SWEEP_STUDENT,
            "Data",
            metavar="SWEEP/STUDENT",
            recorded=False,
        ),
    ]
    name: Annotated[
        str | None, option("Name of the copy. Default: its name in the sweep.", artifact_name(), recorded=False)
    ] = None

    @property
    def promoted(self) -> str:
        """The name of the copy."""
        return self.student.split("/")[1] if self.name is None else self.name
