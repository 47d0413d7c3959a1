"""Probe sets, readings and attributions as sealed files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from grokkit.errors import DamagedError, TrajectoryError
from grokkit.names import ProbeSet, Reading
from grokkit.trajectory import checksummed

_IDENTITY = re.compile(r"[^.].*-[0-9a-f]+|\w+", re.DOTALL)


def step_file_name(step: int) -> str:
    """`000000012000.h5`: sorts as text in the order of steps."""
    return f"{step:012d}.h5"


def list_steps(folder: Path) -> list[int]:
    """Steps that have a file in `folder`, ascending; files of other names are nobody's but the person's who put them
    there. Raises as `list_names`."""
    return sorted(step for name in list_names(folder) if (step := checksummed.parse_step(name)) is not None)


def list_names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where it is not there. Raises TrajectoryError where it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TrajectoryError(f"{folder} cannot be read: {error.strerror or error}") from error


def list_identities(folder: Path) -> list[str]:
    """Folders of measures and attributions by their names, sorted: `<name>-<hex digits>`, or the name alone, as older
    versions called those of attributions. Raises as `list_names`."""
    return [name for name in list_names(folder) if _IDENTITY.fullmatch(name) and os.path.isdir(folder / name)]


def list_probe_files(folder: Path) -> list[Path]:
    """Files that may be probe sets; which of them a run began with its manifest says."""
    return [folder / name for name in list_names(folder) if name.endswith(".h5") and not name.startswith(".")]


def result_folders(run: Path, unreadable: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """Path below the run and kind of every file that its writers publish, but the probes. A folder that cannot be read
    raises TrajectoryError; where a list `unreadable` is given it is noted there, and the others are looked at."""

    def names(look: Callable[[Path], list[Any]], folder: str) -> list[Any]:
        try:
            return look(run / folder)
        except TrajectoryError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
            return []

    yield from ((f"resume/{name}", "resume") for name in names(list_names, "resume") if name in ("0.h5", "1.h5"))
    folders = [("snapshots", "snapshot")]
    for room, kind in (("measures", "reading"), ("attributions", "attribution")):
        folders += [(f"{room}/{name}", kind) for name in names(list_identities, room)]
    for folder, kind in folders:
        yield from ((f"{folder}/{step_file_name(step)}", kind) for step in names(list_steps, folder))


def make_identity(name: str, settings: Mapping[str, Any], probes: Iterable[ProbeSet]) -> str:
    """`<name>-<8 hex digits>` of the parameters and the probe sets: two readings with one identity are comparable."""
    content = [name, dict(settings), [[probe.name, probe.hash] for probe in probes]]
    return f"{name}-{hashlib.sha256(checksummed.canonical_json(content)).hexdigest()[:8]}"


def write_probes(folder: Path, probe: ProbeSet) -> None:
    """Store one probe set as `<folder>/<name>.h5`."""
    arrays = {"images": probe.images, "labels": probe.labels, "indices": probe.indices}
    meta = {"name": probe.name, "source": probe.source, "hash": probe.hash}
    checksummed.write(folder / f"{probe.name}.h5", "probes", arrays, meta)


def read_probes(folder: Path, names: Iterable[str] | None = None) -> dict[str, ProbeSet]:
    """Stored probe sets by name, in the order `train`, `test`, others: those of these `names`, or all."""
    sets = {}
    for path in list_probe_files(folder) if names is None else [folder / f"{name}.h5" for name in names]:
        arrays, meta = checksummed.read(path, "probes")
        with _require_written_form(path):
            sets[meta["name"]] = ProbeSet(name=meta["name"], source=meta["source"], **arrays)
    order = {"train": 0, "test": 1}
    return {name: sets[name] for name in sorted(sets, key=lambda name: (order.get(name, 2), name))}


def write_reading(folder: Path, step: int, reading: Reading) -> str:
    """Store the reading of one step in the folder of its measure, which has the name of its identity; the digest."""
    bounds = {"low": reading.low, "high": reading.high}
    arrays = {"values": reading.values} | {name: array for name, array in bounds.items() if array is not None}
    meta = {
        "measure": reading.measure,
        "step": step,
        "dims": reading.dims,
        "unit": reading.unit,
        "n": reading.n,
        "coords": {dim: list(labels) for dim, labels in reading.coords.items()},
        "settings": dict(reading.settings),
        "identity": folder.name,
    }
    return checksummed.write(folder / step_file_name(step), "reading", arrays, meta)


def read_reading(folder: Path, step: int) -> Reading:
    """The reading of one step."""
    path = folder / step_file_name(step)
    arrays, meta = checksummed.read(path, "reading")
    with _require_written_form(path):
        count = meta["n"] if isinstance(meta["n"], int) else tuple(meta["n"])
        return Reading(
            measure=meta["measure"],
            values=arrays["values"],
            dims=tuple(meta["dims"]),
            coords=meta["coords"],
            unit=meta["unit"],
            n=count,
            low=arrays.get("low"),
            high=arrays.get("high"),
            settings=meta["settings"],
        )


def write_attribution(folder: Path, step: int, values: np.ndarray, labels: np.ndarray, meta: Mapping[str, Any]) -> str:
    """Store a method's maps at one step: `values` (image, channel, height, width), target `labels` (image,), note; the
    digest."""
    arrays, told = {"values": values, "labels": labels}, {**meta, "step": step, "identity": folder.name}
    return checksummed.write(folder / step_file_name(step), "attribution", arrays, told)


def read_attribution(folder: Path, step: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Values, target labels and the note of one step."""
    path = folder / step_file_name(step)
    arrays, meta = checksummed.read(path, "attribution")
    meta.pop("identity", None)
    with _require_written_form(path):
        return arrays["values"], arrays["labels"], meta


@contextmanager
def _require_written_form(path: Path) -> Iterator[None]:
    """Raise DamagedError for a file whose digest holds, and whose note or arrays are not those that a writer makes."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: it is no such file as grokkit writes ({error})") from error
