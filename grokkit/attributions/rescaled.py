"""A traced net whose activations follow the rescale rule, and the operations in it that have no rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from grokkit.attributions.rules import RescaledActivation

_ROUNDING = {torch.float32: (1e-3, 1e-3), torch.float64: (1e-6, 1e-12)}
"""Rounding error allowed, as shares of the size of the changes and of the size of the values that change."""


class RescaledNet(nn.Module):
    """A traced net whose activations of one element are `RescaledActivation`s.

    Args:
        graph: the net, in eval mode.
        image, baseline: (1, ...) of the net's dtype; on these `without_rule` is found.
    """

    def __init__(self, graph: fx.GraphModule, image: Tensor, baseline: Tensor) -> None:
        super().__init__()
        self.graph = graph
        self.dtype = image.dtype
        self.without_rule = find_without_rule(graph, image, baseline)

    def forward(self, images: Tensor) -> Any:
        return self.graph(images)

    @contextmanager
    def keep_references(self, baselines: Tensor) -> Iterator[None]:
        """Run the baselines first: inside the `with` block each activation has its input for them as reference."""
        rules = [module for module in self.modules() if isinstance(module, RescaledActivation)]
        try:
            for rule in rules:
                rule.keeps = True
            with torch.no_grad():
                self(baselines)
            for rule in rules:
                rule.keeps = False
            yield
        finally:
            for rule in rules:
                rule.keeps, rule.reference = False, None


def find_without_rule(net: fx.GraphModule, image: Tensor, baseline: Tensor) -> list[str]:
    """Return the kinds of operations whose gradient at the image does not explain their change from the baseline.

    Each call is compared by itself: its change of output, weighted by fixed numbers, with the gradient of the weighted
    output times the change of its inputs. Both are equal for what is affine in its inputs; an activation that follows
    the rescale rule is not looked at.

    Args:
        net: traced net in eval mode; its activations of one element are `RescaledActivation`s.
        image, baseline: (1, ...) of the net's dtype.

    Returns:
        Names of functions, methods and module classes, sorted.
    """
    here, there = _Inputs(net), _Inputs(net)
    with torch.no_grad():
        here.run(image)
        there.run(baseline)
    found = {
        _name_kind(net, node)
        for node in net.graph.nodes
        if node.op.startswith("call_")
        and not isinstance(_get_module(net, node), RescaledActivation)
        and not _is_explained(here, node, here.inputs[node], there.inputs[node])
    }
    return sorted(found)


class _Inputs(fx.Interpreter):
    """Run a graph and keep a copy of the inputs of every call."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__(net)
        self.inputs: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        # A copy, because a later call may modify its input in place.
        self.inputs[n] = _copy_tensors(self.fetch_args_kwargs_from_env(n))
        return super().run_node(n)


def _is_explained(runner: fx.Interpreter, node: fx.Node, here: Any, there: Any) -> bool:
    pairs = list(zip(_float_tensors(here), _float_tensors(there), strict=True))
    varying = [(leaf.requires_grad_(), other) for leaf, other in pairs if not torch.equal(leaf, other)]
    if not varying:
        return True
    with torch.enable_grad():
        outputs = _float_tensors(_call(runner, node, _copy_tensors(here, detach=False)))
    with torch.no_grad():
        at_baseline = _float_tensors(_call(runner, node, _copy_tensors(there)))
    terms: list[tuple[Tensor, Tensor]] = []
    followed: list[Tensor] = []
    for output, other in zip(outputs, at_baseline, strict=True):
        weights = torch.linspace(1, 2, output.numel()).to(output).reshape(output.shape)
        terms.append((weights * output.detach(), weights * other))
        followed += [(weights * output).sum()] if output.requires_grad else []
    if followed:
        leaves = [leaf for leaf, _ in varying]
        slopes = torch.autograd.grad(torch.stack(followed).sum(), leaves, allow_unused=True)
        used = [(slope, pair) for slope, pair in zip(slopes, varying, strict=True) if slope is not None]
        terms += [(-slope * leaf.detach(), -slope * other) for slope, (leaf, other) in used]
    gap = sum(float((one - other).sum()) for one, other in terms)
    size = sum(float((one - other).abs().sum()) for one, other in terms)
    magnitude = sum(float((one.abs() + other.abs()).sum()) for one, other in terms)
    tolerance, rounding = max((_ROUNDING[each.dtype] for each in outputs), default=(0.0, 0.0))
    return abs(gap) <= tolerance * size + rounding * magnitude


def _call(runner: fx.Interpreter, node: fx.Node, inputs: tuple[Any, Any]) -> Any:
    return getattr(runner, node.op)(node.target, *inputs)


def _copy_tensors(values: Any, *, detach: bool = True) -> Any:
    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value.detach() if detach else value).clone()

    return tree_map(copy, values)


def _float_tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_flatten(values)[0] if isinstance(each, Tensor) and each.is_floating_point()]


def _get_module(net: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def _name_kind(net: fx.GraphModule, node: fx.Node) -> str:
    module = _get_module(net, node)
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))
