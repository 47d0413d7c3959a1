"""Image classification data as uint8 arrays: by registered name, from an .npz file or from class folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from grokkit.errors import DataError, UnknownNameError, UsageError
from grokkit.registry import Registry, did_you_mean

registry = Registry("dataset", "grokkit.data")
register, names, create = registry.register, registry.names, registry.create

from grokkit.data.archive import read_images  # noqa: E402
from grokkit.data.base import Dataset  # noqa: E402

__all__ = ["Dataset", "create", "load", "names", "register"]

PATH_OPTIONS = ("train", "test", "seed", "validation", "shuffle_labels")


def load(
    source: str | os.PathLike[str], *, validation: int | None = None, shuffle_labels: bool = False, **options: Any
) -> Dataset:
    """The dataset that `source` names.

    Args:
        source: a registered name (see `names()`), else the path of an `.npz` file or of a folder with
            `train/<class>/*` and `test/<class>/*`. A word is a path when it ends in `.npz`, contains a path
            separator or is an existing folder; a registered name comes first.
        validation: images to take out of the training images that were kept, stratified, by the same `seed`: with
            `train=5000, validation=500` a net learns from 4,500. None = no validation split.
        shuffle_labels: permute the labels of the training images that remain, by the same `seed`; test and validation
            labels stay true. The negative control of a claim about training on these labels.
        options: of the named loader; all take `train` and `test` (images to keep, stratified; None = all) and
            `seed` (which ones). A path takes no others.

    Raises:
        UnknownNameError: no such name, and not a path.
        UsageError: an option that the loader does not take, a `shuffle_labels` that is no bool, or a `validation`
            that leaves nothing to train on.
        DataError: the file or folder is missing or malformed.
    """
    if not isinstance(shuffle_labels, bool):
        raise UsageError(f"`shuffle_labels` must be true or false; got {shuffle_labels!r}")
    dataset = _load_dataset(os.fspath(source), options)
    seed = options.get("seed", 0)
    if validation is not None:
        dataset = dataset.with_validation(validation, seed)
    return dataset.with_shuffled_labels(seed) if shuffle_labels else dataset


def check_dataset_options(
    source: str | os.PathLike[str], *, validation: int | None = None, shuffle_labels: bool = False, **options: Any
) -> None:
    """Raise what `load` would raise of names, options and missing paths; nothing is read."""
    path = _check_dataset(os.fspath(source), options)
    if path is not None and not path.exists():
        raise DataError(f"there are no data at {path}")


def find_dataset(source: str) -> Any:
    """The loader that is registered as `source`, or the path that it is. Raises UnknownNameError with the nearest."""
    path = _check_dataset(source, {})
    return registry.get(source) if path is None else path


def _load_dataset(text: str, options: dict[str, Any]) -> Dataset:
    path = _check_dataset(text, options)
    return create(text, **options) if path is None else read_images(path).subset(**options)


def _check_dataset(text: str, options: dict[str, Any]) -> Path | None:
    """The path that `text` is, or None where it is a registered name; either is known to take the options."""
    if text not in names() and _is_path(text):
        _check_path_options(options)
        return Path(text).expanduser()
    try:
        registry.check(text, options)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; or give the path of an .npz file or of a folder") from None
    return None


def _is_path(text: str) -> bool:
    separators = {os.sep, os.altsep or os.sep}
    return text.endswith(".npz") or any(mark in text for mark in separators) or Path(text).is_dir()


def _check_path_options(options: dict[str, Any]) -> None:
    for option in options:
        if option not in PATH_OPTIONS:
            raise UsageError(
                f"a dataset read from a path has no option {option!r}.{did_you_mean(option, list(PATH_OPTIONS))} "
                f"It takes: {', '.join(PATH_OPTIONS)}"
            )
