"""kdistill from Python: the exported names, the stages as functions, and Keras's `fit` with `DistillationLoss`."""

from __future__ import annotations

import ast
import csv
import subprocess
import sys

import numpy as np
import pytest
from helpers import HEAVY, QUICK, ROOT, mentions, saved_weights, stamps

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
from kdistill.settings import Objective
from kdistill.soft_targets.keras_dataset import pack_targets
from kdistill.training.losses import classification as losses

CLASSES = 10


def python(code, cwd):
    """Run a program in a new process and return what it prints."""
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


def test_type_checkers_see_what_is_exported():
    """The imports for type checkers are exactly the exported names, each from the module that it has at run time."""
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
    with pytest.raises(AttributeError, match="'train_studnet'"):
        _ = kdistill.train_studnet
    assert (ROOT / "kdistill/py.typed").exists()


def test_imports_are_lazy(tmp_path):
    """The package and the stages import without TensorFlow; importing a stage module keeps the name for the function."""
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


@pytest.mark.slow
def test_importing_the_loss_changes_no_tensorflow_setting(tmp_path):
    """Importing the loss does not make TensorFlow deterministic: Keras shuffles without a seed, and XLA is allowed."""
    code = (
        "from kdistill import DistillationLoss, SoftTargets\n"
        "import keras, numpy as np\n"
        "model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])\n"
        "model.compile('sgd', loss=DistillationLoss(), metrics=['accuracy'], jit_compile=True)\n"
        "model.fit(np.ones((64, 3)), keras.utils.to_categorical(np.zeros(64), 8), verbose=0)\n"
        "print(model.jit_compile)\n"
    )
    assert python(code, tmp_path) == "True\n"


@pytest.mark.slow
def test_other_backend_is_refused(tmp_path):
    """Keras with another backend is refused by its name, with the environment variable that selects TensorFlow."""
    code = (
        "import keras, kdistill\n"
        "keras.backend.backend = lambda: 'jax'\n"  # simulates Keras with another backend
        "try: kdistill.DistillationLoss\n"
        "except kdistill.KdistillError as error: print(error)\n"
    )
    assert mentions(python(code, tmp_path), "jax", "KERAS_BACKEND=tensorflow")


@pytest.mark.slow
def test_stage_does_what_the_command_does(workspace, capsys, monkeypatch):
    """What a command made is up to date for the function, which makes the same network under another name."""
    monkeypatch.chdir(workspace.parent)
    training = Training(epochs=5, batch_size=32, learning_rate=0.003, xla="off")
    settings = {"model": "mlp-30", "training": training}
    before = stamps(workspace)
    made = train_student(Workspace("workspace"), TrainStudent(**settings))
    assert stamps(workspace) == before
    assert len(capsys.readouterr().out.splitlines()) == 1
    other = train_student(Workspace(), TrainStudent(name="other", **settings), reporter=kdistill.Reporter(quiet=True))
    assert capsys.readouterr().out == ""
    assert made.manifest.results["test_errors"] == other.manifest.results["test_errors"]
    assert saved_weights(workspace / "students/student") == saved_weights(workspace / "students/other")


def test_settings_are_checked(workspace):
    """Wrong settings and missing inputs raise errors that name them."""
    with pytest.raises(KdistillError, match=r"'nosuch'.*kdistill soften"):
        train_student(Workspace(workspace), TrainStudent(soft_targets="nosuch"))
    with pytest.raises(KdistillError, match=r"--alpha\b.*\b2\b"):
        Objective(alpha=2)
    with pytest.raises(KdistillError, match=r"teachers/teacher/manifest\.json"):
        Workspace(workspace / "teachers/teacher/manifest.json")


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_is_the_objective(batch, compiled):
    """The loss is the mean of `distillation_loss`, for each reduction and with weights of rows."""
    labels, teacher, student = batch
    rows = distillation_loss(labels, teacher, student, temperature=4.0, alpha=0.3).numpy().astype(np.float64)
    y_true, weights = pack_targets(labels, teacher), np.arange(64, dtype=np.float32)
    for reduction, expected in (
        ("sum_over_batch_size", (rows * weights).mean()),
        ("sum", (rows * weights).sum()),
        (None, rows * weights),
    ):
        loss = tf.function(DistillationLoss(4.0, 0.3, reduction=reduction), jit_compile=compiled)
        np.testing.assert_allclose(loss(y_true, student, weights), expected, rtol=2e-6)
    assert float(DistillationLoss(4.0, 0.3)(y_true, student)) == pytest.approx(rows.mean(), rel=1e-6)
    assert DistillationLoss(4.0, 0.3)(y_true, tf.cast(student, tf.float16)).dtype == tf.float32


def test_rows_without_label_or_teacher(batch):
    """Rows without a label have no hard part, rows without a teacher no soft part; gradients are finite."""
    labels, teacher, student = batch
    loss = DistillationLoss(4.0, 0.3, reduction=None)
    unlabeled = np.where(np.arange(64) < 20, -1, labels)
    soft = losses.soft_loss(teacher, student, temperature=4.0)
    np.testing.assert_array_equal(hard_loss(unlabeled, student)[:20], 0)
    values = loss(pack_targets(unlabeled, teacher), student)
    np.testing.assert_allclose(values[:20], 0.7 * soft[:20], rtol=1e-5)
    np.testing.assert_allclose(values[20:], (0.3 * hard_loss(labels, student) + 0.7 * soft)[20:], rtol=1e-5)
    untaught = keras.utils.to_categorical(labels, 2 * CLASSES)
    np.testing.assert_allclose(loss(untaught, student), hard_loss(labels, student), rtol=1e-6)
    logits = tf.Variable(student)
    for y_true in (pack_targets(unlabeled, teacher), untaught, np.zeros((64, 2 * CLASSES))):
        with tf.GradientTape() as tape:
            total = DistillationLoss(4.0, 0.3)(y_true, logits)
        gradient = tape.gradient(total, logits).numpy()
        assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient, 0)


def test_keras_accuracy_reads_the_label(batch):
    """Keras's `accuracy` is the fraction of rows whose largest logit is at the label; unlabeled rows count as wrong."""
    labels, teacher, student = batch
    labels = np.where(np.arange(64) < 32, student.argmax(axis=1), labels)
    unlabeled = np.where(np.arange(64) < 16, -1, labels)
    for true in (labels, unlabeled):
        metric = keras.metrics.CategoricalAccuracy()
        metric.update_state(pack_targets(true, teacher), student)
        assert float(metric.result()) == pytest.approx((student.argmax(axis=1) == true).mean())


@pytest.mark.parametrize(
    "y_true", [np.zeros(64, int), np.zeros((64, 1)), np.zeros((64, 10)), np.zeros((64, 21)), np.zeros((4, 64, 20))]
)
def test_other_targets_are_refused(batch, y_true):
    """Targets of another shape are refused with the shape that is expected."""
    with pytest.raises(KdistillError, match=r"y_true .*10 .*SoftTargets\.dataset.*20\)"):
        DistillationLoss()(y_true, batch[2])


def test_loss_is_saved_with_its_model(tmp_path, batch):
    """A compiled model is saved with its loss and the settings of the loss."""
    model = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Dense(CLASSES)])
    model.compile("sgd", loss=DistillationLoss(temperature=3, alpha=0.25, reduction="sum"))
    model.save(tmp_path / "model.keras")
    loss = keras.models.load_model(tmp_path / "model.keras").loss
    assert isinstance(loss, DistillationLoss)
    assert (loss.temperature, loss.alpha, loss.reduction) == (3, 0.25, "sum")
    for wrong in ({"temperature": 0}, {"alpha": 1.5}):
        ((name, value),) = wrong.items()
        with pytest.raises(KdistillError, match=rf"{name}\b.*{value}"):
            DistillationLoss(**wrong)


def rows_of(dataset):
    inputs, targets = (np.concatenate(part) for part in zip(*dataset.as_numpy_iterator(), strict=True))
    return inputs, targets


def test_dataset_joins_by_content(soft, digits):
    """Rows in any order get their own labels and logits, are scaled, and come in another order each epoch."""
    order = np.random.default_rng(1).permutation(len(digits.train))[:200]
    inputs, labels = digits.train.read()[order], digits.train.labels[order]
    found, targets = rows_of(soft.dataset(inputs, batch_size=64, shuffle=False))
    np.testing.assert_array_equal(found, inputs.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(targets, pack_targets(labels, soft.logits()[order]))
    shuffled = soft.dataset(inputs, labels, seed=1)
    epochs = [rows_of(shuffled)[0] for _ in range(2)]
    assert not (epochs[0] == epochs[1]).all()
    assert (epochs[0] == rows_of(soft.dataset(inputs, seed=1))[0]).all()
    assert not (epochs[0] == rows_of(soft.dataset(inputs, seed=2))[0]).all()
    assert np.sort(epochs[0], axis=0).tobytes() == np.sort(found, axis=0).tobytes()


def test_dataset_refuses_unknown_rows(soft, digits):
    """Rows that the file does not have, other labels, a wrong batch size and a missing file are refused."""
    inputs, labels = digits.train.read(), digits.train.labels
    with pytest.raises(KdistillError, match=r"1,437 .*1,437 inputs"):
        soft.dataset(inputs / np.float32(255))
    with pytest.raises(KdistillError, match=r"labels"):
        soft.dataset(inputs, np.roll(labels, 1))
    with pytest.raises(KdistillError, match=r"--batch-size\b.*\b0\b"):
        soft.dataset(inputs, batch_size=0)
    with pytest.raises(KdistillError, match=r"nosuch\.h5"):
        SoftTargets("nosuch.h5")


def test_soft_target_attributes(soft, digits):
    """A soft-target file has the documented attributes, and softmax(logits / T) at its own T or any other."""
    assert (soft.temperature, soft.rows, soft.classes) == (20.0, 1437, CLASSES)
    np.testing.assert_array_equal(soft.labels, digits.train.labels)
    np.testing.assert_array_equal(soft.keys, digits.train.keys())
    for temperature in (None, 3.0):
        expected = tf.nn.softmax(soft.logits() / np.float32(temperature or 20.0))
        np.testing.assert_allclose(soft.soft_targets(temperature), expected, rtol=1e-5)
    assert mentions(repr(soft), "1,437", 10, 20)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--temperature", "4"], ["--temperature", "20", "--xla", "off"]])
def test_fit_agrees_with_the_command_line(run, workspace, digits, soft, options):
    """With a learning rate near 0, the losses of `train-student`, `fit` and `evaluate` agree to 1e-6."""
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
    history = model.fit(soft.dataset(inputs), validation_data=test, verbose=0).history
    for ours, theirs in (
        ("train_loss", "loss"),
        ("train_accuracy", "accuracy"),
        ("test_loss", "val_loss"),
        ("test_accuracy", "val_accuracy"),
    ):
        assert history[theirs] == [pytest.approx(float(expected[ours]), rel=1e-6)], ours
    evaluated = model.evaluate(soft.dataset(inputs, shuffle=False), verbose=0, return_dict=True)
    assert evaluated["loss"] == pytest.approx(float(expected["train_loss"]), rel=1e-6)


@pytest.mark.slow
def test_fit_learns(soft, digits):
    """A student trained with soft targets only comes to agree with its teacher."""
    inputs = digits.train.read()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    model.compile(keras.optimizers.Adam(0.003), loss=DistillationLoss(temperature=4, alpha=0))
    model.fit(soft.dataset(inputs), epochs=5, verbose=0)
    predicted = model.predict(inputs / 255, verbose=0).argmax(axis=1)
    assert (predicted == soft.logits().argmax(axis=1)).mean() > 0.9


def test_windows_is_refused_in_one_line(tmp_path):
    """The command and the package name the supported systems."""
    code = "import sys; sys.platform = 'win32'; from kdistill.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "WSL" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    code = "import sys; sys.platform = 'win32'; import kdistill; kdistill.Workspace"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "WSL" in done.stderr.splitlines()[-1]
