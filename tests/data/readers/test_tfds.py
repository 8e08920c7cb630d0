"""Datasets of TensorFlow Datasets."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from small_data import HALF, X, Y, check_error, check_rows, load

from kdistill import data


@pytest.mark.slow
def test_splits(prepare_tfds):
    """The test part is the split test or validation. Without a version, the newest one is read."""
    prepare_tfds(train=60, test=9)
    dataset = load("tfds:mine")
    assert (len(dataset.train), len(dataset.test), dataset.class_names) == (60, 9, ("cat", "ant", "bee"))
    labels = {bytes(image): label for image, label in zip(dataset.train.read(), dataset.train.labels, strict=True)}
    assert labels == {bytes(image): label for image, label in zip(X, Y, strict=True)}
    check_rows(dataset.train.inputs, dataset.train.read())
    prepare_tfds(version="1.1.0", train=50, validation=6)
    dataset = load("tfds:mine")
    assert (len(dataset.train), len(dataset.test)) == (50, 6)
    assert len(load("tfds:mine:1.0.0").train) == 60
    prepare_tfds(version="2.0.0", train=40)
    assert len(load("tfds:mine", **HALF).train) == 20
    check_error("tfds:mine", "--test-fraction")
    prepare_tfds(version="3.0.0", test=5)
    check_error("tfds:mine", "train", **HALF)


def test_configurations(prepare_tfds):
    """The only prepared configuration is the default; with several, the name must say which."""
    prepare_tfds(config="plain", train=60, test=6)
    assert len(load("tfds:mine").train) == 60
    prepare_tfds(config="more", version="2.0.0", train=30, test=6)
    check_error("tfds:mine", "tfds:mine/more, tfds:mine/plain")
    assert len(load("tfds:mine/plain").train) == 60
    assert len(load("tfds:mine/more:2.0.0").train) == 30


def test_digest(prepare_tfds):
    """Another version has another digest, which is computed without TensorFlow."""
    prepare_tfds(train=60)
    before = data.resolve("tfds:mine").digest()
    assert data.resolve("tfds:mine").digest() == before
    prepare_tfds(version="1.1.0", train=60)
    assert data.resolve("tfds:mine").digest() != before
    code = (
        "import sys; from kdistill import data; print(data.resolve('tfds:mine:1.0.0').digest());"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == before


def test_images_of_several_sizes(prepare_tfds):
    """They are an error without --image-size."""
    images = [np.full((5 + i % 2, 4, 3), 20 * i, np.uint8) for i in range(12)]
    prepare_tfds(rows=(images, np.arange(12) % 3), image=(None, None, 3), train=12)
    check_error("tfds:mine", "tfds:mine: train", **HALF)
    dataset = load("tfds:mine", image_size="8", **HALF)
    assert dataset.input_shape == (8, 8, 3)
    assert sorted(np.concatenate([dataset.train.read(), dataset.test.read()])[:, 3, 3, 0]) == list(range(0, 240, 20))


@pytest.mark.parametrize("place", ["tfds:../mine", "tfds:nosuch"])
@pytest.mark.usefixtures("prepare_tfds")
def test_names_that_do_not_exist(place):
    check_error(place, place)


def test_library_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    check_error("tfds:mine", "pip install 'kdistill[tfds]'")
