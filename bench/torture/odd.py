"""Odd documents in one of several runs: all the others go on, and the odd one is shown as such."""

from __future__ import annotations

import io
import json
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

import grokkit as gk
from bench.torture import oddities, samples
from grokkit.cli import main
from grokkit.errors import GrokkitError, TrajectoryError
from grokkit.live.run_browser import RunBrowser
from grokkit.names import ProbeSet, Reading
from grokkit.trajectory import Run, run, store
from grokkit.trajectory.log import Log

RUNS = 3
PROBE = ProbeSet("test", np.zeros((2, 1, 3, 3), np.uint8), np.array([1, 0]), "here", np.arange(2))
OURS = (0, TrajectoryError.exit_code)
"""Exit codes of a verb that could read a run, and of one that could not."""


def odd_documents(count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """`count` times one to three odd things in one of three runs; `ls`, `status`, `verify`, the table and the page have
    all of the others. How the odd ones were shown, and what was wrong."""
    chance, shown, found = random.Random(seed), Counter[str](), list[str]()
    whole = folder / "whole"
    for number in range(RUNS):
        make_run(whole / "study" / f"run-s{number}", number)
    wanted = {run.path.name: gk.table(run) for run in gk.trajectory.find_runs(whole)}
    for number in range(count):
        place = folder / "trial"
        shutil.copytree(whole, place)
        odd = place / "study" / f"run-s{chance.randrange(RUNS)}"
        what = _harm(odd, chance)
        try:
            with samples.time_limit(), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                state, faults = _faults(place, odd, wanted, said)
        except BaseException as error:
            state, faults = "unforeseen", [f"{type(error).__name__}: {error}"]
        shown[state] += 1
        found += [f"odd {number}, {what}: {fault}" for fault in faults]
        shutil.rmtree(place)
    return shown, found


def make_run(path: Path, seed: int) -> None:
    """A finished run with metrics, an event, a reading and maps."""
    status: dict[str, Any] = {"state": "done", "step": 2, "total_steps": 1000, "attempt": 1, "costs": {"training": 1.0}}
    facts = {"device": "cpu", "data": {"train": 120, "classes": ["no", "yes"]}}
    run.create_run(
        path, config=f'seed = {seed}\nbatch_size = 50\nloss = "mse"\n', environment=facts, probes=[PROBE], status=status
    )
    metrics, events = Log(path / "metrics.jsonl", 1), Log(path / "events.jsonl", 1)
    for step in (1, 2):
        metrics.append({"step": step, "split": "batch", "metric": "loss", "value": 3.0 - step})
    events.append({"step": 2, "kind": "slow", "text": "it is slow", "time": 0.0})
    metrics.close()
    events.close()
    coords = {"probe_set": ("test",), "layer": ("a", "total")}
    reading = Reading("weight_norm", np.ones((1, 2)), tuple(coords), coords, "1", 2)
    store.write_reading(path / "measures" / "weight_norm-00000000", 1, reading)
    maps = path / "attributions" / "saliency-00000000"
    store.write_attribution(maps, 1, np.ones((2, 1, 3, 3)), np.array([1, 0]), oddities.NOTE)


def _harm(path: Path, chance: random.Random) -> str:
    """Put odd things into a run; what they are."""
    done = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        what, odd = oddities.random_oddity(chance)
        try:
            odd(path)
            done.append(what)
        except (OSError, GrokkitError):
            continue  # one that does not go beside an earlier one, such as a line of a log that is a folder
    return ", ".join(done)


def _faults(
    place: Path, odd: Path, wanted: dict[str, Any], said: list[warnings.WarningMessage]
) -> tuple[str, list[str]]:
    state = _state_of(odd)
    found = _of_ls(place, odd, state) + _of_page(place, odd, state) + _of_table(place, odd, wanted, said)
    for path in sorted((place / "study").iterdir()):
        found += _of_one(path, path == odd)
    return state if state != "done" else "harmless or a remark", found


def _state_of(path: Path) -> str:
    try:
        return Run(path).state
    except TrajectoryError:
        return "unreadable"


def _of_ls(place: Path, odd: Path, state: str) -> list[str]:
    code, out, _ = _say(["ls", str(place), "--as-json"])
    rows = {Path(row["path"]).name: row for row in json.loads(out, parse_constant=_refuse)} if code == 0 else {}
    if len(rows) != RUNS:
        return [f"ls ends with {code} and shows {sorted(rows)}"]
    found = [
        f"ls shows {name} as {row['state']}"
        for name, row in rows.items()
        if name != odd.name and row["state"] != "done"
    ]
    mine = rows[odd.name]
    if mine["state"] != state or (state == "unreadable" and "cannot be read" not in mine.get("reason", "")):
        found.append(f"ls shows {state} as {mine}")
    code, out, _ = _say(["ls", str(place)])
    return found if code == 0 and not _controls(out) else [*found, f"ls ends with {code}, or writes to the terminal"]


def _of_page(place: Path, odd: Path, state: str) -> list[str]:
    study = RunBrowser([place])
    told = study.update()
    told = study.update(groups=[group["key"] for group in told["groups"]])
    json.dumps(told, allow_nan=False)
    runs = {Path(each["name"]).name: each for each in told["runs"].values()}
    if len(runs) != RUNS:
        return [f"the page shows {sorted(runs)}"]
    found = [
        f"the page shows {name} as {each['state']}, {each['problems']}"
        for name, each in runs.items()
        if name != odd.name and (each["state"] != "done" or each["problems"])
    ]
    mine = runs[odd.name]
    if mine["state"] != state or any("cannot be followed" in problem for problem in mine["problems"]):
        found.append(f"the page shows {state} as {mine['state']}, {mine['problems']}")
    for document in ("status", "config", "environment"):
        problem = _problem(lambda document=document: getattr(Run(odd), document))
        if problem and problem not in mine["problems"]:
            found.append(f"the page does not say {problem!r:.200}")
    return found


def _of_table(place: Path, odd: Path, wanted: dict[str, Any], said: list[warnings.WarningMessage]) -> list[str]:
    frame = gk.table(gk.trajectory.find_runs(place))
    found = []
    for name, own in wanted.items():
        mine = frame[frame.run == f"study/{name}"].reset_index(drop=True)
        # The label of its group names what differs from the other runs.
        if name != odd.name and not mine.drop(columns="group").equals(own.drop(columns="group")):
            found.append(f"the table has other rows of {name}")
    problem = _problem(lambda: gk.table(odd))
    if problem and not any(str(odd) in str(each.message) for each in said):
        found.append(f"the table does not say {problem!r:.200}")
    return found


def _of_one(path: Path, is_odd: bool) -> list[str]:
    found = []
    problems = Run(path).verify()
    if not is_odd and problems:
        found.append(f"verify of {path.name} says {problems}")
    if not all(isinstance(problem, str) and len(problem) < 2000 for problem in problems):
        found.append("verify says what is no sentence")
    for words in (["status", str(path)], ["status", str(path), "--verify"], ["status", str(path), "--as-json"]):
        code, out, err = _say(words)
        if code not in (OURS if is_odd else (0,)) or _controls(out + err):
            found.append(f"{' '.join(words[::2])} of {path.name} ends with {code}: {err:.200}")
    for document in ("status", "config", "environment"):
        problem = _problem(lambda document=document: getattr(Run(path), document))
        if problem and not any(problem == each for each in problems):
            found.append(f"verify does not say {problem!r:.200}")
    return found


def _problem(read: Callable[[], object]) -> str:
    """What an error of ours says; empty where there is none. Any other error is a fault, and goes on up."""
    try:
        read()
    except GrokkitError as error:
        return str(error)
    return ""


def _say(words: list[str]) -> tuple[int, str, str]:
    """Exit code of the command line and what it writes."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def _controls(text: str) -> bool:
    """Whether a text would move a terminal's cursor or turn its lines about."""
    return bool({"\x1b", "\x07", "\u202e", "\0"} & set(text))


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
