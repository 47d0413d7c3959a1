"""Append-only logs of JSON lines, each with its own checksum and the number of the attempt that wrote it."""

from __future__ import annotations

import json
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from grokkit.errors import TrajectoryError
from grokkit.trajectory.checksummed import canonical_json
from grokkit.trajectory.documents import Check, parse_record, read_bytes, refuse_irregular

MAX_LOG_BYTES = 4 * 2**30
"""The most of a log that is read at once."""


class Log:
    """A log open for appending by the one writer of a run; a torn last line of an earlier attempt is cut off. Raises
    TrajectoryError if something else than a file lies in its place."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._attempt = attempt
        refuse_irregular(path)
        try:
            self._file = open(path, "ab+")  # noqa: SIM115  (closed by close)
            self._file.seek(0)
            whole = self._file.read().rfind(b"\n") + 1
            self._file.truncate(whole)
        except OSError as error:
            raise TrajectoryError(f"could not write {path}: {error.strerror or error}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; it survives the death of the process at once, that of the machine after `sync`.

        A `value` that is not finite, which JSON cannot write, becomes null beside `not_finite`: `nan`, `inf` or
        `-inf`; readers give the number back. In any other field that word stands itself.
        """
        body = canonical_json({**record, "attempt": self._attempt})
        if b"NaN" in body or b"Infinity" in body:  # perhaps only within a text
            body = canonical_json({**_encode_non_finite(record), "attempt": self._attempt})
        try:
            self._file.write(encode_line(body))
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


def encode_line(body: bytes) -> bytes:
    """A record's JSON with its checksum, as a line."""
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def _encode_non_finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record in numbers that JSON can write."""
    written = {name: _name_non_finite(value) for name, value in record.items()}
    if "value" in record and written["value"] != record["value"] and isinstance(written["value"], str):
        written |= {"value": None, "not_finite": written["value"]}
    return written


def _name_non_finite(value: Any) -> Any:
    """The same value with `nan`, `inf` and `-inf` in the place of such numbers."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {name: _name_non_finite(each) for name, each in value.items()}
    return [_name_non_finite(each) for each in value] if isinstance(value, list | tuple) else value


def read_log(path: Path, check: Check = parse_record) -> Iterator[dict[str, Any]]:
    """The whole records of a log, in order; a torn last line is dropped, a damaged one in the middle with a warning.

    Args:
        path: of the log; one that does not exist is empty.
        check: what a record of it is (`documents.parse_metric`, `parse_event`): a line that is none counts as damaged.

    Raises:
        TrajectoryError: something else than a file lies there.
    """
    for number, record in _records(path, check):
        if record is None:
            warnings.warn(f"line {number} of {path} is damaged and left out", stacklevel=2)
        else:
            yield record


def read_log_from(path: Path, offset: int, check: Check = parse_record) -> tuple[list[dict[str, Any]], int, int]:
    """What was appended since byte `offset`, which ends a line: the whole records, the offset behind the last whole
    line, and how many damaged lines were left out. Whoever follows a log pays for its new lines only, two microseconds
    each: they are checked one by one and parsed together. Raises as `read`."""
    try:
        content = read_bytes(path, MAX_LOG_BYTES, offset)
    except FileNotFoundError:
        return [], offset, 0
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    bodies = [body for body in map(_checked_body, lines) if body is not None]
    records = [record for record in map(check, _parse_bodies(bodies)) if record is not None]
    return records, offset + sum(map(len, lines)) + len(lines), len(lines) - len(records)


def find_damaged_lines(path: Path, check: Check = parse_record) -> list[int]:
    """Numbers of the lines that do not match their checksum or are no records, the torn last one left out. Raises as
    `read`."""
    return [number for number, record in _records(path, check) if record is None]


def _records(path: Path, check: Check) -> Iterator[tuple[int, dict[str, Any] | None]]:
    try:
        lines = read_bytes(path, MAX_LOG_BYTES).split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines[:-1], start=1):
        body = _checked_body(line)
        yield number, None if body is None else check(_parse_body(body))


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of one whole line; None where it is damaged or torn."""
    body = _checked_body(line.removesuffix(b"\n"))
    return None if body is None else parse_record(_parse_body(body))


def _parse_bodies(bodies: list[bytes]) -> list[Any]:
    """The JSON of each; one that is none costs the others only time."""
    try:
        found: list[Any] = json.loads(b"[" + b",".join(bodies) + b"]")
    except (ValueError, RecursionError):
        found = []
    return found if len(found) == len(bodies) else [_parse_body(body) for body in bodies]


def _parse_body(body: bytes) -> Any:
    """A line's JSON; None, which is no record, if it is none: a checksum can be right over anything."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # no JSON or UTF-8, an integer of thousands of digits; nested too deep
        return None


def _checked_body(line: bytes) -> bytes | None:
    """The JSON that a line's checksum stands for; None where the two do not match."""
    head, _, tail = line.rpartition(b',"crc":')
    body = head + b"}"
    return body if tail == b'"%08x"}' % zlib.crc32(body) else None
