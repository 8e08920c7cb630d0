"""What XLA compiles: on a GPU, programs without the operations that it runs row by row in deterministic mode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdistill.backend import deterministic, keras, tf
from kdistill.data import Split
from kdistill.data.augmentation import Views
from kdistill.data.rows import ArrayRows
from kdistill.errors import UsageError
from kdistill.networks.build import build_network
from kdistill.settings import CLASSIFICATION, Objective, Training
from kdistill.soft_targets.storage import Logits, LogitStorage
from kdistill.training.feed import Feed
from kdistill.training.replicas import open_replicas
from kdistill.training.steps import Trainer
from kdistill.training.training_rows import TrainingRows
from kdistill.training.xla import uses_xla

ROWS, CLASSES = 64, 10


def teacher_logits(top_k):
    draw, storage = np.random.default_rng(0), LogitStorage(CLASSES, 4.0, top_k=top_k)
    values = draw.normal(size=(ROWS, top_k + 1 if top_k else CLASSES)).astype(np.float32)
    classes = (
        draw.permuted(np.tile(np.arange(CLASSES, dtype=np.uint16), (ROWS, 1)), axis=1)[:, :top_k] if top_k else None
    )
    return Logits(storage, values, classes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "top_k", "augment"),
    [
        (Objective(alpha=1.0, label_smoothing=0.1), None, "shift:2,elastic:2"),
        (Objective(alpha=0.1, temperature=4.0), 3, None),
        (Objective(alpha=0.1, temperature=4.0, loss="dkd"), None, None),
        (Objective(alpha=0.1, temperature=4.0, loss="dist", standardize_logits=True), None, None),
    ],
)
def test_program_for_a_gpu(objective, top_k, augment):
    """The program has neither a scatter nor the gradient of max pooling, and XLA knows the number of its steps."""
    deterministic()
    draw = np.random.default_rng(0)
    inputs, labels = draw.integers(0, 256, (ROWS, 28, 28), np.uint8), draw.integers(0, CLASSES, ROWS)
    model = build_network("cnn", (28, 28), CLASSES, role="student", seed=0, precision="float32")
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    rows = TrainingRows(
        Split("train", ArrayRows(inputs, "inputs"), labels),
        teacher=None if objective.alpha == 1 else teacher_logits(top_k),
        views=Views(augment, seed=1) if augment else None,
    )
    settings, replicas = Training(xla="on", batch_size=16), replace(open_replicas(), kind="GPU")
    trainer = Trainer(model, optimizer, rows, objective.for_task(CLASSIFICATION), settings, replicas)
    buffer, order = next(Feed(rows, 16, 1 << 30).shuffled(draw, epoch=1))
    numbers = tf.constant([objective.alpha, 4.0])
    (batches,) = trainer.calls(order)
    arguments = buffer, tf.constant(batches, tf.int32), tf.constant([0, 0], tf.int32), numbers
    compiler_output = trainer._steps.experimental_get_compiler_ir(*arguments)
    program = compiler_output(stage="hlo")
    assert " convolution(" in program
    assert " scatter(" not in program
    assert " select-and-scatter(" not in program
    optimized = compiler_output(stage="optimized_hlo")
    assert f'"known_trip_count":{{"n":"{len(batches)}"}}' in optimized  # otherwise the host waits for each step


def test_auto_on_a_gpu(monkeypatch):
    """All networks but those with texts or embeddings are compiled."""
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: ["a GPU"])
    words = keras.Input((5,), dtype="int32")
    embedding = keras.Sequential([words, keras.layers.Embedding(9, 2), keras.layers.Flatten(), keras.layers.Dense(2)])
    text = keras.Input((), dtype="string")
    vectors = keras.layers.TextVectorization(max_tokens=9, output_mode="count", vocabulary=["a", "b"])
    texts = keras.Model(text, keras.layers.Dense(2)(vectors(text)))
    assert uses_xla(build_network("cnn", (28, 28), CLASSES, role="student", seed=0, precision="float32"), "auto")
    assert not uses_xla(embedding, "auto")
    assert not uses_xla(texts, "auto")
    with pytest.raises(UsageError, match="--xla on does not work with texts: use --xla off"):
        uses_xla(texts, "on")
