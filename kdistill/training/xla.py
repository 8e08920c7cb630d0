"""Which networks train faster if XLA compiles the step."""

from __future__ import annotations

from kdistill.backend import keras, tf
from kdistill.networks.layers import operations_in
from kdistill.training.dropout import is_plain_dropout

XLA_FRIENDLY_LAYERS = (  # on a CPU, as measured
    *("Functional", "Sequential", "InputLayer", "Flatten", "Reshape", "Dense", "Activation", "ReLU", "Relu"),
    *("LeakyReLU", "PReLU", "BatchNormalization", "LayerNormalization", "Rescaling", "Add", "Concatenate"),
)


def uses_xla(model: keras.Model, xla: str, replicas: int = 1) -> bool:
    """Return whether XLA compiles the training step of a network.

    `auto` means no with several replicas.

    On a CPU, `auto` means networks that consist of `XLA_FRIENDLY_LAYERS` and of dropout that `dropout` draws, without
    bfloat16. XLA takes about three times as long for convolutions and for dropout that it draws itself, and twice as
    long for dense layers in bfloat16. It also reads beyond the table of an embedding without an error.

    On a GPU, `auto` means networks without layers that XLA can't always compile: layers that prepare or augment inputs,
    and max pooling in deterministic mode.
    """
    if xla != "auto":
        return xla == "on"
    if replicas > 1:
        return False
    operations = list(operations_in(model))
    if tf.config.list_logical_devices("GPU"):
        return not any(
            ".preprocessing." in type(each).__module__ or "MaxPool" in type(each).__name__ for each in operations
        )
    return all(
        (type(each).__name__ in XLA_FRIENDLY_LAYERS or is_plain_dropout(each))
        and getattr(each, "compute_dtype", "") != "bfloat16"
        for each in operations
    )
