"""Taking a measure or an attribution at one step and storing it; the recorder and the replay both come here,
so a replayed number cannot differ from a live one by construction of the two."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grokkit import attributions
from grokkit.errors import DamagedError, GrokkitError, MisplacedError, NumericsError, TrajectoryError
from grokkit.measures import registry
from grokkit.measures.base import Context, Measure, get_settings, select_labelled, to_tensor
from grokkit.names import ProbeSet, Reading
from grokkit.trajectory import checksummed, manifest, store
from grokkit.trajectory.recover import quarantine


def measure_id(measure: Measure, probes: Mapping[str, ProbeSet], seed: int) -> str:
    """Identity of a measure's readings in one run: its name and a hash of parameters, seed and probe sets."""
    settings = {**get_settings(measure), "seed": seed}
    return store.make_identity(registry.name_of(type(measure)), settings, probes.values())


def measure_and_store(run: Path, step: int, measure: Measure, context: Context) -> Reading:
    """Call `measure`, check that its values are finite, store the reading in `run`.

    Raises:
        GrokkitError: what the measure raised, with its name and the step in front.
        NumericsError: a value is not finite.
    """
    identity = measure_id(measure, context.probes, context.seed)
    try:
        reading = measure(context)
    except GrokkitError as error:
        raise type(error)(f"{identity} at step {step}: {error}") from error
    if not np.isfinite(reading.values).all():
        raise NumericsError(f"{identity} at step {step}: a value is not finite; the weights may have diverged")
    note = {"parameters": get_settings(measure), "seed": context.seed, **reading.settings}
    folder = run / "measures" / identity
    digest = store.write_reading(folder, step, dataclasses.replace(reading, settings=note))
    manifest.add_file(run, folder / store.step_file_name(step), "reading", step, digest)
    return reading


@dataclass(frozen=True)
class AttributionSpec:
    """Which attribution to take along a trajectory.

    Args:
        method: a name from `grokkit.attributions.names()`.
        images: how many, the first ones of the probe set.
        probe_set: whose images; targets are their labels, the same at every step.
        parameters: the method's own.
    """

    method: str
    images: int = 8
    probe_set: str = "test"
    parameters: Mapping[str, Any] | None = None

    def identity(self, probes: Mapping[str, ProbeSet], seed: int) -> str:
        """`<method>-<hash>`: the folder of its maps."""
        own = dataclasses.asdict(attributions.create(self.method, **(self.parameters or {})))
        settings = {"images": self.images, "seed": seed, "parameters": own}
        return store.make_identity(self.method, settings, [probes[self.probe_set]] if self.probe_set in probes else [])


def attribute_and_store(run: Path, step: int, plan: AttributionSpec, context: Context) -> None:
    """Attribute the plan's images, store the maps in `run`. Raises GrokkitError with method and step in front."""
    identity = plan.identity(context.probes, context.seed)
    (probe,) = select_labelled(context, (plan.probe_set,), plan.images).values()
    images, labels = to_tensor(probe, context.model), torch.from_numpy(probe.labels)
    try:
        found = attributions.attribute(
            context.model, images, labels, plan.method, seed=context.seed, **(plan.parameters or {})
        )
    except GrokkitError as error:
        raise type(error)(f"{identity} at step {step}: {error}") from error
    meta = {
        "method": plan.method,
        "probe_set": plan.probe_set,
        "settings": _to_lists(found.settings),
        "checks": _to_lists(found.checks),
    }
    folder = run / "attributions" / identity
    digest = store.write_attribution(folder, step, found.values.numpy(), probe.labels, meta)
    manifest.add_file(run, folder / store.step_file_name(step), "attribution", step, digest)


def _to_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def run_instrument(run: Path, step: int, subject: Measure | AttributionSpec, context: Context) -> None:
    """Take whichever it is."""
    if isinstance(subject, AttributionSpec):
        attribute_and_store(run, step, subject, context)
    else:
        measure_and_store(run, step, subject, context)


def is_stored(
    run: Path,
    step: int,
    subject: Measure | AttributionSpec,
    context: Context,
    say: Callable[[str], object] = warnings.warn,
) -> bool:
    """Whether a whole result is stored; a damaged one is put aside first, and `say` hears of it."""
    path = run / result_dir(subject, context) / store.step_file_name(step)
    kind = "attribution" if isinstance(subject, AttributionSpec) else "reading"
    try:
        checksummed.read(path, kind)
    except (DamagedError, MisplacedError) as error:
        say(quarantine(run, path, error))
    except TrajectoryError:
        if path.exists():
            raise
    return path.exists()


def instrument_name(subject: Measure | AttributionSpec) -> str:
    """The name it is registered under."""
    return subject.method if isinstance(subject, AttributionSpec) else registry.name_of(type(subject))


def result_dir(subject: Measure | AttributionSpec, context: Context) -> Path:
    """Folder of its results, relative to the run."""
    if isinstance(subject, AttributionSpec):
        return Path("attributions") / subject.identity(context.probes, context.seed)
    return Path("measures") / measure_id(subject, context.probes, context.seed)
