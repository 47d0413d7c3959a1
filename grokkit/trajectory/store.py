"""Probe sets, readings and attributions as checksummed files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from grokkit.config.schedule import as_step
from grokkit.errors import DamagedError, TrajectoryError
from grokkit.names import ProbeSet, Reading
from grokkit.trajectory import checksummed

_IDENTITY = re.compile(r"[^.].*-[0-9a-f]+|\w+", re.DOTALL)


def step_file_name(step: int) -> str:
    """Return `000000012000.h5` for step 12000: the names sort in the order of the steps."""
    return f"{as_step(step):012d}.h5"


def list_steps(folder: Path) -> list[int]:
    """Return the steps that have a file in `folder`, ascending; ignore other file names. Raises as `list_names`."""
    return sorted(step for name in list_names(folder) if (step := checksummed.parse_step(name)) is not None)


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; empty if it does not exist. Raises TrajectoryError if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TrajectoryError(f"{folder} cannot be read: {error.strerror or error}") from error


def list_identities(folder: Path) -> list[str]:
    """Return the names of the folders of measures or attributions, sorted: `<name>-<hex digits>`, or the name alone for
    attributions of older versions. Raises as `list_names`."""
    return [name for name in list_names(folder) if _IDENTITY.fullmatch(name) and os.path.isdir(folder / name)]


def find_identity(folder: Path, name: str, step: int) -> Path:
    """Return the folder of the measure or attribution in `folder` with this identity, or with this name if only one of
    that name has a result at `step`.

    Raises:
        TrajectoryError: there is none, or there are several; the message lists what there is.
    """
    if _IDENTITY.fullmatch(name) and (folder / name / step_file_name(step)).exists():
        return folder / name
    known = list_identities(folder) if folder.is_dir() else []
    candidates = [name] if name in known else [each for each in known if each.rpartition("-")[0] == name]
    if not candidates:
        raise TrajectoryError(f"{folder} has no {name!r}; it has {', '.join(known) or 'nothing'}")
    with_step = [each for each in candidates if step in list_steps(folder / each)]
    if len(with_step) > 1:
        raise TrajectoryError(
            f"{folder} has {len(with_step)} of {name!r} at step {step}, which differ in their parameters or probe "
            f"sets; give one of {', '.join(with_step)}"
        )
    if not with_step:
        steps = sorted({known_step for each in candidates for known_step in list_steps(folder / each)})
        nearest = min(steps, key=lambda known_step: abs(known_step - step), default="none")
        raise TrajectoryError(
            f"{folder} has {', '.join(candidates)}, but not at step {step}; the nearest step is {nearest}"
        )
    return folder / with_step[0]


def list_probe_files(folder: Path) -> list[Path]:
    """Return the files that may be probe sets; the manifest lists those of the run."""
    return [folder / name for name in list_names(folder) if name.endswith(".h5") and not name.startswith(".")]


def iter_result_files(run: Path, unreadable: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield path below the run and kind of every file that writers of the run publish, except probe sets.

    Args:
        run: its folder.
        unreadable: if given, the message about a folder that cannot be read is appended here, and the others follow.

    Raises:
        TrajectoryError: a folder cannot be read, and `unreadable` is None.
    """

    def list_folder(list_entries: Callable[[Path], list[Any]], folder: str) -> list[Any]:
        try:
            return list_entries(run / folder)
        except TrajectoryError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
            return []

    yield from ((f"resume/{name}", "resume") for name in list_folder(list_names, "resume") if name in ("0.h5", "1.h5"))
    folders = [("snapshots", "snapshot")]
    for parent, kind in (("measures", "reading"), ("attributions", "attribution")):
        folders += [(f"{parent}/{name}", kind) for name in list_folder(list_identities, parent)]
    for folder, kind in folders:
        yield from ((f"{folder}/{step_file_name(step)}", kind) for step in list_folder(list_steps, folder))


def make_identity(name: str, settings: Mapping[str, Any], probes: Iterable[ProbeSet]) -> str:
    """Return `<name>-<8 hex digits>` of parameters and probe sets: readings with one identity are comparable."""
    content = [name, dict(settings), [[probe.name, probe.hash] for probe in probes]]
    return f"{name}-{hashlib.sha256(checksummed.canonical_json(content)).hexdigest()[:8]}"


def write_probes(folder: Path, probe: ProbeSet) -> None:
    """Write one probe set to `<folder>/<name>.h5`."""
    arrays = {"images": probe.images, "labels": probe.labels, "indices": probe.indices}
    meta = {"name": probe.name, "source": probe.source, "hash": probe.hash}
    checksummed.write(folder / f"{probe.name}.h5", "probes", arrays, meta)


def read_probes(folder: Path, names: Iterable[str] | None = None) -> dict[str, ProbeSet]:
    """Read the probe sets in `names`, or all, by name, in the order `train`, `test`, others."""
    sets = {}
    for path in list_probe_files(folder) if names is None else [folder / f"{name}.h5" for name in names]:
        arrays, meta = checksummed.read(path, "probes")
        with _require_valid_content(path):
            sets[meta["name"]] = ProbeSet(name=meta["name"], source=meta["source"], **arrays)
    order = {"train": 0, "test": 1}
    return {name: sets[name] for name in sorted(sets, key=lambda name: (order.get(name, 2), name))}


def write_reading(folder: Path, step: int, reading: Reading) -> str:
    """Write the reading of one step to the folder of its measure, whose name is the identity, and return the digest."""
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
    """Read the reading of one step."""
    path = folder / step_file_name(step)
    arrays, meta = checksummed.read(path, "reading")
    with _require_valid_content(path):
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
    """Write the maps of a method at one step: `values` (image, channel, height, width), target `labels` (image,),
    metadata; return the digest."""
    arrays, metadata = {"values": values, "labels": labels}, {**meta, "step": step, "identity": folder.name}
    return checksummed.write(folder / step_file_name(step), "attribution", arrays, metadata)


def read_attribution(folder: Path, step: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Read values, target labels and metadata of one step."""
    path = folder / step_file_name(step)
    arrays, meta = checksummed.read(path, "attribution")
    meta.pop("identity", None)
    with _require_valid_content(path):
        return arrays["values"], arrays["labels"], meta


@contextmanager
def _require_valid_content(path: Path) -> Iterator[None]:
    """Raise DamagedError if a file with a valid digest has metadata or arrays that no writer produces."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: its content is not valid for its kind ({error})") from error
