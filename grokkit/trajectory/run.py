"""The run folder: created in one rename, readable without a lock on any machine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grokkit.errors import TrajectoryError, UsageError
from grokkit.names import ProbeSet, Reading
from grokkit.trajectory import documents, log, manifest, store, verify
from grokkit.trajectory.durable import fsync_dir, mkdir_durable, write_atomic
from grokkit.trajectory.lock import RunLock, is_held

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


def create_run(
    path: Path,
    *,
    config: str,
    environment: Mapping[str, Any],
    probes: Iterable[ProbeSet],
    status: Mapping[str, Any],
    experiment: str | None = None,
    locked: bool = False,
) -> RunLock | None:
    """Create a run folder that is complete as soon as it is visible.

    Args:
        path: of the run; must not exist.
        config: the run's configuration as TOML.
        environment: versions, device and precision.
        probes, status: probe sets to store, and the first content of status.json.
        experiment: source text of the experiment (not its name or path), stored as experiment.py.
        locked: lock the folder before it is visible, and return the lock.

    Raises:
        TrajectoryError: the folder exists, or cannot be created.
    """
    if os.path.lexists(path):
        raise TrajectoryError(
            f"{path} already exists; a run is never overwritten. Resume it, remove it, or choose another seed, name or "
            "--runs; in Python, overwrite=True renames the existing run"
        )
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    lock = None
    try:
        _make_draft(draft)
        write_atomic(draft / "config.toml", config.encode())
        write_atomic(draft / "environment.json", json.dumps(environment, indent=1).encode())
        if experiment is not None:
            write_atomic(draft / "experiment.py", experiment.encode())
        for probe in probes:
            store.write_probes(draft / "probes", probe)
        write_atomic(draft / manifest.MANIFEST_FILE, manifest.encode_beginning(draft))
        write_status(draft, **status)
        lock = RunLock(draft) if locked else None
        _rename_draft(draft, path)
    except BaseException:
        if lock is not None:
            lock.close()
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    fsync_dir(path.parent)
    if lock is not None:
        lock.set_folder(path)
    return lock


def _make_draft(draft: Path) -> None:
    try:
        mkdir_durable(draft.parent)
        draft.mkdir()
    except OSError as error:
        raise TrajectoryError(f"{draft.parent} cannot hold a run: {error.strerror or error}") from error


def _rename_draft(draft: Path, path: Path) -> None:
    """Rename a draft to the run's name, which another process may have taken meanwhile."""
    try:
        draft.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise TrajectoryError(f"{path} already exists: another process has just created it") from error
        raise TrajectoryError(f"could not create {path}: {error.strerror or error}; nothing was changed") from error


def to_path(path: str | Path) -> Path:
    """Convert to an absolute path with `~` expanded, so that a later change of directory has no effect.

    Raises:
        UsageError: `~name` of a user that this machine does not know.
    """
    try:
        return (Path(path).expanduser() if os.fspath(path).startswith("~") else Path(path)).absolute()
    except RuntimeError as error:
        raise UsageError(f"{path}: {error}") from error


def write_status(path: Path, **fields: Any) -> None:
    """Replace status.json; `updated` is added."""
    text = json.dumps({**fields, "updated": time.time()}, indent=1)
    write_atomic(path / "status.json", text.encode(), make_parents=False)  # must not recreate a removed run


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading. Raises TrajectoryError if it is not one."""
    return Run(to_path(path))


class Run:
    """A run folder, read only. Every access reads from the disk, so a live run can be followed by repeated access.

    Args:
        path: a folder with a status.json. Its content is checked on access only: a run with invalid documents can still
            be opened, named and verified.
    """

    def __init__(self, path: Path) -> None:
        if not os.path.lexists(path / "status.json"):
            raise TrajectoryError(f"{path} is not a run folder: it has no status.json. `grokkit ls` lists runs")
        self.path = path

    def __repr__(self) -> str:
        try:
            state, snapshots = self.status["state"], len(self.steps())
        except TrajectoryError:
            return f"Run({self.name!r}, unreadable)"
        return f"Run({self.name!r}, {state}, {snapshots} snapshots)"

    @property
    def name(self) -> str:
        """`<experiment>/<variant>-s<seed>-<config hash>`: the last two parts of the path."""
        return documents.escape_surrogates("/".join(self.path.resolve().parts[-2:]))

    @property
    def config(self) -> dict[str, Any]:
        """The stored configuration, checked (`documents.read_config`); it always contains `seed`."""
        return documents.read_config(self.path / "config.toml")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device and precision of the machine that made the run, checked (`documents.read_environment`)."""
        return documents.read_environment(self.path / "environment.json")

    @property
    def status(self) -> dict[str, Any]:
        """The status of the run: `state`, `step`, `total_steps`, `attempt`, `reason`, `updated`; `costs`: seconds of
        training and of each instrument, `seconds`: their sum, `price`: dollars an hour, `spent`: dollars; checked, see
        `documents.read_status`."""
        return documents.read_status(self.path / "status.json")

    @property
    def state(self) -> str:
        """The state in status.json, or `killed` if that is `starting` or `running` and no process holds the lock."""
        state = str(self.status["state"])
        if state not in ("starting", "running"):
            return state
        documents.require_regular_file(self.path / "LOCK")
        return state if is_held(self.path) else "killed"

    def steps(self) -> list[int]:
        """Return the steps that have a snapshot, ascending; 0 holds the initial weights."""
        return store.list_steps(self.path / "snapshots")

    def load(self, step: int, names: Iterable[str] | None = None, *, verify: bool = True) -> dict[str, Tensor]:
        """Load weights and buffers at `step`: name -> CPU tensor.

        Args:
            step: one of `steps()`.
            names: only these.
            verify: check what is read against its digest or checksum. Without it a whole state is mapped into memory:
                pages are read when they are used, and writes stay in memory.

        Raises:
            TrajectoryError: no snapshot at this step, a damaged file, or an unknown name.
        """
        from grokkit.trajectory import snapshot

        return snapshot.read_snapshot(self._snapshot_path(step), names, verify=verify)

    def _snapshot_path(self, step: int) -> Path:
        path = self.path / "snapshots" / store.step_file_name(step)
        if not path.exists():
            nearest = min(self.steps(), key=lambda known: abs(known - step), default=None)
            raise TrajectoryError(f"{self.path} has no snapshot at step {step}; the nearest is {nearest}")
        return path

    def iter_snapshots(
        self, steps: Iterable[int] | None = None, names: Iterable[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield step and state of all snapshots, or of those at `steps`, one after the other; see `load`."""
        selected = None if names is None else list(names)
        for step in self.steps() if steps is None else steps:
            yield step, self.load(step, selected)

    def trajectory(
        self,
        name: str,
        steps: Iterable[int] | None = None,
        index: int | slice | None = None,
        *,
        out: Tensor | None = None,
        verify: bool = True,
    ) -> Tensor:
        """Load one tensor at every snapshot, or at `steps`: (T, *shape) on the CPU.

        Args:
            name: of the weight or buffer.
            steps: only these.
            index: only these of its first dimension, such as one unit's weights.
            out: memory to read into, of the shape and dtype of the result.
            verify: check each tensor against its checksum, if all of it is read.

        Raises:
            TrajectoryError: no snapshot, a damaged file, an unknown name, or a tensor whose shape changes.
        """
        from grokkit.trajectory import tensor_series

        folder = self.path / "snapshots"  # steps found by listing are not checked for existence again
        files = (
            [folder / store.step_file_name(s) for s in self.steps()]
            if steps is None
            else [*map(self._snapshot_path, steps)]
        )
        if not files:
            raise TrajectoryError(f"{self.path} has no snapshots")
        return tensor_series.read_series(files, name, index, out=out, verify=verify)

    def follow(self, timeout: float = 60.0, poll: float = 0.5) -> Iterator[int]:
        """Yield the steps of existing and new snapshots until the run ends.

        Args:
            timeout: seconds without a new snapshot after which iteration ends, too.
            poll: seconds between two checks.
        """
        seen, last_new = -1, time.monotonic()
        while True:
            is_live = self.state == "running" or self.status["state"] == "starting"  # maybe not locked yet
            new_steps = [step for step in self.steps() if step > seen]
            for seen in new_steps:
                yield seen
            last_new = time.monotonic() if new_steps else last_new
            if not new_steps and (not is_live or time.monotonic() - last_new > timeout):
                return
            if not new_steps:
                time.sleep(poll)

    def to_safetensors(self, step: int, path: str | Path) -> None:
        """Write the state at `step` to a safetensors file, which must not exist."""
        from grokkit.trajectory.pack import to_safetensors

        to_safetensors(self, step, to_path(path))

    def pack(self, path: str | Path, steps: Iterable[int] | None = None) -> None:
        """Write all snapshots, or those at `steps`, to one HDF5 file, time first; see `grokkit.trajectory.pack`."""
        from grokkit.trajectory.pack import pack

        pack(self, to_path(path), steps)

    @property
    def probes(self) -> dict[str, ProbeSet]:
        """The probe sets of the start of the run, by name."""
        return store.read_probes(self.path / "probes", manifest.read_beginning(self.path).get("probes"))

    @property
    def metrics(self) -> pd.DataFrame:
        """Tidy frame of run, seed, step, split, metric, value; the newest attempt counts if a step was repeated."""
        import pandas as pd

        columns = ["run", "seed", "step", "split", "metric", "value"]
        latest: dict[tuple[int, str, str], tuple[int, float]] = {}
        for record in log.read_log(self.path / "metrics.jsonl", documents.parse_metric):
            key = record["step"], record["split"], record["metric"]
            if key not in latest or record["attempt"] >= latest[key][0]:
                latest[key] = record["attempt"], record["value"]
        seed = self.config.get("seed", 0)
        rows = [(self.name, seed, *key, value) for key, (_, value) in sorted(latest.items())]
        return pd.DataFrame(rows, columns=columns)

    def newest_metrics(self) -> dict[str, float]:
        """Return the last value of every metric, by `<split>.<metric>`; does not need pandas."""
        newest: dict[str, float] = {}
        for record in log.read_log(self.path / "metrics.jsonl", documents.parse_metric):
            newest[f"{record['split']}.{record['metric']}"] = record["value"]
        return newest

    @property
    def events(self) -> list[dict[str, Any]]:
        """Decisions and incidents in order: dicts with `step`, `kind`, `text` and the event's own fields.

        A resumed run repeats the steps after its resume state: policy decisions of an earlier attempt at those steps
        are omitted.
        """
        return log.effective_events(log.read_log(self.path / "events.jsonl", documents.parse_event))

    def measures(self) -> dict[str, list[int]]:
        """Return measure identity -> steps that have a reading."""
        return self._list_results("measures")

    def reading(self, measure_id: str, step: int) -> Reading:
        """Read one stored reading, by its identity (`measures`) or by the measure's name if only one has it.

        Raises:
            TrajectoryError: there is none, or there are several; the message lists them.
        """
        return store.read_reading(store.find_identity(self.path / "measures", measure_id, step), step)

    def readings(self) -> Iterator[tuple[str, int, Reading]]:
        """Yield every stored reading with its measure's identity and step."""
        for measure_id, steps in self.measures().items():
            for step in steps:
                yield measure_id, step, self.reading(measure_id, step)

    def attributions(self) -> dict[str, list[int]]:
        """Return attribution identity -> steps that have maps."""
        return self._list_results("attributions")

    def attribution(self, identity: str, step: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Read values (image, channel, height, width), target labels (image,), settings; raises as `reading`."""
        return store.read_attribution(store.find_identity(self.path / "attributions", identity, step), step)

    def _list_results(self, subdir: str) -> dict[str, list[int]]:
        folder = self.path / subdir
        return {name: store.list_steps(folder / name) for name in store.list_identities(folder)}

    def verify(self) -> list[str]:
        """Check every file against its digest, its name and the manifest, every log line against its checksum, and the
        configuration against that of the start of the run.

        Returns:
            One message per problem; empty if there is none, as far as the manifest lists the files (`unlisted`).
        """
        problems, status = [], dict[str, Any]()
        with suppress(TrajectoryError):
            status = self.status  # before the manifest, which may grow meanwhile
        for name in ("config", "environment", "status"):
            try:
                getattr(self, name)
            except TrajectoryError as error:
                problems.append(str(error))
        problems += verify.find_problems(self.path, status)
        for name, check in (("metrics.jsonl", documents.parse_metric), ("events.jsonl", documents.parse_event)):
            try:
                damaged = log.find_damaged_lines(self.path / name, check)
                problems += [f"line {number} of {self.path / name} is damaged" for number in damaged]
            except TrajectoryError as error:
                problems.append(str(error))
        return list(dict.fromkeys(problems))

    def unlisted(self) -> list[str]:
        """Return the files that the manifest does not list, by path below the run: published just before a kill,
        written by an older version, or added by hand. Raises TrajectoryError if the manifest cannot be read."""
        return manifest.find_unlisted(self.path)


def find_runs(root: str | Path) -> list[Run]:
    """Find every run below `root`, or `root` itself if it is one, sorted by name; includes runs that cannot be read."""
    root = to_path(root)
    folders = _list_folders(root)
    paths = {path for folder in folders for path in (folder, *_list_folders(folder)) if _is_run(path)}
    paths = {path for path in paths if not path.name.startswith(".")}  # drafts
    if _is_run(root) and (os.path.lexists(root / "config.toml") or not paths):
        return [Run(root)]
    runs = []
    for path in sorted(paths):
        with suppress(TrajectoryError):  # removed since it was listed
            runs.append(Run(path))
    return runs


def _list_folders(path: Path) -> list[Path]:
    try:
        return [folder for folder in path.iterdir() if os.path.isdir(folder)]
    except OSError:
        return []


def _is_run(path: Path) -> bool:
    return os.path.lexists(path / "status.json")
