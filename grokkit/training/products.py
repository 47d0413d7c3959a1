"""Gradients of stacked multilayer perceptrons by batched products, without the cost of following any net there may be.

`torch.func.vmap` of `grad` takes 1.1 to 1.4 times as long on such nets: 1 to 2 ms a step go into following Python.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vmap

from grokkit.models.classifier import Classifier, Normalise
from grokkit.training.precision import Autocast

Tensors = dict[str, Tensor]
Gradients = Callable[[Tensors, Tensors, Tensor, Tensor], tuple[Tensors, tuple[Tensor, Tensor]]]
"""Stacked parameters, all other stacked tensors, x (K, B, ...), y (K, B) to gradients, losses (K,) and logits."""


def gradients_by_products(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], precision: str
) -> Gradients | None:
    """How K nets like `model` are differentiated by one product a layer; None where it is no chain of a flattening,
    linear layers and ReLUs, maybe behind a `Normalise`, whose parameters are those layers' own and all learned."""
    layers = _layers(model)
    if layers is None:
        return None
    normalise, named = layers
    losses_of = vmap(loss)

    def logits_of(parameters: Tensors, x: Tensor) -> Tensor:
        # Images stand in the last dimension, so that the gradients come in the memory order of the weights.
        h = (x if normalise is None else normalise(x)).flatten(2).transpose(1, 2)
        for name, layer in named:
            if isinstance(layer, nn.ReLU):
                h = h.relu()
            elif layer.bias is None:
                h = torch.bmm(parameters[f"{name}.weight"], h)
            else:
                h = torch.baddbmm(parameters[f"{name}.bias"].unsqueeze(2), parameters[f"{name}.weight"], h)
        return h.transpose(1, 2)

    def gradients(parameters: Tensors, rest: Tensors, x: Tensor, y: Tensor) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
        logits = Autocast(lambda images: logits_of(leaves, images), precision)(x)
        losses = losses_of(logits, y)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()))  # a net's loss hangs on its own weights alone
        return dict(zip(leaves, found, strict=True)), (losses.detach(), logits.detach())

    return gradients


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
