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
    """Parse arguments and run the benchmark."""
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
    """Measure the training throughput of a model in images/s by batch size, and find the bottleneck: input, host or
    arithmetic.

    Compares batches resident on the device with a DataLoader of two workers, and the achieved FLOP/s with those of a
    large matrix product. Writes a figure, its table and the bottlenecks; after Ctrl-C, those measured so far.

    Try:
        grokkit bench throughput resnet9 --width 16
        grokkit bench throughput resnet18 --device cuda --seconds 2

    Args:
        subject: benchmark to run; only `throughput` exists so far.
        model: a name from `grokkit.models.names()`.
        width: the model's `width`; by default that of the model.
        data: images to train on, as in `grokkit train`; by default random ones in the shape of CIFAR-10, because the
            throughput does not depend on the pixels.
        device: cpu or cuda; by default the CPU and, if there is one, the GPU.
        batch_sizes: by default powers of two from 16 to 1024, up to the largest for which the device is fast enough.
        seconds: approximate duration of one measurement; there are up to 35 per device.
        out: output folder.
    """
    import pandas as pd

    from grokkit import data as datasets
    from grokkit import figures
    from grokkit.analysis.bottleneck import find_bottlenecks
    from grokkit.analysis.csv_text import write_csv
    from grokkit.device.select import describe_environment
    from grokkit.diagnostics import throughput
    from grokkit.names import TABLE_COLUMNS, FigureData

    dataset = throughput.make_random_images() if data is None else datasets.load_data(data)
    sizes = throughput.validate_batch_sizes(batch_sizes, len(dataset.y_train))
    options = {} if width is None else {"width": width}
    subjects = [throughput.make_subject(model, options, dataset, each, seconds) for each in _select_devices(device)]
    _warn_if_busy()
    interrupted = _measure_all(subjects, sizes, tables := list[pd.DataFrame]())
    if not tables:
        raise KeyboardInterrupt("Interrupted before the first measurement; nothing was written")
    table = pd.concat(tables, ignore_index=True).reindex(columns=list(TABLE_COLUMNS))
    out.mkdir(parents=True, exist_ok=True)
    write_csv(table, out / "throughput.csv")
    summary = {
        "machines": {each.name: describe_environment(each.device) for each in subjects[: len(tables)]},
        "points": [vars(each) for each in find_bottlenecks(table)],
    }
    (out / "throughput.json").write_text(json.dumps(summary, indent=1) + "\n")
    figure_paths = figures.save_figure(
        figures.create("throughput", FigureData(table, {}, pd.DataFrame())), out / "throughput"
    )
    for path in (*figure_paths, out / "throughput.csv", out / "throughput.json"):
        print(path)
    if interrupted:
        raise KeyboardInterrupt(f"Interrupted; {out} holds the measurements made so far")


def _warn_if_busy() -> None:
    """Warn if other programs keep the CPU busy: two threads that wait for each other on one core are slower than one
    thread by far more than a half."""
    from grokkit.device.select import count_cores

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > count_cores() / 2:
        print(
            f"this machine is busy (load {load:.1f} on {count_cores()} cores): CPU throughput will be too low",
            file=sys.stderr,
        )


def _select_devices(requested: str | None) -> list[Device]:
    """Return the requested device, or else the CPU and, if there is one, the GPU."""
    from torch.cuda import is_available

    from grokkit.device.preflight import count_physical_gpus
    from grokkit.device.select import select_device

    if requested is not None:
        return [select_device(requested)]
    return (
        [select_device("cpu"), select_device("cuda")]
        if count_physical_gpus() or is_available()
        else [select_device("cpu")]
    )


def _measure_all(subjects: list[Subject], sizes: list[int], tables: list[pd.DataFrame]) -> bool:
    """Append a table per device with at least one measurement; return whether Ctrl-C interrupted."""
    for each in subjects:
        speeds: list[Speeds] = []
        scale: list[Rate] = []
        try:
            _measure_device(each, sizes, scale, speeds)
        except KeyboardInterrupt:
            return True
        finally:
            if speeds:
                tables.append(_make_table(each, scale, speeds))
    return False


def _measure_device(of: Subject, sizes: list[int], scale: list[Rate], speeds: list[Speeds]) -> None:
    """Append the smallest step and the peak FLOP/s to `scale` and every measurement to `speeds`, and print them."""
    from grokkit.analysis.bottleneck import find_bottlenecks
    from grokkit.diagnostics.throughput import measure_peak_flops, measure_smallest_step, measure_speeds

    scale += [measure_smallest_step(of), measure_peak_flops(of)]
    print(
        f"{of.name}\npeak {scale[1].value / 1e9:,.0f} GFLOP/s, training {of.training_flop / 1e9:.3g} GFLOP an image",
        flush=True,
    )
    for each in measure_speeds(of, sizes):
        speeds.append(each)
        bottleneck = find_bottlenecks(_make_table(of, scale, speeds))[-1]
        size, source = bottleneck.batch_size, bottleneck.source
        print(
            f"  batch {size:5}  {source:10}  {bottleneck.images_per_s:9,.0f} images/s  {bottleneck.sentence}",
            flush=True,
        )
    if speeds[-1].batch_size < sizes[-1]:
        print(f"  batch sizes above {speeds[-1].batch_size} skipped: a step would take too long; see --seconds")


def _make_table(of: Subject, scale: list[Rate], speeds: list[Speeds]) -> pd.DataFrame:
    import pandas as pd

    from grokkit.diagnostics.throughput import to_rows

    smallest, peak = scale
    return pd.DataFrame(to_rows(of, smallest, peak, speeds))
