"""Hold two golden sets against each other: `python -m tests.golden.compare BEFORE AFTER`; exit 1 where they differ.

Every array, dtype, attribute and metadata field of every HDF5 file, every table row, log record and computed number
has to be equal to the bit. What a log says in words, times, versions of the machine and the run's random id are not
compared.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

NAMES: Mapping[str, str] = {}
"""Old name -> new name, of files, arrays and fields; the only thing that may be edited here, by adding pairs."""

WORDS = ("text", "reason")
VARYING = ("time", "crc", "updated", "seconds", "costs", "run", "digest", "versions", "git", "save_seconds")
"""Fields that no two runs of one config share."""


def differences(before: Path, after: Path) -> list[str]:
    """One sentence for each file, array or row that is not the same."""
    old, new = ({str(path.relative_to(root)) for path in root.rglob("*") if _counts(path)} for root in (before, after))
    renamed = {NAMES.get(name, name): name for name in old}
    found = [f"{name} is missing" for name in sorted(renamed.keys() - new)]
    found += [f"{name} is new" for name in sorted(new - renamed.keys())]
    for name in sorted(renamed.keys() & new):
        found += [f"{name}: {told}" for told in _of_file(before / renamed[name], after / name)]
    return found


def _counts(path: Path) -> bool:
    return path.suffix in (".h5", ".jsonl", ".csv", ".npz", ".toml", ".json", ".py")


def _of_file(before: Path, after: Path) -> Iterator[str]:
    read = {".h5": _of_hdf5, ".jsonl": _of_log, ".csv": _of_table, ".npz": _of_npz, ".json": _of_json}
    look = read.get(before.suffix, _of_text)
    yield from _unequal(look(before), look(after))


def _unequal(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    renamed = {NAMES.get(name, name): value for name, value in before.items()}
    for name in sorted(renamed.keys() | after.keys()):
        if name not in after or name not in renamed:
            yield f"{name} is {'new' if name in after else 'missing'}"
        elif not _is_same(renamed[name], after[name]):
            yield f"{name} was {renamed[name]!r:.200} and is {after[name]!r:.200}"


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return type(one) is type(other) and one == other


def _of_hdf5(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        found |= {f"attribute {name}": value for name, value in file.attrs.items()}
        file.visititems(lambda name, each: found.update({name: each[()]}) if isinstance(each, h5py.Dataset) else None)
    found.pop("digest")
    note = found.pop("meta")
    return found | {f"metadata {key}": value for key, value in _plain(json.loads(note.tobytes())).items()}


def _of_npz(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


def _of_log(path: Path) -> dict[str, Any]:
    return {str(number): _plain(json.loads(line)) for number, line in enumerate(path.read_text().splitlines())}


def _of_table(path: Path) -> dict[str, Any]:
    with open(path, newline="") as file:
        return {str(number): row for number, row in enumerate(csv.reader(file))}


def _of_json(path: Path) -> dict[str, Any]:
    return _plain(json.loads(path.read_text()))


def _of_text(path: Path) -> dict[str, Any]:
    return {"text": path.read_text()}


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in (*WORDS, *VARYING)}


def main() -> int:
    """Print what differs."""
    found = differences(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(found) or "equal")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
