"""Read a dataset from class folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grokkit.data.base import Dataset
from grokkit.data.image_file import Decoded, decode_image
from grokkit.errors import DataError

LAYOUT = "train/<class>/* and test/<class>/*"


def read_folder(path: Path) -> Dataset:
    """Read a dataset from image files `train/<class>/*` and `test/<class>/*`, decoded by Pillow.

    Classes are the sorted folder names, the same in both splits. All images must have the same size, after their
    EXIF orientation is applied. They become RGB, or one channel if every file is greyscale (see `decode_image`); an
    alpha channel is dropped, with a finding if any pixel is transparent. Names that begin with a dot are ignored.

    Raises:
        DataError: class folders that differ, a file that is not one 8-bit image, an image of another size, or an image
            outside the class folders.
    """
    classes = _find_common_classes(path)
    files = {split: _list_class_files(path / split, classes) for split in ("train", "test")}
    every = _decode_all([file for listed in files.values() for file, _ in listed])
    decoded = {"train": every[: len(files["train"])], "test": every[len(files["train"]) :]}
    grey = all(image.pixels.ndim == 2 for image in every)
    x = {split: np.stack([_to_channels(image.pixels, grey) for image in images]) for split, images in decoded.items()}
    y = {split: np.array([label for _, label in listed], np.int64) for split, listed in files.items()}
    dataset = Dataset(path.resolve().name, x["train"], y["train"], x["test"], y["test"], classes)
    return dataset.with_findings(_describe_transparent(path, every))


def _to_channels(pixels: np.ndarray, grey: bool) -> np.ndarray:
    """Return (1, H, W), or (3, H, W) unless all images are grey."""
    if pixels.ndim == 3:
        return pixels.transpose(2, 0, 1)
    return pixels[None] if grey else np.repeat(pixels[None], 3, axis=0)


def _describe_transparent(path: Path, images: list[Decoded]) -> tuple[str, ...]:
    count = sum(image.transparent for image in images)
    if not count:
        return ()
    return (
        f"{count} of {len(images)} images in {path} have transparent pixels, whose hidden colours are used: alpha is "
        "dropped. Flatten these images onto a background first",
    )


def _decode_all(files: list[Path]) -> list[Decoded]:
    """Decode image files; DataError at the first that has another size than the first of all."""
    images: list[Decoded] = []
    for file in files:
        images.append(decode_image(file))
        first, size = images[0].pixels.shape[:2], images[-1].pixels.shape[:2]
        if size != first:
            raise DataError(
                f"all images must have the same size; {files[0]} has {first[1]}x{first[0]}, {file} has "
                f"{size[1]}x{size[0]}. Resize them first"
            )
    return images


def _list_visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror or error}. Check its permissions") from error


def _find_common_classes(path: Path) -> tuple[str, ...]:
    for split in ("train", "test"):
        if not (path / split).is_dir():
            raise DataError(f"{path} must hold {LAYOUT}; there is no {split}/")
    train, test = (_list_classes(path / split) for split in ("train", "test"))
    if train != test:
        only = [
            f"only in {s}: {', '.join(sorted(d))}" for s, d in (("train", train - test), ("test", test - train)) if d
        ]
        raise DataError(f"{path} must hold the same class folders in train/ and test/; {'; '.join(only)}")
    if not train:
        raise DataError(f"{path} must hold {LAYOUT}; there are no class folders")
    return tuple(sorted(train))


def _list_classes(split: Path) -> set[str]:
    from PIL import Image

    entries = _list_visible(split)
    loose = [entry for entry in entries if entry.suffix.lower() in Image.registered_extensions() and entry.is_file()]
    if loose:
        raise DataError(
            f"{split} must hold one folder per class; {loose[0].name} and {len(loose) - 1} other images are in none. "
            "Move them into class folders, or remove them"
        )
    return {entry.name for entry in entries if entry.is_dir()}


def _list_class_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    listed = [(file, label) for label, name in enumerate(classes) for file in _list_visible(folder / name)]
    nested = [file for file, _ in listed if file.is_dir()]
    if nested:
        raise DataError(f"class folders must hold images, not folders; {nested[0]} is one. Move its images up")
    if not listed:
        raise DataError(f"{folder} must hold at least one image in its class folders; they are empty")
    return listed
