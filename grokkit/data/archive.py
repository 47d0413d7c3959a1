"""Read and write datasets as .npz files."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grokkit.data.base import Dataset, to_images, to_labels
from grokkit.data.folder import read_folder
from grokkit.data.foreign_files import require_file
from grokkit.errors import DataError

ARCHIVE_KEYS = ("x_train", "y_train", "x_test", "y_test")

MAX_CLASSES = 10_000
"""Labels above this and above the number of images are rejected: they are unlikely to be class numbers."""

PLAUSIBLE_BYTES, PLAUSIBLE_RATIO = 2**30, 500
"""An array above this size that is compressed by more than this factor holds next to nothing and is not unpacked."""


@dataclass(frozen=True)
class Standard:
    """What is known of a standard dataset.

    Args:
        name: of the dataset, and stem of its file.
        input_shape: (C, H, W) of an image.
        classes: class names, if the file has none.
        downloads: what its download leaves in the data folder.
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    downloads: tuple[str, ...]


def read_images(path: Path) -> Dataset:
    """Read the dataset in an .npz file or a folder and name it after that; DataError if it is missing or malformed."""
    if require_path(path).is_dir():
        return read_folder(path)
    if path.suffix != ".npz":
        raise DataError(f"a dataset file must end in .npz; got {str(path)!r}")
    return read_npz(path)


def require_path(path: Path) -> Path:
    """Return the path; DataError if nothing is there, or the operating system does not say."""
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError(
            f"no file or folder {str(path)!r}; give an .npz file, or a folder with train/ and test/"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{str(path)!r} cannot be opened: {reason}. Check the path and its permissions") from error
    return path


def read_npz(path: Path, standard: Standard | None = None) -> Dataset:
    """Read a dataset from the keys `x_train y_train x_test y_test` of an .npz file, without unpickling.

    Args:
        path: the file, with images in a form accepted by `to_images` and integer labels, and perhaps `classes`
            (strings); without them, the class numbers as strings are the names. It is named after the file's stem.
        standard: what the file must be, with name and classes. It may hold fewer images.

    Raises:
        DataError: not a readable archive, a missing key, malformed arrays, labels that do not begin at 0 without
            `classes`, or another dataset than `standard`.
    """
    arrays = _read_arrays(path)
    images = {key: to_images(arrays[key], f"{key} in {path}") for key in ("x_train", "x_test")}
    labels = {key: to_labels(arrays[key], f"{key} in {path}") for key in ("y_train", "y_test")}
    if "classes" in arrays:
        classes = _parse_class_names(arrays["classes"], path)
    else:
        classes = _number_classes(labels, path) if standard is None else standard.classes
    if standard is not None:
        _check_standard(standard, path, images, classes)
    name = path.stem if standard is None else standard.name
    return Dataset(name, images["x_train"], labels["y_train"], images["x_test"], labels["y_test"], classes)


def _number_classes(labels: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    """Return the class numbers as names; DataError if the labels are no class numbers from 0."""
    every, images = np.concatenate(list(labels.values())), len(labels["y_train"])
    low, top = (int(every.min()), int(every.max())) if len(every) else (0, 0)
    if low != 0:
        raise DataError(
            f"labels in {path} start at {low}; number the classes 0, 1, 2, ... (labels - labels.min() if there are no "
            "gaps), or add their names as `classes`"
        )
    if top >= max(images, MAX_CLASSES):
        raise DataError(
            f"labels in {path} reach {top}, but there are only {images} training images; number the classes 0, 1, "
            "2, ..."
        )
    return tuple(str(number) for number in range(top + 1))


def _check_standard(standard: Standard, path: Path, images: dict[str, np.ndarray], classes: tuple[str, ...]) -> None:
    for key, x in images.items():
        if x.shape[1:] != standard.input_shape or len(classes) != len(standard.classes):
            raise DataError(
                f"{path} is not {standard.name}, which has images {standard.input_shape} of {len(standard.classes)} "
                f"classes; its {key} has images {x.shape[1:]} of {len(classes)}. Rename the file and load it by its "
                f"path; without it, {standard.name} is downloaded"
            )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    require_zip(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            _check_keys(path, archive.files)
            wanted = [key for key in (*ARCHIVE_KEYS, "classes") if key in archive.files]
            for key in wanted:
                _check_member(archive.zip, key, path)
            return {key: archive[key] for key in wanted}
    except DataError:
        raise
    except Exception as error:  # zlib.error, BadZipFile, NotImplementedError, struct.error, MemoryError, ...
        raise DataError(
            f"{path} cannot be read as an .npz archive of plain arrays: {type(error).__name__}: {error}. Copy or "
            "download it again, or write it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
        ) from error


def require_zip(path: Path) -> None:
    """Raise DataError unless the file begins as a zip archive; the message says what it is, if that is recognised."""
    head = require_file(path)
    if not head.startswith(b"PK"):
        raise DataError(
            f"{path} cannot be read as an .npz archive: it is not a zip file (it begins with {head[:8]!r}). Write it "
            "with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
        )


def _check_member(archive: zipfile.ZipFile, key: str, path: Path) -> None:
    """Raise if an array's header declares another size than is stored, before that much memory is allocated."""
    info = archive.getinfo(f"{key}.npy")
    if info.file_size > max(PLAUSIBLE_BYTES, PLAUSIBLE_RATIO * info.compress_size):
        raise DataError(
            f"{key} in {path} would grow from {info.compress_size:,} to {info.file_size:,} bytes when unpacked, as "
            "images never do. Check where the file comes from"
        )
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in NPY_HEADERS:
            return
        shape, _, dtype = NPY_HEADERS[version](member)
        declared, held = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if not dtype.hasobject and declared != held:
        raise ValueError(f"{key} declares the shape {shape} of {dtype}, {declared:,} bytes, and holds {held:,}")


NPY_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


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
