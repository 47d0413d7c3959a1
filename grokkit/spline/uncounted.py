"""What a network does between its counted activations: nonlinear calls that are not counted, and those that cannot be.

The interception of activations sees only what it knows. A network that switches between values by a comparison, or
mixes them by attention, bends its input space elsewhere too; the first is refused, the second named.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.spline.affine import RULES
from grokkit.spline.rule_table import ANYWHERE, rule_table
from grokkit.spline.tape import Node, record_once
from grokkit.units import ACTIVATIONS, MAX_POOLS, PAIRS, REFUSED

_SELECTIONS = rule_table(
    "selection",
    ANYWHERE,
    "where masked_fill masked_fill_ index_select gather take_along_dim interpolate upsample cumsum diff tril triu "
    "repeat repeat_interleave unfold fold type_as rot90",
)
"""Linear in all that depends on the image, as long as no mask does."""
_BILINEAR = rule_table("bilinear", ANYWHERE, "einsum bmm baddbmm addmm outer lerp")
"""Linear as long as one argument depends on the image."""
_BY_OTHER_NAMES = {*REFUSED.values(), *(activation.name for activation in ACTIVATIONS.values()), "glu"}
"""Activations, also where they are called by a name that the interception does not know (`torch.ops.aten.relu`)."""
_MIXED = {torch.float32: 1e-3, torch.float64: 1e-9}
"""How far an output may move when another image joins: far above rounding."""


def find_uncounted(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Module paths of nonlinear calls that local complexity does not count: attention, softmax, norms of single images,
    products of two tensors that depend on the image.

    Args:
        model: borrowed.
        images: (N, ...), the first of which are run: forward passes of two and of three images.

    Raises:
        ModelContractError: an activation by a name that is not intercepted, or an output that depends on other images.
        ModelContractError: a value is chosen by a comparison (`where`, a mask times a value): a kink without a rule.
    """
    pair = images[torch.arange(2, device=images.device) % len(images)]
    tape = record_once(model, pair.clone())
    bending = tuple(dict.fromkeys(node.layer for node in tape.nodes if _is_nonlinear(node)))
    _check_apart(model, pair, tape.result)
    return bending


def _check_apart(model: nn.Module, pair: Tensor, alone: Tensor) -> None:
    in_company = model(torch.cat([pair, 0.75 * pair[:1]]))[: len(pair)]
    error, size = (alone - in_company).abs().max(), alone.abs().max()
    if error > _MIXED[pair.dtype] * size and size.isfinite():
        raise ModelContractError(
            f"the model's output for an image changes by {error / size:.2g} of its size when another image joins the "
            "batch: it mixes the images of a batch, or is random; measure a model that treats each image by itself"
        )


def _is_nonlinear(node: Node) -> bool:
    name = node.name.strip("_")
    if name in _BY_OTHER_NAMES and node.func not in ACTIVATIONS:
        raise ModelContractError(
            f"the model calls the activation `{name}` in {node.layer!r} in a way that is not counted; call it through "
            "torch.nn.functional, if it is one of relu, leaky_relu, relu6, hardtanh, hardswish, gelu, silu, or use one"
        )
    inputs = node.inputs()
    decides = any(not var.floating for var in inputs)
    if decides and any(var.floating for var in node.outputs()):
        raise ModelContractError(
            f"the model chooses values by a mask or an index that depends on the image, in `{node.name}` of "
            f"{node.layer!r}, which has no counting rule. Write it with relu, leaky_relu, clamp, abs or maximum"
        )
    if decides or node.func in ACTIVATIONS or node.func in PAIRS or node.func in MAX_POOLS:
        return False
    if not any(var.floating for var in node.outputs()):
        return False  # a comparison bends nothing until it is used
    if node.func in RULES:
        return not _is_affine(node)
    return node.func not in _SELECTIONS and not (node.func in _BILINEAR and len(inputs) == 1)


def _is_affine(node: Node) -> bool:
    """Whether the rule of its operation takes the call for an affine map: a product of a constant and an image is one,
    a product of two images is none."""
    try:
        RULES[node.func](node, "value")
    except ModelContractError:
        return False
    return True
