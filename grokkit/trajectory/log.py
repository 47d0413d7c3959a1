"""Append-only logs of JSON lines, each with its own checksum and the number of the attempt that wrote it."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from grokkit.errors import TrajectoryError
from grokkit.trajectory.sealed import as_json


class Log:
    """A log open for appending by the one writer of a run; a torn last line of an earlier attempt is cut off."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._attempt = attempt
        self._file = open(path, "ab+")  # noqa: SIM115  (closed by close)
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        self._file.truncate(whole)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; it survives the death of the process at once, that of the machine after `sync`."""
        body = as_json({**record, "attempt": self._attempt})
        try:
            self._file.write(body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
            self._file.flush()
        except OSError as error:
            raise TrajectoryError(f"could not write {self._file.name}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Make everything appended so far durable. Raises TrajectoryError where the disk does not confirm it."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TrajectoryError(f"the disk did not confirm {self._file.name}: {error.strerror or error}") from error

    def close(self) -> None:
        """As `sync`, and let the file go."""
        try:
            self.sync()
        finally:
            with suppress(OSError):  # what could not be written is no more to be had
                self._file.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a log, in order; a torn last line is dropped, a damaged one in the middle with a warning."""
    for number, record in _records(path):
        if record is None:
            warnings.warn(f"line {number} of {path} is damaged and left out", stacklevel=2)
        else:
            yield record


def read_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int, int]:
    """What was appended since byte `offset`, which ends a line: the whole records, the offset behind the last whole
    line, and how many damaged lines were left out. Whoever follows a log pays for its new lines only, a microsecond
    and a half each: they are checked one by one and parsed together."""
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read()
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    bodies = [body for body in map(_body, lines) if body is not None]
    records: list[dict[str, Any]] = json.loads(b"[" + b",".join(bodies) + b"]")
    return records, offset + sum(map(len, lines)) + len(lines), len(lines) - len(bodies)


def damaged_lines(path: Path) -> list[int]:
    """Numbers of the lines that do not match their checksum, the torn last one left out."""
    return [number for number, record in _records(path) if record is None]


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    if path.exists():
        lines = path.read_bytes().split(b"\n")
        yield from ((number, _parse(line)) for number, line in enumerate(lines[:-1], start=1))


def _parse(line: bytes) -> dict[str, Any] | None:
    body = _body(line)
    return None if body is None else json.loads(body)


def _body(line: bytes) -> bytes | None:
    """The JSON that a line's checksum stands for; None where the two do not match."""
    head, _, tail = line.rpartition(b',"crc":')
    body = head + b"}"
    return body if tail == b'"%08x"}' % zlib.crc32(body) else None
