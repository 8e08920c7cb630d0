"""The command line: parse, call one stage, print; the only place that exits."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from kdistill import __version__
from kdistill.console import (
    Reporter,
    interrupts,
    kept_log,
    named,
    printable,
    printable_lines,
    silence_native_stderr,
    watched,
)
from kdistill.errors import KdistillError, UsageError, first_line
from kdistill.settings import (
    MAX_PIXELS,
    CorrectBias,
    Dtype,
    Evaluate,
    Export,
    ExportFormat,
    Loss,
    Mean,
    Optimizer,
    Plot,
    Precision,
    Promote,
    Quantize,
    ReadOptions,
    Schedule,
    Selection,
    Soften,
    Sweep,
    TeacherInput,
    TeacherOutput,
    Training,
    TrainStudent,
    TrainTeacher,
    Xla,
    check_model,
    listed,
    written,
)
from kdistill.workspace import Workspace


class Commands(TyperGroup):
    """The commands; messages about wrong usage quote what was typed, and are printable."""

    def make_context(self, *given: Any, **named: Any) -> Any:
        with _printable_usage_errors():
            return super().make_context(*given, **named)

    def invoke(self, *given: Any, **named: Any) -> Any:
        with _printable_usage_errors():
            return super().invoke(*given, **named)


@contextlib.contextmanager
def _printable_usage_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # Click's, which newer versions of Typer have a copy of
            error.message = printable(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="kdistill",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is a third faster to show, and leaves options more room
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil a trained network (the teacher) into another (the student), offline: train-teacher, soften, "
    "train-student and plot, each from what the one before left in the workspace. `kdistill run` does all four.",
)


@dataclass(frozen=True)
class Session:
    """What every command has: a workspace, and how to speak."""

    workspace: Workspace
    reporter: Reporter
    force: bool
    debug: bool


def session(
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", envvar="KDISTILL_WORKSPACE", help="Where the artifacts lie.")
    ] = Path("workspace"),
    force: Annotated[bool, typer.Option("--force", help="Do it again, though it is up to date.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and TensorFlow's own messages.")] = False,
) -> Session:
    return Session(Workspace(workspace), Reporter(quiet=quiet), force, debug)


def training(
    epochs: Annotated[int, typer.Option(help="How often to go through the training rows.")] = Training.epochs,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = Training.batch_size,
    learning_rate: Annotated[float, typer.Option(help="The optimizer's step size.")] = Training.learning_rate,
    schedule: Annotated[
        Schedule, typer.Option(help="Learning rate over the run: constant, or cosine down to 0.")
    ] = Training.schedule,
    optimizer: Annotated[Optimizer, typer.Option(help="sgd has momentum 0.9.")] = Training.optimizer,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            metavar="PATIENCE",
            help="Stop after this many epochs without a lower validation loss, and keep the best epoch's weights.",
        ),
    ] = Training.early_stopping,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the training rows held out for validation, the same for all stages.")
    ] = Training.validation_fraction,
    seed: Annotated[int, typer.Option(help="Of weights, order and held-out rows.")] = Training.seed,
    precision: Annotated[Precision, typer.Option(help="A Keras dtype policy.")] = Training.precision,
    xla: Annotated[
        Xla, typer.Option(help="Compile the step; auto: on a CPU for dense layers alone, and not for bfloat16.")
    ] = Training.xla,
    memory: Annotated[
        int, typer.Option(metavar="MIB", help="Training data up to this size is held in memory; more is streamed.")
    ] = Training.memory,
    dropout: Annotated[
        str | None,
        typer.Option(metavar="INPUT,HIDDEN", help="Shares of inputs and of hidden units dropped, as 0.2,0.5."),
    ] = Training.dropout,
    max_norm: Annotated[
        float | None, typer.Option(metavar="NORM", help="The most that the weights into a hidden unit have for a norm.")
    ] = Training.max_norm,
    weight_decay: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Decoupled: times the learning rate, off each weight each step."),
    ] = Training.weight_decay,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS",
            help="New views of pictures each epoch: shift:2, crop:4, flip, rotate:10, zoom:0.1, elastic:5.",
        ),
    ] = Training.augment,
    label_smoothing: Annotated[
        float | None,
        typer.Option(metavar="EPS", help="Hard labels are (1 - EPS) of their class and EPS of all alike."),
    ] = Training.label_smoothing,
) -> Training:
    return Training(**locals())  # the options are its fields


def reading(
    inputs: Annotated[
        str | None, typer.Option(metavar="NAMES", help="HDF5: the inputs' dataset. Tables: columns, as a,b,c.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="HDF5: the labels' dataset. Tables: their column. .npy: their file."),
    ] = None,
    test_inputs: Annotated[
        str | None, typer.Option(metavar="NAME", help="HDF5: the test inputs' dataset. Tables, .npy: their file.")
    ] = None,
    test_labels: Annotated[
        str | None, typer.Option(metavar="NAME", help="HDF5: the test labels' dataset. .npy: their file.")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Of image folders: the size to bring images to, as 32 or 24x32.")
    ] = None,
    max_pixels: Annotated[
        str | None,
        typer.Option(
            metavar="N", help=f"Image folders: refuse images with more pixels than this. Default: {MAX_PIXELS}."
        ),
    ] = None,
    test_fraction: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Of data without a test part: the share of rows to set aside as one."),
    ] = None,
    data_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Format of a file with another extension, e.g. .data or .txt: npz, npy, hdf5, csv or parquet.",
        ),
    ] = None,
) -> ReadOptions:
    return ReadOptions(**locals())


def selection(
    omit_class: Annotated[
        str | None,
        typer.Option(metavar="CLASSES", help="Leave out rows of these classes: names or numbers, as 3 or 7,8."),
    ] = Selection.omit_class,
    only_classes: Annotated[
        str | None, typer.Option(metavar="CLASSES", help="Use rows of these classes alone.")
    ] = Selection.only_classes,
    fraction: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Use this share of the rows, of each class alike.")
    ] = Selection.fraction,
    rows_seed: Annotated[
        int | None, typer.Option(metavar="SEED", help="Another seed, another --fraction of the rows. Default: 0.")
    ] = Selection.rows_seed,
) -> Selection:
    return Selection(**locals())


def without(option: str, group: Callable[..., Any]) -> Callable[..., Any]:
    """A group of options less one, which keeps its default."""
    signature = inspect.signature(group, eval_str=True)
    left = [parameter for name, parameter in signature.parameters.items() if name != option]

    def less(**given: Any) -> Any:
        return group(**given, **{option: signature.parameters[option].default})

    less.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
    return less


GROUPS: dict[str, Callable[..., Any]] = {
    "session": session,
    "reading_session": without("force", session),  # of commands that make nothing
    "training": training,
    "reading": reading,
    "selection": selection,
    "unseeded": without("seed", training),
}

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Dataset = Annotated[
    str,
    typer.Option(
        help="digits, mnist, fashion_mnist, cifar10, cifar100, tfds:NAME, package.module:function, a folder of images, "
        "or a file: .npz, .npy, .h5, .hdf5, .csv, .parquet."
    ),
]
OtherDataset = Annotated[str | None, typer.Option(help="Another dataset than the one recorded upstream.")]
MovedDataset = Annotated[
    str | None,
    typer.Option(
        help="Where the dataset is now, if it was moved. It must be the data that the network was trained on."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="cnn, mlp-H (two hidden layers of H units) or small; or your own: MODULE:FUNCTION, called with "
        "(input_shape, classes), FILE.keras to train on from, or keras.applications:NAME."
    ),
]
StudentModel = Annotated[
    str | None, typer.Option(help="As a teacher's. Default: the teacher's architecture, with new weights.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Begin with these: .weights.h5 or .keras of the same network; or new: not a .keras's own."
    ),
]
Temperature = Annotated[float, typer.Option(help="T of softmax(logits / T).")]
Alpha = Annotated[
    float,
    typer.Option(help="Weight of the hard labels: alpha * CE(labels) + (1 - alpha) * T^2 * KL(soft targets)."),
]
SoftLoss = Annotated[
    Loss,
    typer.Option(
        "--loss",
        help="The soft part: T^2 * KL(soft targets) is kd; mse matches logits, dkd, dist, jsd and reverse-kl softmaxes.",
    ),
]
StandardizeLogits = Annotated[
    bool, typer.Option("--standardize-logits", help="Match z-scores of each row's logits; T divides these.")
]
SoftTargetsName = Annotated[str, typer.Option("--soft-targets", metavar="NAME", help="Which soft targets.")]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write event files too, for tensorboard --logdir WORKSPACE.")
]
Formats = Annotated[list[str], typer.Option("--format", metavar="FORMAT", help="png, svg or pdf; may be given again.")]


def _listed(option: str, values: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The values of a list as 1,2,4."""
    if not values.strip():
        raise UsageError(f"--{option} is empty: it needs one value or more")
    try:
        return tuple(map(kind, listed(values)))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"--{option} is {values!r}: it needs {what} with commas between them, as 1,2") from None


def _named(dataset: str | None, reading: ReadOptions) -> str | None:
    """A dataset's name with how it is read put on it, so that what is recorded says both."""
    if dataset is None and (given := reading.given()):
        raise UsageError(f"--{next(iter(given))} says how a dataset is read: name it, --dataset")
    return None if dataset is None else reading.named(dataset)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a subcommand: parameters named after a group become that group's options, errors become one line."""
    own = inspect.signature(function, eval_str=True).parameters
    members = {
        group: inspect.signature(GROUPS[group], eval_str=True).parameters if group in GROUPS else None for group in own
    }

    @functools.wraps(function)
    def call(**given: Any) -> None:
        with _one_line_errors(workspace=given["workspace"], debug=given["debug"], options=given):
            values = {
                name: given[name] if options is None else GROUPS[name](**{option: given[option] for option in options})
                for name, options in members.items()
            }
            function(**values)

    mine = [own[name] for name, options in members.items() if options is None]  # these come first in the help
    grouped = [parameter for options in reversed(members.values()) if options for parameter in options.values()]
    flat = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*mine, *grouped)]
    call.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return app.command()(call)


@contextlib.contextmanager
def _one_line_errors(*, workspace: Path, debug: bool, options: Container[str]) -> Iterator[None]:
    if not debug:
        silence_native_stderr()
    try:
        with interrupts.raised(), watched(workspace):
            yield
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt:
        _fail(
            "stopped; the workspace is as it was (train-teacher, soften, train-student and sweep go on when run again)",
            130,
            debug,
        )
    except UsageError as error:
        _fail(str(error), 2, debug)
    except KdistillError as error:
        _fail(str(error), 1, debug)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stdout = None
        raise SystemExit(1) from None
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one line
        _fail(_unexpected(error, workspace, options), 1, debug)


def _unexpected(error: Exception, workspace: Path, options: Container[str]) -> str:
    """Return the line for an error that no stage has words for, and keep what libraries wrote before it."""
    full = os.strerror(errno.ENOSPC)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{os.strerror(error.errno) if error.errno else first_line(error)}"
    if full in str(error):  # TensorFlow calls this an exhausted resource, as a lack of memory
        return f"{workspace}: {full}"
    log = named(kept_log(workspace))
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        smaller = [f"--{name}" for name in ("batch-size", "model") if name.replace("-", "_") in options]
        remedy = f"try a smaller {' or '.join(smaller)}" if smaller else "use a machine with more"
        return f"out of memory: {remedy}{log}"
    return f"{type(error).__name__}: {first_line(error)} (--debug shows where{log})"


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        import traceback

        print(printable_lines(traceback.format_exc()), file=sys.stderr, end="")
    print(printable(message if code == 130 else f"error: {message}"), file=sys.stderr)
    raise SystemExit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kdistill {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@command
def train_teacher(
    session: Session,
    training: Training,
    reading: ReadOptions,
    dataset: Dataset = TrainTeacher.dataset,
    model: Model = TrainTeacher.model,
    weights: Weights = TrainTeacher.weights,
    name: Annotated[str, typer.Option(help="What to call the teacher.")] = TrainTeacher.name,
    tensorboard: TensorBoard = TrainTeacher.tensorboard,
) -> None:
    """Train a teacher on a dataset's hard labels."""
    from kdistill.stages import train_teacher as stage

    settings = TrainTeacher(
        dataset=reading.named(dataset),
        model=model,
        weights=weights,
        name=name,
        training=training,
        tensorboard=tensorboard,
    )
    stage.run(session.workspace, settings, force=session.force, reporter=session.reporter)


@command
def soften(
    session: Session,
    reading: ReadOptions,
    selection: Selection,
    temperature: Temperature = Soften.temperature,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            help="A teacher's name, a SavedModel or a .keras file; given again, the mean of all is taken. Default: teacher.",
        ),
    ] = None,
    mean: Annotated[
        Mean, typer.Option(help="Of several teachers: arithmetic, of probabilities at T; or geometric, of logits.")
    ] = Soften.mean,
    signature: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a SavedModel that has several.")
    ] = Soften.signature,
    output: Annotated[str | None, typer.Option(metavar="NAME", help="Of a network that has several.")] = Soften.output,
    teacher_output: Annotated[
        TeacherOutput, typer.Option(help="What a teacher from outside gives; auto looks at its first rows.")
    ] = Soften.teacher_output,
    teacher_input: Annotated[
        TeacherInput, typer.Option(help="How all teachers from outside take uint8: scaled to [0, 1], or raw, 0 to 255.")
    ] = Soften.teacher_input,
    logits: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File of logits or probabilities to use instead of a teacher (.npy, .npz, .h5), in the transfer set's order; "
            "labels in it are compared, rows with row_keys joined.",
        ),
    ] = Soften.logits,
    dataset: OtherDataset = Soften.dataset,
    transfer_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="Other rows to ask about than the dataset's training rows, labelled or not; may be given again.",
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="How logits are stored.")] = Soften.dtype,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", help="Store the K largest logits of a row, and the mass of the rest at T."),
    ] = Soften.top_k,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS", help="Ask about views of pictures, as train-teacher has them; students replay them."
        ),
    ] = Soften.augment,
    views: Annotated[
        int | None, typer.Option(metavar="K", help="How many of each row: the row as it is, and K - 1 augmented.")
    ] = Soften.views,
    seed: Annotated[int | None, typer.Option(help="Of the views. Default: 0.")] = Soften.seed,
    name: Annotated[str, typer.Option(help="What to call the soft targets.")] = Soften.name,
    batch_size: Annotated[int, typer.Option(help="Rows a call of the teacher.")] = Soften.batch_size,
) -> None:
    """Run a teacher over the transfer set; keep its logits.

    The transfer set is the training rows of the teacher's dataset, unless told otherwise.
    """
    from kdistill.stages import soften as stage

    settings = Soften(
        temperature=temperature,
        teachers=tuple(teacher or ()),
        mean=mean,
        signature=signature,
        output=output,
        teacher_output=teacher_output,
        teacher_input=teacher_input,
        logits=logits,
        dataset=None if transfer_set and dataset is None else _named(dataset, reading),
        transfer_sets=tuple(map(reading.named, transfer_set or ())),
        selection=selection,
        dtype=dtype,
        top_k=top_k,
        augment=augment,
        views=views,
        seed=seed,
        name=name,
        batch_size=batch_size,
    )
    stage.run(session.workspace, settings, force=session.force, reporter=session.reporter)


@command
def train_student(
    session: Session,
    training: Training,
    reading: ReadOptions,
    selection: Selection,
    alpha: Alpha = TrainStudent.alpha,
    temperature: Annotated[
        float | None, typer.Option(help="T, from the stored logits. Default: the soft-target file's.")
    ] = TrainStudent.temperature,
    loss: SoftLoss = TrainStudent.loss,
    standardize_logits: StandardizeLogits = TrainStudent.standardize_logits,
    soft_targets: SoftTargetsName = TrainStudent.soft_targets,
    model: StudentModel = TrainStudent.model,
    weights: Weights = TrainStudent.weights,
    dataset: OtherDataset = TrainStudent.dataset,
    permute_soft_targets: Annotated[
        bool,
        typer.Option(
            "--permute-soft-targets",
            help="A control: tell each row what the teacher said of another one of its label, drawn by the seed.",
        ),
    ] = TrainStudent.permute_soft_targets,
    name: Annotated[str, typer.Option(help="What to call the student.")] = TrainStudent.name,
    tensorboard: TensorBoard = TrainStudent.tensorboard,
) -> None:
    """Train a student from soft targets, without the teacher.

    With --alpha 1 it learns from hard labels alone, and needs no soft targets.
    """
    from kdistill.stages import train_student as stage

    settings = TrainStudent(
        alpha=alpha,
        temperature=temperature,
        loss=loss,
        standardize_logits=standardize_logits,
        soft_targets=soft_targets,
        model=model,
        weights=weights,
        dataset=_named(dataset, reading),
        permute_soft_targets=permute_soft_targets,
        name=name,
        selection=selection,
        training=training,
        tensorboard=tensorboard,
    )
    stage.run(session.workspace, settings, force=session.force, reporter=session.reporter)


@command
def sweep(
    session: Session,
    unseeded: Training,
    reading: ReadOptions,
    selection: Selection,
    temperature: Annotated[
        str, typer.Option(metavar="T,T,...", help="Values of T, with commas between them.")
    ] = written(Sweep.temperatures),
    alpha: Annotated[
        str,
        typer.Option(metavar="A,A,...", help="Weights of the hard labels, below 1; students of 1 are always there."),
    ] = written(Sweep.alphas),
    loss: Annotated[
        str, typer.Option(metavar="LOSS,...", help="Losses, as of train-student: kd, mse, dkd, dist, jsd, reverse-kl.")
    ] = written(Sweep.losses),
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL,...", help="Networks, as a teacher's. Default: the teacher's architecture."),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Each trains a student of every setting.")] = written(
        Sweep.seeds
    ),
    standardize_logits: StandardizeLogits = TrainStudent.standardize_logits,
    soft_targets: SoftTargetsName = TrainStudent.soft_targets,
    dataset: OtherDataset = TrainStudent.dataset,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Beside each model's best setting: smoothed labels, permuted soft targets, temperature scaling.",
        ),
    ] = Sweep.controls,
    other_soft_targets: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another teacher's soft targets, for one more control.")
    ] = Sweep.other_soft_targets,
    name: Annotated[str, typer.Option(help="What to call the sweep.")] = Sweep.name,
    as_json: Json = False,
) -> None:
    """Train students at many settings and seeds, and compare them.

    Each is compared with the student of the same model and seed that learned from hard labels alone.
    """
    from kdistill.stages import sweep as stage

    settings = Sweep(
        temperatures=_listed("temperature", temperature, float),
        alphas=_listed("alpha", alpha, float),
        losses=_listed("loss", loss, str),
        models=() if model is None else _listed("model", model, str),
        seeds=_listed("seeds", seeds, int),
        student=TrainStudent(
            standardize_logits=standardize_logits,
            soft_targets=soft_targets,
            dataset=_named(dataset, reading),
            selection=selection,
            training=unseeded,
        ),
        name=name,
        controls=controls,
        other_soft_targets=other_soft_targets,
    )
    found = stage.run(
        session.workspace, settings, force=session.force, reporter=Reporter(quiet=True) if as_json else session.reporter
    )
    if as_json:
        print(json.dumps(stage.as_json(found), indent=2))
    else:
        stage.show(found, Reporter())


@command
def promote(
    session: Session,
    student: Annotated[str, typer.Option(metavar="SWEEP/STUDENT", help="Which student of which sweep; it stays.")],
    name: Annotated[str | None, typer.Option(help="What to call it. Default: its name in the sweep.")] = Promote.name,
) -> None:
    """Copy a student of a sweep to the workspace's students.

    The copy is the student that train-student makes with the same settings, and it is up to date for that command.
    """
    from kdistill.stages import promote as stage

    stage.run(session.workspace, Promote(student=student, name=name), force=session.force, reporter=session.reporter)


@command
def plot(
    session: Session,
    network: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A teacher or student to draw. Default: all.")
    ] = None,
    formats: Formats = list(Plot.formats),  # noqa: B006 - Typer reads it, nobody writes it
    soft_targets: SoftTargetsName = Plot.soft_targets,
) -> None:
    """Draw the learning curves, and what the soft targets say."""
    from kdistill.stages import plot as stage

    settings = Plot(networks=tuple(network or ()), formats=tuple(formats), soft_targets=soft_targets)
    stage.run(session.workspace, settings, force=session.force, reporter=session.reporter)


@command
def evaluate(
    reading_session: Session,
    reading: ReadOptions,
    network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A teacher or student, or SWEEP/STUDENT; can be given again. Default: all teachers and students.",
        ),
    ] = None,
    dataset: MovedDataset = Evaluate.dataset,
    as_json: Json = False,
) -> None:
    """Measure networks on the training and test rows of their dataset."""
    from kdistill.stages import evaluate as stage

    settings = Evaluate(networks=tuple(network or ()), dataset=_named(dataset, reading))
    found = stage.run(
        reading_session.workspace, settings, reporter=Reporter(quiet=True) if as_json else reading_session.reporter
    )
    if as_json:
        print(json.dumps(stage.as_json(found), indent=2))
    else:
        stage.show(found, Reporter())


@command
def export(
    session: Session,
    reading: ReadOptions,
    network: Annotated[
        str,
        typer.Option(metavar="NAME", help="A student, or SWEEP/STUDENT, or a teacher if no student has this name."),
    ] = Export.network,
    file_format: Annotated[
        ExportFormat, typer.Option("--format", help="tflite for phones and small devices (LiteRT), onnx for servers.")
    ] = Export.format,
    quantize: Annotated[
        Quantize,
        typer.Option(help="int8: weights and arithmetic; float16: weights. Inputs and logits are float32 in all."),
    ] = Export.quantize,
    dataset: MovedDataset = Export.dataset,
    as_json: Json = False,
) -> None:
    """Write a network for a phone or a server.

    The file is run in the runtime it is for, on the test split, and compared with the original. int8 is calibrated on
    training rows. Needs `pip install 'kdistill[tflite]'` or `'kdistill[onnx]'`.
    """
    from kdistill.stages import export as stage

    settings = Export(network=network, format=file_format, quantize=quantize, dataset=_named(dataset, reading))
    reporter = Reporter(quiet=True) if as_json else session.reporter
    manifest = stage.run(session.workspace, settings, force=session.force, reporter=reporter)
    if as_json:
        print(json.dumps(stage.as_json(session.workspace.export(settings), manifest), indent=2))
    else:
        stage.show(manifest, Reporter())


@command
def correct_bias(
    session: Session,
    student: Annotated[str, typer.Option(metavar="NAME", help="Which student; it stays as it is.")] = (
        CorrectBias.student
    ),
    name: Annotated[
        str | None, typer.Option(help="What to call the corrected student. Default: STUDENT-corrected.")
    ] = CorrectBias.name,
    frequencies: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="How often each class should be predicted: training, as in the training set; uniform; or a number a "
            "class, as 0.2,0.5,0.3.",
        ),
    ] = CorrectBias.frequencies,
    inputs: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Other inputs to count predictions on than the training rows'; no labels."),
    ] = CorrectBias.inputs,
    dataset: MovedDataset = CorrectBias.dataset,
    as_json: Json = False,
) -> None:
    """Shift a student's output biases until classes are predicted as often as they should be.

    For students whose transfer set lacked classes or had them in other proportions. Test labels have no part in it.
    """
    from kdistill.stages import correct_bias as stage

    settings = CorrectBias(student=student, name=name, frequencies=frequencies, inputs=inputs, dataset=dataset)
    reporter = Reporter(quiet=True) if as_json else session.reporter
    manifest = stage.run(session.workspace, settings, force=session.force, reporter=reporter)
    if as_json:
        print(json.dumps(stage.as_json(session.workspace.corrected(settings), manifest), indent=2))
    else:
        stage.show(manifest, Reporter())


@command
def status(reading_session: Session, as_json: Json = False) -> None:
    """Show what stands, what is stale, and the next command."""
    from kdistill.stages import status as stage

    standings, following = stage.run(reading_session.workspace)
    if as_json:
        print(json.dumps(stage.as_json(standings, following), indent=2))
    else:
        stage.show(reading_session.workspace, standings, following, Reporter())


@command
def verify(reading_session: Session, reading: ReadOptions, dataset: MovedDataset = None, as_json: Json = False) -> None:
    """Check every artifact against what was recorded of it.

    Exits 1 if anything is wrong, with a line for each thing.
    """
    from kdistill.stages import verify as stage

    findings, checked = stage.run(
        reading_session.workspace,
        dataset=_named(dataset, reading),
        reporter=Reporter(quiet=True) if as_json else reading_session.reporter,
    )
    if as_json:
        print(json.dumps(stage.as_json(findings), indent=2))
    else:
        stage.show(findings, checked, Reporter())
    if findings:
        raise SystemExit(1)


@command
def run(
    session: Session,
    training: Training,
    reading: ReadOptions,
    dataset: Dataset = TrainTeacher.dataset,
    model: Model = TrainTeacher.model,
    student_model: StudentModel = TrainStudent.model,
    temperature: Temperature = Soften.temperature,
    alpha: Alpha = TrainStudent.alpha,
    loss: SoftLoss = TrainStudent.loss,
    standardize_logits: StandardizeLogits = TrainStudent.standardize_logits,
    formats: Formats = list(Plot.formats),  # noqa: B006 - as above
    tensorboard: TensorBoard = TrainTeacher.tensorboard,
) -> None:
    """Do all four stages, skipping what is up to date.

    Training options are for both networks.
    """
    from kdistill.networks.sources import resolve_model
    from kdistill.stages import evaluate as evaluation
    from kdistill.stages import plot, soften, train_student, train_teacher

    if student_model is not None:
        resolve_model(check_model("student-model", student_model))
    stages: list[tuple[Callable[..., object], object]] = [  # all settings are checked before any work
        (
            train_teacher.run,
            TrainTeacher(dataset=reading.named(dataset), model=model, training=training, tensorboard=tensorboard),
        ),
        (soften.run, Soften(temperature=temperature)),
        (
            train_student.run,
            TrainStudent(
                alpha=alpha,
                loss=loss,
                standardize_logits=standardize_logits,
                model=student_model,
                training=training,
                tensorboard=tensorboard,
            ),
        ),
        (plot.run, Plot(formats=tuple(formats))),
    ]
    for stage, settings in stages:
        stage(session.workspace, settings, force=session.force, reporter=session.reporter)
    evaluation.show(evaluation.run(session.workspace, reporter=session.reporter), Reporter())


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may have characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:  # before or after a command's own work
        raise SystemExit(130) from None
