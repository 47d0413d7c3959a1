"""The small, regular measurement that a policy listens to."""

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
    """Log density of crossings near fixed training points, on its own cadence.

    For each quantity Q there are the readings `log_Q`, the log of its mean over the points; `log_Q_se`, its standard
    error over the points (delta method); `log_Q_slope`, the Theil-Sen slope of the last `window` ones after step 0 per
    unit of log step; and `log_Q_slope_low` and `log_Q_slope_high`, its 95 % bootstrap interval over the points
    (`grokkit.stats.trends`). A slope is NaN where there is none, which policies count and ignore. Points and frames
    are the same at every step, so differences between steps are paired.

    * `density`: median over radii of LC / radius, per live unit;
    * `loss`: the training loss of the points, in eval mode;
    * `oui`: the Overfitting-Underfitting Indicator (arXiv 2504.17160) of the points, see the measure `oui`.

    Args:
        every: steps between two readings; 0 is always read.
        points: images of the probe set, the first ones, or all where there are fewer; 2 or more.
        directions: orthonormal directions of the frame; of a smaller input as many as it has dimensions.
        radii: neighbourhood radii, in the input space of the net.
        probe_set: whose images.
        quantities: what is read, of `density`, `loss`, `oui`.
        window: readings of which the slope is taken, 2 or more.

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
                    f"a signal reads {', '.join(QUANTITIES)}; got {name!r}.{did_you_mean(name, [*QUANTITIES])}"
                )
        object.__setattr__(self, "radii", tuple(map(float, self.radii)))
        object.__setattr__(self, "quantities", tuple(map(str, self.quantities)))

    @property
    def readings(self) -> list[str]:
        """The names of all that is read."""
        ends = ("", "_se", "_slope", "_slope_low", "_slope_high")
        return [f"log_{name}{end}" for name in self.quantities for end in ends]

    @classmethod
    def of(cls, fields: Signal | Mapping[str, Any] | None) -> Signal | None:
        """The signal with these fields, or itself; None for none. Raises UsageError for an unknown one, naming the
        nearest."""
        if isinstance(fields, Signal):
            return fields
        if fields is not None and not isinstance(fields, Mapping):
            raise UsageError(f"`signal` must be a gk.Signal or a mapping of its fields; got {fields!r}")
        fields = fields or {}
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UsageError(
                    f"a signal has no field {name!r}.{did_you_mean(name, known)} It has: {', '.join(known)}"
                )
        return cls(**fields) if fields else None

    def due(self, step: int) -> bool:
        """Whether a reading is taken after `step` updates."""
        return step % self.every == 0


@dataclass(frozen=True, eq=False)
class _Row:
    """One reading of one quantity: its step, a value for each point, and what their mean is divided by."""

    step: int
    values: np.ndarray
    scale: float


class LocalComplexitySignal:
    """A `Signal` of a model at given images, in any loop: `policy.observe(signal(step)); policy.step()`.

    It remembers the last `window` readings for the slope; `state_dict` and `load_state_dict` carry them over a stop.
    The model is measured in eval mode and strict precision, on any device, and is as it was afterwards.

    Args:
        model: any module; a `Classifier` is measured behind its normalisation.
        images: (N, ...) tensor as the model takes them, on its device; of the first `signal.points` a copy is kept.
        signal: what is read, and how often: a `Signal`, or a mapping of its fields as in a config. Its `probe_set` is
            for recorded runs and does not matter here.
        labels: (N,) int64 tensor, for the quantity `loss`.
        loss: `cross_entropy` or `mse`, of the quantity `loss`.
        seed: root of the frames and of the resampling.

    Raises:
        UsageError: fewer than 2 images, `loss` without a label for each, or a seed that is no int of 0 or more.
        ModelContractError: at a reading, of a net without a unit that could be counted.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        signal: Signal | Mapping[str, Any] | None = None,
        *,
        labels: Tensor | None = None,
        loss: str = "cross_entropy",
        seed: int = 0,
    ) -> None:
        self.signal = Signal.of(signal) or Signal()
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UsageError(f"`seed` of a signal must be an int of 0 or more; got {seed!r}")
        if not isinstance(images, Tensor) or len(images) < 2:
            raise UsageError(f"a signal needs a tensor of at least 2 images; got {_describe_type(images)}")
        if "loss" in self.signal.quantities and not _are_labels(labels, len(images)):
            raise UsageError(
                f"the quantity `loss` of a signal needs an int64 tensor with a label for each of its {len(images)} "
                f"images; got {_describe_type(labels)}"
            )
        self._model, self._seed, self._loss = model, seed, get_loss(loss)
        self._images = images[: self.signal.points].clone()
        self._labels = None if labels is None else labels[: self.signal.points].clone()
        self._rows: dict[str, list[_Row]] = {name: [] for name in self.signal.quantities}

    @classmethod
    def of_run(cls, signal: Signal, context: Context) -> LocalComplexitySignal:
        """The signal at the stored images of a run. Raises UsageError where the run has not its probe set."""
        (probe,) = select_probes(context, (signal.probe_set,), signal.points).values()
        labels = torch.from_numpy(probe.labels)
        if "loss" in signal.quantities and (labels < 0).any():
            raise UsageError(f"the images of probe set {signal.probe_set!r} have no labels, and `loss` needs them")
        images = to_tensor(probe, context.model)
        return cls(context.model, images, signal, labels=labels.to(images.device), loss=context.loss, seed=context.seed)

    def due(self, step: int) -> bool:
        """Whether a reading is taken after `step` updates."""
        return self.signal.due(step)

    def __call__(self, step: int) -> dict[str, float] | None:
        """The readings after `step` updates, None where none is due."""
        return self.read(step) if self.due(as_step(step)) else None

    def read(self, step: int) -> dict[str, float]:
        """The readings now, after `step` updates; a net without any crossing reads as -inf, which policies ignore."""
        newest = {name: self._row(step, name) for name in self.signal.quantities}
        readings: dict[str, float] = {}
        for name, row in newest.items():
            # step 0 and a mean of 0 have no logarithm; a step that is read again, after a stop, takes its own place
            earlier = [each for each in self._rows[name] if 0 < each.step < step]
            usable = [row] if 0 < row.values.mean() < math.inf else []
            self._rows[name] = [*earlier, *usable][-self.signal.window :]
            readings |= self._told(name, row)
        return readings

    def _row(self, step: int, name: str) -> _Row:
        check_interrupt()
        net, inputs, _ = unwrap_normalisation(self._model, self._images)
        if name == "density":
            return _Row(step, *self._density(net, inputs))
        if name == "oui":
            return _Row(step, gate_distances(net, inputs), 1.0)
        return _Row(step, self._losses(), 1.0)

    def _density(self, net: nn.Module, inputs: Tensor) -> tuple[np.ndarray, float]:
        radii = self.signal.radii
        directions = min(self.signal.directions, inputs[0].numel())
        spectrum = complexity_spectrum(net, inputs, radii, directions, seed=self._seed, quantiles=(), tangents="exact")
        if not spectrum.live_units:
            raise ModelContractError("the net has no units that local complexity could count: no counted activation")
        density = spectrum.counts.sum(2).double() / torch.tensor(radii, dtype=torch.float64)[:, None]
        return np.median(density.numpy(), axis=0), float(max(sum(spectrum.live_units.values()), 1))

    def _losses(self) -> np.ndarray:
        logits = predict_logits(self._model, self._images)
        each = torch.func.vmap(lambda own, label: self._loss(own[None], label[None]))(logits, self._labels)
        return each.double().cpu().numpy()

    def _told(self, name: str, row: _Row) -> dict[str, float]:
        """The readings of a quantity at `row`, with the slope of the window that ends there."""
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
        """The remembered readings, and of what they are: numbers, strings, lists and tensors only."""
        rows = {
            name: [{"step": row.step, "values": torch.from_numpy(row.values), "scale": row.scale} for row in rows]
            for name, rows in self._rows.items()
        }
        return {"of": self._describe, "images": self._brightness, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; an empty one is a signal that has read nothing.

        Raises:
            UsageError: the state of a signal with other choices, or at other images.
        """
        if state:
            self._check(state)
        self._rows = {
            name: [_Row(row["step"], row["values"].cpu().numpy(), row["scale"]) for row in rows]
            for name, rows in (state["rows"] if state else dict.fromkeys(self.signal.quantities, ())).items()
        }

    def _check(self, state: dict[str, Any]) -> None:
        of, images = state.get("of", {}), state.get("images", torch.zeros(0))
        apart = [name for name, own in self._describe.items() if of.get(name) != own]
        if apart:
            then, now = (", ".join(f"{name} {each.get(name)}" for name in apart) for each in (of, self._describe))
            raise UsageError(f"the state is of a signal with {then}; this one has {now}")
        own = self._brightness
        if images.shape != own.shape or not torch.allclose(images.cpu(), own, rtol=1e-3, atol=1e-6):
            raise UsageError(
                f"the state is of other images than the {len(own)} of this signal: give it the same, in the same order"
            )

    @cached_property
    def _describe(self) -> dict[str, Any]:
        """The choices that must be equal for readings to follow each other."""
        of = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self.signal).items()
        }
        return of | {"seed": self._seed, "loss": self._loss.__name__}

    @cached_property
    def _brightness(self) -> Tensor:
        """float64 (points,): the root mean square of each image, which tells images apart and is the same on every
        device but for rounding."""
        return self._images.detach().cpu().double().flatten(1).square().mean(1).sqrt()


def check_listener(policy: Policy, signal: Signal | None, validation: bool) -> None:
    """Raise UsageError where a policy listens to what a run never tells it: it would be a deadline schedule, and
    nothing would say so before the end.

    Args:
        policy: of the run.
        signal: of the run; None for none.
        validation: whether the run has a validation split.
    """
    read = signal.quantities if signal else ()
    told = ["train_loss", *(["validation_loss"] if validation else []), *(f"log_{name}" for name in read)]
    missing = sorted(get_followed_readings(policy) - {*told, *(signal.readings if signal else [])})
    if not missing:
        return
    unread = tuple(name for name in QUANTITIES if f"log_{name}" in missing)
    remedies = []
    if unread:
        remedies.append(f"Let the signal read it: signal={{..., 'quantities': {(*read, *unread)}}}.")
    if "validation_loss" in missing:
        remedies.append("Take images out for it: data=spec(..., validation=500).")
    for name in missing:
        if name not in ("validation_loss", *(f"log_{each}" for each in unread)):
            known = ["train_loss", "validation_loss", *(f"log_{each}" for each in QUANTITIES)]
            remedies.append(f"A run can tell {', '.join(known)}.{did_you_mean(name, known)}")
    raise UsageError(
        f"the policy listens to {', '.join(missing)}, and this run tells it {', '.join(told)}. {' '.join(remedies)}"
    )


def _is_radius(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _are_labels(labels: Any, count: int) -> bool:
    return isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (count,)


def _describe_type(given: Any) -> str:
    return f"{type(given).__name__} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__


def signal_history(run: Run | str | Path) -> list[tuple[int, dict[str, float]]]:
    """What the policy of a run, or of the run in a folder, heard of its signal, and after how many updates: the `news`
    of a `yoked` policy. Empty for a run without a signal.

    The reading of step 0 reaches a policy with the first update, in `grokkit.train` and by `Recorder.step`.
    """
    run = run if isinstance(run, Run) else open_run(run)
    rows = run.metrics.query("split == 'signal'")
    news: dict[int, dict[str, float]] = {}
    for step, name, value in zip(rows["step"], rows["metric"], rows["value"], strict=True):
        news.setdefault(max(1, int(step)), {})[str(name)] = float(value)
    return sorted(news.items())
