"""Every choice of one training run, as a frozen value that prints as TOML."""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from grokkit.config.schedule import log_spaced, validate_steps
from grokkit.errors import UsageError
from grokkit.registry import did_you_mean

PROBE_SETS = ["train", "test", "random"]
"""The probe sets that a run builds from its data."""


@dataclass(frozen=True)
class Spec:
    """A thing chosen by name with its options: a dataset, a model, an optimizer, a policy, a measure."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def spec(name: str, **options: Any) -> Spec:
    """`spec("sgd", lr=0.1)`: a name and its options; None stands for the option's default."""
    return Spec(name, {key: _to_plain(value) for key, value in options.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Every choice of one training run.

    Args:
        experiment: the study; first part of the run's folder.
        variant: this arm of the study.
        seed: root of the run's random streams: `init`, `order`, `augment`, `training` (dropout), frames, attacks. Probe
            sets and data subsets do not follow it, so that runs with other seeds are measured on the same images.
        data: a dataset by name, or a path to an .npz file or a class folder; of its options all take `train`, `test`
            (images to keep), `seed` (which), `validation` (training images to hold out; the test set is then looked at
            before the first and after the last step only) and `shuffle_labels` (of the training images, as a negative
            control).
        model: a model by name.
        init_scale: factor on all initial parameters; large values delay generalisation.
        loss: `cross_entropy` (nats) or `mse` (on one-hot labels).
        label_smoothing: 0..1.
        optimizer: `sgd`, `adam` or `adamw` with torch's options, or `muon` with those of `Muon`; `lr` is the policy's
            base rate, which scales the decay too unless `fixed_decay=True` (not for `adam`) is among them.
        policy: the learning rate's controller.
        clip: None, `value` or `norm`, with `limit`.
        batch_size: images per update.
        steps: updates.
        augment: for example ("crop4", "flip", "cutout8"), see `grokkit.data.augment`; with `flip` or `altflip` the last
            evaluation is also made with the mean over image and mirror.
        precision: of the training arithmetic: `float32`, `bfloat16` or `float16` (autocast: weights stay float32), or
            `auto`, the fastest one that the device has (`precision.resolve_precision`). No measure is taken in it.
        execution: of the step: `eager`, `graph` (CUDA), `compile`, or `auto` (`step.TrainStep`).
        probes: images per probe set.
        measures: taken at every recorded step.
        attributions: taken at every recorded step; options `images`, `probe_set` and the method's own.
        records: how many steps are recorded, log-spaced from 1 to `steps`, or those steps themselves; 0 and `steps` are
            always recorded.
        signal: what the policy listens to, `Signal`'s fields by name; empty: nothing but the training loss.
    """

    experiment: str
    variant: str = "default"
    seed: int = 0
    data: Spec = Spec("digits")
    model: Spec = Spec("mlp")
    init_scale: float = 1.0
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    optimizer: Spec = Spec("adamw", {"lr": 1e-3})
    policy: Spec = Spec("constant")
    clip: Spec | None = None
    batch_size: int = 128
    steps: int = 1000
    augment: tuple[str, ...] = ()
    precision: str = "auto"
    execution: str = "auto"
    probes: Mapping[str, int] = field(default_factory=lambda: {"train": 512, "test": 512, "random": 512})
    measures: tuple[Spec, ...] = ()
    attributions: tuple[Spec, ...] = ()
    records: int | tuple[int, ...] = 50
    signal: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("experiment", "variant"):
            value = getattr(self, name)
            if not value or "/" in value or value.startswith("."):
                raise UsageError(f"`{name}` names a folder and must be a plain word; got {value!r}")
        for name in self.probes:
            if name not in PROBE_SETS:
                raise UsageError(
                    f"`probes` takes {', '.join(PROBE_SETS)}; got {name!r}.{did_you_mean(name, PROBE_SETS)}"
                )
        # A bare name is a part without options.
        for name in ("data", "model", "optimizer", "policy", "clip"):
            object.__setattr__(self, name, _as_spec(name, getattr(self, name), optional=name == "clip"))
        for name in ("measures", "attributions"):
            object.__setattr__(self, name, _as_specs(name, getattr(self, name)))

    def _check_numbers(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("records", 1), ("seed", 0)):
            value = getattr(self, name)
            if name == "records" and isinstance(value, tuple | list):
                object.__setattr__(self, name, _as_steps(value, self.steps))
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"`{name}` must be an int of at least {least}; got {value!r}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"`label_smoothing` must lie in [0, 1); got {self.label_smoothing!r}")

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with other choices; an unknown name is an error with the nearest match."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(f"a run has no choice {name!r}.{did_you_mean(name, known)} It has: {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    @property
    def schedule(self) -> tuple[int, ...]:
        """The steps that are recorded."""
        if isinstance(self.records, int):
            return log_spaced(self.records, self.steps)
        return validate_steps((*self.records, self.steps))

    @property
    def run_name(self) -> str:
        """`<experiment>/<variant>-s<seed>-<config hash>`."""
        digest = hashlib.sha256(self.to_toml().encode()).hexdigest()[:8]
        return f"{self.experiment}/{self.variant}-s{self.seed}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a part becomes its options with `name` in front; what is None is left out."""
        values = {f.name: _to_plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to_toml(self) -> str:
        """The text of config.toml."""
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> RunConfig:
        """The inverse of `to_toml`. Raises UsageError for unknown keys."""
        return cls.from_dict(tomllib.loads(text))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`."""
        kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
        for name in values:
            if name not in kinds:
                raise UsageError(f"a run has no choice {name!r}.{did_you_mean(name, list(kinds))}")
        return cls(**{name: _restore(value, kinds[name]) for name, value in values.items()})


def _as_spec(choice: str, value: Any, *, optional: bool = False) -> Spec | None:
    """A part as it is, a bare name as a part without options."""
    if isinstance(value, Spec) or (optional and value is None):
        return value
    if isinstance(value, str):
        return Spec(value)
    raise UsageError(f'`{choice}` takes a name, or a name with options such as spec("name", option=1); got {value!r}')


def _as_steps(values: Any, last: int) -> tuple[int, ...]:
    steps = validate_steps(values)[1:]
    if not steps or steps[-1] > last:
        raise UsageError(f"`records` takes a number of steps, or steps of 1..{last}, the run's length; got {values!r}")
    return steps


def _as_specs(choice: str, values: Any) -> tuple[Spec | None, ...]:
    if not isinstance(values, tuple | list):
        raise UsageError(f'`{choice}` takes a tuple of names or parts, such as (spec("name"),); got {values!r}')
    return tuple(_as_spec(choice, each) for each in values)


def _to_plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return {"name": value.name, **_to_plain(value.options)}
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return value


def _restore(value: Any, kind: str) -> Any:
    if kind.startswith("tuple[Spec"):
        return tuple(_restore(item, "Spec") for item in value)
    if kind.startswith("Spec"):
        return Spec(value["name"], {key: item for key, item in value.items() if key != "name"})
    return tuple(value) if kind.startswith("tuple") else value
