"""Prepare a run folder for a new attempt at writing it: refuse a run that was modified since it began, quarantine
damaged files, and release the lock on failure."""

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
from grokkit.trajectory.recover import recover, rename_existing_run


def clear_path(path: Path, overwrite: bool) -> None:
    """Move an existing run at `path` out of the way if `overwrite`, and warn about its new path."""
    new_path = rename_existing_run(path) if overwrite else None
    if new_path is not None:
        warnings.warn(f"the existing run at {path} was moved to {new_path}", stacklevel=3)


@contextmanager
def release_on_failure(lock: RunLock, *, fresh: bool) -> Iterator[None]:
    """Release the run's lock if the block fails; if the run is `fresh`, remove its folder too, which is still empty."""
    try:
        yield
    except BaseException:
        lock.remove_folder() if fresh else lock.close()
        raise


def check_and_recover(path: Path, status: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compare a run with its manifest and prepare it for resuming; the caller holds its lock.

    Args:
        path: the run folder.
        status: the content of its status.json.

    Returns:
        Messages about files that changed since a writer left them, and messages about quarantined files.

    Raises:
        TrajectoryError: config, environment or probe images differ from the run's start, so that resuming would give
            another run; or a file is in use or cannot be read.
    """
    synced_bytes = status.get("manifest") or 0
    changes = manifest.prepare_for_resume(path, synced_bytes)
    manifest_lines = manifest.read_manifest(path)
    require_unchanged(path, manifest_lines)
    _require_matching_states(path, manifest_lines)
    changes += manifest.add_lost_lines(path, manifest_lines, synced_bytes) + modifications.find_other_changes(
        path, manifest_lines
    )
    for name in modifications.find_missing(path, manifest_lines):
        if manifest_lines.files[name]["kind"] == "resume":  # the next resume state may get another name
            manifest.add_missing(path, name)
    if status.get("manifest") is None:  # a version without manifests wrote since: its files are not listed
        manifest_lines.ended = {}
    return changes, recover(path, manifest_lines)


def _require_matching_states(path: Path, manifest_lines: Manifest) -> None:
    """Raise TrajectoryError if there are resume states and none of them belongs to the manifest's run."""
    # One of the two was copied here, and it cannot be known which.
    ids = manifest.read_state_ids(path)
    if ids and manifest_lines.began["run"] not in ids:
        raise TrajectoryError(
            f"{path / manifest.MANIFEST_FILE} and the resume states in {path / 'resume'} belong to two different runs: "
            "restore the files of this run"
        )


def require_unchanged(path: Path, manifest_lines: Manifest | None = None) -> None:
    """Raise TrajectoryError if config, environment or probe images differ from the run's start or cannot be read, or if
    the manifest no longer records them."""
    manifest_lines = manifest_lines or manifest.read_manifest(path)
    if not manifest_lines.began and (path / manifest.MANIFEST_FILE).exists():
        raise TrajectoryError(
            f"{path / manifest.MANIFEST_FILE} does not record how the run began: restore it, or remove it to accept "
            "all files in their present state"
        )
    if manifest_lines.began.get("config") is not None:
        read_config(path / "config.toml")
    if manifest_lines.began.get("environment") is not None:
        read_environment(path / "environment.json")
    if changes := modifications.find_modifications(path, manifest_lines):
        raise TrajectoryError(
            "; ".join([*changes, "resuming would give another run: undo the change, or start a new run"])
        )


@contextmanager
def append_modifications_to_error(path: Path) -> Iterator[None]:
    """Append the changes to config and data since the run began to an error about them, as its likely cause.

    If the config cannot be parsed at all (an exception that is no GrokkitError), the changes are raised as the error.
    """
    try:
        yield
    except (UsageError, DataError) as error:
        if changes := modifications.find_modifications(path):
            raise type(error)("; ".join([str(error), *changes])) from error
        raise
    except GrokkitError:
        raise
    except Exception:
        require_unchanged(path)
        raise


def describe_attempt(model: nn.Module) -> dict[str, Any]:
    """Return versions and device of this attempt, for its first event."""
    environment = describe_environment(describe_device(device_of(model)))
    return {name: environment[name] for name in ("versions", "device", "python")}
