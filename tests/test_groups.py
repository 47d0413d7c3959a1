"""Runs are grouped by their configuration without the seed, and groups are labelled by what differs."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.text import Text
from torch.nn import Flatten

import grokkit as gk
from grokkit import figures
from grokkit.analysis.run_groups import complete_groups
from grokkit.analysis.tables import figure_data
from grokkit.config.groups import Group, group_of, label_groups, sort_labels, split_common_name, strip_seed
from grokkit.errors import UsageError
from tests import live_runs


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("quickstart/constant-s0-ab12cd34", "quickstart/constant"),
        ("runs/mine-s12", "runs/mine"),
        ("runs/mine", "runs/mine"),
        ("runs/mine-s0-long", "runs/mine-s0-long"),  # a word is not a config hash
        ("runs/resnet-s2-deadbeef00", "runs/resnet-s2-deadbeef00"),
    ],
)
def test_only_seed_and_hash_are_stripped(name: str, stripped: str) -> None:
    assert strip_seed(name) == stripped


def test_seeds_share_a_group_and_hyper_parameters_do_not() -> None:
    slow = [group_of(f"a/b-s{seed}-0000000{seed}", {"seed": seed, "optimizer": {"lr": 0.1}}) for seed in (0, 1)]
    fast = group_of("a/b-s0-11111111", {"seed": 0, "optimizer": {"lr": 0.2}})
    assert slow[0] == slow[1] != fast and fast.name == slow[0].name == "a/b"


def test_labels_name_what_differs() -> None:
    configs = [
        {"seed": 0, "steps": 5, "optimizer": {"name": "sgd", "lr": lr, "momentum": 0.9}, "data": {"name": "digits"}}
        for lr in (0.1, 0.2)
    ]
    labels = label_groups({group_of("a/b", config): config for config in configs} | {Group("a/c", "x"): configs[0]})
    assert list(labels.values()) == ["a/b (optimizer.lr=0.1)", "a/b (optimizer.lr=0.2)", "a/c"]


def test_keys_that_change_together_are_named_once_and_missing_ones_as_missing() -> None:
    configs = [{"policy": {"name": "wsd", "decay": 0.2}}, {"policy": {"name": "constant"}}]
    assert list(label_groups({group_of("a/b", config): config for config in configs}).values()) == [
        "a/b (policy.name=wsd)",
        "a/b (policy.name=constant)",
    ]
    configs = [{"clip": 1.0}, {"steps": 5}]
    assert list(label_groups({group_of("a/b", config): config for config in configs}).values()) == [
        "a/b (clip=1.0)",
        "a/b (no clip)",
    ]


def test_labels_are_unique_also_if_long_values_are_cut_off() -> None:
    configs = [{"data": "x" * 60 + tail} for tail in "abc"]
    labels = list(label_groups({group_of("a/b", config): config for config in configs}).values())
    assert len(set(labels)) == 3 and all(len(label) < 90 for label in labels)


def test_labels_are_one_line_of_printable_text() -> None:
    configs = [{"note": note} for note in ("a\nb", "\x1b[31m", "\udc80")]
    labels = list(label_groups({group_of("a/b", config): config for config in configs}).values())
    assert labels == [r"a/b (note=a\nb)", r"a/b (note=\x1b[31m)", r"a/b (note=\udc80)"]


def test_a_grid_is_labelled_by_all_its_axes() -> None:
    configs = [{"lr": lr, "wd": wd} for lr in (1, 2) for wd in (0, 3)]
    labels = list(label_groups({group_of("g", config): config for config in configs}).values())
    assert labels == ["g (lr=1, wd=0)", "g (lr=1, wd=3)", "g (lr=2, wd=0)", "g (lr=2, wd=3)"]


def frame(*rows: tuple[str, int, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["run", "seed", "group", "config"])


def test_tables_with_the_same_label_are_told_apart_by_their_configuration() -> None:
    rows = frame(("a/b-s0", 0, "a/b", "1111"), ("a/b-s1", 1, "a/b", "1111"), ("c/b-s0", 0, "a/b", "2222"))
    found = complete_groups(rows)["group"].tolist()
    assert found == ["a/b (config 1111)", "a/b (config 1111)", "a/b (config 2222)"]
    assert complete_groups(complete_groups(rows))["group"].tolist() == found


def test_a_group_with_different_labels_in_several_tables_is_one() -> None:
    table = frame(("a/b-s0", 0, "a/b (lr=1)", "1111"), ("a/b-s0-22222222", 0, "a/b (lr=2)", "2222"))
    alone = frame(("a/b-s1", 1, "a/b", "1111"), ("a/c-s0", 0, "mine", "1111"))
    rows = pd.concat([alone, table], ignore_index=True)
    found = complete_groups(rows)["group"].tolist()
    assert found == ["a/b (lr=1)", "mine", "a/b (lr=1)", "a/b (lr=2)"]
    assert complete_groups(complete_groups(rows))["group"].tolist() == found


def test_a_table_without_groups_is_grouped_by_name_if_no_seed_has_two_runs() -> None:
    old = frame(("a/b-s0-11111111", 0, "", ""), ("a/b-s1-22222222", 1, "", ""), ("a/c-s0-33333333", 0, "", ""))
    assert complete_groups(old.drop(columns=["group", "config"]))["group"].tolist() == ["a/b", "a/b", "a/c"]
    other = frame(("a/b-s0-11111111", 0, "", ""), ("a/b-s0-22222222", 0, "", ""), ("a/c-s0-33333333", 0, "", ""))
    assert complete_groups(other)["group"].tolist() == ["a/b-s0-11111111", "a/b-s0-22222222", "a/c"]


def test_an_old_table_beside_a_new_one_of_the_same_name_is_a_group_of_its_own() -> None:
    rows = frame(("a/b-s0", 0, "a/b", "1111"), ("a/b-s1-22222222", 1, "", ""))
    assert complete_groups(rows)["group"].tolist() == ["a/b (config 1111)", "a/b (config unknown)"]


def test_rows_without_a_seed_and_empty_tables_are_grouped() -> None:
    rows = frame(("a/b-s0", 0, "", "")).assign(seed=math.nan)
    assert complete_groups(rows)["group"].tolist() == ["a/b"]
    assert complete_groups(rows.iloc[:0]).columns.tolist() == ["run", "seed", "group", "config"]


def test_a_run_given_twice_is_read_once_and_namesakes_are_refused(tmp_path: Path) -> None:
    for place in ("one", "two"):
        live_runs.log(live_runs.make(tmp_path / place / "a" / "b-s0"), (1, 0.5))
    first = tmp_path / "one" / "a" / "b-s0"
    pd.testing.assert_frame_equal(gk.table([first, first]), gk.table(first))
    with pytest.raises(UsageError, match="hold runs of the same name, a/b-s0"):
        gk.table([first, tmp_path / "two" / "a" / "b-s0"])


def test_measures_that_differ_are_named_by_their_parameter() -> None:
    configs = [{"measures": [{"name": "accuracy"}, {"name": "lc", "points": points}]} for points in (8, 64)]
    assert list(label_groups({group_of("a/b", config): config for config in configs}).values()) == [
        "a/b (measures.lc.points=8)",
        "a/b (measures.lc.points=64)",
    ]
    configs = [{"measures": [{"name": "lc", "r": r}, {"name": "lc", "r": 1}]} for r in (8, 64)]  # one name twice
    assert len(set(label_groups({group_of("a/b", config): config for config in configs}).values())) == 2


def test_labels_are_ordered_by_the_numbers_in_them() -> None:
    labels = [f"a/b (lr={rate:g})" for rate in (0.001, 0.02, 0.1, 1, 10)] + ["a/c-9", "a/c-10"]
    assert sort_labels(reversed([*labels, labels[0]])) == labels
    assert sort_labels(["1e-05", "0.002", "3", ""]) == ["", "1e-05", "0.002", "3"]


def test_a_common_name_is_split_off() -> None:
    assert split_common_name(["a/b (lr=1)", "a/b (lr=2, f(x))"]) == ("a/b", ["lr=1", "lr=2, f(x)"])
    for labels in (["a/b"], ["a/b (lr=1)"], ["a/b (lr=1)", "a/c (lr=1)"], ["a/b", "a/b (lr=1)"]):
        assert split_common_name(labels) == ("", labels)


def test_dollar_signs_in_labels_are_drawn_as_they_are(tmp_path: Path) -> None:
    runs = []
    for number, note in enumerate((r"$\frac{$", "$x_1$")):
        path = live_runs.make(tmp_path / "a" / f"b-s0-{number:08x}", note=note)
        live_runs.log(path, (1, 0.5), (2, 0.4), metric="learning_rate")
        for step in (0, 4):
            live_runs.complexity(path, step, 3.0 + number)
            live_runs.reading(path, step, "accuracy", [0.5], probe_set=("test",))
        runs.append(path)
    for name in ("phases", "layers", "paired", "policy"):
        figure = figures.create(name, figure_data(runs))
        figure.canvas.draw()
        texts = {text.get_text() for text in figure.findobj(Text)}
        assert any(r"note=\$x_1\$" in text for text in texts), name


def test_the_seed_of_a_loop_is_known_also_if_it_has_a_config_of_its_own(tmp_path: Path) -> None:
    probe = {probe.name: probe for probe in live_runs.PROBES}
    for seed in (3, 4):
        with gk.record(tmp_path / f"mine-s{seed}", Flatten(), probes=probe, seed=seed, config={"lr": 0.1}) as recorder:
            recorder.log(0, "batch", loss=0.5)
    rows = gk.table([tmp_path / "mine-s3", tmp_path / "mine-s4"])
    assert set(rows["seed"]) == {3, 4} and rows["group"].nunique() == 1
    with gk.record(tmp_path / "own", Flatten(), probes=probe, seed=3, config={"seed": 7}):
        pass
    assert gk.open_run(tmp_path / "own").config == {"seed": 7}


def test_several_runs_of_one_seed_are_no_pairs(tmp_path: Path) -> None:
    runs = []
    for name, rate in (("b-s0", 0.1), ("b-s0-11111111", 0.1), ("b-s0-22222222", 0.2)):
        runs.append(live_runs.make(tmp_path / "a" / name, lr=rate))
        live_runs.complexity(runs[-1], 1, 3.0)
    with pytest.raises(UsageError, match=r"a/b \(lr=0.1\) has several of seed 0: a/b-s0, a/b-s0-11111111. Leave"):
        figures.create("paired", figure_data(runs))
