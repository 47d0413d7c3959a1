"""The figure `policies`: lines, intervals and words are those of the table; what it cannot draw it refuses."""

import functools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from grokkit import figures
from grokkit.analysis.arms import add_best_baseline, default_pairs
from grokkit.analysis.comparison import compare_all
from grokkit.analysis.outcomes import LARGER_IS_BETTER, compute_outcomes
from grokkit.errors import UsageError
from grokkit.figures.theme import PALETTE
from grokkit.names import TABLE_COLUMNS, FigureData

BASELINES = ("constant", "cosine", "one_cycle", "wsd", "plateau", "step_decay")
LC = ("wsd", "hold", "servo")
ARMS = (*BASELINES, *(f"{word}_{name}" for name in LC for word in ("lc", "yoked", "loss")))
STEPS = np.arange(0, 12_001, 400)
GAINS = {"lc_hold": 0.12, "lc_servo": -0.1, "constant": -0.15}
"""Planted shifts of robust accuracy; lc_wsd and all others have none."""


def _rate(arm: str, t: np.ndarray, seed: int) -> np.ndarray:
    name = arm.removeprefix("lc_").removeprefix("yoked_").removeprefix("loss_")
    start = {"wsd": 0.75, "hold": 0.55 + 0.02 * (seed % 5), "servo": 0.4}.get(name, 0.8)
    if "servo" in name:
        return 0.08 * (1 + 0.4 * np.sin(9 * t + seed)) * (t > 0.05)
    shapes = {
        "constant": np.full_like(t, 0.1),
        "cosine": 0.05 * (1 + np.cos(np.pi * t)),
        "plateau": 0.1 * 0.3 ** (3 * t // 1),
        "one_cycle": 0.2 * np.where(t < 0.3, t / 0.3, (1 - t) / 0.7),
        "step_decay": 0.1 * 0.1 ** (2 * t // 1),
    }
    return shapes.get(name, 0.1 * np.where(t < start, 1, (1 - t) / (1 - start)))


def _run(arm: str, seed: int) -> pd.DataFrame:
    """A run whose luck is its seed's, shared by all arms, beside a little of its own."""
    own, luck = np.random.default_rng([seed, *arm.encode()]), np.random.default_rng(seed).normal(0, 0.02)
    t, gain = STEPS / STEPS[-1], GAINS.get(arm, 0.0) + own.normal(0, 0.01)
    series = {
        ("learning_rate", "batch", ""): _rate(arm, t, seed),
        ("accuracy", "test", ""): 0.9 * (1 - np.exp(-9 * t)) + luck + own.normal(0, 0.002),
        ("robust_accuracy", "test", "pgd-margin"): (0.5 + gain + luck) / (1 + np.exp(8 * (0.5 - t))),
        ("robust_accuracy", "test", "pgd-cross_entropy"): 0.9 * t,
    }
    if arm not in BASELINES:
        series["log_density", "signal", ""] = 5 + np.sin(3 * t) - 2 * t**2 + own.normal(0, 0.05, len(t))
    epsilon = {"robust_accuracy": 0.1}
    parts = [
        pd.DataFrame(
            {
                "step": STEPS,
                "value": values,
                "measure": measure,
                "probe_set": name,
                "attack": attack,
                "epsilon": epsilon.get(measure, np.nan),
            }
        )
        for (measure, name, attack), values in series.items()
    ]
    rows = pd.concat(parts).reindex(columns=list(TABLE_COLUMNS))
    rows[["layer", "measure_id", "unit"]] = ""
    return rows.assign(run=f"lr_policies/digits-coupled-{arm}-s{seed}-{seed:08x}", seed=seed)


@functools.cache
def study(seeds: int = 10, arms: tuple[str, ...] = ARMS) -> FigureData:
    """A made-up study of one task and decay."""
    table = pd.concat([_run(arm, seed) for arm in arms for seed in range(seeds)], ignore_index=True)
    return FigureData(table, {}, pd.DataFrame(columns=["run", "step", "kind", "text"]))


MARGINS = {
    ("digits", "test_accuracy"): 0.005,
    ("digits", "robust_accuracy"): 0.02,
    ("digits", "steps_to_robust"): 600.0,
}


@functools.cache
def drawn(seeds: int = 10, arms: tuple[str, ...] = ARMS) -> Figure:
    """A figure that tests only look at."""
    return figures.create("policies", study(seeds, arms), margins=MARGINS, thresholds={"digits": 0.4})


def lines_of(axes) -> list:
    return [line for line in axes.lines if len(line.get_xdata()) == len(STEPS)]


def panels(figure: Figure) -> tuple[list, list]:
    """Panels of curves, row by row, and of comparisons."""
    above, below = figure.subfigs
    return list(above.axes), list(below.axes)


def mean_of(arm: str, measure: str, attack: str = "") -> np.ndarray:
    rows = study().table.query("measure == @measure and attack == @attack")
    own = rows[rows.run.str.contains(f"-{arm}-s")]
    return own.groupby("step").value.mean().to_numpy()


def told_of(**options) -> pd.DataFrame:
    ends = compute_outcomes(study().table, {"digits": 0.4})
    return compare_all(
        add_best_baseline(ends, LARGER_IS_BETTER), default_pairs(ends["arm"]), LARGER_IS_BETTER, MARGINS, **options
    )


def test_each_lc_arm_has_a_column_with_its_controls_in_colour_before_the_rest_in_grey() -> None:
    curves, _ = panels(drawn())
    assert [axes.get_title(loc="left") for axes in curves[:4]] == ["lc_hold", "lc_servo", "lc_wsd", "other arms"]
    shown = ("learning_rate", ""), ("log_density", ""), ("robust_accuracy", "pgd-margin"), ("accuracy", "")
    for row, (measure, attack) in enumerate(shown):
        for column, name in enumerate(("hold", "servo", "wsd")):
            lines = lines_of(curves[4 * row + column])
            for word, colour in (("lc", PALETTE[0]), ("yoked", PALETTE[1]), ("loss", PALETTE[2])):
                (line,) = [each for each in lines if each.get_color() == colour]
                np.testing.assert_allclose(line.get_ydata(), mean_of(f"{word}_{name}", measure, attack))
            rest = [] if measure == "log_density" else BASELINES
            assert len(lines) == 3 + len(rest)


def test_bands_go_from_the_lowest_seed_to_the_highest() -> None:
    curves, _ = panels(drawn())
    rows = study().table.query("measure == 'accuracy' and probe_set == 'test'")
    own = rows[rows.run.str.contains("-lc_hold-s")].value
    band = curves[12].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((own.min(), own.max()))


def test_other_arms_are_named_at_their_ends_without_overlap() -> None:
    figure = drawn()
    curves, _ = panels(figure)
    for axes in (curves[3], curves[11], curves[15]):
        assert {text.get_text() for text in axes.texts} == set(BASELINES)
        for line in lines_of(axes):
            ends = [text for text in axes.texts if text.xy[1] == pytest.approx(line.get_ydata()[-1])]
            assert any(text.get_color() == line.get_color() for text in ends)
        names = [mpl.text.Text.get_window_extent(text) for text in axes.texts]
        centres = sorted((box.y0 + box.y1) / 2 for box in names)
        assert min(np.diff(centres)) > 0.9 * 6.5 * figure.dpi / 72
    assert [text.get_text() for text in curves[7].texts] == ["not recorded"]


def test_the_comparisons_drawn_are_those_of_the_table() -> None:
    _, below = panels(drawn())
    told = told_of()
    names = [label.get_text() for label in below[0].get_yticklabels()]
    assert names[:2] == ["lc_hold − yoked_hold", f"lc_hold − {told.reference[1]}"] and len(names) == 6
    for axes, (_, own) in zip(below, told.groupby("outcome", sort=False), strict=True):
        points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
        assert points == pytest.approx(own["mean"].tolist())
        for width, low, high in ((0.7, "low", "high"), (1.8, "t_low", "t_high")):
            drawn_ends = [list(line.get_xdata()) for line in axes.lines if line.get_linewidth() == width]
            np.testing.assert_allclose(drawn_ends, own[[low, high]])
        shade = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        assert (shade.x0, shade.x1) == pytest.approx((-own.margin.iloc[0], own.margin.iloc[0]))
        words = [text.get_text() for text in axes.texts if text.xy[1] >= 0]
        assert words[1::2] == own.verdict.tolist() and words[0] == f"{own.p_holm.iloc[0]:.3f}".removeprefix("0")


def test_titles_and_words_beside_a_panel_do_not_overlap() -> None:
    for axes in panels(drawn())[1]:
        words = [mpl.text.Text.get_window_extent(text) for text in axes.texts]
        assert axes._left_title.get_window_extent().y0 >= max(box.y1 for box in words)
        rows = sorted({round((box.y0 + box.y1) / 2) for box in words})
        assert min(np.diff(rows)) >= max(box.height for box in words) * 0.9


def test_planted_differences_are_told_as_planted() -> None:
    told = told_of().set_index(["outcome", "arm"]).verdict.groupby(level=[0, 1]).agg(set)
    for outcome in ("robust_accuracy", "steps_to_robust"):
        words = [told[outcome, arm] for arm in ("lc_hold", "lc_servo", "lc_wsd")]
        assert words == [{"better"}, {"worse"}, {"equivalent"}]


def test_fewer_pairs_are_said_and_nothing_is_tested() -> None:
    figure = drawn(seeds=4)
    words = {text.get_text() for axes in panels(figure)[1] for text in axes.texts}
    assert {"not tested", "–"} <= words and "mean over 4 pairs" in figure.texts[0].get_text()
    assert "Holm" not in figure.texts[0].get_text()
    data = study()
    unfinished = (data.table.run.str.contains("-yoked_hold-s3-")) & (data.table.step > 6000)
    short = figures.create("policies", FigureData(data.table[~unfinished], {}, data.events))
    assert "not tested (9)" in {text.get_text() for text in panels(short)[1][0].texts}


def test_a_sure_difference_within_the_margin_is_called_small() -> None:
    wide = {("digits", "robust_accuracy"): 0.5}
    figure = figures.create("policies", study(), margins=wide, pairs=[("lc_hold", "wsd"), ("lc_wsd", "constant")])
    below = panels(figure)[1]
    words = [text.get_text() for text in below[1].texts if text.xy[1] >= 0]
    assert words[1::2] == ["better, small"] * 2 and not below[0].patches, "no margin, no shade"
    assert len(below) == 2, "no threshold, no steps to it"


def test_unreached_thresholds_are_counted_in_the_note() -> None:
    ends = compute_outcomes(study().table, {"digits": 0.4})
    note = " ".join(drawn().texts[0].get_text().split())
    assert f"{ends.censored.sum()} of {10 * len(ARMS)} runs never reached" in note
    assert "Holm over 18 comparisons" in note and note.startswith("digits coupled.")


def test_more_comparisons_than_the_pairs_can_carry_are_said() -> None:
    pairs = [(f"lc_{name}", base) for name in LC for base in BASELINES]
    figure = figures.create("policies", study(), pairs=pairs)
    assert "their smallest p is 0.07" in " ".join(figure.texts[0].get_text().split()), "36 comparisons, 2 / 2^10 each"
    assert "smallest p" not in drawn().texts[0].get_text()


def test_without_an_lc_arm_all_arms_stand_side_by_side_and_nothing_is_compared() -> None:
    figure = drawn(arms=("wsd", "cosine", "sham"))
    assert len(figure.subfigs) == 1 and len(figure.subfigs[0].axes) == 3 + 1
    assert "No comparisons" in figure.texts[0].get_text()


def test_two_tasks_too_many_arms_and_strangers_are_refused() -> None:
    data = study(1, ("wsd", "lc_wsd"))
    other = data.table.assign(run=data.table.run.str.replace("digits-coupled", "mnist-fixed"))
    both = FigureData(pd.concat([data.table, other]), {}, data.events)
    with pytest.raises(UsageError, match=r"the table has digits-coupled, mnist-fixed. .*grokkit figure policies"):
        figures.create("policies", both)
    with pytest.raises(UsageError, match="at most 20 pairs; got 21"):
        figures.create("policies", data, pairs=[("lc_wsd", "wsd")] * 21)
    with pytest.raises(UsageError, match="expected names among lc_wsd, wsd, best baseline; got cosine"):
        figures.create("policies", data, pairs=[("lc_wsd", "cosine")])


def test_panels_legend_and_note_do_not_overlap() -> None:
    for figure in (drawn(), drawn(seeds=4)):
        boxes = [axes.get_tightbbox() for part in figure.subfigs for axes in part.axes]
        boxes += [legend.get_window_extent() for legend in figure.subfigs[0].legends]
        boxes += [text.get_window_extent() for text in figure.texts]
        boxes += [text.get_window_extent() for part in figure.subfigs for text in part.texts]
        boxes += [part._supxlabel.get_window_extent() for part in figure.subfigs]
        width, height = figure.get_size_inches() * figure.dpi
        for i, one in enumerate(boxes):
            assert one.x0 > -1 and one.x1 < width + 1 and one.y0 > -1 and one.y1 < height + 1
            for other in boxes[i + 1 :]:
                wide = min(one.x1, other.x1) - max(one.x0, other.x0)
                high = min(one.y1, other.y1) - max(one.y0, other.y0)
                assert wide < 2 or high < 2 or one.bounds == other.bounds
