"""Logs: whole records only, the torn end cut, damage said, and each attempt known."""

import json
import os
import warnings
import zlib

import numpy as np
import pytest

from grokkit.errors import TrajectoryError
from grokkit.trajectory import documents, log


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, *records, attempt=1):
    written = log.Log(path, attempt)
    for record in records:
        written.append(record)
    written.close()


def read(path):
    return list(log.read_log(path))


def test_records_come_back_in_order_with_their_attempt(path):
    records = [
        {"step": 0, "value": 0.1, "text": "Grüße\nzweite Zeile", "crc": "mine", "nested": {"crc": [1, None, True]}},
        {"value": float("inf"), "number": np.float32(0.1), "big": 2**80, 'a,"crc":"00000000"}': 1},
        {},
    ]
    write(path, *records)
    assert read(path) == [record | {"attempt": 1} for record in records]
    assert np.isnan(read_after(path, {"value": float("nan")})["value"])


def read_after(path, record):
    write(path, record)
    return read(path)[-1]


@pytest.mark.parametrize(("value", "flag"), [(np.nan, "nan"), (np.inf, "inf"), (np.float32("-inf"), "-inf")])
def test_a_number_that_json_cannot_write_is_null_beside_a_flag_and_comes_back(path, value, flag):
    record = {"step": 1, "split": "batch", "metric": "loss", "value": value}
    write(path, record)
    told = json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["value"] is None and told["not_finite"] == flag
    [back] = log.read_log(path, documents.parse_metric)
    assert np.array_equal(back["value"], float(value), equal_nan=True) and back.keys() == {*record, "attempt"}


def test_such_a_number_in_any_other_field_is_its_name(path):
    write(path, {"step": 1, "lr": np.nan, "of": (np.float64(np.inf), {"a": [-np.inf]}), "text": "NaN", "value": "nan"})
    told = json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (told["lr"], told["of"], told["text"], told["value"]) == ("nan", ["inf", {"a": ["-inf"]}], "NaN", "nan")


def test_a_line_of_an_older_version_with_a_bare_nan_is_read(path):
    body = b'{"attempt":1,"metric":"loss","split":"batch","step":4,"value":-Infinity}'
    path.write_bytes(body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
    assert [record["value"] for record in log.read_log(path, documents.parse_metric)] == [-np.inf]
    assert log.read_log_from(path, 0, documents.parse_metric)[0][0]["value"] == -np.inf


@pytest.mark.parametrize("body", [b'{"step":"1"}', b'{"a":1},{"b":2}', b'{"step":' + b"9" * 5000 + b"}", b'{"\xff":1}'])
def test_a_line_whose_checksum_is_right_over_nonsense_costs_no_other(path, body):
    good = {"step": 1, "split": "batch", "metric": "loss", "value": 0.5}
    write(path, good)
    with open(path, "ab") as file:
        file.write(body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
    write(path, good | {"step": 2})
    records, offset, damaged = log.read_log_from(path, 0, documents.parse_metric)
    assert [record["step"] for record in records] == [1, 2] and damaged == 1 and offset == path.stat().st_size
    assert log.find_damaged_lines(path, documents.parse_metric) == [2]


def test_two_halves_of_a_record_are_no_record(path):
    for body in (b'{"a":[{', b"{}]"):
        with open(path, "ab") as file:
            file.write(body + b',"crc":"%08x"}\n' % zlib.crc32(body + b"}"))
    assert log.read_log_from(path, 0)[0] == [] and log.find_damaged_lines(path) == [1, 2]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_log_that_is_no_file_is_an_error_and_nothing_waits_for_it(path, make):
    make(path)
    for use in (
        lambda: read(path),
        lambda: log.read_log_from(path, 0),
        lambda: log.find_damaged_lines(path),
        lambda: write(path),
    ):
        with pytest.raises(
            TrajectoryError, match=r"metrics\.jsonl cannot be read: it is a .*; expected a regular file"
        ):
            use()


def test_keys_that_are_numbers_do_not_look_like_damage(path):
    assert read_after(path, {"by_layer": {1: "a", 10: "b", 2: "c"}})["by_layer"] == {"1": "a", "10": "b", "2": "c"}


def test_every_line_is_json_that_ends_in_the_checksum_of_what_stands_before(path):
    write(path, {"step": 3, "value": 0.5})
    line = path.read_bytes()
    crc = zlib.crc32(b'{"attempt":1,"step":3,"value":0.5}')
    assert line == b'{"attempt":1,"step":3,"value":0.5,"crc":"%08x"}\n' % crc
    assert json.loads(line)["step"] == 3


def test_a_log_that_does_not_exist_is_empty(path):
    assert read(path) == [] and log.find_damaged_lines(path) == []


def test_what_was_appended_is_there_before_the_log_is_closed(path):
    written = log.Log(path, 1)
    written.append({"step": 1})
    assert [record["step"] for record in read(path)] == [1]
    written.close()


def test_a_log_cut_anywhere_gives_its_whole_lines_and_goes_on(path):
    write(path, {"step": 1, "text": "first"}, {"step": 2, "text": "second"})
    raw = path.read_bytes()
    first = raw.index(b"\n") + 1
    for length in range(len(raw) + 1):
        path.write_bytes(raw[:length])
        whole = [1, 2][: int(length >= first) + int(length == len(raw))]
        assert [record["step"] for record in read(path)] == whole, "the torn line is dropped without a warning"
        assert log.find_damaged_lines(path) == []
        write(path, {"step": 9}, attempt=2)
        assert [(record["step"], record["attempt"]) for record in read(path)] == [(s, 1) for s in whole] + [(9, 2)]
        assert path.read_bytes().startswith(raw[: first * len(whole)] if len(whole) < 2 else raw)


def test_a_damaged_line_in_the_middle_is_left_out_with_a_warning(path):
    write(path, {"step": 1}, {"step": 2}, {"step": 3})
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step":7'))
    with pytest.warns(UserWarning, match=r"line 2 of .*metrics\.jsonl is damaged and was skipped"):
        assert [record["step"] for record in read(path)] == [1, 3]
    assert log.find_damaged_lines(path) == [2]


def test_every_flipped_bit_of_a_line_is_found(path):
    write(path, {"step": 1, "value": 0.25}, {"step": 2})
    raw = path.read_bytes()
    for place in range(8 * raw.index(b"\n")):
        copy = bytearray(raw)
        copy[place // 8] ^= 1 << place % 8
        path.write_bytes(copy)
        assert 1 in log.find_damaged_lines(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert [record["step"] for record in read(path)] == [2]


@pytest.mark.parametrize("line", [b"", b"[]", b"null", b"{}", b'{"step":1}', b'{"crc":"00000000"}', b"\xff\x00"])
def test_a_foreign_line_is_damage_and_no_crash(path, line):
    path.write_bytes(line + b"\n")
    assert log.find_damaged_lines(path) == [1]


def test_a_log_on_a_full_disk_says_so(path):
    class Full:
        name = str(path)

        def write(self, _):
            raise OSError(28, "No space left on device")

    written = log.Log(path, 1)
    written._file.close()
    written._file = Full()
    with pytest.raises(TrajectoryError, match=r"could not write .*metrics\.jsonl: No space left on device"):
        written.append({"step": 1})


def test_following_a_log_reads_what_was_appended_and_nothing_twice(path):
    write(path, {"step": 1}, {"step": 2})
    records, offset, damaged = log.read_log_from(path, 0)
    assert records == read(path) and offset == path.stat().st_size and damaged == 0
    assert log.read_log_from(path, offset) == ([], offset, 0)
    write(path, {"step": 3, "value": float("-inf")}, attempt=2)
    records, after, _ = log.read_log_from(path, offset)
    assert records == [{"step": 3, "value": float("-inf"), "attempt": 2}] and after == path.stat().st_size


def test_following_waits_for_a_torn_line_wherever_it_is_cut(path):
    write(path, {"step": 1, "text": "a"}, {"step": 2, "text": "ü\nb"})
    raw = path.read_bytes()
    for cut in range(len(raw) + 1):
        path.write_bytes(raw[:cut])
        first, offset, _ = log.read_log_from(path, 0)
        path.write_bytes(raw)
        second, end, damaged = log.read_log_from(path, offset)
        assert [record["step"] for record in [*first, *second]] == [1, 2] and (end, damaged) == (len(raw), 0)


def test_following_counts_damaged_lines_and_goes_on_behind_them(path):
    write(path, {"step": 1}, {"step": 2}, {"step": 3})
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step":7') + b"\n[]\n")
    records, offset, damaged = log.read_log_from(path, 0)
    assert [record["step"] for record in records] == [1, 3]
    assert damaged == 3 and offset == path.stat().st_size
