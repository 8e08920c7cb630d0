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

from kdistill.console import silent_stdout
from kdistill.data.readers import Contents, Reader, streams
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import parse_image_size

NAME = re.compile(r"tfds:(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?", re.ASCII)
INFO = "dataset_info.json"
TEST_SPLITS = ("test", "validation")


class Tfds(Reader):
    """A dataset that is prepared on disk, or that TensorFlow Datasets can download and prepare there.

    Raises:
        UsageError: if its name is none.
    """

    format = "a dataset of TensorFlow Datasets"
    takes = ("image-size", "test-fraction")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.place):
            raise UsageError(f"{self.place} is no tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION, as 1.0.0")

    def digest(self) -> str:
        """Of what its builder recorded, and of the names and sizes of its files."""
        whole = hashlib.sha256()
        for file in sorted(file for file in self._directory().iterdir() if file.is_file()):
            whole.update(file.read_bytes() if file.suffix == ".json" else b"%d" % file.stat().st_size)
            whole.update(b" %s\n" % file.name.encode())
        return f"sha256:{whole.hexdigest()}"

    def contents(self) -> Contents:
        directory = self._directory()
        with self._library() as tfds:
            builder = tfds.builder_from_directory(directory)
            info = builder.info
        if not isinstance(info.supervised_keys, tuple) or len(info.supervised_keys) != 2:
            raise KdistillError(f"{self.place} does not say which of its features are input and label")
        if "train" not in info.splits:
            raise KdistillError(f"{self.place} has no split train, only {', '.join(info.splits)}")
        test = next((split for split in TEST_SPLITS if split in info.splits), None)
        with self._library():
            parts = [builder.as_dataset(split=split, as_supervised=True) for split in ("train", test) if split]
        train, *others = (
            streams.part(self._resized(part), self.place, name)
            for part, name in zip(parts, ("train", test or ""), strict=False)
        )
        size = self.options.image_size
        return Contents(
            train=train,
            test=others[0] if others else None,
            class_names=getattr(info.features[info.supervised_keys[1]], "names", None) or (),
            preprocessing={"images": dict(zip(("height", "width"), parse_image_size(size), strict=True))}
            if size
            else {},
        )

    def _resized(self, part: Any) -> Any:
        """With images brought to the size asked for, bilinearly."""
        if self.options.image_size is None:
            return part
        from kdistill.backend import tf

        size = parse_image_size(self.options.image_size)
        image = part.element_spec[0]
        if getattr(image, "dtype", None) != tf.uint8 or image.shape.rank != 3:
            raise KdistillError(f"{self.place} has no images to bring to --image-size, but {image}")

        def resize(image: Any, label: Any) -> Any:
            values = tf.image.resize(image, size, antialias=True)
            return tf.cast(tf.round(tf.clip_by_value(values, 0, 255)), tf.uint8), label

        return part.map(resize, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _directory(self) -> Path:
        """Where the dataset lies, prepared; found without TensorFlow, or else made with it."""
        found = self._prepared()
        if found is None:
            with self._library() as tfds, silent_stdout():
                builder = tfds.builder(self.place.removeprefix("tfds:"))
                builder.download_and_prepare()
                found = Path(builder.data_dir)
        return found

    def _prepared(self) -> Path | None:
        """The directory of the version asked for, or of the newest; None if there is none."""
        match = NAME.fullmatch(self.place)
        assert match
        name, config, version = match.groups()
        base = Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser() / name
        configs = [config] if config else ["", *sorted(item.name for item in base.glob("*") if item.is_dir())]
        prepared = {
            place: versions
            for place in configs
            if (versions := [file.parent for file in (base / place).glob(f"{version or '*.*.*'}/{INFO}")])
        }
        if len(prepared) > 1:
            known = ", ".join(f"tfds:{name}/{place}" for place in prepared if place)
            raise KdistillError(f"{self.place} is prepared in several configurations: say which, {known}")
        found = [path for versions in prepared.values() for path in versions]
        return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)], default=None)

    @contextlib.contextmanager
    def _library(self) -> Iterator[Any]:
        """TensorFlow Datasets; what goes wrong in it becomes one line."""
        from kdistill.backend import tf  # first, so that it is quiet  # noqa: F401

        try:
            import tensorflow_datasets as tfds
        except ModuleNotFoundError as error:
            if error.name != "tensorflow_datasets":
                raise
            raise KdistillError(f"{self.place} needs tensorflow-datasets: pip install 'kdistill[tfds]'") from None
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        try:
            yield tfds
        except (KdistillError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - the library's and its downloads' own
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise KdistillError(f"{self.place} can't be had from TensorFlow Datasets: {said}") from None
