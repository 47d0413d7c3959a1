"""`grokkit diff A B`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.cli.text import align_table
from grokkit.cli.text import pretty_json as in_json
from grokkit.escape import escape_controls


def main(argv: list[str]) -> None:
    """Read the words and compare."""
    parse_arguments("diff", diff, argv)


def diff(
    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")],
    as_json: bool = False,
) -> None:
    """Say what two runs differ in: choices, machine, data, source, results, and from which step on.

    Try:
        grokkit diff runs/quickstart/constant-s0-1a2b3c4d runs/quickstart/decay_at_peak-s0-5e6f7a8b

    Args:
        a: a run's folder.
        b: another's.
        as_json: print JSON instead of tables.
    """
    from grokkit.analysis.compare_runs import compare_runs
    from grokkit.trajectory import open_run

    runs = open_run(a), open_run(b)
    told = compare_runs(*runs)
    if as_json:
        print(in_json({"a": str(a), "b": str(b), **told}))
        return
    print(f"a  {a}\nb  {b}")
    for part in ("config", "environment", "data"):
        print(_table(part, told[part]))
    source = escape_controls(told["experiment"], keep="\n\t")
    print(f"\nexperiment\n{source}" if source else "\nexperiment: the same source")
    print(_table("results", told["results"]))
    print(f"\nmetrics    {_format_agreement(told['metrics'], 'value')}")
    print(f"snapshots  {_format_agreement(told['snapshots'], 'snapshot')}")


def _table(part: str, unequal: Mapping[str, list[Any]]) -> str:
    if not unequal:
        return f"\n{part}: the same"
    return "\n" + align_table([part, "a", "b"], [[key, *map(_format_value, values)] for key, values in unequal.items()])


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


def _format_agreement(told: Mapping[str, Any], noun: str) -> str:
    """`bit-identical up to step 40, different from step 41 on: batch.loss (87 values compared)`."""
    compared, until, since = told["compared"], told["identical_up_to"], told["differs_at"]
    counted = f"({compared} {noun}{'s' * (compared != 1)} compared)"
    if not compared:
        return f"no {noun} that both have"
    if since is None:
        return f"bit-identical up to step {until}, the last that both have {counted}"
    begins = f"different from step {since} on: {', '.join(told['differs_in'])} {counted}"
    return begins if until is None else f"bit-identical up to step {until}, {begins}"
