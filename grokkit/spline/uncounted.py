"""Find the nonlinear calls that local complexity does not count, and refuse models for which a count means nothing.

A call is affine, counted, or named: smooth functions, attention, norms of single images, products of two tensors that
depend on the image, values that are selected by a comparison, and whatever is done by code that is not seen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from grokkit.device.model_check import run_model
from grokkit.errors import ModelContractError
from grokkit.spline.affine_rules import RULES, describe_call
from grokkit.spline.record_tape import BATCHES, record_twice
from grokkit.spline.rule_table import writes_in_place
from grokkit.spline.tape import Node, Tape, Var
from grokkit.units import list_leaves

OUTPUT_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest relative difference of two outputs that should be equal; far above rounding errors."""

_NOISE_FACTOR = 100.0
"""A change is no rounding error if it is larger than this many changes by one rounding error of the images."""

_SPREAD = 0.05
"""The same, relative to the difference of two images: a deep net may magnify rounding errors to a part of it."""
_MOVED = 1e-3
"""Relative difference above which values are those of another image, and not rounded otherwise."""

_NAMED_AT_MOST = 5
"""Calls that an error message lists."""


class Uncounted(NamedTuple):
    """What local complexity does not count.

    Args:
        layers: module paths of the calls, each once, in call order.
        counted_share: values returned by counted calls, as a share of those returned by all nonlinear calls, for one
            image; 1 if there is no nonlinear call.
        calls: the same calls by function and place, for a message.
        constants: tensors that the model did not make and that do not depend on the images.
    """

    layers: tuple[str, ...]
    counted_share: float
    calls: tuple[str, ...]
    constants: tuple[Tensor, ...]

    def require_counted(self) -> Uncounted:
        """Return itself; raise ModelContractError if there are nonlinear calls and none of them is counted."""
        if not self.counted_share:
            more = f" and {len(self.calls) - _NAMED_AT_MOST} more" if len(self.calls) > _NAMED_AT_MOST else ""
            raise ModelContractError(
                "no nonlinear call of the model is counted, so its local complexity would be 0 whatever it computes; "
                f"not counted: {', '.join(self.calls[:_NAMED_AT_MOST])}{more}. Counted: relu, leaky_relu, gelu, silu, "
                "hardswish, clamp, abs, maximum, and others in docs/local-complexity.md"
            )
        return self


def find_uncounted(model: nn.Module, images: Tensor) -> Uncounted:
    """Find the nonlinear calls that local complexity does not count.

    Args:
        model: in `measurement_mode`.
        images: (N, ...); the first two are run.

    Raises:
        ModelContractError: an output depends on other images, the calls depend on the images, a value is rounded to
            less than float32, or all nonlinear calls are uncounted.

    Cost: forward passes of two and of three images.
    """
    return list_uncounted(record_independent(model, images)).require_counted()


def record_independent(model: nn.Module, images: Tensor) -> Tape:
    """Record the forward pass of the first two images; raise ModelContractError if it depends on other images.

    Cost: forward passes of two and of three images.
    """
    first, second = record_twice(model, images)
    _check_images_independent(model, first, second)
    return first


def list_uncounted(tape: Tape) -> Uncounted:
    """List the nonlinear calls of a recorded pass that local complexity does not count; reads no values of tensors."""
    sizes: dict[str, int] = {}
    names: dict[str, str] = {}
    for node in tape.nodes:
        if _is_uncounted(node):
            sizes[node.layer] = sizes.get(node.layer, 0) + max(node.size, 1)
            names.setdefault(node.layer, describe_call(node))
    if tape.output is None:
        layer = "(the output, computed by code that is not seen)"
        sizes[layer], names[layer] = tape.result[0].numel(), layer
    counted = sum(node.size for node in tape.nodes if node.counted)
    share = counted / (counted + sum(sizes.values())) if sizes else 1.0
    return Uncounted(tuple(sizes), share, tuple(names.values()), _list_constants(tape))


def _list_constants(tape: Tape) -> tuple[Tensor, ...]:
    """Return the tensors of unknown origin that were equal in two passes."""
    return tuple(origin.source for origin in tape.origins if isinstance(origin.source, Tensor))


def _check_images_independent(model: nn.Module, first: Tape, second: Tape) -> None:
    expected, joint = first.result, second.result[1:].flip(0)
    tolerance = OUTPUT_TOLERANCE.get(expected.dtype, 0.0)
    error, size = (expected.double() - joint.double()).abs().max(), expected.abs().max()
    if error > tolerance * size and size.isfinite() and not _is_noise(model, first, error, tolerance * size):
        suspect = next((f" ({text})" for text in map(_describe_suspect, first.nodes) if text), "")
        raise ModelContractError(
            f"the model's output for an image changes by {error / size:.2g} of its size when another image is added to "
            f"the batch: it mixes the images of a batch, or is random{suspect}; measure a model that processes each "
            "image independently"
        )
    _check_images_in_front(first, second)
    reduction = _find_reduction(first, second)
    if reduction is not None:
        shapes = ", ".join(map(str, reduction.shapes))
        raise ModelContractError(
            f"{describe_call(reduction)} returns {shapes} for {BATCHES[0]} images as for {BATCHES[1]}: it mixes the "
            "images of a batch; measure a model that processes each image independently"
        )


def _check_images_in_front(first: Tape, second: Tape) -> None:
    """Raise ModelContractError unless each image has its values together, at its own place, in every counted call."""
    for position, alone in first.rows.items():
        node, joint = first.nodes[position], second.rows[position]
        if len(alone) != BATCHES[0] or len(joint) != BATCHES[1] or _are_apart(alone, joint, node.shapes[0]):
            raise ModelContractError(
                f"the values of {node.layer!r} must have the batch as their first dimension, or begin with all values "
                "of the first image, and keep the images in their order, so that units are told from images; got shape "
                f"{second.nodes[position].shapes[0]} for {BATCHES[1]} images. Move the batch to the front, in its order"
            )


def _are_apart(alone: Tensor, joint: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether two images have other values among three than alone."""
    limit = _MOVED * alone[:, 1]
    if shape[:1] == (len(alone),):  # rows can only be permuted, and a deep net may magnify rounding errors
        limit = torch.maximum(limit, _SPREAD * (alone[0, 0] - alone[1, 0]).abs())
    return bool(((joint[1:].flip(0) - alone)[:, 0].abs() > limit).any())


def _find_reduction(first: Tape, second: Tape) -> Node | None:
    """Return a call that reaches the output and whose result has the same shape for any number of images.

    A tensor that is written to keeps its shape, and may hold the images in some of its rows.
    """
    needed = set() if first.output is None else {first.output.index}
    node: Node
    other: Node
    for node, other in zip(reversed(first.nodes), reversed(second.nodes), strict=True):
        if not any(var.index in needed for var in node.outputs()):
            continue
        needed |= {var.index for var in node.inputs()}
        is_write = writes_in_place(node.func)
        if node.inputs() and node.shapes and node.shapes == other.shapes and not is_write:
            return node
    return None


def _is_noise(model: nn.Module, tape: Tape, error: Tensor, tolerance: Tensor) -> bool:
    """Return whether a change may be rounding error of a deep net: such nets magnify it a million times and more."""

    def change(images: Tensor) -> Tensor:
        return (run_model(model, images).double() - tape.result.double()).abs().max()

    is_random = change(tape.images.clone()) > tolerance
    noise = change(tape.images * (1 + torch.finfo(tape.images.dtype).eps))
    return bool(error <= _NOISE_FACTOR * noise) and not is_random


def _describe_suspect(node: Node) -> str:
    """Return why a call may mix images, or ""."""
    if node.name == "multi_head_attention_forward":
        return f"attention in {node.layer!r} needs batch_first=True if images come first"
    return f"{describe_call(node)} {node.problem}" if node.problem else ""


def _is_uncounted(node: Node) -> bool:
    """Return whether a call bends its input and is not counted."""
    if node.out is None or not node.inputs():
        return True  # values that go to, or come from, code that is not seen
    if not any(var.floating for var in node.outputs()):
        return False  # a comparison adds no kink until its result is used
    if any(not var.floating for var in node.inputs()):
        return True  # values that are selected by a mask or an index
    if node.counted:
        return _moves_its_kinks(node)
    return not is_affine(node)


def _moves_its_kinks(node: Node) -> bool:
    """Return whether a counted call has a parameter that depends on the image in a way that is not counted."""
    if node.activation is None:
        return False
    parameters = [leaf for leaf in list_leaves((node.args[1:], node.kwargs)) if leaf is not None]
    moving = any(isinstance(leaf, Var) for leaf in parameters)
    if node.activation.name == "clamp":
        return moving and len(parameters) > 1  # where its bounds meet, it bends
    # a slope that depends on the image, as that of prelu, is a product
    return node.activation.name == "leaky_relu" and moving


def is_affine(node: Node) -> bool:
    """Return whether a call is affine in the image: it has a rule, which accepts its arguments."""
    rule = None if node.operation is None else RULES.get(node.operation.name)
    if rule is None:
        return False
    try:
        rule(node, "value")
    except ModelContractError:
        return False
    return True
