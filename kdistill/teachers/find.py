"""Finding teachers by name or path, and loading them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdistill.data import Dataset, Split
from kdistill.errors import KdistillError
from kdistill.settings import NAME, Soften
from kdistill.soft_targets.storage import check_usable
from kdistill.teachers.ensemble import Ensemble
from kdistill.teachers.outputs import PROBED_ROWS, ZERO_MASS, check_classes, gives_probabilities
from kdistill.workspace import Artifact, Input, Manifest, MissingArtifactError, Workspace, digest

if TYPE_CHECKING:
    from kdistill.networks.saved_models import SavedNetwork


@dataclass(frozen=True)
class UnloadedTeacher:
    """A teacher on disk: its name and digest, its path, and, if it is in the workspace, its artifact and manifest."""

    identity: Input
    path: Path
    artifact: Artifact | None = None
    manifest: Manifest | None = None

    def load(self, signature: str | None, output: str | None, teacher_input: str) -> SavedNetwork:
        """Load the network; the arguments apply to external teachers only."""
        from kdistill.networks.saved_models import SavedNetwork

        if self.artifact:
            return SavedNetwork.load(self.path)
        return SavedNetwork.load(self.path, signature=signature, output=output, raw=teacher_input == "raw")


def find_teacher(place: Workspace, name: str) -> UnloadedTeacher:
    """Find a teacher by its name in the workspace, or by the path of its SavedModel or `.keras` file.

    Raises:
        KdistillError: if there is none, or it is damaged.
    """
    path = Path(name).expanduser().absolute()
    if NAME.fullmatch(name):
        artifact = place.teacher(name)
        if artifact.path.exists():
            manifest = artifact.require()
            identity = Input("teacher", name, manifest.outputs["saved_model"])
            return UnloadedTeacher(identity, artifact.path / "saved_model", artifact, manifest)
        if not path.exists() and path.suffix != ".keras":
            names = ", ".join(teacher.name for teacher in place.artifacts("teacher")) or "none"
            message = f"there is no {artifact} in {place.root} (teachers: {names}): {artifact.command}"
            raise MissingArtifactError(message, artifact)
    if not path.exists():
        raise KdistillError(
            f"--teacher {name}: there is no such file or directory, and no such teacher in {place.root}"
        )
    if path.suffix == ".keras" and not path.is_file():
        raise KdistillError(f"--teacher {name} is not a regular file (expected a .keras file)")
    if path.suffix != ".keras" and not (path / "saved_model.pb").exists():
        raise KdistillError(f"--teacher {name} {_not_a_network(name)}")
    return UnloadedTeacher(Input("teacher", str(path), digest(path)), path)


def _not_a_network(name: str) -> str:
    """Return what a path is that is neither a SavedModel nor a `.keras` file, and what to do with it."""
    lower, quoted = name.lower(), shlex.quote(name)
    if lower.endswith(".weights.h5"):
        return (
            "has weights without their architecture; save the whole network with model.save('net.keras'), or continue "
            f"training from the weights: kdistill train-teacher --model MODEL --weights {quoted}"
        )
    if lower.endswith((".h5", ".hdf5", ".npy", ".npz")):
        return (
            "is a file of arrays (expected a SavedModel or a .keras file); save a network with model.save('net.keras'), "
            f"or, for a file of logits, pass --logits {quoted}"
        )
    return (
        "is neither a SavedModel (a directory with saved_model.pb) nor a .keras file; run any other teacher over the "
        "transfer set, save its logits with np.savez('logits.npz', logits=logits), and pass --logits logits.npz"
    )


def load_ensemble(teachers: Sequence[UnloadedTeacher], settings: Soften, dataset: Dataset, split: Split) -> Ensemble:
    """Load teachers, and try them on the first rows of a transfer set.

    Raises:
        KdistillError: if a teacher does not fit the data, or has changed since it was found.
    """
    from kdistill.data.augmentation import Views
    from kdistill.networks import loading

    first_rows = next(split.blocks(PROBED_ROWS))
    members, probabilities = [], []
    for teacher in teachers:
        if teacher.artifact:
            manifest, network = loading.load_network(teacher.artifact)
            if manifest != teacher.manifest:
                raise KdistillError(f"{teacher.artifact} has just been replaced; run the same command again")
        else:
            network = teacher.load(settings.signature, settings.output, settings.teacher_input)
        network.check(dataset.input_shape, dataset.input_dtype, dataset.outputs, dataset.name)
        outputs = network.logits(first_rows)
        check_usable(outputs, teacher.path, range(len(outputs)))
        check_classes(outputs.shape[1], teacher.path, dataset)
        members.append(network)
        probabilities.append(gives_probabilities(outputs, settings, teacher.path))
    views = Views(settings.augment, settings.seed or 0, settings.views) if settings.augment else None
    return Ensemble(members, probabilities, settings.mean, settings.temperature, outputs.shape[1], views)


def reload_ensemble(place: Workspace, manifest: Manifest) -> Ensemble | None:
    """Load the teachers that made a soft-target file; `manifest` is the file's.

    Returns:
        The teachers; None if they have changed, are not networks, or their zero probabilities were treated differently.
    """
    inputs = manifest.inputs_of("teacher")
    settings, probabilities = manifest.settings, manifest.results["teacher"]["probabilities"]
    if not inputs or (any(probabilities) and settings.get("zero_mass") != ZERO_MASS):
        return None
    try:
        teachers = [find_teacher(place, teacher.name) for teacher in inputs]
        if [teacher.identity.digest for teacher in teachers] != [recorded.digest for recorded in inputs]:
            return None
        how = settings["signature"], settings["output"], settings["teacher_input"]
        members = [teacher.load(*how) for teacher in teachers]
    except (KdistillError, OSError):
        return None
    return Ensemble(
        members, probabilities, settings["mean"] or "arithmetic", settings["temperature"], manifest.results["classes"]
    )
