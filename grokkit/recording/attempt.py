"""What a new attempt at a run looks at before it writes: is all as it was left, and what goes on with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from grokkit.device.preserved_state import device_of
from grokkit.device.select import describe_device, describe_environment
from grokkit.errors import DataError, GrokkitError, TrajectoryError, UsageError
from grokkit.trajectory import manifest, modifications
from grokkit.trajectory.documents import read_config, read_environment
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.manifest import Manifest
from grokkit.trajectory.recover import move_aside, recover


def clear_path(path: Path, overwrite: bool) -> None:
    """Move a run that is at `path` aside where that is asked for, and warn where to."""
    kept = move_aside(path) if overwrite else None
    if kept is not None:
        warnings.warn(f"the run that was at {path} lies at {kept} now", stacklevel=3)


@contextmanager
def released_on_failure(lock: RunLock, *, fresh: bool) -> Iterator[None]:
    """Give a run's lock back where the block fails; where it is `fresh`, with the folder, in which nothing is yet."""
    try:
        yield
    except BaseException:
        lock.remove_folder() if fresh else lock.close()
        raise


def check_and_recover(path: Path, status: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Hold a run against its manifest, and make it fit to be gone on with; the caller holds its lock.

    Args:
        path: of the run.
        status: its status.

    Returns:
        What is not as a writer left it, and what was put aside, in sentences.

    Raises:
        TrajectoryError: choices, environment or probe images are others than at the start, so that another run would
            come of it; or a file is in use or cannot be read.
    """
    durable = status.get("manifest") or 0
    told = manifest.repair(path, durable)
    known = manifest.read_manifest(path)
    require_unchanged(path, known)
    _require_own_states(path, known)
    told += manifest.add_cut(path, known, durable) + modifications.find_remarks(path, known)
    for name in modifications.find_missing(path, known):
        if known.files[name]["kind"] == "resume":  # the next state may well get another name
            manifest.add_gone(path, name)
    if status.get("manifest") is None:  # a version without manifests has written since: its files have no lines
        known.ended = {}
    return told, recover(path, known)


def _require_own_states(path: Path, known: Manifest) -> None:
    """Raise TrajectoryError where all resume states are of one run and the manifest is of another: one of the two was
    copied here, and nobody knows which."""
    ids = manifest.read_state_ids(path)
    if ids and known.began["run"] not in ids:
        raise TrajectoryError(
            f"{path / manifest.MANIFEST_FILE} and the states in {path / 'resume'} are of two runs: put back what "
            "belongs here"
        )


def require_unchanged(path: Path, known: Manifest | None = None) -> None:
    """Raise TrajectoryError where choices, environment or probe images are others than the run began with, or cannot
    be read, or where its manifest no longer says which they were."""
    known = known or manifest.read_manifest(path)
    if not known.began and (path / manifest.MANIFEST_FILE).exists():
        raise TrajectoryError(
            f"{path / manifest.MANIFEST_FILE} does not say how the run began: put it back, or remove it to take "
            "all as it is"
        )
    if known.began.get("config") is not None:
        read_config(path / "config.toml")
    if known.began.get("environment") is not None:
        read_environment(path / "environment.json")
    if found := modifications.find_modifications(path, known):
        raise TrajectoryError("; ".join([*found, "that would be another run: put it back, or begin a new one"]))


@contextmanager
def report_modifications(path: Path) -> Iterator[None]:
    """Add to an error about choices or data what was changed of them since the run began, which may well be its reason.
    Where choices are of another form than any that a run begins with, the changes are the error."""
    try:
        yield
    except (UsageError, DataError) as error:
        if found := modifications.find_modifications(path):
            raise type(error)("; ".join([str(error), *found])) from error
        raise
    except GrokkitError:
        raise
    except Exception:
        require_unchanged(path)
        raise


def begin_attempt(model: nn.Module) -> dict[str, Any]:
    """Versions and device of this attempt, for the event that begins it."""
    now = describe_environment(describe_device(device_of(model)))
    return {name: now[name] for name in ("versions", "device", "python")}
