"""`python -m bench.zoo`: local complexity and exact partitions on networks that others published.

Every net has random weights, is measured in a process of its own and judged by `bench.zoo_judge`, which reads nothing
of grokkit but its results. One line of `zoo.jsonl` is one net; a net that has a line is not measured again. At the end
the summary is written as `zoo.json`, and the table as `zoo.csv` and `zoo.md`.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import cpu_name
from bench.zoo_judge import DIRECTIONS, FUNCTIONS, judge
from bench.zoo_lines import RADIUS
from bench.zoo_models import TIMM

SEED = 0
SMALL_SIZES = {"torchvision": (64, 96, 128, 192), "timm": (128, 192)}
"""Image sizes that are tried, smallest first, if a net does not prescribe one."""
MAX_SHARE_OF_MEMORY = 0.3
"""Of the machine's memory, that the float64 weights of a net may fill."""
VERDICTS = ("exact", "partial", "refused", "wrong")

Record = dict[str, Any]


def list_nets() -> list[str]:
    """Return the names of all nets, "library/name"; those of timm if it is installed."""
    from torchvision import models

    nets = [f"torchvision/{name}" for name in models.list_models(module=models)]
    return nets + ([f"timm/{name}" for name in TIMM] if importlib.util.find_spec("timm") else [])


def build(name: str) -> tuple[nn.Module, list[int]]:
    """Build a net with random weights, and the image sizes that it may take, in the order in which to try them."""
    library, short = name.split("/")
    torch.manual_seed(SEED)
    if library == "torchvision":
        from torchvision import models

        options: dict[str, Any] = {"init_weights": True} if short in ("googlenet", "inception_v3") else {}
        net = models.get_model(short, weights=None, **options)
        is_fixed = hasattr(net, "image_size") or short.startswith("maxvit")
        return net, [224] if is_fixed else [*SMALL_SIZES[library], 224, 299]
    net = importlib.import_module("timm").create_model(short, pretrained=False)
    size = net.default_cfg["input_size"][-1]
    is_fixed = net.default_cfg.get("fixed_input_size", False)
    return net, [size] if is_fixed else [*(small for small in SMALL_SIZES[library] if small < size), size]


def randomise(net: nn.Module) -> None:
    """Draw what an untrained net has at one value: scales, biases, and parameters that are 0."""
    rng = torch.Generator().manual_seed(SEED)
    for name, parameter in net.named_parameters():
        if parameter.numel() == 0 or bool((parameter != parameter.flatten()[0]).any()):
            continue
        value = float(parameter.flatten()[0])
        if parameter.dim() > 1 and value != 0:
            continue
        with torch.no_grad():
            if name.endswith("bias") or parameter.dim() > 1:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
            else:
                parameter.copy_(max(abs(value), 0.1) * (0.5 + torch.rand(parameter.shape, generator=rng)))


@torch.no_grad()
def set_statistics(net: nn.Module, images: Tensor) -> None:
    """Give every BatchNorm the second moments of what these images bring to it, moved at random.

    Means are drawn, not measured: a net that subtracts the measured ones in every layer amplifies rounding errors
    exponentially with its depth, up to the size of its output.
    """
    rng = torch.Generator().manual_seed(SEED)

    def measure_moments(norm: nn.modules.batchnorm._BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        if norm.running_mean is None or norm.running_var is None:
            return
        x = inputs[0].transpose(0, 1).flatten(1)
        moments = x.square().mean(1) + 1e-6
        noise, scale = (torch.randn(moments.shape, generator=rng) for _ in range(2))
        norm.running_mean.copy_(0.2 * noise * moments.sqrt())
        norm.running_var.copy_(moments * (0.2 * scale).exp())

    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_pre_hook(measure_moments) for norm in norms]
    try:
        net(images)
    finally:
        for handle in handles:
            handle.remove()


def prepare(name: str) -> tuple[nn.Module, Tensor]:
    """Return a net in eval mode and float64, and two images of the smallest size that it takes."""
    net, sizes = build(name)
    net.eval()
    randomise(net)
    error: Exception | None = None
    for size in sizes:
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(SEED))
        try:
            set_statistics(net, images)
            with torch.no_grad():
                output = net(images[:2])
        except Exception as failure:  # whatever a net raises for images that are too small for it
            error = failure
            continue
        if isinstance(output, Tensor) and output.isfinite().all():
            return net.double(), images[:2].double()
    raise RuntimeError(f"the net takes images of none of the sizes {sizes}: {error}")


def measure(name: str) -> Record:
    """Measure one net."""
    start = time.process_time()
    net, images = prepare(name)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    record: Record = {"net": name, "parameters": parameters, "image": images.shape[-1], "dtype": "float64"}
    if 8 * parameters > MAX_SHARE_OF_MEMORY * memory:
        return record | {"not_run": f"memory: its weights take {8 * parameters / 2**30:.1f} GiB"}
    record |= judge(net, images[0], images[1], SEED)
    return record | {"cpu_seconds": round(time.process_time() - start, 1)}


def measure_apart(name: str, threads: int, limit: int) -> Record:
    """Measure one net in a process of its own, which may take `limit` CPU-seconds."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "record.json"
        words = ["--net", name, "--threads", str(threads), "--limit", str(limit), "--out", str(target)]
        done = subprocess.run([sys.executable, "-m", "bench.zoo", *words], capture_output=True, text=True, check=False)
        if target.exists():
            record: Record = json.loads(target.read_text())
            return record
        if done.returncode == -9 or done.returncode == -24:
            reason = "memory" if done.returncode == -9 else f"time: more than {limit} CPU-seconds"
            return {"net": name, "not_run": reason}
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"net": name, "failed": f"exit {done.returncode}: {last}"}


def read_records(folder: Path) -> dict[str, Record]:
    """Read the records of a folder, by net."""
    path = folder / "zoo.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["net"]: record for record in map(json.loads, lines)}


def run(nets: Iterable[str], folder: Path, measure_net: Callable[[str], Record]) -> dict[str, Record]:
    """Measure the nets that have no record yet, and append one line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    done = read_records(folder)
    for name in nets:
        if name in done:
            continue
        done[name] = measure_net(name)
        with (folder / "zoo.jsonl").open("a") as file:
            file.write(json.dumps(done[name]) + "\n")
        print(format_record(done[name]), flush=True)
    return done


def format_record(record: Record) -> str:
    """Return one line about a net."""
    if "not_run" in record or "failed" in record:
        return f"{record['net']:<44} not run: {record.get('not_run', record.get('failed'))}"
    verdicts = "  ".join(f"{name} {record[name]['verdict']:<7}" for name in FUNCTIONS)
    return f"{record['net']:<44} {record['kind']:<16} {verdicts} {record['cpu_seconds']:6.0f} s"


def summarise(records: Sequence[Record]) -> Record:
    """Count the verdicts of each kind of net, and list what is not as it should be."""
    judged = [record for record in records if "kind" in record]
    summary: Record = {
        "nets": len(records),
        "not_run": {record["net"]: record["not_run"] for record in records if "not_run" in record},
        "failed": {record["net"]: record["failed"] for record in records if "failed" in record},
    }
    for kind in ("piecewise affine", "other"):
        group = [record for record in judged if record["kind"] == kind]
        summary[kind] = {"nets": len(group)} | {
            name: dict(Counter(record[name]["verdict"] for record in group)) for name in FUNCTIONS
        }
    others = [record for record in judged if record["kind"] == "other"]
    shares = {record["net"]: record["vertex"]["share"] for record in others if "share" in record["vertex"]}
    summary["refused by vertex or tangent, of the others"] = {
        name: sum(record[name]["verdict"] == "refused" for record in others) / max(1, len(others))
        for name in ("vertex", "tangent")
    }
    if shares:
        smallest, largest = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        summary["smallest share"] = {smallest: shares[smallest]}
        summary["largest share"] = {largest: shares[largest]}
    summary["bends outside counted crossings, of the others"] = dict(
        Counter(str(record["bends"].get("seen", "too few samples")) for record in others)
    )
    summary["refusals"] = {
        f"{record['net']}: {name}": record[name]["why"]
        for record in judged
        for name in FUNCTIONS
        if record[name]["verdict"] == "refused" and (name in ("vertex", "tangent") or record["kind"] != "other")
    }
    summary["wrong"] = {
        f"{record['net']}: {name}": record[name]["why"]
        for record in judged
        for name in FUNCTIONS
        if record[name]["verdict"] == "wrong"
    }
    return summary


def describe_conditions(command: Sequence[str]) -> dict[str, Any]:
    """Return what the numbers depend on."""
    from torchvision import __version__ as torchvision_version

    versions = {"torch": torch.__version__, "torchvision": torchvision_version}
    if importlib.util.find_spec("timm"):
        versions["timm"] = importlib.import_module("timm").__version__
    return {
        "command": " ".join(["python -m bench.zoo", *command]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_name(),
        **versions,
        "seed": SEED,
        "radius": RADIUS,
        "directions": DIRECTIONS,
    }


def write_summary(folder: Path, records: Mapping[str, Record], command: Sequence[str]) -> Record:
    """Write `zoo.json`, `zoo.csv` and `zoo.md`."""
    rows = list(records.values())
    summary = {**describe_conditions(command), **summarise(rows)}
    (folder / "zoo.json").write_text(json.dumps(summary, indent=1) + "\n")
    columns = ["net", "kind", *FUNCTIONS, "share", "uncounted", "image", "units", "note"]
    table = [_make_row(record) for record in rows]
    with (folder / "zoo.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]).replace("|", "/") for column in columns) + " |" for row in table]
    (folder / "zoo.md").write_text("\n".join(lines) + "\n")
    return summary


def _make_row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {
        "net": record["net"],
        "kind": record.get("kind", "not run"),
        "image": record.get("image", ""),
        "units": record.get("units", ""),
        "note": record.get("not_run", record.get("failed", record.get("first_smooth", ""))),
        "share": "",
        "uncounted": "",
    }
    for name in FUNCTIONS:
        row[name] = record.get(name, {}).get("verdict", "")
    if "share" in record.get("vertex", {}):
        row |= {"share": f"{record['vertex']['share']:.3f}", "uncounted": record["vertex"]["uncounted"]}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="folder of the results; resumed if it has some")
    parser.add_argument("--only", default="", metavar="REGEX", help="nets whose name matches; all")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--limit", type=int, default=1800, help="CPU-seconds for one net")
    parser.add_argument("--net", help=argparse.SUPPRESS)  # measure this one here, and write its record to --out
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.net:
        resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit + 10))
        options.out.write_text(json.dumps(measure(options.net)))
        return 0
    nets = [name for name in list_nets() if re.search(options.only, name)]
    records = run(nets, options.out, lambda name: measure_apart(name, options.threads, options.limit))
    chosen = {name: records[name] for name in nets}
    summary = write_summary(options.out, chosen, sys.argv[1:])
    print(json.dumps({key: summary[key] for key in ("piecewise affine", "other", "wrong", "not_run")}, indent=1))
    return int(bool(summary["wrong"] or summary["failed"]))


if __name__ == "__main__":
    sys.exit(main())
