"""Open a data file: what is no regular file, cannot be read, or is plainly something else is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from grokkit.errors import DataError, UsageError

HEAD = 512
"""Bytes at the start of a file by which its kind is recognised."""

KINDS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the data; run: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the data; run: git annex get"),
    (b"../.git/annex/objects/", "a git-annex pointer, not the data; run: git annex get"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"\x89HDF", "an HDF5 file; write its arrays with numpy.savez"),
    (b"\x93NUMPY", "a single array (.npy); write all four arrays with numpy.savez"),
    (b"\x80\x02}", "a pickle, which is not read because it could run code; write plain arrays with numpy.savez"),
    (b"\x80\x03", "a pickle, which is not read because it could run code; write plain arrays with numpy.savez"),
    (b"\x80\x04", "a pickle, which is not read because it could run code; write plain arrays with numpy.savez"),
    (b"\x80\x05", "a pickle, which is not read because it could run code; write plain arrays with numpy.savez"),
)
"""First bytes of files that are neither an .npz archive nor an image, and what to say about them."""

PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"{")
"""First bytes, in lower case, of what a server sends instead of a file."""


def to_text(argument: str, value: Any) -> str:
    """Return a name or path as text; UsageError if it is neither."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UsageError(f"`{argument}` must be a string or a path; got {value!r}")
    return text


def require_file(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        DataError: it is not a regular file, is not readable, is empty, or is of a kind that is recognised and is
            neither an .npz archive nor an image.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a regular file; remove it, or give the path of a file")
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror or error}. Check its permissions") from error
    if not head:
        raise DataError(f"{path} is empty; download or copy it again, or remove it")
    for start, text in KINDS:
        if head.startswith(start):
            raise DataError(f"{path} is {text}")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGES):
        raise DataError(
            f"{path} is text (HTML, XML or JSON), not the data: its download failed, or needs a login. Look at its "
            "first lines and download it again"
        )
    return head
