"""Which networks train faster if XLA compiles the steps."""

from __future__ import annotations

from kdistill.backend import keras, tf
from kdistill.errors import UsageError
from kdistill.networks.layers import operations_in
from kdistill.training.dropout import is_plain_dropout

XLA_FRIENDLY_LAYERS = (  # on a CPU, as measured
    *("Functional", "Sequential", "InputLayer", "Flatten", "Reshape", "Dense", "Activation", "ReLU", "Relu"),
    *("LeakyReLU", "PReLU", "BatchNormalization", "LayerNormalization", "Rescaling", "Add", "Concatenate"),
)


def uses_xla(model: keras.Model, xla: str, replicas: int = 1) -> bool:
    """Return whether XLA should compile the training steps of a network.

    `auto` means no with several replicas. On a single GPU, it means all networks but those that take texts, which stay on the
    CPU, and those with embeddings, whose gradient XLA computes row by row in deterministic mode. On a CPU, see `suits_cpu`.

    Raises:
        UsageError: if XLA cannot compile any network for these inputs.
    """
    texts = any(tf.as_dtype(each.dtype) == tf.string for each in model.inputs)
    if texts and xla == "on":
        raise UsageError("--xla on does not work with texts: use --xla off")
    if xla != "auto":
        return xla == "on"
    if replicas > 1 or texts:
        return False
    if tf.config.list_logical_devices("GPU"):
        return all(type(each).__name__ != "Embedding" for each in operations_in(model))
    return suits_cpu(model)


def suits_cpu(model: keras.Model) -> bool:
    """Return whether XLA is faster for a network on a CPU.

    These are networks that consist of `XLA_FRIENDLY_LAYERS` and of dropout that `dropout` draws, without bfloat16. XLA takes
    about three times as long for convolutions and for dropout that it draws itself, and twice as long for dense layers in
    bfloat16. It also reads beyond the table of an embedding without an error.
    """
    return all(
        (type(each).__name__ in XLA_FRIENDLY_LAYERS or is_plain_dropout(each))
        and getattr(each, "compute_dtype", "") != "bfloat16"
        for each in operations_in(model)
    )
