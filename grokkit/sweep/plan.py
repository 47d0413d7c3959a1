"""A sweep file, read: which runs it asks for, with every choice resolved."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokkit import recipes
from grokkit.config.overrides import apply_cli_overrides, flatten, parse_seeds, with_overrides
from grokkit.config.run_config import RunConfig
from grokkit.errors import DataError, UsageError
from grokkit.recipes import Experiment
from grokkit.registry import did_you_mean

RUN_KEYS = ("experiment", "grid", "seeds", "steps", "data")
"""Keys of a `[[run]]`; at the top of the file they hold for every one that does not say otherwise."""
GROUP_KEYS = ("name", "after")
FILE_KEYS = ("device", "run")


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run that a sweep asks for.

    Args:
        config: every choice.
        study: name and source text of the experiment.
        group: name of its `[[run]]`, or empty.
        after: names of the groups that are to be done before.
        changes: what differs from the experiment's own config, by dotted key.
    """

    config: RunConfig
    study: Experiment
    group: str
    after: tuple[str, ...]
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a sweep file asks for; its runs are in the order in which they are to start."""

    name: str
    device: str | None
    runs: tuple[PlannedRun, ...]

    def of_group(self, name: str) -> list[PlannedRun]:
        """The runs of the `[[run]]` called `name`."""
        return [run for run in self.runs if run.group == name]


def read_plan(path: Path) -> Plan:
    """The plan in a sweep file.

    Raises:
        DataError: no such file, or not TOML.
        UsageError: a key, an experiment or a choice that does not exist, with the nearest that does; an `after` that
            names no group, or that waits for itself; the same run twice.
    """
    try:
        file = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no sweep file {path}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    entries = file.get("run", [{}])
    _check_keys(str(path), file, (*RUN_KEYS, *FILE_KEYS))
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{path}: runs are listed under [[run]], with two brackets")
    if file.get("device") not in (None, "cpu", "cuda"):
        raise UsageError(f"{path}: `device` must be cpu or cuda; got {file['device']!r}")
    common = {key: value for key, value in file.items() if key in RUN_KEYS}
    runs: list[PlannedRun] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, [[run]] {entry.get('name', number)}" if "run" in file else str(path)
        _check_keys(where, entry, (*RUN_KEYS, *GROUP_KEYS))
        if entry.get("name") in [run.group for run in runs if run.group]:
            raise UsageError(f"{path}: two [[run]] are called {entry['name']!r}")
        grid = flatten(_table(where, common)) | flatten(_table(where, entry))
        runs += _runs(where, {**common, **entry, "grid": grid})
    _check_distinct(path, runs)
    _check_order(path, runs)
    return Plan(path.stem, file.get("device"), tuple(runs))


def validate_plan(plan: Plan) -> None:
    """Look up every name and option of every run before the first one starts.

    Raises: as `grokkit.training.validate.validate_options`.

    Cost: the import of torch, and of Captum where there are attributions: some seconds.
    """
    from grokkit.training.validate import validate_options

    for run in plan.runs:
        validate_options(run.config)


def _check_keys(where: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            hint = did_you_mean(key, list(known)) or " A run's own choices, such as optimizer.lr, go under [grid]."
            raise UsageError(f"{where}: there is no key {key!r}.{hint} Known: {', '.join(known)}")


def _table(where: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    grid = entry.get("grid", {})
    if not isinstance(grid, Mapping):
        raise UsageError(f'{where}: `grid` is a table such as {{"optimizer.lr" = [0.1, 0.03]}}; got {grid!r}')
    return grid


def _runs(where: str, entry: Mapping[str, Any]) -> Iterator[PlannedRun]:
    """All runs of one entry: one seed of everything first, so that a night cut short has seen the whole grid."""
    if not isinstance(entry.get("experiment"), str):
        raise UsageError(f"{where}: `experiment` must name a study, or the path of its .py file")
    study = recipes.find_experiment(entry["experiment"])
    after = entry.get("after", [])
    waits_for = tuple(after if isinstance(after, list) else [after])
    if not all(isinstance(name, str) for name in (*waits_for, entry.get("name", ""))):
        raise UsageError(f"{where}: `name` is text, and `after` the name of another [[run]] or a list of names")
    made = study.configs()
    for seed in _seeds(where, entry.get("seeds")):
        for config, choice in itertools.product(made, _expand_grid(entry["grid"])):
            try:
                chosen = with_overrides(
                    apply_cli_overrides(config, entry.get("data"), seed, entry.get("steps")), choice
                )
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from error
            yield PlannedRun(chosen, study, entry.get("name", ""), waits_for, find_changes(config, chosen))


def _expand_grid(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the grid's values; a value that is no list is the only one."""
    for name, value in grid.items():
        if value == []:
            raise UsageError(f"`{name}` of the grid has no value to take")
    lists = [value if isinstance(value, list) else [value] for value in grid.values()]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*lists)]


def _seeds(where: str, seeds: Any) -> list[int | None]:
    if seeds is None:
        return [None]
    if isinstance(seeds, int) or (isinstance(seeds, list) and all(isinstance(seed, int) for seed in seeds)):
        seeds = ",".join(map(str, seeds if isinstance(seeds, list) else [seeds]))
    if not isinstance(seeds, str):
        raise UsageError(f'{where}: `seeds` must be text such as "0-3", or a list of numbers; got {seeds!r}')
    return [*parse_seeds(seeds)]


def find_changes(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """What `after` says differently, by dotted key; None stands for an option that is gone."""
    old, new = flatten(before.to_dict()), flatten(after.to_dict())
    return {key: new.get(key) for key in {**new, **old} if new.get(key) != old.get(key)}


def _check_distinct(path: Path, runs: list[PlannedRun]) -> None:
    seen: set[str] = set()
    for run in runs:
        if run.config.run_name in seen:
            raise UsageError(f"{path} asks for the same run twice: {run.config.run_name}")
        seen.add(run.config.run_name)


def _check_order(path: Path, runs: list[PlannedRun]) -> None:
    """Every `after` names a group, and no group waits for itself, over others or at once."""
    after = {run.group: set(run.after) for run in runs}
    groups = [name for name in after if name]
    for name in {each for run in runs for each in run.after}:
        if name not in groups:
            known = ", ".join(groups) or "none"
            raise UsageError(
                f"{path}: `after` names {name!r}, which no [[run]] is called.{did_you_mean(name, groups)} "
                f"Known: {known}"
            )
    for group in groups:
        reached = set(after[group])
        while more := {each for name in reached for each in after[name]} - reached:
            reached |= more
        if group in reached:
            raise UsageError(f"{path}: {group!r} waits for itself: `after` goes round in a circle")
