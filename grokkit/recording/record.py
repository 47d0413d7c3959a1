"""`record`: open a run folder for writing, from grokkit's training loop or any other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from torch import nn
from torch.optim import Optimizer

from grokkit.config.run_config import RunConfig, Spec
from grokkit.config.schedule import as_step, log_spaced, validate_steps
from grokkit.device.preserved_state import device_of
from grokkit.device.select import describe_device, describe_environment
from grokkit.literals import LossName
from grokkit.measures import Context, Measure
from grokkit.measures.loss import get_loss
from grokkit.measures.runner import AttributionSpec
from grokkit.names import ProbeSet
from grokkit.recording.attempt import clear_path, release_on_failure
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
    loss: LossName = "cross_entropy",
    total_steps: int | None = None,
    config: RunConfig | Mapping[str, Any] | None = None,
    experiment: str | None = None,
    facts: Mapping[str, Any] | None = None,
    price: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    initial: bool = True,
) -> Recorder:
    """Create a run folder at `path` and record step 0, or open an existing one to resume it.

    Args:
        path: the run folder, for example `runs/mine`; must not exist unless `resume`.
        model: any module; snapshots hold its weights and buffers. It gets probe images as pixels in [0, 1]: a net that
            is trained on normalised images is recorded as `gk.Classifier(gk.Normalise(mean, std), net)`, which shares
            its weights.
        optimizer: saved in resume states; optional.
        probes: probe sets by name, such as `grokkit.probe_sets(data)`.
        measures: names, specs or objects; taken at every step of the schedule.
        attributions: names, specs or objects; taken at every step of the schedule.
        schedule: steps to record, by default log-spaced (`log_spaced`) up to `total_steps`. Step 0 and the last one are
            always recorded; the last one when the recorder is closed if `total_steps` is not known.
        signal: the readings for a policy; None for none.
        seed: root of the measures' random streams.
        loss: `cross_entropy` or `mse`, for the measure `loss`.
        total_steps: planned length of the run.
        config: stored as config.toml, with `seed` if it has none; by default the arguments above.
        experiment: source text of the experiment (not its name or path), stored as experiment.py and added to the
            user's list of trusted code.
        facts: entries to add to environment.json, for example about data and precision; they override those of the
            same name.
        price: dollars per hour of this machine; by default GROKKIT_PRICE, or the price of the previous attempt.
        resume: open an existing folder; call `Recorder.restore` to load the resume state.
        overwrite: move an existing run out of the way first, and warn about its new path. A run that is being written
            is refused, also if the writer is a recorder of an earlier run of the same notebook cell: close that one,
            or use `with`.
        initial: record step 0 at once; False if the model's present weights are not those of step 0.

    Returns:
        The recorder: call `.step(step)` after every update and `.close()` at the end, or use it in a `with` block.

    Raises:
        TrajectoryError: the folder exists (or, with `resume`, is missing), or another process writes it.
        UsageError: an unknown measure, attribution, loss or probe set.
    """
    path, cost_limit = to_path(path), Budget.create(price)
    get_loss(loss)
    instances, specs, signal = as_measures(measures), as_attribution_specs(attributions), Signal.from_fields(signal)
    total_steps = None if total_steps is None else as_step(total_steps)
    steps = _resolve_schedule(schedule, total_steps)
    if not resume:
        settings = config or requested_config(instances, specs, steps, signal, {"seed": seed, "loss": loss})
        settings = settings if isinstance(settings, RunConfig) else {"seed": seed, **settings}
        clear_path(path, overwrite)
        machine = describe_environment(describe_device(device_of(model))) | dict(facts or {})
        lock = _create(path, settings, machine, probes, total_steps, experiment)
    else:
        lock = RunLock(Run(path).path)
    with release_on_failure(lock, fresh=not resume):
        context = Context(model, Run(path).probes, loss, seed)
        recorder = Recorder(
            path, context, optimizer, instances, specs, steps, signal, total_steps, cost_limit.price, lock
        )
    recorder.mark_running()
    if initial and not resume:
        recorder.begin()
    return recorder


def _resolve_schedule(schedule: Iterable[int] | None, total_steps: int | None) -> tuple[int, ...]:
    """Return the steps to record, with the last one if it is known."""
    if total_steps is None:
        return validate_steps(log_spaced() if schedule is None else schedule)
    return validate_steps([*(log_spaced(last=max(total_steps, 1)) if schedule is None else schedule), total_steps])


def _create(
    path: Path,
    config: RunConfig | Mapping[str, Any],
    machine: Mapping[str, Any],
    probes: Mapping[str, ProbeSet],
    total_steps: int | None,
    experiment: str | None,
) -> RunLock:
    """Create the locked run folder, and add its experiment to the user's list of trusted code."""
    text = config.to_toml() if isinstance(config, RunConfig) else tomli_w.dumps(dict(config))
    status = {"state": "starting", "step": 0, "total_steps": total_steps, "attempt": 0}
    lock = run.create_run(
        path,
        config=text,
        environment=machine,
        probes=probes.values(),
        status=status,
        experiment=experiment,
        locked=True,
    )
    assert lock is not None
    if experiment is not None:
        add_trusted(experiment)
    return lock
