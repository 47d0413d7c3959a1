"""Download standard datasets once, and cache them as .npz files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from grokkit.data.archive import ARCHIVE_KEYS, Standard, read_npz, write_npz
from grokkit.data.base import Dataset
from grokkit.data.foreign_files import to_text
from grokkit.errors import DataError


def cache_archive(standard: Standard, root: str | os.PathLike[str] | None, fetch: Callable[[Path], Dataset]) -> Dataset:
    """Read the dataset in `<root>/<name>.npz`; if the file is missing, call `fetch(root)` and write its result first.

    Args:
        standard: what the file must hold.
        root: folder; None = the environment's GROKKIT_DATA, else `./data`.
        fetch: downloads into the folder and decodes.

    Raises:
        DataError: the download failed or left damaged files (the message names the remedies), the file cannot be
            written or is malformed, or holds another dataset.
    """
    folder = Path(os.path.expanduser(to_text("root", root or os.environ.get("GROKKIT_DATA") or "data")))
    path = folder / f"{standard.name}.npz"
    if not os.path.lexists(path):
        dataset = _fetch(standard, folder, path, fetch)
        try:
            write_npz(path, dataset)
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error.strerror or error}. Make room or choose another folder with "
                "GROKKIT_DATA"
            ) from error
    return read_npz(path, standard)


def _fetch(standard: Standard, folder: Path, path: Path, fetch: Callable[[Path], Dataset]) -> Dataset:
    """Call `fetch(folder)`; DataError with a remedy, which is another one if an earlier download was there before."""
    found = [place for name in standard.downloads if _holds_files(place := folder / name)]
    try:
        return fetch(folder)
    except Exception as error:  # damaged files raise anything in torchvision
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        otherwise = (
            f"place an archive with {', '.join(ARCHIVE_KEYS)} at {path}, or use your own file with --data FILE.npz"
        )
        if found:
            raise DataError(
                f"{standard.name} cannot be read from what an earlier download left, which is damaged or incomplete: "
                f"{reason}. Delete {' and '.join(map(str, found))} and try again with a network, or {otherwise}"
            ) from error
        raise DataError(
            f"{standard.name} could not be downloaded into {folder}: {reason}. Try again with a network, or {otherwise}"
        ) from error


def _holds_files(path: Path) -> bool:
    return path.is_file() or any(entry.is_file() for entry in path.rglob("*"))
