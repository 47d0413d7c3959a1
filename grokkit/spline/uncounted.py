"""Find nonlinear calls that local complexity does not count, and raise for those that would make it wrong.

Only known activations are intercepted. A network that selects values by a comparison, or mixes them by attention, is
nonlinear elsewhere too: the first raises an error, the second is listed in `uncounted`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.spline.affine import RULES
from grokkit.spline.rule_table import ANYWHERE, build_rule_table
from grokkit.spline.tape import Node, record_once
from grokkit.units import ACTIVATIONS, MAX_POOLS, PAIRS, REFUSED

_SELECTIONS = build_rule_table(
    "selection",
    ANYWHERE,
    "where masked_fill masked_fill_ index_select gather take_along_dim interpolate upsample cumsum diff tril triu "
    "repeat repeat_interleave unfold fold type_as rot90",
)
"""Linear in every image-dependent argument, unless a mask depends on the image."""
_BILINEAR = build_rule_table("bilinear", ANYWHERE, "einsum bmm baddbmm addmm outer lerp")
"""Linear if only one argument depends on the image."""
_ACTIVATION_NAMES = {*REFUSED.values(), *(activation.name for activation in ACTIVATIONS.values()), "glu"}
"""Names of activations, to find calls that are not intercepted (`torch.ops.aten.relu`)."""
_BATCH_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest relative change of an output when another image is added to the batch; far above rounding errors."""


def find_uncounted(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Return the module paths of nonlinear calls that local complexity does not count.

    These are attention, softmax, norms of single images, and products of two tensors that depend on the image.

    Args:
        model: in `measurement_mode`.
        images: (N, ...); the first two are run.

    Raises:
        ModelContractError: an activation is called by a name that is not intercepted, an output depends on other
            images, or a value is selected by a comparison (`where`, a mask times a value): a kink without a rule.

    Cost: forward passes of two and of three images.
    """
    pair = images[torch.arange(2, device=images.device) % len(images)]
    tape = record_once(model, pair.clone())
    layers = tuple(dict.fromkeys(node.layer for node in tape.nodes if _is_nonlinear(node)))
    _check_images_independent(model, pair, tape.result)
    return layers


def _check_images_independent(model: nn.Module, pair: Tensor, expected: Tensor) -> None:
    joint = model(torch.cat([pair, 0.75 * pair[:1]]))[: len(pair)]
    error, size = (expected - joint).abs().max(), expected.abs().max()
    if error > _BATCH_TOLERANCE[pair.dtype] * size and size.isfinite():
        raise ModelContractError(
            f"the model's output for an image changes by {error / size:.2g} of its size when another image is added to "
            "the batch: it mixes the images of a batch, or is random; measure a model that processes each image "
            "independently"
        )


def _is_nonlinear(node: Node) -> bool:
    name = node.name.strip("_")
    if name in _ACTIVATION_NAMES and node.func not in ACTIVATIONS:
        raise ModelContractError(
            f"the model calls the activation `{name}` in {node.layer!r} in a way that is not counted; call it through "
            "torch.nn.functional if it is one of relu, leaky_relu, relu6, hardtanh, hardswish, gelu, silu, else use "
            "one of these"
        )
    inputs = node.inputs()
    has_mask = any(not var.floating for var in inputs)
    if has_mask and any(var.floating for var in node.outputs()):
        raise ModelContractError(
            f"the model selects values by a mask or an index that depends on the image, in `{node.name}` of "
            f"{node.layer!r}, which has no counting rule. Write it with relu, leaky_relu, clamp, abs or maximum"
        )
    if has_mask or node.func in ACTIVATIONS or node.func in PAIRS or node.func in MAX_POOLS:
        return False
    if not any(var.floating for var in node.outputs()):
        return False  # a comparison adds no kink until its result is used
    if node.func in RULES:
        return not _is_affine(node)
    return node.func not in _SELECTIONS and not (node.func in _BILINEAR and len(inputs) == 1)


def _is_affine(node: Node) -> bool:
    """Return whether its rule accepts the call as affine: a constant times an image is, image times image is not."""
    try:
        RULES[node.func](node, "value")
    except ModelContractError:
        return False
    return True
