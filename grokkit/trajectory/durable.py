"""Write files and folders durably: after a full disk or a killed process a file is either complete or missing.

A file is written under a temporary name, synced, and given its name by a rename, or by a hard link, which never
replaces another file; then the folder is synced.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from grokkit.errors import TrajectoryError

RESERVE_BYTES = 1 << 20
"""Bytes that a write leaves free on the disk, for the logs and status.json that are still to be written."""

_MAX_BUFFERS = 1000
"""Buffers per `pwritev` call; Linux accepts at most 1024."""


def write_atomic(path: Path, content: bytes | memoryview, *, replace: bool = True, make_parents: bool = True) -> None:
    """Write `content` to `path` atomically: temporary file, fsync, rename (or link, which never replaces), directory
    fsync.

    Args:
        path: of the file.
        content: all of it.
        replace: overwrite an existing file.
        make_parents: create missing folders.

    Raises:
        TrajectoryError: the file could not be written, or exists without `replace`.
    """
    write_pieces_atomic(path, [content], replace, lambda temporary: None, reserve=0, make_parents=make_parents)


def write_pieces_atomic(
    path: Path,
    pieces: Sequence[bytes | memoryview],
    replace: bool,
    check: Callable[[Path], None],
    reserve: int | None = None,
    make_parents: bool = True,
) -> None:
    """Write the pieces, one after the other, as `write_atomic` does.

    Args:
        path, replace, make_parents: as for `write_atomic`.
        pieces: the content.
        check: called with the finished temporary file; if it raises, no file is left.
        reserve: bytes that must stay free on the disk; None: `RESERVE_BYTES`.

    Raises:
        TrajectoryError: as `write_atomic`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if make_parents:
            mkdir_durable(path.parent)
        _write_durably(temporary, pieces, RESERVE_BYTES if reserve is None else reserve)
        check(temporary)
        if replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    except OSError as error:
        reason = _NO_LINKS_MESSAGE if error.errno in _NO_LINK_ERRNOS and not replace else error.strerror or error
        raise TrajectoryError(f"could not write {path}: {reason}; nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def _link(temporary: Path, path: Path) -> None:
    """Hard-link a finished file to `path`, which must not exist.

    A network disk may have created the link and still answer that the name exists, because its first reply was lost;
    then both names belong to one file, and this is no error.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not os.path.samefile(temporary, path):
            raise


_NO_LINK_ERRNOS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
_NO_LINKS_MESSAGE = (
    "the file system does not support hard links; write runs to a local disk and copy finished ones here"
)


def _write_durably(path: Path, pieces: Sequence[bytes | memoryview], reserve: int) -> None:
    """Write all pieces, one after the other, to a new file and fsync it."""
    pending = [memoryview(piece) for piece in pieces if len(piece)]
    disk = os.statvfs(path.parent)
    if sum(map(len, pending)) + reserve > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        at = 0
        while pending:
            written = os.pwritev(handle, pending[:_MAX_BUFFERS], at)
            at += written
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if pending:
                pending[0] = pending[0][written:]
        os.fsync(handle)
    finally:
        os.close(handle)


def mkdir_durable(folder: Path) -> None:
    """Create a folder and its missing parents durably: a file is only safe if the name of its folder is on the disk."""
    if not folder.is_dir():
        mkdir_durable(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_dir(folder.parent)


def fsync_dir(folder: Path) -> None:
    """Make the names in `folder` durable. Raises TrajectoryError if the disk does not confirm it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        reason = error.strerror or error
        if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP):
            reason = (
                "the file system cannot make folders durable; write runs to a local disk and copy finished ones here"
            )
        raise TrajectoryError(f"the disk did not confirm a new name in {folder}: {reason}") from error
    finally:
        os.close(handle)
