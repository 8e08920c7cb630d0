"""Rows of texts: all formats, all stages, networks that read words, and wrong texts."""

from __future__ import annotations

import csv
import sys
from itertools import chain

import h5py
import numpy as np
import pytest
from helpers import mentions, results_of, saved_weights, succeed

from kdistill import row_keys
from kdistill.settings import ReadOptions

DRAW = np.random.default_rng(5)
WORDS = {"good": ["fine", "lovely", "bright"], "bad": ["dull", "awful", "grim"]}
NEUTRAL = ["film", "the", "a", "story", "größer", "was", "told", "in"]
LABELS = np.array(["good", "bad"] * 100)
TEXTS = [" ".join(DRAW.permutation([*DRAW.choice(NEUTRAL, 5), DRAW.choice(WORDS[label])])) for label in LABELS]
TRAINING = 160
TRAIN = ("--batch-size", "20", "--epochs", "4", "--learning-rate", "0.02", "--xla", "off")
SETTING = ("--alpha", "0.1", "--temperature", "2", "--validation-fraction", "0.2")
DATA = ("--dataset", "texts.csv", "--test-fraction", "0.2")
NETS = """
import keras, numpy as np, tensorflow as tf
def counts(input_shape, classes):
    first = keras.layers.TextVectorization(50, output_mode="count", pad_to_max_tokens=True)
    return keras.Sequential([first, keras.layers.Dense(classes)])
texts, labels = np.array(TEXTS, object), np.array(LABELS)
def arrays():
    return texts, labels
def stream():
    return tf.data.Dataset.from_tensor_slices((texts, labels))
"""


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Write the texts in each format to an empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    write_csv("texts.csv", zip(TEXTS, LABELS, strict=True))
    np.savez("texts.npz", x_train=np.array(TEXTS), y_train=LABELS)
    np.save("x.npy", np.array(TEXTS)[:, None])
    np.save("y.npy", LABELS)
    with h5py.File("texts.h5", "w") as file:
        file.create_dataset("x_train", data=TEXTS)
        file.create_dataset("y_train", data=LABELS.tolist())
    (tmp_path / "nets.py").write_text(NETS.replace("TEXTS", repr(TEXTS)).replace("LABELS", repr(LABELS.tolist())))
    yield
    sys.modules.pop("nets", None)


def write_csv(name, rows):
    with open(name, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["texts.csv", "texts.npz", "x.npy", "texts.h5", "nets:arrays", "nets:stream"])
def test_formats(place):
    """All formats give the same texts, and the same keys, which are of the UTF-8 bytes."""
    from kdistill import data

    options = {"labels": "y.npy"} if place == "x.npy" else {}
    dataset = data.resolve(ReadOptions(test_fraction=0.2, **options).named(place)).load()
    held_out = np.isin(TEXTS, dataset.test.read())
    assert dataset.train.read().tolist() == [text for text, out in zip(TEXTS, held_out, strict=True) if not out]
    assert (dataset.input_shape, dataset.input_dtype) == ((), "string")
    as_bytes = np.array([text.encode() for text in dataset.train.read()])
    for other in (dataset.train.read(), as_bytes, as_bytes.astype(object), np.array(dataset.train.read().tolist())):
        np.testing.assert_array_equal(dataset.train.keys(), row_keys(other))
    blocks = [block.tolist() for block in dataset.train.select(np.arange(len(dataset.train)) % 2 == 0).blocks(7)]
    assert list(chain.from_iterable(blocks)) == dataset.train.read()[::2].tolist()


@pytest.mark.slow
def test_all_stages(run, tmp_path):
    """From a CSV to predictions, each stage up to date when it is run again; the SavedModel takes strings."""
    import tensorflow as tf

    commands = [
        ["train-teacher", *DATA, "--model", "text-16", *TRAIN],
        ["soften", "--temperature", "2"],
        ["train-student", "--model", "text-4", *TRAIN],
        ["plot"],
        ["sweep", "--model", "text-4", *TRAIN, "--seeds", "0,1", *SETTING],
    ]
    for command in commands:
        succeed(run, *command)
        assert run(*command).up_to_date, command
    place = tmp_path / "workspace"
    assert results_of(place / "students/student")["test_errors"] <= 4
    succeed(run, "train-student", "--model", "text-4", *TRAIN, "--seed", "1", *SETTING, "--name", "b")
    weights = saved_weights(place / "students/b")
    swept = [saved_weights(path.parent) for path in (place / "sweeps").glob("*/students/*/checkpoint.npz")]
    assert swept.count(weights) == 1, "each seed has its own vocabulary"
    write_csv("new.csv", [("a lovely film", ""), ("", ""), ("größer and awful", "")])
    assert mentions(run("predict", "new.csv", "--network", "student", "--output", "p.csv").err, "missing", "text")
    write_csv("new.csv", [("a lovely film", ""), ("?", ""), ("größer and awful", "")])
    succeed(run, "predict", "new.csv", "--network", "student", "--output", "p.npz", "--all")
    logits = tf.saved_model.load(str(place / "students/student/saved_model")).signatures["serving_default"](
        inputs=tf.constant(["a lovely film", "?", "größer and awful"])
    )["logits"]
    with np.load("p.npz") as predicted:
        np.testing.assert_allclose(predicted["probabilities"], tf.nn.softmax(logits), atol=1e-6)
    assert np.argmax(logits, axis=1)[[0, 2]].tolist() == [1, 0], "bad and good in alphabetical order"
    outcome = run("export", "--network", "student")
    assert (outcome.code, mentions(outcome.err, "tflite", "saved_model")) == (1, True)
    assert not (place / "exports").exists()
    assert "problem" in succeed(run, "verify").out
    succeed(run, "report")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["text-8", "nets:counts"])
def test_more_epochs_give_the_same_bits(run, tmp_path, model):
    """Training that is continued is training in one go; a vocabulary has only words of the rows that are trained on."""
    import keras

    data = ("--dataset", "texts.h5", "--test-fraction", "0.2", "--validation-fraction", "0.2", "--model", model)
    for name, epochs in (("whole", (3,)), ("continued", (2, 3))):
        for number in epochs:
            succeed(run, "train-teacher", *data, *TRAIN, "--epochs", number, "--name", name)
    whole, continued = (tmp_path / "workspace/teachers" / name for name in ("whole", "continued"))
    assert saved_weights(whole) == saved_weights(continued)
    assert results_of(whole)["test_errors"] == results_of(continued)["test_errors"]
    network = keras.models.load_model(whole / "model.keras")
    words = set(network.layers[0].get_vocabulary(include_special_tokens=False))
    assert words <= {word for text in TEXTS for word in text.split()}
    assert words >= {"fine", "dull", "größer"}


def test_vocabulary_is_of_the_given_texts():
    from kdistill.data.rows import ArrayRows
    from kdistill.data.texts import TextRows
    from kdistill.networks.build import build_network

    texts = TextRows(ArrayRows(np.array(["One two", "TWO three!"]), "some"), "some")
    network = build_network(
        "text-4",
        (),
        3,
        role="teacher",
        seed=0,
        precision="float32",
        input_dtype="string",
        dropout="0.2,0.5",
        texts=texts,
    )
    assert sorted(network.layers[0].get_vocabulary(include_special_tokens=False)) == ["one", "three", "two"]
    assert [type(layer).__name__ for layer in network.layers][2:] == ["Dropout", "Dense", "Dropout", "Dense"]
    import tensorflow as tf

    logits = network(tf.constant(["", "two", "two two", "two " * 600]), training=False).numpy()
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[1], logits[3], atol=1e-6)
    np.testing.assert_allclose(logits[1], logits[2], atol=1e-6)


WRONG = {
    "train-teacher --dataset texts.npz --test-fraction 0.2": ["cnn", "text-64"],
    "train-teacher --dataset digits --model text-8": ["text-8", "mlp-800"],
    "train-teacher --dataset texts.npz --test-fraction 0.2 --model text-8 --augment flip": ["--augment", "texts"],
    "train-teacher --dataset long.npz --test-fraction 0.5 --batch-size 1 --model text-8": [
        "long.npz",
        "row 1",
        "200,000",
        "100,000",
    ],
    "train-teacher --dataset latin.h5 --test-fraction 0.5 --batch-size 1 --model text-8": [
        "latin.h5",
        "row 1",
        "UTF-8",
    ],
    "train-teacher --dataset pair.npz --test-fraction 0.5 --batch-size 1 --model text-8": ["pair.npz", "numbers"],
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_texts(run, command):
    np.savez("long.npz", x_train=np.array(["a", "b" * 200_000]), y_train=[0, 1])
    np.savez("pair.npz", x_train=np.array([["a", "b"], ["c", "d"]]), y_train=[0, 1])
    with h5py.File("latin.h5", "w") as file:
        file["x_train"], file["y_train"] = np.array([b"a", b"gr\xf6\xdfer"]), [0, 1]
    outcome = run(*command.split())
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1, outcome.err
    assert mentions(outcome.err, *WRONG[command])
