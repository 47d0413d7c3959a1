"""Run an instrument at one step and store its result. Instrument: a measure or an attribution taken at a recorded step.

Recorder and replay share this code, so that replayed and live results cannot differ.
"""

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


def make_measure_id(measure: Measure, probes: Mapping[str, ProbeSet], seed: int) -> str:
    """Return the identity of a measure's readings in a run: its name and a hash of parameters, seed and probe sets."""
    settings = {**get_settings(measure), "seed": seed}
    return store.make_identity(registry.name_of(type(measure)), settings, probes.values())


def measure_and_store(run: Path, step: int, measure: Measure, context: Context) -> Reading:
    """Call `measure`, check that its values are finite, store the reading in `run`.

    Raises:
        GrokkitError: of the measure, prefixed with its identity and the step.
        NumericsError: a value is not finite.
    """
    identity = make_measure_id(measure, context.probes, context.seed)
    try:
        reading = measure(context)
    except GrokkitError as error:
        raise type(error)(f"{identity} at step {step}: {error}") from error
    if not np.isfinite(reading.values).all():
        raise NumericsError(f"{identity} at step {step}: a value is not finite; the weights may have diverged")
    metadata = {"parameters": get_settings(measure), "seed": context.seed, **reading.settings}
    folder = run / "measures" / identity
    digest = store.write_reading(folder, step, dataclasses.replace(reading, settings=metadata))
    manifest.add_file(run, folder / store.step_file_name(step), "reading", step, digest)
    return reading


@dataclass(frozen=True)
class AttributionSpec:
    """An attribution to compute along a trajectory.

    Args:
        method: a name from `grokkit.attributions.names()`.
        images: how many, the first ones of the probe set.
        probe_set: whose images are used; targets are their labels, the same at every step.
        parameters: of the method.
    """

    method: str
    images: int = 8
    probe_set: str = "test"
    parameters: Mapping[str, Any] | None = None

    def identity(self, probes: Mapping[str, ProbeSet], seed: int) -> str:
        """Return `<method>-<hash>`: the folder of its maps."""
        parameters = dataclasses.asdict(attributions.create(self.method, **(self.parameters or {})))
        settings = {"images": self.images, "seed": seed, "parameters": parameters}
        return store.make_identity(self.method, settings, [probes[self.probe_set]] if self.probe_set in probes else [])


def attribute_and_store(run: Path, step: int, spec: AttributionSpec, context: Context) -> None:
    """Attribute the images of `spec` and store the maps in `run`.

    Raises:
        GrokkitError: of the method, prefixed with its identity and the step.
    """
    identity = spec.identity(context.probes, context.seed)
    (probe,) = select_labelled(context, (spec.probe_set,), spec.images).values()
    images, labels = to_tensor(probe, context.model), torch.from_numpy(probe.labels)
    try:
        attribution = attributions.attribute(
            context.model, images, labels, spec.method, seed=context.seed, **(spec.parameters or {})
        )
    except GrokkitError as error:
        raise type(error)(f"{identity} at step {step}: {error}") from error
    metadata = {
        "method": spec.method,
        "probe_set": spec.probe_set,
        "settings": _to_lists(attribution.settings),
        "checks": _to_lists(attribution.checks),
    }
    folder = run / "attributions" / identity
    digest = store.write_attribution(folder, step, attribution.values.numpy(), probe.labels, metadata)
    manifest.add_file(run, folder / store.step_file_name(step), "attribution", step, digest)


def _to_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def run_instrument(run: Path, step: int, instrument: Measure | AttributionSpec, context: Context) -> None:
    """Run an instrument and store its result."""
    if isinstance(instrument, AttributionSpec):
        attribute_and_store(run, step, instrument, context)
    else:
        measure_and_store(run, step, instrument, context)


def is_stored(
    run: Path,
    step: int,
    instrument: Measure | AttributionSpec,
    context: Context,
    warn: Callable[[str], object] = warnings.warn,
) -> bool:
    """Return whether an intact result is stored; quarantine a damaged one first and pass a message to `warn`."""
    path = run / result_dir(instrument, context) / store.step_file_name(step)
    kind = "attribution" if isinstance(instrument, AttributionSpec) else "reading"
    try:
        checksummed.read(path, kind)
    except (DamagedError, MisplacedError) as error:
        warn(quarantine(run, path, error))
    except TrajectoryError:
        if path.exists():
            raise
    return path.exists()


def instrument_name(instrument: Measure | AttributionSpec) -> str:
    """Return the name the instrument is registered under."""
    return instrument.method if isinstance(instrument, AttributionSpec) else registry.name_of(type(instrument))


def result_dir(instrument: Measure | AttributionSpec, context: Context) -> Path:
    """Return the folder of the instrument's results, relative to the run."""
    if isinstance(instrument, AttributionSpec):
        return Path("attributions") / instrument.identity(context.probes, context.seed)
    return Path("measures") / make_measure_id(instrument, context.probes, context.seed)
