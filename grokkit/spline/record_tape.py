"""Record a model twice, at two batch sizes and on different images, and compare the passes.

Numbers that differ between the two are multiples of the batch size. An origin that differs between the two was computed
from the images by code that was not seen. Exact partitions and certified bounds replay the recorded program on other
kinds of input than a batch of images, and the search for uncounted calls reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.spline.call_recorder import record_once
from grokkit.spline.rule_table import tree_map
from grokkit.spline.tape import BatchMultiple, BatchRow, Node, Tape
from grokkit.units import list_leaves

BATCHES = (2, 3)
DATA_DEPENDENT_CALLS = (
    "the model calls different operations for different batches of images; only a model whose layers do not depend on "
    "the data can be measured"
)


def record_twice(model: nn.Module, images: Tensor) -> tuple[Tape, Tape]:
    """Record the forward passes of two images, and of the same two in reverse order behind a third one.

    Args:
        model: in `measurement_mode`.
        images: (N, ...) with N >= 1.

    Raises:
        ModelContractError: the calls differ between the two, or a value that depends on the images is turned into a
            Python value.
    """
    pair = images[:2] if len(images) > 1 else torch.cat([images, 0.75 * images.flip(-1)])
    # a larger image, so that a maximum over the batch changes; the others in reverse, so that no order remains
    batches = pair, torch.cat([1.5 * pair[:1].flip(-1), pair.flip(0)])
    unseen: frozenset[int] = frozenset()
    first, second = (record_once(model, batch) for batch in batches)
    if _list_calls(first) != _list_calls(second):
        # a model may fill a cache of constants in its first pass
        first = record_once(model, batches[0])
    while True:
        if _list_calls(first) != _list_calls(second):
            raise ModelContractError(DATA_DEPENDENT_CALLS)
        _check_images_not_mapped(first, second)
        new = _find_unseen(first, second, unseen)
        if new is None:
            return first, second
        unseen |= {new}
        first, second = (record_once(model, batch, unseen) for batch in batches)


def _list_calls(tape: Tape) -> tuple[list[Any], list[str]]:
    return [node.func for node in tape.nodes], [origin.name for origin in tape.origins]


def _check_images_not_mapped(first: Tape, second: Tape) -> None:
    """Raise ModelContractError if a dimension that `torch.vmap` hides grows with the batch: it holds the images."""
    for (layer, size), (_, other) in zip(first.mapped, second.mapped, strict=True):
        if size != other:
            raise ModelContractError(
                f"the model applies `torch.vmap` to the images of a batch in {layer!r} ({size} of {BATCHES[0]} images, "
                f"{other} of {BATCHES[1]}), which hides them from the calls inside, so that images and units cannot be "
                "told apart; call the function on the whole batch, without `torch.vmap`. A map over the members of an "
                "ensemble is counted"
            )


def _find_unseen(first: Tape, second: Tape, known: frozenset[int]) -> int | None:
    """Return the position of the first origin that differs between the passes, and so depends on the images."""
    for position, (origin, other) in enumerate(zip(first.origins, second.origins, strict=True)):
        if position not in known and not _is_same(origin.value, other.value):
            if not isinstance(origin.value, Tensor):
                raise ModelContractError(
                    f"`{origin.name}` in {origin.layer!r} computes with the number {origin.value!r} for one batch and "
                    f"{other.value!r} for another, so images mix; compute with tensors that have a row for each image"
                )
            return position
    return None


def record_tape(model: nn.Module, images: Tensor) -> Tape:
    """Record the forward pass of a model as a program for any batch size.

    Args:
        model: in `measurement_mode`: eval mode, without gradients.
        images: (N, ...) with N >= 1; the control flow is recorded on these.

    Raises:
        ModelContractError: the calls differ between batch sizes, or the result is not a tensor computed from the
            images.

    Cost: two forward passes, of two and of three images.
    """
    first, second = record_twice(model, images)
    if first.output is None:
        raise ModelContractError("the model's output is not computed from the images by calls that are seen")
    if first.mapped:
        raise ModelContractError(
            f"{first.mapped[0][0]!r} is called under `torch.vmap`, which hides a dimension from it, so an exact "
            "partition or bound cannot be computed for this network; use `grokkit.local_complexity` with "
            'method="vertex" instead'
        )
    nodes = [_generalise_node(node, other) for node, other in zip(first.nodes, second.nodes, strict=True)]
    return first._replace(nodes=nodes)


def _generalise_node(node: Node, other: Node) -> Node:
    """Return the node for any batch size; with a problem if its arguments do not follow from the batch size."""
    # a dimension of the size of the smaller batch may look like one
    node = node._replace(problem=node.problem or other.problem)
    try:
        args, kwargs = (_generalise_batch(*pair) for pair in ((node.args, other.args), (node.kwargs, other.kwargs)))
    except ModelContractError as error:
        return node._replace(problem=node.problem or str(error))
    return node._replace(args=args, kwargs=kwargs)


def _is_same(first: Any, second: Any) -> bool:
    """Return whether a tensor or number is the same in both passes, but for the batch size."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        short, long = (x[: BATCHES[0]] if x.dim() else x for x in (first, second))
        return first.shape[1:] == second.shape[1:] and bool(
            short.shape == long.shape and ((short == long) | ((short != short) & (long != long))).all()
        )
    return bool(first == second or first * BATCHES[1] == second * BATCHES[0])


def _generalise_batch(first: Any, second: Any) -> Any:
    """Return the arguments of one call with batch-dependent leaves replaced by `BatchMultiple` and `BatchRow`."""
    second_leaves = iter(list_leaves(second))
    return tree_map(lambda leaf: _merge_leaf(leaf, next(second_leaves)), first)


def _merge_leaf(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor) and first.shape != second.shape:
        if (len(first), len(second)) == BATCHES and bool((second == second[:1]).all() and _is_same(first, second)):
            return BatchRow(first[:1])
    elif isinstance(first, int) and not isinstance(first, bool) and first != second:
        if first % BATCHES[0] == 0 and first // BATCHES[0] * BATCHES[1] == second:
            return BatchMultiple(first // BATCHES[0])
    elif first is second or (_is_same(first, second) if isinstance(first, Tensor) else first == second):
        return first
    raise ModelContractError(
        f"computes with {_format_leaf(first)} for {BATCHES[0]} images and {_format_leaf(second)} for "
        f"{BATCHES[1]}, which is not one row per image"
    )


def _format_leaf(leaf: Any) -> str:
    return f"a tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
