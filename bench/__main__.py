"""`python -m bench`: every benchmark's table, with the goal beside each number."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path

import torch

from bench import estimate, live, local_complexity, partition, policies, seeds, storage, training
from bench.harness import Row, Settings, header, save, show

BENCHMARKS: dict[str, Callable[[Settings], list[Row]]] = {
    "time": local_complexity.cpu_time,
    "memory": local_complexity.peak_memory,
    "memory-wide": local_complexity.peak_memory_wide,
    "segment": partition.cpu_time,
    "segment-memory": partition.peak_memory,
    "seeds": seeds.mlps,
    "seeds-convnets": seeds.convnets,
    "augmentation": training.augmentation,
    "pipelines": training.pipelines,
    "trainer": training.trainer,
    "optimizers": training.optimizers,
    "write": storage.writing,
    "write-in-memory": storage.writing_in_memory,
    "read": storage.reading,
    "through-time": storage.through_time,
    "stall": storage.stall,
    "many": storage.many,
    "live": live.updates,
    "estimate": estimate.against_runs,
    "policies": policies.overhead,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"which to run, of {', '.join(BENCHMARKS)}; all")
    parser.add_argument("--repetitions", type=int, default=5)
    # a waiting thread spins and is counted: of two threads on busy cores the CPU-seconds say little
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file to write as well")
    options = parser.parse_args()
    if unknown := set(options.only) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    settings = Settings(options.repetitions, options.threads)
    torch.set_num_threads(settings.threads)
    head = header(settings)
    print("\n".join(f"{name}: {value}" for name, value in head.items()))
    tables = {}
    for name in options.only or BENCHMARKS:
        rows = BENCHMARKS[name](settings)
        tables[name] = rows
        show(f"{name}: {inspect.getdoc(BENCHMARKS[name])}", rows)
    if options.out:
        save(options.out, head, tables)


if __name__ == "__main__":
    main()
