"""The documents of a run folder: status, environment, config and lines of logs, each checked before anyone uses it.

Whatever lies in the place of a document (a pipe, a folder, half a file, numbers where text belongs), reading it returns
a checked document or raises a TrajectoryError that names the file and the field; it never hangs.
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
"""The largest document that is read."""
MAX_DEPTH = 64
"""Tables and lists within one another that a document may have."""
MAX_COUNT = 2**63 - 1
"""The largest step, attempt and seed: what an int64 column holds."""
MAX_AMOUNT = 1e15
"""The largest number of seconds and of dollars."""
LAST_SECOND = 253402300800.0
"""Unix time at which the year 9999 ends."""
STATES = ("starting", "running", "interrupted", "done", "failed")
"""What a status may say; `killed` and `unreadable` are what a reader makes of it."""
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""The flag beside a null `value` in a log, and what it stands for."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Check = Callable[[Any], dict[str, Any] | None]
"""Turns the JSON value of a log line into a record; None if it is none."""


class _FieldError(ValueError):
    """A field that is not what it has to be."""


# --- files ------------------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for it.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        TrajectoryError: there is something else than a regular file, or it cannot be opened.
    """
    try:
        _refuse_irregular(path, os.stat(path).st_mode)  # before it is opened: to open some devices does something
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        _refuse_irregular(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def refuse_irregular(path: Path) -> None:
    """Raise TrajectoryError if there is something at `path` that is not a regular file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    _refuse_irregular(path, mode)


def _refuse_irregular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise TrajectoryError(f"{path} cannot be read: it is {kind}; expected a regular file")


def read_bytes(path: Path, limit: int = MAX_DOCUMENT_BYTES, offset: int = 0) -> bytes:
    """Read a regular file from byte `offset` on.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        TrajectoryError: it is no regular file, larger than `limit`, or its disk fails.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size - offset
            if size > limit:
                raise TrajectoryError(f"{path} cannot be read: it has {size} bytes; expected at most {limit}")
            file.seek(offset)
            return file.read(max(0, size))  # Python takes the memory for as much as it is asked for
        except OSError as error:
            raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """Read a regular file as UTF-8, with what is none replaced; empty if there is nothing at `path`. Raises
    TrajectoryError as `read_bytes`."""
    try:
        return read_bytes(path).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


# --- documents --------------------------------------------------------------------------------------------------------


def read_status(path: Path) -> dict[str, Any]:
    """Read and check status.json.

    Returns:
        `state`, one of `STATES`; and as far as the run's version wrote them `step` and `attempt`, counts;
        `total_steps` and `manifest`, counts or None; `reason`, text or None; `costs`, name -> seconds, or None;
        `seconds`, `price`, `spent`, `updated`, finite numbers from 0 on, or None; anything else as it stands there.

    Raises:
        TrajectoryError: it cannot be read, or a field is something else; the message names it.
    """
    return _read(path, json.loads, _check_status)


def read_environment(path: Path) -> dict[str, Any]:
    """Read and check environment.json.

    Returns:
        A table; where they are there, `device` is text and `data` a table with `classes`, a list of text,
        `input_shape`, a list of counts, `mean` and `std`, lists of finite numbers, `train` and `validation`, counts,
        `name` and `hash`, text.

    Raises:
        TrajectoryError: as for `read_status`.
    """
    return _read(path, json.loads, _check_environment)


def read_config(path: Path) -> dict[str, Any]:
    """Read and check config.toml.

    Returns:
        A table; where they are there, `seed` is an integer of 64 bits, `experiment` and `variant` are text.

    Raises:
        TrajectoryError: as for `read_status`.
    """
    return _read(path, tomllib.loads, _check_config)


def _read(path: Path, parse: Callable[[str], Any], check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    try:
        document = _parse(read_bytes(path), parse)
        check(document)
    except FileNotFoundError as error:
        raise TrajectoryError(f"{path} cannot be read: there is no such file") from error
    except _FieldError as error:
        raise TrajectoryError(f"{path} cannot be read: {error}") from error
    return document


def _parse(content: bytes, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        document = parse(content.decode("utf-8"))
    except RecursionError as error:
        raise _FieldError(f"it is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # no JSON or TOML, no UTF-8, or an integer of thousands of digits
        raise _FieldError(str(error)) from error
    except Exception as error:  # a parser of anyone's bytes: tomllib has raised more than it promises
        raise _FieldError(f"{type(error).__name__}: {error}") from error
    if not isinstance(document, dict):
        raise _FieldError(f"it holds {reprlib.repr(document)}; expected a table of named fields")
    if is_too_deep(document):
        raise _FieldError(f"it is nested deeper than {MAX_DEPTH} levels")
    return document


def is_too_deep(value: Any) -> bool:
    """Whether lists and tables stand within one another more than `MAX_DEPTH` times: other code walks them by calling
    itself."""
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return False


def _check_status(status: Mapping[str, Any]) -> None:
    if status.get("state") not in STATES:
        _refuse("state", status.get("state"), f"one of {', '.join(STATES)}")
    _check(status, "a whole number from 0 to 2**63 - 1", is_count, "step", "attempt")
    _check(status, "a whole number from 0 to 2**63 - 1, or null", _or_none(is_count), "total_steps", "manifest")
    _check(status, "text", _or_none(_is_text), "reason")
    _check(
        status, f"a finite number from 0 to {MAX_AMOUNT:g}, or null", _or_none(is_amount), "seconds", "price", "spent"
    )
    _check(status, "seconds since 1970, up to the year 9999", _or_none(_is_time), "updated")
    _check(status, "a table of seconds by name", _or_none(_is_table), "costs")
    for name, seconds in (status.get("costs") or {}).items():
        if not is_amount(seconds):
            _refuse(f"costs.{name}", seconds, f"a finite number from 0 to {MAX_AMOUNT:g}")


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
            _refuse(f"{prefix}{name}", table[name], expected)


def _refuse(field: str, value: Any, expected: str) -> None:
    raise _FieldError(f"`{field}` must be {expected}; got {reprlib.repr(value)}")


# --- lines of logs ----------------------------------------------------------------------------------------------------


def parse_record(parsed: Any) -> dict[str, Any] | None:
    """A log line's JSON as a record, with a `value` that JSON cannot write put back; None if it is no record."""
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
    """A line of metrics.jsonl: `step` and `attempt` counts, `split` and `metric` text, `value` a float, perhaps not
    finite; None if it is no such record."""
    record = parse_record(parsed)
    if record is None or not _is_logged(record, "split", "metric"):
        return None
    record["split"], record["metric"] = escape_surrogates(record["split"]), escape_surrogates(record["metric"])
    value: Any = record.get("value")
    if type(value) is not float:
        if not _is_number(value):
            return None
        record["value"] = float(value)
    return record


def parse_event(parsed: Any) -> dict[str, Any] | None:
    """A line of events.jsonl: `step` and `attempt` counts, `kind` and `text` text, and the event's own fields; None if
    it is no such record."""
    record = parse_record(parsed)
    if record is None or not _is_logged(record, "kind", "text"):
        return None
    return {
        escape_surrogates(name): escape_surrogates(told) if isinstance(told, str) else told
        for name, told in record.items()
    }


def _is_logged(record: Mapping[str, Any], *texts: str) -> bool:
    counts = is_count(record.get("step")) and is_count(record.get("attempt"))
    return counts and all(isinstance(record.get(name), str) for name in texts)


# --- values -----------------------------------------------------------------------------------------------------------


def escape_surrogates(text: str) -> str:
    """The text with halves of surrogate pairs, which names of files and JSON may hold, written as escapes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def drop_non_finite(value: Any) -> Any:
    """The same JSON value with None in the place of numbers that JSON does not know."""
    if isinstance(value, list):
        return [drop_non_finite(each) for each in value]
    if isinstance(value, dict):
        return {name: drop_non_finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 to `MAX_COUNT`; a bool is none."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float holds, and finite."""
    return _is_number(value) and math.isfinite(value)


def is_amount(value: Any) -> bool:
    """Whether a value is a number from 0 to `MAX_AMOUNT`."""
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
    return type(value) in (int, float) and 0 <= value < LAST_SECOND


def _is_seed(value: Any) -> bool:
    return type(value) is int and -MAX_COUNT - 1 <= value <= MAX_COUNT


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))
