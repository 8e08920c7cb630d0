"""Experiment trackers: they receive the history of a network while it is trained.

To add one, write a class with the methods of `Tracker`, add its option to `settings.shared.Tracking`, and open it in
`open_trackers`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kdistill.console import Reporter
from kdistill.errors import KdistillError, first_line
from kdistill.settings import Tracking
from kdistill.training.history import Row
from kdistill.workspace import Artifact, Manifest, Workspace

EXPERIMENT = "kdistill"  # in MLflow, unless MLFLOW_EXPERIMENT_NAME names another one
LONGEST_VALUE = 500  # characters of a parameter, which every version of MLflow accepts


class Tracker(Protocol):
    """Receives the progress of one training run."""

    def update(self, rows: Sequence[Row]) -> None:
        """Take the history so far: before the first epoch, which a resumed run has rows for, and after each one."""

    def finish(self, manifest: Manifest) -> None:
        """Take the manifest of the trained network."""


def open_trackers(settings: Tracking, artifact: Artifact, identity: Manifest, reporter: Reporter) -> list[Tracker]:
    """Return the trackers that the settings name, for a network that is about to be trained.

    Raises:
        KdistillError: if the package of one is missing, or it cannot be reached.
    """
    trackers: list[Tracker] = []
    if settings.tensorboard:
        from kdistill.training.tensorboard import EventFiles

        trackers.append(EventFiles(Workspace(artifact.root).events(artifact)))
    if settings.mlflow:
        trackers.append(MLflow(artifact, identity, reporter))
    return trackers


class MLflow:
    """A run of MLflow: settings and inputs as parameters, the history as metrics, and the results at the end.

    Where runs are kept is up to MLflow, e.g. the environment variable MLFLOW_TRACKING_URI. If the server fails during
    training, there is a warning, and training continues.
    """

    def __init__(self, artifact: Artifact, identity: Manifest, reporter: Reporter) -> None:
        try:
            from mlflow import MlflowClient
        except ModuleNotFoundError:
            raise KdistillError("--mlflow needs MLflow: pip install 'kdistill[mlflow]'") from None
        self._reporter, self._epochs, self._failed = reporter, 0, False
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        try:
            self._client = MlflowClient()
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            self._run = self._client.create_run(number, run_name=str(artifact.place)).info.run_id
            for key, value in _parameters(identity).items():
                self._client.log_param(self._run, key, value)
        except Exception as error:  # whatever the storage or the network raises
            raise KdistillError(f"--mlflow: MLflow cannot create a run ({first_line(error)})") from error

    def update(self, rows: Sequence[Row]) -> None:
        new, self._epochs = rows[self._epochs :], len(rows)
        for row in new:
            epoch = int(row["epoch"])
            self._log({name: value for name, value in row.items() if name != "epoch"}, epoch)

    def finish(self, manifest: Manifest) -> None:
        numbers = {name: value for name, value in manifest.results.items() if type(value) in (int, float)}
        self._log(numbers, self._epochs)
        self._attempt(self._client.set_terminated, self._run)

    def _log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if not math.isnan(value):
                self._attempt(self._client.log_metric, self._run, name, value, step=step)

    def _attempt(self, send: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Send something, unless this has failed before."""
        if self._failed:
            return
        try:
            send(*arguments, **options)
        except Exception as error:  # noqa: BLE001 - a tracker must not stop the training
            self._failed = True
            self._reporter.warn(f"MLflow failed, so this run is incomplete there: {first_line(error)}")


def _parameters(identity: Manifest) -> dict[str, str]:
    """Return the settings that are set, and the names of the inputs, as parameters of a run."""
    settings = {name: str(value) for name, value in identity.settings.items() if value not in (None, [], "")}
    inputs = {made_from.role.replace(" ", "_"): made_from.name for made_from in identity.inputs}
    return {name: value[:LONGEST_VALUE] for name, value in {**settings, **inputs}.items()}
