"""What every row of the table of operations keeps: its names, its kind by numbers, its rules, its place in the survey.

The numeric tests do not read the table: a call is affine if its second differences vanish.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.operations import OPERATIONS, Operation, find_operation
from grokkit.spline import dual, piecewise_rules, rules
from grokkit.spline.affine import Program, bind_results, build_program
from grokkit.spline.affine_rules import MapForm
from grokkit.spline.dual import Dual
from grokkit.spline.uncounted import find_uncounted
from grokkit.units import list_leaves
from tests.contracts.operation_samples import CALLS, OWNERS, ROWS, SAME_AS, Body, Form, draw_images, iter_forms
from tests.reference.bends import draw_line, find_bends, find_explained
from tests.reference.lc_nets import draw

AFFINE = ("view", "affine", "multilinear")
RANDOM = ("gumbel_softmax",)
"""Rows that are refused because they are random."""
MIXING = ("dot", "vdot", "trace", "unique", "dist")
"""Aliases that make one value of a whole batch, so that no net may call them on images."""
WITHOUT_ROWS = (
    *("ravel", "t", "T", "vsplit", "flipud", "vstack", "take", "masked_select", "diag", "diagflat"),
    *("put", "outer", "ger", "index_put 1", "__setitem__ 3"),
)
"""Aliases, or numbers of their samples, that make a tensor without a row for each image: no exact program has them."""
WITHOUT_JVP = ("detach", "data", "alias", "requires_grad_", "native_channel_shuffle", "rrelu", "heaviside", "take")
"""Aliases at which `torch.func.jvp` ends or has no rule; differences of values are their twin."""
SINGLE = "float"
"""Alias that rounds to float32."""


def named(*kinds: str) -> Any:
    return pytest.mark.parametrize("row", [row for row in ROWS if row.kind in kinds], ids=lambda row: row.name)


def join(result: Any, images: int) -> Tensor:
    """(N, ...): the floating tensors of a result side by side."""
    leaves = [leaf for leaf in list_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.cat([leaf.reshape(images, -1) for leaf in leaves], 1)


class Called(nn.Module):
    """One call on a copy of the images, so that in-place forms may write."""

    def __init__(self, function: Any, call: Body) -> None:
        super().__init__()
        self.function, self.call = function, call

    def forward(self, x: Tensor) -> Tensor:
        return join(self.call(self.function, x.clone()), len(x))


class Net(nn.Module):
    """An affine layer, the call, and a ReLU."""

    def __init__(self, called: Called) -> None:
        super().__init__()
        self.called = called
        self.scale, self.shift = (nn.Parameter(draw(2, 4, 4, seed=seed)) for seed in (20, 21))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.called(x * self.scale + self.shift))


def alias_of(label: str) -> str:
    """`Tensor.add_` -> `add`; but `requires_grad_`, which has no other form."""
    name = label.split(" ")[0].split(".")[1].removesuffix("_copy")
    return name if name in SAME_AS or name in CALLS or name.endswith("__") else name.removesuffix("_")


def iter_calls(row: Operation) -> Iterator[tuple[str, Called, Tensor]]:
    """Yield (label, module, images) for every sample call of every form of a row."""
    for form in iter_forms(row):
        for number, call in enumerate(form.calls):
            yield f"{form.label} {number}", Called(form.function, call), draw_images(row, form.label)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "(?s).*(deprecated|The operator|is not a leaf)")
        yield


# --- names ------------------------------------------------------------------------------------------------------------


@named(*{row.kind for row in ROWS} - {"metadata"})
def test_every_name_of_a_row_is_found(row: Operation) -> None:
    forms = list(iter_forms(row))
    assert forms or row.name == "__cuda_array_interface__", "no function has this name"
    for form in forms:
        assert find_operation(form.function) is row, form.label
        for overload in getattr(form.function, "overloads", list)():
            assert find_operation(getattr(form.function, overload)) is row, (form.label, overload)


@named(*AFFINE, "piecewise", "pool", "selecting", "smooth")
def test_names_that_share_a_sample_compute_the_same(row: Operation) -> None:
    twins: dict[tuple[int, str], Tensor] = {}
    for label, called, images in iter_calls(row):
        torch.manual_seed(0)
        value = called(images)
        twin = twins.setdefault((id(called.call), alias_of(label)), value)
        assert torch.allclose(value, twin, rtol=0, atol=1e-12), label


def test_every_sample_belongs_to_a_name() -> None:
    known = {alias for row in ROWS for alias in row.aliases} | set(OPERATIONS)
    for key in (*CALLS, *SAME_AS, *SAME_AS.values()):
        owner, _, name = key.rpartition(".")
        assert name in known and (not owner or owner in OWNERS), key


# --- kinds, by numbers ------------------------------------------------------------------------------------------------


def measure_bend(called: Called, images: Tensor) -> float:
    """Largest second difference along random lines at several scales, relative to the values."""
    worst = 0.0
    for seed, scale in enumerate((1e-3, 0.1, 1.0)):
        step = scale * draw(*images.shape, seed=30 + seed)
        before, here, after = (called(images + side * step) for side in (-1, 0, 1))
        size = torch.stack([before, here, after]).abs().max().item()
        worst = max(worst, (before - 2 * here + after).abs().max().item() / max(size, 1e-30))
    return worst


def measure_mixture(called: Called, images: Tensor) -> float:
    """How far f(a x + (1 - a) y) is from a f(x) + (1 - a) f(y), relative to the values."""
    other = draw(*images.shape, seed=40)
    first, second = called(images), called(other)
    error = (called(0.3 * images + 0.7 * other) - 0.3 * first - 0.7 * second).abs().max().item()
    return error / max(first.abs().max().item(), second.abs().max().item(), 1e-30)


@named(*AFFINE)
def test_an_affine_row_is_affine_by_numbers(row: Operation) -> None:
    for label, called, images in iter_calls(row):
        tolerance = 1e-5 if alias_of(label) == SINGLE else 1e-12
        assert measure_bend(called, images) < tolerance, label
        assert measure_mixture(called, images) < tolerance, label


@named("smooth", "selecting", "piecewise", "pool")
def test_any_other_row_bends_by_numbers(row: Operation) -> None:
    for label, called, images in iter_calls(row):
        if alias_of(label) in MIXING or row.name in (*RANDOM, "rnn_relu", "rnn_relu_cell"):
            continue  # the last two are as bent as the ReLUs in them
        scale = 0.02 if row.kind == "smooth" else 3.0
        steps = scale * torch.linspace(-1, 1, 201, dtype=torch.float64).view(-1, 1, 1, 1)
        share = find_bends(called, images[:1] + steps * draw(2, 4, 4, seed=50)).double().mean().item()
        curved = row.kind == "smooth" or (row.activation is not None and not row.activation.is_affine)
        assert share > (0.9 if curved else 0.0), label
        if row.activation is not None and not curved:
            assert share < 0.9, f"{label} bends between its kinks"


@named("constant")
def test_a_constant_row_ignores_the_values_of_the_image(row: Operation) -> None:
    for label, called, images in iter_calls(row):
        results = []
        for values in (images, 3.0 * images + 1.0):
            torch.manual_seed(0)
            results.append(called.call(called.function, values))
        same_shape = results[0].shape == results[1].shape
        assert same_shape if "empty" in row.name else torch.equal(*results), label


NO_VALUES = ("__hash__", "__repr__", "__format__", "__dir__", "grad_fn", "grad")
"""Names of metadata that say which object a tensor is, or print it; no model computes from them."""


@named("metadata")
def test_metadata_ignore_the_values_of_the_image(row: Operation) -> None:
    if row.name in NO_VALUES:
        return
    for form in iter_forms(row):
        try:
            first, second = (form.function(draw(3, 2, 4, 4, seed=seed)) for seed in (1, 2))
        except (TypeError, RuntimeError, ValueError):
            continue  # takes other arguments
        assert first == second and not isinstance(first, Tensor), form.label


# --- tangents ---------------------------------------------------------------------------------------------------------


def compute_tangents(called: Called, images: Tensor, frame: Tensor, differences: bool) -> Tensor:
    """(P, N, ...) derivatives along each direction, one at a time."""
    if differences:
        return torch.stack([(called(images + 1e-5 * v) - called(images - 1e-5 * v)) / 2e-5 for v in frame])
    return torch.stack([torch.func.jvp(called, (images,), (v,))[1] for v in frame])


@named(*AFFINE, "piecewise", "pool")
def test_tangents_are_those_of_jvp_without_forward_ad(row: Operation, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(func: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("falls back to forward-mode AD")

    for module in (dual, rules, piecewise_rules):
        monkeypatch.setattr(module, "apply_forward_ad", refuse)
    for label, called, images in iter_calls(row):
        frame = draw(4, *images.shape, seed=60)
        differences = alias_of(label) in WITHOUT_JVP
        carried = called(Dual(images.clone(), frame.clone()))
        assert isinstance(carried, Dual), label
        assert torch.allclose(carried.primal, called(images), rtol=0, atol=1e-12), label
        tolerance = 1e-8 if differences else 1e-5 if alias_of(label) == SINGLE else 1e-11
        slopes = compute_tangents(called, images, frame, differences)
        assert torch.allclose(carried.tangent, slopes, rtol=0, atol=tolerance), label


# --- exact programs ---------------------------------------------------------------------------------------------------


def run_form(program: Program, images: Tensor, form: MapForm) -> Tensor:
    """Compute one form of a program that has affine steps only."""
    values = {0: images}
    for step in program.steps:
        out = step.run(lambda var: values[var.index], len(images), form)
        bind_results(step.node.out, out, values.__setitem__)
    return values[program.output]


def compute_jacobian(called: Called, shape: torch.Size) -> Tensor:
    """(outputs, inputs) of an affine map, from its values at the unit vectors."""
    size = shape.numel()
    columns = called(torch.eye(size, dtype=torch.float64).view(size, *shape)) - called(torch.zeros(1, *shape).double())
    return columns.T


@named(*AFFINE)
def test_the_program_computes_the_call_its_linear_part_and_its_magnitude(row: Operation) -> None:
    for label, called, images in iter_calls(row):
        alias = alias_of(label)
        if alias in (*WITHOUT_ROWS, *MIXING) or f"{alias} {label[-1]}" in WITHOUT_ROWS:
            with pytest.raises(ModelContractError, match=r"row (for each|per) image"):
                build_program(called, images)
            continue
        if alias == SINGLE:
            continue  # a program in float64 is not that of a model that rounds to float32
        program, zero = build_program(called, images), called(torch.zeros_like(images))
        expected: dict[MapForm, Tensor] = {
            "value": called(images),
            "linear": called(images) - zero,
            "magnitude": images.flatten(1) @ compute_jacobian(called, images.shape[1:]).abs().T,
        }
        for form, twin in expected.items():
            assert torch.allclose(run_form(program, images.clone(), form), twin, rtol=0, atol=1e-12), (label, form)


def test_the_magnitude_of_a_cubic_interpolation_is_refused() -> None:
    called = Called(torch.nn.functional.interpolate, lambda f, x: f(x, scale_factor=2, mode="bicubic"))
    images = draw(3, 2, 4, 4)
    program = build_program(called, images)
    assert torch.allclose(run_form(program, images, "linear"), called(images))
    with pytest.raises(ModelContractError, match="negative weights in bicubic mode"):
        run_form(program, images, "magnitude")


# --- the survey -------------------------------------------------------------------------------------------------------


@named(*AFFINE, "piecewise", "pool")
def test_what_is_affine_or_counted_is_not_named_and_bends_at_counted_kinks(row: Operation) -> None:
    for label, called, images in iter_calls(row):
        net = Net(called)
        if alias_of(label) in MIXING:
            with pytest.raises(ModelContractError, match="mixes the images"):
                find_uncounted(called, images)
            continue
        assert find_uncounted(net, images).layers == (), label
        if alias_of(label) != SINGLE and (row.activation is None or row.activation.is_affine):
            line = draw_line((2, 4, 4), 301, torch.Generator().manual_seed(3))
            bends, explained = find_bends(net, line), find_explained(net, line)
            assert not (bends & ~explained).any(), label
            assert bends.any() or row.kind in AFFINE, label


@named("smooth", "selecting")
def test_what_is_not_counted_is_named(row: Operation) -> None:
    for label, called, images in iter_calls(row):
        if alias_of(label) in MIXING or row.name in RANDOM:
            with pytest.raises(ModelContractError, match="mixes the images of a batch, or is random"):
                find_uncounted(Net(called), images)
        else:
            assert find_uncounted(Net(called), images).layers, label


@pytest.mark.parametrize(
    "product",
    [
        lambda x: x * x.flip(3),
        lambda x: x / (x.flip(3) + 9.0),
        lambda x: x @ x,
        lambda x: torch.addcmul(x, x, x),
        lambda x: torch.cross(x[..., :3], x[..., 1:], dim=3),
        lambda x: torch.einsum("nchw,nchw->nc", x, x),
    ],
)
def test_a_product_of_two_factors_that_depend_on_the_image_is_named(product: Any) -> None:
    assert find_uncounted(Net(Called(None, lambda f, x: product(x))), draw(3, 2, 4, 4)).layers


@named("reading", "deciding")
def test_what_leaves_torch_is_named_and_what_decides_is_refused(row: Operation) -> None:
    for label, called, images in iter_calls(row):

        class Reads(nn.Module):
            def __init__(self, called: Called) -> None:
                super().__init__()
                self.called = called

            def forward(self, x: Tensor) -> Tensor:
                self.called.call(self.called.function, x)
                return torch.relu(x - 0.1)

        if row.kind == "deciding":
            with pytest.raises(ModelContractError, match="turns a value that depends on the images"):
                find_uncounted(Reads(called), images)
        else:
            assert find_uncounted(Reads(called), images).layers, label


# --- arguments by name ------------------------------------------------------------------------------------------------


WITHOUT_NAMES = ("broadcast_tensors", "atleast_1d", "__getitem__", "__setitem__", *("float", "T"))
"""Rows whose arguments have no names, or that have none but the first, on which a method is called."""


def list_argument_names(form: Form) -> list[list[str]]:
    """Return lists of names of a function's arguments, one for each signature that it has."""
    try:
        return [list(inspect.signature(form.function).parameters)]
    except ValueError:
        packet = getattr(torch.ops.aten, form.label.split(".")[1], None)
    overloads = [getattr(packet, name)._schema.arguments for name in packet.overloads()] if packet is not None else []
    return [["input" if argument.name == "self" else argument.name for argument in names] for names in overloads]


def pass_by_name(form: Form, names: list[str], first: int) -> Any:
    """Return a function that passes its arguments from the position `first` on by name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return form.function(*args[:first], **dict(zip(names[first:], args[first:], strict=False)), **kwargs)

    return call


@named(*AFFINE, "piecewise", "pool")
def test_arguments_by_name_change_nothing(row: Operation) -> None:
    tried = 0
    for form in iter_forms(row):
        images, first = draw_images(row, form.label), int(form.label.startswith(("Tensor", "aten")))
        for call in form.calls:
            for names in list_argument_names(form):
                by_name = Called(pass_by_name(form, names, first), call)
                try:
                    value = by_name(images)
                except (TypeError, RuntimeError, AttributeError, ValueError):
                    continue  # of another signature
                check_same(form, by_name, Called(form.function, call), value, images)
                tried += 1
    assert tried or row.name in WITHOUT_NAMES


def check_same(form: Form, by_name: Called, called: Called, value: Tensor, images: Tensor) -> None:
    assert torch.equal(value, called(images)), form.label
    frame = draw(2, *images.shape, seed=60)
    one, other = (net(Dual(images.clone(), frame.clone())) for net in (by_name, called))
    assert torch.equal(one.tangent, other.tangent), form.label
    if alias_of(form.label) not in MIXING:
        assert find_uncounted(Net(by_name), images).layers == (), form.label
