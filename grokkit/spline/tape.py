"""The forward pass of any unmodified module, recorded once as a flat program of calls on image-dependent tensors.

What needs to run a net in other ways than batch by batch (exact partitions, certified bounds) plays this program back.
Calls are seen by a `TorchFunctionMode`, so functional, re-used and in-place operations and residual adds need nothing
of the model. The net is run at two batch sizes: whatever number differs between them is the batch's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from grokkit.errors import ModelContractError
from grokkit.spline.rule_table import ANYWHERE, leaves, map_leaves, rule_table
from grokkit.units import ACTIVATIONS, ModulePath

BATCHES = (2, 3)
_OF_THE_SHAPE = rule_table(
    "constant", ANYWHERE, "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor"
)
"""What takes nothing but the shape of its argument makes a constant."""


@dataclass(frozen=True)
class Var:
    """A tensor that depends on the images, by its number; 0 is the input. A mask or an index is not `floating`."""

    index: int
    floating: bool = True


@dataclass(frozen=True)
class BatchRows:
    """A number that is `per_image` times the batch size."""

    per_image: int


@dataclass(frozen=True, eq=False)
class BatchRow:
    """A constant with one equal row per image."""

    value: Tensor


class Node(NamedTuple):
    """One call.

    Args:
        func: what is called, with `args` and `kwargs` in which tensors that depend on the images are `Var`s.
        out: the result, in which they are too.
        layer: module path of the call; for an activation the name that local complexity gives it.
        problem: why the call cannot be played back, or "".
    """

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    out: Any
    layer: str
    problem: str

    @property
    def name(self) -> str:
        """The function as a user would write it."""
        return (resolve_name(self.func) or getattr(self.func, "__name__", str(self.func))).split(".")[-1]

    def inputs(self) -> list[Var]:
        """The image-dependent arguments, each once, in order."""
        return list(dict.fromkeys(leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Var)))

    def outputs(self) -> list[Var]:
        """The image-dependent results."""
        return [leaf for leaf in leaves(self.out) if isinstance(leaf, Var)]


class Tape(NamedTuple):
    """A recorded forward pass: its calls in order, the variable that the model returned (None: none), and what it
    returned."""

    nodes: list[Node]
    output: Var | None
    result: Any


class _Recorder(TorchFunctionMode):
    """Follows which tensors depend on the images. All of them are kept alive, so that an id means one tensor."""

    def __init__(self, path: ModulePath, images: Tensor) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._path = path
        self._batch = len(images)
        self._seen: Counter[str] = Counter()
        self._alive: list[Tensor] = []
        self._vars: dict[int, Var] = {}
        self._stale: set[int] = set()
        self._count = 0
        self.bind(images)

    def bind(self, tensor: Tensor) -> Var:
        self._alive.append(tensor)
        self._vars[id(tensor)] = Var(self._count, tensor.is_floating_point())
        self._count += 1
        return self._vars[id(tensor)]

    def var_of(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Size):
            return tuple(leaf)
        return self._vars.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = map_leaves(self.var_of, (args, kwargs))
        if func in _OF_THE_SHAPE or not any(isinstance(leaf, Var) for leaf in leaves(known)):
            return func(*args, **kwargs)
        problem = self._stale_argument(given)
        versions = [(tensor, _get_version(tensor)) for tensor in given]
        out = func(*args, **kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in leaves(out)) and out is not None:
            return out  # a shape or a flag
        written = [tensor for tensor, version in versions if _get_version(tensor) != version]
        problem = problem or self._hidden_write(written, out) or self._other_batch(out)
        self._forget_aliases(written)
        known_args, known_kwargs = known
        self.nodes.append(Node(func, known_args, known_kwargs, self._bound(out), self._layer(func), problem))
        return out

    def _bound(self, out: Any) -> Any:
        return map_leaves(lambda leaf: self.bind(leaf) if isinstance(leaf, Tensor) else leaf, out)

    def _layer(self, func: Any) -> str:
        activation = ACTIVATIONS.get(func)
        base = self._path.layer(activation.name if activation else getattr(func, "__name__", str(func)))
        self._seen[base] += activation is not None
        return base if self._seen[base] < 2 or activation is None else f"{base}#{self._seen[base]}"

    def _stale_argument(self, given: list[Tensor]) -> str:
        stale = any(id(tensor) in self._stale for tensor in given)
        return "reads a view of a tensor that was overwritten in place" if stale else ""

    def _hidden_write(self, written: list[Tensor], out: Any) -> str:
        hidden = any(tensor is not out for tensor in written)
        return "writes into a tensor that it does not return" if hidden else ""

    def _other_batch(self, out: Any) -> str:
        results = [leaf for leaf in leaves(out) if isinstance(leaf, Tensor)]
        whole = all(leaf.dim() > 0 and len(leaf) == self._batch for leaf in results)
        return "" if whole else f"returns {_shapes(results)}, which has no row for each image"

    def _forget_aliases(self, written: list[Tensor]) -> None:
        for tensor in written:
            memory = tensor.untyped_storage().data_ptr()
            self._stale |= {
                id(other)
                for other in self._alive
                if other is not tensor and other.untyped_storage().data_ptr() == memory
            }


def _get_version(tensor: Tensor) -> int:
    """How often a tensor was written to; one of inference mode does not say."""
    return 0 if tensor.is_inference() else tensor._version


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "nothing"


def record_once(model: nn.Module, images: Tensor) -> Tape:
    """The calls of one forward pass of a borrowed model on `images` (N, ...); numbers in it are for that batch."""
    path = ModulePath(model)
    with path.watched(), _Recorder(path, images) as recorder:
        result = model(images)
    output = recorder.var_of(result)
    return Tape(recorder.nodes, output if isinstance(output, Var) else None, result)


def record_tape(model: nn.Module, images: Tensor) -> Tape:
    """The forward pass of a borrowed model as a program for any batch size; two forward passes.

    Args:
        model: in eval mode, without gradients.
        images: (N, ...) with N >= 1, where the control flow is looked at.

    Raises:
        ModelContractError: other calls at another batch size, or a result that is no tensor of the images.
    """
    picked = images[torch.arange(BATCHES[1], device=images.device) % len(images)]
    first, second = (record_once(model, picked[:size].clone()) for size in BATCHES)
    if [node.func for node in first.nodes] != [node.func for node in second.nodes]:
        raise ModelContractError(
            "the model calls other operations for other images; only a model whose layers do not depend on the data "
            "has one program"
        )
    if first.output is None:
        raise ModelContractError(
            "the model must return one tensor that is computed from the images; wrap it in a module that returns its "
            "logits alone"
        )
    nodes = [
        one._replace(args=_for_any_batch(one.args, two.args), kwargs=_for_any_batch(one.kwargs, two.kwargs))
        for one, two in zip(first.nodes, second.nodes, strict=True)
    ]
    return first._replace(nodes=nodes)


def _for_any_batch(first: Any, second: Any) -> Any:
    """The arguments of one call, with whatever is the batch's own replaced by `BatchRows` and `Row`."""
    others = iter(leaves(second))
    return map_leaves(lambda leaf: _merge(leaf, next(others)), first)


def _merge(one: Any, two: Any) -> Any:
    if isinstance(one, Tensor) and one.shape != two.shape:
        if (len(one), len(two)) == BATCHES and bool((two == two[:1]).all()):
            return BatchRow(one[:1])
    elif isinstance(one, int) and not isinstance(one, bool) and one != two:
        if one % BATCHES[0] == 0 and one // BATCHES[0] * BATCHES[1] == two:
            return BatchRows(one // BATCHES[0])
    elif isinstance(one, Tensor) or one == two:
        return one
    raise ModelContractError(
        f"the model computes with {_format_leaf(one)} for {BATCHES[0]} images and {_format_leaf(two)} for "
        f"{BATCHES[1]}, which is "
        "not one row per image"
    )


def _format_leaf(leaf: Any) -> str:
    return f"a tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)


def fill_arguments(tree: Any, values: Callable[[Var], Tensor], batch: int) -> Any:
    """Arguments with their variables and batch sizes filled in."""

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Var):
            return values(leaf)
        if isinstance(leaf, BatchRows):
            return leaf.per_image * batch
        if isinstance(leaf, BatchRow):
            return leaf.value.expand(batch, *leaf.value.shape[1:])
        return leaf

    return map_leaves(fill, tree)


def find_last_uses(tape: Tape) -> list[list[int]]:
    """For each node, the variables that no later node reads and that the model does not return."""
    last = {var.index: place for place, node in enumerate(tape.nodes) for var in (*node.inputs(), *node.outputs())}
    if tape.output is not None:
        last.pop(tape.output.index, None)
    dying: list[list[int]] = [[] for _ in tape.nodes]
    for index, place in last.items():
        dying[place].append(index)
    return dying
