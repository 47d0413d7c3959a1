"""Choose the layer whose maps Grad-CAM shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError, UsageError
from grokkit.registry import did_you_mean

CONVOLUTION_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def choose_layer(net: nn.Module, example: Tensor, layer: str | None) -> str:
    """Return the name of the module whose output Grad-CAM weights.

    Args:
        net: module in eval mode.
        example: one image (1, C, H, W).
        layer: the user's choice, or None for the convolution that is called last among those whose output is a map
            (1, channels, h, w) of more than one place and reaches the logits. The last call of each counts. Behind the
            pooling and in squeeze-and-excitation gates the maps are 1 x 1, hence constant over the image.

    Raises:
        UsageError: no module of this name.
        ModelContractError: no such convolution, or a layer without such a map.
    """
    modules = dict(net.named_modules())
    if layer is not None and layer not in modules:
        raise UsageError(f"the model has no module {layer!r}.{did_you_mean(layer, list(modules))}")
    chosen = {
        name: module
        for name, module in modules.items()
        if (isinstance(module, CONVOLUTION_TYPES) if layer is None else name == layer)
    }
    outputs, logits = _record_outputs(net, example, chosen)
    problems: dict[str, str] = {}
    for name, output in reversed(outputs.items()):
        problem = _find_problem(output, logits)
        if problem is None:
            return name
        problems[name] = problem
    if problems:
        found = "; ".join(f"{name!r} {problem}" for name, problem in list(problems.items())[:3])
    else:
        found = "the model calls no convolution module" if layer is None else f"the model never calls {layer!r}"
    raise ModelContractError(
        "Grad-CAM needs a layer whose output (N, channels, height, width) is a map of more than one place and reaches "
        f"the logits: {found}. Pass another with `layer=...`, or use integrated_gradients or saliency, which support "
        "any net"
    )


def _record_outputs(net: nn.Module, example: Tensor, modules: dict[str, nn.Module]) -> tuple[dict[str, Any], Tensor]:
    """Return what each module returned in its last call, in the order of these calls, and the logits."""
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            outputs.pop(name, None)
            outputs[name] = output
            # What follows may modify its input in place: it gets a copy.
            return output.clone() if isinstance(output, Tensor) else None

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            logits = net(example.detach().clone().requires_grad_().clone())
    finally:
        for handle in handles:
            handle.remove()
    return outputs, logits


def _find_problem(output: Any, logits: Tensor) -> str | None:
    """Return why the output of a layer cannot be shown, or None."""
    if not isinstance(output, Tensor):
        return f"gives a {type(output).__name__}"
    if output.ndim != 4:
        return f"gives {tuple(output.shape)}"
    if output.shape[2] * output.shape[3] == 1:
        return f"gives {tuple(output.shape)}, one value for the whole image"
    if not _reaches(output, logits):
        return "has an output that does not reach the logits"
    return None


def _reaches(output: Tensor, logits: Tensor) -> bool:
    if not output.requires_grad:
        return False
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        logits.sum(), output, retain_graph=True, allow_unused=True
    )
    return gradients[0] is not None
