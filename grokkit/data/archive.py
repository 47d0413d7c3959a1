"""Read datasets from disk (an .npz file, or class folders of images) and cache downloaded ones as .npz."""

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
    """Read the dataset in an .npz file or a folder and name it after that; DataError if it is missing or malformed."""
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise DataError(f"no file or folder {str(path)!r}; give an .npz file, or a folder with train/ and test/")
    if path.suffix != ".npz":
        raise DataError(f"a dataset file must end in .npz; got {str(path)!r}")
    return read_npz(path)


MAX_CLASSES = 10_000
"""Labels above this and above the number of images are rejected: they are unlikely to be class numbers."""


def read_npz(path: Path, name: str | None = None, classes: tuple[str, ...] | None = None) -> Dataset:
    """Read a dataset from the keys `x_train y_train x_test y_test` of an .npz file, without unpickling.

    Args:
        path: the file, with images in a form accepted by `to_images` and integer labels.
        name: None = the file's stem.
        classes: class names if the file has no key `classes` (strings); None = the class numbers as strings.

    Raises:
        DataError: not a readable archive, a missing key, or malformed arrays.
    """
    arrays = _read_arrays(path)
    images = {key: to_images(arrays[key], f"{key} in {path}") for key in ("x_train", "x_test")}
    labels = {key: to_labels(arrays[key], f"{key} in {path}") for key in ("y_train", "y_test")}
    if "classes" in arrays:
        classes = _parse_class_names(arrays["classes"], path)
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
                raise ValueError("it holds a single array")
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


def _parse_class_names(array: np.ndarray, path: Path) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind != "U":
        raise DataError(
            f"classes in {path} must be a 1-D array of strings, one per class; got {array.dtype} of shape {array.shape}"
        )
    return tuple(array.tolist())


def write_npz(path: Path, dataset: Dataset) -> None:
    """Write `dataset` atomically, in the form that `read_npz` reads."""
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
    """Read the dataset in `<root>/<name>.npz`; if the file is missing, call `fetch(root)` and write its result first.

    Args:
        name: name of the dataset and stem of its file.
        root: folder; None = the environment's GROKKIT_DATA, else `./data`.
        fetch: downloads into the folder and decodes.
        classes: class names if the file has none.

    Raises:
        DataError: the download failed (the message names the remedies), or the file is malformed.
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
                f"archive with {', '.join(ARCHIVE_KEYS)} at {path}, or use your own file with --data FILE.npz"
            ) from error
        write_npz(path, dataset)
    return read_npz(path, name, classes)


def read_folder(path: Path) -> Dataset:
    """Read a dataset from image files `train/<class>/*` and `test/<class>/*`, decoded by Pillow.

    Classes are the sorted folder names, the same in both splits. All images must have the same size. They are
    converted to RGB (an alpha channel is dropped), or to one channel if every file is greyscale. Names that begin with
    a dot are ignored.

    Raises:
        DataError: class folders that differ, a file that is not an 8-bit image, or an image of another size.
    """
    classes = _find_common_classes(path)
    files = {split: _list_class_files(path / split, classes) for split in ("train", "test")}
    mode = _find_common_mode([file for listed in files.values() for file, _ in listed])
    parts: dict[str, np.ndarray] = {}
    for split, listed in files.items():
        pixels = np.stack([_decode(file, mode) for file, _ in listed])
        parts[f"x_{split}"] = to_images(pixels, f"{split} images of {path}")
        parts[f"y_{split}"] = np.array([label for _, label in listed], np.int64)
    return Dataset(path.resolve().name, classes=classes, **parts)


def _list_visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _find_common_classes(path: Path) -> tuple[str, ...]:
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


def _list_class_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    listed = [(file, label) for label, name in enumerate(classes) for file in _list_visible(folder / name)]
    if not listed:
        raise DataError(f"{folder} must hold at least one image in its class folders; they are empty")
    return listed


def _find_common_mode(files: list[Path]) -> str:
    """Return `L` or `RGB` from the files' headers; DataError for bit depths and sizes that would need conversion."""
    from PIL import Image

    modes: set[str] = set()
    first: tuple[int, int] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
                mode, size = image.mode, image.size
        except OSError as error:
            raise DataError(
                f"{file} cannot be read as an image: {error}. Remove it, or rename it to begin with a dot"
            ) from error
        if mode.startswith(DEEP_MODES):
            raise DataError(f"images must have 8 bits per channel; {file} has Pillow mode {mode!r}. Convert it first")
        first = first or size
        if size != first:
            raise DataError(
                f"all images must have the same size; {files[0]} has {first[0]}x{first[1]}, {file} has "
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
