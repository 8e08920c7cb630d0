"""A dataset as TensorFlow Datasets prepares it."""

from __future__ import annotations

import pytest
from small_data import NAMES, small


@pytest.fixture
def prepare_tfds(tmp_path, monkeypatch):
    """Return a function that prepares the dataset `mine`, with the given number of rows in each split."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="kdistill[tfds] is not installed")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    def prepare(config=None, version="1.0.0", rows=None, image=(6, 4, 1), **splits):
        images, labels = rows or small()

        class Mine(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version(version)
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

            def _info(self):
                features = {"image": tfds.features.Image(shape=image), "label": tfds.features.ClassLabel(names=NAMES)}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
                )

            def _split_generators(self, _):
                return {name: self._generate_examples(count) for name, count in splits.items()}

            def _generate_examples(self, count):
                for row in range(count):
                    yield row, {"image": images[row].reshape(*images[row].shape[:2], -1), "label": int(labels[row])}

        Mine(data_dir=str(tmp_path), config=config).download_and_prepare()

    return prepare
