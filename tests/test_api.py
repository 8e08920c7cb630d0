"""kdistill from Python: what it exports, Keras's `fit` with its loss, the README's examples."""

from __future__ import annotations

import ast
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import HEAVY, QUICK, saved_weights

import kdistill
from kdistill import (
    DistillationLoss,
    KdistillError,
    SoftTargets,
    Training,
    TrainStudent,
    Workspace,
    distillation_loss,
    hard_loss,
    train_student,
)
from kdistill.backend import keras, tf
from kdistill.training import losses

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 10


def python(code, cwd):
    """What a program of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(5)
    logits = draw.normal(0, 4, (2, 64, CLASSES)).astype(np.float32)
    return draw.integers(0, CLASSES, 64), logits[0], logits[1]


@pytest.fixture
def soft(made):
    return SoftTargets(made / "soft-targets/soft-targets.h5")


def test_every_name_is_what_type_checkers_read():
    """The imports for type checkers name what is exported, each from where it comes at run time, and no more."""
    tree = ast.parse((ROOT / "kdistill/__init__.py").read_text())
    typed = {
        alias.asname or alias.name: (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(typed) == sorted(kdistill.__all__)
    for name, (module, own_name) in typed.items():
        assert getattr(kdistill, name) is getattr(sys.modules[module], own_name)
    assert set(kdistill.__all__) <= set(dir(kdistill))
    with pytest.raises(AttributeError, match="has no attribute 'train_studnet'"):
        _ = kdistill.train_studnet
    assert (ROOT / "kdistill/py.typed").exists()


def test_imports_are_lazy(tmp_path):
    """The package alone is light, the stages come without TensorFlow, and a stage's name stays the function's."""
    code = (
        "import sys, kdistill\n"
        f"heavy = lambda: [name for name in {HEAVY!r} if name in sys.modules]\n"
        "from kdistill import KdistillError, TrainStudent, Workspace\n"
        "print(heavy())\n"
        "import kdistill.stages.train_student\n"
        "from kdistill import SoftTargets, load_dataset, plot, status, train_student, verify\n"
        "load_dataset('digits'), status(Workspace())\n"
        "print(heavy(), train_student is kdistill.stages.train_student.run)\n"
    )
    assert python(code, tmp_path) == "[]\n['h5py', 'numpy'] True\n"


def test_loss_alone_leaves_tensorflow_as_it_is(tmp_path):
    """Importing the loss makes no other code deterministic: Keras's own shuffling needs no seed, and XLA is there."""
    code = (
        "from kdistill import DistillationLoss, SoftTargets\n"
        "import keras, numpy as np\n"
        "model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])\n"
        "model.compile('sgd', loss=DistillationLoss(), metrics=['accuracy'], jit_compile=True)\n"
        "model.fit(np.ones((64, 3)), keras.utils.to_categorical(np.zeros(64), 8), verbose=0)\n"
        "print(model.jit_compile)\n"
    )
    assert python(code, tmp_path) == "True\n"


def test_other_backend_is_refused(tmp_path):
    code = (
        "import keras, kdistill\n"
        "keras.backend.backend = lambda: 'jax'\n"  # as if it had been imported with another
        "try: kdistill.DistillationLoss\n"
        "except kdistill.KdistillError as error: print(error)\n"
    )
    assert "Keras runs on jax here" in python(code, tmp_path)


def test_stage_does_what_the_command_does(workspace, capsys, monkeypatch):
    """What a command made is up to date for the function with the same settings, and made again for others."""
    monkeypatch.chdir(workspace.parent)
    how = {"epochs": 5, "batch_size": 32, "learning_rate": 0.003}
    made = train_student(Workspace("workspace"), TrainStudent(model="mlp-30", training=Training(**how)))
    assert "student 'student' is up to date" in capsys.readouterr().out
    quiet = kdistill.Reporter(quiet=True)
    again = train_student(
        Workspace(), TrainStudent(name="again", model="mlp-30", training=Training(**how)), reporter=quiet
    )
    assert capsys.readouterr().out == ""
    assert made.results["test_errors"] == again.results["test_errors"]
    assert saved_weights(workspace / "students/student") == saved_weights(workspace / "students/again")
    with pytest.raises(KdistillError, match="no soft targets 'nosuch'"):
        train_student(Workspace(), TrainStudent(soft_targets="nosuch"))
    with pytest.raises(KdistillError, match="--alpha is 2"):
        TrainStudent(alpha=2)
    with pytest.raises(KdistillError, match="is a file"):
        Workspace(workspace / "teachers/teacher/manifest.json")


@pytest.mark.parametrize("compiled", [False, True])
def test_loss_is_the_objective(batch, compiled):
    """The mean of `distillation_loss`, in either order of arithmetic, whatever the weights of rows and reduction."""
    labels, teacher, student = batch
    rows = distillation_loss(labels, teacher, student, temperature=4.0, alpha=0.3).numpy().astype(np.float64)
    y_true, weights = losses.targets(labels, teacher), np.arange(64, dtype=np.float32)
    for reduction, expected in (
        ("sum_over_batch_size", (rows * weights).mean()),
        ("sum", (rows * weights).sum()),
        (None, rows * weights),
    ):
        loss = tf.function(DistillationLoss(4.0, 0.3, reduction=reduction), jit_compile=compiled)
        np.testing.assert_allclose(loss(y_true, student, weights), expected, rtol=2e-6)
    assert float(DistillationLoss(4.0, 0.3)(y_true, student)) == pytest.approx(rows.mean(), rel=1e-6)
    assert DistillationLoss(4.0, 0.3)(y_true, tf.cast(student, tf.float16)).dtype == tf.float32


def test_rows_that_lack_a_part(batch):
    """Without a hard label the hard part is 0; without a teacher the loss is the cross-entropy; gradients are finite."""
    labels, teacher, student = batch
    loss = DistillationLoss(4.0, 0.3, reduction=None)
    unlabelled = np.where(np.arange(64) < 20, -1, labels)
    soft = losses.soft_loss(teacher, student, temperature=4.0)
    np.testing.assert_array_equal(hard_loss(unlabelled, student)[:20], 0)
    found = loss(losses.targets(unlabelled, teacher), student)
    np.testing.assert_allclose(found[:20], 0.7 * soft[:20], rtol=1e-5)
    np.testing.assert_allclose(found[20:], (0.3 * hard_loss(labels, student) + 0.7 * soft)[20:], rtol=1e-5)
    untaught = keras.utils.to_categorical(labels, 2 * CLASSES)
    np.testing.assert_allclose(loss(untaught, student), hard_loss(labels, student), rtol=1e-6)
    logits = tf.Variable(student)
    for y_true in (losses.targets(unlabelled, teacher), untaught, np.zeros((64, 2 * CLASSES))):
        with tf.GradientTape() as tape:
            total = DistillationLoss(4.0, 0.3)(y_true, logits)
        gradient = tape.gradient(total, logits).numpy()
        assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient, 0)


def test_accuracy_finds_the_label(batch):
    """Keras's own `accuracy` is the share of rows whose largest logit is at the label; unlabelled rows count as wrong."""
    labels, teacher, student = batch
    labels = np.where(np.arange(64) < 32, student.argmax(axis=1), labels)
    unlabelled = np.where(np.arange(64) < 16, -1, labels)
    for given in (labels, unlabelled):
        metric = keras.metrics.CategoricalAccuracy()
        metric.update_state(losses.targets(given, teacher), student)
        assert float(metric.result()) == pytest.approx((student.argmax(axis=1) == given).mean())


@pytest.mark.parametrize(
    "y_true", [np.zeros(64, int), np.zeros((64, 1)), np.zeros((64, 10)), np.zeros((64, 21)), np.zeros((4, 64, 20))]
)
def test_other_targets_are_refused(batch, y_true):
    with pytest.raises(KdistillError, match=r"y_true has shape .* for 10 logits.*SoftTargets.dataset.*20\)"):
        DistillationLoss()(y_true, batch[2])


def test_loss_comes_back_with_its_model(tmp_path, batch):
    """A compiled model is saved with its loss, which says what it was made with."""
    model = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Dense(CLASSES)])
    model.compile("sgd", loss=DistillationLoss(temperature=3, alpha=0.25, reduction="sum"))
    model.save(tmp_path / "model.keras")
    loss = keras.models.load_model(tmp_path / "model.keras").loss
    assert isinstance(loss, DistillationLoss)
    assert (loss.temperature, loss.alpha, loss.reduction) == (3, 0.25, "sum")
    for wrong in ({"temperature": 0}, {"alpha": 1.5}):
        with pytest.raises(KdistillError, match=r"it needs|is a number"):
            DistillationLoss(**wrong)


def rows_of(dataset):
    inputs, targets = (np.concatenate(part) for part in zip(*dataset.as_numpy_iterator(), strict=True))
    return inputs, targets


def test_dataset_joins_by_content(soft, digits):
    """Any rows in any order, scaled, each beside its own label and logits; again each epoch in another order."""
    order = np.random.default_rng(1).permutation(len(digits.train))[:200]
    inputs, labels = digits.train.read()[order], digits.train.labels[order]
    found, targets = rows_of(soft.dataset(inputs, batch_size=64, shuffle=False))
    np.testing.assert_array_equal(found, inputs.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(targets, losses.targets(labels, soft.logits()[order]))
    shuffled = soft.dataset(inputs, labels, seed=1)
    epochs = [rows_of(shuffled)[0] for _ in range(2)]
    assert not (epochs[0] == epochs[1]).all()
    assert (epochs[0] == rows_of(soft.dataset(inputs, seed=1))[0]).all()
    assert not (epochs[0] == rows_of(soft.dataset(inputs, seed=2))[0]).all()
    assert np.sort(epochs[0], axis=0).tobytes() == np.sort(found, axis=0).tobytes()


def test_dataset_refuses_what_the_file_does_not_know(soft, digits):
    inputs, labels = digits.train.read(), digits.train.labels
    with pytest.raises(KdistillError, match=r"1,437 of the 1,437 inputs are not in .* not yet scaled"):
        soft.dataset(inputs / np.float32(255))
    with pytest.raises(KdistillError, match="the labels have changed"):
        soft.dataset(inputs, np.roll(labels, 1))
    with pytest.raises(KdistillError, match="--batch-size is 0"):
        soft.dataset(inputs, batch_size=0)
    with pytest.raises(KdistillError, match=r"there is no soft-target file nosuch\.h5"):
        SoftTargets("nosuch.h5")


def test_soft_targets_say_what_they_are(soft, digits):
    """The documented attributes; softmax(logits / T) at the file's T or any other."""
    assert (soft.temperature, soft.rows, soft.classes) == (20.0, 1437, CLASSES)
    np.testing.assert_array_equal(soft.labels, digits.train.labels)
    np.testing.assert_array_equal(soft.keys, digits.train.keys())
    for temperature in (None, 3.0):
        expected = tf.nn.softmax(soft.logits() / np.float32(temperature or 20.0))
        np.testing.assert_allclose(soft.soft_targets(temperature), expected, rtol=1e-5)
    assert "1,437 rows of 10 classes, T = 20" in repr(soft)


@pytest.mark.parametrize("options", [["--temperature", "4"], ["--temperature", "20", "--xla", "off"]])
def test_fit_agrees_with_the_command_line(run, workspace, digits, soft, options):
    """With steps of no length, the losses of `train-student`, `fit` and `evaluate` are the same to 1e-6."""
    still = [*QUICK[:2], "--epochs", "1", "--optimizer", "sgd", "--learning-rate", "1e-30"]
    assert run("train-student", *still, *options).code == 0
    place = workspace / "students/student"
    with (place / "history.csv").open() as stream:
        (expected,) = csv.DictReader(stream)
    model = keras.models.load_model(place / "model.keras")
    loss = DistillationLoss(temperature=float(options[1]), alpha=0.1)
    model.compile(keras.optimizers.SGD(1e-30), loss=loss, metrics=["accuracy"])
    test = digits.test.read() / 255, keras.utils.to_categorical(digits.test.labels, 2 * CLASSES)
    inputs = digits.train.read()
    found = model.fit(soft.dataset(inputs), validation_data=test, verbose=0).history
    for ours, theirs in (
        ("train_loss", "loss"),
        ("train_accuracy", "accuracy"),
        ("test_loss", "val_loss"),
        ("test_accuracy", "val_accuracy"),
    ):
        assert found[theirs] == [pytest.approx(float(expected[ours]), rel=1e-6)], ours
    evaluated = model.evaluate(soft.dataset(inputs, shuffle=False), verbose=0, return_dict=True)
    assert evaluated["loss"] == pytest.approx(float(expected["train_loss"]), rel=1e-6)


def test_fit_learns(soft, digits):
    """A student of soft targets alone comes to agree with its teacher."""
    inputs = digits.train.read()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    model.compile(keras.optimizers.Adam(0.003), loss=DistillationLoss(temperature=4, alpha=0))
    model.fit(soft.dataset(inputs), epochs=5, verbose=0)
    said = model.predict(inputs / 255, verbose=0).argmax(axis=1)
    assert (said == soft.logits().argmax(axis=1)).mean() > 0.9
