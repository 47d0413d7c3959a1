"""Stage e: the delayed-robustness run, as far as the time allows; what comes back goes on elsewhere."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grokkit as gk
from bench.gpu.common import data_part
from bench.gpu.results import Results, Rows, Setting
from grokkit.errors import Interrupted, NumericsError, UsageError
from grokkit.recipes import delayed_robustness

TITLE = "delayed robustness: PreActResNet-18, k = 16, no BatchNorm, all of CIFAR-10, for hours"
RESERVE = 40.0
"""Seconds kept for the last measures, the slot, the table and the figure."""


def headline(parts: dict[str, Rows]) -> Rows:
    """How far it came."""
    shown = ("state", "step", "total_steps", "attempt", "packed_mb")
    return [{name: row[name] for name in shown} for row in parts.get("run", ())]


def measure(results: Results) -> None:
    results.parts.pop("run", None)  # it always goes on
    results.part("run", lambda: go_on(results), needs=2 * RESERVE)


def go_on(results: Results) -> Rows:
    """Start or resume the run, stop it in time as Ctrl-C would, and pack what another machine needs to go on."""
    setting = results.setting
    config = fitted(setting)
    runs = setting.work / "runs"
    path = runs / config.run_name
    packed = setting.out / "delayed_robustness.tar"
    bring_back(setting.going_on or (packed if packed.exists() else None), path)
    stopped = False
    with stopping(5.0 if setting.small else results.left - RESERVE):
        try:
            if path.exists():
                gk.resume(path, device=setting.device)
            else:
                gk.train(config, runs=runs, device=setting.device)
        except Interrupted:
            stopped = True
        except NumericsError as error:  # what it had learned until then is brought back all the same
            print(error)
    run = gk.open_run(path)
    pack(path, packed)
    gk.figures.save(gk.figures.create("phases", gk.figure_data([run])), setting.out / "delayed_robustness")
    gk.table([run]).to_csv(setting.out / "delayed_robustness.csv", index=False)
    status = run.status
    return [{"state": "stopped in time" if stopped else status["state"], "step": status["step"],
             "total_steps": status["total_steps"], "attempt": status["attempt"], "costs": status["costs"],
             "packed_mb": packed.stat().st_size / 1e6}]  # fmt: skip


def fitted(setting: Setting) -> gk.RunConfig:
    """The recipe on the stage's data; the miniature is a narrow net on a few images."""
    config = delayed_robustness.no_batchnorm().replace(data=data_part(setting))
    if not setting.small:
        return config
    small = (gk.part("accuracy"), gk.part("local_complexity", radii=(0.05,), directions=2, points=4))
    return config.replace(model=gk.part("preact_resnet18", width=8, norm="none"), batch_size=32, records=8, steps=2000,
                          probes={"train": 16, "test": 16, "random": 8}, measures=small)  # fmt: skip


@contextmanager
def stopping(seconds: float) -> Iterator[None]:
    """Ask this process to stop after so many seconds, as Ctrl-C does, unless the block is over before."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def pack(run: Path, target: Path) -> None:
    """The run without its snapshots and without the older slot, in one uncompressed archive."""
    newest = max((run / "resume").glob("*.h5"), key=lambda slot: slot.stat().st_mtime, default=None)
    draft = target.with_suffix(".tmp")
    with tarfile.open(draft, "w") as archive:
        for file in sorted(path for path in run.rglob("*") if path.is_file()):
            inside = file.relative_to(run)
            if inside.parts[0] in ("snapshots", "LOCK") or (inside.parts[0] == "resume" and file != newest):
                continue
            archive.add(file, Path(run.name) / inside)
    os.replace(draft, target)


def bring_back(archive: Path | None, run: Path) -> None:
    """Unpack a packed run to where it is looked for. One that is there already goes on itself, unless the archive is
    further: then somebody has to choose."""
    if archive is None:
        return
    with tarfile.open(archive) as packed:
        status = (
            packed.extractfile(f"{run.name}/status.json") if f"{run.name}/status.json" in packed.getnames() else None
        )
        if status is None:
            raise UsageError(f"{archive} holds another run than {run.name}: it was made by other settings")
        step = json.load(status)["step"]
        if not run.exists():
            draft = run.parent / ".unpacking"
            packed.extractall(draft, filter="data")
            os.replace(draft / run.name, run)
            draft.rmdir()
            return
    here = gk.open_run(run).status["step"]
    if step > here:
        raise UsageError(f"{archive} is at step {step}, and {run}, which is here already, at {here}; move that away to "
                         "go on from the archive, or leave --continue out to go on from here")  # fmt: skip
