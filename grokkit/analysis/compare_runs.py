"""Compare two runs: config, environment, data, source, results, and the first step that differs. Reads files only."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from grokkit.config.overrides import flatten
from grokkit.trajectory import Run, checksummed, documents, log, store
from grokkit.trust import read_regular

SOURCE_LINES = 60
"""Maximum number of lines of the diff between two experiments."""


def compare_runs(a: Run, b: Run) -> dict[str, Any]:
    """Return every difference between two runs.

    Returns:
        `config`, `environment`, `data`, `results`: dotted key -> [value of a, value of b] for the keys that differ,
        None for a missing key; `experiment`: unified diff of the sources, empty if they are equal; `metrics`,
        `snapshots`: see `_find_agreement`.

    Cost: reads both metric logs, and the digest of every snapshot that both runs have.
    """
    (environment_a, data_a), (environment_b, data_b) = _split_environment(a), _split_environment(b)
    return {
        "config": _find_differences(flatten(a.config), flatten(b.config)),
        "environment": _find_differences(environment_a, environment_b),
        "data": _find_differences(data_a, data_b),
        "experiment": _diff_sources(a, b),
        "results": _find_differences(_get_results(a), _get_results(b)),
        "metrics": _find_agreement(_read_curves(a), _read_curves(b)),
        "snapshots": _find_agreement(*_read_digests(a, b)),
    }


def _find_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [a.get(key), b.get(key)] for key in {**a, **b} if not _is_equal(a.get(key), b.get(key))}


def _is_equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal; NaN equals NaN."""
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return bool(a == b) or both_nan


def _split_environment(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return environment.json without its `data` entry, and that entry, both flattened."""
    environment = dict(run.environment)
    data = environment.pop("data", {})
    return flatten(environment), flatten(data)


def _get_results(run: Run) -> dict[str, Any]:
    """Return the state, step and newest metrics of a run."""
    return {"state": run.state, "step": run.status.get("step", 0), **run.newest_metrics()}


def _diff_sources(a: Run, b: Run) -> str:
    name_a, name_b = (f"{run.name}/experiment.py" for run in (a, b))
    lines = list(difflib.unified_diff(_read_source(a), _read_source(b), name_a, name_b, n=1, lineterm=""))
    omitted = len(lines) - SOURCE_LINES
    return "\n".join(lines[:SOURCE_LINES] + ([f"... {omitted} more lines"] if omitted > 0 else []))


def _read_source(run: Run) -> list[str]:
    try:
        return read_regular(run.path / "experiment.py").decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _read_curves(run: Run) -> dict[tuple[int, str], Any]:
    """Return the value at each (step, metric); a step that was repeated has the value of its newest attempt."""
    latest: dict[tuple[int, str], tuple[int, Any]] = {}
    for record in log.read_log(run.path / "metrics.jsonl", documents.parse_metric):
        key = record["step"], f"{record['split']}.{record['metric']}"
        if key not in latest or record["attempt"] >= latest[key][0]:
            latest[key] = record["attempt"], record["value"]
    return {key: value for key, (_, value) in latest.items()}


def _read_digests(a: Run, b: Run) -> tuple[dict[tuple[int, str], Any], dict[tuple[int, str], Any]]:
    """Return the digest at (step, "weights") of every snapshot that both runs have.

    Snapshots in different format versions are skipped, because their digests are not comparable.
    """
    digests: tuple[dict[tuple[int, str], Any], ...] = ({}, {})
    for step in sorted({*a.steps()} & {*b.steps()}):
        (version_a, digest_a), (version_b, digest_b) = (_read_digest(run, step) for run in (a, b))
        if version_a == version_b:
            digests[0][step, "weights"], digests[1][step, "weights"] = digest_a, digest_b
    return digests[0], digests[1]


def _read_digest(run: Run, step: int) -> tuple[int, str]:
    """Return the format version and the digest of a snapshot."""
    path = run.path / "snapshots" / store.step_file_name(step)
    with checksummed.open_h5(path, "snapshot") as file:
        return int(file.attributes["version"]), file.read_claimed_digest()


def _find_agreement(a: Mapping[tuple[int, str], Any], b: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    """Return how far two curves agree bit for bit, over the (step, name) keys that both have.

    Returns:
        `compared`: number of shared keys; `identical_up_to`: the last step before the first difference, None if there
        is none; `differs_at`, `differs_in`: step and names of the first difference, None and empty if there is none.
    """
    shared = sorted(a.keys() & b.keys())
    unequal = [key for key in shared if not _is_equal(a[key], b[key])]
    differs_at = unequal[0][0] if unequal else None
    before = [step for step, _ in shared if differs_at is None or step < differs_at]
    return {
        "compared": len(shared),
        "identical_up_to": max(before, default=None),
        "differs_at": differs_at,
        "differs_in": [name for step, name in unequal if step == differs_at],
    }
