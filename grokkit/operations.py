"""The table of operations: what every call of torch that a model may make does to the partition of its input space.

Interception, recording, tangents, exact programs, profiles and receptive fields read this one table; `spline/` attaches
its affine and tangent rules to the rows by name. A function without a row is not an error: it is named as uncounted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

Kind = Literal[
    "metadata",
    "constant",
    "view",
    "affine",
    "multilinear",
    "piecewise",
    "pool",
    "selecting",
    "smooth",
    "reading",
    "deciding",
]
"""What an operation does with values that depend on the image.

- metadata: reads sizes, dtype or device, no value.
- constant: reads only the shape, or only whether values are finite; its result does not depend on the image.
- view: rearranges, repeats, drops or casts values.
- affine: is affine in all of its values together, also where some are constants; masks, indices and weights of a mean
  must be constants.
- multilinear: is linear in each factor, hence affine if exactly one factor depends on the image.
- piecewise: bends at its kinks, which are counted: an `Activation`.
- pool: a max-pool, whose changes of winner are counted: a `Pool`.
- selecting: picks or rounds values by comparing them: piecewise affine, with kinks that are not counted.
- smooth: bends everywhere.
- reading: hands values to code outside torch.
- deciding: turns a value into a Python bool or number, on which control flow can depend.
"""


class Activation(NamedTuple):
    """One kind of activation.

    Args:
        name: its name in torch.
        kinks: maps the arguments of a call to the values of the pre-activation at which it bends or jumps; a clamp by
            tensors gives these tensors.
        zone: for a smooth activation, half the width of the zone around 0 in which it is convex; the sign of its
            pre-activation is then a proxy. None if the kinks are real.
        flat: whether it is constant below its first kink, so that its output does not show how far below the kink
            the input was.
        is_affine: whether it is affine between its kinks.
        jumps: whether it is discontinuous at its kinks.
        pair: whether it compares two tensors; its pre-activation is their difference.
    """

    name: str
    kinks: Callable[..., tuple[Any, ...]]
    zone: float | None = None
    flat: bool = False
    is_affine: bool = True
    jumps: bool = False
    pair: bool = False

    @property
    def exact(self) -> bool:
        """Whether each kink is real: the slope or the value jumps there."""
        return self.zone is None


class Pool(NamedTuple):
    """One kind of max-pooling.

    Args:
        name: its name in torch.
        spatial: number of trailing dimensions that it pools.
        adaptive: whether its argument is the size of its output rather than of its windows.
    """

    name: str
    spatial: int
    adaptive: bool


class Operation(NamedTuple):
    """One row of the table: an operation under all of its names.

    Args:
        name: its name, also that of the rules attached to it.
        kind: what it does with values that depend on the image.
        aliases: all names of torch for it: functions, methods, in-place forms, operators.
        activation: set if `kind` is "piecewise".
        pool: set if `kind` is "pool".
    """

    name: str
    kind: Kind
    aliases: tuple[str, ...]
    activation: Activation | None = None
    pool: Pool | None = None

    def functions(self) -> Iterator[Callable[..., Any]]:
        """Yield every function of torch that this row describes; a function may be yielded twice."""
        for owner in _OWNERS:
            for alias in self.aliases:
                for name in (alias,) if self.kind == "metadata" else (alias, f"{alias}_", f"{alias}_copy"):
                    function = getattr(owner, name, None)
                    if callable(function):
                        yield function
        for alias in self.aliases:
            attribute = vars(Tensor).get(alias, vars(torch._C.TensorBase).get(alias))
            if attribute is not None and not callable(attribute):
                yield attribute.__get__


_OWNERS = (torch, Tensor, F, torch.special, torch.linalg, torch._C._nn)
"""Namespaces that hold the same operation under the same name."""


def _zero_kink(*_: Any, **__: Any) -> tuple[float, ...]:
    return (0.0,)


def _hardtanh_kinks(_: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> tuple[float, ...]:
    return (float(min_val), float(max_val))


def _clamp_kinks(_: Tensor, min: Any = None, max: Any = None) -> tuple[Any, ...]:
    bounds = (bound for bound in (min, max) if bound is not None)
    return tuple(float(bound) if isinstance(bound, int | float) else bound for bound in bounds)


def _clamp_max_kinks(_: Tensor, max: Any) -> tuple[Any, ...]:
    return _clamp_kinks(_, None, max)


def _threshold_kinks(_: Tensor, threshold: float, *__: Any, **___: Any) -> tuple[float, ...]:
    return (float(threshold),)


def _shrink_kinks(_: Tensor, lambd: float = 0.5) -> tuple[float, ...]:
    return (-float(lambd), float(lambd))


GELU_ZONE = math.sqrt(2.0)
"""Zero of the second derivative of GELU, (2 - x^2) times the normal density."""
SILU_ZONE = 2.3993572805154677
"""Zero of the second derivative of SiLU: the root of x tanh(x / 2) = 2."""

RELU = Activation("relu", _zero_kink, flat=True)

_ACTIVATIONS: dict[str, Activation] = {
    "relu": RELU,
    "leaky_relu|prelu": Activation("leaky_relu", _zero_kink),
    "rrelu": Activation("rrelu", _zero_kink),
    "relu6": Activation("relu6", lambda *_, **__: (0.0, 6.0), flat=True),
    "hardtanh": Activation("hardtanh", _hardtanh_kinks, flat=True),
    "hardsigmoid": Activation("hardsigmoid", lambda *_, **__: (-3.0, 3.0), flat=True),
    "hardswish": Activation("hardswish", lambda *_, **__: (-3.0, 3.0), is_affine=False),
    "clamp|clip|clamp_min": Activation("clamp", _clamp_kinks, flat=True),
    "clamp_max": Activation("clamp", _clamp_max_kinks),
    "abs|absolute|__abs__": Activation("abs", _zero_kink),
    "threshold": Activation("threshold", _threshold_kinks, flat=True, jumps=True),
    "hardshrink": Activation("hardshrink", _shrink_kinks, jumps=True),
    "softshrink": Activation("softshrink", _shrink_kinks),
    "sign|sgn": Activation("sign", _zero_kink, jumps=True),
    "heaviside": Activation("heaviside", _zero_kink, jumps=True),
    "gelu": Activation("gelu", _zero_kink, zone=GELU_ZONE, is_affine=False),
    "silu": Activation("silu", _zero_kink, zone=SILU_ZONE, is_affine=False),
    "maximum|fmax|max": Activation("maximum", _zero_kink, pair=True),
    "minimum|fmin|min": Activation("minimum", _zero_kink, pair=True),
}
"""Counted calls. `max` and `min` of one tensor are other operations of the same name, and are not counted."""

_ROWS: dict[Kind, str] = {
    "metadata": """
        shape ndim dtype device layout requires_grad is_leaf grad_fn grad itemsize nbytes output_nr
        is_cuda is_cpu is_meta is_sparse is_quantized is_mkldnn is_nested size dim ndimension numel nelement stride
        storage_offset element_size get_device is_contiguous is_floating_point is_complex is_same_size is_tensor
        is_inference is_signed is_shared is_pinned result_type can_cast __len__ __hash__ __repr__
        __format__ __dir__ register_hook retain_grad __dlpack_device__
    """,
    "constant": """
        zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full
        new_empty new_empty_strided new_tensor isfinite isnan isinf isposinf isneginf
    """,
    "view": """
        view|view_as|reshape|reshape_as|flatten|unflatten|ravel|_unsafe_view permute transpose|swapaxes|swapdims
        movedim|moveaxis t T|mT squeeze unsqueeze chunk|unsafe_chunk
        split|split_with_sizes|unsafe_split|unsafe_split_with_sizes tensor_split hsplit|vsplit|dsplit unbind
        narrow slice select as_strided expand|expand_as|broadcast_to broadcast_tensors contiguous|clone
        flip|fliplr|flipud roll rot90 __getitem__ index_select gather|take_along_dim take masked_select
        repeat|tile repeat_interleave diagonal diag diag_embed diagflat pixel_shuffle pixel_unshuffle
        channel_shuffle|native_channel_shuffle unfold atleast_1d|atleast_2d|atleast_3d detach|alias|data
        adjoint|mH conj|conj_physical|resolve_conj|resolve_neg|real|nan_to_num
        to|type|type_as|_to_copy float|double cpu|cuda requires_grad_
        dropout|dropout1d|dropout2d|dropout3d|alpha_dropout|feature_alpha_dropout|feature_dropout
        reflection_pad1d|reflection_pad2d|reflection_pad3d|replication_pad1d|replication_pad2d|replication_pad3d|_pad_circular
    """,
    "affine": """
        add|__add__|__radd__|__iadd__ sub|subtract|__sub__|__isub__ rsub|__rsub__ neg|negative|__neg__ positive|__pos__
        mean|nanmean sum|nansum cumsum diff trace tril|triu fold deg2rad|rad2deg
        avg_pool1d|avg_pool2d|avg_pool3d adaptive_avg_pool1d|adaptive_avg_pool2d|adaptive_avg_pool3d
        interpolate|upsample|upsample_nearest|upsample_bilinear
        cat|concat|concatenate|stack|hstack|vstack|dstack|column_stack
        where masked_fill masked_scatter lerp pad constant_pad_nd __setitem__ copy_ fill zero_
        scatter scatter_add index_add index_copy index_fill index_put put
        slice_scatter select_scatter diagonal_scatter
    """,
    "multilinear": """
        mul|multiply|__mul__|__rmul__|__imul__ div|divide|true_divide|__truediv__|__itruediv__|__div__
        matmul|__matmul__|__rmatmul__|mm|bmm|mv|dot|inner|vdot|vecdot|outer|ger|einsum|kron|tensordot|chain_matmul|multi_dot
        addmm|baddbmm|addmv addr addcmul cross
        linear conv1d|conv2d|conv3d|conv_transpose1d|conv_transpose2d|conv_transpose3d batch_norm
    """,
    "selecting": """
        amax amin aminmax sort msort topk median nanmedian mode kthvalue cummax cummin unique quantile nanquantile
        round floor ceil trunc|fix frac fmod remainder|__mod__|__rmod__ floor_divide|__floordiv__|__rfloordiv__
        copysign renorm fractional_max_pool2d|fractional_max_pool2d_with_indices
        fractional_max_pool3d|fractional_max_pool3d_with_indices max_unpool1d|max_unpool2d|max_unpool3d
    """,
    "smooth": """
        sigmoid|expit tanh elu selu celu mish softplus logsigmoid|log_sigmoid softsign tanhshrink glu logit
        exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square pow|float_power|__pow__|__rpow__|__ipow__
        reciprocal|__rtruediv__|__rdiv__ sin cos tan sinh cosh asin|arcsin acos|arccos atan|arctan atan2|arctan2 asinh
        acosh atanh erf erfc erfinv softmax|softmin log_softmax logsumexp gumbel_softmax std var std_mean var_mean norm
        vector_norm matrix_norm prod cumprod cosine_similarity pairwise_distance cdist dist hypot addcdiv normalize
        layer_norm group_norm instance_norm rms_norm local_response_norm lp_pool1d|lp_pool2d|lp_pool3d bilinear
        logaddexp|logaddexp2 logcumsumexp xlogy|xlog1py sinc lgamma|gammaln digamma i0 erfcx ndtr log_ndtr entr
        scaled_dot_product_attention multi_head_attention_forward|_native_multi_head_attention grid_sample
        lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    """,
    "reading": """
        numpy tolist __array__ __dlpack__ data_ptr untyped_storage|storage|_typed_storage __cuda_array_interface__
        __reduce_ex__ share_memory_
    """,
    "deciding": """
        __bool__|is_nonzero item __int__|__index__ __float__|__complex__ equal allclose __contains__
    """,
}
"""Rows, separated by spaces; the aliases of a row by |. Forms with a trailing _ or _copy are included."""


def _list_max_pools() -> Iterator[Operation]:
    for adaptive in (False, True):
        for spatial in (1, 2, 3):
            name = f"{'adaptive_' * adaptive}max_pool{spatial}d"
            yield Operation(name, "pool", (name, f"{name}_with_indices"), pool=Pool(name, spatial, adaptive))


def _list_operations() -> Iterator[Operation]:
    for kind, names in _ROWS.items():
        for row in names.split():
            aliases = tuple(row.split("|"))
            yield Operation(aliases[0], kind, aliases)
    for row, activation in _ACTIVATIONS.items():
        aliases = tuple(row.split("|"))
        yield Operation(aliases[0], "piecewise", aliases, activation=activation)
    yield from _list_max_pools()


OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _list_operations()}
"""Name -> row."""
_BY_FUNCTION: dict[Any, Operation] = {
    function: operation for operation in OPERATIONS.values() for function in operation.functions()
}
_BY_ALIAS: dict[str, Operation] = {alias: row for row in OPERATIONS.values() for alias in row.aliases}


_ARGUMENTS: dict[str, str] = {
    "add sub mul div rsub maximum minimum matmul cross view_as reshape_as expand_as type_as fmod remainder "
    "floor_divide copysign atan2 hypot": "input other|x2|mat2|vec2|vec|tensor",
    "where": "condition input|self other",
    "Tensor.where": "input|self condition other",
    "masked_fill": "input mask value",
    "masked_scatter": "input mask source",
    "lerp": "input end weight",
    "cat stack hstack": "tensors dim",
    "broadcast_tensors": "tensors",
    "linear conv1d": "input weight bias",
    "batch_norm": "input weight bias running_mean running_var training momentum eps",
    "functional.batch_norm": "input running_mean running_var weight bias training momentum eps",
    "addmm": "input mat1|batch1|mat mat2|batch2|vec",
    "addr": "input vec1 vec2",
    "addcmul": "input tensor1 tensor2",
    "einsum": "equation operands",
    "pad": "input pad mode value",
    "constant_pad_nd": "input pad value",
    "dropout": "input p training|train inplace",
    "copy_": "input src|other non_blocking",
    "fill": "input value",
    "diff": "input n dim prepend append",
    "clamp": "input min max",
    "clamp_min": "input min",
    "clamp_max": "input max",
    "prelu": "input weight",
    "heaviside": "input values",
    "index_put": "input indices values accumulate",
    "put": "input index source accumulate",
    "index_fill": "input dim index value",
    "index_copy index_add": "input dim index source|tensor",
    "scatter scatter_add": "input dim index src|value",
    "slice_scatter": "input src dim start end step",
    "select_scatter": "input src dim index",
    "diagonal_scatter": "input src offset dim1 dim2",
}
"""Rows, aliases or functions of a module -> names of their first arguments in order; names of one argument by |."""
_NAMES_OF_ARGUMENTS = {
    key: [tuple(name.split("|")) for name in names.split()]
    for keys, names in _ARGUMENTS.items()
    for key in keys.split()
}
_FIRST = ("input", "self", "x", "x1", "A", "tensor", "a")
"""Names of the first argument; torch also takes NumPy's names."""


@cache
def get_argument_names(func: Callable[..., Any]) -> list[tuple[str, ...]]:
    """Return the names of each of the first arguments of a function, as far as the rules need them."""
    name = get_function_name(func).removesuffix("_") or get_function_name(func)
    owner = (resolve_name(func) or "").split(".")[-2:-1]
    operation = find_operation(func)
    row = "" if operation is None else operation.name
    for key in (f"{owner[0]}.{name}" if owner else "", f"{name}_", name, row):
        if key in _NAMES_OF_ARGUMENTS:
            return _NAMES_OF_ARGUMENTS[key]
    return [_FIRST]


def place_arguments(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with those that it passes by name in their places, as far as these are known."""
    if not kwargs:
        return args, kwargs
    placed, rest = list(args), dict(kwargs)
    for names in get_argument_names(func)[len(args) :]:
        known = (*names, *_FIRST) if names[0] == "input" else names
        # some of the names of a first tensor are those of numbers elsewhere
        name = next((name for name in known if name in rest and (name != "a" or isinstance(rest[name], Tensor))), None)
        if name is None:
            break
        placed.append(rest.pop(name))
    return tuple(placed), rest


_SHAPE_READERS = frozenset(("view_as", "reshape_as", "expand_as", "type_as", "resize_as_"))


def select_values(func: Callable[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """Return those arguments of a call, positional and by name, of which it may read the values."""
    operation, (args, kwargs) = find_operation(func), arguments
    if operation is not None and operation.kind == "constant":
        return args[1:], kwargs  # the first argument gives a shape; the others may give values
    return (args[:1], {}) if get_function_name(func) in _SHAPE_READERS else arguments


def find_operation(func: Callable[..., Any]) -> Operation | None:
    """Return the row of a function that a `TorchFunctionMode` intercepted; None if it has no row."""
    operation = _BY_FUNCTION.get(func)
    if operation is None and isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return _find_overload(func)
    return operation


@cache
def _find_overload(func: Any) -> Operation | None:
    """Return the row of an operation that is called as `torch.ops.aten...`, whose arguments are those of `torch...`."""
    packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
    namespace, name = packet._qualified_op_name.split("::")
    names = (name, name.removesuffix("_"), name.removesuffix("_copy")) if namespace == "aten" else ()
    return next((_BY_ALIAS[name] for name in names if name in _BY_ALIAS), None)


@lru_cache(maxsize=4096)
def get_function_name(func: Callable[..., Any]) -> str:
    """Return the name of an intercepted function without its module; an operator by the name of its operation."""
    if isinstance(func, torch._ops.OpOverload):
        return get_function_name(func.overloadpacket)
    name = (resolve_name(func) or getattr(func, "__name__", str(func))).removesuffix(".__get__").split(".")[-1]
    operation = find_operation(func) if name.startswith("__") else None
    return name if operation is None else operation.name
