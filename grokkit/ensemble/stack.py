"""Train K models of one architecture as one: (K, ...) parameter tensors, one vmapped gradient, one optimizer step.

Every model keeps its own module, optimizer and learning rate; their tensors are views of the stacked ones, so reading
or saving a single model always sees its current weights, without a copy.
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
from grokkit.literals import Precision
from grokkit.measures.loss import LossFunction
from grokkit.optim.build import build_optimizer

ELEMENTWISE_OPTIMIZERS = frozenset({"sgd", "adam", "adamw"})
"""Optimizers that update every element independently, so that one step on stacked tensors equals K separate steps."""

Tensors = dict[str, Tensor]


class Stack:
    """K models of one architecture, each with its own batch.

    Args:
        models: in training mode; their parameters and buffers become views of the stacked tensors.
        loss: logits (B, classes) and labels (B,) to the mean loss of the batch.
        precision: of the matrix products, `float32` or `bfloat16`, as for a single model.

    The gradients are `torch.func.vmap` of `torch.func.grad`: K matrix products become one batched product. Its sums are
    taken in another order than those of a single model: the two agree to rounding, not to the bit.
    """

    def __init__(self, models: Sequence[nn.Module], loss: LossFunction, precision: Precision = "float32") -> None:
        self.models = list(models)
        tensors = [dict(_iter_tensors(model)) for model in self.models]
        stacked = {name: _share_memory([each[name] for each in tensors]) for name in tensors[0]}
        self.parameters = {name: stacked.pop(name) for name, tensor in tensors[0].items() if tensor.requires_grad}
        self._constants = stacked
        self._gradients = vmap(grad_and_value(_make_loss_fn(self.models[0], loss, precision), has_aux=True))

    def __len__(self) -> int:
        return len(self.models)

    def backward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradient of every model's own loss into `.grad` of the stacked parameters.

        Args:
            x: (K, B, ...), the batch of each model.
            y: (K, B) int64.

        Returns: losses (K,) and logits (K, B, classes), detached.
        """
        gradients, (losses, logits) = self._gradients(self.parameters, self._constants, x, y)
        for name, parameter in self.parameters.items():
            # Fused optimizers require parameter and gradient of the same memory layout.
            parameter.grad = gradients[name].contiguous()
        return losses, logits

    def clip(self, clip: Spec | None) -> None:
        """Clip each model's gradients by value or by norm, like `clip_gradients`; do nothing if `clip` is None."""
        if clip is None:
            return
        limit = float(clip.options["limit"])
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if clip.name == "value":
            nn.utils.clip_grad_value_(self.parameters.values(), limit)
            return
        norms = torch.stack([gradient.view(len(self), -1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (limit / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def _share_memory(tensors: Sequence[Tensor]) -> Tensor:
    """Return one contiguous tensor and turn the given ones into views of it, in order."""
    stacked = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, stacked, strict=True):
        tensor.data = view
    return stacked


def _iter_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer once, under its first name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _make_loss_fn(
    model: nn.Module, loss: LossFunction, precision: Precision
) -> Callable[[Tensors, Tensors, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a function from a model's parameters to its loss and logits.

    Every path that holds a tensor is passed to `functional_call`, tied ones too: with `tie_weights=True` torch treats a
    module that has two names as two modules, and leaves its tensors swapped (seen with torch 2.14).
    """
    first = {id(tensor): name for name, tensor in _iter_tensors(model)}
    paths = {
        f"{prefix}{'.' if prefix else ''}{key}": first[id(tensor)]
        for prefix, module in model.named_modules()
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }

    def compute(parameters: Tensors, constants: Tensors, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        tensors = {**parameters, **constants}
        arguments = {path: tensors[name] for path, name in paths.items()}
        logits = Autocast(partial(functional_call, model, arguments, tie_weights=False), precision)(x)
        return loss(logits, y), logits

    return compute


class StackedUpdate:
    """One optimizer step for the whole stack; each model's own optimizer holds views of its state, in the usual form.

    The stacked optimizer has one learning rate. As soon as the models' rates differ, which happens with a policy that
    depends on readings, every model is updated by its own optimizer, from the same state; so are models whose optimizer
    is not elementwise.

    Args:
        stack: supplies gradients and parameters.
        spec: the optimizer's name and options.
        optimizers: the models' own optimizers, in the stack's order; they hold the learning rates.
    """

    def __init__(self, stack: Stack, spec: Spec, optimizers: Sequence[Optimizer]) -> None:
        self._stack, self._optimizers = stack, list(optimizers)
        self._stacked: Optimizer | None = None
        if spec.name in ELEMENTWISE_OPTIMIZERS:
            self._stacked = build_optimizer(spec, stack.parameters.values())
        self._is_shared = False
        for optimizer in self._optimizers:
            # Changes nothing (there are no gradients yet); stops PyTorch's warning that scheduler.step() came before
            # optimizer.step().
            optimizer.step()

    def step(self, scales: Sequence[float], running: Sequence[int]) -> None:
        """Update all models.

        Args:
            scales: factor on the base learning rate, of every model.
            running: indices of the models still training; failed ones are ignored.
        """
        if self._stacked is not None and len({scales[index] for index in running}) > 1:
            self._unshare_state(self._stacked)
        if self._stacked is None:
            for index in running:
                self._step_single(index)
            return
        first = self._optimizers[running[0]].param_groups[0]
        for group in self._stacked.param_groups:
            group.update(lr=first["lr"], weight_decay=first["weight_decay"])
        self._stacked.step()
        if not self._is_shared:
            self._share_state(self._stacked)

    def _share_state(self, stacked_optimizer: Optimizer) -> None:
        """Set every model's optimizer state to views of the stacked state, after the first step has created it.

        A value that is one number for all models, such as the step count, is the same tensor for all.
        """
        for index, (model, optimizer) in enumerate(zip(self._stack.models, self._optimizers, strict=True)):
            parameters = dict(model.named_parameters())
            for name, stacked in self._stack.parameters.items():
                if stacked not in stacked_optimizer.state:
                    continue
                optimizer.state[parameters[name]] = {
                    key: value[index] if torch.is_tensor(value) and value.shape == stacked.shape else value
                    for key, value in stacked_optimizer.state[stacked].items()
                }
        self._is_shared = True

    def _unshare_state(self, stacked_optimizer: Optimizer) -> None:
        """Copy the shared tensors, so that every optimizer counts its own steps, and drop the stacked optimizer."""
        shared = {id(value) for state in stacked_optimizer.state.values() for value in state.values()}
        for optimizer in self._optimizers:
            for state in optimizer.state.values():
                state.update(
                    {
                        key: value.clone()
                        for key, value in state.items()
                        if id(value) in shared and torch.is_tensor(value)
                    }
                )
        self._stacked = None

    def _step_single(self, index: int) -> None:
        parameters = dict(self._stack.models[index].named_parameters())
        for name, stacked in self._stack.parameters.items():
            if stacked.grad is not None:
                parameters[name].grad = stacked.grad[index]
        self._optimizers[index].step()
