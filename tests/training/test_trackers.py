"""Experiment trackers: MLflow. TensorBoard has its own tests."""

from __future__ import annotations

import csv
import json
import sys

import pytest
from helpers import QUICK, mentions


def test_mlflow_is_not_installed(run, tmp_path, monkeypatch):
    """Without the package, the error names the extra, and nothing is written."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    outcome = run("train-teacher", *QUICK, "--mlflow")
    assert outcome.code == 1
    assert mentions(outcome.err, "pip install 'kdistill[mlflow]'")
    assert not list(tmp_path.glob("workspace/teachers/*/manifest.json"))


class FailingClient:
    """A client of MLflow whose server fails in the middle of the training."""

    def __init__(self):
        self.sent = []

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "1"

    def create_run(self, experiment, run_name):
        run = type("Run", (), {})
        run.info = type("Info", (), {"run_id": run_name})
        return run

    def log_param(self, run, key, value):
        self.sent.append((key, value))

    def log_metric(self, run, key, value, step):
        if step == 3:
            raise ConnectionError("the server is away")
        self.sent.append((step, key))

    def set_terminated(self, run):
        pytest.fail("nothing is sent after a failure")


@pytest.mark.slow
def test_training_survives_mlflow(run, tmp_path, monkeypatch):
    """A server that fails during training costs one warning, and the network is written."""
    client = FailingClient()
    module = type(sys)("mlflow")
    module.MlflowClient = lambda: client
    monkeypatch.setitem(sys.modules, "mlflow", module)
    outcome = run("train-teacher", *QUICK, "--mlflow")
    assert outcome.code == 0
    assert outcome.err.count("warning") == 1
    assert mentions(outcome.err, "MLflow", "server")
    assert ("model", "mlp-30") in client.sent
    assert {step for step, _ in client.sent if isinstance(step, int)} == {1, 2}
    assert run("train-teacher", *QUICK, "--mlflow").up_to_date


@pytest.mark.slow
def test_mlflow_has_the_run(run, tmp_path, monkeypatch):
    """MLflow has the settings, a value per epoch and column of the history, and the results."""
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/runs")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    outcome = run("train-teacher", *QUICK, "--mlflow")
    assert outcome.code == 0, outcome.err
    client = mlflow.MlflowClient()
    (tracked,) = client.search_runs([client.get_experiment_by_name("kdistill").experiment_id])
    assert (tracked.info.run_name, tracked.info.status) == ("teachers/teacher", "FINISHED")
    assert tracked.data.params["learning_rate"] == "0.003"
    teacher = tmp_path / "workspace/teachers/teacher"
    results = json.loads((teacher / "manifest.json").read_text())["results"]
    assert tracked.data.metrics["test_errors"] == results["test_errors"]
    with (teacher / "history.csv").open() as stream:
        losses = [float(row["train_loss"]) for row in csv.DictReader(stream)]
    history = client.get_metric_history(tracked.info.run_id, "train_loss")
    assert [each.value for each in sorted(history, key=lambda each: each.step)] == pytest.approx(losses)
