"""One update, however it is computed: eager, replayed, compiled, in lower precision; and what it must not touch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import grokkit as gk
from grokkit.data.resident import Batches
from grokkit.device import precision
from grokkit.errors import ModelContractError, UsageError
from grokkit.training import step
from grokkit.training.meter import Meter
from grokkit.training.step import TrainStep
from tests.runs import SMALL

SIZES = (16, 16, 7, 16, 16, 16, 7, 16, 16, 16, 7, 16)
"""Full and ragged batches: the fourth full one is the first that a graph takes."""
OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def net() -> nn.Module:
    """No bias before BatchNorm: its gradient is rounding noise, which Adam would blow up to a full step."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for size in SIZES:
        labels = torch.randint(10, (size,), generator=generator)
        yield torch.rand(size, 1, 8, 8, generator=generator) + labels[:, None, None, None] / 10, labels


def rate(number: int) -> float:
    """Another rate at every update but a few."""
    return 0.02 / (1 + number // 2)


def trained(make: str, **options) -> tuple[nn.Module, list[float]]:
    """The net after all batches, and the losses on the way."""
    model = net()
    optimizer = OPTIMIZERS[make](model.parameters())
    update = TrainStep(model, optimizer, F.cross_entropy, batch_size=max(SIZES), **options)
    losses = []
    for number, (x, y) in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = rate(number)
        loss, logits = update(x, y)
        assert not loss.requires_grad and not logits.requires_grad and logits.shape == (len(y), 10)
        losses.append(loss.item())
        assert logits.dtype == loss.dtype == torch.float32
        assert type(optimizer.param_groups[0]["lr"]) is float and optimizer.param_groups[0]["lr"] == rate(number)
        assert not optimizer.param_groups[0].get("capturable")
    return model, losses


def by_hand(make: str) -> tuple[nn.Module, list[float]]:
    model = net()
    optimizer = OPTIMIZERS[make](model.parameters())
    losses = []
    for number, (x, y) in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = rate(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def apart(one: nn.Module, other: nn.Module) -> float:
    """Largest difference between their weights and buffers."""
    pairs = ((value.double(), other.state_dict()[name].double()) for name, value in one.state_dict().items())
    return max((a - b).abs().max().item() for a, b in pairs)


class Graphs:
    """Stands in for CUDA graphs: what is recorded runs at every replay, with what the optimizer held at recording."""

    def __init__(self, monkeypatch, *, refuses: str = "") -> None:
        self.recorded = self.replays = 0
        self._refuses = refuses
        monkeypatch.setattr(step, "_find_graph_obstacle", lambda *_: None)
        monkeypatch.setattr(step, "on_side_stream", lambda update: update())
        monkeypatch.setattr(step, "capture_graph", self.captured)

    def captured(self, update: Callable[[], None]) -> Callable[[], None]:
        optimizer: torch.optim.Optimizer = update.__self__._optimizer
        assert all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
        assert all(group.get("capturable", True) for group in optimizer.param_groups)
        if self._refuses:
            raise RuntimeError(self._refuses)
        self.recorded += 1
        seen = [dict(group) for group in optimizer.param_groups]

        def replay() -> None:
            self.replays += 1
            kept = [dict(group) for group in optimizer.param_groups]
            for group, then in zip(optimizer.param_groups, seen, strict=True):
                group["lr"] = then["lr"]
            update()
            for group, before in zip(optimizer.param_groups, kept, strict=True):
                group.update(before)

        return replay


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_an_eager_step_is_the_loop_everyone_writes(make: str) -> None:
    (model, losses), (plain, expected) = trained(make), by_hand(make)
    assert losses == expected and same(model, plain)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_replayed_step_is_the_eager_one_with_the_rate_of_now(make: str, monkeypatch) -> None:
    eager, expected = trained(make)
    graphs = Graphs(monkeypatch)
    model, losses = trained(make, execution="graph")
    assert graphs.recorded == 1 and graphs.replays == SIZES.count(16) - step.WARM_UP
    # the graph reads its rate as float32
    assert losses == pytest.approx(expected, abs=1e-5) and apart(model, eager) < 1e-5


def test_a_graph_that_cannot_be_recorded_is_told_and_done_without(monkeypatch) -> None:
    eager, expected = trained("adam")
    Graphs(monkeypatch, refuses="operation not permitted when stream is capturing")
    with pytest.warns(UserWarning, match="runs without one: operation not permitted"):
        model, losses = trained("adam")
    assert losses == expected and same(model, eager)
    with pytest.raises(ModelContractError, match="cannot be captured in a CUDA graph: operation not permitted"):
        trained("adam", execution="graph")


def test_what_cannot_be_graphed_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="it needs a CUDA device, and the model is on cpu"):
        trained("adam", execution="graph")
    with pytest.raises(UsageError, match=r"must be one of auto, eager, graph, compile; got 'grph'.*graph"):
        trained("adam", execution="grph")
    model = net().to("meta")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(step, "device_of", lambda _: torch.device("cuda"))
        reason = step._find_graph_obstacle
        slow, fused = torch.optim.Adam(net().parameters()), torch.optim.Adam(net().parameters(), fused=True)
        assert reason(model, fused, "bfloat16") is None
        assert "loss scaler" in reason(model, fused, "float16")
        assert "neither fused nor capturable" in reason(model, slow, "float32")


def test_gradients_are_clipped_between_backward_and_update() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model.state_dict())
    update = TrainStep(
        model,
        optimizer,
        F.cross_entropy,
        batch_size=16,
        clip=lambda: nn.utils.clip_grad_value_(model.parameters(), 1e-4),
    )
    update(*next(batches()))
    moved = max((model.state_dict()[name] - before[name]).abs().max().item() for name, _ in model.named_parameters())
    assert moved == pytest.approx(1e-4, rel=1e-2)


def test_lower_precision_leaves_the_weights_in_float32_and_near() -> None:
    (model, losses), (exact, expected) = trained("sgd", precision="bfloat16"), trained("sgd")
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in model.parameters())
    assert losses != expected and losses == pytest.approx(expected, abs=0.05)
    assert 0 < apart(model, exact) < 0.05


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one_and_leaves_the_model_as_it_is() -> None:
    (model, losses), (eager, expected) = trained("adam", execution="compile"), trained("adam")
    assert losses == pytest.approx(expected, abs=1e-4) and apart(model, eager) < 1e-4
    assert type(model) is nn.Sequential and not hasattr(model, "_orig_mod")


class Waits(TorchDispatchMode):
    """Fails at any operation whose result the host must wait for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_no_update_waits_for_the_device(make: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 1, 8, 8), generator=generator, dtype=torch.uint8)
    data = Batches(images, torch.arange(50) % 10, 16, seed=0, augment=("crop2", "flip", "cutout2"))
    model, meter = net(), Meter(torch.device("cpu"))
    optimizer = OPTIMIZERS[make](model.parameters())
    policy = gk.PolicyLR(optimizer, "cosine", 20)
    update = TrainStep(
        model,
        optimizer,
        F.cross_entropy,
        batch_size=16,
        clip=lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0),
    )
    with Waits():
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            torch.ones(()).item()
        for number in range(1, 9):
            x, y = data.at(number)
            loss, logits = update(x, y)
            meter.add(loss, logits, y)
            meter.enqueue(number)
            policy.step()


@contextmanager
def able(monkeypatch, *lower: str) -> Iterator[None]:
    """As if the hardware had these precisions."""
    with monkeypatch.context() as patch:
        patch.setattr(precision, "_lower_precisions", lambda _: lower)
        yield


@pytest.mark.parametrize(
    ("device", "lower", "wanted", "found"),
    [
        ("cuda", ("bfloat16", "float16"), "auto", "bfloat16"),
        ("cuda", ("float16",), "auto", "float16"),
        ("cuda", (), "auto", "float32"),
        ("cuda", ("bfloat16", "float16"), "float16", "float16"),
        ("cuda", ("bfloat16", "float16"), "float32", "float32"),
        ("cpu", ("bfloat16",), "auto", "float32"),
        ("cpu", ("bfloat16",), "bfloat16", "bfloat16"),
    ],
)
def test_precision_follows_the_hardware(monkeypatch, device: str, lower, wanted: str, found: str) -> None:
    with able(monkeypatch, *lower):
        assert precision.resolve_precision(wanted, torch.device(device)) == found


def test_a_precision_that_the_hardware_lacks_is_told_and_replaced(monkeypatch) -> None:
    with able(monkeypatch), pytest.warns(UserWarning, match="this cpu has no bfloat16 arithmetic; training in float32"):
        assert precision.resolve_precision("bfloat16", torch.device("cpu")) == "float32"
    with able(monkeypatch, "float16"), pytest.warns(UserWarning, match="this cuda has no bfloat16"):
        assert precision.resolve_precision("bfloat16", torch.device("cuda")) == "float16"
    with pytest.raises(UsageError, match=r"got 'bf16'.*bfloat16|must be one of auto, float32, bfloat16, float16"):
        precision.resolve_precision("bf16", torch.device("cpu"))


@pytest.mark.parametrize(("capability", "lower"), [((9, 0), 2), ((8, 0), 2), ((7, 5), 1), ((7, 0), 1), ((6, 1), 0)])
def test_a_gpus_capability_says_its_precisions(monkeypatch, capability, lower: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert precision._lower_precisions(torch.device("cuda")) == ("bfloat16", "float16")[2 - lower :]


def test_lower_precision_changes_nothing_that_is_measured(monkeypatch, tmp_path) -> None:
    """At step 0 the weights are the same, so the readings are; later on live readings are those of a replay, which
    knows nothing of the training's precision."""
    config = SMALL.replace(policy=gk.spec("constant"), signal={}, precision="bfloat16")
    with able(monkeypatch, "bfloat16"):
        low = gk.train(config, runs=tmp_path, device="cpu")
    full = gk.train(config.replace(precision="float32"), runs=tmp_path, device="cpu")
    assert low.environment["precision"] == "bfloat16 autocast" and full.environment["precision"] == "float32"
    at = {run: {name: run.reading(name, 0).values.tolist() for name in run.measures()} for run in (low, full)}
    assert at[low] == at[full]
    last = {run: run.load(SMALL.steps) for run in (low, full)}
    assert all(value.dtype == full.load(0)[name].dtype for name, value in last[low].items())
    differences = [(value - last[full][name]).abs().max().item() for name, value in last[low].items()]
    assert 0 < max(differences) < 0.02
    live = {name: low.reading(name, SMALL.steps).values.tolist() for name in low.measures()}
    for name in low.measures():
        (low.path / "measures" / name / f"{SMALL.steps:012d}.h5").unlink()
    gk.replay_run(low.path, measures=SMALL.measures)
    assert live == {name: low.reading(name, SMALL.steps).values.tolist() for name in low.measures()}


def test_a_run_says_how_its_steps_are_computed(tmp_path) -> None:
    run = gk.train(SMALL.replace(measures=(), attributions=(), steps=2), runs=tmp_path, device="cpu")
    assert run.environment["device"].endswith("float32, eager steps")
