"""The study of learning-rate policies: budgets, pairs and tables are what its plan says."""

from pathlib import Path

import pandas as pd
import pytest

import grokkit as gk
from grokkit import policies
from grokkit.analysis.outcomes import compute_outcomes
from grokkit.analysis.tables import read_table
from grokkit.errors import UsageError
from grokkit.registry import import_study

FILE = Path(__file__).resolve().parents[1] / "experiments" / "lr_policies.py"


@pytest.fixture(scope="module")
def study():
    return import_study(FILE)


def _small(study):
    """The digits task with 120 updates and a reading every 6, attacked a little."""
    attack = gk.spec("robust_accuracy", epsilons=(0.1,), points=40, steps=2)
    return study.digits().replace(
        measures=(gk.spec("accuracy"), attack),
        steps=120,
        signal={"every": 6},
        probes={"train": 128, "test": 60, "random": 0},
        data=gk.spec("digits", size=8, train=128),
        batch_size=64,
    )


def test_every_arm_builds_its_policy_and_its_run_folder_says_task_decay_and_arm(study):
    names = set()
    for name, task in study.TASKS.items():
        for arm in study.ARMS:
            for decay in study.DECAYS:
                config = study.config_of(task(), arm, decay, 3, [(1, {"log_density": 1.0})])
                policies.create(config.policy.name, **config.policy.options)
                assert f"/{name}-{decay}-{arm}-s3-" in config.run_name
                assert ("fixed_decay" in config.optimizer.options) == (decay == "fixed")
                assert len(config.records) == study.RECORDS and config.records[-1] == config.steps
                names.add(config.run_name)
    assert len(names) == 6 * 13 * 2


def test_the_full_tasks_train_on_all_images(study):
    for name in ("mnist", "cifar10"):
        task = study.TASKS[f"{name}_full"]()
        assert task.data == gk.spec(name) and task.model == study.TASKS[name]().model


def test_readings_are_charged_in_updates(study):
    # digits: 128 points x 11 passes every 200 updates of 100 images at 3 passes: 1408 / 60000 of an update's worth
    assert study.probe_share(study.digits(), "density") == pytest.approx(1408 / 60_000)
    assert study.probe_share(study.digits(), "loss") == pytest.approx(128 / 60_000)
    steps = {arm: study.config_of(study.digits(), arm, "coupled", 0).steps for arm in study.ARMS}
    assert steps["wsd"] == steps["constant"] == 8000 and steps["lc_wsd"] == steps["lc_hold"] == 7817
    assert steps["yoked_lc_hold"] == steps["lc_hold"] and steps["loss_wsd"] == 7983
    assert all(study.probe_share(task(), "density") <= 0.025 for task in study.TASKS.values())


def test_a_yoked_arm_has_no_signal_and_takes_its_donors_policy(study):
    config = study.config_of(study.digits(), "yoked_lc_hold", "coupled", 0, [(1, {"log_density": 1.0})])
    assert config.signal == {}
    assert config.policy.options["policy"] == {"name": "lc_hold", **study.ARMS["lc_hold"].policy.options}
    assert gk.RunConfig.from_toml(config.to_toml()).run_name == config.run_name


def test_seeds_are_each_others_donors_two_by_two(study):
    assert list(study.pairs_of([4, 5, 6, 7])) == [(4, 5), (6, 7)]
    with pytest.raises(ValueError, match="pairs"):
        list(study.pairs_of([1, 2, 3]))


@pytest.mark.slow
def test_a_pair_of_seeds_runs_is_collected_once_and_reported(study, tmp_path, monkeypatch):
    task, runs, out = _small(study), tmp_path / "runs", tmp_path / "artifacts"
    done = list(study.run_pair(task, "coupled", (0, 1), runs))
    assert len(done) == 26 and all(run.status["state"] == "done" for run in done)
    by_name = {run.name.split("/")[1].rsplit("-", 1)[0]: run for run in done}
    for arm in ("lc_wsd", "lc_hold", "lc_servo"):
        donor, yoked = by_name[f"digits-coupled-{arm}-s1"], by_name[f"digits-coupled-yoked_{arm}-s0"]
        rates = [run.metrics.query("metric == 'learning_rate'").value.tolist() for run in (donor, yoked)]
        assert rates[0] == rates[1], arm
    with pytest.raises(UsageError, match="no finished run of digits with one of these seeds"):
        study.collect("digits", [100, 101], runs, out)
    study.collect("digits", [0, 1], runs, out)
    first = (out / "digits.csv.gz").read_bytes()
    study.collect("digits", [0, 1], runs, out)
    assert (out / "digits.csv.gz").read_bytes() == first
    table = read_table(out / "digits.csv.gz")
    whole = compute_outcomes(gk.table(done), {"digits": 0.1})
    thinned = compute_outcomes(table, {"digits": 0.1})
    keys = ["arm", "seed", "outcome"]
    pd.testing.assert_frame_equal(
        whole.sort_values(keys, ignore_index=True), thinned.sort_values(keys, ignore_index=True), check_exact=True
    )
    names = set(table["run"])
    assert study._is_collected(task, "coupled", (0, 1), names)
    assert not study._is_collected(task, "fixed", (0, 1), names)
    assert not study._is_collected(task.replace(steps=130), "coupled", (0, 1), names), "another config"
    monkeypatch.setattr(study, "THRESHOLDS", {"digits": 0.1})
    study.report("digits", out, tmp_path / "figures")
    verdicts = pd.read_csv(out / "digits_verdicts.csv")
    assert len(verdicts) == 18 and set(verdicts.verdict) == {"not tested"}
    rates = {name: run.metrics.query("metric == 'learning_rate'").value.tolist() for name, run in by_name.items()}
    for row in verdicts.itertuples():
        pairs = [(f"digits-coupled-{row.arm}-s{seed}", f"digits-coupled-{row.against}-s{seed}") for seed in (0, 1)]
        assert row.same_rates == sum(rates[a] == rates[b] for a, b in pairs)
    assert (tmp_path / "figures" / "digits-coupled.png").stat().st_size > 50_000
