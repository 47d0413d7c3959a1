"""Gradients of stacked multilayer perceptrons by batched products, without the cost of following any net there may be.

`torch.func.vmap` of `grad` takes 1.2 to 1.5 times as long on such nets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vmap

from grokkit.models.classifier import Classifier, Normalise

Tensors = dict[str, Tensor]
Gradients = Callable[[Tensors, Tensors, Tensor, Tensor], tuple[Tensors, tuple[Tensor, Tensor]]]
"""Stacked parameters, all other stacked tensors, x (K, B, ...), y (K, B) to gradients, losses (K,) and logits."""


def gradients_by_products(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], precision: str
) -> Gradients | None:
    """How K nets like `model` are differentiated by batched products; None where it is no chain of a flattening, linear
    layers and ReLUs, maybe behind a `Normalise`, whose parameters are those layers' own and all learned.

    The gradients stand in the same memory at every call: fresh memory of their size costs as much as computing them.
    """
    layers = _layers(model)
    if layers is None:
        return None
    normalise, named = layers
    losses_of, lowered = vmap(loss), getattr(torch, precision)
    kept: Tensors = {}

    def gradients(parameters: Tensors, rest: Tensors, x: Tensor, y: Tensor) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        if not kept:
            kept.update({name: torch.empty_like(parameter) for name, parameter in parameters.items()})
        # Images stand in the last dimension from here on, so that the weights' gradients come in the weights' order.
        passed = [(x if normalise is None else normalise(x)).flatten(2).transpose(1, 2)]
        with torch.autocast(x.device.type, lowered, enabled=precision != "float32", cache_enabled=False):
            for name, layer in named:
                passed.append(_forward(name, layer, parameters, passed[-1]))
        logits = passed[-1].transpose(1, 2).float().requires_grad_()
        losses = losses_of(logits, y)
        (g,) = torch.autograd.grad(losses.sum(), logits)
        g = g.transpose(1, 2).to(passed[-1].dtype)
        for place in reversed(range(len(named))):
            name, layer = named[place]
            if isinstance(layer, nn.ReLU):
                g = g * (passed[place + 1] > 0)
                continue
            _write_gradients(name, layer, g, passed[place], kept)
            if place > 0:
                g = torch.bmm(parameters[f"{name}.weight"].to(g.dtype).transpose(1, 2), g)
        return kept, (losses.detach(), logits.detach())

    return gradients


def _forward(name: str, layer: nn.Linear | nn.ReLU, parameters: Tensors, h: Tensor) -> Tensor:
    """(K, features, B) of one layer from those of the layer before."""
    if isinstance(layer, nn.ReLU):
        return h.relu()
    weight = parameters[f"{name}.weight"]
    if layer.bias is None:
        return torch.bmm(weight, h)
    return torch.baddbmm(parameters[f"{name}.bias"].unsqueeze(2), weight, h)


def _write_gradients(name: str, layer: nn.Linear, g: Tensor, h: Tensor, kept: Tensors) -> None:
    """Of a linear layer's parameters, from g (K, out, B), what the loss hangs on its output, and its input h."""
    weight = kept[f"{name}.weight"]
    if g.dtype == weight.dtype:
        torch.bmm(g, h.transpose(1, 2), out=weight)
    else:
        weight.copy_(torch.bmm(g, h.to(g.dtype).transpose(1, 2)))
    if layer.bias is not None:
        torch.sum(g, 2, dtype=weight.dtype, out=kept[f"{name}.bias"])


def _layers(model: nn.Module) -> tuple[Normalise | None, list[tuple[str, nn.Linear | nn.ReLU]]] | None:
    """The normalisation and the named layers of a chain as above, or None. A subclass may do anything and is not."""
    normalise, net, prefix = None, model, ""
    if type(model) is Classifier and type(model.normalise) is Normalise:
        normalise, net, prefix = model.normalise, model.net, "net."
    if type(net) is not nn.Sequential:
        return None
    (_, first), *others = [*net.named_children()] or [("", net)]
    if type(first) is not nn.Flatten or (first.start_dim, first.end_dim) != (1, -1):
        return None
    named = [(prefix + name, layer) for name, layer in others if type(layer) in (nn.Linear, nn.ReLU)]
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    wanted = [f"{name}.{key}" for name, layer in named if type(layer) is nn.Linear for key in _parts(layer)]
    if len(named) < len(others) or not wanted or learned != wanted or len(learned) < len(list(model.parameters())):
        return None
    return normalise, [(name, layer) for name, layer in named if isinstance(layer, nn.Linear | nn.ReLU)]


def _parts(layer: nn.Linear) -> list[str]:
    return ["weight"] if layer.bias is None else ["weight", "bias"]
