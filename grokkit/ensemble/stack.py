"""Nets of one architecture as one: K sets of parameters in (K, ...) tensors, one batched gradient, one update.

Every net keeps its own module, optimizer and learning rate; what they hold are views of the stacked tensors, so that
whoever reads or saves one net sees it as it is after the last update, without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.optim import Optimizer

from grokkit.config.run_config import Spec
from grokkit.device.precision import Autocast
from grokkit.optim.build import build_optimizer

ELEMENTWISE = frozenset({"sgd", "adam", "adamw"})
"""Optimizers that treat every number by itself, so that K nets in one tensor are K nets."""

Loss = Callable[[Tensor, Tensor], Tensor]
Tensors = dict[str, Tensor]


class Stack:
    """K nets of one architecture, each with a batch of its own.

    Args:
        models: the nets, in training mode; from here on their parameters and buffers are views of the stack's tensors.
        loss: logits (B, classes) and labels (B,) to the mean loss of the batch.
        precision: of the products, `float32` or `bfloat16`, as of a net alone.

    The gradients are `torch.func.vmap` of `torch.func.grad`: K products of matrices become one batched product. Its
    sums are taken in another order than those of a net alone: the two agree to rounding, not to the bit.
    """

    def __init__(self, models: Sequence[nn.Module], loss: Loss, precision: str = "float32") -> None:
        self.models = list(models)
        tensors = [dict(_tensors(model)) for model in self.models]
        stacked = {name: _share_memory([each[name] for each in tensors]) for name in tensors[0]}
        self.parameters = {name: stacked.pop(name) for name, tensor in tensors[0].items() if tensor.requires_grad}
        self._rest = stacked
        self._gradients = vmap(grad_and_value(_loss_and_logits(self.models[0], loss, precision), has_aux=True))

    def __len__(self) -> int:
        return len(self.models)

    def backward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Put the gradient of every net's own loss into `.grad` of the stacked parameters.

        Args:
            x: (K, B, ...), the batch of each net.
            y: (K, B) int64.

        Returns: losses (K,) and logits (K, B, classes), without graph.
        """
        gradients, (losses, logits) = self._gradients(self.parameters, self._rest, x, y)
        for name, parameter in self.parameters.items():
            # Fused optimizers walk through parameter and gradient side by side in memory.
            parameter.grad = gradients[name].contiguous()
        return losses, logits

    def clip(self, chosen: Spec | None) -> None:
        """Clip every net's own gradients, by value or by norm, as `clip_gradients` does; None leaves them."""
        if chosen is None:
            return
        limit = float(chosen.options["limit"])
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if chosen.name == "value":
            nn.utils.clip_grad_value_(self.parameters.values(), limit)
            return
        norms = torch.stack([gradient.view(len(self), -1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        shares = (limit / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(shares.view(-1, *[1] * (gradient.dim() - 1)))


def _share_memory(tensors: Sequence[Tensor]) -> Tensor:
    """One contiguous tensor of which the given ones become views, in order."""
    stacked = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, stacked, strict=True):
        tensor.data = part
    return stacked


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, under its first name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _loss_and_logits(
    model: nn.Module, loss: Loss, precision: str
) -> Callable[[Tensors, Tensors, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A net's loss and logits as a function of its parameters.

    Every place that holds a tensor is filled once, tied ones too: torch's own way of tying takes a module that has two
    names for two, and leaves its tensors swapped (seen with torch 2.14).
    """
    first = {id(tensor): name for name, tensor in _tensors(model)}
    places = {
        f"{prefix}{'.' if prefix else ''}{key}": first[id(tensor)]
        for prefix, module in model.named_modules()
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }

    def of(learned: Tensors, rest: Tensors, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        tensors = {**learned, **rest}
        filled = {place: tensors[name] for place, name in places.items()}
        logits = Autocast(partial(functional_call, model, filled, tie_weights=False), precision)(x)
        return loss(logits, y), logits

    return of


class StackedUpdate:
    """One optimizer for the whole stack; each net's own optimizer holds views of its state, in the ordinary form.

    It takes one learning rate. As soon as the nets' rates differ, which takes a policy that listens to readings, every
    net is updated by its own optimizer, from the same state; so are nets under an optimizer that is not elementwise.

    Args:
        stack: whose gradients and parameters.
        chosen: the optimizer's name and options.
        own: the nets' own optimizers, in the stack's order; they say the learning rates.
    """

    def __init__(self, stack: Stack, chosen: Spec, own: Sequence[Optimizer]) -> None:
        self._stack, self._own = stack, list(own)
        self._whole: Optimizer | None = None
        if chosen.name in ELEMENTWISE:
            self._whole = build_optimizer(chosen, stack.parameters.values())
        self._lent = False
        for optimizer in self._own:
            optimizer.step()  # without gradients it does nothing but tell its scheduler that updates come first

    def step(self, scales: Sequence[float], running: Sequence[int]) -> None:
        """Update all nets.

        Args:
            scales: factor on the base learning rate, of every net.
            running: the nets that count, by their place; of the others nobody asks any more.
        """
        if self._whole is not None and len({scales[place] for place in running}) > 1:
            self._unshare_state(self._whole)
        if self._whole is None:
            for place in running:
                self._step_single(place)
            return
        first = self._own[running[0]].param_groups[0]
        for group in self._whole.param_groups:
            group.update(lr=first["lr"], weight_decay=first["weight_decay"])
        self._whole.step()
        if not self._lent:
            self._share_state(self._whole)

    def _share_state(self, whole: Optimizer) -> None:
        """Give every net's optimizer its part of the state that the first update has made. What is one number for all
        nets, such as the count of updates, is the same tensor for all."""
        for place, (model, optimizer) in enumerate(zip(self._stack.models, self._own, strict=True)):
            parameters = dict(model.named_parameters())
            for name, stacked in self._stack.parameters.items():
                if stacked not in whole.state:
                    continue
                optimizer.state[parameters[name]] = {
                    key: value[place] if torch.is_tensor(value) and value.shape == stacked.shape else value
                    for key, value in whole.state[stacked].items()
                }
        self._lent = True

    def _unshare_state(self, whole: Optimizer) -> None:
        """From now on every optimizer counts for itself."""
        shared = {id(value) for state in whole.state.values() for value in state.values()}
        for optimizer in self._own:
            for state in optimizer.state.values():
                state.update(
                    {
                        key: value.clone()
                        for key, value in state.items()
                        if id(value) in shared and torch.is_tensor(value)
                    }
                )
        self._whole = None

    def _step_single(self, place: int) -> None:
        parameters = dict(self._stack.models[place].named_parameters())
        for name, stacked in self._stack.parameters.items():
            if stacked.grad is not None:
                parameters[name].grad = stacked.grad[place]
        self._own[place].step()
