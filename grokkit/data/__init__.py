"""Load image classification datasets as uint8 arrays: by registered name, from an .npz file or from class folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from grokkit.errors import UnknownNameError, UsageError
from grokkit.registry import Registry, did_you_mean

registry: Registry[Dataset] = Registry("dataset", "grokkit.data")
register, names, create = registry.register, registry.names, registry.create

from grokkit.data.archive import read_images, require_path  # noqa: E402
from grokkit.data.base import Dataset  # noqa: E402
from grokkit.data.foreign_files import to_text  # noqa: E402

__all__ = ["Dataset", "create", "load_data", "names", "register"]

PATH_OPTIONS = ("train", "test", "seed", "validation", "shuffle_labels")


def load_data(
    source: str | os.PathLike[str], *, validation: int | None = None, shuffle_labels: bool = False, **options: Any
) -> Dataset:
    """Load the dataset `source`.

    Args:
        source: a registered name (see `names()`), else the path of an `.npz` file or of a folder with
            `train/<class>/*` and `test/<class>/*`. The string is a path if it ends in `.npz`, contains a path
            separator or is an existing folder; a registered name takes precedence.
        validation: images to split off the kept training images, stratified, with the same `seed`: with
            `train=5000, validation=500` a net is trained on 4,500. None = no validation split.
        shuffle_labels: permute the labels of the remaining training images, with the same `seed`; test and validation
            labels stay true. This is the negative control of claims about training on these labels.
        options: options of the named loader; all accept `train` and `test` (images to keep, stratified; None = all)
            and `seed` (selects them). A path accepts no others.

    Raises:
        UnknownNameError: not a registered name and not a path.
        UsageError: an unknown option, a `shuffle_labels` that is not a bool, or a `validation` that leaves no training
            images.
        DataError: the file or folder is missing or malformed.
    """
    if not isinstance(shuffle_labels, bool):
        raise UsageError(f"`shuffle_labels` must be true or false; got {shuffle_labels!r}")
    dataset = _load_dataset(to_text("source", source), options)
    seed = options.get("seed", 0)
    if validation is not None:
        dataset = dataset.with_validation(validation, seed)
    return dataset.with_shuffled_labels(seed) if shuffle_labels else dataset


def check_dataset_options(
    source: str | os.PathLike[str], *, validation: int | None = None, shuffle_labels: bool = False, **options: Any
) -> None:
    """Raise what `load_data` would raise for wrong names, options or missing paths, without reading data."""
    path = _resolve_path(to_text("source", source), options)
    if path is not None:
        require_path(path)


def find_dataset(source: str) -> Any:
    """Return the loader registered as `source`, or its path. Raises UnknownNameError with the nearest name."""
    path = _resolve_path(source, {})
    return registry.get(source) if path is None else path


def _load_dataset(text: str, options: dict[str, Any]) -> Dataset:
    path = _resolve_path(text, options)
    return create(text, **options) if path is None else read_images(path).subset(**options)


def _resolve_path(text: str, options: dict[str, Any]) -> Path | None:
    """Check `options`; return `text` as a path, or None if it is a registered name."""
    if text not in names() and _is_path(text):
        _check_path_options(options)
        return Path(os.path.expanduser(text))
    try:
        registry.check(text, options)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; or give the path of an .npz file or of a folder") from None
    return None


def _is_path(text: str) -> bool:
    separators = {os.sep, os.altsep or os.sep}
    return text.endswith(".npz") or any(mark in text for mark in separators) or os.path.isdir(text)


def _check_path_options(options: dict[str, Any]) -> None:
    for option in options:
        if option not in PATH_OPTIONS:
            raise UsageError(
                f"unknown option {option!r} of a dataset read from a path.{did_you_mean(option, list(PATH_OPTIONS))} "
                f"It takes: {', '.join(PATH_OPTIONS)}"
            )
