"""One optimizer update, as fast as the device allows: eager, through `torch.compile`, or replayed from a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from grokkit.device.precision import Autocast
from grokkit.device.preserved_state import device_of
from grokkit.errors import ModelContractError, UsageError
from grokkit.optim import decay
from grokkit.registry import did_you_mean

EXECUTIONS = ("auto", "eager", "graph", "compile")

WARM_UP = 3
"""Updates before a graph is recorded: libraries choose their algorithms and the optimizer makes its state in them."""


class TrainStep:
    """Forward pass, loss, backward pass, clipping and update of one batch; the host never waits for the device.

    A graph is recorded from the first full batch after `WARM_UP` ordinary updates (which count), and replayed for every
    full batch from then on; ragged batches are ordinary updates. The optimizer's rates stay Python numbers that anyone
    may set at any time: while it is recorded it reads them from tensors on the device, which follow the numbers.
    The model itself is never changed, so measures, hooks and snapshots see an ordinary eager module with live weights.

    Args:
        model: images to logits, on its device, in training mode.
        optimizer: over its parameters.
        loss: (logits (B, classes) float32, labels (B,)) to a scalar.
        batch_size: images of a full batch.
        clip: called between the backward pass and the update.
        precision: `float32`, `bfloat16`, `float16`: of the forward and backward pass; weights stay float32.
        execution: `auto` is `graph` on a GPU where the precision and the optimizer (fused, no `fixed_decay`) allow it,
            else `eager`; `compile` is `torch.compile` with its default mode, and a graph of that where `auto` would
            take one.

    Raises:
        UsageError: another word, or a graph where none can be.

    Cost: a graph takes a step's activations once more in memory; compiling takes seconds to minutes at the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        batch_size: int,
        clip: Callable[[], None] | None = None,
        precision: str = "float32",
        execution: str = "auto",
    ) -> None:
        if execution not in EXECUTIONS:
            raise UsageError(
                f"`execution` must be one of {', '.join(EXECUTIONS)}; got {execution!r}."
                f"{did_you_mean(execution, list(EXECUTIONS))}"
            )
        obstacle = _no_graph_because(model, optimizer, precision)
        if execution == "graph" and obstacle:
            raise UsageError(f'execution = "graph" cannot be: {obstacle}. Say "auto", or leave it out')
        self._insists = execution == "graph"
        self._graphed = execution != "eager" and obstacle is None
        self._compiled = execution == "compile"
        self._forward = Autocast(torch.compile(model, dynamic=False) if self._compiled else model, precision)
        self._optimizer, self._loss, self._clip, self._batch_size = optimizer, loss, clip, batch_size
        self._scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16" and device_of(model).type == "cuda")
        self._warmed = 0
        self._replay: Callable[[], None] | None = None

    @property
    def execution(self) -> str:
        """How full batches are computed: `eager`, `graph`, `compile` or `compile + graph`."""
        words = ["compile"] * self._compiled + ["graph"] * self._graphed
        return " + ".join(words) or "eager"

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One update on x (B, C, H, W) and y (B,); the batch's mean loss and logits (B, classes), detached, on the
        device, valid until the next call."""
        if not self._graphed or len(x) != self._batch_size:
            return self._update(x, y)
        if self._replay is None and self._warmed < WARM_UP:
            self._warmed += 1
            return on_side_stream(lambda: self._update(x, y))
        if self._replay is None and not self._record(x, y):
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

    def _record(self, x: Tensor, y: Tensor) -> bool:
        """Record the graph; False, with a warning, where that fails and nobody insisted on it."""
        self._x, self._y = torch.empty_like(x).copy_(x), y.clone()
        self._rates = [torch.tensor(0.0, device=x.device) for _ in self._optimizer.param_groups]
        self._shown: list[float | None] = [None] * len(self._rates)
        try:
            with self._rates_on_device():
                self._replay = capture_graph(self._update_static)
        except RuntimeError as error:
            if self._insists:
                raise ModelContractError(f"the step cannot be recorded in a CUDA graph: {error}") from error
            warnings.warn(f"the step cannot be recorded in a CUDA graph and runs without one: {error}", stacklevel=3)
            self._graphed = False
        return self._graphed

    def _update_static(self) -> None:
        self._result = self._update(self._x, self._y)

    def _replay_graph(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert self._replay is not None
        self._x.copy_(x)
        self._y.copy_(y)
        for place, group in enumerate(self._optimizer.param_groups):
            rate = float(group["lr"])
            if rate != self._shown[place]:
                self._rates[place].fill_(rate)
                self._shown[place] = rate
        self._replay()
        return self._result

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """The optimizer reads its rates from device tensors, as a graph needs, and has its numbers back afterwards."""
        groups = self._optimizer.param_groups
        kept = [{name: value for name, value in group.items() if name in ("lr", "capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate.fill_(float(group["lr"]))
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, before in zip(groups, kept, strict=True):
                group.update(before)

    def state_dict(self) -> dict[str, Any]:
        """The loss scaler's state; empty but in float16."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. A run that went on in another precision starts the scaler anew."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)


def _no_graph_because(model: nn.Module, optimizer: Optimizer, precision: str) -> str | None:
    """Why a step cannot be recorded in a CUDA graph, or None where it can."""
    device = device_of(model)
    if device.type != "cuda":
        return f"it needs a CUDA device, and the model is on {device}"
    if precision == "float16":
        return "in float16 the loss scaler decides after every backward pass whether to update"
    if not all(group.get("fused") or group.get("capturable") for group in optimizer.param_groups):
        return "the optimizer is neither fused nor capturable"
    if decay.is_fixed(optimizer.param_groups):
        return "with `fixed_decay` the weight decay changes with every rate, and a graph would go on with the first one"
    return None


def on_side_stream(update: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Run `update` on a stream of its own, as what is recorded later asks of its warm-up; later work waits for it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = update()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture_graph(update: Callable[[], None]) -> Callable[[], None]:
    """`update` recorded in a CUDA graph, not yet run: calling what is returned runs it once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay
