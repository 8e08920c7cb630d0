"""Groups of options that several commands share: training, row selection, and reading a dataset."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode

from kdistill.errors import UsageError
from kdistill.settings.catalog import AUGMENT_SYNTAX, DATA_FORMATS, TASKS, parse_augment
from kdistill.settings.checks import (
    Check,
    format_value,
    fraction,
    integer,
    nonempty,
    number,
    one_of,
    parse_classes,
    parse_dropout,
    parse_image_size,
    parse_schedule,
    parsed_by,
    positive,
)
from kdistill.settings.options import Field, Settings, build, option, options_of

SEEDS = integer(0, 2**32 - 1)
MAX_PIXELS = 50_000_000  # the default of --max-pixels
AUGMENT = parsed_by(parse_augment, f"one or more of {AUGMENT_SYNTAX}, each once, e.g. shift:2,flip")
ALL_DEVICES = "all"
DEVICES = Check(
    f"a number of devices or {ALL_DEVICES}",
    lambda value: bool(re.fullmatch(rf"[1-9][0-9]{{0,3}}|{ALL_DEVICES}", value)),
)
TASK_HELP = "; ".join(f"{name}: {task.help}" for name, task in TASKS.items())
SCHEDULE = parsed_by(
    parse_schedule, "constant, cosine, or step: with increasing fractions between 0 and 1, e.g. step:0.5,0.75"
)
CLASSES = parsed_by(parse_classes, "names or numbers of classes, each once, e.g. 3 or 7,8")


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """How a network is trained. None means that something is not used."""

    epochs: Annotated[int, option("Number of passes over the training rows.", integer(1), "Optimization")] = 30
    batch_size: Annotated[int, option("Rows per step.", integer(1), "Optimization")] = 32
    learning_rate: Annotated[float, option("Step size of the optimizer.", positive(), "Optimization")] = 1e-3
    schedule: Annotated[
        str,
        option(
            "Learning rate over the run: constant; cosine, which decays to 0; or e.g. step:0.5,0.75, which divides the rate "
            "by 10 after these fractions of the run.",
            SCHEDULE,
            "Optimization",
            metavar="SCHEDULE",
        ),
    ] = "constant"
    optimizer: Annotated[
        str,
        option(
            "Optimizer. sgd has momentum 0.9, and nesterov is sgd with Nesterov momentum 0.9.",
            one_of("adam", "sgd", "nesterov", "rmsprop", "adamw"),
            "Optimization",
        ),
    ] = "adam"
    early_stopping: Annotated[
        int | None,
        option(
            "Stop after this many epochs without a lower validation loss, and keep the weights of the best epoch.",
            integer(1),
            "Optimization",
            metavar="PATIENCE",
        ),
    ] = None
    validation_fraction: Annotated[
        float,
        option("Fraction of the training rows held out for validation.", number(0, 0.9), "Optimization"),
    ] = 0.0
    ema: Annotated[
        float | None,
        option(
            "Evaluate and save an exponential moving average of the weights with this decay per step, e.g. 0.99.",
            fraction(),
            "Optimization",
            metavar="DECAY",
        ),
    ] = None
    seed: Annotated[
        int, option("Seed of the weights, the order of rows and the held-out rows.", SEEDS, "Optimization")
    ] = 0
    class_weights: Annotated[
        str,
        option(
            "Weights of the rows by class. balanced: all classes have the same total weight.",
            one_of("none", "balanced"),
            "Objective",
        ),
    ] = "none"
    dropout: Annotated[
        str | None,
        option(
            "Dropout rates of the inputs and the hidden layers, e.g. 0.2,0.5.",
            parsed_by(parse_dropout, "two rates from 0 to 0.9, for inputs and hidden layers, e.g. 0.2,0.5"),
            "Regularization",
            metavar="INPUT,HIDDEN",
        ),
    ] = None
    max_norm: Annotated[
        float | None,
        option("Largest L2 norm of the weights into a hidden unit.", positive(), "Regularization", metavar="NORM"),
    ] = None
    l2: Annotated[
        float | None,
        option(
            "L2 regularization: adds RATE / 2 times the sum of the squared kernels to the loss.",
            positive(),
            "Regularization",
            metavar="RATE",
        ),
    ] = None
    weight_decay: Annotated[
        float | None,
        option(
            "Decoupled weight decay: each step subtracts RATE * learning rate * weights.",
            positive(),
            "Regularization",
            metavar="RATE",
        ),
    ] = None
    augment: Annotated[
        str | None,
        option(
            "Augment images differently in each epoch: shift:2, crop:4, flip, rotate:10, zoom:0.1, elastic:5, separated by "
            "commas.",
            AUGMENT,
            "Regularization",
            metavar="STEPS",
        ),
    ] = None
    precision: Annotated[
        str,
        option("Keras dtype policy.", one_of("float32", "mixed_bfloat16", "mixed_float16"), "Compute"),
    ] = "float32"
    xla: Annotated[
        str,
        option(
            "Compile the training step with XLA. auto: on a CPU only for networks of dense layers, not for bfloat16.",
            one_of("auto", "on", "off"),
            "Compute",
        ),
    ] = "auto"
    devices: Annotated[
        str,
        option(
            "Number of GPUs of this machine that share each batch, or all. The batch size is that of all together.",
            DEVICES,
            "Compute",
            metavar="N|all",
            recorded=False,
        ),
    ] = ALL_DEVICES
    memory: Annotated[
        int,
        option(
            "Keep training data of up to this many MiB in memory. Larger data is streamed.",
            integer(1),
            "Compute",
            metavar="MIB",
        ),
    ] = 512

    def check_combinations(self) -> None:
        if self.early_stopping is not None and self.validation_fraction == 0:
            raise UsageError("--early-stopping needs validation rows: add --validation-fraction 0.1")


@dataclass(frozen=True, kw_only=True)
class Selection(Settings):
    """Which rows of a transfer set are used; all by default.

    Classes are given by name, or by number where no class has that name. The fraction applies to each class of the rows
    that the classes leave.
    """

    omit_class: Annotated[
        str | None,
        option(
            "Leave out the rows of these classes: names or numbers, e.g. 3 or 7,8.", CLASSES, "Rows", metavar="CLASSES"
        ),
    ] = None
    only_classes: Annotated[
        str | None, option("Use only the rows of these classes.", CLASSES, "Rows", metavar="CLASSES")
    ] = None
    fraction: Annotated[
        float | None,
        option("Use this fraction of the rows of each class.", fraction(one=True), "Rows", metavar="FRACTION"),
    ] = None
    rows_seed: Annotated[int, option("Seed that picks the rows of --fraction.", SEEDS, "Rows")] = 0

    def check_combinations(self) -> None:
        if self.omit_class is not None and self.only_classes is not None:
            raise UsageError("--omit-class and --only-classes exclude each other: remove one of them")
        if self.rows_seed and self.fraction is None:
            raise UsageError("--rows-seed needs --fraction, e.g. --fraction 0.1")

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Selection:
        """Return the selection that a manifest's settings record."""
        selection: Selection = build(cls, recorded)
        return selection

    def __str__(self) -> str:
        """Return the options as on the command line; empty if all rows are used."""
        hidden = () if self.fraction is not None else ("rows_seed",)
        return " ".join(
            words for each in options_of(Selection) if each.name not in hidden and (words := each.words(each.get(self)))
        )


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Settings):
    """How a dataset is read, where its format leaves a choice. Each format accepts some of these options."""

    inputs: Annotated[
        str | None,
        option(
            "Inputs. HDF5: name of the dataset. Tables: names of the columns, e.g. a,b,c.",
            nonempty(),
            "Data",
            metavar="NAMES",
            recorded=False,
        ),
    ] = None
    labels: Annotated[
        str | None,
        option(
            "Labels. HDF5: name of the dataset. Tables: name of the column, or of several, e.g. a,b. .npy: path of the file.",
            nonempty(),
            "Data",
            metavar="NAME",
            recorded=False,
        ),
    ] = None
    row_weights: Annotated[
        str | None,
        option(
            "Weights of the training rows, 0 or more. HDF5: name of the dataset. Tables: name of the column.",
            nonempty(),
            "Data",
            metavar="NAME",
            recorded=False,
        ),
    ] = None
    test_inputs: Annotated[
        str | None,
        option(
            "Test inputs. HDF5: name of the dataset. Tables and .npy: path of the file.",
            nonempty(),
            "Data",
            metavar="NAME",
            recorded=False,
        ),
    ] = None
    test_labels: Annotated[
        str | None,
        option(
            "Test labels. HDF5: name of the dataset. .npy: path of the file.",
            nonempty(),
            "Data",
            metavar="NAME",
            recorded=False,
        ),
    ] = None
    image_size: Annotated[
        str | None,
        option(
            "Resize the images of a folder to this size, e.g. 32 or 24x32.",
            parsed_by(parse_image_size, "height and width in pixels, e.g. 24x32, or one number for both"),
            "Data",
            metavar="HxW",
            recorded=False,
        ),
    ] = None
    max_pixels: Annotated[
        int | None,
        option(
            f"Refuse images with more pixels than this. Default: {MAX_PIXELS}.",
            integer(1),
            "Data",
            metavar="N",
            recorded=False,
        ),
    ] = None
    test_fraction: Annotated[
        float | None,
        option(
            "Set aside this fraction of the rows as the test split, for data without one.",
            fraction(),
            "Data",
            metavar="FRACTION",
            recorded=False,
        ),
    ] = None
    missing: Annotated[
        str | None,
        option(
            "Missing values of a table. error (default): refuse them. drop: leave out these rows. mean: replace numbers by the "
            "mean of the training rows.",
            one_of("error", "drop", "mean"),
            "Data",
            recorded=False,
        ),
    ] = None
    task: Annotated[
        str | None,
        option(
            f"Task, if the labels do not tell it. {TASK_HELP}.", one_of(*TASKS), "Data", metavar="TASK", recorded=False
        ),
    ] = None
    data_format: Annotated[
        str | None,
        option(
            f"Format of a file whose extension does not tell it: {', '.join(DATA_FORMATS)}.",
            one_of(*DATA_FORMATS),
            "Data",
            metavar="FORMAT",
            recorded=False,
        ),
    ] = None

    @classmethod
    def of(cls, name: str) -> tuple[str, ReadOptions]:
        """Split a dataset's name, as `named` writes it, into its place and its read options.

        Raises:
            UsageError: if an option is unknown or has a wrong value.
        """
        place, mark, query = name.rpartition("?")
        if not mark or "=" not in query:
            return name, cls()
        known: dict[str, Field] = {each.flag: each for each in options_of(cls)}
        values = dict(parse_qsl(query, keep_blank_values=True))
        if unknown := [flag for flag in values if flag not in known]:
            raise UsageError(f"{name}: unknown read option {unknown[0]!r} (expected one of {', '.join(known)})")
        return place, cls(**{known[flag].name: known[flag].parse(text) for flag, text in values.items()})

    def named(self, name: str) -> str:
        """Return a dataset's name with these options appended as in a URL, after `?`; options that it has are kept."""
        place, options = ReadOptions.of(name)
        given = options.given() | self.given()
        return f"{place}?{urlencode(given, quote_via=quote, safe='/:,')}" if given else place

    def given(self) -> dict[str, str]:
        """Return the options that are set, by flag, as typed on the command line."""
        values = {each.flag: each.get(self) for each in options_of(ReadOptions)}
        return {flag: format_value(value) for flag, value in values.items() if value is not None}

    def absolute(self, flags: Sequence[str]) -> ReadOptions:
        """Return the same options with absolute paths for those that name files."""
        paths = {flag: str(Path(path).expanduser().absolute()) for flag, path in self.given().items() if flag in flags}
        changes: dict[str, Any] = {flag.replace("-", "_"): path for flag, path in paths.items()}
        return replace(self, **changes)

    def allow(self, data: str, *flags: str) -> None:
        """Refuse options that a format does not accept.

        Args:
            data: the kind of data, for the message.
            flags: the options that it accepts.

        Raises:
            UsageError: naming the first option that it does not accept.
        """
        for flag in self.given():
            if flag not in flags:
                accepted = f" (accepted: --{', --'.join(flags)})" if flags else ""
                raise UsageError(f"--{flag} does not apply to {data}{accepted}: remove it")
