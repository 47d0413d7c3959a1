"""The signal: a cheap measurement at regular steps, whose readings a policy observes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grokkit.config.schedule import as_step
from grokkit.errors import ModelContractError, UsageError
from grokkit.interrupt import check_interrupt
from grokkit.literals import LossName
from grokkit.measures.base import Context, predict_logits, select_probes, to_tensor, unwrap_normalisation
from grokkit.measures.loss import get_loss
from grokkit.measures.oui import gate_distances
from grokkit.policies import Policy, get_followed_readings
from grokkit.policies.signal import QUANTITIES
from grokkit.registry import did_you_mean
from grokkit.spline import complexity_spectrum
from grokkit.stats.trends import Slope, fit_slope, log_mean
from grokkit.trajectory import Run, open_run


@dataclass(frozen=True)
class Signal:
    """Log density of crossings near fixed training points, read every `every` steps.

    For each quantity Q there are the readings `log_Q`, the log of its mean over the points; `log_Q_se`, its standard
    error over the points (delta method); `log_Q_slope`, the Theil-Sen slope of the last `window` ones after step 0 per
    unit of log step; and `log_Q_slope_low` and `log_Q_slope_high`, its 95 % bootstrap interval over the points
    (`grokkit.stats.trends`). A slope that is undefined is NaN, which policies count and ignore. Points and frames are
    the same at every step, so differences between steps are paired.

    * `density`: median over radii of LC / radius, per live unit;
    * `loss`: the training loss of the points, in eval mode;
    * `oui`: the Overfitting-Underfitting Indicator (arXiv 2504.17160) of the points, see the measure `oui`.

    Args:
        every: steps between two readings; 0 is always read.
        points: number of images, the first ones of the probe set, or all if it has fewer; 2 or more.
        directions: orthonormal directions of the frame; at most the number of input dimensions.
        radii: neighbourhood radii, in the input space of the net.
        probe_set: name of the probe set that the images are from.
        quantities: names of the quantities to read, of `density`, `loss`, `oui`.
        window: number of readings that the slope is fitted to, 2 or more.

    Cost: points * (1 + directions) image forwards for `density`, points image forwards for each of the others.
    """

    every: int = 200
    points: int = 128
    directions: int = 10
    radii: tuple[float, ...] = (0.02, 0.05, 0.1)
    probe_set: str = "train"
    quantities: tuple[str, ...] = ("density",)
    window: int = 8

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("points", 2), ("directions", 1), ("window", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"`{name}` of a signal must be an int of at least {least}; got {value!r}")
        if not isinstance(self.quantities, tuple | list) or not self.quantities:
            raise UsageError(f"`quantities` must be some of {', '.join(QUANTITIES)}; got {self.quantities!r}")
        if not isinstance(self.radii, tuple | list) or not self.radii or not all(map(_is_radius, self.radii)):
            raise UsageError(f"`radii` of a signal must be one or more finite numbers above 0; got {self.radii!r}")
        for name in map(str, self.quantities):
            if name not in QUANTITIES:
                raise UsageError(
                    f"`quantities` of a signal must be some of {', '.join(QUANTITIES)}; got "
                    f"{name!r}.{did_you_mean(name, [*QUANTITIES])}"
                )
        object.__setattr__(self, "radii", tuple(map(float, self.radii)))
        object.__setattr__(self, "quantities", tuple(map(str, self.quantities)))

    @property
    def readings(self) -> list[str]:
        """The names of all readings."""
        suffixes = ("", "_se", "_slope", "_slope_low", "_slope_high")
        return [f"log_{name}{suffix}" for name in self.quantities for suffix in suffixes]

    @classmethod
    def from_fields(cls, fields: Signal | Mapping[str, Any] | None) -> Signal | None:
        """Create a signal from its fields; a Signal is returned unchanged, and None or an empty mapping gives None.

        Raises:
            UsageError: an unknown field (names the nearest one), or neither a Signal nor a mapping.
        """
        if isinstance(fields, Signal):
            return fields
        if fields is not None and not isinstance(fields, Mapping):
            raise UsageError(f"`signal` must be a gk.Signal or a mapping of its fields; got {fields!r}")
        fields = fields or {}
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UsageError(
                    f"Signal has no field {name!r}.{did_you_mean(name, known)} Its fields: {', '.join(known)}"
                )
        return cls(**fields) if fields else None

    def is_due(self, step: int) -> bool:
        """Return whether a reading is taken after `step` updates."""
        return step % self.every == 0


@dataclass(frozen=True, eq=False)
class _Row:
    """One reading of one quantity: its step, a value for each point, and the divisor of their mean."""

    step: int
    values: np.ndarray
    scale: float


class LocalComplexitySignal:
    """A `Signal` of a model at given images, in any loop: `policy.observe(signal(step)); policy.step()`.

    It stores the last `window` readings for the slope; `state_dict` and `load_state_dict` save and restore them.
    The model is measured in eval mode and strict precision, on any device, and its state is restored afterwards.

    Args:
        model: any module; a `Classifier` is measured behind its normalisation.
        images: (N, ...) tensor in the model's input format, on its device; the first `signal.points` are copied.
        signal: quantities and interval: a `Signal`, or a mapping of its fields as in a config. Its `probe_set` is used
            by recorded runs only.
        labels: (N,) int64 tensor, for the quantity `loss`.
        loss: `cross_entropy` or `mse`, for the quantity `loss`.
        seed: root of the frames and of the resampling.

    Raises:
        UsageError: fewer than 2 images, `loss` without a label for each, or a seed that is not an int of 0 or more.
        ModelContractError: at a reading, if the net has no units that can be counted.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        signal: Signal | Mapping[str, Any] | None = None,
        *,
        labels: Tensor | None = None,
        loss: LossName = "cross_entropy",
        seed: int = 0,
    ) -> None:
        self.signal = Signal.from_fields(signal) or Signal()
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UsageError(f"`seed` of a signal must be an int of 0 or more; got {seed!r}")
        if not isinstance(images, Tensor) or len(images) < 2:
            raise UsageError(
                f"`images` of a signal must be a tensor of at least 2 images; got {_describe_type(images)}"
            )
        if "loss" in self.signal.quantities and not _are_labels(labels, len(images)):
            raise UsageError(
                f"the quantity `loss` needs `labels`, an int64 tensor with a label for each of the {len(images)} "
                f"images; got {_describe_type(labels)}"
            )
        self._model, self._seed, self._loss = model, seed, get_loss(loss)
        self._images = images[: self.signal.points].clone()
        self._labels = None if labels is None else labels[: self.signal.points].clone()
        self._rows: dict[str, list[_Row]] = {name: [] for name in self.signal.quantities}

    @classmethod
    def from_run(cls, signal: Signal, context: Context) -> LocalComplexitySignal:
        """Create the signal at a run's stored images. Raises UsageError if the probe set or its labels are missing."""
        (probe,) = select_probes(context, (signal.probe_set,), signal.points).values()
        labels = torch.from_numpy(probe.labels)
        if "loss" in signal.quantities and (labels < 0).any():
            raise UsageError(
                f"the images of probe set {signal.probe_set!r} have no labels, which the quantity `loss` needs"
            )
        images = to_tensor(probe, context.model)
        return cls(context.model, images, signal, labels=labels.to(images.device), loss=context.loss, seed=context.seed)

    def is_due(self, step: int) -> bool:
        """Return whether a reading is taken after `step` updates."""
        return self.signal.is_due(step)

    def __call__(self, step: int) -> dict[str, float] | None:
        """Return the readings after `step` updates, or None if none is due."""
        return self.read(step) if self.is_due(as_step(step)) else None

    def read(self, step: int) -> dict[str, float]:
        """Take the readings now, after `step` updates; a net without any crossing reads -inf, which policies ignore."""
        rows = {name: self._measure(step, name) for name in self.signal.quantities}
        readings: dict[str, float] = {}
        for name, row in rows.items():
            # step 0 and a mean of 0 have no logarithm; a step that is read again after a resume replaces its reading
            earlier = [each for each in self._rows[name] if 0 < each.step < step]
            usable = [row] if 0 < row.values.mean() < math.inf else []
            self._rows[name] = [*earlier, *usable][-self.signal.window :]
            readings |= self._compute_readings(name, row)
        return readings

    def _measure(self, step: int, name: str) -> _Row:
        check_interrupt()
        net, inputs, _ = unwrap_normalisation(self._model, self._images)
        if name == "density":
            return _Row(step, *self._measure_density(net, inputs))
        if name == "oui":
            return _Row(step, gate_distances(net, inputs), 1.0)
        return _Row(step, self._compute_losses(), 1.0)

    def _measure_density(self, net: nn.Module, inputs: Tensor) -> tuple[np.ndarray, float]:
        radii = self.signal.radii
        directions = min(self.signal.directions, inputs[0].numel())
        spectrum = complexity_spectrum(net, inputs, radii, directions, seed=self._seed, quantiles=(), tangents="exact")
        if not spectrum.live_units:
            raise ModelContractError(
                "the model calls no activation that grokkit counts (ReLU, GELU, ...; see `grokkit model`): move the "
                "activation into the module's forward"
            )
        density = spectrum.counts.sum(2).double() / torch.tensor(radii, dtype=torch.float64)[:, None]
        return np.median(density.numpy(), axis=0), float(max(sum(spectrum.live_units.values()), 1))

    def _compute_losses(self) -> np.ndarray:
        logits = predict_logits(self._model, self._images)
        losses = torch.func.vmap(lambda row, label: self._loss(row[None], label[None]))(logits, self._labels)
        return losses.double().cpu().numpy()

    def _compute_readings(self, name: str, row: _Row) -> dict[str, float]:
        """Return the readings of a quantity at `row`, with the slope of the window that ends there."""
        (value, error), window, name = log_mean(row.values), self._rows[name], f"log_{name}"
        trend = Slope(math.nan, math.nan, math.nan)
        if row in window and len(window) > 1:
            values = np.stack([each.values for each in window])
            trend = fit_slope([each.step for each in window], values, [each.scale for each in window], self._seed)
        return {
            name: value - math.log(row.scale),
            f"{name}_se": error,
            f"{name}_slope": trend.value,
            f"{name}_slope_low": trend.low,
            f"{name}_slope_high": trend.high,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the stored readings and a description of the signal: numbers, strings, lists and tensors only."""
        rows = {
            name: [{"step": row.step, "values": torch.from_numpy(row.values), "scale": row.scale} for row in rows]
            for name, rows in self._rows.items()
        }
        return {"of": self._description, "images": self._brightness, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`; an empty dict resets the signal to no readings.

        Raises:
            UsageError: the state belongs to a signal with other settings or other images.
        """
        if state:
            self._check(state)
        self._rows = {
            name: [_Row(row["step"], row["values"].cpu().numpy(), row["scale"]) for row in rows]
            for name, rows in (state["rows"] if state else dict.fromkeys(self.signal.quantities, ())).items()
        }

    def _check(self, state: dict[str, Any]) -> None:
        saved, images = state.get("of", {}), state.get("images", torch.zeros(0))
        different = [name for name, value in self._description.items() if saved.get(name) != value]
        if different:
            then, now = (
                ", ".join(f"{name} {each.get(name)}" for name in different) for each in (saved, self._description)
            )
            raise UsageError(
                f"the state was saved by a signal with {then}; this signal has {now}. Build it as the run did, or "
                "start a new run"
            )
        expected = self._brightness
        if images.shape != expected.shape or not torch.allclose(images.cpu(), expected, rtol=1e-3, atol=1e-6):
            raise UsageError(
                f"the state belongs to other images than the {len(expected)} of this signal: pass the run's images in "
                "the same order, or start a new run"
            )

    @cached_property
    def _description(self) -> dict[str, Any]:
        """The settings that must match for readings to continue a stored series."""
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self.signal).items()
        }
        return settings | {"seed": self._seed, "loss": self._loss.__name__}

    @cached_property
    def _brightness(self) -> Tensor:
        """float64 (points,): the root mean square of each image, a fingerprint that is equal on every device up to
        rounding."""
        return self._images.detach().cpu().double().flatten(1).square().mean(1).sqrt()


def check_policy_readings(policy: Policy, signal: Signal | None, validation: bool) -> None:
    """Raise UsageError if a policy needs readings that the run does not provide.

    Without them it would silently be a deadline schedule.

    Args:
        policy: the run's policy.
        signal: the run's signal; None for none.
        validation: whether the run has a validation split.
    """
    read = signal.quantities if signal else ()
    provided = ["train_loss", *(["validation_loss"] if validation else []), *(f"log_{name}" for name in read)]
    missing = sorted(get_followed_readings(policy) - {*provided, *(signal.readings if signal else [])})
    if not missing:
        return
    unread = tuple(name for name in QUANTITIES if f"log_{name}" in missing)
    remedies = []
    if unread:
        remedies.append(f"Add the quantity to the signal: signal={{..., 'quantities': {(*read, *unread)}}}.")
    if "validation_loss" in missing:
        remedies.append("Hold out validation images: data=spec(..., validation=500).")
    for name in missing:
        if name not in ("validation_loss", *(f"log_{each}" for each in unread)):
            known = ["train_loss", "validation_loss", *(f"log_{each}" for each in QUANTITIES)]
            remedies.append(f"A run can provide {', '.join(known)}.{did_you_mean(name, known)}")
    raise UsageError(
        f"the policy needs the readings {', '.join(missing)}, and this run provides {', '.join(provided)}. "
        f"{' '.join(remedies)}"
    )


def _is_radius(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _are_labels(labels: Any, count: int) -> bool:
    return isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (count,)


def _describe_type(value: Any) -> str:
    return f"{type(value).__name__} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def signal_history(run: Run | str | Path) -> list[tuple[int, dict[str, float]]]:
    """Return the readings that a run's policy received, as (step, readings) pairs; pass them as `news` to `yoked`.

    Only readings of the signal are among them; the list is empty for a run without a signal. Those of step 0 have step
    1: the policy receives them with the first update, in `grokkit.train` and by `Recorder.step`.

    Args:
        run: a run, or its folder.
    """
    run = run if isinstance(run, Run) else open_run(run)
    rows = run.metrics.query("split == 'signal'")
    readings: dict[int, dict[str, float]] = {}
    for step, name, value in zip(rows["step"], rows["metric"], rows["value"], strict=True):
        readings.setdefault(max(1, int(step)), {})[str(name)] = float(value)
    return sorted(readings.items())
