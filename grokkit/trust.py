"""Which study sources may be executed from a run folder: the user's own list of sha256 digests, kept outside all runs.

The list is the file `trusted_code` in `$XDG_CONFIG_HOME/grokkit/`, else in `~/.config/grokkit/`: one sha256 of a
source text a line. `train` and `record` add to it. A queue hands what it accepted to its workers in GROKKIT_TRUSTED.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

VARIABLE = "GROKKIT_TRUSTED"
"""Environment variable with further digests, separated by commas: how a queue tells its workers what it accepted."""

MAX_SOURCE_BYTES = 16 * 2**20
"""Largest file that is read as a study's source."""

_DIGEST = re.compile("[0-9a-f]{64}")
_warned = False


def digest_of(source: bytes) -> str:
    """The sha256 of a source text, as the list holds it."""
    return hashlib.sha256(source).hexdigest()


def list_path() -> Path:
    """Where the user's list is.

    Raises:
        OSError: the user has no home folder.
    """
    told = os.environ.get("XDG_CONFIG_HOME", "")
    # A relative path is void by the XDG specification. Here it would also let a folder that one works in bring a list.
    if os.path.isabs(told):
        return Path(told) / "grokkit" / "trusted_code"
    try:
        return Path.home() / ".config" / "grokkit" / "trusted_code"
    except RuntimeError as error:
        raise OSError(errno.ENOENT, str(error), "~") from None


def is_trusted(source: bytes) -> bool:
    """Whether this source text is on the user's list, or among the digests of GROKKIT_TRUSTED."""
    found = digest_of(source)
    return found in _from_environment() or found in _read_list()


def add_trusted(source: str) -> None:
    """Add a source text to the user's list. A list that cannot be written is a warning, once; it ends no training."""
    global _warned
    try:
        _append(digest_of(source.encode()))
    except OSError as error:
        if not _warned:
            _warned = True
            warnings.warn(
                f"the list of trusted code cannot be written ({error.filename}: {error.strerror}): where a name is "
                "known to this study alone, a later `resume`, `lc`, ... will ask for --trust (trust=True)",
                stacklevel=3,
            )


def worker_environment(digests: Iterable[str]) -> dict[str, str]:
    """The environment variable for a worker that may execute sources with these digests; empty where there are none.
    Digests that this process was given by its own GROKKIT_TRUSTED are handed on."""
    every = sorted({*_from_environment(), *digests})
    return {VARIABLE: ",".join(every)} if every else {}


def read_regular(path: Path) -> bytes:
    """All bytes of a regular file, read once; links to one are followed.

    Raises:
        OSError: no such file, a pipe, device or folder (none of them is waited for), or more than `MAX_BYTES`.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(handle, "rb", closefd=False) as file:
            content = file.read(MAX_SOURCE_BYTES + 1)
    finally:
        os.close(handle)
    if len(content) > MAX_SOURCE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_SOURCE_BYTES >> 20} MiB", str(path))
    return content


def _from_environment() -> set[str]:
    return set(_DIGEST.findall(os.environ.get(VARIABLE, "").lower()))


def _read_list() -> set[str]:
    with suppress(OSError):
        return set(_lines(read_regular(list_path())))
    return set()


def _lines(content: bytes) -> list[str]:
    """The digests of a list; what is no digest, such as a line cut short by a full disk, is left out."""
    lines = [line.strip().lower() for line in content.decode("ascii", "replace").splitlines()]
    return [line for line in lines if _DIGEST.fullmatch(line)]


def _append(digest: str) -> None:
    path = list_path()
    content = b""
    with suppress(FileNotFoundError):
        content = read_regular(path)
    if digest in _lines(content):
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        # One write of one line: many trainings may append at the same time. A line cut short is closed first.
        cut = bool(content) and not content.endswith(b"\n")
        os.write(handle, b"\n" * cut + digest.encode() + b"\n")
    finally:
        os.close(handle)
