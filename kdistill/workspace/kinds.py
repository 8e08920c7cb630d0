"""The kinds of artifacts: one record each. All commands that look at artifacts iterate over these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from kdistill.settings import COMMANDS, FUNCTION_NAME, Export, Selection, Settings, uses_temperature

if TYPE_CHECKING:
    from kdistill.workspace.manifest import Manifest

Schema = Mapping[str, Any]

CHECKPOINT = "checkpoint.npz"  # of a network in training
BLOCKS = "blocks.log"  # of a soft-target file
SWEEP = "sweep.json"  # of a sweep, whose finished students are separate artifacts


@dataclass(frozen=True)
class Maker:
    """A command that makes artifacts of a kind.

    Attributes:
        command: its name.
        inputs: groups of kinds of inputs; of each group there is at least one.
        outputs: the files that it always writes.
        results: keys and types of the results that later commands read.
        marker: the kind of input that only this command records; empty for the first maker of a kind.
        gathers: kinds of artifacts; it takes all of these, unless the user names some.
    """

    command: str
    inputs: tuple[tuple[str, ...], ...] = ()
    outputs: tuple[str, ...] = ()
    results: Schema = field(default_factory=dict)
    marker: str = ""
    gathers: tuple[str, ...] = ()

    @property
    def settings(self) -> type[Settings]:
        """The settings class of the command."""
        return COMMANDS[self.command]


@dataclass(frozen=True)
class Kind:
    """A kind of artifact.

    Attributes:
        name: in manifests and messages.
        directory: in the workspace, where artifacts of the kind are; empty if they are wherever the user wants.
        makers: the commands that make it, the usual one first.
        required: settings without which a manifest is damaged; others have their defaults.
        summary: what `status` prints of an artifact, from its manifest.
        verify: the function that yields what is wrong with an artifact, as `module:function`.
        output: the output whose digest is recorded by artifacts that are made from this one.
        parts: the result whose keys name the artifacts inside of it, and the directory of these.
        outputs_used: by kind, the output whose digest artifacts of this kind record instead.
        suffix: of a file that carries its own manifest (HDF5); empty for a directory.
        resumed_from: the file that interrupted work is resumed from.
        repaired_by_force: whether `--force` makes a damaged one again as a whole; otherwise the command repairs its parts.
        shared: whether its directory holds other files too, so that files are replaced one by one.
        single: whether a workspace has only one, made from many artifacts, whose name and directory are the kind's.
        beside: whether it is a file whose manifest is a file beside it, `FILE.json`.
        option: of the commands that make it, which names it.
        options_in_name: returns all options of the command from the name of an artifact, or None if no artifact has this
            name; if the name is only the value of `option`, this is None.
    """

    name: str
    directory: str
    makers: tuple[Maker, ...]
    required: tuple[str, ...]
    summary: Callable[[Manifest], str]
    verify: str
    output: str | None = None
    parts: str = ""
    outputs_used: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""
    resumed_from: str | None = None
    shared: bool = False
    single: bool = False
    repaired_by_force: bool = True
    beside: bool = False
    option: str = "name"
    options_in_name: Callable[[str], dict[str, Any] | None] | None = None

    def maker(self, input_kinds: tuple[str, ...] = ()) -> Maker:
        """Return the command that makes artifacts from some kinds of inputs."""
        return next((maker for maker in self.makers if maker.marker in input_kinds), self.makers[0])

    def naming_options(self, name: str) -> dict[str, Any] | None:
        """Return the options that give an artifact its name; None if no artifact can have it."""
        return self.options_in_name(name) if self.options_in_name else {self.option: name}


@dataclass(frozen=True)
class InputKind:
    """A kind of input: data, a file by its absolute path, a function, or an artifact of the workspace.

    Attributes:
        artifact: the kind of artifact that its name can be.
        file: whether its name can be an absolute path.
        function: whether its name can be `module:function`.
        options: the options that give it, if they have another name.
    """

    artifact: str | None = None
    file: bool = False
    function: bool = False
    options: tuple[str, ...] = ()

    @property
    def data(self) -> bool:
        """Whether its name is that of a dataset."""
        return self.artifact is None and not self.file

    def is_artifact(self, name: str) -> bool:
        """Return whether a name is that of an artifact of the workspace."""
        return self.artifact is not None and not PurePath(name).is_absolute() and not self.is_function(name)

    def is_function(self, name: str) -> bool:
        """Return whether a name is `module:function`."""
        return self.function and FUNCTION_NAME.fullmatch(name) is not None


INPUTS = {
    "dataset": InputKind(),
    "transfer_set": InputKind(),
    "inputs": InputKind(),
    "data": InputKind(),
    "teacher": InputKind(artifact="teacher", file=True, function=True, options=("teacher", "network")),
    "student": InputKind(artifact="student", options=("student", "network")),
    "soft_targets": InputKind(artifact="soft targets"),
    "other_soft_targets": InputKind(artifact="soft targets"),
    "sweep": InputKind(artifact="sweep"),
    "export": InputKind(artifact="export", file=True, options=("network",)),
    "logits": InputKind(file=True),
    "test_logits": InputKind(file=True),
    "model": InputKind(file=True),
    "weights": InputKind(file=True),
}

_NETWORK_RESULTS = {
    "model": str,
    "parameters": int,
    "task": str,
    "summary": str,
    "test_rows": int,
    "held_out_rows": int,
    "best_epoch": int,
    "epochs_run": int,
}


def _network_summary(manifest: Manifest) -> str:
    results, selection = manifest.results, str(Selection.of(manifest.settings))
    return f"{manifest.settings['model']}, {results['summary']}{f', {selection}' if selection else ''}"


def _soft_targets_summary(manifest: Manifest) -> str:
    results, settings = manifest.results, manifest.settings
    at_temperature = [f"T = {settings['temperature']:g}"] if uses_temperature(results["task"]) else []
    parts = [*at_temperature, f"{results['rows']:,} rows, {results['outputs']}"]
    if results["labeled"] < results["rows"]:
        parts.append(f"{results['labeled']:,} labeled")
    if settings.get("top_k") is not None:
        parts.append(f"top {settings['top_k']} logits")
    return ", ".join([*parts, *filter(None, [str(Selection.of(settings))])])


def _export_summary(manifest: Manifest) -> str:
    results = manifest.results
    return f"{results['summary']}, {results['bytes']:,} bytes"


def _export_options(name: str) -> dict[str, Any] | None:
    settings = Export.named(name)
    return None if settings is None else settings.recorded() | {"network": settings.network}


TEACHER = Kind(
    "teacher",
    "teachers",
    (Maker("train-teacher", (("dataset",),), ("saved_model", "history.csv"), _NETWORK_RESULTS),),
    ("model",),
    _network_summary,
    "kdistill.stages.verify:check_network",
    output="saved_model",
    resumed_from=CHECKPOINT,
)
SOFT_TARGETS = Kind(
    "soft targets",
    "soft-targets",
    (
        Maker(
            "soften",
            (("dataset",), ("teacher", "logits")),
            ("content",),
            {
                "task": str,
                "rows": int,
                "classes": int,
                "outputs": str,
                "labeled": int,
                "score": float,
                "teacher": {"model": str | None, "parameters": int | None, "probabilities": list[bool]},
            },
        ),
    ),
    ("temperature", "dtype"),
    _soft_targets_summary,
    "kdistill.stages.verify:check_soft_targets",
    output="content",
    suffix=".h5",
    resumed_from=BLOCKS,
)
STUDENT = Kind(
    "student",
    "students",
    (
        Maker(
            "train-student",
            (("dataset",),),
            ("saved_model", "history.csv"),
            {**_NETWORK_RESULTS, "teacher": str | None},
        ),
        Maker(
            "correct-bias",
            (("dataset",), ("student",)),
            ("saved_model",),
            {
                **_NETWORK_RESULTS,
                "teacher": str | None,
                "classes": [{"name": str, "wanted": int, "before": int, "after": int, "shift": float}],
                "inputs": int,
                "test_errors": int,
                "student_test_errors": int,
            },
            marker="student",
        ),
    ),
    ("model", "alpha", "epochs", "seed"),
    _network_summary,
    "kdistill.stages.verify:check_network",
    output="saved_model",
    resumed_from=CHECKPOINT,
)
SWEEPS = Kind(
    "sweep",
    "sweeps",
    (Maker("sweep", (("dataset",), ("soft_targets",)), ("table.csv",), {"task": str, "students": dict[str, str]}),),
    ("model", "temperature", "alpha", "loss", "seeds"),
    lambda manifest: f"{len(manifest.results['students'])} students",
    "kdistill.stages.verify:check_files",
    output="table.csv",
    parts="students",
    resumed_from=SWEEP,
    shared=True,
    repaired_by_force=False,
)
EXPORT = Kind(
    "export",
    "exports",
    (
        Maker(
            "export",
            (("dataset",), ("student", "teacher")),
            ("README.md", "kdistill.json"),
            {
                "summary": str,
                "test_rows": int,
                "bytes": int,
                "original_bytes": int,
                "task": str,
                "threads": int,
            },
        ),
    ),
    ("format", "quantize"),
    _export_summary,
    "kdistill.stages.verify:check_export",
    options_in_name=_export_options,
)
PLOTS = Kind(
    "plots",
    "plots",
    (Maker("plot", gathers=("teacher", "student")),),
    ("format",),
    lambda manifest: ", ".join(manifest.outputs),
    "kdistill.stages.verify:check_files",
    outputs_used={"teacher": "history.csv", "student": "history.csv"},
    shared=True,
    single=True,
)
REPORT = Kind(
    "report",
    "report",
    (
        Maker(
            "report",
            (("dataset",), ("teacher", "student")),
            ("report.html",),
            gathers=("teacher", "soft targets", "student", "sweep", "export"),
        ),
    ),
    (),
    lambda manifest: ", ".join(manifest.outputs),
    "kdistill.stages.verify:check_files",
    single=True,
)
PREDICTIONS = Kind(
    "predictions",
    "",
    (Maker("predict", (("data",), ("teacher", "student", "export")), (), {"task": str, "rows": int}),),
    (),
    lambda manifest: f"{manifest.results['rows']:,} rows",
    "kdistill.stages.verify:check_files",
    resumed_from=BLOCKS,
    beside=True,
    option="output",
)
KINDS = {  # upstream first
    kind.name: kind for kind in (TEACHER, SOFT_TARGETS, STUDENT, SWEEPS, EXPORT, PLOTS, REPORT, PREDICTIONS)
}
