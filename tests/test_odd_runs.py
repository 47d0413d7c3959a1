"""One odd run takes nothing down: whatever lies in a run folder, it is named as odd and all the others go on.

The oddities are generated (`bench.torture.oddities`): every field of every document with every kind of value, every
kind of thing in the place of a file, whole files that hold nonsense. Each is a copy of one good run; all of them lie in
one folder beside it.
"""

import io
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import grokkit as gk
from bench.torture.oddities import ODDITIES, line, odd_status
from grokkit.analysis import tables
from grokkit.cli import main
from grokkit.errors import GrokkitError, TrajectoryError
from grokkit.escape import escape_controls
from grokkit.live import page, terminal
from grokkit.live.follow import Follower
from grokkit.live.run_browser import RunBrowser
from grokkit.trajectory import diary, documents
from grokkit.trajectory.run import write_status
from tests import live_runs

GOOD = "good-s0"
SURE = ("text", "[1]", "{", "pipe", "folder", "deep", "digits", "latin", "huge")
"""Parts of names of documents that nobody can take for good ones."""
SEEN_WRONG = (
    "status-step-word",
    "status-price-nan",
    "metrics-step-word",
    "events-line-deep",
    "metrics.jsonl-is-pipe",
    "environment-device-list",
    "config-seed_text",
    "status.json-is-[1]",
)
"""What `verify` has to find."""
SEEN_ON_PAGE = (
    "reading-unit",
    "reading-lists",
    "maps-flat",
    "maps-labels",
    "metrics-step-word",
    "config-seed_text",
    "events.jsonl-is-pipe",
    "data-classes-half",
    "measures-a-named-large",
)
"""What the page has to name as a problem."""
WITH_A_TRAP = (
    "metrics-step-minus",
    "metrics-step-int64",
    "live-LOCK-is-pipe",
    "live-LOCK-is-folder",
    "maps-infinite",
    "status-reason-escape",
    "events-text-escape",
    "diary.md-is-pipe",
    "status.json-is-deep",
    "config-dotted",
    "metrics-metric-half_pair",
    "events-run-list",
)
"""What some reader has hung on, or told without a mark; the fast set has it."""
LEFT_OUT = ("config-seed_text", "config-seed_list", "config.toml-is-pipe", "metrics.jsonl-is-pipe")
"""What no table can hold."""


@pytest.fixture(scope="module", params=[9, pytest.param(1, marks=pytest.mark.slow)])
def folder(request, tmp_path_factory) -> Path:
    """Every ninth of the oddities and those that tests name; all of them in the slow set."""
    root = tmp_path_factory.mktemp("runs") / "study"
    good = live_runs.make(root / GOOD, batch_size=50, loss="mse")
    live_runs.log(good, (1, 3.0), (2, 2.0))
    live_runs.event(good, 2, "slow", "it is slow")
    live_runs.complexity(good, 1, 2.0, 3.0)
    live_runs.maps(good, 1, np.ones((2, 1, 3, 3)))
    write_status(good, state="done", step=2, total_steps=1000, attempt=1, costs={"training": 1.0}, seconds=1.0)
    chosen = {*list(ODDITIES)[:: request.param], *SEEN_WRONG, *SEEN_ON_PAGE, *WITH_A_TRAP, *LEFT_OUT}
    for name in chosen:
        shutil.copytree(good, root / name)
        ODDITIES[name](root / name)
    return root


def odd_ones(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != GOOD)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Lines that are left out are warned of; every other warning is an error still. No git is asked."""
    monkeypatch.setattr(diary, "_describe_commit", lambda: "")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        yield


def failures(folder: Path, read) -> list[str]:
    """The oddities in which a reader raised something that is no error of ours, with what it raised."""
    found = []
    for name in odd_ones(folder):
        try:
            read(folder / name)
        except GrokkitError:
            continue
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {str(error)[:80]}")
    return found


# --- one run at a time ------------------------------------------------------------------------------------------------


def test_what_stands_in_a_document_is_good_or_an_error_that_names_the_file(folder) -> None:
    for name in odd_ones(folder):
        run = gk.open_run(folder / name)
        for document in ("status", "config", "environment"):
            try:
                told = getattr(run, document)
            except TrajectoryError as error:
                assert str(folder / name / document) in str(error) and len(str(error)) < 600
                if "-is-deep" in name and not name.startswith("config"):  # as TOML it is no nesting, but nonsense
                    assert "nested deeper than 64 levels" in str(error)
                continue
            assert isinstance(told, dict), name
            sure = name.startswith(f"{document}.") and name.rpartition("-is-")[2] in SURE
            sure = sure and name != "config.toml-is-[1]"  # an empty table with the name 1
            assert not sure, f"{name} was taken for a good {document}"


def test_no_reader_of_one_run_raises_anything_but_a_sentence(folder) -> None:
    for read in (
        repr,
        lambda run: run.state,
        lambda run: run.metrics,
        lambda run: run.events,
        lambda run: run.newest_metrics(),
        diary.read_diary,
    ):
        assert failures(folder, lambda path, read=read: read(gk.open_run(path))) == []


def test_verify_returns_sentences(folder) -> None:
    found = {name: gk.open_run(folder / name).verify() for name in odd_ones(folder)}
    assert all(isinstance(problem, str) for problems in found.values() for problem in problems)
    for name in SEEN_WRONG:
        assert found[name], name


@pytest.mark.parametrize("words", [["status"], ["status", "--verify"], ["status", "--as-json"], ["note"], ["diff"]])
def test_a_verb_of_one_run_ends_with_a_sentence(folder, words, capsys) -> None:
    verb, *flags = words

    def call(path: Path) -> None:
        more = ["kept"] if verb == "note" else [str(folder / GOOD)] if verb == "diff" else []
        code = main([verb, str(path), *more, *flags])
        said = capsys.readouterr()
        assert code in (0, 4) and (code == 0 or said.err.startswith(f"grokkit {verb}: ")), (code, said.err)
        assert not set("\x1b\x07\u202e") & set(said.out + said.err)
        if flags == ["--as-json"] and code == 0:
            json.loads(said.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    assert failures(folder, call) == []


def test_the_terminal_view_draws_every_run(folder) -> None:
    def draw(path: Path) -> None:
        follower = Follower(gk.open_run(path), maps=False)
        follower.refresh(1)
        console = Console(file=io.StringIO(), width=140)
        console.print(terminal.render(follower, 140))
        console.print(terminal.format_line(follower))
        assert not set("\x1b\x07\u202e") & set(console.file.getvalue())

    assert failures(folder, draw) == []


# --- many runs at once ------------------------------------------------------------------------------------------------


def test_ls_shows_every_run_and_why_one_cannot_be_read(folder, capsys) -> None:
    assert main(["ls", str(folder)]) == 0
    lines = {line.split()[0].rpartition("/")[2]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() >= {GOOD, *odd_ones(folder)} and " done " in lines[GOOD]
    for name in odd_ones(folder):
        try:
            state = gk.open_run(folder / name).state
        except TrajectoryError:
            state = "unreadable"
        assert f" {state} " in lines[name]
        assert (state != "unreadable") or "cannot be read" in lines[name]
    assert main(["ls", str(folder), "--as-json"]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(rows) == len(odd_ones(folder)) + 1


def test_the_page_shows_every_run_and_what_is_wrong(folder) -> None:
    study = RunBrowser([folder])
    told = study.update()
    told = study.update(groups=[group["key"] for group in told["groups"]])
    json.dumps(told, allow_nan=False)
    runs = {run["name"].rpartition("/")[2]: run for run in told["runs"].values()}
    assert runs.keys() == {GOOD, *odd_ones(folder)} and runs[GOOD]["problems"] == [] and runs[GOOD]["state"] == "done"
    drawn = {group["key"] for group in told["groups"] if runs[GOOD]["id"] in group["runs"]}
    assert any(curve["group"] in drawn for curve in told["curves"])
    for name, run in runs.items():
        try:
            state = gk.open_run(folder / name).state
        except TrajectoryError as error:
            state = "unreadable"
            assert str(error) in run["problems"]
        assert run["state"] == state, f"{name}: {run['problems']}"
        assert not any("cannot be followed" in problem for problem in run["problems"]), run["problems"]
    for name in SEEN_ON_PAGE:
        assert runs[name]["problems"], name
    for group in told["groups"]:
        for low, high in ((0, 10), (10, 0), (0, 10**15)):
            json.dumps(study.get_window(group["key"], low, high), allow_nan=False)
    assert runs["maps-infinite"]["problems"] == [], "such maps are drawn, on a scale of those that are finite"
    for run, maps in told["maps"].items():
        for each in maps:
            try:
                page.render_image(study.followers[run], each["identity"], str(each["steps"][0]))
            except TrajectoryError:
                pytest.fail(f"{study.followers[run].run.name} tells of maps that cannot be drawn")
    again = study.update(told["cursor"])
    assert again["runs"] == {}, "nothing has changed, and nothing is told again"


def test_what_nobody_foresaw_is_the_problem_of_one_run(folder, monkeypatch) -> None:
    def burst(self, tick, deep, real=Follower._read):
        return 1 / 0 if self.run.path.name == GOOD else real(self, tick, deep)

    monkeypatch.setattr(Follower, "_read", burst)
    runs = RunBrowser([folder]).update()["runs"].values()
    (good,) = (run for run in runs if run["name"].endswith(GOOD))
    assert good["state"] == "unreadable" and good["problems"][0].endswith("ZeroDivisionError: division by zero")
    assert len(runs) == len(odd_ones(folder)) + 1


def test_the_page_as_one_file_holds_every_run(folder, tmp_path) -> None:
    assert main(["export", str(folder), "--html", "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert all(f"study/{name}" in text for name in (GOOD, *odd_ones(folder)))


def test_a_table_of_all_holds_the_good_one_and_names_the_others(folder) -> None:
    runs = [folder / name for name in (GOOD, *odd_ones(folder))]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        frame = gk.table(runs)
    own = frame[frame.run == f"study/{GOOD}"].reset_index(drop=True)
    assert own.equals(gk.table(folder / GOOD))
    lost = [str(each.message) for each in said if str(each.message).startswith("skipped ")]
    for name in LEFT_OUT:
        assert any(told.startswith(f"skipped {folder / name}: ") for told in lost), name
        with pytest.raises(TrajectoryError, match=r"cannot be read"):
            gk.table(folder / name)
    with pytest.raises(TrajectoryError, match="none of the runs can be read"):
        gk.table([folder / "config-seed_text", folder / "config-seed_list"])


def test_figures_and_exports_of_all_hold_the_good_one(folder, tmp_path) -> None:
    data = gk.figure_data([folder / name for name in (*odd_ones(folder), GOOD)])
    assert f"study/{GOOD}" in set(data.table.run) and f"study/{GOOD}" in set(data.events.run)
    assert all(isinstance(name, str) for name in data.events.run)
    assert main(["export", str(folder), "--csv", "--out", str(tmp_path / "all.csv")]) == 0
    assert f"study/{GOOD}" in set(tables.read_table(tmp_path / "all.csv").run)


# --- the folder itself ------------------------------------------------------------------------------------------------


def test_a_stray_status_hides_no_run(tmp_path) -> None:
    live_runs.make(tmp_path / "study" / "a-s0")
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "study" / "status.json").mkdir()
    assert [run.path.name for run in gk.trajectory.find_runs(tmp_path)] == ["study", "a-s0"]


def test_a_name_that_is_no_text_is_shown(tmp_path, capsys) -> None:
    path = live_runs.make(Path(os.fsdecode(os.fsencode(tmp_path) + b"/study/\xff\x1b[2J-s0")))
    live_runs.log(path, (1, 1.0))
    assert main(["ls", str(tmp_path)]) == 0 and "\\udcff\\x1b[2J-s0" in capsys.readouterr().out
    told = RunBrowser([tmp_path]).update()
    assert len(told["curves"]) == 1 and json.dumps(told, allow_nan=False)
    assert main(["export", str(tmp_path), "--csv", "--out", str(tmp_path / "table.csv")]) == 0
    assert set(tables.read_table(tmp_path / "table.csv").run) == {"study/\\udcff\x1b[2J-s0"}


def test_a_run_of_an_older_version_is_read(tmp_path) -> None:
    path = live_runs.make(tmp_path / "old-s0")
    (path / "status.json").write_text('{"state": "done", "step": 4, "total_steps": null, "attempt": 1, "updated": 1.0}')
    (path / "environment.json").write_text('{"device": "cpu"}')
    line(path / "metrics.jsonl", '{"attempt":1,"metric":"loss","split":"batch","step":4,"value":NaN}')
    run = gk.open_run(path)
    assert run.state == "done" and np.isnan(run.newest_metrics()["batch.loss"])
    assert main(["status", str(path)]) == 0 and np.isnan(run.metrics.value.item())


@pytest.mark.parametrize("limit", [documents.MAX_DEPTH, documents.MAX_DEPTH + 1])
def test_the_deepest_document_that_is_read(tmp_path, limit) -> None:
    path = live_runs.make(tmp_path / "deep-s0")
    (path / "environment.json").write_text('{"a":' * limit + "1" + "}" * limit)
    if limit == documents.MAX_DEPTH:
        assert RunBrowser([tmp_path]).update()["runs"]
        assert gk.open_run(path).environment.keys() == {"a"}
    else:
        with pytest.raises(TrajectoryError, match=r"environment\.json cannot be read: it is nested deeper than 64"):
            _ = gk.open_run(path).environment


def test_an_error_says_field_value_and_what_was_expected(tmp_path) -> None:
    path = live_runs.make(tmp_path / "a-s0")
    odd_status(path, "costs", '{"training": NaN}')
    with pytest.raises(TrajectoryError) as raised:
        _ = gk.open_run(path).status
    said = "cannot be read: `costs.training` must be a finite number from 0 to 1e+15; got nan"
    assert str(raised.value) == f"{path / 'status.json'} {said}"


def test_control_characters_are_written_as_escapes() -> None:
    assert escape_controls("a\x1b[31m\r\n\t\x9b\u202e\ud800é") == "a\\x1b[31m\\r\\n\\t\\x9b\\u202e\\ud800é"
    assert escape_controls("a\nb\x07", keep="\n") == "a\nb\\x07" and escape_controls("plain é 日本") == "plain é 日本"
