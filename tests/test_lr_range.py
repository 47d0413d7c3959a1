"""The learning-rate range test: what is read off planted curves, a plain loop as its twin, no trace, table and verb."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokkit as gk
from grokkit import figures
from grokkit.analysis.tables import read_table
from grokkit.cli import main
from grokkit.config.run_config import RunConfig, spec
from grokkit.device.select import select_device
from grokkit.diagnostics.lr_range import LRRange, _compute_learned_loss
from grokkit.diagnostics.range_curve import DivergenceDetector, RangeCurve, analyse_curve, smooth, sweep_rates
from grokkit.errors import Interrupted, UsageError
from grokkit.names import TABLE_COLUMNS, FigureData
from grokkit.seeding import seeded
from grokkit.training.trainer import build_trainer

RATES = sweep_rates(1e-6, 10.0, 200)
X = np.log10(RATES)
DIGITS = RunConfig(
    experiment="digits",
    variant="adamw",
    data=spec("digits", size=8, train=500, test=100),
    model=spec("mlp", widths=(32, 32)),
    optimizer=spec("adamw", lr=1e-3, weight_decay=0.1),
    batch_size=40,
)


def noisy(losses: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    return losses + deviation * np.random.default_rng(seed).normal(size=losses.shape)


def falling(middle: float, width: float = 0.4) -> np.ndarray:
    """From 2.3 to 0.3, fastest where log10 of the rate is `middle`."""
    return 2.3 - 2.0 / (1 + np.exp(-(X - middle) / width))


# what is read off a curve


def test_rates_grow_by_the_same_factor_from_low_to_high() -> None:
    assert len(RATES) == 200 and RATES[0] == pytest.approx(1e-6) and RATES[-1] == pytest.approx(10.0)
    np.testing.assert_allclose(RATES[1:] / RATES[:-1], 1e7 ** (1 / 199))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1e-6, float("inf")), (float("nan"), 1.0)])
def test_bounds_that_make_no_sweep_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="0 < low < high, such as 1e-6 and 10; got"):
        sweep_rates(*bounds, 100)


@pytest.mark.parametrize("steps", [19, True, 50.0])
def test_too_few_steps_are_refused(steps) -> None:
    with pytest.raises(UsageError, match=r"`steps` must be an int of at least 20 .*; got"):
        sweep_rates(1e-6, 1.0, steps)


def test_the_average_is_pandas_and_has_no_bias_at_its_start() -> None:
    values = np.random.default_rng(0).normal(5, 1, 30)
    expected = pd.Series(values).ewm(alpha=1 / 8, adjust=True).mean()
    np.testing.assert_allclose(smooth(values, 8.0), expected)
    np.testing.assert_allclose(smooth(np.full(5, 7.0), 10.0), 7.0)


def test_a_parabola_in_the_logarithm_is_lowest_at_its_own_minimum() -> None:
    curve = analyse_curve(RATES, (X + 1) ** 2 + 0.5)
    assert curve.minimum == pytest.approx(0.1, rel=0.05), "within one update, which is 8 %"
    assert curve.suggestion == curve.minimum / 10
    assert curve.diverged_at is None and len(curve.losses) == 200
    assert curve.reason == "a tenth of 0.099, the rate of the lowest loss; it rose but did not diverge up to 10"


@pytest.mark.parametrize("middle", [-4.0, -2.5, -1.5])
def test_the_steepest_place_is_found_where_it_was_planted(middle: float) -> None:
    losses = falling(middle) + np.exp(12 * (X - 0.5))
    exact, rough = analyse_curve(RATES, losses), analyse_curve(RATES, noisy(losses, 0.03))
    assert np.log10(exact.steepest) == pytest.approx(middle, abs=0.1)
    assert np.log10(rough.steepest) == pytest.approx(middle, abs=0.25)


def test_a_sweep_ends_where_the_smoothed_loss_is_four_times_its_best() -> None:
    losses = np.where(RATES < 0.1, falling(-3), 3.0)
    curve, best = analyse_curve(RATES, losses), smooth(losses, 10.0)[RATES < 0.1].min()
    above = np.flatnonzero(smooth(losses, 10.0)[RATES >= 0.1] > 4 * best)[0] + (RATES < 0.1).sum()
    assert curve.diverged_at == RATES[above] and len(curve.losses) == len(curve.smoothed) == above + 1
    assert 0.1 / 3 < curve.minimum <= 0.1 and curve.suggestion == curve.minimum / 10
    assert f"it diverged at {curve.diverged_at:.2g}" in curve.reason


def test_an_unlucky_batch_near_zero_is_no_divergence() -> None:
    watch = DivergenceDetector(20)  # so short that nothing is smoothed
    assert not any(map(watch.update, [2.3, 1.0, 0.1, 0.01, 0.05, 0.5, 1.1]))
    assert watch.update(1.2), "half of what was gained is lost again"


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_sweep(broken: float) -> None:
    losses = np.where(RATES < 0.1, falling(-3), broken)
    curve = analyse_curve(RATES, losses)
    assert curve.diverged_at == RATES[RATES >= 0.1][0] and not np.isfinite(curve.losses[-1])
    assert np.isfinite(curve.losses[:-1]).all() and curve.minimum < 0.1 and curve.suggestion == curve.minimum / 10


def test_nan_at_once_suggests_nothing_and_says_so() -> None:
    curve = analyse_curve(RATES, [float("nan")])
    assert (curve.suggestion, curve.minimum, curve.steepest) == (None, None, None) and np.isnan(curve.lowest)
    assert curve.diverged_at == RATES[0] and "the loss of the first batch is nan, before any update" in curve.reason


def test_a_curve_that_still_falls_at_the_end_suggests_nothing() -> None:
    curve = analyse_curve(RATES, noisy(falling(0.5), 0.02))
    assert curve.suggestion is None and curve.diverged_at is None and curve.steepest is not None
    assert curve.reason.startswith("the loss did not rise again up to a rate of 10")


def test_noise_alone_suggests_nothing() -> None:
    curves = [analyse_curve(RATES, noisy(np.full(200, 2.3), 0.2, seed)) for seed in range(300)]
    assert sum(curve.minimum is not None for curve in curves) <= 3
    assert "did not fall by more than chance up to a rate of 10" in curves[0].reason


def test_a_divergence_without_a_fall_suggests_nothing() -> None:
    curve = analyse_curve(RATES, np.where(RATES < 1e-2, noisy(np.full(200, 2.3), 0.05), 1e6))
    assert curve.suggestion is None and curve.minimum is None
    assert curve.reason.startswith("the loss diverged at 0.01 without having fallen")


def test_where_hardly_any_loss_is_left_nothing_is_suggested() -> None:
    losses = 2.3 * 10 ** (-4 * np.clip((X + 4) / 2, 0, 1)) + np.exp(12 * (X - 0.5))
    lowest = analyse_curve(RATES, losses).lowest
    curve = analyse_curve(RATES, losses, 1.01 * lowest)
    assert curve.suggestion is None and curve.minimum is not None
    assert "so little is left to learn that any rate looks good: sweep with fewer steps" in curve.reason
    assert analyse_curve(RATES, losses, 0.99 * lowest).suggestion is not None


def test_memorised_images_suggest_nothing() -> None:
    few = DIGITS.replace(data=spec("digits", size=8, train=60, test=100), batch_size=30)
    found = gk.lr_range_test(few.replace(policy=spec("lc_hold")), device="cpu")
    assert found.suggestion is None and "so little is left to learn" in str(found)


def test_what_is_left_to_learn_is_what_the_formula_says() -> None:
    smooth = [0.9 + 0.1 / 7] + 6 * [0.1 / 7]
    entropy = -sum(p * np.log(p) for p in smooth)
    assert _compute_learned_loss(DIGITS, 7) == pytest.approx(0.01 * np.log(7))
    assert _compute_learned_loss(DIGITS.replace(label_smoothing=0.1), 7) == pytest.approx(
        entropy + 0.01 * (np.log(7) - entropy)
    )
    assert _compute_learned_loss(DIGITS.replace(loss="mse"), 10) == pytest.approx(0.01 * 0.09)
    assert _compute_learned_loss(DIGITS.replace(loss="mse", label_smoothing=0.1), 10) == pytest.approx(
        0.01 * 0.09 * 0.81
    )


def test_a_suggestion_below_the_sweep_is_not_made() -> None:
    curve = analyse_curve(sweep_rates(0.05, 10, 200), (np.log10(sweep_rates(0.05, 10, 200)) + 0.5) ** 2 + 0.01)
    assert curve.suggestion is None and "is below the lowest rate of the sweep: start at a lower rate" in curve.reason


def test_the_curve_needs_no_torch() -> None:
    code = "import sys, grokkit.diagnostics.range_curve; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# several seeds


def of(*suggestions: float | None) -> LRRange:
    empty = [np.empty(0)] * 4
    curves = tuple(RangeCurve(*empty, suggestion=each, reason="why") for each in suggestions)
    return LRRange(DIGITS, tuple(range(len(curves))), curves, 200, 1e-3, "cpu")


def test_the_median_of_the_seeds_is_suggested_with_their_spread() -> None:
    assert of(0.1, 0.001, 0.02).suggestion == pytest.approx(0.02) and of(0.1, 0.001, 0.02).spread == (0.001, 0.1)
    assert of(0.1, 0.001).suggestion == pytest.approx(0.01), "the middle of two by their logarithms"
    assert "lr_max 0.02 (median; 0.001 to 0.1 over 3 seeds)" in str(of(0.1, 0.001, 0.02))


def test_seeds_that_suggest_nothing_are_told() -> None:
    assert str(of(None, 0.02)) == "lr_max 0.02: why\nseed 0 has no suggestion: why"
    assert of(None).suggestion is of(None).spread is of(None).optimizer is None
    assert str(of(None)) == "no learning rate is suggested\nseed 0 has no suggestion: why"


def test_every_rate_of_an_optimizer_keeps_its_proportion() -> None:
    assert of(0.0123).optimizer == spec("adamw", lr=0.012, weight_decay=0.1)
    found = of(0.02)
    object.__setattr__(found, "config", DIGITS.replace(optimizer=spec("muon", lr=0.2, momentum=0.5)))
    object.__setattr__(found, "base_lr", 0.2)
    assert found.optimizer == spec("muon", lr=0.02, momentum=0.5, vector_lr=0.01, matrix_lr=0.01)


# the sweep


def plain_losses(config: RunConfig, rates: np.ndarray) -> list[float]:
    """A range test in ten lines of PyTorch, from the same weights and batches."""
    with seeded(config.seed, "training"):
        trainer = build_trainer(config, select_device("cpu").torch_device)
        optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1.0, weight_decay=0.1)
        trainer.model.train()
        losses = []
        for step, rate in enumerate(rates, start=1):
            x, y = trainer.batches.at(step)
            optimizer.param_groups[0]["lr"] = rate
            loss = F.cross_entropy(trainer.model(x), y)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses


@pytest.fixture(scope="module")
def found() -> LRRange:
    return gk.lr_range_test(DIGITS.replace(policy=spec("wsd")), steps=100, seeds=[0, 1, 2], device="cpu")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_losses_are_those_of_a_plain_loop(found: LRRange, seed: int) -> None:
    curve = found.curves[seed]
    assert len(curve.losses) > 50 and curve.diverged_at == curve.rates[-1]
    np.testing.assert_allclose(curve.rates, sweep_rates(1e-6, 10, 100)[: len(curve.rates)])
    expected = plain_losses(DIGITS.replace(seed=seed), curve.rates)
    calm = curve.rates < 0.03  # rounding grows with the updates, and a divergence blows it up
    np.testing.assert_allclose(curve.losses[calm], np.array(expected)[calm], rtol=1e-4)


def dropping(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, classes))


def test_dropout_draws_from_the_run_s_own_stream(monkeypatch) -> None:
    gk.models.names()
    monkeypatch.setitem(gk.models.registry._members, "dropping", dropping)
    config = DIGITS.replace(model=spec("dropping"))
    curve = gk.lr_range_test(config, high=1e-2, steps=20, device="cpu").curves[0]
    np.testing.assert_allclose(curve.losses, plain_losses(config, curve.rates), rtol=1e-5)


def test_what_it_suggests_trains_and_what_diverged_does_not(found: LRRange, tmp_path: Path) -> None:
    assert 3e-4 < found.suggestion < 3e-2 and found.spread[1] / found.spread[0] < 10
    short = DIGITS.replace(steps=60, records=1, probes={"train": 1, "test": 0, "random": 0}, variant="good")
    wild = short.replace(variant="wild", optimizer=spec("adamw", lr=found.curves[0].diverged_at))
    good, bad = (
        gk.train(each, runs=tmp_path, device="cpu").newest_metrics()["test_set.accuracy"]
        for each in (short.replace(optimizer=found.optimizer), wild)
    )
    assert good > 0.8 > bad


def test_groups_keep_their_proportions_and_the_policy_is_not_asked(monkeypatch) -> None:
    seen: list[list[float]] = []
    from grokkit.training import step as room

    update = room.TrainStep._update

    def watched(self, x, y):
        seen.append([group["lr"] for group in self._optimizer.param_groups])
        return update(self, x, y)

    monkeypatch.setattr(room.TrainStep, "_update", watched)
    muon = spec("muon", lr=0.2, vector_lr=0.1, matrix_lr=0.05)
    config = DIGITS.replace(
        model=spec("cnn", channels=(4, 4), strides=(1, 2)), optimizer=muon, policy=spec("one_cycle")
    )
    gk.lr_range_test(config, low=1e-4, high=1e-3, steps=20, device="cpu")
    expected = np.geomspace(1e-4, 1e-3, 20)[:, None] * [1, 0.5, 0.25]
    np.testing.assert_allclose(seen, expected)


def test_an_optimizer_without_a_rate_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`lr` must be above 0, .*got 0\.0"):
        gk.lr_range_test(DIGITS.replace(optimizer=spec("adamw", lr=0.0)), device="cpu")


def test_nothing_is_trained_beyond_a_divergence() -> None:
    done: list[int] = []
    config = DIGITS.replace(optimizer=spec("sgd", lr=0.1, momentum=0.9))
    found = gk.lr_range_test(config, high=1e4, steps=60, device="cpu", on_update=lambda update, _: done.append(update))
    (curve,) = found.curves
    assert done == list(range(1, len(curve.losses) + 1)) and len(done) < 60


def test_it_leaves_random_states_threads_and_folders_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    gk.lr_range_test(DIGITS, steps=20, device="cpu")
    after = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002
    assert after == states and torch.get_num_threads() == threads and signal.getsignal(signal.SIGINT) == handler
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_it_between_two_updates_and_leaves_no_trace(number: int, capfd, monkeypatch) -> None:
    monkeypatch.setattr(signal, "raise_signal", lambda _: None)
    done: list[int] = []
    state, handler = torch.get_rng_state().tolist(), signal.signal(signal.SIGTERM, lambda *_: None)

    def press(update: int, total: int) -> None:
        assert total == 40
        done.append(update)
        if update == 25:
            os.kill(os.getpid(), number)

    try:
        with pytest.raises(Interrupted, match="Interrupted before update 6/20 with seed 1"):
            gk.lr_range_test(DIGITS, high=1e-3, steps=20, seeds=[0, 1], device="cpu", on_update=press)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert done == list(range(1, 26)) and torch.get_rng_state().tolist() == state
    assert "stopping after the current step" in capfd.readouterr().err


# table, figure, verb


def test_the_table_holds_what_the_curves_hold(found: LRRange) -> None:
    table = pd.DataFrame(found.rows()).reindex(columns=list(TABLE_COLUMNS))
    for seed, curve in zip(found.seeds, found.curves, strict=True):
        own = table[table["seed"] == seed]
        assert set(own["run"]) == {found.config.replace(seed=seed).run_name}
        named = {name: rows.set_index("step")["value"] for name, rows in own.groupby("measure")}
        np.testing.assert_array_equal(named["range_test_loss"], curve.losses)
        np.testing.assert_array_equal(named["range_test_rate"], curve.rates)
        assert list(named["range_test_loss"].index) == list(range(1, len(curve.losses) + 1))
        assert named["range_test_suggestion"].to_dict() == {len(curve.losses): curve.suggestion}
    units = table.groupby("measure")["unit"].first()
    assert units["range_test_loss"] == "nats" and units["range_test_rate"] == "1"


def test_the_figure_draws_losses_averages_and_marks(found: LRRange) -> None:
    table = pd.DataFrame(found.rows()).reindex(columns=list(TABLE_COLUMNS))
    axes = figures.create("lr_range", FigureData(table, {}, pd.DataFrame())).axes[0]
    lines = [(line.get_xdata(), line.get_ydata(), line) for line in axes.lines]

    def drawn(x: np.ndarray, y: np.ndarray):
        (one,) = [line for xs, ys, line in lines if np.array_equal(xs, x) and np.array_equal(ys, y)]
        return one

    for curve in found.curves:
        thin, thick = drawn(curve.rates, curve.losses), drawn(curve.centres, curve.smoothed)
        assert thin.get_linewidth() < thick.get_linewidth() and thin.get_color() == thick.get_color()
        marks = [line for xs, _, line in lines if list(xs) == [curve.suggestion]]
        (mark,) = [line for line in marks if line.get_color() == thin.get_color()]
        at = np.searchsorted(curve.centres, curve.suggestion)
        low, high = sorted(curve.smoothed[at - 1 : at + 1])
        assert low <= mark.get_ydata()[0] <= high and mark.get_marker() == "v"
    assert len({line.get_color() for *_, line in lines if line.get_linewidth() == 0.5}) == 3
    assert any(list(xs) == [found.suggestion] * 2 for xs, _, _ in lines), "the median of the seeds"
    bottom, top = axes.get_ylim()
    assert axes.get_xscale() == "log" and bottom < min(curve.lowest for curve in found.curves)
    assert 2.3 < top < 4, "the divergence does not stretch the axis"


def test_variants_with_other_losses_have_labels_of_their_own(found: LRRange) -> None:
    other = LRRange(DIGITS.replace(variant="mse", loss="mse"), found.seeds, found.curves, 100, 1e-3, "cpu")
    table = pd.DataFrame([*found.rows(), *other.rows()]).reindex(columns=list(TABLE_COLUMNS))
    drawn = figures.create("lr_range", FigureData(table, {}, pd.DataFrame()))
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["digits/adamw", "digits/mse"]
    assert [axes.get_ylabel() for axes in drawn.axes] == ["batch loss (nats)", "batch loss (squared logits)"]


def test_sweeps_that_say_nothing_can_be_drawn() -> None:
    curves = analyse_curve(RATES, [float("nan")]), analyse_curve(RATES, [2.3, float("inf")])
    rows = LRRange(DIGITS, (0, 1), curves, 200, 1e-3, "cpu").rows()
    table = pd.DataFrame(rows).reindex(columns=list(TABLE_COLUMNS))
    assert figures.create("lr_range", FigureData(table, {}, pd.DataFrame())).axes


STUDY = '''"""Two arms."""
from grokkit import RunConfig, spec

def adamw() -> RunConfig:
    return RunConfig(
        experiment="study", variant="adamw", data=spec("digits", size=8, train=300), model=spec("mlp", widths=(16,)),
        optimizer=spec("adamw", lr=0.5, weight_decay=0.1), batch_size=30,
    )

def sgd() -> RunConfig:
    return adamw().replace(variant="sgd", optimizer=spec("sgd", lr=0.1, momentum=0.9))
'''


@pytest.fixture
def study(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("study.py").write_text(STUDY)
    return tmp_path


def test_the_verb_prints_a_line_per_seed_and_how_to_use_it(study: Path, capsys) -> None:
    assert main(["lr-find", "study.py", "--seeds", "0-1", "--steps", "60", "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("study/adamw  on cpu") and said[1].split("  ")[0] == "seed"
    assert [line.split()[0] for line in said[2:4]] == ["0", "1"]
    (lr_max,) = [line.split()[1] for line in said[:6] if line.startswith("lr_max")]
    assert f'currently 0.5; to use it: optimizer=spec("adamw", lr={lr_max}, weight_decay=0.1)' in said[5]
    assert f'"optimizer.lr" = [{lr_max}]' in said[5]
    assert sum(line.startswith("lr_max") for line in said) == 2
    assert said[-3:] == ["lr_range/study.pdf", "lr_range/study.png", "lr_range/study.csv"]
    assert sorted(path.name for path in study.iterdir()) == ["lr_range", "study.py"], "no run folder"
    table = read_table("lr_range/study.csv")
    assert set(table["seed"]) == {0, 1} and table["run"].nunique() == 4
    assert main(["figure", "lr_range", "lr_range/study.csv", "--out", "again"]) == 0
    assert Path("again/lr_range.png").read_bytes() == Path("lr_range/study.png").read_bytes()


def test_the_verb_takes_one_variant_other_data_and_another_folder(study: Path, capsys) -> None:
    x = np.random.default_rng(0).integers(0, 256, (300, 6, 6), dtype=np.uint8)
    np.savez("own.npz", x_train=x, y_train=np.arange(300) % 3, x_test=255 - x, y_test=np.arange(300) % 3)
    words = ["study.py:sgd", "--data", "own.npz", "--seed", "7", "--high", "1e-4", "--steps", "20", "--out", "here"]
    assert main(["lr-find", *words, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "no learning rate is suggested" in said and "to use it" not in said
    assert "seed 7 has no suggestion: the loss did not fall by more than chance up to a rate of 0.0001" in said
    assert sorted(path.name for path in Path("here").iterdir()) == [f"study-sgd.{end}" for end in ("csv", "pdf", "png")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seed", "1", "--seeds", "0-1"], "give --seed or --seeds, not both"),
        (["--seeds", "1-0"], "numbers and increasing ranges"),
        (["--low", "1", "--high", "0.1"], "0 < low < high"),
        (["--steps", "5"], "`steps` must be an int of at least 20"),
        (["--data", "digts"], "Did you mean 'digits'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_verb_refuses_in_one_sentence(study: Path, capsys, words: list[str], sentence: str) -> None:
    assert main(["lr-find", "study.py", *words, "--device", "cpu"]) == 2
    assert sentence in capsys.readouterr().err and not Path("lr_range").exists()
