"""The optimizers of `--optimizer`, with the schedules of `--schedule` and weight decay."""

from __future__ import annotations

from functools import partial
from typing import Any

from kdistill.backend import keras
from kdistill.settings import Training, parse_schedule

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": partial(keras.optimizers.SGD, momentum=0.9),
    "nesterov": partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
}
NOT_DECAYED = ("bias", "gamma", "beta")  # biases, and the scales and shifts of normalization layers


def make_optimizer(settings: Training, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Return a new optimizer. mixed_float16 scales the loss."""
    rate = _schedule(settings, settings.epochs * steps_per_epoch)
    average = {"use_ema": True, "ema_momentum": settings.ema} if settings.ema else {}
    optimizer = OPTIMIZERS[settings.optimizer](rate, **average)
    if settings.weight_decay is not None:
        optimizer.weight_decay = settings.weight_decay
        optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "mixed_float16" else optimizer


def _schedule(settings: Training, steps: int) -> Any:
    """Return the learning rate of a run with so many steps: a number or a Keras schedule.

    A cosine reaches 0 after the last step. The rate of `step:F,...` drops after F * steps steps, rounded.
    """
    rate = settings.learning_rate
    kind, drops = parse_schedule(settings.schedule)
    if kind == "cosine":
        return keras.optimizers.schedules.CosineDecay(rate, steps)
    if drops:
        last_steps = [round(drop * steps) - 1 for drop in drops]  # before each drop
        rates = [rate / 10**count for count in range(len(drops) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(last_steps, rates)
    return rate
