"""What a model must be: every function that takes one says the same of one that it cannot measure, with a remedy."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import grokkit as gk
from grokkit.errors import ModelContractError, UsageError
from grokkit.measures.base import predict_logits

IMAGES = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4) % 3


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


COUNTS = {
    method: lambda net, method=method: gk.local_complexity(net, IMAGES, 0.1, 2, method)
    for method in ("vertex", "tangent", "ray", "bound")
} | {"segment": lambda net: gk.partition_segment(net, IMAGES[0], IMAGES[1])}
GRADIENTS = {
    "pgd": lambda net: gk.pgd(net, IMAGES, LABELS, 0.1, steps=2),
    "attribute": lambda net: gk.attribute(net, IMAGES, LABELS, "saliency"),
}
LOGITS = {"logits": lambda net: predict_logits(net, IMAGES)}
SHAPES = {"profile": lambda net: gk.profile(net, (3, 2, 2))}
EVERY = COUNTS | GRADIENTS | LOGITS | SHAPES


class _Around(nn.Module):
    """The net, behind and before what a user may put around it."""

    def __init__(self, before=lambda x: x, after=lambda z: z) -> None:
        super().__init__()
        self.net, self.before, self.after = _net(), before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def _lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 3))


def _meta() -> nn.Module:
    with torch.device("meta"):
        return _net()


def _exported() -> nn.Module:
    return torch.export.export(_net().eval(), (IMAGES,)).module()


def _quantised() -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(_net().eval(), {nn.Linear}, torch.qint8)


REFUSED = {
    "lazy": (_lazy, EVERY, r"'1\.weight' has no shape yet.*run one batch"),
    "meta": (_meta, COUNTS | GRADIENTS | LOGITS, r"'1\.weight' is on the meta device.*to_empty"),
    "exported": (_exported, EVERY, "exported program.*pass the module from which it was exported"),
    "quantised": (_quantised, EVERY, "pass the float model from which it was made"),
    "nothing counted": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 3)),
        {name: call for name, call in COUNTS.items() if name != "segment"},
        "no nonlinear call of the model is counted.*`sigmoid` in '2'",
    ),
    "only smooth": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 3)),
        {"segment": COUNTS["segment"]},
        r"`sigmoid` in '2' is not piecewise affine, so an exact partition or bound cannot be computed for this net\w+$",
    ),
    "images mix": (lambda: _Around(after=lambda z: z - z.mean(0)), COUNTS, "mixes the images of a batch"),
    "dict in": (lambda: _Around(before=lambda x: x["image"]), EVERY, "forward pass fails on a tensor.*wrap it"),
    "dict out": (
        lambda: _Around(after=lambda z: {"logits": z}),
        COUNTS | GRADIENTS | LOGITS,
        "must return one tensor.*returned a dict",
    ),
    "rows": (lambda: _Around(after=lambda z: z[:, 0]), GRADIENTS | LOGITS, r"must return logits .*shape \(4,\)"),
    "one logit": (lambda: _Around(after=lambda z: z[:, :1]), GRADIENTS, "one logit z.*torch.cat"),
    "detached": (lambda: _Around(before=torch.detach), GRADIENTS, "no gradient.*remove `detach`"),
    "inplace": (lambda: _Around(after=lambda z: z.relu().relu_()), GRADIENTS, "modified by an inplace operation"),
    "no_grad": (lambda: _Around(before=lambda x: x, after=torch.no_grad()(lambda z: z * 1)), GRADIENTS, "no gradient"),
}


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("kind", "function"), [(kind, name) for kind, (_, functions, _) in REFUSED.items() for name in functions]
)
def test_a_model_that_cannot_be_measured_is_refused_with_a_remedy(kind, function):
    build, functions, words = REFUSED[kind]
    with pytest.raises(ModelContractError, match=words):
        functions[function](build())


@pytest.mark.parametrize("function", EVERY)
def test_what_is_no_module_is_refused(function):
    with pytest.raises(UsageError, match=r"must be a torch\.nn\.Module; got function"):
        EVERY[function](lambda x: x)


def test_a_refused_lazy_net_is_not_initialised():
    net = _lazy()
    with pytest.raises(ModelContractError):
        gk.local_complexity(net, IMAGES, 0.1, 2)
    assert net[1].has_uninitialized_params() and not net[1]._buffers


def test_shapes_need_no_values():
    assert gk.profile(_meta(), (3, 2, 2)).parameters == gk.profile(_net(), (3, 2, 2)).parameters


# --- what is measured -------------------------------------------------------------------------------------------------


def _assert_counted_alike(net, twin, *names):
    for name in names or COUNTS:
        first, second = COUNTS[name](net), COUNTS[name](twin)
        if name == "segment":
            assert first.breakpoints.tolist() == pytest.approx(second.breakpoints.tolist(), abs=1e-9)
            assert len(first.breakpoints) > 2
        else:
            assert torch.equal(first.counts, second.counts) and first.counts.sum() > 0


def test_a_row_of_single_numbers_is_an_output():
    """For each image one number, (N,): the score of two classes."""
    _assert_counted_alike(_Around(after=lambda z: z[:, 0]), _Around(after=lambda z: z[:, :1]))
    several = gk.partition_segment(_Around(after=lambda z: z[:, 0]), IMAGES[:2], IMAGES[2:])
    assert len(several.knots) == 2 and several.outputs[0].shape[1] == 1
    norms = [
        gk.complexity_spectrum(_Around(after=after), IMAGES, [0.1], 2).jacobian_norm
        for after in (lambda z: z[:, 0], lambda z: z[:, :1])
    ]
    assert torch.equal(*norms) and norms[0].min() > 0


@torch.compile
def _compiled(x):
    return torch.relu(x)


def test_a_compiled_function_inside_is_run_uncompiled():
    net, twin = _net(), _net()
    net[2].forward = _compiled
    for function in EVERY.values():
        function(net)
    _assert_counted_alike(net, twin)


def test_a_frozen_net_is_attacked_and_explained_like_any_other():
    frozen, free = _net().requires_grad_(False), _net()
    one, other = (GRADIENTS["pgd"](net).adversarial for net in (frozen, free))
    assert torch.equal(one, other) and not torch.equal(one, IMAGES)
    assert torch.equal(*(GRADIENTS["attribute"](net).values for net in (frozen, free)))
    _assert_counted_alike(frozen, free)


@pytest.mark.parametrize("width", [64, 5000])
def test_a_wide_layer_that_is_never_crossed_takes_part_in_a_segment(width):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3)
    )
    never = nn.Sequential(*net)
    with torch.no_grad():
        net[3].bias += 100
    found = gk.partition_segment(net, IMAGES[0], IMAGES[1])
    first_layer = gk.partition_segment(nn.Sequential(*never[:3]), IMAGES[0], IMAGES[1])
    assert found.breakpoints.tolist() == pytest.approx(first_layer.breakpoints.tolist(), abs=1e-12)
    assert found.by_layer["4"] == 0 and len(found.breakpoints) > 2
    counts = gk.local_complexity(net, IMAGES, 0.5, 2, "ray").counts
    assert counts[:, 0].sum() > 0 and counts[:, 1].sum() == 0


# --- lower precision inside -------------------------------------------------------------------------------------------


class _Autocast(nn.Module):
    """Turns autocast on in its own forward, as prepared models do."""

    def __init__(self, net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x)


def _convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3)
    ).eval()


def test_autocast_inside_the_model_is_off_while_it_is_measured():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4) % 3
    plain, lowered = _convnet(), _Autocast(_convnet())
    assert lowered(images).dtype == torch.bfloat16
    for method in ("vertex", "tangent", "ray", "bound"):
        first, second = (gk.local_complexity(net, images, 0.005, 4, method).counts for net in (plain, lowered))
        assert torch.equal(first, second) and first.sum() > 0
    assert torch.equal(predict_logits(plain, images), predict_logits(lowered, images))
    attacks = [gk.pgd(net, images, labels, 0.1, steps=2).adversarial for net in (plain, lowered)]
    assert torch.equal(*attacks)
    maps = [gk.attribute(net, images, labels, "saliency").values for net in (plain, lowered)]
    assert torch.equal(*maps)
    assert lowered(images).dtype == torch.bfloat16  # and it is on again


@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_to_fewer_digits_is_refused(method, dtype):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), _Cast(dtype), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(ModelContractError, match=rf"computes in {str(dtype)[6:]}, whose rounding counts as crossings"):
        gk.local_complexity(net, IMAGES, 0.1, 2, method)


class _Cast(nn.Module):
    def __init__(self, dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return F.relu(x.to(self.dtype)).float()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_fully_sharded_nets_are_refused(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = _net()
        fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
        for function in EVERY.values():
            with pytest.raises(ModelContractError, match="sharded over processes; gather the weights"):
                function(net)
    finally:
        torch.distributed.destroy_process_group()
