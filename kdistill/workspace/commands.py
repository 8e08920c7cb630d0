"""The commands that make artifacts, rebuilt from what is recorded of them: all advice to the user comes from here.

Standard library only.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdistill.settings import (
    NAME,
    CorrectBias,
    Export,
    Plot,
    Settings,
    Soften,
    Sweep,
    TrainStudent,
    TrainTeacher,
    command_words,
    format_value,
)

if TYPE_CHECKING:
    from kdistill.workspace import Artifact, Manifest

ROOT = "workspace"  # the default of --workspace
ROOT_VARIABLE = "KDISTILL_WORKSPACE"  # the environment variable that gives another
TEMPERATURE, ALPHA, MODEL = "20", "0.1", "mlp-800"  # what the next command is shown with
NAMED_BY_OPTION = (  # inputs; options of the same names give them
    "dataset",
    "transfer_set",
    "weights",
    "teacher",
    "logits",
    "soft_targets",
    "other_soft_targets",
)
MANY = ("transfer_set", "teacher")
SETTINGS: dict[str, type[Settings]] = {
    "teacher": TrainTeacher,
    "soft targets": Soften,
    "student": TrainStudent,
    "sweep": Sweep,
    "plots": Plot,
}
DEFAULT_DATASET = TrainTeacher.dataset


def command(root: Path, name: str, *, called: str = "", default: str = "", **options: Any) -> str:
    """A command on a workspace.

    Args:
        root: the workspace.
        name: the subcommand.
        called: the value of `--name`, left out if it is the default.
        default: of `--name`.
        options: others, by name; None, False and an empty list are left out.
    """
    elsewhere = root != Path(ROOT) or ROOT_VARIABLE in os.environ
    words = ["kdistill", name, *([f"--workspace {shlex.quote(str(root))}"] if elsewhere else [])]
    words += [f"--name {shlex.quote(called)}"] if called != default else []
    words += [
        _option(key, value)
        for key, value in options.items()
        if value is not None and value is not False and value != []
    ]
    return " ".join(words)


def correct_bias(root: Path, called: str, student: str, frequencies: str | None, inputs: str | None) -> str:
    """The command that corrects a student; None stands for a default."""
    options = {"student": student, "frequencies": frequencies, "inputs": inputs}
    given = {key: value for key, value in options.items() if value != getattr(CorrectBias, key)}
    return command(root, "correct-bias", called=called, default=f"{student}-corrected", **given)


def export(root: Path, settings: Export) -> str:
    """The command that makes an export, whose name says all its options."""
    given = {key: value for key, value in asdict(settings).items() if value != getattr(Export, key)}
    return command(root, "export", **given)


def rebuilt(artifact: Artifact, manifest: Manifest) -> str:
    """The command that makes what a manifest describes, with every option that is not a default."""
    if artifact.whole:
        return rebuilt(artifact.whole, artifact.whole.recovered())
    if artifact.kind == "export":
        return artifact.command
    if artifact.kind == "student" and "student" in manifest.inputs:
        pool = manifest.inputs.get("inputs")
        frequencies = manifest.settings.get("frequencies", CorrectBias.frequencies)
        student = manifest.inputs["student"].name
        return correct_bias(artifact.root, artifact.name, student, frequencies, pool.name if pool else None)
    options: dict[str, Any] = {}
    for role, made_from in manifest.inputs.items():
        option = role.split()[0]
        if option in NAMED_BY_OPTION and (artifact.kind != "plots" or option == "soft_targets"):
            options.setdefault(option, []).append(made_from.name)
    from_workspace = artifact.kind == "soft targets" and NAME.fullmatch(options.get("teacher", ["/"])[0])
    if from_workspace or "soft_targets" in options:  # these are recorded upstream
        options.pop("dataset", None)
    if "soft_targets" in options:
        options.pop("transfer_set", None)
    options = {name: names if name in MANY else names[0] for name, names in options.items()} | dict(manifest.settings)
    if options.get("dataset") == DEFAULT_DATASET:
        options.pop("dataset")
    if options.get("teacher") == [TrainTeacher.name]:
        options.pop("teacher")
    return " ".join([artifact.command, *command_words(SETTINGS[artifact.kind], options)])


def remedy(artifact: Artifact, manifest: Manifest) -> str:
    """The command that makes a damaged artifact again as it was, from what its manifest still says.

    A sweep makes what is damaged of it again without `--force`, which would train all its students again.
    """
    force = "" if artifact.kind == "sweep" or artifact.whole else " --force"
    return rebuilt(artifact, manifest) + force


def next_soften(root: Path, teacher: str) -> str:
    """The command that follows the training of a teacher."""
    given = [teacher] if teacher != TrainTeacher.name else []
    return command(root, "soften", teacher=given, temperature=TEMPERATURE)


def next_student(root: Path, soft_targets: str, results: Mapping[str, Any]) -> str:
    """The command that follows `soften`.

    Args:
        root: the workspace.
        soft_targets: their name.
        results: of their manifest.
    """
    given = soft_targets if soft_targets != TrainStudent.soft_targets else None
    model = None if results["teacher"]["model"] else MODEL
    alpha = ALPHA if results["labelled"] else "0"
    return command(root, "train-student", soft_targets=given, model=model, alpha=alpha)


def next_plot(root: Path, soft_targets: str) -> str:
    """The command that follows the training of a student."""
    return command(root, "plot", soft_targets=soft_targets if soft_targets != Plot.soft_targets else None)


def _option(key: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_option(key, item) for item in value)
    flag = f"--{key.replace('_', '-')}"
    return flag if value is True else f"{flag} {shlex.quote(format_value(value))}"
