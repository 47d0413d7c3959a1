"""Run measures and attributions on stored snapshots, on any machine; results that exist are not computed again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from grokkit.config.run_config import Spec
from grokkit.config.schedule import as_step
from grokkit.device.preserved_state import unwrap
from grokkit.device.select import SMALL_MACS, fit_threads, select_device
from grokkit.errors import Interrupted, TrajectoryError, UsageError
from grokkit.interrupt import StopRequest, StopRequested, check_interrupt
from grokkit.literals import LossName
from grokkit.measures import Context, Measure
from grokkit.measures.runner import AttributionSpec, is_stored, run_instrument
from grokkit.names import ProbeSet
from grokkit.recording.attempt import require_unchanged
from grokkit.recording.instruments import as_attribution_specs, as_list, as_measures
from grokkit.recording.record import record
from grokkit.stored_code import import_unknown
from grokkit.training.build import build_model, count_macs, load_config, to_device
from grokkit.training.required_names import list_instrument_names, list_replay_names
from grokkit.trajectory import Run, manifest, open_run, to_path
from grokkit.trajectory.lock import RunLock


def replay_run(
    run: Run | str | Path,
    measures: Iterable[str | Spec | Measure] = (),
    attributions: Iterable[str | Spec | AttributionSpec] = (),
    *,
    model: nn.Module | None = None,
    steps: Iterable[int] | None = None,
    device: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
    trust: bool = False,
) -> int:
    """Run measures and attributions on stored snapshots, with the run's own probe sets.

    On the device and build that trained the run the readings equal live ones bit for bit; elsewhere counts agree within
    0.1 %. On Ctrl-C or SIGTERM it finishes the current measure if that takes only a few seconds; called again it
    continues, because every (snapshot, measure) has its own file.

    Args:
        run: a run or its folder.
        measures: names, specs with options, or measure objects.
        attributions: names, specs or `AttributionSpec`s.
        model: the architecture, for runs that were not made by `grokkit.train`; its weights are overwritten.
        steps: the steps to measure; by default all that have a snapshot.
        device: `cpu`, `cuda` or None for the best usable one; ignored if `model` is given, which stays on its device.
        on_step: called with (done, total) after each snapshot.
        trust: execute the run's experiment.py if it is needed to resolve an unknown name, even if it is not on the
            user's list of trusted code; for this call only.

    Returns:
        How many readings and attributions were added.

    Raises:
        TrajectoryError: a missing or damaged snapshot, weights that do not fit the model, or a config or probe images
            that differ from those at the run's start.
        UsageError: an unknown name, or a run that requires `model`.
        UntrustedCodeError: a name is unknown, and the run's experiment.py, which may register it, is not on that list.
        Interrupted: Ctrl-C or SIGTERM; results so far are kept.
    """
    run = run if isinstance(run, Run) else open_run(run)
    require_unchanged(run.path)
    macs = SMALL_MACS
    measures, attributions = as_list(measures), as_list(attributions)
    model_names = list_replay_names(load_config(run)) if model is None else []
    import_unknown([run.path], [*model_names, *list_instrument_names(measures, attributions)], trust=trust)
    if model is None:
        model, macs = _build_model(run, device)
    instruments: list[Measure | AttributionSpec] = [*as_measures(measures), *as_attribution_specs(attributions)]
    context = Context(model, run.probes, run.config.get("loss", "cross_entropy"), run.config.get("seed", 0))
    with RunLock(run.path), fit_threads(macs), StopRequest():
        return _run_missing(run, context, instruments, list(run.steps() if steps is None else steps), on_step)


def _run_missing(
    run: Run,
    context: Context,
    instruments: list[Measure | AttributionSpec],
    steps: list[int],
    on_step: Callable[[int, int], None] | None,
) -> int:
    """Run the instruments without a result, snapshot by snapshot; return how many results were added."""
    added = done = 0
    try:
        for done, step in enumerate(steps, start=1):
            for each in _find_missing(run, step, context, instruments):
                check_interrupt(grace=0)
                run_instrument(run.path, step, each, context)
                added += 1
            manifest.sync_manifest(run.path)
            if on_step is not None:
                on_step(done, len(steps))
    except StopRequested:
        raise Interrupted(
            f"Interrupted at snapshot {done}/{len(steps)} with {added} results added. Continue with the same command"
        ) from None
    return added


def _build_model(run: Run, device: str | None) -> tuple[nn.Module, int]:
    """Rebuild the model of a run that `grokkit.train` made; return it and the MACs of its forward pass on a batch."""
    config, facts = load_config(run), run.environment["data"]
    model = to_device(build_model(config, facts), select_device(device).torch_device)
    return model, count_macs(model, facts["input_shape"]) * min(config.batch_size, facts["train"])


def _find_missing(
    run: Run, step: int, context: Context, instruments: list[Measure | AttributionSpec]
) -> list[Measure | AttributionSpec]:
    """Return the instruments without a result at `step`; if there are any, load that step's weights into the model."""
    missing = [each for each in instruments if not is_stored(run.path, step, each, context)]
    if missing:
        _load_weights(context.model, run, step)
    return missing


def _load_weights(model: nn.Module, run: Run, step: int) -> None:
    try:
        unwrap(model).load_state_dict(run.load(step))
    except RuntimeError as error:
        raise TrajectoryError(f"the snapshot at step {step} of {run.path} does not fit the model: {error}") from error


def import_checkpoints(
    path: str | Path,
    files: Mapping[int, str | Path] | Iterable[str | Path],
    model: nn.Module,
    *,
    probes: Mapping[str, ProbeSet],
    loss: LossName = "cross_entropy",
    seed: int = 0,
) -> Run:
    """Create a run folder from existing `.pt` files, so that all analyses work on them.

    Args:
        path: the new run folder.
        files: step -> file, or files whose names end in their step (`ckpt_1200.pt`). A file holds a state dict, or a
            dict with one under `model`, `state_dict` or `model_state_dict`. Read with `weights_only=True`.
        model: the architecture; every state dict must fit it exactly.
        probes: probe sets to measure on.
        loss: the loss that the model was trained with.
        seed: root of the measures' random streams.

    Returns:
        The run; measure it with `grokkit.replay_run(run, measures, model=model)`.

    Raises:
        UsageError: a file name without a step, or a repeated step.
        TrajectoryError: the folder exists, or a file that cannot be read or does not fit the model.
    """
    by_step = {as_step(k): v for k, v in files.items()} if isinstance(files, Mapping) else _index_by_step(files)
    if not by_step or min(by_step) < 0:
        raise UsageError(f"`files` must hold one checkpoint or more, at steps of at least 0; got {sorted(by_step)}")
    states = {step: _load_checkpoint(to_path(by_step[step]), model) for step in sorted(by_step)}
    recorder = record(
        path,
        model,
        probes=probes,
        measures=(),
        schedule=(),
        seed=seed,
        loss=loss,
        initial=False,
        total_steps=max(states, default=0),
    )
    with recorder:
        for step, state in states.items():
            recorder.add_snapshot(step, state)
            recorder.event(step, "imported", str(by_step[step]))
    return open_run(path)


def _index_by_step(files: Iterable[str | Path]) -> dict[int, str | Path]:
    by_step: dict[int, str | Path] = {}
    for file in files:
        digits = re.search(r"(\d+)\D*$", Path(file).stem)
        if digits is None or int(digits[1]) in by_step:
            raise UsageError(
                f"the name of a checkpoint must end in a step that no other file has, got {file}; rename it or pass "
                "{step: file}"
            )
        by_step[int(digits[1])] = file
    return by_step


def _load_checkpoint(file: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types for a file that is not a checkpoint
        message = str(error).strip().split("\n")[0]
        raise TrajectoryError(f"{file} cannot be read as a checkpoint of tensors: {message}") from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(torch.is_tensor(value) for value in content.values()):
        keys = list(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise TrajectoryError(
            f"{file} must hold a state dict, or one under `model`, `state_dict` or `model_state_dict`; got {keys}"
        )
    for prefix in ("module.", "_orig_mod."):
        if content and all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in unwrap(model).state_dict().items()}
    actual = {name: tuple(tensor.shape) for name, tensor in content.items()}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise TrajectoryError(
                f"{file} does not fit the model at {name!r}: expected {expected.get(name)}, got {actual.get(name)}"
            )
    return content
