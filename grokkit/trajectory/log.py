"""Append-only logs of JSON lines, each with a checksum and the number of the attempt that wrote it."""

from __future__ import annotations

import json
import math
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from grokkit.errors import TrajectoryError
from grokkit.trajectory.checksummed import canonical_json
from grokkit.trajectory.documents import Check, parse_record, read_bytes, require_regular_file

MAX_LOG_BYTES = 4 * 2**30
"""Bytes of a log that are read at once."""


class Log:
    """A log opened for appending by the single writer of a run; an incomplete last line of an earlier attempt is
    truncated.

    Raises:
        TrajectoryError: `path` exists and is not a regular file.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self._attempt = attempt
        require_regular_file(path)
        try:
            self._file = open(path, "ab+")  # noqa: SIM115  (closed by close)
            self._file.seek(0)
            complete = self._file.read().rfind(b"\n") + 1
            self._file.truncate(complete)
        except OSError as error:
            raise TrajectoryError(f"could not write {path}: {error.strerror or error}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record. It survives a crash of the process at once, and a crash of the machine after `sync`.

        A non-finite `value`, which JSON cannot represent, becomes null beside `not_finite`: `nan`, `inf` or `-inf`;
        readers restore the number. In any other field the number is replaced by that text.
        """
        body = canonical_json({**record, "attempt": self._attempt})
        if b"NaN" in body or b"Infinity" in body:  # may only be part of a text
            body = canonical_json({**_encode_non_finite(record), "attempt": self._attempt})
        try:
            self._file.write(encode_line(body))
            self._file.flush()
        except OSError as error:
            raise TrajectoryError(f"could not write {self._file.name}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Make all appended lines durable. Raises TrajectoryError if the disk does not confirm it."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TrajectoryError(f"the disk did not confirm {self._file.name}: {error.strerror or error}") from error

    def close(self) -> None:
        """Sync as `sync`, and close the file."""
        try:
            self.sync()
        finally:
            with suppress(OSError):  # unwritten data is lost anyway
                self._file.close()


def encode_line(body: bytes) -> bytes:
    """Encode the JSON of a record as a line with its checksum."""
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def _encode_non_finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the non-finite numbers of a record by text that JSON can represent."""
    encoded = {name: _name_non_finite(value) for name, value in record.items()}
    if "value" in record and encoded["value"] != record["value"] and isinstance(encoded["value"], str):
        encoded |= {"value": None, "not_finite": encoded["value"]}
    return encoded


def _name_non_finite(value: Any) -> Any:
    """Replace non-finite numbers in a value by `nan`, `inf` and `-inf`."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {name: _name_non_finite(item) for name, item in value.items()}
    return [_name_non_finite(item) for item in value] if isinstance(value, list | tuple) else value


def read_log(path: Path, check: Check = parse_record) -> Iterator[dict[str, Any]]:
    """Yield the intact records of a log in order; skip an incomplete last line, and warn about damaged lines before it.

    Args:
        path: of the log; a missing one is empty.
        check: decides what a record of this log is (`documents.parse_metric`, `parse_event`); other lines count as
            damaged.

    Raises:
        TrajectoryError: `path` is not a regular file.
    """
    for number, record in _iter_records(path, check):
        if record is None:
            warnings.warn(f"line {number} of {path} is damaged and was skipped", stacklevel=2)
        else:
            yield record


def read_log_from(path: Path, offset: int, check: Check = parse_record) -> tuple[list[dict[str, Any]], int, int]:
    """Read what was appended since byte `offset`, which is the end of a line.

    Cost: new lines only, two microseconds each: they are checked one by one and parsed together.

    Returns:
        The intact records, the offset of the end of the last complete line, and the number of damaged lines skipped.

    Raises:
        TrajectoryError: as `read_log`.
    """
    try:
        content = read_bytes(path, MAX_LOG_BYTES, offset)
    except FileNotFoundError:
        return [], offset, 0
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    bodies = [body for body in map(_extract_body, lines) if body is not None]
    records = [record for record in map(check, _parse_bodies(bodies)) if record is not None]
    return records, offset + sum(map(len, lines)) + len(lines), len(lines) - len(records)


def find_damaged_lines(path: Path, check: Check = parse_record) -> list[int]:
    """Return the numbers of the lines that do not match their checksum or are not records, except an incomplete last
    one. Raises TrajectoryError as `read_log`."""
    return [number for number, record in _iter_records(path, check) if record is None]


def _iter_records(path: Path, check: Check) -> Iterator[tuple[int, dict[str, Any] | None]]:
    try:
        lines = read_bytes(path, MAX_LOG_BYTES).split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines[:-1], start=1):
        body = _extract_body(line)
        yield number, None if body is None else check(_parse_body(body))


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse the record of one complete line; None if it is damaged or incomplete."""
    body = _extract_body(line.removesuffix(b"\n"))
    return None if body is None else parse_record(_parse_body(body))


def _parse_bodies(bodies: list[bytes]) -> list[Any]:
    """Parse the JSON of all bodies at once, or one by one if any is invalid, which only costs time."""
    try:
        values: list[Any] = json.loads(b"[" + b",".join(bodies) + b"]")
    except (ValueError, RecursionError):
        values = []
    return values if len(values) == len(bodies) else [_parse_body(body) for body in bodies]


def _parse_body(body: bytes) -> Any:
    """Parse the JSON of a line; None, which is not a record, if it is invalid: a checksum can match any bytes."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # not JSON or UTF-8, an integer of thousands of digits; nested too deep
        return None


def _extract_body(line: bytes) -> bytes | None:
    """Return the JSON that the checksum of a line covers; None if the two do not match."""
    head, _, tail = line.rpartition(b',"crc":')
    body = head + b"}"
    return body if tail == b'"%08x"}' % zlib.crc32(body) else None


def effective_events(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events without policy decisions that a resume has undone, see `Run.events`."""
    effective: list[dict[str, Any]] = []
    for event in events:
        if event["kind"] in ("resumed", "restarted"):
            last = event["step"] if event["kind"] == "resumed" else -1
            effective = [e for e in effective if e["step"] <= last or e["kind"] != "policy"]
        effective.append(event)
    return effective
