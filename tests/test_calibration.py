"""Calibration: kappa in closed form, slopes of planted spectra, the rule, and the verb on a real run."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.analysis.radius_choice import LinearRange, choose_radius, compare_with_kappa
from grokkit.cli import main
from grokkit.cli.choose_radius import format_choice, spread_steps
from grokkit.errors import UsageError
from grokkit.measures import Context
from grokkit.measures.radius_sweep import RadiusSweep, compare_methods, default_radii, fit_slopes, log_ratio
from grokkit.names import FigureData, ProbeSet
from grokkit.spline.frames import draw_orthonormal_frame
from grokkit.spline.max_projection import expected_max_projection
from tests.runs import SMALL
from tests.test_figures import RADII, calibration_rows

# ---- kappa


def test_kappa_is_known_in_closed_form() -> None:
    assert expected_max_projection(1, 1) == pytest.approx(1)
    assert expected_max_projection(1, 3) == pytest.approx(1 / 2), (
        "a coordinate of a uniform point on the sphere is uniform in R^3"
    )
    assert expected_max_projection(2, 2) == pytest.approx(2 * math.sqrt(2) / math.pi), "mean of max(|cos|, |sin|)"
    for size in (2, 10, 3072):
        one = math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2)) / math.sqrt(math.pi)
        assert expected_max_projection(1, size) == pytest.approx(one)


def test_kappa_is_the_mean_over_random_directions() -> None:
    gaussian = np.random.default_rng(0).normal(size=(40_000, 8))
    units = np.abs(gaussian / np.linalg.norm(gaussian, axis=1, keepdims=True))
    for directions in (1, 3, 8):
        largest = units[:, :directions].max(axis=1)
        assert abs(expected_max_projection(directions, 8) - largest.mean()) < 4 * largest.std() / 200
    with pytest.raises(UsageError, match=r"`directions` must be an int in 1..8 .*got 9"):
        expected_max_projection(9, 8)


# ---- slopes and agreement


def test_slopes_of_power_laws_are_their_exponents_without_error() -> None:
    radii, weights = (0.1, 0.2, 0.5), np.array([1.0, 2.0, 7.0])
    for exponent in (0.5, 1.0, 2.0):
        counts = np.array(radii)[:, None] ** exponent * weights
        rows = fit_slopes(counts, radii)
        assert [row["radius"] for row in rows] == [0.2, 0.5]
        for row in rows:
            assert (row["low"], row["value"], row["high"]) == pytest.approx([exponent] * 3)
    assert [row["radius"] for row in fit_slopes(np.array([[0, 0], [1, 2], [2, 4]]), radii)] == [0.5], (
        "no count, no slope"
    )


def test_the_paired_interval_covers_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), []
    for _ in range(1500):
        below = rng.poisson(4, 100)
        above = below + rng.poisson(4, 100)
        value, half = log_ratio(above, below)
        held.append(abs(value - math.log(2)) <= half)
    assert 0.93 < np.mean(held) < 0.965
    assert log_ratio(np.zeros(4), np.ones(4)) is None


def test_agreement_is_the_quotient_of_the_counts() -> None:
    (row,) = compare_methods(np.array([[0, 0], [3, 6]]), np.array([[1, 0], [4, 8]]), (0.1, 0.2))
    assert row["radius"] == 0.2 and (row["low"], row["value"], row["high"]) == pytest.approx([0.75] * 3)


# ---- the measure


def hinge(units: int = 400) -> nn.Module:
    """One layer whose pre-activations at the origin are evenly spread in 0..1 and whose gradients have length 1."""
    layer = nn.Linear(4, units).double()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, 0] = 1
        layer.bias.copy_((torch.arange(units) + 0.5) / units)
    return nn.Sequential(layer, nn.ReLU())


def context(model: nn.Module, images: np.ndarray, **fields) -> Context:
    nowhere = np.full(len(images), -1)
    return Context(model, {"train": ProbeSet("train", images.astype(np.float32), nowhere, "made", nowhere)}, **fields)


def rows_of(reading: gk.Reading, step: int = 0) -> pd.DataFrame:
    rows = [{"layer": "", **row, "step": step} for row in (*reading.rows(), *reading.settings["companions"])]
    return pd.DataFrame(rows)


def test_one_layer_is_linear_up_to_its_last_hinge() -> None:
    radii = (0.125, 0.25, 0.5, 1.0, 2.0)
    images = np.zeros((16, 4))
    reading = RadiusSweep(radii=radii, directions=(1, 2, 4), points=16)(context(hinge(), images))
    rows = rows_of(reading)
    assert (rows.value[rows.measure == "calibration_vertex"] == 1).all(), "the first layer is exact"
    counts = rows[(rows.measure == "calibration") & (rows.directions == 2)].set_index("radius").value
    reach = float(draw_orthonormal_frame(4, 4)[:2, 0].abs().max())
    for radius, count in counts.items():
        assert count == pytest.approx(400 * min(1, radius * reach), abs=1)
    found = choose_radius(rows)
    assert found.radius == max(radius for radius in radii if radius * reach <= 1)
    assert found.directions == 1, "sixteen equal points have no spread at any P"


def test_frames_are_nested_and_numbers_are_capped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2)).double()
    images = np.random.default_rng(0).normal(size=(12, 6))
    reading = RadiusSweep(directions=(1, 3, 6, 40), points=12)(context(model, images))
    assert list(reading.coords["directions"]) == [1, 3, 6] and len(reading.coords["radius"]) == 13
    assert (np.diff(reading.values[0], axis=0) >= 0).all(), "more directions never cross fewer units"
    assert (np.diff(reading.values[0], axis=1) >= 0).all(), "nor does a larger radius"
    kappas = [row["value"] for row in reading.settings["companions"] if row["measure"] == "calibration_kappa"]
    assert kappas == [expected_max_projection(number, 6) for number in (1, 3, 6)]


def test_the_usual_radii_end_at_the_typical_distance_from_the_mean() -> None:
    points = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])
    radii = default_radii(points)
    assert radii[0] == 5e-4 and radii[-1] == 5.0 and len(radii) == 13 and sorted(radii) == list(radii)
    with pytest.raises(UsageError, match="all equal"):
        default_radii(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"radii": (0.1,)}, "two or more numbers above 0, ascending; got"),
        ({"radii": (0.2, 0.1)}, "ascending; got"),
        ({"radii": (0.0, 0.1)}, "above 0"),
        ({"directions": ()}, "one or more"),
        ({"directions": (5, 5)}, "ascending; got"),
        ({"directions": (0, 5)}, "at least 1"),
        ({"points": 1}, "at least 2 images"),
    ],
)
def test_impossible_settings_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        RadiusSweep(**options)


# ---- the rule


def planted(*snapshots: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([row for rows in snapshots for row in rows])


def test_the_radius_is_the_largest_that_is_linear_at_all_snapshots() -> None:
    found = choose_radius(
        planted(calibration_rows(0, bend=1.0), calibration_rows(9, bend=0.2), calibration_rows(50, bend=9))
    )
    assert found.snapshots == (
        LinearRange(0, (0.01, 1.0), 2.0),
        LinearRange(9, (0.01, 0.2), 0.5),
        LinearRange(50, (0.01, 2.0), None),
    )
    assert found.radius == found.smallest_linear_end == 0.2
    assert found.reason.startswith("0.2 is the largest radius at which LC is linear in r at all 3 snapshots")


def _slope(rows: list[dict], radius: float, value: float, half: float) -> list[dict]:
    changed = {"value": value, "low": value - half, "high": value + half}
    at = ("calibration_slope", radius)
    return [{**row, **changed} if (row["measure"], row.get("radius")) == at else row for row in rows]


def test_few_counts_neither_show_nor_end_a_linear_range() -> None:
    straight = calibration_rows(0, bend=9)
    open_below = _slope(_slope(straight, 0.02, 1.6, 0.5), 0.05, 0.98, 0.04)
    assert choose_radius(planted(open_below)).snapshots == (LinearRange(0, (0.05, 2.0), None),)
    open_within = _slope(straight, 0.1, 0.9, 0.1)
    assert choose_radius(planted(open_within)).snapshots == (LinearRange(0, (0.01, 2.0), None),)
    open_above = _slope(_slope(straight, 2.0, 1.0, 0.06), 1.0, 0.93, 0.02)
    assert choose_radius(planted(open_above)).snapshots == (LinearRange(0, (0.01, 0.5), None),)


def test_what_is_bent_below_ends_the_range_whatever_comes_above() -> None:
    found = choose_radius(planted(calibration_rows(0, bend=9), _slope(calibration_rows(7, bend=9), 0.02, 0.7, 0.1)))
    assert found.snapshots[1] == LinearRange(7, None, 0.02) and found.radius is found.directions is None
    assert found.reason.startswith("at step 7 LC is not linear at 0.02, and below") and found.smallest_linear_end == 2.0
    assert found.reason.endswith("(linear up to 2 at 1 of 2 snapshots)")


def test_too_few_counts_everywhere_are_said_so() -> None:
    found = choose_radius(planted(calibration_rows(3, bend=9, half=0.2)))
    assert found.radius is None and found.smallest_linear_end is None
    assert "at step 3 the counts are too few to decide whether LC is linear anywhere in 0.01..2" in found.reason


def test_the_smallest_p_with_an_interval_wide_enough_is_taken() -> None:
    def widened(factors: dict[int, float]) -> int | None:
        rows = calibration_rows(0)
        for row in rows:
            if row["measure"] == "calibration":
                half = 0.1 * factors[row["directions"]] * row["value"]
                row |= {"low": row["value"] - half, "high": row["value"] + half}
        return choose_radius(planted(rows, calibration_rows(5))).directions

    assert widened({5: 1.2, 10: 1.1, 20: 1.0}) == 5
    assert widened({5: 1.3, 10: 1.2, 20: 1.0}) == 10
    assert widened({5: 1.3, 10: 1.3, 20: 1.0}) == 20


def test_over_kappa_is_flat_where_kappa_explains_the_growth() -> None:
    rows = planted(calibration_rows(0), calibration_rows(8))
    assert np.allclose(compare_with_kappa(rows, RADII[2]), 1)
    rows.loc[(rows.measure == "calibration") & (rows.directions == 5) & (rows.step == 8), "value"] *= 1.5
    assert np.allclose(compare_with_kappa(rows, RADII[2]), [[1, 1, 1], [1.5, 1, 1]])


# ---- the verb


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> gk.open_run:
    return gk.train(SMALL.replace(measures=(), attributions=()), runs=tmp_path_factory.mktemp("runs"), device="cpu")


def test_calibrate_prints_a_verdict_and_draws_from_what_it_stored(run, tmp_path: Path, capsys) -> None:
    words = ["choose-radius", str(run.path), "--directions", "2", "4", "--points", "8", "--snapshots", "2"]
    words += ["--radius", "0.1", "0.5", "2"]
    words += ["--device", "cpu", "--out", str(tmp_path / "a")]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert (
        first.startswith("1 measure at 2 snapshots: 2 added, 0 already stored")
        and "recommended: " in first
        and "why: " in first
    )
    assert [path.name for path in map(Path, first.split()[-3:])] == [
        "calibration.pdf",
        "calibration.png",
        "calibration.csv",
    ]
    assert main(["figure", "calibration", str(tmp_path / "a/calibration.csv"), "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a/calibration.png").read_bytes() == (tmp_path / "b/calibration.png").read_bytes()
    assert gk.replay_run(run, [gk.spec("calibration", radii=(0.1, 0.5, 2.0), directions=(2, 4), points=8)]) == 4
    table = gk.table(run)
    assert set(table.directions[table.measure == "calibration"]) == {2, 4}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--snapshots", "0"], "--snapshots must be at least 1; got 0"),
        (["--radius", "0.1"], "`radii` must be two or more numbers"),
        (["--probe-set", "trian"], "no probe set among"),
        (["--points", "1"], "at least 2 images"),
        (["--directions", "5", "3"], "ascending"),
    ],
)
def test_calibrate_answers_a_mistake_with_a_sentence(run, capsys, words, sentence) -> None:
    assert main(["choose-radius", str(run.path), *words, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.strip().startswith("grokkit choose-radius: ") and sentence in said


def test_a_net_without_any_crossing_is_said_to_tell_nothing() -> None:
    rows = planted(calibration_rows(0))
    rows = rows[rows.measure.isin(("calibration", "calibration_kappa"))].assign(run="a/b-s0", layer="", attack="")
    rows.loc[rows.measure == "calibration", ["value", "low", "high"]] = 0.0
    said = format_choice(rows, choose_radius(rows))
    assert "recommended: none" in said and "too few to decide" in said
    assert gk.figures.create("calibration", FigureData(rows, {}, pd.DataFrame()))


def test_snapshots_are_spread_from_the_first_to_the_last() -> None:
    steps = [0, 1, 3, 10, 30, 100]
    assert (
        spread_steps(steps, 3) == [0, 3, 100] and spread_steps(steps, 99) == steps and spread_steps(steps, 1) == [100]
    )
