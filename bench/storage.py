"""Snapshots against `torch.save` and safetensors: write, read, one tensor through time, the stall of a save.

Wall-clock times: what a disk does is not on the processor's account.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.harness import Ratio, Row, Settings, compared, costs
from grokkit.trajectory import checksummed, snapshot, store, tensor_series
from grokkit.trajectory.durable import fsync_dir
from grokkit.trajectory.writer import Writer

State = dict[str, Tensor]
PT, ST, OURS, HASHED = "torch.save", "safetensors", "snapshot", "snapshot with its hashes"
ON_DISK = Path.home() / ".cache"


def state_of(tensors: int, *shape: int) -> State:
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{number}.weight": torch.randn(*shape, generator=generator) for number in range(tensors)}


SIZES = {"45 MB": (122, 302, 305), "0.8 MB": (6, 183, 183)}


def writing(settings: Settings) -> list[Row]:
    """One state made durable: written, fsync, renamed, folder fsync. 122 tensors of 45 MB, 6 of 0.8 MB."""
    return _written("45 MB", {ST: 1.3, PT: 0.8}, settings) + _written("0.8 MB", {ST: 1.1, PT: 0.75}, settings)


def writing_in_memory(settings: Settings) -> list[Row]:
    """The same of 45 MB on a file system in memory: what the processor has to do."""
    return _written("45 MB", {ST: 1.1, PT: 0.65}, settings, Path("/dev/shm"))


def _written(size: str, goals: Mapping[str, float], settings: Settings, root: Path = ON_DISK) -> list[Row]:
    state, numbers = state_of(*SIZES[size]), count()
    staging = snapshot.Staging()
    packed = staging.stage(state)
    arrays, attributes = packed.file_content()
    note = checksummed.pad_metadata(checksummed.canonical_json({"step": 0}))
    digest = checksummed.compute_digest("snapshot", note, arrays)
    with folder(root) as place:

        def ours() -> None:
            """The hashes are computed in the thread that writes; without them a file is compared with the others'."""
            staging.stage(state)
            checksummed.write(
                fresh(place, numbers), "snapshot", arrays, {"step": 0}, attributes=attributes, digest=digest
            )

        def hashed() -> None:
            snapshot.write_packed(fresh(place, numbers), 0, staging.stage(state))

        contenders: dict[str, Callable[[], object]] = {
            f"{size}: {OURS}": ours,
            f"{size}: {HASHED}": hashed,
            f"{size}: {PT}": lambda: save_durably(lambda path: torch.save(state, path), place, numbers),
            f"{size}: {ST}": lambda: save_durably(
                lambda path: safetensors.torch.save_file(state, path), place, numbers
            ),
        }
        seconds = _wall(contenders | {"": lambda: swept(place)}, settings)
    del seconds[""]
    ratios = [Ratio(f"{size}: {OURS}", f"{size}: {other}", goal) for other, goal in goals.items()]
    return compared(seconds, [*ratios, Ratio(f"{size}: {HASHED}", f"{size}: {ST}")], "ms")


def reading(settings: Settings) -> list[Row]:
    """One state read from files that are in the page cache, unchecked as by the others, and by the digest."""
    rows = []
    for size, goals in (("45 MB", {ST: 0.6, PT: 0.5}), ("0.8 MB", {})):
        state = state_of(*SIZES[size])
        with folder(ON_DISK) as place:
            snapshot.write_snapshot(place / "a.h5", 0, state)
            torch.save(state, place / "a.pt")
            safetensors.torch.save_file(state, place / "a.st")
            files = place / "a.h5", place / "a.pt", place / "a.st"
            contenders: dict[str, Callable[[], object]] = {
                f"{size}: {OURS}": lambda h5=files[0]: touched(snapshot.read_snapshot(h5, verify=False)),
                f"{size}: {OURS}, verified": lambda h5=files[0]: touched(snapshot.read_snapshot(h5)),
                f"{size}: torch.load": lambda pt=files[1]: touched(torch.load(pt, weights_only=True)),
                f"{size}: {ST}": lambda st=files[2]: touched(safetensors.torch.load_file(st)),
            }
            seconds = _wall(contenders, settings)
        names = {PT: "torch.load", ST: ST}
        ratios = [Ratio(f"{size}: {OURS}", f"{size}: {names[other]}", goal) for other, goal in goals.items()]
        rows += compared(seconds, ratios, "ms")
    goal = 1.5
    return [Row(row.name, row.value, row.unit, goal) if row.name == f"0.8 MB: {OURS}" else row for row in rows]


def touched(state: State) -> float:
    """Sum of a number of every page: a file that is only mapped is not read yet."""
    return sum(float(tensor.view(-1)[::1024].sum()) for tensor in state.values())


def through_time(settings: Settings) -> list[Row]:
    """One tensor at every step: 9.4 MB at 16 steps of a state of 45 MB, and 1 KB at 1,000 steps of 100 such."""
    big = state_of(15, 300, 4, 500) | {"wanted": torch.ones(512, 512, 3, 3)}
    rows = _through("9.4 MB, 16 steps", big, 16, "wanted", {ST: 0.35, PT: 0.2}, settings)
    few = Settings(max(3, settings.repetitions // 2), settings.threads)
    small = _through("1 KB, 1000 steps", state_of(100, 16, 16), 1000, "layers.50.weight", {}, few)
    return rows + [Row(r.name, r.value, r.unit, 25.0) if r.name == f"1 KB, 1000 steps: {OURS}" else r for r in small]


def _through(
    title: str, state: State, steps: int, name: str, goals: Mapping[str, float], settings: Settings
) -> list[Row]:
    with folder(ON_DISK) as place:
        for step in range(steps):
            snapshot.write_snapshot(place / store.step_file_name(step), step, state)
            torch.save(state, place / f"{step}.pt")
            safetensors.torch.save_file(state, place / f"{step}.st")
        files = [place / store.step_file_name(step) for step in range(steps)]
        out = torch.empty(steps, *state[name].shape)

        def by_safetensors() -> Tensor:
            found = []
            for step in range(steps):
                with safetensors.safe_open(place / f"{step}.st", "pt") as file:
                    found.append(file.get_tensor(name))
            return torch.stack(found)

        def by_torch() -> Tensor:
            return torch.stack(
                [torch.load(place / f"{s}.pt", mmap=True, weights_only=True)[name] for s in range(steps)]
            )

        contenders: dict[str, Callable[[], object]] = {
            f"{title}: {OURS}": lambda: tensor_series.read_series(files, name, verify=False),
            f"{title}: {OURS}, into memory that is used again": lambda: tensor_series.read_series(
                files, name, out=out, verify=False
            ),
            f"{title}: {OURS}, verified": lambda: tensor_series.read_series(files, name),
            f"{title}: {ST}": by_safetensors,
            f"{title}: {PT}": by_torch,
        }
        seconds = _wall(contenders, settings)
    return compared(
        seconds, [Ratio(f"{title}: {OURS}", f"{title}: {other}", goal) for other, goal in goals.items()], "ms"
    )


def stall(settings: Settings) -> list[Row]:
    """How long a loop waits for a save of 18 MB that a thread writes, against a plain copy of it and `torch.save`."""
    state = state_of(50, 300, 300)
    flat = torch.cat([tensor.view(-1) for tensor in state.values()])
    copy, writer, numbers = torch.empty_like(flat), Writer(), count()
    with folder(ON_DISK) as place:

        def save() -> None:
            packed = writer.staging.stage(state)
            path = fresh(place, numbers)
            writer.submit(lambda: snapshot.write_packed(path, 0, packed))

        save()
        contenders: dict[str, Callable[[], object]] = {}
        contenders["copy"] = lambda: copy.copy_(flat)
        contenders[PT] = lambda: save_durably(lambda path: torch.save(state, path), place, numbers)
        contenders["pause"] = lambda: [writer.wait(), swept(place)]  # the steps between two saves
        contenders["save"] = save
        seconds = _wall(contenders, settings)
        writer.close()
    del seconds["pause"]
    rows = compared(seconds, [Ratio("save", "copy", 3.0), Ratio("save", PT)], "ms")
    return [Row(row.name, row.value, row.unit, 5.0) if row.name == "save" else row for row in rows]


def many(settings: Settings) -> list[Row]:
    """1,000 snapshots of 100 tensors of 1 KB in memory: the last against the first 100; what they add to the data."""
    state, staging = state_of(100, 16, 16), snapshot.Staging()
    with folder(Path("/dev/shm")) as place:
        snapshot.write_packed(place / "first.h5", 0, staging.stage(state))
        taken = []
        for step in range(1000):
            start = time.perf_counter()
            snapshot.write_packed(place / store.step_file_name(step), 0, staging.stage(state))
            taken.append(1000 * (time.perf_counter() - start))
        first, last = statistics.median(taken[:100]), statistics.median(taken[-100:])
        size = (place / store.step_file_name(0)).stat().st_size
        snapshot.write_snapshot(place / "big.h5", 0, state_of(*SIZES["45 MB"]))
        big = (place / "big.h5").stat().st_size
    plain = sum(tensor.nbytes for tensor in state.values())
    plain_big = sum(tensor.nbytes for tensor in state_of(*SIZES["45 MB"]).values())
    return [
        Row("last hundred / first hundred", last / first, "", 1.1),
        Row("a snapshot of 100 tensors", first, "ms"),
        Row("overhead of 0.1 MB", 100 * (size / plain - 1), "%", 8.0),
        Row("overhead of 45 MB", 100 * (big / plain_big - 1), "%", 0.1),
    ]


def _wall(contenders: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, float]:
    """Median milliseconds on the clock; the disk's part is not on the processor's."""
    return {name: 1000 * cost.wall for name, cost in costs(contenders, settings).items()}


def save_durably(save: Callable[[Path], None], place: Path, numbers: Iterator[int]) -> None:
    """`save` as a careful program calls it: beside, fsync, rename, fsync of the folder."""
    draft, path = place / "draft.tmp", fresh(place, numbers)
    save(draft)
    handle = os.open(draft, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    draft.rename(path)
    fsync_dir(place)


def fresh(place: Path, numbers: Iterator[int]) -> Path:
    return place / f"{next(numbers):012d}.h5"


def swept(place: Path) -> None:
    """Old files go between the measurements, so that the page cache stays small."""
    for old in place.iterdir():
        old.unlink()


@contextmanager
def folder(root: Path) -> Iterator[Path]:
    root.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=root, prefix="grokkit-bench-"))
    try:
        yield place
    finally:
        shutil.rmtree(place)
