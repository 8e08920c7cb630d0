"""Listing of image folders in the layout of `keras.utils.image_dataset_from_directory`: one folder per class.

The class folders can be inside `train` and `test` (or `validation`, or `val`). Without class folders, images are unlabeled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdistill.errors import KdistillError, one_line_errors

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
CLUTTER = {"thumbs.db", "desktop.ini"}  # file managers leave these
TEST_FOLDERS = ("test", "validation", "val")


@dataclass(frozen=True)
class ImagePart:
    """The image files of the training rows or the test rows, in the order of the rows.

    `classes` has the class name of each file; it is None for unlabeled images.
    """

    path: Path
    files: Sequence[Path]
    classes: Sequence[str] | None


def list_parts(path: Path) -> tuple[list[ImagePart], list[Path]]:
    """Return the training images, the test images if they are separate, and the files beside class folders.

    Raises:
        KdistillError: if the folders are not laid out as expected.
    """
    folders, files = _entries(path)
    names = {folder.name for folder in folders}
    if "train" not in names or not names <= {"train", *TEST_FOLDERS}:
        part, ignored = _list_part(path)
        return [part], ignored
    _check_no_images_beside(folders, files)
    test_names = [name for name in TEST_FOLDERS if name in names][:1]
    parts, ignored_files = zip(*(_list_part(path / name) for name in ("train", *test_names)), strict=True)
    return list(parts), sum(ignored_files, files)


def _list_part(path: Path) -> tuple[ImagePart, list[Path]]:
    """Return the images of a part in a fixed order that mixes the classes, and the files beside its class folders."""
    folders, files = _entries(path)
    if not folders and not files:
        raise KdistillError(f"{path} is an empty directory (expected one folder of images per class)")
    if not folders:
        _check_all_images(files)
        return ImagePart(path, [files[i] for i in _order(len(files))], None), []
    _check_no_images_beside(folders, files)
    pairs = [(file, folder.name) for folder in folders for file in _class_images(folder)]
    order = _order(len(pairs))
    return ImagePart(path, [pairs[i][0] for i in order], [pairs[i][1] for i in order]), files


def _order(count: int) -> list[int]:
    order: list[int] = np.random.default_rng(count).permutation(count).tolist()
    return order


def _class_images(folder: Path) -> list[Path]:
    folders, files = _entries(folder)
    if folders:
        raise KdistillError(
            f"{folders[0]} is a directory inside a class folder (expected one folder of images per class)"
        )
    if not files:
        raise KdistillError(f"{folder} is an empty class folder: add images, or remove it")
    _check_all_images(files)
    return files


def _entries(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files of a directory, sorted, without hidden ones and clutter. Links are followed.

    Raises:
        KdistillError: if something with an image extension is not a regular file: reading it might never end.
    """
    folders: list[Path] = []
    files: list[Path] = []
    with one_line_errors(f"can't list the images in {path}"), os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in CLUTTER:
                continue
            file = path / entry.name
            if entry.is_dir():
                folders.append(file)
                continue
            if _is_image(file) and not entry.is_file():
                kind = "not a regular file" if file.exists() else "a broken link"
                raise KdistillError(f"{file} is {kind}: replace or remove it")
            files.append(file)
    return folders, files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _check_all_images(files: Sequence[Path]) -> None:
    if others := [file for file in files if not _is_image(file)]:
        raise KdistillError(
            f"{others[0]}{_and_more(others)} is not an image (expected {', '.join(sorted(EXTENSIONS))}): move it elsewhere"
        )


def _check_no_images_beside(folders: Sequence[Path], files: Sequence[Path]) -> None:
    """Check that there are no images beside class folders, as they would belong to no class."""
    if images := [file for file in files if _is_image(file)]:
        raise KdistillError(
            f"{images[0]}{_and_more(images)} is an image beside folders ({folders[0].name}, ...): move it into the "
            "folder of its class"
        )


def _and_more(files: Sequence[Path]) -> str:
    return f" (and {len(files) - 1} more)" if len(files) > 1 else ""
