"""One optimizer update, as fast as the device allows: eager, through `torch.compile`, or replayed from a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from grokkit.device.precision import Autocast
from grokkit.device.preserved_state import device_of
from grokkit.errors import ModelContractError, UsageError
from grokkit.literals import ExecutionChoice, Precision
from grokkit.optim import decay
from grokkit.registry import did_you_mean

EXECUTIONS: tuple[ExecutionChoice, ...] = get_args(ExecutionChoice)

WARM_UP = 3
"""Updates before a graph is captured: in them libraries choose their algorithms and the optimizer creates its state."""


class TrainStep:
    """Forward pass, loss, backward pass, clipping and update of one batch; the host never waits for the device.

    With `graph`, a CUDA graph is captured from the first full batch after `WARM_UP` eager updates (which count), and
    replayed for every full batch from then on; ragged batches are updated eagerly. The optimizer's learning rates stay
    Python numbers that may be set at any time: the graph reads them from device tensors, which are updated before each
    replay. The model itself is never changed, so measures, hooks and snapshots see an eager module with live weights.

    Args:
        model: images to logits, on its device, in training mode.
        optimizer: over its parameters.
        loss: (logits (B, classes) float32, labels (B,)) to a scalar.
        batch_size: images of a full batch.
        clip: called between the backward pass and the update.
        precision: `float32`, `bfloat16`, `float16`: of the forward and backward pass; weights stay float32.
        execution: `auto` is `graph` on a GPU if the precision and the optimizer (fused, no `fixed_decay`) allow it,
            else `eager`; `compile` is `torch.compile` in its default mode, plus a graph of it if `auto` would use one.

    Raises:
        UsageError: an unknown `execution`, or `graph` if no graph can be captured.

    Cost: a graph holds a step's activations once more in memory; compiling takes seconds to minutes at the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        batch_size: int,
        clip: Callable[[], None] | None = None,
        precision: Precision = "float32",
        execution: ExecutionChoice = "auto",
    ) -> None:
        if execution not in EXECUTIONS:
            raise UsageError(
                f"`execution` must be one of {', '.join(EXECUTIONS)}; got {execution!r}."
                f"{did_you_mean(execution, list(EXECUTIONS))}"
            )
        obstacle = _find_graph_obstacle(model, optimizer, precision)
        if execution == "graph" and obstacle:
            raise UsageError(f'execution = "graph" is not possible: {obstacle}. Use "auto", or leave it out')
        self._graph_required = execution == "graph"
        self._use_graph = execution != "eager" and obstacle is None
        self._use_compile = execution == "compile"
        self._forward = Autocast(torch.compile(model, dynamic=False) if self._use_compile else model, precision)
        self._optimizer, self._loss, self._clip, self._batch_size = optimizer, loss, clip, batch_size
        self._scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16" and device_of(model).type == "cuda")
        self._warm_up_done = 0
        self._replay: Callable[[], None] | None = None

    @property
    def execution(self) -> str:
        """Return how full batches are executed: `eager`, `graph`, `compile` or `compile + graph`."""
        modes = ["compile"] * self._use_compile + ["graph"] * self._use_graph
        return " + ".join(modes) or "eager"

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Update the model on x (B, C, H, W) and y (B,); return the mean loss and the logits (B, classes).

        Both are detached, on the device, and valid until the next call.
        """
        if not self._use_graph or len(x) != self._batch_size:
            return self._update(x, y)
        if self._replay is None and self._warm_up_done < WARM_UP:
            self._warm_up_done += 1
            return on_side_stream(lambda: self._update(x, y))
        if self._replay is None and not self._capture(x, y):
            return self._update(x, y)
        return self._replay_graph(x, y)

    def _update(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._forward(x)
        loss = self._loss(logits, y)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        if self._clip is not None:
            self._scaler.unscale_(self._optimizer)
            self._clip()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach(), logits.detach()

    def _capture(self, x: Tensor, y: Tensor) -> bool:
        """Capture the graph and return True; warn and return False if that fails and `graph` was not required."""
        self._x, self._y = torch.empty_like(x).copy_(x), y.clone()
        self._rates = [torch.tensor(0.0, device=x.device) for _ in self._optimizer.param_groups]
        self._written_rates: list[float | None] = [None] * len(self._rates)
        try:
            with self._rates_on_device():
                self._replay = capture_graph(self._update_static)
        except RuntimeError as error:
            if self._graph_required:
                raise ModelContractError(f"the step cannot be captured in a CUDA graph: {error}") from error
            warnings.warn(f"the step cannot be captured in a CUDA graph and runs without one: {error}", stacklevel=3)
            self._use_graph = False
        return self._use_graph

    def _update_static(self) -> None:
        self._result = self._update(self._x, self._y)

    def _replay_graph(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert self._replay is not None
        self._x.copy_(x)
        self._y.copy_(y)
        for index, group in enumerate(self._optimizer.param_groups):
            rate = float(group["lr"])
            if rate != self._written_rates[index]:
                self._rates[index].fill_(rate)
                self._written_rates[index] = rate
        self._replay()
        return self._result

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Guarantee that the optimizer reads its rates from device tensors within the block, as a graph requires."""
        groups = self._optimizer.param_groups
        saved = [{name: value for name, value in group.items() if name in ("lr", "capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate.fill_(float(group["lr"]))
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, values in zip(groups, saved, strict=True):
                group.update(values)

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scaler's state; empty except in float16."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scaler's state; a run that was saved in another precision starts with a new scaler."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)


def _find_graph_obstacle(model: nn.Module, optimizer: Optimizer, precision: Precision) -> str | None:
    """Return the reason why a step cannot be captured in a CUDA graph, or None if it can."""
    device = device_of(model)
    if device.type != "cuda":
        return f"it needs a CUDA device, and the model is on {device}"
    if precision == "float16":
        return "in float16 the loss scaler decides after every backward pass whether to update"
    if not all(group.get("fused") or group.get("capturable") for group in optimizer.param_groups):
        return "the optimizer is neither fused nor capturable"
    if decay.is_fixed(optimizer.param_groups):
        return "with `fixed_decay` the weight decay changes with every rate, and a graph would keep the first one"
    return None


def on_side_stream(update: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Run `update` on a side stream, as the warm-up of a CUDA graph requires; later work waits for it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = update()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture_graph(update: Callable[[], None]) -> Callable[[], None]:
    """Capture `update` in a CUDA graph without running it; return a function that replays it once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay
