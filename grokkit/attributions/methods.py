"""The attribution methods: Captum's, and guided backpropagation and DeepLIFT with rules of our own.

Captum is imported only when a method runs, because the import is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from grokkit.attributions import AttributionMethod, register
from grokkit.attributions.layers import choose_layer
from grokkit.attributions.prepare import ELEMENTWISE, RELUS, find_max_pools, insert_rules, to_float64
from grokkit.attributions.rescaled import RescaledNet
from grokkit.attributions.rules import GuidedReLU, RescaledActivation
from grokkit.errors import ModelContractError, UsageError
from grokkit.literals import BaselineName
from grokkit.registry import did_you_mean

BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "black": torch.zeros_like,
    "mean": lambda images: images.mean(dim=(2, 3), keepdim=True).expand_as(images).contiguous(),
}
"""Baselines that relevance is relative to: 0 everywhere (black only for a model fed pixels), or each image's mean
colour.
"""


def _check_baseline(name: str) -> None:
    if name not in BASELINES:
        allowed = list(BASELINES)
        raise UsageError(f"`baseline` must be one of {', '.join(allowed)}; got {name!r}.{did_you_mean(name, allowed)}")


@register("saliency")
@dataclass(frozen=True)
class Saliency(AttributionMethod):
    """Absolute gradient of the logit (Simonyan et al., 2014, arXiv 1312.6034)."""

    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        from captum.attr import Saliency as Captum

        values: Tensor = Captum(_forward_on_copy(net)).attribute(images, target=target)
        return values


@register("input_x_gradient")
@dataclass(frozen=True)
class InputXGradient(AttributionMethod):
    """Input times gradient (Shrikumar et al., 2016, arXiv 1605.01713)."""

    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        from captum.attr import InputXGradient as Captum

        values: Tensor = Captum(_forward_on_copy(net)).attribute(images, target=target)
        return values


@register("integrated_gradients")
@dataclass(frozen=True)
class IntegratedGradients(AttributionMethod):
    """Gradient averaged along the line from a baseline, times the difference (Sundararajan et al., 2017, 1703.01365).

    Args:
        n_steps: points of the Gauss-Legendre rule, at least 1; 20 to 300 are usual.
        baseline: `black` (all 0) or `mean` (each image's own mean colour).
    """

    n_steps: int = 50
    baseline: BaselineName = "black"
    tolerance = 0.05  # the paper's criterion for enough steps

    def __post_init__(self) -> None:
        _check_baseline(self.baseline)
        if self.n_steps < 1:
            raise UsageError(f"`n_steps` must be at least 1; got {self.n_steps}")

    def reference(self, images: Tensor) -> Tensor:
        return BASELINES[self.baseline](images)

    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        from captum.attr import IntegratedGradients as Captum

        # Without this limit Captum runs all steps of all images as one batch.
        values: Tensor = Captum(_forward_on_copy(net)).attribute(
            images, self.reference(images.detach()), target, n_steps=self.n_steps, internal_batch_size=rows
        )
        return values


@register("grad_cam")
@dataclass(frozen=True)
class GradCam(AttributionMethod):
    """Positive part of a layer's channels weighted by their mean gradient (Selvaraju et al., 2017, arXiv 1610.02391).

    The map (N, 1, h, w) is upsampled bilinearly to the image. For a layer called several times the last call is used.

    Args:
        layer: dotted name of a module whose output is a map (N, channels, h, w) with h * w > 1 that reaches the logits;
            by default the convolution called last among those with such a map.
    """

    layer: str | None = None

    def prepare(self, net: nn.Module, example: Tensor) -> tuple[AttributionMethod, nn.Module]:
        return replace(self, layer=choose_layer(net, example, self.layer)), net

    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        from captum.attr import LayerAttribution, LayerGradCam

        captum = LayerGradCam(_forward_on_copy(net), net.get_submodule(str(self.layer)))
        maps = captum.attribute(images, target=target, relu_attributions=True)
        values: Tensor = LayerAttribution.interpolate(maps, tuple(images.shape[2:]), interpolate_mode="bilinear")
        return values


@register("guided_backprop")
@dataclass(frozen=True)
class GuidedBackprop(AttributionMethod):
    """Gradient whose negative parts are dropped at every ReLU (Springenberg et al., 2015, arXiv 1412.6806).

    It is known to depend little on the later layers (Adebayo et al., 2018, arXiv 1810.03292): use it as illustration,
    not as evidence.
    """

    def prepare(self, net: nn.Module, example: Tensor) -> tuple[AttributionMethod, nn.Module]:
        traced = insert_rules(net, example, RELUS, lambda _: GuidedReLU())
        if not any(isinstance(module, GuidedReLU) for module in traced.modules()):
            raise ModelContractError(
                "guided backpropagation modifies ReLUs, but the model calls none: the result would be the plain "
                "gradient. Use saliency or input_x_gradient"
            )
        return self, traced

    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        return _compute_gradient(net, images, target)


@register("deep_lift")
@dataclass(frozen=True)
class DeepLift(AttributionMethod):
    """Differences to a baseline propagated back by the rescale rule (Shrikumar et al., 2017, arXiv 1704.02685).

    The rule holds for elementwise activations. What else bends (softmax, layer norm, products of two values that depend
    on the image) passes back its plain gradient; the check `without_rule` names it, as found on the first image. Nets
    with max-pooling are refused.

    The net runs in float64, also a float32 one, because the values of a deep net can change by 1 % and more with the
    rounding of float32 while their sum stays right: where an image and its baseline differ little at a sigmoid, and
    where a ReLU's input is 0 up to rounding. The check `precision` says float32 if the net cannot.

    Args:
        baseline: `black` (all 0) or `mean` (each image's own mean colour).

    Cost: two forward passes and one backward pass of a float64 copy of the net, which has twice the memory of a float32
    net; on a CPU about five times the time of float32, on a GPU without fast float64 more.
    """

    baseline: BaselineName = "black"
    tolerance = 0.01  # exact up to rounding: a larger gap means an operation without a rule

    def __post_init__(self) -> None:
        _check_baseline(self.baseline)

    def prepare(self, net: nn.Module, example: Tensor) -> tuple[AttributionMethod, nn.Module]:
        traced = insert_rules(net, example, ELEMENTWISE, RescaledActivation)
        pools = find_max_pools(traced)
        if pools:
            raise ModelContractError(
                "deep_lift has no rule for max-pooling, which moves relevance between pixels and which the model uses "
                f"in {', '.join(pools)}. Use integrated_gradients"
            )
        exact = to_float64(traced, example)
        image = example if exact is None else example.double()
        return self, RescaledNet(exact or traced, image, self.reference(image))

    def reference(self, images: Tensor) -> Tensor:
        return BASELINES[self.baseline](images)

    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        assert isinstance(net, RescaledNet)
        points = images.detach().to(net.dtype).requires_grad_()
        baselines = self.reference(points.detach())
        with net.keep_references(baselines):
            return (points.detach() - baselines) * _compute_gradient(net, points, target)

    def further_checks(self, net: nn.Module) -> dict[str, Any]:
        assert isinstance(net, RescaledNet)
        return {"precision": str(net.dtype).removeprefix("torch."), "without_rule": net.without_rule}


def _compute_gradient(net: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Compute the gradient of each image's logit; `images` is a leaf that requires a gradient."""
    logits = net(images).gather(1, target[:, None]).sum()
    return torch.autograd.grad(logits, images)[0]


def _forward_on_copy(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the forward pass on a copy of its input: a model may modify its input in place."""
    return lambda images: net(images.clone())
