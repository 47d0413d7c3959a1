"""How fast a loop is and what binds it: verdicts from known speeds, speeds from a clock that is set by hand."""

import itertools
import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from grokkit import figures
from grokkit.analysis.bottleneck import classify_bottleneck, find_bottlenecks, fit_fixed_seconds
from grokkit.cli import main
from grokkit.device.select import describe_device
from grokkit.diagnostics import throughput
from grokkit.errors import DataError, UsageError
from grokkit.names import TABLE_COLUMNS, FigureData

CPU = describe_device(torch.device("cpu"))
made_up = runpy.run_path(str(Path(__file__).parent / "test_figures.py"))["speed_rows"]


@pytest.mark.parametrize(
    ("loop", "made", "step", "fixed", "bound"),
    [
        (1.0, 0.80, 0.9, 0.1, "input"),
        (1.0, 0.79, 0.9, 0.1, "arithmetic"),  # batches alone take nearly all of it
        (1.0, 0.1, 0.5, 0.1, "input"),
        (1.0, 0.1, 0.51, 0.1, "arithmetic"),  # the step alone is twice as fast
        (1.0, 0.1, 0.9, 0.45, "host"),
        (1.0, 0.1, 0.9, 0.44, "arithmetic"),  # half of a step is there without images
    ],
)
def test_what_binds_a_loop(loop: float, made: float, step: float, fixed: float, bound: str) -> None:
    assert classify_bottleneck(loop, made, step, fixed) == bound


def test_what_a_step_takes_without_images_is_on_the_line_through_two() -> None:
    assert fit_fixed_seconds(0.010 + 2 * 0.001, 2, 0.010 + 32 * 0.001, 32) == pytest.approx(0.010)
    assert fit_fixed_seconds(0.001, 2, 0.100, 32) == 0.0, "never below nothing"
    assert fit_fixed_seconds(0.5, 2, 0.4, 32) == 0.4, "never above the step"


def table() -> pd.DataFrame:
    rows = [{"run": "net, data, machine", "seed": 0, "probe_set": "", **row} for row in made_up()]
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def test_verdicts_follow_from_the_speeds() -> None:
    found = {(each.source, each.batch_size): each for each in find_bottlenecks(table())}
    assert {key: each.bound for key, each in found.items()} == {
        ("resident", 16): "host",
        ("resident", 64): "host",
        ("resident", 256): "arithmetic",
        ("resident", 1024): "arithmetic",
        ("DataLoader", 16): "host",
        ("DataLoader", 64): "input",
        ("DataLoader", 256): "input",
        ("DataLoader", 1024): "input",
    }
    wide = found["resident", 1024]
    speed = 1024 / (0.010 + 0.1024 + 1e-6 * 1024)
    assert wide.images_per_s == pytest.approx(speed) and wide.share == pytest.approx(speed * 5e5 / 1e10)
    assert wide.sentence == "arithmetic: 45.1% of the device's ceiling"
    assert found["resident", 16].sentence.startswith("host: 86% of a step does not depend on its images")
    loader = found["DataLoader", 256].sentence
    assert loader == f"input: the step alone reaches {256 / 0.0356:,.0f} images/s, making batches alone 2,000"


def test_a_low_share_of_the_ceiling_is_told_and_a_table_with_holes_refused() -> None:
    slow = table()
    slow.loc[slow["measure"] == "ceiling_flop_per_s", "value"] = 1e12
    assert find_bottlenecks(slow)[-2].sentence.endswith(
        "0.5% of the device's ceiling; memory traffic and small kernels take the rest"
    )
    with pytest.raises(DataError, match="expected one row of ceiling_flop_per_s with n = 0; got 0"):
        find_bottlenecks(slow[slow["measure"] != "ceiling_flop_per_s"])


class Clock:
    """Time passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def loader_at_hand(monkeypatch) -> None:
    """Batches of a DataLoader that are simply there: no process is started."""

    def repeated(samples, size: int, **_):
        x, y = zip(*(samples[at] for at in range(size)), strict=True)
        return itertools.repeat((torch.stack(x), torch.tensor(y)))

    monkeypatch.setattr(throughput, "make_plain_loader", repeated)
    monkeypatch.setattr(throughput, "MAX_CALLS", 4)


def by_hand(clock: Clock, seconds: float = 3.0) -> throughput.Subject:
    """A subject whose updates take 10 ms and 1 ms an image."""

    def make_step(size: int):
        def step(x, y) -> None:
            assert len(x) == size
            clock.now += 0.010 + 0.001 * len(x)

        return step

    return throughput.Subject(
        "by hand", throughput.make_random_images(300), CPU, "float32", make_step, 5, seconds, clock
    )


def test_a_rate_is_the_median_of_three_stretches() -> None:
    clock, slow = Clock(), iter([0.0] * 3 + [0.0] * 10 + [5.0] + [0.0] * 9 + [1.0] + [0.0] * 9)

    def call() -> None:
        clock.now += 0.1 + next(slow)

    rate = by_hand(clock).measure_rate(call, 7)
    assert (rate.low, rate.value, rate.high) == pytest.approx((70 / 6, 70 / 2, 70 / 1))


def test_speeds_and_flop_follow_from_the_clock(loader_at_hand) -> None:
    of = by_hand(Clock())
    assert of.training_flop == 30
    assert throughput.measure_smallest_step(of).value == pytest.approx(2 / 0.012)
    (point,) = [each for each in throughput.measure_speeds(of, [40]) if each.source == "resident"]
    assert point.step.value == point.loop.value == pytest.approx(40 / 0.050)
    rows = throughput.to_rows(of, throughput.measure_smallest_step(of), throughput.Rate(9.0, 8.0, 10.0), [point])
    found = {(row["measure"], row["probe_set"], row["n"]): row["value"] for row in rows}
    assert found["training_flop_per_image", "", 0] == 30 and found["ceiling_flop_per_s", "", 0] == 9.0
    assert found["step_images_per_s", "", 40] == found["loop_images_per_s", "resident", 40] == pytest.approx(800)
    assert len(rows) == 6 and all(row["run"] == "by hand" for row in rows)


def test_sizes_whose_step_takes_too_long_are_left_out_but_never_the_first(loader_at_hand) -> None:
    of = by_hand(Clock(), seconds=0.05)
    assert [each.batch_size for each in throughput.measure_speeds(of, [40, 60, 200])] == [40, 40, 60, 60]
    assert {each.batch_size for each in throughput.measure_speeds(of, [200])} == {200}


def test_batch_sizes_are_checked() -> None:
    assert throughput.validate_batch_sizes([64, 16, 16], 100) == [16, 64]
    assert throughput.validate_batch_sizes([], 100) == [16, 32, 64]
    for wrong in (2, 101):
        with pytest.raises(UsageError, match=rf"in 3\.\.100 \(training images\); got {wrong}"):
            throughput.validate_batch_sizes([wrong], 100)


@pytest.mark.slow
def test_the_command_writes_figure_table_and_verdicts(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez("own.npz", x_train=images, y_train=np.arange(40) % 10, x_test=255 - images, y_test=np.arange(40) % 10)
    words = [
        "bench",
        "throughput",
        "mlp",
        "--data",
        "own.npz",
        "--device",
        "cpu",
        "--seconds",
        "0.003",
        "--batch-sizes",
        "8",
        "16",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "mlp, own 1x8x8, cpu" in said and said.count(" images/s  ") >= 4 and "GFLOP/s" in said
    assert {path.name for path in (tmp_path / "throughput").iterdir()} == {
        "throughput.pdf",
        "throughput.png",
        "throughput.csv",
        "throughput.json",
    }
    kept = json.loads((tmp_path / "throughput" / "throughput.json").read_text())
    ((name, machine),) = kept["machines"].items()
    assert name.startswith("mlp, own 1x8x8, cpu") and torch.__version__.startswith(machine["versions"]["torch"])
    assert [(each["source"], each["batch_size"]) for each in kept["points"]] == [
        ("resident", 8),
        ("DataLoader", 8),
        ("resident", 16),
        ("DataLoader", 16),
    ]
    assert all(each["bound"] in ("input", "host", "arithmetic") and each["images_per_s"] > 0 for each in kept["points"])
    assert main(["figure", "throughput", "throughput/throughput.csv", "--out", "again"]) == 0
    assert Path("again/throughput.png").read_bytes() == Path("throughput/throughput.png").read_bytes()


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(of, sizes):
        yield throughput.Speeds("resident", sizes[0], *[throughput.Rate(1.0, 1.0, 1.0)] * 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(throughput, "measure_speeds", interrupted)
    monkeypatch.setattr("os.getloadavg", lambda: (99.5, 0.0, 0.0), raising=False)
    words = ["bench", "throughput", "mlp", "--device", "cpu", "--seconds", "0.003", "--out"]
    assert main([*words, str(tmp_path / "some")]) == 130
    said = capsys.readouterr().err
    assert f"Interrupted; {tmp_path / 'some'} holds the measurements" in said and "busy (load 99.5 on" in said
    assert len(json.loads((tmp_path / "some" / "throughput.json").read_text())["points"]) == 1

    def at_once(of):
        raise KeyboardInterrupt

    monkeypatch.setattr(throughput, "measure_peak_flops", at_once)
    assert main([*words, str(tmp_path / "none")]) == 130
    assert "nothing was written" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["throughput", "mpl"], "mlp"),
        (["throughput", "mlp", "--seconds", "0"], "`seconds` must be above 0"),
        (["throughput", "resnet9", "--width", "-1"], "takes ints >= 1"),
        (["throughput", "mlp", "--width", "4"], "width"),
        (["throughput", "mlp", "--data", "none.npz"], "no file"),
    ],
)
def test_mistakes_are_answered_in_words(words, sentence: str, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) in (2, 4)
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_lines_and_markers_are_the_tables() -> None:
    axes = figures.create("throughput", FigureData(table(), {}, pd.DataFrame())).axes[0]
    by_style = {(line.get_color(), line.get_marker()): line for line in axes.lines}
    expected = [16 / (0.010 + 1e-4 * 16 + 1.6e-5), 64 / (0.010 + 6.4e-3 + 6.4e-5)]
    assert by_style["#0072B2", "s"].get_ydata() == pytest.approx(expected)
    assert by_style["#D55E00", "v"].get_xdata().tolist() == [64, 256, 1024]
    ceiling = next(line for line in axes.lines if line.get_linestyle() not in ("-", "None"))
    assert set(ceiling.get_ydata()) == {1e10 / 5e5}
