"""`tfds:NAME`: a dataset of TensorFlow Datasets, in `TFDS_DATA_DIR` or `~/tensorflow_datasets`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdistill.console.native_stderr import silent_stdout
from kdistill.data.reader import Contents, Reader
from kdistill.data.readers import streams
from kdistill.errors import KdistillError, UsageError, one_line_errors
from kdistill.settings import parse_image_size

NAME = re.compile(r"tfds:(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?", re.ASCII)
INFO_FILE = "dataset_info.json"
TEST_SPLITS = ("test", "validation")


class Tfds(Reader):
    """A dataset that is prepared on disk, or that TensorFlow Datasets can download and prepare.

    Raises:
        UsageError: if the name does not have the form of a TensorFlow Datasets name.
    """

    format = "a dataset of TensorFlow Datasets"
    takes = ("image-size", "test-fraction")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.place):
            raise UsageError(
                f"{self.place!r} is not a dataset name (expected tfds:NAME, tfds:NAME/CONFIG or "
                "tfds:NAME/CONFIG:VERSION, e.g. tfds:mnist:3.0.1)"
            )

    def digest(self) -> str:
        """Return a digest of the dataset's metadata, and of the names and sizes of its files."""
        digest = hashlib.sha256()
        for file in sorted(file for file in self._directory().iterdir() if file.is_file()):
            digest.update(file.read_bytes() if file.suffix == ".json" else b"%d" % file.stat().st_size)
            digest.update(b" %s\n" % file.name.encode())
        return f"sha256:{digest.hexdigest()}"

    def contents(self) -> Contents:
        directory = self._directory()
        with self._library() as tfds:
            builder = tfds.builder_from_directory(directory)
            info = builder.info
            if not isinstance(info.supervised_keys, tuple) or len(info.supervised_keys) != 2:
                raise KdistillError(f"{self.place} does not declare which features are the input and the label")
            if "train" not in info.splits:
                raise KdistillError(f"{self.place} has no split train, only {', '.join(info.splits)}")
            splits = ["train", *[split for split in TEST_SPLITS if split in info.splits][:1]]
            datasets = {split: builder.as_dataset(split=split, as_supervised=True) for split in splits}
        train, test = streams.parts({split: self._resized(data) for split, data in datasets.items()}, self.place)
        class_names = getattr(info.features[info.supervised_keys[1]], "names", None) or ()
        if not self.options.image_size:
            return Contents(train, test, class_names)
        height, width = parse_image_size(self.options.image_size)
        return Contents(train, test, class_names, preprocessing={"images": {"height": height, "width": width}})

    def _resized(self, dataset: Any) -> Any:
        """Return the dataset with its images resized bilinearly to `--image-size`."""
        if self.options.image_size is None:
            return dataset
        from kdistill.backend import tf

        size = parse_image_size(self.options.image_size)
        spec = dataset.element_spec[0]
        if getattr(spec, "dtype", None) != tf.uint8 or spec.shape.rank != 3:
            raise KdistillError(
                f"--image-size {self.options.image_size}: the inputs of {self.place} are not images: {spec}"
            )

        def resize(image: Any, label: Any) -> Any:
            values = tf.image.resize(image, size, antialias=True)
            return tf.cast(tf.round(tf.clip_by_value(values, 0, 255)), tf.uint8), label

        return dataset.map(resize, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _directory(self) -> Path:
        """Return the directory of the prepared dataset, after preparing it if necessary."""
        directory = self._prepared_directory()
        if directory is None:
            with self._library() as tfds, silent_stdout():
                builder = tfds.builder(self.place.removeprefix("tfds:"))
                builder.download_and_prepare()
                directory = Path(builder.data_dir)
        return directory

    def _prepared_directory(self) -> Path | None:
        """Return the directory of the named or the newest version, without TensorFlow; None if it is not prepared."""
        match = NAME.fullmatch(self.place)
        assert match
        name, config, version = match.groups()
        base = Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser() / name
        configs = [config] if config else ["", *sorted(item.name for item in base.glob("*") if item.is_dir())]
        prepared = {
            place: versions
            for place in configs
            if (versions := [file.parent for file in (base / place).glob(f"{version or '*.*.*'}/{INFO_FILE}")])
        }
        if len(prepared) > 1:
            names = ", ".join(f"tfds:{name}/{place}" for place in prepared if place)
            raise KdistillError(f"{self.place} is prepared in several configurations: name one, e.g. {names}")
        versions = [path for paths in prepared.values() for path in paths]
        return max(versions, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)], default=None)

    @contextlib.contextmanager
    def _library(self) -> Iterator[Any]:
        """Import TensorFlow Datasets, and report any error in it as one line."""
        from kdistill.backend import tf  # silences TensorFlow, which TensorFlow Datasets imports  # noqa: F401

        try:
            import tensorflow_datasets as tfds
        except ModuleNotFoundError as error:
            raise KdistillError(f"{self.place} needs {error.name}: pip install 'kdistill[tfds]'") from None
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        with one_line_errors(f"TensorFlow Datasets can't provide {self.place}"):
            yield tfds
