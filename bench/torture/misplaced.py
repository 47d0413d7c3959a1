"""Whole files under the names of others, of the same run or of another one."""

from __future__ import annotations

import random
import shutil
import warnings
from collections import Counter
from pathlib import Path

from bench.torture import samples
from bench.torture.samples import Samples
from grokkit.errors import GrokkitError, TrajectoryError
from grokkit.trajectory import Run, resume


def misplaced_files(count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """`count` times a random file copied over another one's name: `verify` says it, reading it is an error where the
    file itself shows it, and the state of another run is never loaded. What was copied, and what was wrong."""
    chance, kinds, found = random.Random(seed), Counter[str](), list[str]()
    whole = samples.make_samples(folder)
    while kinds.total() < count:
        run, other = chance.choice([(whole.done, whole.other), (whole.stopped, whole.other_stopped)])
        source, target = _draw(run, other, chance)
        if source.read_bytes() == target.read_bytes():
            continue  # such as random images, which two runs of one config may share: no other file then
        kinds[samples.kind_of(source)] += 1
        is_foreign = source.is_relative_to(other.path)
        with samples.copied(run, folder) as copy:
            place = copy.path / target.relative_to(run.path)
            shutil.copy(source, place)
            try:
                with samples.time_limit():
                    faults = _faults(copy, place, source, is_foreign, whole)
            except Exception as error:
                faults = [f"{type(error).__name__}: {error}"]
        name = f"{source.relative_to(folder)} as {target.relative_to(run.path)}"
        found += [f"misplaced {kinds.total()}, {name}: {fault}" for fault in faults]
    return kinds, found


def _draw(run: Run, other: Run, chance: random.Random) -> tuple[Path, Path]:
    """Two files, the second one of the run; more often of one kind than by chance."""
    by_kind: dict[str, list[Path]] = {}
    for path in samples.list_files(run):
        by_kind.setdefault(samples.kind_of(path), []).append(path)
    target = chance.choice(by_kind[chance.choice(sorted(by_kind))])
    sources = [*samples.list_files(run), *samples.list_files(other)]
    if chance.random() < 0.5:
        sources = [path for path in sources if samples.kind_of(path) == samples.kind_of(target)]
    return chance.choice([path for path in sources if path != target]), target


def _faults(run: Run, place: Path, source: Path, is_foreign: bool, whole: Samples) -> list[str]:
    found = [] if any(str(place) in problem for problem in run.verify()) else ["verify does not notice it"]
    if not _looks_right(source, place, is_foreign):
        try:
            # of two states a reader takes the whole one
            samples.state_in(place) if samples.kind_of(place) == "resume" else samples.read_file(run, place)
        except TrajectoryError:
            pass
        else:
            found.append("it was read")
    if run.status["state"] != "done":
        found += _resume_faults(run, place, whole)
    return found


def _looks_right(source: Path, place: Path, is_foreign: bool) -> bool:
    """Whether a file alone says nothing else than its name does, so that a reader cannot know better; `verify`, which
    reads the manifest, does.

    A snapshot says its step, and a probe set its name: those of another run say the same. The two states of a run are
    found by what they say and not by their names; of another run's, which say so, none is loaded and none is refused
    by a reader as long as there is one of the run's own. A reading and maps say the seed and the probe sets by their
    folder's name, which differs between the runs.
    """
    kind = samples.kind_of(source)
    if kind != samples.kind_of(place):
        return False
    return kind == "resume" or (is_foreign and kind in ("snapshot", "probes") and source.name == place.name)


def _resume_faults(run: Run, place: Path, whole: Samples) -> list[str]:
    """No state of another run is loaded; the run ends with the bits of a straight one, but for the file that was
    overwritten, or is refused."""
    loaded = _loaded(run)
    own, foreign = (
        [samples.state_in(each.path / "resume" / name) for name in resume.RESUME_FILES]
        for each in (whole.stopped, whole.other_stopped)
    )
    found = ["the state of another run is read"] if loaded in foreign and loaded not in own else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which says what was put aside
        try:
            differing = samples.go_on(run, whole.done)
        except GrokkitError:
            return found
    name = str(place.relative_to(run.path))
    # A file of an earlier step that was put aside, or that was there already, is not written again.
    return found + [each for each in differing if not each.startswith(name)]


def _loaded(run: Run) -> dict[str, bytes] | None:
    try:
        return samples.read_file(run, run.path / "resume" / "0.h5")
    except TrajectoryError:
        return None
