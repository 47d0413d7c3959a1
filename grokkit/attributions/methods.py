"""Wrap Captum's attribution methods.

Captum is imported only when a method runs, because the import is slow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from grokkit.attributions import AttributionMethod, register
from grokkit.attributions.prepare import find_max_pools, insert_relu_modules
from grokkit.errors import ModelContractError, UsageError
from grokkit.literals import BaselineName
from grokkit.registry import did_you_mean

CONVOLUTION_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
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
        layer: dotted name of a module whose output is (N, channels, h, w); by default the convolution called last.
    """

    layer: str | None = None

    def prepare(self, net: nn.Module, example: Tensor) -> tuple[AttributionMethod, nn.Module]:
        modules = dict(net.named_modules())
        if self.layer is not None and self.layer not in modules:
            raise UsageError(f"the model has no module {self.layer!r}.{did_you_mean(self.layer, list(modules))}")
        candidates = [
            n
            for n, m in modules.items()
            if (isinstance(m, CONVOLUTION_TYPES) if self.layer is None else n == self.layer)
        ]
        calls = _record_calls(net, example, {name: modules[name] for name in candidates})
        if not calls:
            problem = "calls no convolution module" if self.layer is None else f"never calls {self.layer!r}"
            raise ModelContractError(
                f"Grad-CAM needs a layer with (channels, height, width), but the model {problem}; pass one with "
                "`layer=...`, or use integrated_gradients or saliency, which support any net"
            )
        name, output = calls[-1]
        if not isinstance(output, Tensor) or output.ndim != 4:
            received = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelContractError(
                f"Grad-CAM needs a layer whose output is (N, channels, height, width); {name!r} gives {received}. "
                "Pass another with `layer=...`"
            )
        return replace(self, layer=name), net

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
        traced = insert_relu_modules(net, example)
        if not any(isinstance(module, nn.ReLU) for module in traced.modules()):
            raise ModelContractError(
                "guided backpropagation modifies ReLUs, but the model calls none: the result would be the plain "
                "gradient. Use saliency or input_x_gradient"
            )
        return self, traced

    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        from captum.attr import GuidedBackprop as Captum

        with _silence_hook_warnings():
            values: Tensor = Captum(net).attribute(images, target=target)
        return values


@register("deep_lift")
@dataclass(frozen=True)
class DeepLift(AttributionMethod):
    """Differences to a baseline propagated back by the rescale rule (Shrikumar et al., 2017, arXiv 1704.02685).

    Nets with max-pooling are rejected: Captum 0.9's rule for it is off by 30 to 300 % and mixes the images of a
    batch.

    Args:
        baseline: `black` (all 0) or `mean` (each image's own mean colour).
    """

    baseline: BaselineName = "black"
    tolerance = 0.01  # exact up to rounding: a larger gap means an activation that Captum has no rule for

    def __post_init__(self) -> None:
        _check_baseline(self.baseline)

    def prepare(self, net: nn.Module, example: Tensor) -> tuple[AttributionMethod, nn.Module]:
        traced = insert_relu_modules(net, example)
        pools = find_max_pools(traced)
        if pools:
            raise ModelContractError(
                f"deep_lift gives wrong values for max-pooling, which the model uses in {', '.join(pools)} "
                "(captum issues 1104 and 1276). Use integrated_gradients"
            )
        return self, traced

    def reference(self, images: Tensor) -> Tensor:
        return BASELINES[self.baseline](images)

    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        from captum.attr import DeepLift as Captum

        # Captum runs each image together with its baseline: two rows per image.
        half = max(1, rows // 2)
        with _silence_hook_warnings():
            parts = [
                Captum(net).attribute(part.detach().requires_grad_(), self.reference(part.detach()), classes)
                for part, classes in zip(torch.split(images, half), torch.split(target, half), strict=True)
            ]
        return torch.cat([part.detach() for part in parts])


def _forward_on_copy(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the forward pass on a copy of its input: a model may modify its input in place."""
    return lambda images: net(images.clone())


def _record_calls(net: nn.Module, example: Tensor, modules: dict[str, nn.Module]) -> list[tuple[str, Any]]:
    """Return the modules in the order of their calls on `example`, each with its output."""
    calls: list[tuple[str, Any]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: calls.append((name, output))

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            net(example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _silence_hook_warnings() -> Iterator[None]:
    """Silence Captum's warning about hooks: here they are set on modules of our own graph."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*Setting (forward, )?backward hooks")
        yield
