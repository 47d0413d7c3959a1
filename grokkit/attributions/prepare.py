"""Trace a net with torch.fx and give every call of an activation a module of its own, which follows a rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from grokkit.errors import ModelContractError

RELUS: dict[str, tuple[type[nn.Module], ...]] = {"relu": (nn.ReLU,)}
ELEMENTWISE: dict[str, tuple[type[nn.Module], ...]] = {
    **RELUS,
    "relu6": (nn.ReLU6,),
    "leaky_relu": (nn.LeakyReLU,),
    "prelu": (nn.PReLU,),
    "rrelu": (nn.RReLU,),
    "elu": (nn.ELU,),
    "celu": (nn.CELU,),
    "selu": (nn.SELU,),
    "gelu": (nn.GELU,),
    "silu": (nn.SiLU,),
    "mish": (nn.Mish,),
    "hardswish": (nn.Hardswish,),
    "hardsigmoid": (nn.Hardsigmoid,),
    "hardtanh": (nn.Hardtanh,),
    "hardshrink": (nn.Hardshrink,),
    "softshrink": (nn.Softshrink,),
    "tanhshrink": (nn.Tanhshrink,),
    "softplus": (nn.Softplus,),
    "softsign": (nn.Softsign,),
    "sigmoid": (nn.Sigmoid,),
    "logsigmoid": (nn.LogSigmoid,),
    "tanh": (nn.Tanh,),
    "threshold": (nn.Threshold,),
    "clamp": (),
    "clip": (),
    "clamp_min": (),
    "clamp_max": (),
}
"""Activations y = f(x) of one element each, by the name of the function, with their modules."""
POOL_CALLS = (
    F.max_pool1d,
    F.max_pool2d,
    F.max_pool3d,
    torch.max_pool1d,
    torch.max_pool2d,
    torch.max_pool3d,
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
)
POOL_MODULES = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
UNREGISTERED = "(unregistered)"
"""Path of a module that is not part of the net; no attribute can have this name."""
ALTERNATIVES = "Methods that support any net: integrated_gradients, saliency, input_x_gradient"


class _LeafTracer(fx.Tracer):
    """A tracer that also enters torch's own containers, whose activations would otherwise be hidden.

    And modules that are made in the forward pass, such as a slice of a Sequential, or `nn.ReLU()(x)`.
    """

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:
            return UNREGISTERED

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == UNREGISTERED:
            return False
        return super().is_leaf_module(m, module_qualified_name) and next(m.children(), None) is None


class _OneArgument(nn.Module):
    """A net that is called with the images only: its other arguments keep their defaults, also `*args`, `**kwargs`.

    torch.fx turns each argument of the module that it traces into an input, also an optional one. It stores constants
    on that module, so they land here and not on the user's.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Any:
        # A model may modify its input in place. Hooks on the net itself are not a part of the traced function.
        return self.net.forward(images.clone())


def insert_rules(
    net: nn.Module,
    example: Tensor,
    activations: dict[str, tuple[type[nn.Module], ...]],
    make_rule: Callable[[Callable[..., Tensor]], nn.Module],
) -> fx.GraphModule:
    """Return a module that computes what `net` computes, sharing its weights, with one rule module per activation call.

    Args:
        net: module in eval mode; it is not changed.
        example: (1, ...) input; on it and on noise of its shape the outputs of both must be equal.
        activations: which calls are replaced: `RELUS` or `ELEMENTWISE`.
        make_rule: returns the module that replaces one call of a function or module.

    Raises:
        ModelContractError: a net that torch.fx cannot trace, or whose graph computes something else.
    """
    root = _OneArgument(net)
    try:
        graph = _LeafTracer().trace(root)
    except Exception as error:  # the user's forward may raise anything when called with fx proxies
        raise ModelContractError(
            f"torch.fx cannot trace the model ({error}), which this method needs. {ALTERNATIVES}"
        ) from error
    rewritten = fx.GraphModule(root, graph)
    for number, node in enumerate(list(rewritten.graph.nodes)):
        function = _find_activation(rewritten, node, activations)
        if function is not None:
            _replace(rewritten, node, f"grokkit_rule_{number}", make_rule(function))
    rewritten.graph.lint()
    rewritten.recompile()
    rewritten.training = False
    # And on noise: an in-place ReLU whose input is read again may change nothing on the example, such as a black image.
    if not all(_agree(rewritten, net, image) for image in (example, torch.randn_like(example))):
        raise ModelContractError(
            "the model traced by torch.fx computes something else than the model, so this method would explain "
            f"another function (an in-place ReLU whose input is read again, or random draws?). {ALTERNATIVES}"
        )
    return rewritten


def _agree(one: nn.Module, other: nn.Module, image: Tensor) -> bool:
    """Return whether two modules give bitwise equal outputs for an image; nan equals nan."""
    with torch.no_grad():
        return torch.allclose(one(image.clone()), other(image.clone()), rtol=0, atol=0, equal_nan=True)


def find_max_pools(net: fx.GraphModule) -> list[str]:
    """Return the names of the max-pooling calls in a traced net: the module's path, or the call's name in the graph."""
    functions = [node.name for node in net.graph.nodes if node.target in POOL_CALLS]
    modules = [str(node.target) for node in net.graph.nodes if node.op == "call_module"]
    pools = [path for path in modules if isinstance(net.get_submodule(path), POOL_MODULES)]
    return functions + [path.removeprefix("net.") for path in pools]


def to_float64(net: fx.GraphModule, example: Tensor) -> fx.GraphModule | None:
    """Return a float64 copy of a traced net, or None if it does not compute in float64 what it computes now."""
    try:
        exact = copy.deepcopy(net).double()
        with torch.no_grad():
            expected, found = net(example.clone()).double(), exact(example.double())
        close = torch.allclose(found.double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception:  # a model that names float32 in its forward, or a device without float64
        return None
    return exact if close and found.dtype == torch.float64 else None


def _find_activation(
    net: fx.GraphModule, node: fx.Node, activations: dict[str, tuple[type[nn.Module], ...]]
) -> Callable[..., Tensor] | None:
    """Return the function or module that a node calls, if it is one of `activations`."""
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        return module if isinstance(module, tuple(kind for kinds in activations.values() for kind in kinds)) else None
    if node.op not in ("call_function", "call_method") or "out" in node.kwargs:
        return None
    # A bound or a slope that depends on the image makes it a function of several values; a parameter does not.
    others: list[fx.Node] = []
    fx.map_arg((node.args[1:], {key: each for key, each in node.kwargs.items() if key != "input"}), others.append)
    if any(each.op != "get_attr" for each in others):
        return None
    names = {form for name in activations for form in (name, f"{name}_")}
    if node.op == "call_method":
        return getattr(Tensor, str(node.target)) if node.target in names else None
    known = [getattr(owner, name, None) for owner in (torch, F, torch._C._nn, Tensor) for name in names]
    return node.target if callable(node.target) and node.target in known else None


def _replace(net: fx.GraphModule, node: fx.Node, name: str, rule: nn.Module) -> None:
    """Call the module `rule` instead, with the same arguments."""
    kwargs = dict(node.kwargs)
    args = node.args or (kwargs.pop("input"),)
    net.add_submodule(name, rule)
    with net.graph.inserting_before(node):
        call = net.graph.call_module(name, args, kwargs)
    node.replace_all_uses_with(call)
    net.graph.erase_node(node)
