"""The settings of the stages that distill: train-teacher, soften, train-student, and run for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from kdistill.errors import UsageError
from kdistill.settings.checks import (
    artifact_name,
    integer,
    nonempty,
    one_of,
)
from kdistill.settings.groups import AUGMENT, SEEDS, ReadOptions, Selection, Training
from kdistill.settings.objective import Objective
from kdistill.settings.options import Only, Settings, option, options_of, override, overrides
from kdistill.settings.shared import (
    Cluster,
    Dataset,
    Formats,
    Model,
    OtherDataset,
    ReadsDataset,
    SoftTargetsName,
    StudentModel,
    TemperatureOption,
    Tracking,
    TrainingCluster,
    Weights,
)


@dataclass(frozen=True, kw_only=True)
class TrainTeacher(Settings):
    """Train a teacher on the hard labels of a dataset."""

    dataset: Dataset = "digits"
    read: ReadOptions = ReadOptions()
    model: Model = "cnn"
    weights: Weights = None
    objective: Annotated[Objective, Only(("label_smoothing",))] = Objective(alpha=1.0)
    training: Training = Training()
    cluster: TrainingCluster = TrainingCluster()
    name: Annotated[str, option("Name of the teacher.", artifact_name(), recorded=False)] = "teacher"
    tracking: Tracking = Tracking()

    @property
    def data(self) -> str:
        """The dataset's name with its read options."""
        return self.read.named(self.dataset)


@dataclass(frozen=True, kw_only=True)
class Soften(ReadsDataset):
    """Run a teacher over the transfer set and store its logits.

    By default, the transfer set is the training rows of the teacher's dataset. Several teachers are averaged. With
    augmentation, the teacher sees several views of each row: the row itself and augmented copies.
    """

    teachers: Annotated[
        tuple[str, ...],
        option(
            "Teacher: a name in the workspace, a SavedModel directory, a .keras or .onnx file, or package.module:function, "
            "called with rows. Repeat to average several. Default: teacher.",
            nonempty(),
            "Teacher",
            metavar="NAME|PATH|FUNCTION",
            name="teacher",
            recorded=False,
        ),
    ] = ()
    temperature: TemperatureOption = 20.0
    mean: Annotated[
        str,
        option(
            "Average of several teachers: arithmetic, of their probabilities at T; geometric, of their logits. Numbers and "
            "vectors are averaged as they are.",
            one_of("arithmetic", "geometric"),
            "Teacher",
        ),
    ] = "arithmetic"
    signature: Annotated[
        str | None,
        option("Signature of an external SavedModel that has several.", nonempty(), "Teacher", metavar="NAME"),
    ] = None
    output: Annotated[
        str | None, option("Output of an external network that has several.", nonempty(), "Teacher", metavar="NAME")
    ] = None
    teacher_output: Annotated[
        str,
        option(
            "What an external teacher returns. auto decides by its first rows.",
            one_of("auto", "logits", "probabilities"),
            "Teacher",
        ),
    ] = "auto"
    teacher_input: Annotated[
        str,
        option(
            "How external networks take uint8 inputs: scaled to [0, 1], or raw, 0 to 255.",
            one_of("scaled", "raw"),
            "Teacher",
        ),
    ] = "scaled"
    teacher_layout: Annotated[
        str,
        option(
            "Axis order of an ONNX network's images. auto decides by the shapes.",
            one_of("auto", "channels-first", "channels-last"),
            "Teacher",
        ),
    ] = "auto"
    logits: Annotated[
        str | None,
        option(
            "File of logits or probabilities (.npy, .npz, .h5) to use instead of a teacher, in the order of the transfer "
            "set. If it has labels, they are compared with those of the transfer set; if it has row_keys, rows are matched by "
            "them.",
            nonempty(),
            "Teacher",
            metavar="FILE",
            recorded=False,
        ),
    ] = None
    test_logits: Annotated[
        str | None,
        option(
            "File like that of --logits, with the test rows of the dataset, so that evaluate and the controls of sweep can "
            "measure the teacher.",
            nonempty(),
            "Teacher",
            metavar="FILE",
            recorded=False,
        ),
    ] = None
    dataset: OtherDataset = None
    read: ReadOptions = ReadOptions()
    transfer_sets: Annotated[
        tuple[str, ...],
        option(
            "Rows to use instead of the training rows, with or without labels. Repeat for several.",
            nonempty(),
            "Data",
            metavar="DATA",
            name="transfer-set",
            recorded=False,
        ),
    ] = ()
    selection: Selection = Selection()
    augment: Annotated[
        str | None,
        option(
            "Store logits of augmented views of images too, with the steps of train-teacher --augment.",
            AUGMENT,
            "Views",
            metavar="STEPS",
        ),
    ] = None
    views: Annotated[
        int | None,
        option("Views per row: the row itself and K - 1 augmented ones.", integer(2, 10_000), "Views", metavar="K"),
    ] = None
    seed: Annotated[int, option("Seed of the views.", SEEDS, "Views")] = 0
    dtype: Annotated[str, option("Type of the stored logits.", one_of("float32", "float16"), "Storage")] = "float32"
    top_k: Annotated[
        int | None,
        option(
            "Store the K largest logits of each row and the probability of the rest at T.",
            integer(1),
            "Storage",
            metavar="K",
        ),
    ] = None
    no_soft_targets: Annotated[
        bool,
        option(
            "Store the logits only, in half of the space. kdistill computes the soft targets when it reads the file.",
            group="Storage",
        ),
    ] = False
    batch_size: Annotated[int, option("Rows per call of the teacher.", integer(1), "Compute")] = 1000
    cluster: Cluster = Cluster()
    name: Annotated[str, option("Name of the soft targets.", artifact_name(), recorded=False)] = "soft-targets"

    def check_combinations(self) -> None:
        if self.logits is not None and self.teachers:
            raise UsageError("--logits replaces the teacher: remove --teacher")
        if self.test_logits is not None and self.logits is None:
            raise UsageError(
                "--test-logits needs --logits, since any other teacher can be run on the test rows: remove it"
            )
        if self.cluster.ray is not None and self.logits is not None:
            raise UsageError("--ray has no effect with --logits, since no teacher is run: remove it")
        if self.augment is not None and self.logits is not None:
            raise UsageError("--augment needs a teacher, and --logits replaces it: remove one of them")
        if (self.augment is None) != (self.views is None):
            raise UsageError("--augment and --views need each other, e.g. --augment shift:2 --views 16")
        if self.seed and self.augment is None:
            raise UsageError("--seed needs --augment, since it draws the views: remove it")
        if not self.transfer_sets:  # without a dataset, the read options are those of the transfer sets
            super().check_combinations()

    @property
    def transfer_data(self) -> tuple[str, ...]:
        """The names of the transfer sets with their read options."""
        return tuple(map(self.read.named, self.transfer_sets))


@dataclass(frozen=True, kw_only=True)
class TrainStudent(ReadsDataset):
    """Train a student from soft targets, without the teacher.

    With alpha 1, the student learns from hard labels only and needs no soft targets. The row options select from the
    rows of the soft-target file, or with alpha 1 from the training rows of the dataset.
    """

    objective: Objective = Objective()
    soft_targets: SoftTargetsName = "soft-targets"
    permute_soft_targets: Annotated[
        bool,
        option(
            "Control experiment: give each row the soft targets of a random other row with the same label.",
            group="Objective",
        ),
    ] = False
    dataset: OtherDataset = None
    read: ReadOptions = ReadOptions()
    selection: Selection = Selection()
    model: StudentModel = None
    weights: Weights = None
    embedding_size: Annotated[
        int | None,
        option(
            "Width of the student's vectors, for the task embedding. Default: the width of the teacher's.",
            integer(1),
            "Network",
            metavar="N",
        ),
    ] = None
    training: Training = Training()
    cluster: TrainingCluster = TrainingCluster()
    name: Annotated[str, option("Name of the student.", artifact_name(), recorded=False)] = "student"
    tracking: Tracking = Tracking()

    def check_combinations(self) -> None:
        augment = self.training.augment
        if augment and self.objective.alpha < 1:
            raise UsageError(
                f"--augment {augment} would train on inputs without soft targets: store views with kdistill soften "
                f"--augment {augment} --views 16, or use --alpha 1"
            )
        if self.permute_soft_targets and self.objective.alpha == 1:
            raise UsageError(
                "--permute-soft-targets has no effect with --alpha 1 (hard labels only): remove it, or lower --alpha"
            )
        super().check_combinations()

    def hard(self) -> TrainStudent:
        """Return the settings of the same student with hard labels only."""
        return replace(self, objective=self.objective.hard, permute_soft_targets=False)

    def seeded(self, seed: int) -> TrainStudent:
        """Return the settings of the same student with another seed."""
        return replace(self, training=replace(self.training, seed=seed))


APART = ("epochs", "batch_size", "learning_rate", "seed", "dropout")  # what `run` sets for one network
TEACHER_TRAINING = overrides(Training, "teacher", *APART, "augment")
STUDENT_TRAINING = overrides(Training, "student", *APART)


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """Run all four stages, then evaluate; or the stages of a configuration file.

    Stages that are up to date are skipped. Training options apply to both networks, except --teacher-* and --student-*,
    which come first. A configuration file can set every option of every stage.
    """

    dataset: Dataset = TrainTeacher.dataset
    read: ReadOptions = ReadOptions()
    model: Model = TrainTeacher.model
    student_model: StudentModel = None
    temperature: TemperatureOption = Soften.temperature
    objective: Annotated[Objective, Only(omit=("temperature",))] = Objective()
    training: Training = Training()
    teacher_training: Settings = TEACHER_TRAINING()
    student_training: Settings = STUDENT_TRAINING()
    formats: Formats = ("png",)
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()
    config: Annotated[
        str | None,
        option(
            "Run the stages of this file instead, e.g. kdistill.toml: a table per stage, and its options as keys.",
            nonempty(),
            "Configuration",
            metavar="FILE",
        ),
    ] = None
    write_config: Annotated[
        bool,
        option(
            "Write the file that makes the artifacts of the workspace, to --config or kdistill.toml.",
            group="Configuration",
        ),
    ] = False

    def check_combinations(self) -> None:
        self.teacher, self.student  # noqa: B018 - all settings are checked before any work
        if self.config is not None or self.write_config:
            for each in options_of(Run):
                applies = each.option.group == "Configuration" or (
                    each.option.group == "Cluster" and not self.write_config
                )
                if not applies and each.get(self) != each.default:
                    raise UsageError(
                        f"--{each.flag} has no effect with {'--write-config' if self.write_config else '--config'}: remove "
                        "it, or set it in the file, in the table of a stage"
                    )

    @property
    def teacher(self) -> TrainTeacher:
        """The settings of train-teacher."""
        smoothing = self.objective.label_smoothing if self.objective.alpha else None
        return TrainTeacher(
            dataset=self.dataset,
            read=self.read,
            model=self.model,
            objective=Objective(alpha=1.0, label_smoothing=smoothing),
            training=override(self.training, self.teacher_training),
            tracking=self.tracking,
        )

    @property
    def student(self) -> TrainStudent:
        """The settings of train-student."""
        return TrainStudent(
            objective=self.objective,
            model=self.student_model,
            training=override(self.training, self.student_training),
            tracking=self.tracking,
        )
