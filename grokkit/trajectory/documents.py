"""Read and check the documents of a run folder: status, environment, config and lines of logs.

Whatever is found under the name of a document (a pipe, a folder, half a file, numbers in place of text), reading it
returns a checked document or raises a TrajectoryError that names the file and the field; it never blocks.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from grokkit.errors import TrajectoryError

MAX_DOCUMENT_BYTES = 64 * 2**20
"""Bytes of the largest document that is read."""
MAX_DEPTH = 64
"""Maximum nesting of tables and lists in a document."""
MAX_COUNT = 2**63 - 1
"""The largest step, attempt and seed: the maximum of an int64 column."""
MAX_AMOUNT = 1e15
"""The largest number of seconds and of dollars."""
MAX_UNIX_TIME = 253402300800.0
"""Unix time at which the year 9999 ends."""
STATES = ("starting", "running", "interrupted", "done", "failed")
"""States that a run writes to its status; readers add `killed` and `unreadable`."""
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""The flag beside a null `value` in a log, and the number it represents."""
_FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Check = Callable[[Any], dict[str, Any] | None]
"""Converts the JSON value of a log line to a record; None if it is not one."""


class _FieldError(ValueError):
    """A field with an invalid value."""


# --- files ------------------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without ever blocking.

    Raises:
        FileNotFoundError: `path` does not exist.
        TrajectoryError: it is not a regular file, or cannot be opened.
    """
    try:
        _require_regular_mode(path, os.stat(path).st_mode)  # before opening it: opening some devices has side effects
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        _require_regular_mode(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def require_regular_file(path: Path) -> None:
    """Raise TrajectoryError if `path` exists and is not a regular file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    _require_regular_mode(path, mode)


def _require_regular_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _FILE_TYPES.get(stat.S_IFMT(mode), "of an unknown type")
        raise TrajectoryError(f"{path} cannot be read: it is {kind}; expected a regular file")


def read_bytes(path: Path, limit: int = MAX_DOCUMENT_BYTES, offset: int = 0) -> bytes:
    """Read a regular file from byte `offset` on.

    Raises:
        FileNotFoundError: `path` does not exist.
        TrajectoryError: it is not a regular file, is larger than `limit`, or its disk fails.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size - offset
            if size > limit:
                raise TrajectoryError(f"{path} cannot be read: it has {size} bytes; expected at most {limit}")
            file.seek(offset)
            return file.read(max(0, size))  # Python allocates as many bytes as are requested
        except OSError as error:
            raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """Read a regular file as UTF-8 with invalid bytes replaced; return an empty text if `path` does not exist. Raises
    TrajectoryError as `read_bytes`."""
    try:
        return read_bytes(path).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


# --- documents --------------------------------------------------------------------------------------------------------


def read_status(path: Path) -> dict[str, Any]:
    """Read and check status.json.

    Returns:
        `state`, one of `STATES`; and if the run's version wrote them, `step` and `attempt`, counts;
        `total_steps` and `manifest`, counts or None; `reason`, text or None; `costs`, name -> seconds, or None;
        `seconds`, `price`, `spent`, `updated`, finite numbers from 0 on, or None; other fields unchecked.

    Raises:
        TrajectoryError: it cannot be read, or a field is invalid; the message names the field.
    """
    return _read(path, json.loads, _check_status)


def read_environment(path: Path) -> dict[str, Any]:
    """Read and check environment.json.

    Returns:
        A table. If present, `device` is text, and `data` is a table with `classes`, a list of text, `input_shape`, a
        list of counts, `mean` and `std`, lists of finite numbers, `train` and `validation`, counts, `name` and `hash`,
        text.

    Raises:
        TrajectoryError: as for `read_status`.
    """
    return _read(path, json.loads, _check_environment)


def read_config(path: Path) -> dict[str, Any]:
    """Read and check config.toml.

    Returns:
        A table. If present, `seed` is an integer of 64 bits, `experiment` and `variant` are text.

    Raises:
        TrajectoryError: as for `read_status`.
    """
    return _read(path, tomllib.loads, _check_config)


def _read(path: Path, parse: Callable[[str], Any], check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    try:
        document = _parse(read_bytes(path), parse)
        check(document)
    except FileNotFoundError as error:
        raise TrajectoryError(f"{path} cannot be read: file not found") from error
    except _FieldError as error:
        raise TrajectoryError(f"{path} cannot be read: {error}") from error
    return document


def _parse(content: bytes, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        document = parse(content.decode("utf-8"))
    except RecursionError as error:
        raise _FieldError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # not JSON or TOML, not UTF-8, or an integer of thousands of digits
        raise _FieldError(str(error)) from error
    except Exception as error:  # untrusted bytes: tomllib has raised undocumented errors
        raise _FieldError(f"{type(error).__name__}: {error}") from error
    if not isinstance(document, dict):
        raise _FieldError(f"it holds {reprlib.repr(document)}; expected a table of named fields")
    if is_too_deep(document):
        raise _FieldError(f"it is nested deeper than {MAX_DEPTH} levels")
    return document


def is_too_deep(value: Any) -> bool:
    """Return whether lists and tables are nested more than `MAX_DEPTH` deep: other code walks them recursively."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return False


def _check_status(status: Mapping[str, Any]) -> None:
    if status.get("state") not in STATES:
        _raise_field_error("state", status.get("state"), f"one of {', '.join(STATES)}")
    _check(status, "a whole number from 0 to 2**63 - 1", is_count, "step", "attempt")
    _check(status, "a whole number from 0 to 2**63 - 1, or null", _optional(is_count), "total_steps", "manifest")
    _check(status, "text", _optional(_is_text), "reason")
    _check(
        status, f"a finite number from 0 to {MAX_AMOUNT:g}, or null", _optional(is_amount), "seconds", "price", "spent"
    )
    _check(status, "seconds since 1970, up to the year 9999", _optional(_is_time), "updated")
    _check(status, "a table of seconds by name", _optional(_is_table), "costs")
    for name, seconds in (status.get("costs") or {}).items():
        if not is_amount(seconds):
            _raise_field_error(f"costs.{name}", seconds, f"a finite number from 0 to {MAX_AMOUNT:g}")


def _check_environment(environment: Mapping[str, Any]) -> None:
    _check(environment, "text", _is_text, "device")
    _check(environment, "a table", _is_table, "data")
    data = environment.get("data", {})
    _check(data, "a whole number from 0 to 2**63 - 1", is_count, "train", "validation", prefix="data.")
    _check(data, "a list of text", _list_of(_is_text), "classes", prefix="data.")
    _check(data, "a list of whole numbers", _list_of(is_count), "input_shape", prefix="data.")
    _check(data, "a list of finite numbers", _list_of(is_finite), "mean", "std", prefix="data.")
    _check(data, "text", _is_text, "name", "hash", prefix="data.")


def _check_config(config: Mapping[str, Any]) -> None:
    _check(config, "an integer of 64 bits", _is_seed, "seed")
    _check(config, "text", _is_text, "experiment", "variant")


def _check(
    table: Mapping[str, Any], expected: str, holds: Callable[[Any], bool], *names: str, prefix: str = ""
) -> None:
    for name in names:
        if name in table and not holds(table[name]):
            _raise_field_error(f"{prefix}{name}", table[name], expected)


def _raise_field_error(field: str, value: Any, expected: str) -> None:
    raise _FieldError(f"`{field}` must be {expected}; got {reprlib.repr(value)}")


# --- lines of logs ----------------------------------------------------------------------------------------------------


def parse_record(parsed: Any) -> dict[str, Any] | None:
    """Convert the JSON of a log line to a record, with a non-finite `value` restored; None if it is not a record."""
    if not isinstance(parsed, dict):
        return None
    if any(isinstance(value, dict | list) for value in parsed.values()) and is_too_deep(parsed):
        return None
    flag = parsed.get("not_finite")
    if parsed.get("value", flag) is None and isinstance(flag, str) and flag in NOT_FINITE:
        del parsed["not_finite"]
        parsed["value"] = NOT_FINITE[flag]
    return parsed


def parse_metric(parsed: Any) -> dict[str, Any] | None:
    """Convert a line of metrics.jsonl to a record; None if it is not one.

    Returns:
        `step` and `attempt`, counts; `split` and `metric`, text; `value`, a float that may be non-finite.
    """
    record = parse_record(parsed)
    if record is None or not _has_log_fields(record, "split", "metric"):
        return None
    record["split"], record["metric"] = escape_surrogates(record["split"]), escape_surrogates(record["metric"])
    value: Any = record.get("value")
    if type(value) is not float:
        if not _is_number(value):
            return None
        record["value"] = float(value)
    return record


def parse_event(parsed: Any) -> dict[str, Any] | None:
    """Convert a line of events.jsonl to a record; None if it is not one.

    Returns:
        `step` and `attempt`, counts; `kind` and `text`, text; and the fields of that kind of event.
    """
    record = parse_record(parsed)
    if record is None or not _has_log_fields(record, "kind", "text"):
        return None
    return {
        escape_surrogates(name): escape_surrogates(value) if isinstance(value, str) else value
        for name, value in record.items()
    }


def _has_log_fields(record: Mapping[str, Any], *texts: str) -> bool:
    counts = is_count(record.get("step")) and is_count(record.get("attempt"))
    return counts and all(isinstance(record.get(name), str) for name in texts)


# --- values -----------------------------------------------------------------------------------------------------------


def escape_surrogates(text: str) -> str:
    """Escape lone surrogates in a text; names of files and JSON may contain them."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def drop_non_finite(value: Any) -> Any:
    """Replace numbers that JSON cannot represent by None in a JSON value."""
    if isinstance(value, list):
        return [drop_non_finite(each) for each in value]
    if isinstance(value, dict):
        return {name: drop_non_finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_count(value: Any) -> bool:
    """Return whether a value is an integer from 0 to `MAX_COUNT`; a bool is not."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number that a float can hold."""
    return _is_number(value) and math.isfinite(value)


def is_amount(value: Any) -> bool:
    """Return whether a value is a number from 0 to `MAX_AMOUNT`."""
    return type(value) in (int, float) and 0 <= value <= MAX_AMOUNT


def _is_number(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < MAX_UNIX_TIME


def _is_seed(value: Any) -> bool:
    return type(value) is int and -MAX_COUNT - 1 <= value <= MAX_COUNT


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _optional(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))
