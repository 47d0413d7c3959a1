"""Run folders written by hand for the tests of the live view: no training, every number known."""

import json
from pathlib import Path

import numpy as np

from grokkit.names import ProbeSet, Reading
from grokkit.trajectory import run, store
from grokkit.trajectory.log import Log

IMAGES = np.arange(2 * 9, dtype=np.uint8).reshape(2, 1, 3, 3)
PROBES = [ProbeSet("test", IMAGES, np.array([1, 0]), "here", np.array([0, 1]))]


def make(path: Path, seed: int = 0, total: int | None = 1000, **config: object) -> Path:
    """A run that has just started."""
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"seed": seed, **config}.items())
    facts = {"device": "cpu", "data": {"train": 120, "classes": ["no", "yes"]}}
    status = {"state": "starting", "step": 0, "total_steps": total, "attempt": 1}
    run.create_run(path, config=text, environment=facts, probes=PROBES, status=status)
    return path


def log(path: Path, *rows: tuple[int, float], split="batch", metric="loss", attempt=1) -> None:
    """Append numbers to metrics.jsonl."""
    written = Log(path / "metrics.jsonl", attempt)
    for step, value in rows:
        written.append({"step": step, "split": split, "metric": metric, "value": value})
    written.close()


def event(path: Path, step: int, kind: str, text: str, attempt=1) -> None:
    written = Log(path / "events.jsonl", attempt)
    written.append({"step": step, "kind": kind, "text": text, "time": 0.0})
    written.close()


def complexity(path: Path, step: int, *layers: float, seed: int = 0, radius: float = 0.1) -> Path:
    """Store a reading of local complexity with these layers, on one probe set at one radius."""
    values = np.array([[[*layers, sum(layers)]]], dtype=float)
    names = (*(f"relu{n}" for n in range(len(layers))), "total")
    coords = {"probe_set": ("test",), "radius": (radius,), "layer": names}
    settings = {"parameters": {"radii": [radius]}, "directions": 4, "seed": seed}
    reading = Reading("local_complexity", values, tuple(coords), coords, "units", 2, settings=settings)
    folder = path / "measures" / f"local_complexity-{seed:08x}"
    store.write_reading(folder, step, reading)
    return folder / store.step_file_name(step)


def maps(path: Path, step: int, values: np.ndarray, method: str = "integrated_gradients") -> None:
    """Store attribution maps (image, channel, height, width)."""
    folder = path / "attributions" / f"{method}-00000000"
    store.write_attribution(folder, step, values, np.array([1, 0]), {"method": method, "probe_set": "test"})


def reading(path: Path, step: int, measure: str, values: np.ndarray, seed: int = 0, settings=None, **coords) -> Reading:
    """Store a reading of any measure with these coordinates, and return it."""
    made = Reading(measure, np.asarray(values, float), tuple(coords), coords, "1", settings=settings or {})
    store.write_reading(path / "measures" / f"{measure}-{seed:08x}", step, made)
    return made
