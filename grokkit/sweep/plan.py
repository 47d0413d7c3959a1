"""Read a sweep file (TOML) and expand it into runs with complete configs."""

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
"""Keys of a `[[run]]`; at the top level of the file they are defaults for every `[[run]]`."""
GROUP_KEYS = ("name", "after")
FILE_KEYS = ("device", "run")


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run of a sweep.

    Args:
        config: complete config of the run.
        study: name and source text of the experiment.
        group: name of its `[[run]]`, or empty.
        after: names of the groups that must be done before it starts.
        changes: config values that differ from the experiment's config, by dotted key.
    """

    config: RunConfig
    study: Experiment
    group: str
    after: tuple[str, ...]
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """Content of a sweep file; its runs are in the order in which they start."""

    name: str
    device: str | None
    runs: tuple[PlannedRun, ...]

    def runs_in_group(self, name: str) -> list[PlannedRun]:
        """Return the runs of the `[[run]]` called `name`."""
        return [run for run in self.runs if run.group == name]


def read_plan(path: Path) -> Plan:
    """Read a sweep file and return its plan.

    Raises:
        DataError: the file does not exist, cannot be read or is not TOML.
        UsageError: an unknown key, experiment or option, with the closest known name; an `after` that names an unknown
            group or is circular; the same run twice.
    """
    try:
        file = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"sweep file {path} not found") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    entries = file.get("run", [{}])
    _check_keys(str(path), file, (*RUN_KEYS, *FILE_KEYS))
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(
            f"{path}: expected the runs as a list of tables under [[run]], with two brackets; got {entries!r}"
        )
    if file.get("device") not in (None, "cpu", "cuda"):
        raise UsageError(f"{path}: `device` must be cpu or cuda; got {file['device']!r}")
    common = {key: value for key, value in file.items() if key in RUN_KEYS}
    runs: list[PlannedRun] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, [[run]] {entry.get('name', number)}" if "run" in file else str(path)
        _check_keys(where, entry, (*RUN_KEYS, *GROUP_KEYS))
        if entry.get("name") in [run.group for run in runs if run.group]:
            raise UsageError(f"{path}: two [[run]] have the name {entry['name']!r}")
        grid = flatten(_read_grid(where, common)) | flatten(_read_grid(where, entry))
        runs += _expand_runs(where, {**common, **entry, "grid": grid})
    _check_distinct(path, runs)
    _check_order(path, runs)
    return Plan(path.stem, file.get("device"), tuple(runs))


def validate_plan(plan: Plan) -> None:
    """Validate every name and option of every run before the first one starts.

    Raises: as `grokkit.training.validate.validate_options`.

    Cost: the import of torch, and of Captum if there are attributions: some seconds.
    """
    from grokkit.training.validate import validate_options

    for run in plan.runs:
        validate_options(run.config)


def _check_keys(where: str, entry: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in entry:
        if key not in known:
            hint = (
                did_you_mean(key, list(known)) or " Config fields of a run, such as optimizer.lr, belong under [grid]."
            )
            raise UsageError(f"{where}: unknown key {key!r}.{hint} Known: {', '.join(known)}")


def _read_grid(where: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    grid = entry.get("grid", {})
    if not isinstance(grid, Mapping):
        raise UsageError(f'{where}: `grid` must be a table such as {{"optimizer.lr" = [0.1, 0.03]}}; got {grid!r}')
    return grid


def _expand_runs(where: str, entry: Mapping[str, Any]) -> Iterator[PlannedRun]:
    """Yield all runs of one `[[run]]`, seed by seed, so that a sweep cut short has covered the whole grid."""
    if not isinstance(entry.get("experiment"), str):
        raise UsageError(
            f"{where}: `experiment` must be the name of an experiment or the path of its .py file; got "
            f"{entry.get('experiment')!r}"
        )
    study = recipes.find_experiment(entry["experiment"])
    after = entry.get("after", [])
    groups_before = tuple(after if isinstance(after, list) else [after])
    if not all(isinstance(name, str) for name in (*groups_before, entry.get("name", ""))):
        raise UsageError(
            f"{where}: `name` must be text, and `after` the name of another [[run]] or a list of names; got "
            f"name = {entry.get('name', '')!r}, after = {after!r}"
        )
    base_configs = study.configs()
    for seed in _read_seeds(where, entry.get("seeds")):
        for config, overrides in itertools.product(base_configs, _expand_grid(entry["grid"])):
            try:
                resolved = with_overrides(
                    apply_cli_overrides(config, entry.get("data"), seed, entry.get("steps")), overrides
                )
            except UsageError as error:
                raise UsageError(f"{where}: {error}") from error
            yield PlannedRun(resolved, study, entry.get("name", ""), groups_before, find_changes(config, resolved))


def _expand_grid(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of the grid's values; a value that is no list counts as a list of one."""
    for name, value in grid.items():
        if value == []:
            raise UsageError(f"`{name}` in the grid is an empty list; expected at least one value")
    lists = [value if isinstance(value, list) else [value] for value in grid.values()]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*lists)]


def _read_seeds(where: str, seeds: Any) -> list[int | None]:
    if seeds is None:
        return [None]
    if isinstance(seeds, int) or (isinstance(seeds, list) and all(isinstance(seed, int) for seed in seeds)):
        seeds = ",".join(map(str, seeds if isinstance(seeds, list) else [seeds]))
    if not isinstance(seeds, str):
        raise UsageError(f'{where}: `seeds` must be text such as "0-3", or a list of numbers; got {seeds!r}')
    return [*parse_seeds(seeds)]


def find_changes(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """Return the values of `after` that differ from `before`, by dotted key; None for an option that `after` lacks."""
    old, new = flatten(before.to_dict()), flatten(after.to_dict())
    return {key: new.get(key) for key in {**new, **old} if new.get(key) != old.get(key)}


def _check_distinct(path: Path, runs: list[PlannedRun]) -> None:
    seen: set[str] = set()
    for run in runs:
        if run.config.run_name in seen:
            raise UsageError(f"{path} contains the same run twice: {run.config.run_name}")
        seen.add(run.config.run_name)


def _check_order(path: Path, runs: list[PlannedRun]) -> None:
    """Raise UsageError if an `after` names an unknown group or a group waits for itself, directly or through others."""
    after = {run.group: set(run.after) for run in runs}
    groups = [name for name in after if name]
    for name in {each for run in runs for each in run.after}:
        if name not in groups:
            known = ", ".join(groups) or "none"
            raise UsageError(
                f"{path}: `after` names {name!r}, but no [[run]] has that name.{did_you_mean(name, groups)} "
                f"Known: {known}"
            )
    for group in groups:
        reached = set(after[group])
        while more := {each for name in reached for each in after[name]} - reached:
            reached |= more
        if group in reached:
            raise UsageError(f"{path}: {group!r} waits for itself: `after` is circular")
