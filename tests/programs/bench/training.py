"""Groups: an epoch of training, against Keras, PyTorch, and other ways to train with kdistill."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    BATCH_ROWS,
    KDISTILL,
    Row,
    Setup,
    Work,
    as_floats,
    epoch,
    finish,
    kdistill,
    medians,
    reference_epoch,
    require_torch,
    run_here,
    start,
    timed,
    two_cores,
)

from kdistill.workspace import threads

TEMPERATURE, ALPHA = 20.0, 0.1
AUGMENT = "shift:1,rotate:10,zoom:0.1,elastic:3"  # of the teacher in paper.py


def measure_epoch(setup: Setup) -> Iterator[Row]:
    """An epoch with hard labels against `keras.Model.fit`, whose inputs are scaled beforehand.

    Both run in one process, where kdistill has made TensorFlow deterministic. On a CPU, this costs `fit` less than 5%.
    """
    cnn, bfloat16 = ["--model", "cnn"], ["--model", "cnn", "--precision", "mixed_bfloat16"]
    times = compare_with_fit(setup, {"float32": cnn, "bfloat16": bfloat16})
    yield Row("epoch, cnn / `fit`", times["float32"], times["fit"], 0.85)
    yield Row("epoch, cnn in mixed_bfloat16 / `fit` in float32", times["bfloat16"], times["fit"], 0.5)
    times = compare_with_fit(setup, {"mlp": ["--model", "mlp-800"]}, products=matrix_products(setup, 800))
    yield Row("epoch, mlp-800 / `fit`", times["mlp"], times["fit"], 0.62)
    yield Row("epoch, mlp-800 / only its matrix products", times["mlp"], times["products"], 1.1)


def measure_pytorch(setup: Setup) -> Iterator[Row]:
    """An epoch with hard labels against a plain PyTorch loop with as many threads, in a new process."""
    require_torch()
    for network in ("cnn", "mlp-800"):
        pytorch = reference_epoch("pytorch.py", network, setup.dataset(), "--threads", threads())
        times = medians(setup.runs, {"kdistill": epoch(setup, network, "--model", network), "pytorch": pytorch})
        yield Row(f"epoch, {network} / PyTorch", times["kdistill"], times["pytorch"], 1.0)


def measure_dropout(setup: Setup) -> Iterator[Row]:
    """An epoch of the paper's teacher with dropout and with augmented inputs, against neither."""
    dropout = ["--model", "mlp-1200", "--dropout", "0.2,0.5"]
    options = {
        "neither": dropout[:2],
        "dropout": dropout,
        "shift": [*dropout, "--augment", "shift:2"],
        "elastic": [*dropout, "--augment", AUGMENT],
    }
    times = medians(setup.runs, {name: epoch(setup, name, *each) for name, each in options.items()})
    yield Row("epoch, mlp-1200 with `--dropout 0.2,0.5` / without", times["dropout"], times["neither"], 1.2)
    yield Row("the same with `--augment shift:2` / without either", times["shift"], times["neither"], 1.3)
    yield Row(f"the same with `--augment {AUGMENT}` / without either", times["elastic"], times["neither"], 1.3)


def measure_distillation(setup: Setup) -> Iterator[Row]:
    """An epoch of distillation from the file, against hard labels and against Keras's `Distiller`."""
    workspace = setup.scratch / "training"
    epoch(setup, "teacher", "--model", "mlp-1200")()
    run_here("soften", "--workspace", workspace, "--temperature", TEMPERATURE)
    hard = epoch(setup, "hard", "--model", "mlp-800", "--alpha", 1, command="train-student")
    cached = epoch(setup, "cached", "--model", "mlp-800", "--alpha", ALPHA, command="train-student")
    hard()
    teacher, student = load(workspace / "teachers/teacher"), load(workspace / "students/hard")
    times = medians(setup.runs, {"cached": cached, "hard": hard, "distiller": distiller(setup, teacher, student)})
    yield Row("distillation epoch, mlp-800 / hard labels", times["cached"], times["hard"], 1.05)
    yield Row("distillation epoch, mlp-800 / Keras's `Distiller`", times["cached"], times["distiller"], 0.45)


def measure_workers(setup: Setup) -> Iterator[Row]:
    """An epoch of two workers, with one core each, against one process with one core."""
    cores = two_cores()
    runs = {"two": partial(run_as_workers, cores), "one": partial(kdistill, cores=cores[:1])}
    for batch, target in ((BATCH_ROWS, 0.7), (8 * BATCH_ROWS, None)):
        how = ["--model", "mlp-800", "--batch-size", batch]
        times = medians(setup.runs, {name: epoch(setup, name, *how, run=run) for name, run in runs.items()})
        title = f"epoch, mlp-800, batches of {batch:,}, two workers with one core each / one process"
        yield Row(title, times["two"], times["one"], target)


def run_as_workers(cores: list[int], *arguments: object) -> None:
    """Run a command as workers that find each other by `TF_CONFIG`, each with one core."""
    with contextlib.ExitStack() as sockets:
        free = [sockets.enter_context(socket.socket()) for _ in cores]
        for each in free:
            each.bind(("127.0.0.1", 0))
        addresses = ["{}:{}".format(*each.getsockname()) for each in free]
    workers = []
    for index, core in enumerate(cores):
        config = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        workers.append(start(KDISTILL, *arguments, cores=[core], TF_CONFIG=config))
    finish(*workers)


def compare_with_fit(setup: Setup, options: Mapping[str, list[str]], **others: Work) -> dict[str, float]:
    """Return the median seconds of epochs of kdistill, of `fit` with the network of the first of them, and of other works."""
    works = {name: epoch(setup, name, *each) for name, each in options.items()}
    first = next(iter(works))
    works[first]()
    network = load(setup.scratch / "training/teachers" / first)
    return medians(setup.runs, {**works, "fit": fit(setup, network), **others})


def matrix_products(setup: Setup, units: int) -> Work:
    """Return the work of the matrix products of an epoch of an MLP in TensorFlow: outputs, and the gradients of all layers."""
    from kdistill.backend import tf

    steps = len(setup.rows()[0]) // BATCH_ROWS
    batches = tf.random.stateless_uniform((steps, BATCH_ROWS, 784), (0, 0))
    shapes = (784, units), (units, units), (units, 10)
    kernels = [tf.random.stateless_normal(shape, (0, 1)) / units for shape in shapes]

    @tf.function
    def products() -> Any:
        total = 0.0
        for step in tf.range(steps):
            values = [batches[step]]
            for kernel in kernels:
                values.append(values[-1] @ kernel)
            gradient = values.pop()
            for layer in (2, 1, 0):
                total += tf.matmul(values[layer], gradient, transpose_a=True)[0, 0]
                if layer:
                    gradient = tf.matmul(gradient, kernels[layer], transpose_b=True)
        return total

    return timed(lambda: products().numpy())


def load(network: Path) -> Any:
    from kdistill.backend import keras

    return keras.models.load_model(network / "model.keras")


def distiller(setup: Setup, teacher: Any, student: Any) -> Work:
    """Return the work of one epoch of `keras.distillation.Distiller`, which calls the teacher for every batch.

    By default, the loss of `LogitsDistillation` is not the KL divergence of softmaxes (Keras 3.15.1).
    """
    from kdistill.backend import keras

    loss = keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
    return fit(setup, keras.distillation.Distiller(teacher, student, loss, student_loss_weight=ALPHA))


def fit(setup: Setup, model: Any) -> Work:
    """Return the work of one epoch of `fit` in this process."""
    import keras_fit

    inputs, labels = setup.rows()
    return timed(keras_fit.epoch(model, as_floats(inputs), labels, BATCH_ROWS))
