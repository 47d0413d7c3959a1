"""Rewrite a net for methods that hook activation modules.

Such hooks do not see functional calls and cannot distinguish two calls of one module; Captum then returns wrong
values silently. With torch.fx every ReLU call is replaced by a fresh module that does not work in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from grokkit.errors import ModelContractError

RELU_CALLS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
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
ALTERNATIVES = "Methods that support any net: integrated_gradients, saliency, input_x_gradient"


class _LeafTracer(fx.Tracer):
    """A tracer that also enters torch's own containers, whose ReLU calls would otherwise be hidden."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) and next(m.children(), None) is None


def insert_relu_modules(net: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return a module that computes what `net` computes, sharing its weights, with one fresh `nn.ReLU` per call.

    Args:
        net: module in eval mode; it is not changed.
        example: (1, ...) input on which the outputs of both must be bitwise equal.

    Raises:
        ModelContractError: a net that torch.fx cannot trace, or whose graph computes something else.
    """
    try:
        traced = _LeafTracer().trace(net)
    except Exception as error:  # the user's forward may raise anything when called with fx proxies
        raise ModelContractError(
            f"torch.fx cannot trace the model ({error}), which this method needs. {ALTERNATIVES}"
        ) from error
    rewritten = fx.GraphModule(net, traced)
    graph = rewritten.graph
    for number, node in enumerate(list(graph.nodes)):
        if _is_relu(rewritten, node):
            _insert_relu(rewritten, node, f"grokkit_relu_{number}")
        elif node.op == "placeholder":
            _insert_copy(graph, node)
    graph.lint()
    rewritten.recompile()
    rewritten.training = False
    with torch.no_grad():
        if not torch.equal(rewritten(example.clone()), net(example.clone())):
            raise ModelContractError(
                "the model traced by torch.fx computes something else than the model, so this method would explain "
                f"another function (an in-place ReLU whose input is read again?). {ALTERNATIVES}"
            )
    return rewritten


def find_max_pools(net: fx.GraphModule) -> list[str]:
    """Return the names of the max-pooling calls in a traced net: the module's path, or the call's name in the graph."""
    functions = [node.name for node in net.graph.nodes if node.target in POOL_CALLS]
    modules = [str(node.target) for node in net.graph.nodes if node.op == "call_module"]
    return functions + [path for path in modules if isinstance(net.get_submodule(path), POOL_MODULES)]


def _is_relu(net: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(net.get_submodule(str(node.target)), nn.ReLU)
    return node.op in ("call_function", "call_method") and node.target in RELU_CALLS


def _insert_copy(graph: fx.Graph, node: fx.Node) -> None:
    """Copy the input first: a model may modify its input in place."""
    with graph.inserting_after(node):
        copy = graph.call_function(torch.clone, (node,))
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)


def _insert_relu(net: fx.GraphModule, node: fx.Node, name: str) -> None:
    value = node.args[0] if node.args else node.kwargs["input"]
    net.add_submodule(name, nn.ReLU().eval())
    with net.graph.inserting_before(node):
        relu = net.graph.call_module(name, (value,))
    node.replace_all_uses_with(relu)
    net.graph.erase_node(node)
