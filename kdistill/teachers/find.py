"""Finding teachers by name or path, and loading them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdistill import tasks, workspace
from kdistill.data import Dataset, Split, user_code
from kdistill.errors import KdistillError
from kdistill.settings import FUNCTION_NAME, NAME, Soften
from kdistill.teachers import onnx_networks
from kdistill.teachers.ensemble import Ensemble, Member, usable_outputs
from kdistill.teachers.functions import FunctionTeacher
from kdistill.teachers.onnx_networks import OnnxNetwork
from kdistill.teachers.outputs import PROBED_ROWS, ZERO_MASS, check_classes, gives_probabilities
from kdistill.teachers.precomputed import StoredTeacher
from kdistill.workspace import Artifact, Input, Manifest, MissingArtifactError, Workspace

EXTERNAL_OPTIONS = ("signature", "output", "teacher_output", "teacher_input", "teacher_layout")


@dataclass(frozen=True)
class UnloadedTeacher:
    """A teacher on disk.

    Attributes:
        identity: its name or path, and its digest.
        load: takes the recorded settings of `soften` and the number of outputs, None if any will do; returns the teacher.
        artifact: the teacher in the workspace, if it is there.
        manifest: its manifest.
    """

    identity: Input
    load: Callable[[Mapping[str, Any], int | None], Member]
    artifact: Artifact | None = None
    manifest: Manifest | None = None


def find_teacher(place: Workspace, name: str) -> UnloadedTeacher:
    """Find a teacher by its name in the workspace, by its path, or by the `module:function` that computes its outputs.

    Raises:
        KdistillError: if there is none, or it is damaged.
    """
    path = Path(name).expanduser().absolute()
    if NAME.fullmatch(name):
        artifact = place.teacher(name)
        if artifact.path.exists():
            manifest = artifact.require()
            identity = Input("teacher", name, manifest.outputs["saved_model"])
            return UnloadedTeacher(identity, partial(_load_own, artifact.path / "saved_model"), artifact, manifest)
        if not path.exists() and path.suffix not in LOADERS:
            names = ", ".join(teacher.name for teacher in place.artifacts("teacher")) or "none"
            message = f"there is no {artifact} in {place.root} (teachers: {names}): {artifact.command}"
            raise MissingArtifactError(message, artifact)
    if not path.exists() and FUNCTION_NAME.fullmatch(name):
        source = user_code.find_source(name, "teacher")
        return UnloadedTeacher(Input("teacher", name, digest(name)), partial(_load_function, name, source))
    if not path.exists():
        raise KdistillError(
            f"--teacher {name}: there is no such file or directory, and no such teacher in {place.root}"
        )
    if path.suffix in LOADERS and not path.is_file():
        raise KdistillError(f"--teacher {name} is not a regular file (expected a {path.suffix} file)")
    if path.suffix not in LOADERS and not (path / "saved_model.pb").exists():
        raise KdistillError(f"--teacher {name} {_not_a_network(name)}")
    load = LOADERS.get(path.suffix, _load_saved_network)
    return UnloadedTeacher(Input("teacher", str(path), digest(str(path))), partial(load, path))


def digest(name: str) -> str:
    """Return the digest of an external teacher, or of any file by its absolute path.

    Raises:
        KdistillError: if it is a function whose source or artifacts are missing.
        OSError: if it is a file that can't be read.
    """
    path = Path(name)
    if not path.is_absolute():
        return user_code.digest(name, "teacher")
    return onnx_networks.digest(path) if path.suffix == ".onnx" else workspace.digest(path)


def _load_own(path: Path, settings: Mapping[str, Any], *_: object) -> Member:
    from kdistill.networks.saved_models import SavedNetwork

    return SavedNetwork.load(path).compiled(_batch_size(settings))


def _load_saved_network(path: Path, settings: Mapping[str, Any], *_: object) -> Member:
    from kdistill.networks.saved_models import SavedNetwork

    raw = settings["teacher_input"] == "raw"
    network = SavedNetwork.load(path, signature=settings["signature"], output=settings["output"], raw=raw)
    return network.compiled(_batch_size(settings))


def _batch_size(settings: Mapping[str, Any]) -> int:
    return int(settings.get("batch_size") or Soften.batch_size)


def _load_onnx(path: Path, settings: Mapping[str, Any], *_: object) -> Member:
    layout = settings.get("teacher_layout", Soften.teacher_layout)
    return OnnxNetwork.load(
        path,
        output=settings["output"],
        raw=settings["teacher_input"] == "raw",
        layout=None if layout == Soften.teacher_layout else layout,
    )


def _load_function(name: str, source: Path, _: object, outputs: int | None) -> Member:
    return FunctionTeacher.load(name, source, outputs)


LOADERS = {".keras": _load_saved_network, ".onnx": _load_onnx}  # by the ending of a file


def _not_a_network(name: str) -> str:
    """Return what a path is that is not a network, and what to do with it."""
    lower, quoted = name.lower(), shlex.quote(name)
    if lower.endswith(".weights.h5"):
        return (
            "has weights without their architecture; save the whole network with model.save('net.keras'), or continue "
            f"training from the weights: kdistill train-teacher --model MODEL --weights {quoted}"
        )
    if lower.endswith((".h5", ".hdf5", ".npy", ".npz")):
        return (
            "is a file of arrays (expected a SavedModel, a .keras or an .onnx file); save a network with model.save('net.keras'), "
            f"or, for a file of logits, pass --logits {quoted}"
        )
    return (
        "is neither a SavedModel (a directory with saved_model.pb) nor a .keras or .onnx file; wrap any other teacher in a "
        "Python function and pass --teacher MODULE:FUNCTION, or save its logits with np.savez('logits.npz', logits=logits) "
        "and pass --logits logits.npz"
    )


def load_ensemble(teachers: Sequence[UnloadedTeacher], settings: Soften, dataset: Dataset, split: Split) -> Ensemble:
    """Load teachers, and try them on the first rows of a transfer set.

    Raises:
        KdistillError: if a teacher does not fit the data, or has changed since it was found.
    """
    first_rows, recorded = next(split.blocks(PROBED_ROWS)), settings.recorded()
    members, probabilities = [], []
    for teacher in teachers:
        member = teacher.load(recorded, dataset.outputs)
        if teacher.artifact and teacher.artifact.manifest() != teacher.manifest:
            raise KdistillError(f"{teacher.artifact} has just been replaced; run the same command again")
        member.check(dataset.input_shape, dataset.input_dtype, dataset.outputs, dataset.name)
        outputs = usable_outputs(member, first_rows, settings.batch_size)
        check_classes(outputs.shape[1], member, dataset)
        members.append(member)
        probabilities.append(gives_probabilities(outputs, settings.teacher_output, member, dataset.task))
    views = None
    if settings.augment:
        from kdistill.data.augmentation import Views

        views = Views(settings.augment, settings.seed or 0, settings.views)
    width = outputs.shape[1]
    return Ensemble(
        members, probabilities, settings.mean, settings.temperature, settings.batch_size, width, dataset.task, views
    )


def reload_ensemble(place: Workspace, manifest: Manifest) -> Ensemble | None:
    """Load the teachers that made a soft-target file; `manifest` is the file's.

    Returns:
        The teachers; None if they have changed, are logits in a file, or their zero probabilities were treated differently.
    """
    inputs = manifest.inputs_of("teacher")
    settings, results = manifest.settings, manifest.results
    probabilities = results["teacher"]["probabilities"]
    if not inputs or (any(probabilities) and settings.get("zero_mass") != ZERO_MASS):
        return None
    try:
        teachers = [find_teacher(place, teacher.name) for teacher in inputs]
        if [teacher.identity.digest for teacher in teachers] != [recorded.digest for recorded in inputs]:
            return None
        members = [teacher.load(settings, results["classes"]) for teacher in teachers]
    except (KdistillError, OSError):
        return None
    mean, batch_size = settings["mean"] or Soften.mean, _batch_size(settings)
    task = tasks.get(results["task"])
    return Ensemble(members, probabilities, mean, settings["temperature"], batch_size, results["classes"], task)


def reload_for_test_rows(place: Workspace, manifest: Manifest, dataset: Dataset) -> Ensemble | StoredTeacher | None:
    """Load the teachers of a soft-target file, or the logits that they gave the test rows of a dataset.

    Returns:
        The teachers, or their logits of the test rows from a file; None if these have changed or were not given.
    """
    stored = manifest.input("test_logits")
    if stored is None:
        return reload_ensemble(place, manifest)
    try:
        if digest(stored.name) == stored.digest:
            return StoredTeacher.load(Path(stored.name), manifest.settings["teacher_output"], dataset)
    except (KdistillError, OSError):
        pass
    return None
