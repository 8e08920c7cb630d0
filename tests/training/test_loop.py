"""The training loop: it trains as Keras does, gives the same bits each time, and resumes."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import InterruptAfter

from kdistill.backend import keras, tf
from kdistill.console import Reporter
from kdistill.data import Split
from kdistill.data.augmentation import Views
from kdistill.data.rows import ArrayRows
from kdistill.errors import KdistillError
from kdistill.networks.build import build_network, role_seed
from kdistill.settings import CLASSIFICATION, LOSSES, Objective, Training
from kdistill.soft_targets.storage import Logits, LogitStorage
from kdistill.training import checkpoint, loop, steps
from kdistill.training.losses import classification as losses
from kdistill.training.optimizers import make_optimizer
from kdistill.training.replicas import open_replicas
from kdistill.training.training_rows import TrainingRows
from kdistill.training.workers import Workers
from kdistill.training.xla import uses_xla
from kdistill.workspace import Input, Manifest
from kdistill.workspace.unfinished import continues

QUIET = Reporter(quiet=True)
HARD = Objective(alpha=1.0)


@pytest.fixture(scope="module")
def rows(digits):
    inputs, labels = digits.train.read(), digits.train.labels
    return training_rows(inputs[:320], labels[:320]), training_rows(inputs[320:520], labels[320:520])


def training_rows(inputs, labels, teacher_logits=None):
    teacher = None if teacher_logits is None else Logits(LogitStorage(10, 4.0), teacher_logits)
    return TrainingRows(Split("validation", ArrayRows(inputs, "digits"), labels), teacher=teacher)


def settings(**changes):
    return Training(**{"epochs": 2, "batch_size": 64, "seed": 3} | changes)


def identity(training, digest="sha256:1"):
    return Manifest(kind="teacher", settings=training.recorded(), inputs=(Input("dataset", "d", digest),))


def build(model="mlp-30", *, role="teacher", seed=3, precision="float32", l2=None):
    return build_network(model, (28, 28), 10, role=role, seed=seed, precision=precision, l2=l2)


def train(
    directory,
    rows,
    training,
    *,
    model="mlp-30",
    objective=HARD,
    role="teacher",
    reporter=QUIET,
    teacher_logits=None,
    trainers=None,
    kind=None,
    augment=None,
):
    train_rows, held_out = rows
    if teacher_logits is not None:
        train_rows = training_rows(train_rows.split.read(), train_rows.split.labels, teacher_logits)
    if augment:
        train_rows = replace(train_rows, views=Views(augment, seed=1))
    directory.mkdir(exist_ok=True)
    return loop.train(
        lambda: build(model, role=role, seed=training.seed, precision=training.precision, l2=training.l2),
        train_rows,
        held_out,
        objective=objective.for_task(CLASSIFICATION),
        settings=training,
        role=role,
        checkpoint=checkpoint.Checkpoint(directory / "checkpoint.npz", identity(training)),
        reporter=reporter,
        trainers=trainers,
        replicas=replace(open_replicas(), kind=kind) if kind else None,
    )


def logits_of(network, rows):
    return network(rows.split.read().astype(np.float32) / 255).numpy()


def weights(network):
    return [variable.numpy() for variable in network.variables]


def same(one, other):
    return all((a == b).all() for a, b in zip(one, other, strict=True))


def history(progress):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in progress.rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "reference", "options"),
    [
        ("adam", "Adam", {}),
        ("sgd", "SGD", {"momentum": 0.9}),
        ("nesterov", "SGD", {"momentum": 0.9, "nesterov": True}),
        ("adamw", "AdamW", {}),
    ],
)
def test_weights_are_those_of_keras(tmp_path, rows, optimizer, reference, options):
    """Two epochs give the weights that Keras's own steps give on the same batches in the same order."""
    network, _ = train(tmp_path, rows, settings(optimizer=optimizer, xla="off"))
    expected = build()
    expected.compile(
        getattr(keras.optimizers, reference)(1e-3, **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    split = rows[0].split
    inputs = split.read()
    for epoch in (1, 2):
        order = np.random.default_rng([role_seed(3, "teacher"), epoch]).permutation(len(split))
        for first in range(0, len(order), 64):
            batch = order[first : first + 64]
            expected.train_on_batch(inputs[batch].astype(np.float32) / 255, split.labels[batch])
    for mine, theirs in zip(weights(network), weights(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [
        (7 * 4, 200, [(7, 4)]),
        (8 * 4 + 3, 3, [(2, 4)] * 4 + [(1, 3)]),
        (11 * 4, 4, [(4, 4), (4, 4), (3, 4)]),
        (6 * 4, 1, [(1, 4)] * 6),
        (3, 200, [(1, 3)]),
    ],
)
def test_steps_of_each_call(rows, most, expected):
    """Calls have equal numbers of steps where possible, and the rest of the rows has its own."""
    order = np.random.default_rng(0).permutation(rows)
    calls = list(steps._calls(order, 4, most))
    assert [call.shape for call in calls] == expected
    assert np.concatenate([call.ravel() for call in calls]).tolist() == order.tolist()


@pytest.mark.parametrize(("addresses", "same"), [((), False), (("a:1", "b:1"), True)])
def test_steps_per_call_of_workers(monkeypatch, addresses, same):
    """Workers take the same number of steps per call, even if they have different numbers of threads."""
    trainer = SimpleNamespace(_row_work=1e8, _replicas=SimpleNamespace(kind="CPU", workers=Workers(addresses)))
    found = set()
    for threads in (1, 16):
        monkeypatch.setattr(steps, "threads", lambda threads=threads: threads)
        found.add(steps.Trainer._steps_per_call(trainer, 32))
    assert (len(found) == 1) == same


@pytest.mark.slow
@pytest.mark.parametrize("xla", ["on", "off"])
def test_steps_per_call_depend_on_the_work(tmp_path, rows, monkeypatch, xla):
    """A large network takes fewer steps per call, so that Ctrl-C has an effect soon. Its weights are the same."""
    network, _ = train(tmp_path / "one", rows, settings(xla=xla))
    shapes = []
    take_steps = steps.Trainer.train
    work = 4.5 * 3 * 64 * network.count_params()
    monkeypatch.setattr(steps, "CPU_MULTIPLY_ADDS", work / steps.threads())
    monkeypatch.setattr(steps, "GPU_MULTIPLY_ADDS", work)
    monkeypatch.setattr(
        steps.Trainer, "train", lambda *arguments: shapes.append(arguments[2].shape) or take_steps(*arguments)
    )
    other, _ = train(tmp_path / "other", rows, settings(xla=xla))
    assert shapes == [(3, 64), (2, 64)] * 2
    assert same(weights(network), weights(other))


@pytest.mark.slow
def test_ema_averages_the_weights(tmp_path, rows):
    """The network has the average of Keras's weights over the steps, and the history is that of this network."""
    network, progress = train(tmp_path, rows, settings(ema=0.9, xla="off"))
    keras_network = build()
    keras_network.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    split, average = rows[0].split, None
    inputs = split.read().astype(np.float32) / 255
    for epoch in (1, 2):
        order = np.random.default_rng([role_seed(3, "teacher"), epoch]).permutation(len(split))
        for first in range(0, len(order), 64):
            batch = order[first : first + 64]
            keras_network.train_on_batch(inputs[batch], split.labels[batch])
            step = weights(keras_network)
            average = step if average is None else [0.9 * a + 0.1 * b for a, b in zip(average, step, strict=True)]
    for mine, theirs in zip(weights(network), average, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)
    loss = np.mean(losses.hard_loss(rows[1].split.labels, logits_of(network, rows[1])))
    assert progress.rows[-1]["validation_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_ema_of_the_best_epoch(tmp_path, rows):
    """With early stopping, the averages are evaluated and kept, and training continues from the weights."""
    training = settings(ema=0.9, epochs=60, early_stopping=2, validation_fraction=0.1, learning_rate=0.02)
    network, progress = train(tmp_path / "ema", rows, training)
    _, plain = train(tmp_path / "plain", rows, replace(training, ema=None, epochs=1))
    assert progress.rows[0]["train_loss"] == plain.rows[0]["train_loss"]
    assert progress.rows[0]["validation_loss"] != plain.rows[0]["validation_loss"]
    loss = np.mean(losses.hard_loss(rows[1].split.labels, logits_of(network, rows[1])))
    assert progress.epoch < 60
    assert progress.lowest("validation_loss") == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_history_has_the_held_out_loss_and_accuracy(tmp_path, rows):
    """The numbers of the last epoch are those of the returned network."""
    network, progress = train(tmp_path, rows, settings())
    labels, logits = rows[1].split.labels, logits_of(network, rows[1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    assert progress.rows[-1]["validation_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert progress.rows[-1]["validation_accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp-30", "cnn"])
def test_same_seed_same_bits(tmp_path, rows, model):
    """The same settings give the same weights to the bit, another seed gives others, and 0 is a seed."""
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        network, progress = train(tmp_path / str(number), rows, settings(seed=seed, epochs=1), model=model)
        runs.append((weights(network), history(progress)))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


def test_teacher_and_student_have_different_initial_weights():
    """The role is part of the seed."""
    assert not same(weights(build(role="teacher")), weights(build(role="student")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "training",
    [
        settings(epochs=4),
        settings(epochs=4, schedule="cosine", optimizer="adamw"),
        settings(epochs=6, early_stopping=1, validation_fraction=0.1, learning_rate=0.02),
        settings(epochs=4, ema=0.9),
        settings(epochs=6, ema=0.9, early_stopping=1, validation_fraction=0.1, precision="mixed_float16"),
        settings(epochs=4, precision="mixed_float16"),
        settings(epochs=4, precision="mixed_bfloat16"),
        settings(epochs=4, batch_size=60),
    ],
    ids=["constant", "cosine", "early stopping", "ema", "ema of the best epoch", "float16", "bfloat16", "rest of rows"],
)
@pytest.mark.parametrize("after", [1, 2])
def test_resumed_run_has_the_same_bits(tmp_path, rows, training, after):
    """A run that is interrupted after an epoch and resumed has the weights and history of an uninterrupted one."""
    uninterrupted, expected = train(tmp_path / "uninterrupted", rows, training)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed", rows, training, reporter=InterruptAfter(after))
    counter = InterruptAfter(100)
    network, progress = train(tmp_path / "resumed", rows, training, reporter=counter)
    assert 100 - counter.left == expected.epoch - after, "it did not start over"
    assert history(progress) == history(expected)
    assert progress.best_epoch == expected.best_epoch
    assert same(weights(network), weights(uninterrupted))


@pytest.mark.slow
def test_batch_normalization(tmp_path, rows):
    """Its averages are resumed, are new for the next network of a trainer, and are used in evaluation."""
    rows = tuple(training_rows(each.split.read()[:100], each.split.labels[:100]) for each in rows)
    training = settings(epochs=2, optimizer="nesterov", schedule="step:0.5", l2=1e-3, batch_size=25)
    network, progress = train(tmp_path / "one", rows, training, model="resnet-8")
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = cross_entropy(rows[1].split.labels, logits_of(network, rows[1]))
    assert progress.rows[-1]["validation_loss"] == pytest.approx(float(loss), rel=1e-4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed", rows, training, model="resnet-8", reporter=InterruptAfter(1))
    trainers = {}
    train(tmp_path / "other", rows, replace(training, seed=4, epochs=1), model="resnet-8", trainers=trainers)
    train(tmp_path / "other seed", rows, replace(training, seed=4), model="resnet-8", trainers=trainers)
    for directory, shared in (("resumed", None), ("again", trainers)):
        other, history_of_other = train(tmp_path / directory, rows, training, model="resnet-8", trainers=shared)
        assert same(weights(other), weights(network)), directory
        assert history(history_of_other) == history(progress)
    assert len(trainers) == 2, "the number of steps is part of a schedule"


@pytest.mark.slow
def test_warning_of_another_number_of_threads(tmp_path, rows, monkeypatch, capsys):
    """The last bits of a sum depend on the threads, so a resumed run warns if their number has changed."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, rows, settings(epochs=2), reporter=InterruptAfter(1))
    monkeypatch.setattr(checkpoint, "threads", lambda: 99)
    train(tmp_path, rows, settings(epochs=2), reporter=Reporter())
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert "99" in warning
    train(tmp_path, rows, settings(epochs=3), reporter=Reporter())
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_more_epochs_continue_a_finished_run(tmp_path, rows):
    """A finished run that is continued with more epochs has the weights of a run with all of them."""
    expected, _ = train(tmp_path / "all", rows, settings(epochs=3))
    train(tmp_path, rows, settings(epochs=2))
    counter = InterruptAfter(100)
    network, progress = train(tmp_path, rows, settings(epochs=3), reporter=counter)
    assert (progress.epoch, counter.left) == (3, 99)
    assert same(weights(network), weights(expected))
    assert continues(identity(settings(epochs=2)), identity(settings(epochs=3)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (settings(epochs=2), settings(epochs=1)),
        (settings(epochs=2), settings(epochs=2, seed=4)),
        (settings(epochs=2), settings(epochs=3, learning_rate=0.1)),
        (settings(epochs=2, schedule="cosine"), settings(epochs=3, schedule="cosine")),
        (settings(epochs=2, schedule="step:0.5"), settings(epochs=3, schedule="step:0.5")),
        (settings(epochs=2), settings(epochs=3, l2=0.1)),
    ],
    ids=["fewer epochs", "seed", "learning rate", "cosine", "step", "l2"],
)
def test_changed_setting_is_not_resumed(before, after):
    """Only the number of epochs may grow, and only without a schedule."""
    assert not continues(identity(before), identity(after))


def test_changed_input_is_not_resumed():
    """Another digest of the dataset is another run."""
    assert not continues(identity(settings()), identity(settings(), "sha256:2"))


@pytest.mark.slow
def test_starting_over_is_reported(tmp_path, rows, capsys):
    """A checkpoint of other settings is not resumed, and the changed setting is printed."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, rows, settings(epochs=3), reporter=InterruptAfter(1))
    _, progress = train(tmp_path, rows, settings(epochs=1, seed=9), reporter=Reporter())
    assert progress.epoch == 1
    assert "seed 3 -> 9" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x00" * 1000])
def test_damaged_checkpoint_starts_over(tmp_path, rows, content, capsys):
    """A file that cannot be read is reported and replaced."""
    (tmp_path / "checkpoint.npz").write_bytes(content)
    _, progress = train(tmp_path, rows, settings(epochs=1), reporter=Reporter())
    assert progress.epoch == 1
    assert "checkpoint.npz" in capsys.readouterr().out


@pytest.mark.slow
def test_early_stopping_keeps_the_best_epoch(tmp_path, rows):
    """It stops after PATIENCE epochs without a lower validation loss, with the weights of the lowest."""
    training = settings(epochs=60, early_stopping=2, validation_fraction=0.1, learning_rate=0.02)
    network, progress = train(tmp_path, rows, training)
    losses_of_epochs = [row["validation_loss"] for row in progress.rows]
    assert progress.epoch < 60
    assert progress.best_epoch == int(np.argmin(losses_of_epochs)) + 1 == progress.epoch - 2
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert float(loss(rows[1].split.labels, logits_of(network, rows[1]))) == pytest.approx(
        min(losses_of_epochs), rel=1e-5
    )


@pytest.mark.slow
def test_diverging_run_stops(tmp_path, rows):
    """A loss that is not finite is an error with the epoch and the learning rate."""
    with pytest.raises(KdistillError, match=r"epoch \d+.*--learning-rate 1e\+30"):
        train(tmp_path, rows, settings(learning_rate=1e30, optimizer="sgd", epochs=5))


@pytest.mark.slow
def test_schedules(tmp_path, rows):
    """The learning rate in the history, that of the next step, is constant, falls to 0 along half a cosine, or drops."""
    _, constant = train(tmp_path / "constant", rows, settings(epochs=4))
    _, cosine = train(tmp_path / "cosine", rows, settings(epochs=4, schedule="cosine"))
    assert [row["learning_rate"] for row in constant.rows] == pytest.approx([1e-3] * 4)
    expected = [1e-3 * (1 + math.cos(math.pi * done / 4)) / 2 for done in (1, 2, 3, 4)]
    assert [row["learning_rate"] for row in cosine.rows] == pytest.approx(expected, abs=1e-9)
    _, steps = train(tmp_path / "steps", rows, settings(epochs=4, schedule="step:0.5,0.75"))
    assert [row["learning_rate"] for row in steps.rows] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-5])


@pytest.mark.parametrize("fraction", [0.29, 0.5, 0.999])
def test_rate_drops_at_a_fraction_of_the_steps(fraction):
    """Of 100 steps, those before the fraction have the full rate, and each drop divides it by 10."""
    optimizer = make_optimizer(settings(epochs=20, schedule=f"step:0.1,{fraction}", optimizer="sgd"), 5)
    rates = []
    for step in range(100):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    drop = round(100 * fraction)
    assert rates == pytest.approx([1e-3] * 10 + [1e-4] * (drop - 10) + [1e-5] * (100 - drop))


@pytest.mark.slow
def test_l2_adds_to_the_gradient_of_kernels(tmp_path, rows):
    """A step subtracts learning rate * L2 rate * kernel more; biases and the recorded losses are those without."""
    training = settings(epochs=1, batch_size=320, optimizer="sgd", learning_rate=0.1, xla="off")
    plain, progress = train(tmp_path / "plain", rows, training)
    shrunk, same_losses = train(tmp_path / "shrunk", rows, replace(training, l2=0.5))
    for before, without, own in zip(build().weights, plain.weights, shrunk.weights, strict=True):
        rate = 0.5 if before.name == "kernel" else 0
        np.testing.assert_allclose(own.numpy(), without.numpy() - 0.1 * rate * before.numpy(), atol=1e-6)
    assert same_losses.rows[0]["train_loss"] == pytest.approx(progress.rows[0]["train_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (HARD, "CE(labels)"),
        (Objective(alpha=1.0, label_smoothing=0.1), "CE(labels smoothed by 0.1)"),
        (Objective(temperature=20.0), "0.1 * CE(labels) + 0.9 * T^2 * KL(soft targets), T = 20"),
        (Objective(loss="mse"), "0.1 * CE(labels) + 0.9 * MSE(logits) / 2"),
        (
            Objective(temperature=4.0, loss="dkd", label_smoothing=0.2),
            "0.1 * CE(labels smoothed by 0.2) + 0.9 * T^2 * (TCKD + 8 * NCKD)(soft targets), T = 4",
        ),
        (
            Objective(alpha=0.5, temperature=4.0, loss="dist"),
            "0.5 * CE(labels) + 0.5 * T^2 * (2 - r_inter - r_intra)(soft targets), T = 4",
        ),
        (Objective(alpha=0.0, temperature=0.5, loss="jsd"), "0 * CE(labels) + 1 * T^2 * JSD(soft targets), T = 0.5"),
        (
            Objective(temperature=2.0, loss="reverse-kl", standardize_logits=True),
            "0.1 * CE(labels) + 0.9 * T^2 * KL(student || soft targets), T = 2, logits standardized",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_objective_is_printed_as_a_formula(objective, formula):
    """The formula has the numbers of the objective."""
    assert objective.for_task(CLASSIFICATION).formula(CLASSIFICATION) == formula


@pytest.mark.slow
@pytest.mark.parametrize("xla", ["on", "off"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if CLASSIFICATION in loss.formulas])
def test_history_has_the_parts_of_each_loss(tmp_path, rows, loss, standardize, xla):
    """With steps of length 0, the parts in a student's history are the means of the loss functions over the batches."""
    split = rows[0].split
    teacher_logits = np.random.default_rng(0).normal(0, 3, (320, 10)).astype(np.float32)
    temperature = 4.0 if LOSSES[loss].temperature else None
    objective = Objective(
        alpha=0.3, temperature=temperature, loss=loss, standardize_logits=standardize, label_smoothing=0.2
    )
    training = settings(epochs=1, optimizer="sgd", learning_rate=1e-30, xla=xla)
    network, progress = train(
        tmp_path, rows, training, role="student", objective=objective, teacher_logits=teacher_logits
    )
    logits = logits_of(network, rows[0])
    order = np.random.default_rng([role_seed(3, "student"), 1]).permutation(320)
    if standardize:
        both = losses.standardized(teacher_logits).numpy(), losses.standardized(logits).numpy()
    else:
        both = teacher_logits, logits
    function = getattr(losses, LOSSES[loss].function)
    options = {"temperature": temperature} if temperature else {}
    soft = [
        function(*[split.labels[batch]][: LOSSES[loss].labels], *(each[batch] for each in both), **options)
        for batch in np.split(order, 5)
    ]
    hard = losses.hard_loss(split.labels, logits, label_smoothing=0.2)
    row = progress.rows[0]
    assert row["soft_loss"] == pytest.approx(np.mean(soft), rel=1e-4)
    assert row["hard_loss"] == pytest.approx(np.mean(hard), rel=1e-5)
    assert row["train_loss"] == pytest.approx(0.3 * row["hard_loss"] + 0.7 * row["soft_loss"], rel=1e-5)


@pytest.mark.slow
def test_held_out_loss_has_no_label_smoothing(tmp_path, rows):
    """Label smoothing changes the training loss only."""
    network, progress = train(tmp_path, rows, settings(), objective=Objective(alpha=1.0, label_smoothing=0.5))
    loss = np.mean(losses.hard_loss(rows[1].split.labels, logits_of(network, rows[1])))
    assert progress.rows[-1]["validation_loss"] == pytest.approx(loss, rel=1e-5)
    assert progress.rows[-1]["train_loss"] > loss


@pytest.mark.slow
def test_each_row_learns_its_own_soft_target(tmp_path, rows):
    """With alpha 0 a student learns the labels from its soft targets, and not from those of other rows."""
    labels = rows[0].split.labels
    teacher_logits = 8.0 * np.eye(10, dtype=np.float32)[labels]
    objective = Objective(alpha=0.0, temperature=1.0)
    accuracies = []
    for number, logits in enumerate((teacher_logits, np.roll(teacher_logits, 1, axis=0))):
        network, _ = train(
            tmp_path / str(number),
            (rows[0], rows[0]),
            settings(epochs=20, learning_rate=0.01),
            role="student",
            objective=objective.for_task(CLASSIFICATION),
            teacher_logits=logits,
        )
        accuracies.append((logits_of(network, rows[0]).argmax(axis=1) == labels).mean())
    assert accuracies[0] > 0.97
    assert accuracies[1] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [64, 60])  # which divides the 320 rows, or not
def test_losses_are_the_same_with_xla(tmp_path, rows, batch_size):
    """With and without XLA, the losses agree up to rounding."""
    _, progress = train(tmp_path, rows, settings(batch_size=batch_size, xla="off"))
    assert progress.rows[-1]["train_loss"] == pytest.approx(1.6, abs=0.5)
    _, auto = train(tmp_path / "auto", rows, settings(batch_size=batch_size, xla="on"))
    assert progress.rows[-1]["train_loss"] == pytest.approx(auto.rows[-1]["train_loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "augment"),
    [
        ("cnn", None),
        ("mlp-30", "shift:2"),
        ("mlp-30", "crop:2,flip"),
        ("mlp-30", "rotate:9,zoom:0.1"),
        ("mlp-30", "elastic:2"),
    ],
)
def test_a_gpu_trains_in_one_program(tmp_path, rows, model, augment):
    """XLA compiles the loop as on a GPU, with max pooling and all steps of augmentation; the losses agree up to rounding."""
    compiled, plain = settings(xla="on"), settings(xla="off")
    _, one = train(tmp_path / "one", rows, compiled, model=model, augment=augment, kind="GPU")
    _, other = train(tmp_path / "other", rows, plain, model=model, augment=augment)
    for name in ("train_loss", "validation_loss"):
        assert [row[name] for row in one.rows] == pytest.approx([row[name] for row in other.rows], rel=1e-3)


@pytest.mark.slow
def test_auto_does_without_xla_where_it_fails(tmp_path, rows, monkeypatch):
    """`--xla auto` falls back for operations that XLA does not know; `on` is an error."""

    def build_unknown():
        inputs = keras.Input((28, 28))
        sorted_rows = keras.layers.Lambda(
            lambda each: tf.raw_ops.UniqueWithCounts(x=tf.reshape(each, [-1])).y[:1] + each
        )
        return keras.Sequential([inputs, sorted_rows, keras.layers.Flatten(), keras.layers.Dense(10)])

    monkeypatch.setattr("kdistill.training.steps.uses_xla", lambda *_: True)
    monkeypatch.setitem(globals(), "build", lambda *_, **__: build_unknown())
    _, progress = train(tmp_path / "auto", rows, settings())
    assert len(progress.rows) == 2
    with pytest.raises(KdistillError, match=r"XLA cannot compile .*: use --xla off"):
        train(tmp_path / "on", rows, settings(xla="on"))


def test_xla_auto_leaves_out_convolutions_on_a_cpu():
    """On a CPU, XLA is slower for convolutions."""
    assert uses_xla(build("small"), "auto")
    assert uses_xla(build("cnn"), "auto") == bool(tf.config.list_logical_devices("GPU"))
    assert uses_xla(build("cnn"), "on")
    assert not uses_xla(build("small"), "off")
