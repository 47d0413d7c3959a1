"""The one way into a trajectory, for our loop and anyone's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from torch import nn
from torch.optim import Optimizer

from grokkit.config.run_config import RunConfig, Spec
from grokkit.config.schedule import log_spaced, validate_steps
from grokkit.device.preserved_state import device_of
from grokkit.device.select import describe_device, describe_environment
from grokkit.measures import Context, Measure
from grokkit.measures.loss import get_loss
from grokkit.measures.runner import AttributionSpec
from grokkit.names import ProbeSet
from grokkit.recording.attempt import clear_path, released_on_failure
from grokkit.recording.budget import Budget
from grokkit.recording.instruments import as_attribution_specs, as_measures, requested_config
from grokkit.recording.recorder import Recorder
from grokkit.recording.signal import Signal
from grokkit.trajectory import Run, run, to_path
from grokkit.trajectory.lock import RunLock
from grokkit.trust import add_trusted


def record(
    path: str | Path,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    probes: Mapping[str, ProbeSet],
    measures: Iterable[str | Spec | Measure] = ("accuracy", "local_complexity", "weight_norm", "logit_scale"),
    attributions: Iterable[str | Spec | AttributionSpec] = (),
    schedule: Iterable[int] | None = None,
    signal: Signal | Mapping[str, Any] | None = None,
    seed: int = 0,
    loss: str = "cross_entropy",
    total_steps: int | None = None,
    config: RunConfig | Mapping[str, Any] | None = None,
    experiment: str | None = None,
    facts: Mapping[str, Any] | None = None,
    price: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    initial: bool = True,
) -> Recorder:
    """Start a run folder at `path` and record step 0, or go on with the one that is there.

    Args:
        path: the run folder, for example `runs/mine`; must not exist unless `resume`.
        model: any module; its weights and buffers are what snapshots hold. Probe images reach it as pixels in [0, 1]:
            a net that is trained on normalised images is recorded as `gk.Classifier(gk.Normalise(mean, std), net)`,
            which shares its weights.
        optimizer: saved in resume slots; optional. `probes`: sets by name, such as `grokkit.probe_sets(data)`.
        measures, attributions: names, parts with options, or objects; taken at every step of the schedule.
        schedule: steps to record, by default `log_spaced()`; 0 is always among them.
        signal: what a policy listens to; None: nothing. `seed`: root of the measures' random streams.
        loss: `cross_entropy` or `mse`, for the measure `loss`; `total_steps`: how long the run is meant to be.
        config: kept as config.toml, by default the arguments above.
        experiment: source text kept as experiment.py, and put on the user's list of trusted code.
        facts: kept in environment.json, of the data and the arithmetic. `price`: dollars an hour of this machine; by
            default GROKKIT_PRICE, or that of the attempt before.
        resume: open an existing folder; call `Recorder.restore` to get the state back.
        overwrite: a run that is there is moved aside first, and a warning says where to. One that is being written is
            refused, also by a recorder of an earlier run of the same notebook cell: close that one, or use `with`.
        initial: record step 0 at once; False where the model's present weights are not those of step 0.

    Returns:
        The recorder: call `.step(step)` after every update and `.close()` at the end, or use it in a `with` block.

    Raises:
        TrajectoryError: the folder exists (or, with `resume`, does not), or another process writes it.
        UsageError: an unknown measure, attribution, loss or probe set.
    """
    path, cost_limit = to_path(path), Budget.of(price)
    get_loss(loss)
    taken, plans, signal = as_measures(measures), as_attribution_specs(attributions), Signal.of(signal)
    steps = validate_steps(log_spaced() if schedule is None else schedule)
    if not resume:
        told = config or requested_config(taken, plans, steps, signal, {"seed": seed, "loss": loss})
        clear_path(path, overwrite)
        machine = describe_environment(describe_device(device_of(model))) | dict(facts or {})
        lock = _create(path, told, machine, probes, total_steps, experiment)
    else:
        lock = RunLock(Run(path).path)
    with released_on_failure(lock, fresh=not resume):
        context = Context(model, Run(path).probes, loss, seed)
        recorder = Recorder(path, context, optimizer, taken, plans, steps, signal, total_steps, cost_limit.price, lock)
    recorder.announce()
    if initial and not resume:
        recorder.begin()
    return recorder


def _create(
    path: Path,
    config: RunConfig | Mapping[str, Any],
    machine: Mapping[str, Any],
    probes: Mapping[str, ProbeSet],
    total_steps: int | None,
    experiment: str | None,
) -> RunLock:
    """Make the run folder, locked, and put its experiment on the user's list of trusted code."""
    text = config.to_toml() if isinstance(config, RunConfig) else tomli_w.dumps(dict(config))
    status = {"state": "starting", "step": 0, "total_steps": total_steps, "attempt": 0}
    lock = run.create_run(
        path, config=text, environment=machine, probes=probes.values(), status=status, experiment=experiment, held=True
    )
    assert lock is not None
    if experiment is not None:
        add_trusted(experiment)
    return lock
