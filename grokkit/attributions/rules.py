"""Modules that replace the activations of a traced net and give them another gradient.

Each rule is an `autograd.Function` of its own. Captum sets its rules as hooks on the activation's input tensor; such a
hook receives the summed gradient of all readers of that tensor, so it is wrong where a second call reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GuidedReLU(nn.Module):
    """A ReLU that passes back the positive part of its gradient (Springenberg et al., 2015, arXiv 1412.6806)."""

    def forward(self, value: Tensor, *_: Any, **__: Any) -> Tensor:
        result: Tensor = _Guided.apply(value)
        return result


class RescaledActivation(nn.Module):
    """An elementwise activation with the rescale rule of DeepLIFT (Shrikumar et al., 2017, arXiv 1704.02685).

    A call while `keeps` is set keeps its input as the reference. Later calls pass back the gradient times
    (f(x) - f(reference)) / (x - reference); without a reference, the plain gradient. Only one call of the net may use
    this module.

    Args:
        function: activation or module; its first argument is the value, and it may work in place.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.reference: Tensor | None = None
        self.keeps = False

    def forward(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def function(point: Tensor) -> Tensor:
            return self.function(point.clone(), *args, **kwargs)

        if self.keeps:
            self.reference = value.detach().clone()
        if self.keeps or self.reference is None:
            return function(value)
        result: Tensor = _Rescale.apply(value, self.reference, function)
        return result


def compute_slopes(function: Callable[[Tensor], Tensor], value: Tensor, reference: Tensor) -> Tensor:
    """Compute (f(x) - f(r)) / (x - r) elementwise, and f'((x + r) / 2) where the quotient would be rounding error.

    The quotient of two nearly equal outputs is inexact by about eps |f(x)| / |x - r|. It is still complete, because
    multiplied by x - r it gives f(x) - f(r); only the shares of the inputs are wrong, so that no check sees it. A gate
    sigmoid(z) with |z - r| of 1e-6 had slopes off by 15 % in float32. The slope in the middle has an error of order
    (x - r)^2 and is used where that is smaller.
    """
    outputs, at_reference = function(value), function(reference)
    change = value - reference
    cancels = change.abs() <= torch.finfo(value.dtype).eps ** 0.5 * (outputs.abs() + at_reference.abs())
    with torch.enable_grad():
        middle = ((value + reference) / 2).detach().requires_grad_()
        (derivative,) = torch.autograd.grad(function(middle).sum(), middle)
    quotient: Tensor = (outputs - at_reference) / change.masked_fill(cancels, 1)
    return torch.where(cancels, derivative, quotient)


# The rules save what they computed, never their input or output: the model may modify those in place.
class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value > 0)
        return torch.relu(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (active,) = ctx.saved_tensors
        passed: Tensor = gradient.relu() * active
        return passed


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, reference: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(compute_slopes(function, value, reference))
        return function(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradient * slopes, None, None
