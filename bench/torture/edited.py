"""Runs whose choices, environment, logs, manifest or files somebody has edited, cut or removed."""

from __future__ import annotations

import copy
import json
import math
import random
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

import grokkit as gk
from bench.torture import samples
from grokkit.callbacks.base import BaseCallback
from grokkit.errors import GrokkitError
from grokkit.trajectory import Run, manifest

UNSEEN = ("LOCK", "diary.md")
"""Files that say nothing of what was computed: a lock that is gone is made again, a diary is its reader's own."""


class Edit(NamedTuple):
    """What was done to a run.

    Args:
        what: in words.
        said: what `verify` has to say, at least; empty: anything; None: it need say nothing.
        refused: whether neither a resume nor a replay may go on.
        lost: the file that a resumed run does not make good, as a result or as the metrics.
    """

    what: str
    said: str | None
    refused: bool = False
    lost: str = ""


def edited_runs(count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """`count` random edits of a run that is done or was stopped: `verify` says each, and names the field of a choice;
    a run with other choices is neither resumed nor replayed. What was edited, and what was wrong."""
    chance, kinds, found = random.Random(seed), Counter[str](), list[str]()
    whole = samples.make_samples(folder)
    while kinds.total() < count:
        kind = chance.choice(sorted(EDITS))
        with samples.copied(chance.choice([whole.done, whole.stopped]), folder) as run:
            edit = EDITS[kind](run, chance)
            if edit is None:
                continue  # it changes nothing, or nothing that can be known: each edit says why
            kinds[kind] += 1
            try:
                with samples.time_limit():
                    faults = _faults(run, edit, whole.done)
            except Exception as error:
                faults = [f"{type(error).__name__}: {error}"]
            found += [f"edit {kinds.total()}, {edit.what}: {fault}" for fault in faults]
    return kinds, found


def _faults(run: Run, edit: Edit, straight: Run) -> list[str]:
    said, wanted = run.verify(), edit.said
    is_said = wanted is None or any(wanted in problem for problem in said)
    found = [] if is_said else [f"verify does not say {wanted!r}: {said}"]
    if edit.refused:
        found += _faults_of_refusing(run)
    elif run.status["state"] != "done":
        found += _faults_of_resuming(run, edit, straight)
    return found


def _faults_of_resuming(run: Run, edit: Edit, straight: Run) -> list[str]:
    """It is refused, or goes on from its state and ends with the bits of a straight run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of lines that are left out
        try:
            differing = samples.go_on(run, straight)
        except GrokkitError:
            return []
        began_again = any(event["kind"] == "restarted" for event in run.events)
    found = [each for each in differing if not (edit.lost and edit.lost in each)]
    return [*found, "resume began again at step 0"] if began_again else found


def _faults_of_refusing(run: Run) -> list[str]:
    found, before = list[str](), _bytes_of(run)
    calls: dict[str, Callable[[], object]] = {"replay": lambda: gk.replay_run(run, ["loss"], device="cpu")}
    if run.status["state"] != "done":
        calls["resume"] = lambda: gk.resume(run.path, device="cpu", callback=BaseCallback())
    for name, call in calls.items():
        try:
            call()
        except GrokkitError:
            continue
        found.append(f"{name} goes on with it")
    return found if _bytes_of(run) == before else [*found, "what was refused changed the run"]


def _bytes_of(run: Run) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name not in UNSEEN}


# --- choices and environment ------------------------------------------------------------------------------------------


def _edit_config(run: Run, chance: random.Random) -> Edit | None:
    return _edit_table(run.path / "config.toml", chance, tomllib.loads, tomli_w.dumps, _toml_value)


def _edit_environment(run: Run, chance: random.Random) -> Edit | None:
    return _edit_table(run.path / "environment.json", chance, json.loads, json.dumps, _json_value)


def _edit_table(
    path: Path,
    chance: random.Random,
    parse: Callable[[str], Any],
    dump: Callable[[Any], str],
    value: Callable[[random.Random], Any],
) -> Edit | None:
    before = parse(path.read_text())
    after, field = _change_a_field(before, chance, value)
    if _is_same(before, after):
        return None
    path.write_text(dump(after))
    return Edit(f"{path.name}, {field}", _words_for(path, field, before, after), refused=True)


def _words_for(path: Path, field: str, before: Any, after: Any) -> str:
    """What `verify` says of a changed field: its name, or the field that cannot be what it is now."""
    try:
        manifest.read_config(path) if path.suffix == ".toml" else manifest.read_environment(path)
    except GrokkitError as error:
        return str(error)
    return f"{path} was changed: {field}"  # or a field of it, where one table was put in the place of another


def _is_same(before: Any, after: Any) -> bool:
    """Whether two documents say the same: JSON has one word for each value, and the manifest keeps a date, which TOML
    knows, and a number that is not finite as the text that stands for them."""
    return _as_kept(before) == _as_kept(after)


def _as_kept(value: Any) -> str:
    plain = json.loads(json.dumps(value, default=str), parse_constant=str)
    return json.dumps(plain, sort_keys=True)


def _change_a_field(
    before: dict[str, Any], chance: random.Random, draw: Callable[[random.Random], Any]
) -> tuple[dict[str, Any], str]:
    """A copy in which one field was given another value, added or removed, and the field's name."""
    after = copy.deepcopy(before)
    table, prefix = chance.choice(list(_tables(after, "")))
    how = chance.random()
    if how < 0.25 or not table:
        name = chance.choice(("extra", "batch_sise", "lr2", "Ünicode", "a-b", "with space"))
    else:
        name = chance.choice(sorted(table))
    if how > 0.75 and name in table:
        del table[name]
    else:
        table[name] = _near(table.get(name), chance) if chance.random() < 0.5 else draw(chance)
    return after, f"{prefix}{name}"


def _tables(document: dict[str, Any], prefix: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The document and every table within it, each with the path that stands in front of its fields."""
    yield document, prefix
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _tables(value, f"{prefix}{name}.")


def _near(value: Any, chance: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return chance.choice((not value, int(value)))
    if isinstance(value, int):
        return chance.choice((value + chance.choice((-1, 1, 10)), float(value), str(value)))
    if isinstance(value, float):
        return value * chance.choice((1 + 1e-15, 0.5, -1.0))
    if isinstance(value, str):
        return chance.choice((value + " ", value.upper(), value[:-1], f"{value}x"))
    if isinstance(value, list):
        return chance.choice((value[:-1], [*value, 0], value[::-1], [value]))
    return 0 if value is None else {**value, "more": 1}


def _toml_value(chance: random.Random) -> Any:
    numbers = (0, 1, -1, 2**63 - 1, 0.5, 1e300, math.nan, math.inf, True, False)
    return chance.choice((*numbers, "", "0", "text", [], [1, 2], {}, {"a": 1}))


def _json_value(chance: random.Random) -> Any:
    return chance.choice((None, [None], {"a": None}, _toml_value(chance)))


# --- logs and manifest ------------------------------------------------------------------------------------------------


def _edit_log(run: Run, chance: random.Random) -> Edit | None:
    path = run.path / chance.choice(manifest.LOGS)
    content = path.read_bytes()
    after, how = _edit_lines(content, chance)
    if after.startswith(content):
        # Nothing, or a line behind the end: the next attempt, which was killed, may have written it.
        return None
    path.write_bytes(after)
    return Edit(f"{path.name}, {how}", f"{path} was ", lost="metrics")


def _edit_manifest(run: Run, chance: random.Random) -> Edit | None:
    path = run.path / manifest.MANIFEST_FILE
    content, known = path.read_bytes(), manifest.read_manifest(run.path)
    after, how = _edit_lines(content, chance)
    if after.startswith(content):
        return None  # what is added behind the end is a replay's, or its first lines again
    path.write_bytes(after)
    # Where two lines that speak of different files have changed places, all lines together say what they said.
    is_same = len(after) == len(content) and manifest.read_manifest(run.path) == known
    return Edit(f"{path.name}, {how}", None if is_same else "")


def _edit_lines(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """A log that was cut, or of which a line was removed, doubled, moved or written over."""
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(content) + 1)
    if not lines or chance.random() < 0.25:
        return content[:at], f"cut at byte {at}"
    one, two = chance.randrange(len(lines)), chance.randrange(len(lines))
    how = chance.choice(("removed", "doubled", "moved", "written over"))
    if how == "removed":
        del lines[one]
    elif how == "doubled":
        lines.insert(two, lines[one])
    elif how == "moved":
        lines[one], lines[two] = lines[two], lines[one]
    else:
        bent = bytearray(lines[one])
        bent[chance.randrange(len(bent))] ^= 1 << chance.randrange(8)
        lines[one] = bytes(bent)
    return b"".join(lines), f"line {one + 1} {how} ({two + 1})"


# --- files ------------------------------------------------------------------------------------------------------------


def _remove_file(run: Run, chance: random.Random) -> Edit | None:
    files = [path for path in run.path.rglob("*") if path.is_file() and path.name not in (*UNSEEN, "status.json")]
    path = chance.choice(sorted(files))
    if not path.read_bytes():
        return None  # an empty log is one that was never written
    path.unlink()
    chosen = path.name in manifest.START_FILES or path.parent.name == "probes"
    name = str(path.relative_to(run.path))
    return Edit(f"{name} removed", str(path), refused=chosen, lost="metrics" if path.suffix == ".jsonl" else name)


EDITS: dict[str, Callable[[Run, random.Random], Edit | None]] = {
    "choices": _edit_config,
    "environment": _edit_environment,
    "logs": _edit_log,
    "manifest": _edit_manifest,
    "files removed": _remove_file,
}
