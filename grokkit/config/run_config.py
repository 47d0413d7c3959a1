"""`RunConfig`: the configuration of one training run, a frozen dataclass that is stored as TOML."""

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
from grokkit.literals import ExecutionChoice, LossName, PrecisionChoice
from grokkit.registry import did_you_mean

PROBE_SETS = ["train", "test", "random"]
"""The probe sets that a run builds from its data."""


@dataclass(frozen=True)
class Spec:
    """A registered name with options: of a dataset, a model, an optimizer, a policy or a measure."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def spec(name: str, **options: Any) -> Spec:
    """Return a Spec, such as `spec("sgd", lr=0.1)`; options that are None are omitted and keep their default."""
    return Spec(name, {key: _to_plain(value) for key, value in options.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of one training run.

    Args:
        experiment: name of the experiment; first part of the run's folder.
        variant: variant (arm) of the experiment.
        seed: root of the run's random streams: `init`, `order`, `augment`, `training` (dropout), frames, attacks. Probe
            sets and data subsets do not depend on it, so that runs with other seeds are measured on the same images.
        data: a dataset by name, or a path to an .npz file or a class folder. All datasets have the options `train`,
            `test` (number of images to keep), `seed` (of that selection), `validation` (training images to hold out;
            the test set is then evaluated before the first and after the last step only) and `shuffle_labels` (of the
            training images, as a negative control).
        model: a model by name.
        init_scale: factor on all initial parameters; large values delay generalisation.
        loss: `cross_entropy` (nats) or `mse` (on one-hot labels).
        label_smoothing: 0..1.
        optimizer: `sgd`, `adam` or `adamw` with torch's options, or `muon` with those of `Muon`; `lr` is the policy's
            base rate, which scales the decay too unless the option `fixed_decay=True` is set (not for `adam`).
        policy: the learning-rate policy.
        clip: gradient clipping: None, `value` or `norm`, with `limit`.
        batch_size: images per update.
        steps: number of updates.
        augment: for example ("crop4", "flip", "cutout8"), see `grokkit.data.augment`; with `flip` or `altflip` the last
            evaluation is also made with the mean over image and mirror.
        precision: training precision: `float32`, `bfloat16` or `float16` (autocast: weights stay float32), or `auto`,
            the fastest one of the device (`precision.resolve_precision`). Measures do not use it.
        execution: execution of the training step: `eager`, `graph` (CUDA), `compile`, or `auto` (`step.TrainStep`).
        probes: images per probe set.
        measures: measures to run at every recorded step.
        attributions: attributions to run at every recorded step; options `images`, `probe_set` and the method's own.
        records: number of steps to record, log-spaced from 1 to `steps`, or those steps themselves; 0 and `steps` are
            always recorded.
        signal: readings for the policy, `Signal`'s fields by name; empty: the training loss only.
    """

    experiment: str
    variant: str = "default"
    seed: int = 0
    data: Spec = Spec("digits")
    model: Spec = Spec("mlp")
    init_scale: float = 1.0
    loss: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    optimizer: Spec = Spec("adamw", {"lr": 1e-3})
    policy: Spec = Spec("constant")
    clip: Spec | None = None
    batch_size: int = 128
    steps: int = 1000
    augment: tuple[str, ...] = ()
    precision: PrecisionChoice = "auto"
    execution: ExecutionChoice = "auto"
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
                raise UsageError(
                    f"`{name}` names a folder: it must not be empty, contain '/' or start with '.'; got {value!r}"
                )
        for name in self.probes:
            if name not in PROBE_SETS:
                raise UsageError(
                    f"unknown probe set {name!r} in `probes`.{did_you_mean(name, PROBE_SETS)} "
                    f"Known: {', '.join(PROBE_SETS)}"
                )
        # A bare name is a spec without options.
        for name in ("data", "model", "optimizer", "policy", "clip"):
            object.__setattr__(self, name, _as_spec(name, getattr(self, name), optional=name == "clip"))
        for name in ("measures", "attributions"):
            object.__setattr__(self, name, _as_specs(name, getattr(self, name)))

    def _check_numbers(self) -> None:
        for name, minimum in (("steps", 1), ("batch_size", 1), ("records", 1), ("seed", 0)):
            value = getattr(self, name)
            if name == "records" and isinstance(value, tuple | list):
                object.__setattr__(self, name, _as_steps(value, self.steps))
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise UsageError(f"`{name}` must be an int of at least {minimum}; got {value!r}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"`label_smoothing` must lie in [0, 1); got {self.label_smoothing!r}")

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with new values. Raises UsageError for an unknown field, with the nearest match."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(
                    f"RunConfig has no field {name!r}.{did_you_mean(name, known)} Its fields: {', '.join(known)}"
                )
        return dataclasses.replace(self, **changes)

    @property
    def schedule(self) -> tuple[int, ...]:
        """The recorded steps."""
        if isinstance(self.records, int):
            return log_spaced(self.records, self.steps)
        return validate_steps((*self.records, self.steps))

    @property
    def run_name(self) -> str:
        """`<experiment>/<variant>-s<seed>-<config hash>`."""
        digest = hashlib.sha256(self.to_toml().encode()).hexdigest()[:8]
        return f"{self.experiment}/{self.variant}-s{self.seed}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a spec becomes a table of `name` and its options; None is omitted."""
        values = {f.name: _to_plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to_toml(self) -> str:
        """Return the text of config.toml."""
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, text: str) -> RunConfig:
        """Parse the text of config.toml. Raises UsageError for unknown keys."""
        return cls.from_dict(tomllib.loads(text))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Create a config from the values of `to_dict`. Raises UsageError for unknown fields."""
        kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
        for name in values:
            if name not in kinds:
                raise UsageError(f"RunConfig has no field {name!r}.{did_you_mean(name, list(kinds))}")
        return cls(**{name: _restore(value, kinds[name]) for name, value in values.items()})


def _as_spec(field_name: str, value: Any, *, optional: bool = False) -> Spec | None:
    """Return a spec unchanged, and a bare name as a spec without options."""
    if isinstance(value, Spec) or (optional and value is None):
        return value
    if isinstance(value, str):
        return Spec(value)
    raise UsageError(f'`{field_name}` takes a name, or a spec such as spec("name", option=1); got {value!r}')


def _as_steps(values: Any, last: int) -> tuple[int, ...]:
    steps = validate_steps(values)[1:]
    if not steps or steps[-1] > last:
        raise UsageError(
            f"`records` takes a number of steps, or steps from 1 to {last}, the run's last; got {values!r}"
        )
    return steps


def _as_specs(field_name: str, values: Any) -> tuple[Spec | None, ...]:
    if not isinstance(values, tuple | list):
        raise UsageError(f'`{field_name}` takes a tuple of names or specs, such as (spec("name"),); got {values!r}')
    return tuple(_as_spec(field_name, each) for each in values)


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
