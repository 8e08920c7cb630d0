"""The optimizers of `--optimizer`, with schedule and weight decay."""

from __future__ import annotations

from functools import partial
from typing import Any

from kdistill.backend import keras
from kdistill.settings import Training

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": partial(keras.optimizers.SGD, momentum=0.9),
}
NOT_DECAYED = ("bias", "gamma", "beta")  # biases, and the scales and shifts of normalization layers


def make_optimizer(settings: Training, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Return a new optimizer. A cosine schedule reaches 0 after the last epoch, and mixed_float16 scales the loss."""
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, settings.epochs * steps_per_epoch)
    average = {"use_ema": True, "ema_momentum": settings.ema} if settings.ema else {}
    optimizer = OPTIMIZERS[settings.optimizer](rate, **average)
    if settings.weight_decay is not None:
        optimizer.weight_decay = settings.weight_decay
        optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "mixed_float16" else optimizer
