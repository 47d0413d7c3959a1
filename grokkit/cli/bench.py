"""`grokkit bench throughput`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grokkit.cli.parse import parse_arguments

if TYPE_CHECKING:
    import pandas as pd

    from grokkit.device.select import Device
    from grokkit.diagnostics.throughput import Rate, Speeds, Subject


def main(argv: list[str]) -> None:
    """Read the words and measure."""
    parse_arguments("bench", bench, argv)


def bench(
    subject: Annotated[Literal["throughput"], tyro.conf.Positional],
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "resnet9",
    width: int | None = None,
    data: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    batch_sizes: tuple[int, ...] = (),
    seconds: float = 1.0,
    out: Path = Path("throughput"),
) -> None:
    """Measure how many images a second a model trains on, by batch size, and what binds the loop: input, host or
    arithmetic.

    Resident batches stand against a DataLoader with two workers, and the FLOP/s against those of a large product.
    Writes a figure, its table and the verdicts; after Ctrl-C, those measured until then.

    Try:
        grokkit bench throughput resnet9 --width 16
        grokkit bench throughput resnet18 --device cuda --seconds 2

    Args:
        subject: what to measure; there is one so far.
        model: a name from `grokkit.models.names()`.
        width: the model's `width`, by default its own.
        data: images to train on, as in `grokkit train`; by default random ones in CIFAR-10's form, since speeds do not
            depend on the pixels.
        device: cpu or cuda; by default the CPU and, where there is one, the GPU.
        batch_sizes: by default powers of two from 16 to 1024, as far as the device is fast enough for them.
        seconds: about what one measurement may take; there are up to 35 of them on a device.
        out: folder to write to.
    """
    import pandas as pd

    from grokkit import data as datasets
    from grokkit import figures
    from grokkit.analysis.bottleneck import find_bottlenecks
    from grokkit.analysis.csv_text import write_csv
    from grokkit.device.select import describe_environment
    from grokkit.diagnostics import throughput
    from grokkit.names import TABLE_COLUMNS, FigureData

    dataset = throughput.make_random_images() if data is None else datasets.load(data)
    sizes = throughput.validate_batch_sizes(batch_sizes, len(dataset.y_train))
    options = {} if width is None else {"width": width}
    subjects = [throughput.make_subject(model, options, dataset, each, seconds) for each in _devices(device)]
    _warn_if_busy()
    stopped = _measure_all(subjects, sizes, tables := list[pd.DataFrame]())
    if not tables:
        raise KeyboardInterrupt("stopped before the first speed was measured; nothing is written")
    table = pd.concat(tables, ignore_index=True).reindex(columns=list(TABLE_COLUMNS))
    out.mkdir(parents=True, exist_ok=True)
    write_csv(table, out / "throughput.csv")
    told = {
        "machines": {each.name: describe_environment(each.device) for each in subjects[: len(tables)]},
        "points": [vars(each) for each in find_bottlenecks(table)],
    }
    (out / "throughput.json").write_text(json.dumps(told, indent=1) + "\n")
    drawn = figures.save_figure(figures.create("throughput", FigureData(table, {}, pd.DataFrame())), out / "throughput")
    for path in (*drawn, out / "throughput.csv", out / "throughput.json"):
        print(path)
    if stopped:
        raise KeyboardInterrupt(f"stopped; {out} holds what was measured until then")


def _warn_if_busy() -> None:
    """Say so where other programs keep the processor busy: two threads that wait for each other on one core are slower
    than one by far more than a half."""
    from grokkit.device.select import count_cores

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > count_cores() / 2:
        print(
            f"this machine is busy (load {load:.1f} on {count_cores()} cores): speeds on its CPU will be too low",
            file=sys.stderr,
        )


def _devices(wanted: str | None) -> list[Device]:
    """The one asked for; else the CPU and, where there is one, the GPU."""
    from torch.cuda import is_available

    from grokkit.device.preflight import count_physical_gpus
    from grokkit.device.select import select_device

    if wanted is not None:
        return [select_device(wanted)]
    return (
        [select_device("cpu"), select_device("cuda")]
        if count_physical_gpus() or is_available()
        else [select_device("cpu")]
    )


def _measure_all(subjects: list[Subject], sizes: list[int], tables: list[pd.DataFrame]) -> bool:
    """Append a table per device that has a speed; whether Ctrl-C came in between."""
    for each in subjects:
        speeds: list[Speeds] = []
        scale: list[Rate] = []
        try:
            _measure(each, sizes, scale, speeds)
        except KeyboardInterrupt:
            return True
        finally:
            if speeds:
                tables.append(_table(each, scale, speeds))
    return False


def _measure(of: Subject, sizes: list[int], scale: list[Rate], speeds: list[Speeds]) -> None:
    """Append the smallest step and the ceiling to `scale`, and every point to `speeds`, with a line for each."""
    from grokkit.analysis.bottleneck import find_bottlenecks
    from grokkit.diagnostics.throughput import measure_peak_flops, measure_smallest_step, measure_speeds

    scale += [measure_smallest_step(of), measure_peak_flops(of)]
    print(
        f"{of.name}\nceiling {scale[1].value / 1e9:,.0f} GFLOP/s, training {of.training_flop / 1e9:.3g} GFLOP an image",
        flush=True,
    )
    for each in measure_speeds(of, sizes):
        speeds.append(each)
        verdict = find_bottlenecks(_table(of, scale, speeds))[-1]
        size, source = verdict.batch_size, verdict.source
        print(f"  batch {size:5}  {source:10}  {verdict.images_per_s:9,.0f} images/s  {verdict.sentence}", flush=True)
    if speeds[-1].batch_size < sizes[-1]:
        print(f"  batches above {speeds[-1].batch_size} are left out: a step would take too long; see --seconds")


def _table(of: Subject, scale: list[Rate], speeds: list[Speeds]) -> pd.DataFrame:
    import pandas as pd

    from grokkit.diagnostics.throughput import to_rows

    smallest, top = scale
    return pd.DataFrame(to_rows(of, smallest, top, speeds))
