"""Command lines to paste: those that make an artifact again, and the ones that follow a stage."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdistill.settings import (
    CLASSIFICATION,
    COMMANDS,
    NAME,
    TASKS,
    CorrectBias,
    TrainTeacher,
    command_words,
    default_loss,
    options_of,
    uses_temperature,
)
from kdistill.workspace.kinds import INPUTS

if TYPE_CHECKING:
    from kdistill.workspace.artifact import Artifact
    from kdistill.workspace.manifest import Manifest

ROOT, ROOT_VARIABLE = "workspace", "KDISTILL_WORKSPACE"


def command(root: Path, name: str, /, *, always: tuple[str, ...] = (), **values: Any) -> str:
    """Return a command line on a workspace.

    Args:
        root: the workspace.
        name: the command.
        always: options to write even if they have their default value.
        **values: options by name; those with their default value are left out.
    """
    words = ["kdistill", name]
    if root != Path(ROOT) or ROOT_VARIABLE in os.environ:
        words.append(f"--workspace {shlex.quote(str(root))}")
    return " ".join([*words, *command_words(COMMANDS[name], values, always=always)])


def default(artifact: Artifact) -> str:
    """Return the command that makes an artifact of this kind and name, otherwise with defaults."""
    named = artifact.record.naming_options(artifact.name) or {}
    return command(artifact.root, artifact.record.makers[0].command, **named)


def rebuilt(artifact: Artifact, manifest: Manifest) -> str:
    """Return the command that makes what a manifest describes, with every option that is not a default."""
    name, values = options(artifact, manifest)
    return command(artifact.root, name, **values)


def options(artifact: Artifact, manifest: Manifest) -> tuple[str, dict[str, Any]]:
    """Return the command that makes what a manifest describes, and the values of its options by name."""
    if artifact.record.options_in_name:
        return artifact.record.makers[0].command, artifact.record.naming_options(artifact.name) or {}
    maker = artifact.record.maker(tuple(each.kind for each in manifest.inputs))
    values: dict[str, Any] = {}
    for option in options_of(maker.settings):
        kinds = [kind for kind, record in INPUTS.items() if option.name in (kind, *record.options)]
        names = [each.name for each in manifest.inputs_of(*kinds)]
        if names:
            values[option.name] = names if option.many else names[0]
    values |= dict(manifest.settings)
    if _is_upstream(artifact, manifest):
        values.pop("dataset", None)
    if "loss" in values and values["loss"] == default_loss(manifest.results.get("task", CLASSIFICATION)):
        values.pop("loss")
    if values.get("teacher") == [TrainTeacher.name]:
        values.pop("teacher")
    if maker.settings is not CorrectBias or artifact.name != f"{values.get('student')}-corrected":
        values[artifact.record.option] = artifact.name
    return maker.command, values


def _is_upstream(artifact: Artifact, manifest: Manifest) -> bool:
    """Return whether the dataset is taken from an artifact that is an input."""
    teacher = manifest.input("teacher")
    trained_here = artifact.kind == "soft targets" and teacher is not None and NAME.fullmatch(teacher.name)
    return bool(trained_here or manifest.input("soft_targets") or manifest.input("student"))


def after_teacher(root: Path, teacher: str, task: str) -> str:
    """Return the command that follows train-teacher."""
    always = ("temperature",) if uses_temperature(task) else ()
    teachers = [] if teacher == TrainTeacher.name else [teacher]
    return command(root, "soften", always=always, teacher=teachers, temperature=20.0)


def after_soften(root: Path, soft_targets: str, results: Mapping[str, Any]) -> str:
    """Return the command that follows soften.

    Args:
        root: the workspace.
        soft_targets: their name.
        results: of their manifest.
    """
    model = None if results["teacher"]["model"] else "mlp-800"
    alpha = 0.1 if results["labeled"] and TASKS[results["task"]].hard_part else 0.0
    return command(root, "train-student", always=("alpha",), soft_targets=soft_targets, model=model, alpha=alpha)
