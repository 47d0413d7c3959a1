"""The judge of the zoo on nets whose class is known, and with faults planted in what it judges."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grokkit.spline.complexity
import grokkit.spline.segment_sweep
import grokkit.spline.vertex
from bench.zoo import Record, read_records, run, summarise, write_summary
from bench.zoo_counts import FLOAT64, count_by_derivatives, count_kernels
from bench.zoo_judge import FUNCTIONS, judge
from bench.zoo_trace import trace_structure
from grokkit.spline.affine import RULES
from grokkit.spline.knots import Crossings, find_crossings
from grokkit.spline.passes import count_per_point
from grokkit.spline.uncounted import find_uncounted


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(8, 8, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(32, 24), nn.Hardsigmoid(), nn.Linear(24, 5)),
    )
    return layers.double().eval()


class Gated(nn.Module):
    """A ReLU layer whose output is normalised and multiplied by a sigmoid: partial."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.norm = nn.Linear(30, 400), nn.Linear(400, 40), nn.LayerNorm(400)
        self.value = nn.Linear(400, 40)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.relu(self.first(x)))
        return self.value(hidden) * torch.sigmoid(self.gate(hidden))


def images(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    first, second = torch.randn(2, *shape, dtype=torch.float64)
    return first, second


def verdicts(record: dict[str, Any]) -> list[str]:
    return [record[name]["verdict"] for name in FUNCTIONS]


def test_a_piecewise_affine_net_is_exact_and_its_output_straight_between_the_changes() -> None:
    record = judge(conv_net(), *images(3, 10, 10))
    assert record["kind"] == "piecewise affine"
    assert verdicts(record) == ["exact"] * 4, record
    assert record["segment"]["breakpoints"] >= 8
    assert record["bends"]["seen"] is False


def test_a_net_with_smooth_calls_is_partial_and_its_output_bends_between_the_changes() -> None:
    record = judge(Gated().double().eval(), *images(30))
    assert record["kind"] == "other"
    assert verdicts(record) == ["partial", "partial", "refused", "refused"], record
    assert record["first_smooth"] == "native_layer_norm in 'norm'"
    assert record["bends"]["seen"] is True
    assert record["vertex"]["share"] == record["vertex"]["share_of_kernels"]


class Windows(nn.Module):
    """Processes the two halves of an image as images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(15, 300), nn.Linear(600, 7)

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.relu(self.first(x.reshape(-1, 15)))
        return torch.sigmoid(self.last(halves.reshape(len(x), 600)))


def test_windows_of_an_image_in_front_are_units_of_the_image() -> None:
    record = judge(Windows().double().eval(), *images(30))
    assert verdicts(record) == ["partial", "partial", "refused", "refused"], record
    assert record["units"] == 600


def test_whether_a_kernel_bends_is_found_by_calling_it() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            constant = torch.ones(3, dtype=x.dtype).sigmoid() * 2  # bends, but not in the image
            y = (x * constant).flip(1).cumsum(1) - 1
            y += torch.where(x[:, :1] > 0, y, -y)
            return y.amax(1, keepdim=True) + torch.zeros_like(x).exp()

    ops = trace_structure(Net(), torch.stack(images(3))).ops
    assert [op.name for op in ops] == ["where", "amax"]


def test_a_wrong_count_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grokkit.spline.vertex, "count_per_point", lambda crossed: count_per_point(crossed) + 1)
    record = judge(conv_net(), *images(3, 10, 10))
    assert verdicts(record) == ["wrong", "exact", "exact", "exact"]
    assert "instead of" in record["vertex"]["why"]


def test_a_breakpoint_that_is_left_out_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_one(z: Tensor, kink: float, is_piece: Tensor) -> Crossings:
        found = find_crossings(z, kink, is_piece)
        return Crossings(*(column[1:] for column in found)) if z.dim() == 4 else found

    monkeypatch.setattr(grokkit.spline.segment_sweep, "find_crossings", lose_one)
    record = judge(conv_net(), *images(3, 10, 10))
    assert verdicts(record)[:2] == ["exact", "exact"]
    assert "wrong" in record["segment"]["verdict"]


def test_a_smooth_call_that_is_not_named_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "sigmoid", RULES["positive"])
    record = judge(Gated().double().eval(), *images(30))
    assert record["vertex"]["verdict"] == "wrong"
    assert "neither counted nor named: sigmoid in 'the model'" in record["vertex"]["why"]


def test_a_name_under_which_nothing_bends_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_too_much(model: nn.Module, images: Tensor) -> Any:
        found = find_uncounted(model, images)
        return found._replace(layers=(*found.layers, "gate"))

    monkeypatch.setattr(grokkit.spline.complexity, "find_uncounted", name_too_much)
    record = judge(Gated().double().eval(), *images(30))
    assert record["vertex"]["why"] == "named and does not bend: gate (1 in all)"


def test_a_net_that_has_a_record_is_not_measured_again(tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(name: str) -> Record:
        measured.append(name)
        verdict = {"verdict": "exact", "why": ""}
        shared = {"uncounted": 0, "share": 1.0}
        judged: Record = {name: verdict | shared for name in FUNCTIONS}
        return {"net": name, "kind": "piecewise affine", "bends": {}, "cpu_seconds": 0.1, **judged}

    run(["a", "b"], tmp_path, measure)
    records = run(["a", "b", "c"], tmp_path, measure)
    assert measured == ["a", "b", "c"]
    assert [json.loads(line)["net"] for line in (tmp_path / "zoo.jsonl").read_text().splitlines()] == measured
    write_summary(tmp_path, records, [])
    assert json.loads((tmp_path / "zoo.json").read_text())["piecewise affine"]["vertex"] == {"exact": 3}
    assert len((tmp_path / "zoo.csv").read_text().splitlines()) == 4


def test_a_net_whose_process_failed_is_measured_again(tmp_path: Path) -> None:
    run(["a"], tmp_path, lambda name: {"net": name, "failed": "exit -15"})
    records = run(["a"], tmp_path, lambda name: {"net": name, "not_run": "memory"})
    assert records["a"] == read_records(tmp_path)["a"] == {"net": "a", "not_run": "memory"}


def test_a_constant_in_memory_that_was_freed_does_not_depend_on_the_image() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(50):
                (x * 2).sum()  # freed at once, and its memory used again
                table = x.new_zeros(3)
                table[1:] = 2
                x = x + table.exp()
            return x

    assert trace_structure(Net(), torch.stack(images(3))).ops == []


def test_the_summary_lists_what_is_wrong_and_what_did_not_run() -> None:
    refused = {"verdict": "refused", "why": "because"}
    record: Record = {"net": "x", "kind": "other", "bends": {"seen": True}} | {name: refused for name in FUNCTIONS}
    record["vertex"] = {"verdict": "wrong", "why": "counts 1 instead of 2"}
    summary = summarise([record, {"net": "y", "not_run": "memory"}])
    assert summary["wrong"] == {"x: vertex": "counts 1 instead of 2"}
    assert summary["refusals"] == {"x: tangent": "because"}
    assert summary["refused by vertex or tangent, of the others"] == {"vertex": 0.0, "tangent": 1.0}
    assert summary["not_run"] == {"y": "memory"}


def test_derivatives_count_what_differences_count_where_no_unit_changes_within_a_step() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(inplace=True), nn.Linear(80, 3)
    ).double()
    first, second = images(12)
    structure = trace_structure(net, torch.stack([first, second]))
    directions = torch.linalg.qr(torch.randn(12, 2, dtype=torch.float64))[0].T
    counted, _ = count_kernels(net, first, directions, structure, FLOAT64)
    exact = count_by_derivatives(net, first, directions, counted)
    assert [layer.path for layer in exact] == ["1", "3"] and all(layer.tangent[0] > 5 for layer in exact)
    for one, other in zip(exact, counted, strict=True):
        assert other.tangent[0] <= one.tangent[0] == one.tangent[1] <= other.tangent[1]
    assert count_by_derivatives(conv_net(), *images(3, 10, 10)[:1], torch.randn(2, 3, 10, 10).double(), counted) == []
