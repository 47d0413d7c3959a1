"""An estimate counts what the run then does: the same steps, records, readings and slots, as many bytes."""

from pathlib import Path

import pytest

import grokkit as gk
from grokkit.cli import main
from grokkit.config.run_config import spec
from grokkit.diagnostics import estimate as room
from grokkit.diagnostics.estimate import (
    Estimate,
    Instrument,
    Training,
    estimate,
    require_time_limit,
    summarize_estimate,
)
from grokkit.errors import DeviceRefusedError
from tests.runs import SMALL

LONGER = SMALL.replace(steps=130, records=9, signal={"every": 13, "points": 8, "directions": 4})


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Counts do not depend on how long is measured."""
    monkeypatch.setattr(room, "TIMED_SECONDS", 0.1)
    monkeypatch.delenv("GROKKIT_PRICE", raising=False)


def folder_size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        LONGER,
        LONGER.replace(data=spec("digits", size=8, train=120, test=60, validation=30), records=1),
        SMALL.replace(measures=(), attributions=(), signal={}, policy=spec("constant"), steps=3),
    ],
    ids=["small", "longer", "validation", "bare"],
)
def test_counts_and_bytes_are_those_of_the_run(tmp_path, config) -> None:
    found = estimate(config, "cpu", tmp_path)
    assert list(tmp_path.iterdir()) == [], "the folder of the probe is gone"
    run = gk.train(config, runs=tmp_path, device="cpu")
    counts = {each.name: each.count for each in found.instruments}
    assert counts.keys() == run.status["costs"].keys() - {"training"}
    assert found.records == len(run.steps()) == counts["snapshots"] == counts["evaluation"]
    for name, steps in (*run.measures().items(), *run.attributions().items()):
        assert counts[name.rpartition("-")[0]] == len(steps)
    if config.signal:
        assert counts["signal"] == len(run.metrics.query("split == 'signal' and metric == 'log_density'"))
    assert counts["resume slots"] == 1, "a short run saves at its end"
    assert found.bytes == pytest.approx(folder_size(run.path), rel=0.04)
    rows = (run.path / "metrics.jsonl").read_bytes().count(b"\n")
    assert room._count_log_rows(config, found.records) == pytest.approx(rows, abs=4)
    assert found.complete and found.machine == run.environment["device"]


def example() -> Estimate:
    training = Training((5, 2.0), 100, 0.01, 0.009, 0.02)
    instruments = (Instrument("local_complexity", 11, 3.0, 2.0), Instrument("signal", 0, 0.0, 0.0))
    files = {"snapshots": 4_000_000, "logs": 300_000}
    return Estimate(SMALL.replace(steps=1005), "a box", training, 11, instruments, files, True)


def test_the_sums_are_by_hand() -> None:
    found = example()
    assert found.training_seconds == 12.0 and found.seconds == 35.0 and found.bytes == 4_300_000
    assert found.dollars(36.0) == 0.35
    assert Training((5, 2.0), 10, 0.01, 0.01, 0.01).seconds(3) == 0.03, "a run shorter than the warm-up"
    told = summarize_estimate(found, 36.0)
    assert told == "a box | 100 steps/s | 1,005 steps 12 s | 11 records +23 s | disk 4.3 MB | about $0.35 at $36.00/h"
    assert "$" not in summarize_estimate(found)


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.24, "8.2 s"), (0.0012, "0.0012 s"), (250, "4m10"), (8220, "2h17"), (90000, "25h00")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert room.format_duration(seconds) == text


def test_slots_are_saved_by_the_clock_within_their_share_of_the_time() -> None:
    def count(seconds: float, each: float) -> int:
        return room._estimate_resume_states(seconds, Instrument("resume slots", 2, each, each)).count

    assert count(10.0, 0.1) == 1 and count(301.0, 0.01) == 11
    assert count(1000.0, 4.0) == 6, "two per cent of the time, and the last"


def test_a_run_that_takes_too_long_is_refused_before_it_starts(tmp_path, monkeypatch) -> None:
    tried = []
    monkeypatch.setattr(room, "estimate", lambda config, *_, max_seconds: tried.append(max_seconds) or example())
    assert require_time_limit(2.0, [SMALL, SMALL], 1, tmp_path) == 70.0
    assert tried == [120.0, 85.0], "the second one has what the first leaves"
    with pytest.raises(DeviceRefusedError) as refusal:
        require_time_limit(1.0, [SMALL, SMALL], 1, tmp_path)
    told = str(refusal.value)
    assert "no GPU found, and on this CPU it would take about 70 s" in told and refusal.value.exit_code == 3
    assert "above --cpu-limit 1 (minutes)" in told and "--device cpu" in told
    with pytest.raises(DeviceRefusedError, match="more than 4m40"):
        require_time_limit(1.0, [SMALL, SMALL], 8, tmp_path)


def test_measuring_ends_as_soon_as_enough_is_known(tmp_path) -> None:
    found = estimate(SMALL.replace(steps=10**9), "cpu", tmp_path, max_seconds=60.0)
    assert not found.complete and found.instruments == () and found.seconds > 60


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("grokkit.device.select.count_physical_gpus", lambda: 0)


@pytest.mark.slow
def test_without_a_gpu_the_command_line_says_so_and_stops_where_it_takes_too_long(
    tmp_path, monkeypatch, capsys, no_gpu
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "quickstart:constant", "--steps", "20"]
    assert main([*words, "--cpu-limit", "0.0000001"]) == 3
    said = capsys.readouterr().err
    assert "No GPU found" in said and "above --cpu-limit 1e-07 (minutes)" in said and not Path("runs").exists()
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "No GPU found" in said and "estimated duration on this CPU: about" in said and "20/20  cpu  " in said
    assert main([*words, "--seed", "1", "--cpu-limit", "0.0000001", "--device", "cpu"]) == 0, "it is meant"
    assert "No GPU" not in capsys.readouterr().err


def test_the_verb_tells_every_variant_and_their_sum(tmp_path, monkeypatch, capsys, no_gpu) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROKKIT_PRICE", "0.28")
    assert main(["estimate", "quickstart", "--steps", "30"]) == 0
    said = capsys.readouterr().out
    assert "quickstart/constant\n" in said and "quickstart/decay_at_peak\n" in said and said.count("measured: ") == 2
    assert said.count("| 30 steps ") == 2 and said.count(" at $0.28/h") == 3
    assert "local_complexity" in said and "disk: snapshots " in said
    assert said.splitlines()[-1].startswith("total, one after the other: ") and list(tmp_path.iterdir()) == []
    assert main(["estimate", "quickstrat"]) == 2
    assert "Did you mean 'quickstart'?" in capsys.readouterr().err
