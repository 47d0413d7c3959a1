"""Dollars are seconds times the price of an hour, over all attempts; a budget saves and stops a run."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import grokkit as gk
from grokkit.cli import main
from grokkit.config.run_config import spec
from grokkit.errors import BudgetReached, Interrupted, UsageError
from grokkit.recording import recorder
from grokkit.recording.budget import Budget, CostTracker, format_dollars
from grokkit.recording.timers import Timers
from tests.callbacks import PressesCtrlC
from tests.runs import SMALL, contents

BARE = SMALL.replace(measures=(), attributions=(), policy=spec("constant"), signal={})
CONV = BARE.replace(model=spec("cnn", channels=(4, 4, 4, 4, 8)), batch_size=60)
HOUR = 3600.0


@pytest.fixture(autouse=True)
def no_price(monkeypatch) -> None:
    monkeypatch.delenv("GROKKIT_PRICE", raising=False)


@pytest.fixture
def ticking(monkeypatch) -> None:
    """A second goes by at every look at the clock, so that a run costs what it cost the last time."""
    clock = itertools.count()
    monkeypatch.setattr(recorder, "Timers", lambda device, before: Timers(device, before, lambda: next(clock)))


def test_a_bill_goes_on_over_attempts_and_prices() -> None:
    assert CostTracker(0.5).dollars_after(2 * HOUR) == 1.0 and CostTracker(None).dollars_after(HOUR) is None
    status = {"costs": {"training": 1.5 * HOUR, "loss": 0.5 * HOUR}, "price": 0.5, "spent": 1.0}
    assert CostTracker.resume(status, 2.0).dollars_after(3 * HOUR) == 3.0, "two hours at 0.5, one at 2"
    assert CostTracker.resume(status).dollars_after(3 * HOUR) == 1.5, "the old price goes on"
    assert CostTracker.resume(status | {"price": None}).dollars_after(3 * HOUR) == 1.0, (
        "known dollars are not forgotten"
    )
    assert CostTracker.resume(status | {"price": None, "spent": None}, 0.1).dollars_after(3 * HOUR) == pytest.approx(
        0.1
    )
    assert CostTracker.resume({"costs": None}, 1.0).dollars_after(HOUR) == 1.0, "a status of older versions"


def test_the_total_of_costs_is_all_of_the_time() -> None:
    now = [0.0]
    costs = Timers(torch.device("cpu"), {"training": 10.0, "loss": 2.0}, lambda: now[0], runs=2)
    with costs.section("loss"):
        now[0] = 6.0
    now[0] = 8.0
    assert costs.total() == 16.0 == sum(costs.seconds().values()) and costs.training() == 2.0


def test_a_purse_is_checked_and_knows_the_environment(monkeypatch) -> None:
    assert Budget.create() == Budget(None, None)
    monkeypatch.setenv("GROKKIT_PRICE", "0.28")
    assert Budget.create(budget=1.0) == Budget(0.28, 1.0) and Budget.create(0.5).price == 0.5
    monkeypatch.setenv("GROKKIT_PRICE", "28 cents")
    with pytest.raises(UsageError, match=r"GROKKIT_PRICE must be dollars per hour, such as 0.28; got '28 cents'"):
        Budget.create()
    for wrong in ({"price": -1.0}, {"price": float("nan")}, {"price": 1.0, "budget": 0.0}):
        with pytest.raises(UsageError, match="must be dollars"):
            Budget.create(**wrong)
    with pytest.raises(UsageError, match="a budget needs a price"):
        Budget(None, 1.0).require_price()
    assert Budget(1.0, 6.0).split(3, 2) == Budget(0.5, 2.0)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(1.2345, "$1.23"), (1234.5, "$1,234.50"), (0, "$0.00"), (0.00421, "$0.0042"), (3e-7, "$0.0000003")],
)
def test_small_amounts_keep_two_digits(amount: float, text: str) -> None:
    assert format_dollars(amount) == text


def test_a_run_says_what_it_has_cost(tmp_path) -> None:
    run = gk.train(BARE, runs=tmp_path, device="cpu", price=36.0)
    status = run.status
    assert status["price"] == 36.0 and status["seconds"] == pytest.approx(sum(status["costs"].values()))
    assert status["spent"] == pytest.approx(status["seconds"] * 36.0 / HOUR)
    spent = run.metrics.query("split == 'batch' and metric == 'spent'")
    losses = run.metrics.query("split == 'batch' and metric == 'loss'")
    assert list(spent.step) == list(losses.step) and spent.value.is_monotonic_increasing
    assert 0 < spent.value.max() <= status["spent"]


def test_a_price_is_no_choice_of_the_run(tmp_path) -> None:
    with_price = gk.train(SMALL, runs=tmp_path / "a", device="cpu", price=1.0)
    without = gk.train(SMALL, runs=tmp_path / "b", device="cpu")
    assert with_price.name == without.name
    assert without.status["price"] is None and without.status["spent"] is None and without.status["seconds"] > 0
    mine, theirs = contents(with_price.path), contents(without.path)
    mine["metrics.jsonl"] = [row for row in mine["metrics.jsonl"] if row["metric"] != "spent"]
    assert mine == theirs


def test_money_is_counted_over_attempts_at_changing_prices(tmp_path) -> None:
    with pytest.raises(Interrupted):
        gk.train(BARE, runs=tmp_path, device="cpu", price=360.0, callback=PressesCtrlC(10))
    first = gk.open_run(tmp_path / BARE.run_name).status
    done = gk.resume(tmp_path / BARE.run_name, device="cpu", price=3600.0).status
    assert done["price"] == 3600.0 and done["attempt"] == 2
    assert done["spent"] == pytest.approx(first["spent"] + done["seconds"] - first["seconds"])


def test_a_budget_saves_and_stops_and_a_larger_one_goes_on(tmp_path, ticking) -> None:
    straight = gk.train(BARE, runs=tmp_path / "straight", device="cpu")
    with pytest.raises(BudgetReached) as stop:
        gk.train(BARE, runs=tmp_path, device="cpu", price=1e6, budget=0.001)
    path = tmp_path / BARE.run_name
    status = gk.open_run(path).status
    assert stop.value.exit_code == 6 and status["state"] == "interrupted" and status["step"] == 1
    assert status["reason"] == str(stop.value)
    assert "the budget of $0.001 is spent ($" in status["reason"] and f"resume {path} --budget " in status["reason"]
    more = float(status["reason"].rpartition(" ")[2])
    assert 0.001 < status["spent"] < more, "what is proposed goes on"
    with pytest.raises(BudgetReached, match="--budget"):
        gk.resume(path, device="cpu", budget=0.001)
    assert gk.open_run(path).status["attempt"] == 1, "nothing was begun"
    done = gk.resume(path, device="cpu", budget=1e9)
    assert done.status["state"] == "done" and done.status["price"] == 1e6
    mine, theirs = contents(path), contents(straight.path)
    assert {name: mine[name] for name in mine if name.endswith(".h5")} == {
        name: theirs[name] for name in theirs if name.endswith(".h5")
    }


def test_a_budget_that_is_enough_changes_nothing(tmp_path) -> None:
    assert gk.train(BARE, runs=tmp_path, device="cpu", price=1.0, budget=100.0).status["state"] == "done"
    with pytest.raises(UsageError, match="a budget needs a price"):
        gk.train(BARE, runs=tmp_path / "other", device="cpu", budget=1.0)
    assert not (tmp_path / "other").exists()


def test_a_stack_shares_price_and_budget(tmp_path) -> None:
    runs = gk.train_seeds(BARE, range(3), runs=tmp_path / "a", device="cpu", price=3600.0)
    for run in runs:
        assert run.status["spent"] == pytest.approx(run.status["seconds"]) and run.status["price"] == 3600.0
    with pytest.raises(BudgetReached, match=r"the budget of \$0.003 is spent .* --budget "):
        gk.train_seeds(BARE, range(3), runs=tmp_path / "b", device="cpu", price=1e6, budget=0.003)
    states = [gk.open_run(tmp_path / "b" / BARE.replace(seed=seed).run_name).status for seed in range(3)]
    assert {status["state"] for status in states} == {"interrupted"}
    assert all("the budget of $0.001 is spent" in status["reason"] for status in states)


@pytest.mark.slow
def test_processes_share_price_and_budget(tmp_path) -> None:
    runs = gk.train_seeds(CONV, range(2), runs=tmp_path / "a", device="cpu", price=1.0)
    assert {run.status["price"] for run in runs} <= {0.5, 1.0}, "by how many are on the machine at a time"
    with pytest.raises(BudgetReached, match=r"the budget is spent\. Resume with: grokkit resume .* --budget DOLLARS"):
        gk.train_seeds(CONV, range(2), runs=tmp_path / "b", device="cpu", price=1e6, budget=0.002)
    status = gk.open_run(tmp_path / "b" / CONV.replace(seed=1).run_name).status
    assert status["state"] == "interrupted" and status["spent"] > 0.001


def test_a_recorder_in_a_loop_of_ones_own_counts_too(tmp_path) -> None:
    model, data = torch.nn.Linear(64, 10), gk.load_data("digits", size=8, train=60, test=10)
    model = torch.nn.Sequential(torch.nn.Flatten(), model)
    with gk.record(
        tmp_path / "mine", model, probes=gk.probe_sets(data, train=4, test=4, random=4), measures=(), price=36.0
    ) as rec:
        rec.step(1)
        assert rec.spent > 0
    status = gk.open_run(tmp_path / "mine").status
    assert status["spent"] == pytest.approx(status["seconds"] / 100)


STUDY = '''"""Two arms."""
from grokkit import RunConfig, spec

def plain() -> RunConfig:
    return RunConfig(
        experiment="study", variant="plain", data=spec("digits", size=8, train=60, test=20),
        model=spec("mlp", widths=(8,)), batch_size=20, steps=6, records=2, probes={"train": 8, "test": 8, "random": 4},
    )

def scaled() -> RunConfig:
    return plain().replace(variant="scaled", init_scale=2.0)
'''


@pytest.mark.slow
def test_a_team_stops_together_when_its_first_process_has_spent_the_budget(tmp_path) -> None:
    (tmp_path / "study.py").write_text(STUDY.replace("steps=6", "steps=60"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "grokkit", "train", "study.py:plain", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--price", "1e6", "--budget", "0.001"],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode != 0 and done.stderr.count("the budget of $0.001 is spent") >= 1
    (run,) = (gk.open_run(path) for path in (tmp_path / "runs/study").iterdir())
    assert run.status["state"] == "interrupted" and run.status["step"] == 10, "they ask each other every ten steps"
    assert "the budget of $0.001 is spent" in run.status["reason"]


def test_the_command_line_tells_prices_and_goes_on_with_a_larger_budget(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.py").write_text(STUDY)
    words = ["--device", "cpu", "--price", "1e6"]
    assert main(["train", "study.py", *words, "--budget", "1000"]) == 0
    told = capsys.readouterr().out
    assert told.count(" spent") == 2 and "$" in told
    assert main(["ls"]) == 0
    assert "spent" in capsys.readouterr().out.splitlines()[0]
    (run, _) = sorted((tmp_path / "runs/study").iterdir())
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert "price        1000000.0" in said
    assert main(["train", "study.py", *words, "--runs", "again", "--budget", "0.0001"]) == 6
    said = capsys.readouterr().err
    assert "the budget of $0.0001 is spent" in said and len(list((tmp_path / "again/study").iterdir())) == 1
    (stopped,) = (tmp_path / "again/study").iterdir()
    assert main(["resume", str(stopped), "--device", "cpu", "--budget", "0.0001"]) == 6
    assert main(["resume", str(stopped), "--device", "cpu", "--budget", "1000"]) == 0
    assert json.loads((stopped / "status.json").read_text())["attempt"] == 2
    assert main(["train", "study.py", "--device", "cpu", "--runs", "third", "--budget", "1"]) == 2
    assert "a budget needs a price" in capsys.readouterr().err


def test_one_budget_is_for_all_runs_of_a_command(tmp_path, monkeypatch, ticking) -> None:
    """What the first arm leaves is the second one's; the runs that are resumed together pay from one purse."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.py").write_text(STUDY)
    assert main(["train", "study.py:plain", "--device", "cpu", "--price", "3600", "--budget", "1e6"]) == 0
    whole = gk.open_run(next((tmp_path / "runs/study").iterdir())).status["spent"]
    words = ["train", "study.py", "--device", "cpu", "--price", "3600", "--runs", "b", "--budget", f"{1.5 * whole}"]
    assert main(words) == 6
    runs = [gk.open_run(path) for path in sorted((tmp_path / "b/study").iterdir())]
    assert sorted(run.status["state"] for run in runs) == ["done", "interrupted"]
    total = sum(run.status["spent"] for run in runs)
    assert 1.5 * whole <= total < 2 * whole
    paths = [str(run.path) for run in runs]
    assert main(["resume", *paths, "--device", "cpu", "--budget", f"{total * 0.9}"]) == 6
    assert main(["resume", *paths, "--device", "cpu", "--budget", f"{total + 1e6}"]) == 0
