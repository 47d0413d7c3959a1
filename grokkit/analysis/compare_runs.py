"""What two runs differ in: choices, machine, data, source, results, and from which step on. Reads files alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from grokkit.config.overrides import flatten
from grokkit.trajectory import Run, checksummed, documents, log, store
from grokkit.trust import read_regular

SOURCE_LINES = 60
"""Lines of the difference between two experiments, at most."""


def compare_runs(a: Run, b: Run) -> dict[str, Any]:
    """Everything that `b` says otherwise than `a`.

    Returns:
        `config`, `environment`, `data`, `results`: dotted key -> [of a, of b], where they differ, None for what one of
        them lacks; `experiment`: unified diff of the sources, empty where they agree; `metrics`, `snapshots`: as
        `_agreement` gives them.

    Cost: reads both logs of metrics, and the digest of every snapshot that both have.
    """
    (machine_a, data_a), (machine_b, data_b) = _machine(a), _machine(b)
    return {
        "config": _find_unequal(flatten(a.config), flatten(b.config)),
        "environment": _find_unequal(machine_a, machine_b),
        "data": _find_unequal(data_a, data_b),
        "experiment": _source_difference(a, b),
        "results": _find_unequal(_results(a), _results(b)),
        "metrics": _find_agreement(_curves(a), _curves(b)),
        "snapshots": _find_agreement(*_digests(a, b)),
    }


def _find_unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [a.get(key), b.get(key)] for key in {**a, **b} if not _is_same(a.get(key), b.get(key))}


def _is_same(a: Any, b: Any) -> bool:
    """Equal; a value that is no number is equal to itself."""
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return bool(a == b) or both_nan


def _machine(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """environment.json without the data, and what it says of the data."""
    told = dict(run.environment)
    data = told.pop("data", {})
    return flatten(told), flatten(data)


def _results(run: Run) -> dict[str, Any]:
    """Where the run is, and its newest numbers."""
    return {"state": run.state, "step": run.status.get("step", 0), **run.newest_metrics()}


def _source_difference(a: Run, b: Run) -> str:
    of_a, of_b = (f"{run.name}/experiment.py" for run in (a, b))
    lines = list(difflib.unified_diff(_source(a), _source(b), of_a, of_b, n=1, lineterm=""))
    left = len(lines) - SOURCE_LINES
    return "\n".join(lines[:SOURCE_LINES] + ([f"... {left} more lines"] if left > 0 else []))


def _source(run: Run) -> list[str]:
    try:
        return read_regular(run.path / "experiment.py").decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _curves(run: Run) -> dict[tuple[int, str], Any]:
    """Value at (step, metric); of a repeated step the newest attempt counts."""
    latest: dict[tuple[int, str], tuple[int, Any]] = {}
    for record in log.read_log(run.path / "metrics.jsonl", documents.parse_metric):
        key = record["step"], f"{record['split']}.{record['metric']}"
        if key not in latest or record["attempt"] >= latest[key][0]:
            latest[key] = record["attempt"], record["value"]
    return {key: value for key, (_, value) in latest.items()}


def _digests(a: Run, b: Run) -> tuple[dict[tuple[int, str], Any], dict[tuple[int, str], Any]]:
    """Digest at (step, "weights") of the snapshots that both have; two that were written in different formats, whose
    digests say nothing about each other, are left out."""
    found: tuple[dict[tuple[int, str], Any], ...] = ({}, {})
    for step in sorted({*a.steps()} & {*b.steps()}):
        (old, first), (new, second) = (_digest(run, step) for run in (a, b))
        if old == new:
            found[0][step, "weights"], found[1][step, "weights"] = first, second
    return found[0], found[1]


def _digest(run: Run, step: int) -> tuple[int, str]:
    """Format version and digest of a snapshot."""
    path = run.path / "snapshots" / store.step_file_name(step)
    with checksummed.open_h5(path, "snapshot") as file:
        return int(file.attributes["version"]), file.claimed_digest()


def _find_agreement(a: Mapping[tuple[int, str], Any], b: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    """How far two curves agree bit for bit, at the (step, name) that both have.

    Returns:
        `compared`: how many; `identical_up_to`: the last step before the first difference, None where there is none;
        `differs_at`, `differs_in`: where the first difference is and its names, None and empty where there is none.
    """
    shared = sorted(a.keys() & b.keys())
    unequal = [key for key in shared if not _is_same(a[key], b[key])]
    differs_at = unequal[0][0] if unequal else None
    before = [step for step, _ in shared if differs_at is None or step < differs_at]
    return {
        "compared": len(shared),
        "identical_up_to": max(before, default=None),
        "differs_at": differs_at,
        "differs_in": [name for step, name in unequal if step == differs_at],
    }
