"""The run folder: made in one rename, read without a lock, on any machine."""

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
from grokkit.trajectory.checksummed import fsync_dir, mkdir_durable, write_atomic
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
    held: bool = False,
) -> RunLock | None:
    """Make a run folder that is complete from the moment it can be seen.

    Args:
        path: where the run goes; must not exist.
        config: the run's choices as TOML.
        environment: versions, device and precision.
        probes, status: probe sets to store, and the first content of status.json.
        experiment: source text of the experiment, kept as experiment.py.
        held: whether it is locked from its first moment on; then the lock is returned.

    Raises:
        TrajectoryError: the folder exists, or cannot be made.
    """
    if os.path.lexists(path):
        raise TrajectoryError(
            f"{path} exists already; a run is never overwritten. Resume it, remove it, or choose another seed, name or "
            "--runs; in Python, overwrite=True moves it aside"
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
        write_atomic(draft / manifest.MANIFEST_FILE, manifest.begin_record(draft))
        write_status(draft, **status)
        lock = RunLock(draft) if held else None
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
    """Give a draft the run's name; another process may have taken it meanwhile."""
    try:
        draft.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise TrajectoryError(f"{path} exists already: another process has just made it") from error
        raise TrajectoryError(f"could not make {path}: {error.strerror or error}; nothing was changed") from error


def to_path(path: str | Path) -> Path:
    """An absolute path, with `~` expanded: where it comes in, so that a change of directory changes nothing.

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
    write_atomic(path / "status.json", text.encode(), make=False)  # a run that was removed is not to come back


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading. Raises TrajectoryError where there is none."""
    return Run(to_path(path))


class Run:
    """A run folder, read only. Everything is read when asked for, so a live run can be followed by asking again.

    Args:
        path: a folder with a status.json. What stands in it is checked when it is asked for: an odd run can be opened,
            named and verified.
    """

    def __init__(self, path: Path) -> None:
        if not os.path.lexists(path / "status.json"):
            raise TrajectoryError(f"{path} is not a run folder: it holds no status.json. `grokkit ls` lists runs")
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
        """The stored choices, checked (`documents.read_config`); `seed` is always among them."""
        return documents.read_config(self.path / "config.toml")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device and precision of the machine that made the run, checked (`documents.read_environment`)."""
        return documents.read_environment(self.path / "environment.json")

    @property
    def status(self) -> dict[str, Any]:
        """How the run stands: `state`, `step`, `total_steps`, `attempt`, `reason`, `updated`; `costs`: seconds of
        training and of each instrument, `seconds`: their sum, `price`: dollars an hour, `spent`: dollars; checked, see
        `documents.read_status`."""
        return documents.read_status(self.path / "status.json")

    @property
    def state(self) -> str:
        """The state in status.json, or `killed` where that says `running` and no process holds the run."""
        state = str(self.status["state"])
        if state not in ("starting", "running"):
            return state
        documents.refuse_irregular(self.path / "LOCK")
        return state if is_held(self.path) else "killed"

    def steps(self) -> list[int]:
        """Steps that have a snapshot, ascending; 0 holds the initial weights."""
        return store.list_steps(self.path / "snapshots")

    def load(self, step: int, names: Iterable[str] | None = None, *, verify: bool = True) -> dict[str, Tensor]:
        """Weights and buffers at `step`: name -> CPU tensor; only `names` where given.

        Args:
            step: one of `steps()`.
            names: only these.
            verify: hold what is read against its digest or checksum. Without it a whole state is mapped into memory:
                nothing is read before it is used; what is written to it stays in memory.

        Raises:
            TrajectoryError: no snapshot at this step, a damaged file, or an unknown name.
        """
        from grokkit.trajectory import snapshot

        return snapshot.read_snapshot(self._snapshot(step), names, verify=verify)

    def _snapshot(self, step: int) -> Path:
        path = self.path / "snapshots" / store.step_file_name(step)
        if not path.exists():
            near = min(self.steps(), key=lambda known: abs(known - step), default=None)
            raise TrajectoryError(f"{self.path} has no snapshot at step {step}; the nearest is {near}")
        return path

    def iter_snapshots(
        self, steps: Iterable[int] | None = None, names: Iterable[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Step and state of one snapshot after the other, of all or of `steps`; see `load`."""
        wanted = None if names is None else list(names)
        for step in self.steps() if steps is None else steps:
            yield step, self.load(step, wanted)

    def trajectory(
        self,
        name: str,
        steps: Iterable[int] | None = None,
        index: int | slice | None = None,
        *,
        out: Tensor | None = None,
        verify: bool = True,
    ) -> Tensor:
        """One tensor at every snapshot, or at `steps`: (T, *shape) on the CPU.

        Args:
            name: of the weight or buffer.
            steps: only these.
            index: only these of its first dimension, such as one unit's weights.
            out: memory to read into, of the shape and dtype of what is returned.
            verify: hold each against its checksum, where all of it is read.

        Raises:
            TrajectoryError: no snapshot, a damaged file, an unknown name, or one that changes its shape.
        """
        from grokkit.trajectory import tensor_series

        place = self.path / "snapshots"  # of its own steps none is looked for again
        files = (
            [place / store.step_file_name(s) for s in self.steps()] if steps is None else [*map(self._snapshot, steps)]
        )
        if not files:
            raise TrajectoryError(f"{self.path} has no snapshots")
        return tensor_series.read_series(files, name, index, out=out, verify=verify)

    def follow(self, timeout: float = 60.0, poll: float = 0.5) -> Iterator[int]:
        """Steps of the snapshots, those that are there and those that come, until the run ends.

        Args:
            timeout: seconds without a new one after which it ends, too.
            poll: seconds between two looks.
        """
        seen, news = -1, time.monotonic()
        while True:
            going = self.state == "running" or self.status["state"] == "starting"  # not locked yet
            new = [step for step in self.steps() if step > seen]
            for seen in new:
                yield seen
            news = time.monotonic() if new else news
            if not new and (not going or time.monotonic() - news > timeout):
                return
            if not new:
                time.sleep(poll)

    def to_safetensors(self, step: int, path: str | Path) -> None:
        """Write the state at `step` as a safetensors file, which must not exist."""
        from grokkit.trajectory.pack import to_safetensors

        to_safetensors(self, step, to_path(path))

    def pack(self, path: str | Path, steps: Iterable[int] | None = None) -> None:
        """Write all snapshots, or those at `steps`, as one compressed HDF5 file with time in front; see
        `grokkit.trajectory.pack`."""
        from grokkit.trajectory.pack import pack

        pack(self, to_path(path), steps)

    @property
    def probes(self) -> dict[str, ProbeSet]:
        """The probe sets that the run began with, by name."""
        return store.read_probes(self.path / "probes", manifest.read_beginning(self.path).get("probes"))

    @property
    def metrics(self) -> pd.DataFrame:
        """Tidy frame of run, seed, step, split, metric, value; of a repeated step the newest attempt counts."""
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
        """The last value of every metric, by `<split>.<metric>`; needs no pandas."""
        newest: dict[str, float] = {}
        for record in log.read_log(self.path / "metrics.jsonl", documents.parse_metric):
            newest[f"{record['split']}.{record['metric']}"] = record["value"]
        return newest

    @property
    def events(self) -> list[dict[str, Any]]:
        """Decisions and incidents in order: dicts with `step`, `kind`, `text` and the event's own fields.

        A resumed run takes the steps after its slot again: policy decisions of an older attempt beyond it are left out.
        """
        return effective_events(log.read_log(self.path / "events.jsonl", documents.parse_event))

    def measures(self) -> dict[str, list[int]]:
        """Measure identity -> steps that have a reading."""
        return self._results("measures")

    def reading(self, measure_id: str, step: int) -> Reading:
        """One stored reading."""
        return store.read_reading(self.path / "measures" / measure_id, step)

    def readings(self) -> Iterator[tuple[str, int, Reading]]:
        """Every stored reading with its measure's identity and step."""
        for measure_id, steps in self.measures().items():
            for step in steps:
                yield measure_id, step, self.reading(measure_id, step)

    def attributions(self) -> dict[str, list[int]]:
        """Attribution identity -> steps that have maps."""
        return self._results("attributions")

    def attribution(self, identity: str, step: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Values (image, channel, height, width), target labels (image,) and settings at one step."""
        return store.read_attribution(self.path / "attributions" / identity, step)

    def _results(self, room: str) -> dict[str, list[int]]:
        folder = self.path / room
        return {name: store.list_steps(folder / name) for name in store.list_identities(folder)}

    def verify(self) -> list[str]:
        """Check every file against its digest, its name and the manifest, every log line against its checksum, and the
        choices against those that the run began with.

        Returns:
            One sentence per problem; an empty list means that all is well, as far as the manifest knows (`unlisted`).
        """
        found, status = [], dict[str, Any]()
        with suppress(TrajectoryError):
            status = self.status  # before the manifest, which grows
        for name in ("config", "environment", "status"):
            try:
                getattr(self, name)
            except TrajectoryError as error:
                found.append(str(error))
        found += verify.find_problems(self.path, status)
        for name, check in (("metrics.jsonl", documents.parse_metric), ("events.jsonl", documents.parse_event)):
            try:
                damaged = log.find_damaged_lines(self.path / name, check)
                found += [f"line {number} of {self.path / name} is damaged" for number in damaged]
            except TrajectoryError as error:
                found.append(str(error))
        return list(dict.fromkeys(found))

    def unlisted(self) -> list[str]:
        """Files of which the manifest does not speak, by their path below the run: published just before a kill, by an
        older version of grokkit, or put there by somebody. Raises TrajectoryError where the manifest cannot be read."""
        return manifest.find_unlisted(self.path)


def effective_events(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events without the policy decisions that a resumed run has taken back, see `Run.events`."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["kind"] in ("resumed", "restarted"):
            last = event["step"] if event["kind"] == "resumed" else -1
            kept = [e for e in kept if e["step"] <= last or e["kind"] != "policy"]
        kept.append(event)
    return kept


def find_runs(root: str | Path) -> list[Run]:
    """Every run below `root`, or `root` itself if it is one, sorted by name; also those that cannot be read."""
    root = to_path(root)
    near = _folders(root)
    found = {path for folder in near for path in (folder, *_folders(folder)) if _is_run(path)}
    found = {path for path in found if not path.name.startswith(".")}  # drafts
    if _is_run(root) and (os.path.lexists(root / "config.toml") or not found):
        return [Run(root)]
    runs = []
    for path in sorted(found):
        with suppress(TrajectoryError):  # removed between two looks
            runs.append(Run(path))
    return runs


def _folders(path: Path) -> list[Path]:
    try:
        return [folder for folder in path.iterdir() if os.path.isdir(folder)]
    except OSError:
        return []


def _is_run(path: Path) -> bool:
    return os.path.lexists(path / "status.json")
