"""Datasets from disk: one .npz file, or a folder of class folders; and the .npz cache of downloaded datasets."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from grokkit.data.base import Dataset, to_images, to_labels
from grokkit.errors import DataError

ARCHIVE_KEYS = ("x_train", "y_train", "x_test", "y_test")
GREY_MODES = {"L", "1"}
DEEP_MODES = ("I", "F")


def read_images(path: Path) -> Dataset:
    """The dataset in an .npz file or a folder, named after it; DataError where it is missing or malformed."""
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise DataError(f"no file or folder {str(path)!r}; give an .npz file, or a folder with train/ and test/")
    if path.suffix != ".npz":
        raise DataError(f"a dataset file must end in .npz; got {str(path)!r}")
    return read_npz(path)


MAX_CLASSES = 10_000
"""Labels beyond this, and beyond the number of images, are taken for a mistake and not for class numbers."""


def read_npz(path: Path, name: str | None = None, classes: tuple[str, ...] | None = None) -> Dataset:
    """A dataset from the keys `x_train y_train x_test y_test` of an .npz file; nothing in it is ever unpickled.

    Args:
        path: the file. Images as `to_images` takes them, integer labels.
        name: None = the file's stem.
        classes: names where the file has no key `classes` (strings); None = the class numbers as words.

    Raises:
        DataError: not a readable archive, a missing key, arrays of the wrong form.
    """
    arrays = _read_arrays(path)
    images = {key: to_images(arrays[key], f"{key} in {path}") for key in ("x_train", "x_test")}
    labels = {key: to_labels(arrays[key], f"{key} in {path}") for key in ("y_train", "y_test")}
    if "classes" in arrays:
        classes = _class_names(arrays["classes"], path)
    elif classes is None:
        top = max((int(y.max()) for y in labels.values() if len(y)), default=0)
        if top >= max(len(labels["y_train"]), MAX_CLASSES):
            raise DataError(
                f"labels in {path} reach {top}, but there are only {len(labels['y_train'])} training images; number "
                "the classes 0, 1, 2, ..."
            )
        classes = tuple(str(number) for number in range(top + 1))
    return Dataset(name or path.stem, **images, **labels, classes=classes)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one bare array")
            _check_keys(path, archive.files)
            return {key: archive[key] for key in (*ARCHIVE_KEYS, "classes") if key in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an .npz archive of plain arrays: {error}. Write it with "
            "numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
        ) from error


def _check_keys(path: Path, present: list[str]) -> None:
    missing = [key for key in ARCHIVE_KEYS if key not in present]
    if missing:
        raise DataError(
            f"{path} must hold {', '.join(ARCHIVE_KEYS)}; missing: {', '.join(missing)}; "
            f"present: {', '.join(present) or 'nothing'}"
        )


def _class_names(array: np.ndarray, path: Path) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind != "U":
        raise DataError(
            f"classes in {path} must be a list of words, one per class; got {array.dtype} of shape {array.shape}"
        )
    return tuple(array.tolist())


def write_npz(path: Path, dataset: Dataset) -> None:
    """Write `dataset` so that `read_npz` returns it; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, classes=np.array(dataset.classes), **{key: getattr(dataset, key) for key in ARCHIVE_KEYS})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_archive(
    name: str, root: str | os.PathLike[str] | None, fetch: Callable[[Path], Dataset], classes: tuple[str, ...]
) -> Dataset:
    """The dataset in `<root>/<name>.npz`; where that is absent, `fetch(root)` is called once and its result written.

    Args:
        name: of the dataset and its file.
        root: folder; None = the environment's GROKKIT_DATA, else `./data`.
        fetch: downloads into the folder and decodes.
        classes: names for a file that brings none.

    Raises:
        DataError: the fetch failed (the message says how to go on), or the file is malformed.
    """
    folder = Path(root or os.environ.get("GROKKIT_DATA") or "data")
    path = folder / f"{name}.npz"
    if not path.exists():
        try:
            dataset = fetch(folder)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{name} could not be downloaded into {folder}: {reason}. Try again with a network, or place an "
                f"archive with {', '.join(ARCHIVE_KEYS)} at {path}, or name your own with --data FILE.npz"
            ) from error
        write_npz(path, dataset)
    return read_npz(path, name, classes)


def read_folder(path: Path) -> Dataset:
    """A dataset from image files `train/<class>/*` and `test/<class>/*`, decoded by Pillow.

    Classes are the sorted folder names, the same in both splits. All images must share one size. They become
    RGB (an alpha channel is dropped), or one channel where every file is greyscale. Names that begin with a dot are
    passed over.

    Raises:
        DataError: folders that differ, a file that is no 8-bit image, an image of another size.
    """
    classes = _common_classes(path)
    files = {split: _class_files(path / split, classes) for split in ("train", "test")}
    mode = _common_mode([file for listed in files.values() for file, _ in listed])
    parts: dict[str, np.ndarray] = {}
    for split, listed in files.items():
        pixels = np.stack([_decode(file, mode) for file, _ in listed])
        parts[f"x_{split}"] = to_images(pixels, f"{split} images of {path}")
        parts[f"y_{split}"] = np.array([label for _, label in listed], np.int64)
    return Dataset(path.resolve().name, classes=classes, **parts)


def _list_visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _common_classes(path: Path) -> tuple[str, ...]:
    for split in ("train", "test"):
        if not (path / split).is_dir():
            raise DataError(f"{path} must hold train/<class>/* and test/<class>/*; there is no {split}/")
    train, test = ({e.name for e in _list_visible(path / split) if e.is_dir()} for split in ("train", "test"))
    if train != test:
        only = [
            f"only in {s}: {', '.join(sorted(d))}" for s, d in (("train", train - test), ("test", test - train)) if d
        ]
        raise DataError(f"{path} must hold the same class folders in train/ and test/; {'; '.join(only)}")
    if not train:
        raise DataError(f"{path} must hold train/<class>/* and test/<class>/*; there are no class folders")
    return tuple(sorted(train))


def _class_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    listed = [(file, label) for label, word in enumerate(classes) for file in _list_visible(folder / word)]
    if not listed:
        raise DataError(f"{folder} must hold at least one image in its class folders; they are empty")
    return listed


def _common_mode(files: list[Path]) -> str:
    """`L` or `RGB`, from the files' headers; refuses depths and sizes that would be changed silently."""
    from PIL import Image

    modes: set[str] = set()
    first: tuple[int, int] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
                mode, size = image.mode, image.size
        except OSError as error:
            raise DataError(f"{file} cannot be read as an image: {error}. Remove it, or hide it with a dot") from error
        if mode.startswith(DEEP_MODES):
            raise DataError(f"images must have 8 bits per channel; {file} has Pillow mode {mode!r}. Convert it first")
        first = first or size
        if size != first:
            raise DataError(
                f"all images must share one size; {files[0]} has {first[0]}x{first[1]}, {file} has "
                f"{size[0]}x{size[1]}. Resize them first"
            )
        modes.add(mode)
    return "L" if modes <= GREY_MODES else "RGB"


def _decode(file: Path, mode: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:
        raise DataError(f"{file} cannot be decoded: {error}. Replace or remove it") from error
