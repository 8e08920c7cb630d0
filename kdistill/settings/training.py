"""The options of training, which all commands that train networks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from kdistill.errors import UsageError
from kdistill.settings.checks import (
    fraction,
    integer,
    number,
    one_of,
    parse_dropout,
    parse_schedule,
    parsed_by,
    positive,
)
from kdistill.settings.groups import AUGMENT, SEEDS
from kdistill.settings.options import Settings, option

SCHEDULE = parsed_by(
    parse_schedule, "constant, cosine, or step: with increasing fractions between 0 and 1, e.g. step:0.5,0.75"
)


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
