"""Stage e: the delayed-robustness run, as far as the time allows; what comes back goes on elsewhere."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grokkit as gk
from bench.gpu.common import data_part
from bench.gpu.results import Results, Row, Rows, Setting
from grokkit.errors import Interrupted, NumericsError, UsageError
from grokkit.interrupt import StopRequest
from grokkit.recipes import delayed_robustness
from grokkit.trajectory import Run

TITLE = "delayed robustness: PreActResNet-18, k = 16, no BatchNorm, all of CIFAR-10; hours in all, in pieces"
RESERVE = 45.0
"""Seconds kept for the last measures, the slot, the table and the figure."""
LARGEST = 100e6
"""Bytes that the packed run may have."""


def measure(results: Results) -> None:
    results.parts.pop("run", None)  # it always goes on
    results.part("run", partial(go_on, results), needs=RESERVE + 15)
    rows = results.parts.get("run", [])
    if rows and rows[-1]["state"] != "done":
        row = rows[-1]
        results.left_out["the rest of the run"] = f"{row['state']} at step {row['step']} of {row['total_steps']}"


def go_on(results: Results) -> Iterator[Row]:
    """Start or resume the run, stop it in time as Ctrl-C would, and pack what another machine needs to go on."""
    setting = results.setting
    config = fitted(setting)
    runs = setting.work / "runs"
    packed = setting.out / "delayed_robustness.tar.gz"
    archive = setting.resume or (packed if packed.exists() else None)
    path = runs / config.run_name if archive is None else brought_back(archive, runs / config.experiment)
    with stopping(5.0 if setting.small else results.left - RESERVE):
        try:
            if path.exists():
                gk.resume(path, device=setting.device)
            else:
                gk.train(config, runs=runs, device=setting.device)
        except (Interrupted, NumericsError) as error:  # what it has learned by then is brought back in either case
            print(f"    {error}", flush=True)
    run = gk.open_run(path)
    pack(path, packed)
    status = run.status
    yield {
        "run": run.name,
        "state": status["state"],
        "step": status["step"],
        "total_steps": status["total_steps"],
        "attempt": status["attempt"],
        "costs": status["costs"],
        "packed_mb": packed.stat().st_size / 1e6,
        "newest": newest(run),
    }
    gk.table([run]).to_csv(setting.out / "delayed_robustness.csv.gz", index=False)
    gk.figures.save_figure(gk.figures.create("phases", gk.figure_data([run])), setting.out / "delayed_robustness")
    if packed.stat().st_size > LARGEST:
        raise UsageError(f"{packed} has {packed.stat().st_size / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}")


def fitted(setting: Setting) -> gk.RunConfig:
    """The recipe on the stage's data; the miniature is a narrow net on a few images."""
    config = delayed_robustness.no_batchnorm().replace(data=data_part(setting))
    if not setting.small:
        return config
    cheap = {"local_complexity": {"directions": 2, "points": 4}, "robust_accuracy": {"points": 4, "steps": 1}}
    small = tuple(gk.spec(each.name, **{**each.options, **cheap.get(each.name, {})}) for each in config.measures)
    return config.replace(
        model=gk.spec("preact_resnet18", width=8, norm="none"),
        batch_size=32,
        records=8,
        steps=2000,
        probes={"train": 16, "test": 16, "random": 8},
        measures=small,
    )


def newest(run: Run) -> dict[str, float]:
    """The readings of the last recorded step that a reader asks for first."""
    table = gk.table([run])
    measures = ["accuracy", "local_complexity", "robust_accuracy"]
    shown = table[table["layer"].isin(["total", ""]) & table["measure"].isin(measures) & (table["measure_id"] != "log")]
    shown = shown[shown["step"] == shown["step"].max()]
    names = {"radius": "r=%g", "epsilon": "eps=%.3g", "attack": "%s"}
    told = {"step": float(shown["step"].max())}
    for row in shown.to_dict("records"):
        words = [form % row[key] for key, form in names.items() if row[key] == row[key] and row[key] != ""]
        told[" ".join([row["measure"], row["probe_set"], *words])] = float(row["value"])
    return told


@contextmanager
def stopping(seconds: float) -> Iterator[None]:
    """Ask the run in this block to stop after so many seconds, as Ctrl-C does; not before it listens for that."""
    over = threading.Event()

    def ask() -> None:
        over.wait(seconds)
        while not over.is_set():
            # Not merely another handler than Python's: what runs in the background is born deaf to Ctrl-C.
            if isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), StopRequest):
                os.kill(os.getpid(), signal.SIGINT)
                return
            over.wait(0.5)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def pack(run: Path, target: Path) -> None:
    """The run without its snapshots and without the older slot, in one archive."""
    latest = max((run / "resume").glob("*.h5"), key=lambda slot: slot.stat().st_mtime, default=None)
    draft = target.with_suffix(".tmp")
    with tarfile.open(draft, "w:gz", compresslevel=1) as archive:
        for file in sorted(path for path in run.rglob("*") if path.is_file()):
            inside = file.relative_to(run)
            if inside.parts[0] in ("snapshots", "LOCK") or (inside.parts[0] == "resume" and file != latest):
                continue
            archive.add(file, Path(run.name) / inside)
    os.replace(draft, target)


def brought_back(archive: Path, folder: Path) -> Path:
    """The packed run, unpacked into `folder`; its settings are those it began with. One that is there already goes on
    itself, unless the archive is further: then somebody has to choose."""
    with tarfile.open(archive) as packed:
        names = {Path(name).parts[0] for name in packed.getnames()}
        status = None
        if len(names) == 1 and f"{min(names)}/status.json" in packed.getnames():
            status = packed.extractfile(f"{min(names)}/status.json")
        if status is None:
            raise UsageError(f"{archive} does not hold one run; give an archive that stage e wrote")
        run, step = folder / names.pop(), json.load(status)["step"]
        if not run.exists():
            draft = folder / ".unpacking"
            packed.extractall(draft, filter="data")
            os.replace(draft / run.name, run)
            draft.rmdir()
            return run
    here = json.loads((run / "status.json").read_text())["step"]
    if step > here:
        raise UsageError(
            f"{archive} is at step {step}, and {run}, which is here already, at {here}; move that away to "
            "go on from the archive, or leave --continue out to go on from here"
        )
    return run


def lines(parts: dict[str, Rows]) -> list[str]:
    """For the summary."""
    told = []
    for row in parts.get("run", []):
        told.append(f"step {row['step']} of {row['total_steps']}, {row['state']}, {row['packed_mb']:.1f} MB packed")
        told.append(", ".join(f"{name} {value:.4g}" for name, value in row["newest"].items()))
        told.append(", ".join(f"{name} {seconds:.1f} s" for name, seconds in row["costs"].items()))
    return told
