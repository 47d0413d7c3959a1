"""`grokkit diff A B`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.cli.text import align_table, pretty_json
from grokkit.escape import escape_controls


def main(argv: list[str]) -> None:
    """Parse arguments and compare the runs."""
    parse_arguments("diff", diff, argv)


def diff(
    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")],
    as_json: bool = False,
) -> None:
    """Compare two runs: config, environment, data, source, results, and the first step at which they differ.

    Try:
        grokkit diff runs/quickstart/constant-s0-1a2b3c4d runs/quickstart/decay_at_peak-s0-5e6f7a8b

    Args:
        a: folder of the first run.
        b: folder of the second run.
        as_json: print JSON instead of tables.
    """
    from grokkit.analysis.compare_runs import compare_runs
    from grokkit.trajectory import open_run

    runs = open_run(a), open_run(b)
    comparison = compare_runs(*runs)
    if as_json:
        print(pretty_json({"a": str(a), "b": str(b), **comparison}))
        return
    print(f"a  {a}\nb  {b}")
    for section in ("config", "environment", "data"):
        print(_format_table(section, comparison[section]))
    source = escape_controls(comparison["experiment"], keep="\n\t")
    print(f"\nexperiment\n{source}" if source else "\nexperiment: the same source")
    print(_format_table("results", comparison["results"]))
    print(f"\nmetrics    {_format_agreement(comparison['metrics'], 'value')}")
    print(f"snapshots  {_format_agreement(comparison['snapshots'], 'snapshot')}")


def _format_table(section: str, differences: Mapping[str, list[Any]]) -> str:
    if not differences:
        return f"\n{section}: the same"
    return "\n" + align_table(
        [section, "a", "b"], [[key, *map(_format_value, values)] for key, values in differences.items()]
    )


def _format_value(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
        if isinstance(value, str)
        else json.dumps(value, default=str)
    )


def _format_agreement(agreement: Mapping[str, Any], noun: str) -> str:
    """Format as in `bit-identical up to step 40, different from step 41 on: batch.loss (87 values compared)`."""
    compared, until, since = agreement["compared"], agreement["identical_up_to"], agreement["differs_at"]
    total = f"({compared} {noun}{'s' * (compared != 1)} compared)"
    if not compared:
        return f"no {noun} in common"
    if since is None:
        return f"bit-identical up to step {until}, the last one in common {total}"
    difference = f"different from step {since} on: {', '.join(agreement['differs_in'])} {total}"
    return difference if until is None else f"bit-identical up to step {until}, {difference}"
