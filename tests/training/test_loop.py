"""The loop: it does what Keras's would, the same way each time, and goes on from where it stopped."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from helpers import InterruptAfter

from kdistill.backend import keras, tf
from kdistill.console import Reporter
from kdistill.data.readers import Array
from kdistill.errors import KdistillError
from kdistill.networks import built_in as models
from kdistill.settings import Loss, Training
from kdistill.soft_targets.storage import Logits, LogitStorage
from kdistill.training import loop as training
from kdistill.training import losses
from kdistill.training.feed import Examples
from kdistill.workspace import Input, Manifest

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def rows(digits):
    inputs, labels = digits.train.read(), digits.train.labels
    return examples(inputs[:320], labels[:320]), examples(inputs[320:520], labels[320:520])


def examples(inputs, labels, teacher_logits=None):
    said = None if teacher_logits is None else Logits(LogitStorage(10, 4.0), teacher_logits)
    return Examples(Array(inputs, "some"), labels, said)


def settings(**changed):
    return Training(**{"epochs": 2, "batch_size": 64, "seed": 3} | changed)


def identity(how, **more):
    from dataclasses import asdict

    return Manifest(kind="teacher", settings=asdict(how), inputs={"dataset": Input("d", "sha256:1")}, **more)


def train(place, rows, how, *, model="mlp-30", objective=None, role="teacher", reporter=QUIET, teacher_logits=None):
    known, held_out = rows
    if teacher_logits is not None:
        known = examples(known.inputs.read(), known.labels, teacher_logits)
    return training.train(
        lambda: models.build(model, (28, 28), 10, role=role, seed=how.seed, precision=how.precision),
        known,
        held_out,
        held_out_name="validation",
        objective=objective or training.Objective(),
        settings=how,
        role=role,
        checkpoint=training.Checkpoint(place / "checkpoint.npz", identity(how)),
        reporter=reporter,
    )


def weights(network):
    return [variable.numpy() for variable in network.variables]


def same(one, other):
    return all((a == b).all() for a, b in zip(one, other, strict=True))


def history(progress):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in progress.rows]


@pytest.mark.parametrize(("optimizer", "reference"), [("adam", "Adam"), ("sgd", "SGD"), ("adamw", "AdamW")])
def test_does_what_keras_does(tmp_path, rows, optimizer, reference):
    """Two epochs give the weights that Keras's own steps give on the same batches in the same order."""
    how = settings(optimizer=optimizer, xla="off")
    network, _ = train(tmp_path, rows, how)
    expected = models.build("mlp-30", (28, 28), 10, role="teacher", seed=3, precision="float32")
    made = getattr(keras.optimizers, reference)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected.compile(made(1e-3, momentum=0.9) if optimizer == "sgd" else made(1e-3), loss)
    known = rows[0]
    inputs = known.inputs.read()
    for epoch in (1, 2):
        seed = [models.role_seed(3, "teacher"), epoch]
        order = np.random.default_rng(seed).permutation(len(known))
        for first in range(0, len(order), 64):
            batch = order[first : first + 64]
            expected.train_on_batch(inputs[batch].astype(np.float32) / 255, known.labels[batch])
    for mine, theirs in zip(weights(network), weights(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_history_is_measured_as_it_says(tmp_path, rows):
    """The held-out loss and accuracy of the last epoch are those of the network that comes out."""
    network, progress = train(tmp_path, rows, settings())
    held_out = rows[1]
    logits = network(held_out.inputs.read().astype(np.float32) / 255).numpy()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(held_out.labels, logits)
    assert progress.rows[-1]["validation_loss"] == pytest.approx(float(loss), rel=1e-5)
    accuracy = (logits.argmax(axis=1) == held_out.labels).mean()
    assert progress.rows[-1]["validation_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("model", ["mlp-30", "cnn"])
def test_same_seed_same_bits(tmp_path, rows, model):
    """The same settings give the same weights to the bit; another seed gives others; 0 is a seed like any other."""
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        (tmp_path / str(number)).mkdir()
        network, progress = train(tmp_path / str(number), rows, settings(seed=seed, epochs=1), model=model)
        runs.append((weights(network), history(progress)))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


def test_teacher_and_student_start_apart():
    """At one seed and architecture, a student does not begin as its teacher did."""
    teacher, student = (
        models.build("mlp-30", (28, 28), 10, role=role, seed=0, precision="float32") for role in ("teacher", "student")
    )
    assert not same(weights(teacher), weights(student))


@pytest.mark.parametrize(
    "how",
    [
        settings(epochs=4),
        settings(epochs=4, schedule="cosine", optimizer="adamw"),
        settings(epochs=6, early_stopping=1, validation_fraction=0.1, learning_rate=0.02),
        settings(epochs=4, precision="mixed_float16"),
        settings(epochs=4, precision="mixed_bfloat16"),
    ],
    ids=["constant", "cosine", "early stopping", "float16", "bfloat16"],
)
@pytest.mark.parametrize("after", [1, 2])
def test_goes_on_to_the_same_bits(tmp_path, rows, how, after):
    """Stopped after any epoch and run again, a run ends with the weights and history of an uninterrupted one."""
    (tmp_path / "whole").mkdir()
    whole, expected = train(tmp_path / "whole", rows, how)
    (tmp_path / "stopped").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", rows, how, reporter=InterruptAfter(after))
    counts = InterruptAfter(100)
    network, progress = train(tmp_path / "stopped", rows, how, reporter=counts)
    assert 100 - counts.left == expected.epoch - after, "it went on, and did not start over"
    assert history(progress) == history(expected)
    assert progress.best_epoch == expected.best_epoch
    assert same(weights(network), weights(whole))


def test_another_number_of_threads_is_warned_of(tmp_path, rows, monkeypatch, capsys):
    """The bits of a sum depend on it, so a resumed run says what its epochs were computed with."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, rows, settings(epochs=2), reporter=InterruptAfter(1))
    monkeypatch.setattr(training, "threads", lambda: 99)
    train(tmp_path, rows, settings(epochs=2), reporter=Reporter())
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert "99" in warning
    train(tmp_path, rows, settings(epochs=3), reporter=Reporter())
    assert capsys.readouterr().err == ""


def test_more_epochs_go_on(tmp_path, rows):
    """A finished run with more epochs asked for ends as if they had been asked for at once."""
    (tmp_path / "whole").mkdir()
    whole, _ = train(tmp_path / "whole", rows, settings(epochs=3))
    train(tmp_path, rows, settings(epochs=2))
    counts = InterruptAfter(100)
    network, progress = train(tmp_path, rows, settings(epochs=3), reporter=counts)
    assert (progress.epoch, counts.left) == (3, 99)
    assert same(weights(network), weights(whole))
    assert training.continues(identity(settings(epochs=2)), identity(settings(epochs=3)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (settings(epochs=2), settings(epochs=1)),
        (settings(epochs=2), settings(epochs=2, seed=4)),
        (settings(epochs=2), settings(epochs=3, learning_rate=0.1)),
        (settings(epochs=2, schedule="cosine"), settings(epochs=3, schedule="cosine")),
    ],
    ids=["fewer epochs", "seed", "learning rate", "cosine"],
)
def test_changed_setting_never_resumes(before, after):
    assert not training.continues(identity(before), identity(after))


def test_starting_over_is_said(tmp_path, rows, capsys):
    """A checkpoint of other settings is not gone on from, and the user is told."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, rows, settings(epochs=3), reporter=InterruptAfter(1))
    _, progress = train(tmp_path, rows, settings(epochs=1, seed=9), reporter=Reporter())
    assert progress.epoch == 1
    assert "starts over" in capsys.readouterr().out


def test_changed_input_never_resumes():
    other = Manifest(kind="teacher", settings=identity(settings()).settings, inputs={"dataset": Input("d", "sha256:2")})
    assert not training.continues(identity(settings()), other)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x00" * 1000])
def test_spoiled_checkpoint_starts_over(tmp_path, rows, content):
    (tmp_path / "checkpoint.npz").write_bytes(content)
    _, progress = train(tmp_path, rows, settings(epochs=1))
    assert progress.epoch == 1


def test_early_stopping_keeps_the_best_epoch(tmp_path, rows):
    """It stops after PATIENCE epochs without a lower validation loss, with the weights of the lowest."""
    how = settings(epochs=60, early_stopping=2, validation_fraction=0.1, learning_rate=0.02)
    network, progress = train(tmp_path, rows, how)
    held_out = [row["validation_loss"] for row in progress.rows]
    assert progress.epoch < 60
    assert progress.best_epoch == int(np.argmin(held_out)) + 1 == progress.epoch - 2
    logits = network(rows[1].inputs.read().astype(np.float32) / 255).numpy()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(rows[1].labels, logits)
    assert float(loss) == pytest.approx(min(held_out), rel=1e-5)


def test_diverging_run_stops(tmp_path, rows):
    with pytest.raises(KdistillError, match=r"not finite in epoch \d+.*1e\+30"):
        train(tmp_path, rows, settings(learning_rate=1e30, optimizer="sgd", epochs=5))


def test_schedules(tmp_path, rows):
    """The rate in the history: unchanged, or half a cosine down to 0."""
    for name in ("constant", "cosine"):
        (tmp_path / name).mkdir()
    _, constant = train(tmp_path / "constant", rows, settings(epochs=4))
    _, cosine = train(tmp_path / "cosine", rows, settings(epochs=4, schedule="cosine"))
    assert [row["learning_rate"] for row in constant.rows] == pytest.approx([1e-3] * 4)
    expected = [1e-3 * (1 + math.cos(math.pi * done / 4)) / 2 for done in (1, 2, 3, 4)]
    assert [row["learning_rate"] for row in cosine.rows] == pytest.approx(expected, abs=1e-9)


def test_objective_is_the_sum_of_its_parts(tmp_path, rows):
    """In a student's history the loss is alpha times the hard part plus the rest of the soft part."""
    logits = np.random.default_rng(0).normal(0, 3, (320, 10)).astype(np.float32)
    objective = training.Objective(0.3, 4.0)
    _, progress = train(tmp_path, rows, settings(), role="student", objective=objective, teacher_logits=logits)
    for row in progress.rows:
        assert row["train_loss"] == pytest.approx(0.3 * row["hard_loss"] + 0.7 * row["soft_loss"], rel=1e-5)
    assert str(objective) == "0.3 * CE(labels) + 0.7 * T^2 * KL(soft targets), T = 4"


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        (training.Objective(), "CE(labels)"),
        (training.Objective(label_smoothing=0.1), "CE(labels smoothed by 0.1)"),
        (training.Objective(0.1, 20.0), "0.1 * CE(labels) + 0.9 * T^2 * KL(soft targets), T = 20"),
        (training.Objective(0.1, 1.0, "mse"), "0.1 * CE(labels) + 0.9 * MSE(logits) / 2"),
        (
            training.Objective(0.1, 4.0, "dkd", label_smoothing=0.2),
            "0.1 * CE(labels smoothed by 0.2) + 0.9 * T^2 * (TCKD + 8 * NCKD)(soft targets), T = 4",
        ),
        (
            training.Objective(0.5, 4.0, "dist"),
            "0.5 * CE(labels) + 0.5 * T^2 * (2 - r_inter - r_intra)(soft targets), T = 4",
        ),
        (training.Objective(0.0, 0.5, "jsd"), "0 * CE(labels) + 1 * T^2 * JSD(soft targets), T = 0.5"),
        (
            training.Objective(0.1, 2.0, "reverse-kl", standardize_logits=True),
            "0.1 * CE(labels) + 0.9 * T^2 * KL(student || soft targets), T = 2, logits standardized",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_objective_says_its_formula(objective, line):
    assert str(objective) == line


@pytest.mark.parametrize("xla", ["on", "off"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("loss", get_args(Loss))
def test_each_loss_is_the_one_asked_for(tmp_path, rows, loss, standardize, xla):
    """With steps of no length, the parts in a student's history are those of `losses`, batch by batch, smoothed labels."""
    known, _ = rows
    said = np.random.default_rng(0).normal(0, 3, (320, 10)).astype(np.float32)
    objective = training.Objective(0.3, 4.0, loss, standardize, 0.2)
    how = settings(epochs=1, optimizer="sgd", learning_rate=1e-30, xla=xla)
    network, progress = train(tmp_path, rows, how, role="student", objective=objective, teacher_logits=said)
    logits = network(known.inputs.read().astype(np.float32) / 255).numpy()
    order = np.random.default_rng([models.role_seed(3, "student"), 1]).permutation(320)
    sides = [losses.standardized(each).numpy() if standardize else each for each in (said, logits)]
    soft = [
        losses.SOFT_PARTS[loss].loss(known.labels[batch], *(each[batch] for each in sides), temperature=4.0)
        for batch in np.split(order, 5)
    ]
    row = progress.rows[0]
    assert row["soft_loss"] == pytest.approx(np.mean(soft), rel=1e-4)
    hard = losses.hard_loss(known.labels, logits, label_smoothing=0.2)
    assert row["hard_loss"] == pytest.approx(np.mean(hard), rel=1e-5)
    assert row["train_loss"] == pytest.approx(0.3 * row["hard_loss"] + 0.7 * row["soft_loss"], rel=1e-5)


def test_smoothed_labels_are_not_in_the_held_out_loss(tmp_path, rows):
    """A smoothed run is judged as any other: by the cross-entropy with hard labels."""
    network, progress = train(tmp_path, rows, settings(), objective=training.Objective(label_smoothing=0.5))
    logits = network(rows[1].inputs.read().astype(np.float32) / 255).numpy()
    plain = np.mean(losses.hard_loss(rows[1].labels, logits))
    assert progress.rows[-1]["validation_loss"] == pytest.approx(plain, rel=1e-5)
    assert progress.rows[-1]["train_loss"] > plain


def test_soft_targets_alone_teach_their_own_rows(tmp_path, rows):
    """At alpha 0 the student learns each row's own target; shuffled by a row, they teach it something else."""
    known = rows[0]
    logits = 8.0 * np.eye(10, dtype=np.float32)[known.labels]
    how = settings(epochs=20, learning_rate=0.01)
    for name, targets in (("own", logits), ("shifted", np.roll(logits, 1, axis=0))):
        (tmp_path / name).mkdir()
        network, _ = train(
            tmp_path / name,
            (known, known),
            how,
            role="student",
            objective=training.Objective(0.0, 1.0),
            teacher_logits=targets,
        )
        said = network(known.inputs.read().astype(np.float32) / 255).numpy().argmax(axis=1)
        right = (said == known.labels).mean()
        assert right > 0.97 if name == "own" else right < 0.5


@pytest.mark.parametrize("xla", ["on", "off"])
def test_xla_changes_speed_alone(tmp_path, rows, xla):
    """Compiled or not, a run's losses agree to rounding."""
    _, progress = train(tmp_path, rows, settings(xla=xla))
    assert progress.rows[-1]["train_loss"] == pytest.approx(1.6, abs=0.5)
    (tmp_path / "auto").mkdir()
    _, auto = train(tmp_path / "auto", rows, settings())
    assert progress.rows[-1]["train_loss"] == pytest.approx(auto.rows[-1]["train_loss"], rel=1e-3)


def test_xla_auto_looks_for_convolutions():
    dense, cnn = (models.build(m, (28, 28), 10, role="teacher", seed=0, precision="float32") for m in ("small", "cnn"))
    assert training.uses_xla(dense, "auto")
    assert training.uses_xla(cnn, "auto") == bool(tf.config.list_logical_devices("GPU"))
    assert training.uses_xla(cnn, "on")
    assert not training.uses_xla(dense, "off")
