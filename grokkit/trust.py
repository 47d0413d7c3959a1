"""The user's list of study sources that may be executed from run folders: sha256 digests, stored outside all runs.

The list is the file `trusted_code` in `$XDG_CONFIG_HOME/grokkit/`, else in `~/.config/grokkit/`: one sha256 of a
source text per line. `train` and `record` add to it. A queue passes the digests it accepted to its workers in
GROKKIT_TRUSTED.
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
"""Environment variable with further digests, separated by commas; a queue sets it for its workers."""

MAX_SOURCE_BYTES = 16 * 2**20
"""Size limit of a study's source file."""

_DIGEST = re.compile("[0-9a-f]{64}")
_warned = False


def hash_source(source: bytes) -> str:
    """Return the sha256 of a source text in the form used in the list."""
    return hashlib.sha256(source).hexdigest()


def get_list_path() -> Path:
    """Return the path of the user's list.

    Raises:
        OSError: the user has no home folder.
    """
    config_home = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification ignores relative paths. Here one would also let the working directory supply a list.
    if os.path.isabs(config_home):
        return Path(config_home) / "grokkit" / "trusted_code"
    try:
        return Path.home() / ".config" / "grokkit" / "trusted_code"
    except RuntimeError as error:
        raise OSError(errno.ENOENT, str(error), "~") from None


def is_trusted(source: bytes) -> bool:
    """Return whether this source text is on the user's list or in GROKKIT_TRUSTED."""
    digest = hash_source(source)
    return digest in _read_environment() or digest in _read_list()


def add_trusted(source: str) -> None:
    """Add a source text to the user's list.

    If the list cannot be written, warn once; the training continues.
    """
    global _warned
    try:
        _append_digest(hash_source(source.encode()))
    except OSError as error:
        if not _warned:
            _warned = True
            warnings.warn(
                f"the list of trusted code cannot be written ({error.filename}: {error.strerror}): if only "
                "this study registers a name, later commands such as `resume` or `lc` will need --trust (trust=True)",
                stacklevel=3,
            )


def make_worker_environment(digests: Iterable[str]) -> dict[str, str]:
    """Return the environment variable for a worker that may execute sources with these digests.

    Digests in this process's own GROKKIT_TRUSTED are included. The result is empty if there are no digests.
    """
    accepted = sorted({*_read_environment(), *digests})
    return {VARIABLE: ",".join(accepted)} if accepted else {}


def read_regular(path: Path) -> bytes:
    """Read all bytes of a regular file, once; symbolic links are followed.

    Raises:
        OSError: no such file, a pipe, device or folder (without blocking on it), or more than `MAX_SOURCE_BYTES`.
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


def _read_environment() -> set[str]:
    return set(_DIGEST.findall(os.environ.get(VARIABLE, "").lower()))


def _read_list() -> set[str]:
    with suppress(OSError):
        return set(_parse_digests(read_regular(get_list_path())))
    return set()


def _parse_digests(content: bytes) -> list[str]:
    """Return the digests in the content of a list; other lines, such as one truncated by a full disk, are ignored."""
    lines = [line.strip().lower() for line in content.decode("ascii", "replace").splitlines()]
    return [line for line in lines if _DIGEST.fullmatch(line)]


def _append_digest(digest: str) -> None:
    path = get_list_path()
    content = b""
    with suppress(FileNotFoundError):
        content = read_regular(path)
    if digest in _parse_digests(content):
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        # One write of one line: many trainings may append at the same time. A truncated last line is terminated first.
        is_truncated = bool(content) and not content.endswith(b"\n")
        os.write(handle, b"\n" * is_truncated + digest.encode() + b"\n")
    finally:
        os.close(handle)
