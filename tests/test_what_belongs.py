"""What belongs to a run is known: files under other names, changed, gone or cut; only one's own is ever removed."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.errors import GrokkitError, Interrupted, MisplacedError, TrajectoryError
from grokkit.trajectory import Run, manifest, modifications, store
from grokkit.trajectory.recover import recover
from tests.callbacks import PressesCtrlC, RecordsCalls
from tests.runs import SMALL

CONFIG = SMALL.replace(
    measures=(gk.spec("accuracy"), gk.spec("weight_norm")),
    attributions=(gk.spec("saliency", images=2),),
    signal={},
    policy=gk.spec("constant"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A run that is done, the same of another seed, and one that was stopped half way."""
    root = tmp_path_factory.mktemp("runs")
    done = gk.train(CONFIG, runs=root, device="cpu")
    other = gk.train(CONFIG.replace(seed=1), runs=root, device="cpu")
    with pytest.raises(Interrupted):
        gk.train(CONFIG, runs=root / "stopped", device="cpu", callback=PressesCtrlC(14))
    return {"done": done, "other": other, "stopped": gk.open_run(root / "stopped" / CONFIG.run_name)}


@pytest.fixture
def copies(runs, tmp_path) -> dict[str, Run]:
    return {name: Run(Path(shutil.copytree(run.path, tmp_path / name / run.path.name))) for name, run in runs.items()}


def test_a_run_that_nobody_touched_has_no_problems(copies):
    for run in copies.values():
        assert run.verify() == [] and run.unlisted() == []
        assert modifications.find_modifications(run.path) == []


def test_the_manifest_lists_every_file_with_its_digest(copies):
    run = copies["done"]
    known = manifest.read_manifest(run.path)
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*.h5")}
    assert set(known.files) == {name for name in names if not name.startswith("probes/")}
    for name, record in known.files.items():
        step = record["step"]
        assert record["digest"] == manifest.checksummed.try_read_digest(run.path / name)
        assert name.startswith("resume/") or int(Path(name).stem) == step
    assert known.began["config"]["batch_size"] == 50 and set(known.began["probes"]) == {"train", "test", "random"}
    assert known.ended["state"] == "done"
    assert known.ended["logs"]["metrics.jsonl"]["bytes"] == (run.path / "metrics.jsonl").stat().st_size


# --- files under another's name ---------------------------------------------------------------------------------------


def swaps(run: Run, other: Run) -> dict[str, tuple[Path, Path]]:
    """From where to where a whole file is copied."""
    first, second = (run.path / "snapshots" / store.step_file_name(step) for step in run.steps()[:2])
    accuracy, norm = (
        next(run.path / "measures" / name for name in run.measures() if name.startswith(word))
        for word in ("accuracy", "weight_norm")
    )
    (maps,) = (run.path / "attributions" / name for name in run.attributions())
    name = store.step_file_name(0)
    return {
        "a snapshot of another step": (first, second),
        "a snapshot of another run": (other.path / "snapshots" / first.name, first),
        "a reading of another step": (accuracy / first.name, accuracy / second.name),
        "a reading of another measure": (norm / name, accuracy / name),
        "maps of another step": (maps / first.name, maps / second.name),
        "maps of another run": (next((other.path / "attributions").iterdir()) / name, maps / name),
        "a reading in the place of a snapshot": (accuracy / name, first),
        "a snapshot in the place of a state": (first, run.path / "resume" / "0.h5"),
        "a state of another run": (other.path / "resume" / "0.h5", run.path / "resume" / "0.h5"),
        "probes of another name": (run.path / "probes" / "test.h5", run.path / "probes" / "train.h5"),
        "probes of another run": (other.path / "probes" / "random.h5", run.path / "probes" / "random.h5"),
    }


SWAPS = [
    "a snapshot of another step",
    "a snapshot of another run",
    "a reading of another step",
    "a reading of another measure",
    "maps of another step",
    "maps of another run",
    "a reading in the place of a snapshot",
    "a snapshot in the place of a state",
    "a state of another run",
    "probes of another name",
    "probes of another run",
]


@pytest.mark.parametrize("what", SWAPS)
def test_a_whole_file_under_the_name_of_another_is_told(copies, what):
    run = copies["done"]
    source, target = swaps(run, copies["other"])[what]
    if source.read_bytes() == target.read_bytes():
        pytest.skip("the two runs have the same")
    shutil.copy(source, target)
    assert [problem for problem in run.verify() if str(target) in problem], run.verify()


def test_the_list_of_swaps_is_whole(copies):
    assert list(swaps(copies["done"], copies["other"])) == SWAPS


def test_a_read_holds_content_against_the_name(copies):
    run = copies["done"]
    moved = swaps(run, run)
    for what in SWAPS:
        source, target = moved[what]
        if "of another run" not in what and what != "a snapshot in the place of a state":
            kept = target.read_bytes()
            shutil.copy(source, target)
            with pytest.raises(MisplacedError):
                _read(run, target)
            target.write_bytes(kept)
    assert run.verify() == []


def _read(run: Run, path: Path) -> None:
    step = int(path.stem) if path.stem.isdecimal() else 0
    match path.parent.name, path.parent.parent.name:
        case "snapshots", _:
            with pytest.raises(MisplacedError):
                run.load(step, verify=False)
            with pytest.raises(MisplacedError):
                run.load(step, ["net.0.weight"])
            with pytest.raises(MisplacedError):
                run.trajectory(next(iter(run.load(run.steps()[-1]))))
            run.load(step)
        case identity, "measures":
            run.reading(identity, step)
        case identity, "attributions":
            run.attribution(identity, step)
        case "probes", _:
            assert run.probes


def test_a_trajectory_does_not_take_another_steps_file_for_its_own(copies):
    """The fast way reads places alone; all files but one are of one form."""
    run = copies["done"]
    name = next(iter(run.load(0)))
    last = run.path / "snapshots" / store.step_file_name(run.steps()[-1])
    shutil.copy(run.path / "snapshots" / store.step_file_name(run.steps()[1]), last)
    with pytest.raises(MisplacedError, match="another file was copied to its name"):
        run.trajectory(name)


# --- changed, gone, cut -----------------------------------------------------------------------------------------------


def edited(file: str, old: str, new: str) -> Callable[[Run], None]:
    def edit(run: Run) -> None:
        text = (run.path / file).read_text()
        assert old in text
        (run.path / file).write_text(text.replace(old, new, 1))

    return edit


def gone(name: str) -> Callable[[Run], None]:
    return lambda run: (run.path / name).unlink()


def cut(name: str, left: float) -> Callable[[Run], None]:
    return lambda run: os.truncate(run.path / name, int((run.path / name).stat().st_size * left))


def cut_after_a_line(name: str) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        lines = (run.path / name).read_bytes().splitlines(keepends=True)
        (run.path / name).write_bytes(b"".join(lines[:-2]))

    return change


def without_a_line(name: str) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        lines = (run.path / name).read_bytes().splitlines(keepends=True)
        (run.path / name).write_bytes(b"".join([*lines[:1], *lines[2:], lines[1]]))

    return change


def added_snapshot(run: Run) -> None:
    from grokkit.trajectory import snapshot

    snapshot.write_snapshot(run.path / "snapshots" / store.step_file_name(7), 7, {"x": torch.ones(2)})


def doubled(name: str) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        lines = (run.path / name).read_bytes().splitlines(keepends=True)
        (run.path / name).write_bytes(b"".join([*lines[:3], lines[2], *lines[3:]]))

    return change


CHANGES: dict[str, tuple[Callable[[Run], None], str]] = {
    "batch size": (edited("config.toml", "batch_size = 50", "batch_size = 51"), "batch_size was 50 and is 51"),
    "a nested choice": (edited("config.toml", "size = 8", "size = 9"), "data.size was 8 and is 9"),
    "a choice of another form": (edited("config.toml", 'name = "digits"', "name = 3"), "data.name was"),
    "a choice that is gone": (edited("config.toml", "batch_size = 50\n", ""), "batch_size was 50 and is missing"),
    "a choice more": (
        edited("config.toml", "batch_size = 50", "batch_size = 50\nclip_at = 3"),
        "clip_at was missing",
    ),
    "another type": (edited("config.toml", "batch_size = 50", "batch_size = 50.0"), "batch_size was 50 and is 50.0"),
    "null more": (
        edited("environment.json", '"hash": "', '"more": null, "hash": "'),
        "data.more was missing and is null",
    ),
    "only a remark": (edited("config.toml", "batch_size = 50", "batch_size = 50  # really"), "its text differs"),
    "the hash of the data": (edited("environment.json", '"hash": "', '"hash": "0'), "data.hash was"),
    "the mean of the data": (edited("environment.json", '"mean": [', '"mean": [0.25, '), "data.mean was"),
    "the versions": (edited("environment.json", '"torch": "', '"torch": "9'), "versions.torch was"),
    "a snapshot gone": (gone("snapshots/000000000000.h5"), "000000000000.h5 is missing"),
    "probes gone": (gone("probes/train.h5"), "probes/train.h5 is missing"),
    "config gone": (gone("config.toml"), "config.toml"),
    "metrics gone": (gone("metrics.jsonl"), "metrics.jsonl is missing"),
    "events gone": (gone("events.jsonl"), "events.jsonl is missing"),
    "metrics cut": (cut("metrics.jsonl", 0.5), "metrics.jsonl was truncated"),
    "metrics cut after a line": (cut_after_a_line("metrics.jsonl"), "metrics.jsonl was truncated"),
    "metrics in another order": (without_a_line("metrics.jsonl"), "metrics.jsonl was changed"),
    "metrics empty": (cut("metrics.jsonl", 0.0), "metrics.jsonl was truncated"),
    "manifest cut": (cut("MANIFEST", 0.5), "MANIFEST was truncated"),
    "manifest cut after a line": (cut_after_a_line("MANIFEST"), "MANIFEST was truncated"),
    "a line of the manifest doubled": (doubled("MANIFEST"), "bytes do not end with the line of the run's end"),
    "the manifest in another order": (without_a_line("MANIFEST"), "bytes do not end with the line of the run's end"),
    "manifest gone": (gone("MANIFEST"), "MANIFEST is missing"),
    "a snapshot more": (added_snapshot, "did not exist when the run ended: the manifest does not list it"),
    "a damaged line of the manifest": (edited("MANIFEST", '"step":0', '"step":1'), "of {run}/MANIFEST is damaged"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_verify_says_what_was_changed_and_which_field(copies, what):
    run = copies["done"]
    change, said = CHANGES[what]
    if what == "events gone" and not (run.path / "events.jsonl").stat().st_size:
        pytest.skip("it was empty")
    change(run)
    wanted = said.format(run=run.path)
    assert [problem for problem in run.verify() if wanted in problem], run.verify()


REFUSED = [
    "batch size",
    "a nested choice",
    "a choice of another form",
    "another type",
    "null more",
    "a choice that is gone",
    "a choice more",
    "the hash of the data",
    "the mean of the data",
    "the versions",
    "probes gone",
    "config gone",
]


@pytest.mark.parametrize("what", REFUSED)
def test_neither_resume_nor_replay_makes_another_run_of_it(copies, what):
    run = copies["stopped"]
    change, said = CHANGES[what]
    change(run)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "LOCK"}
    for go_on in (lambda: gk.resume(run.path, device="cpu"), lambda: gk.replay_run(run, ["loss"], device="cpu")):
        with pytest.raises(GrokkitError, match=said.split(" was ")[0].replace(".", r"\.")):
            go_on()
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "LOCK"}
    assert before == after


def test_a_run_whose_manifest_lost_its_begin_is_not_begun_again(copies):
    """Its states say of which run they are, and nothing says which run this is."""
    run = copies["stopped"]
    path = run.path / "MANIFEST"
    content = path.read_bytes()
    path.write_bytes(content[content.index(b"\n") + 1 :])
    for go_on in (lambda: gk.resume(run.path, device="cpu"), lambda: gk.replay_run(run, ["loss"], device="cpu")):
        with pytest.raises(TrajectoryError, match="MANIFEST does not record how the run began"):
            go_on()
    path.unlink()
    done = gk.resume(run.path, device="cpu")
    assert done.metrics.equals(copies["done"].metrics.assign(run=done.name))
    assert not [event for event in done.events if event["kind"] == "restarted"]


def test_the_lines_of_a_manifest_may_stand_in_another_order(copies):
    run = copies["stopped"]
    first, second, *others = (run.path / "MANIFEST").read_bytes().splitlines(keepends=True)
    (run.path / "MANIFEST").write_bytes(b"".join([second, first, *others]))
    assert run.verify() == []
    done = gk.resume(run.path, device="cpu")
    assert done.metrics.equals(copies["done"].metrics.assign(run=done.name))
    assert not [event for event in done.events if event["kind"] == "restarted"]


@pytest.mark.parametrize("what", ["a snapshot gone", "metrics cut", "metrics gone"])
def test_resume_says_what_is_gone_and_goes_on(copies, what):
    run = copies["stopped"]
    change, said = CHANGES[what]
    if "metrics" in what:
        change = cut_after_a_line("metrics.jsonl") if "cut" in what else change
    change(run)
    records = RecordsCalls()
    done = gk.resume(run.path, device="cpu", callback=records)
    assert done.status["state"] == "done" and any(said in text for text in records.texts("changed"))
    assert [event["text"] for event in done.events if event["kind"] == "changed"] == records.texts("changed")


def test_the_event_of_an_attempt_tells_its_versions_and_device(copies):
    done = gk.resume(copies["stopped"].path, device="cpu")
    (resumed,) = (event for event in done.events if event["kind"] == "resumed")
    assert torch.__version__.startswith(resumed["versions"]["torch"]) and resumed["device"] and resumed["python"]


def test_a_diary_figures_and_later_readings_are_no_faults(copies):
    run = copies["done"]
    gk.replay_run(run, ["loss"], device="cpu")
    (run.path / "figures").mkdir()
    (run.path / "figures" / "mine.h5").write_text("a person's own")
    (run.path / "diary.md").write_text("I saw it")
    (run.path / "snapshots" / "best.h5").write_text("a person's own")
    (run.path / "measures" / "mine-1").mkdir()
    assert run.verify() == [] and run.unlisted() == []
    assert "loss" in " ".join(manifest.read_manifest(run.path).files)
    assert recover(run.path) == [] and (run.path / "snapshots" / "best.h5").exists()


def test_what_a_killed_run_cannot_know_is_no_fault_and_is_listed_when_it_goes_on(copies):
    run = copies["stopped"]
    lines = (run.path / "MANIFEST").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"kind":"ended"' not in line][:-3]
    (run.path / "MANIFEST").write_bytes(b"".join(kept) + lines[-1][:20])
    status = json.loads((run.path / "status.json").read_text())
    status |= {"state": "running", "manifest": sum(map(len, kept))}
    (run.path / "status.json").write_text(json.dumps(status))
    assert run.verify() == []
    assert len(run.unlisted()) >= 1
    done = gk.resume(run.path, device="cpu")
    assert done.verify() == [] and done.unlisted() == []


def test_a_run_of_an_older_version_is_read_resumed_and_known_from_then_on(copies):
    run = copies["stopped"]
    (run.path / "MANIFEST").unlink()
    status = json.loads((run.path / "status.json").read_text())
    del status["manifest"]
    (run.path / "status.json").write_text(json.dumps(status))
    assert run.verify() == []
    gk.replay_run(run, ["loss"], device="cpu")
    assert not (run.path / "MANIFEST").exists()
    done = gk.resume(run.path, device="cpu")
    assert done.verify() == [] and manifest.read_manifest(run.path).has_preexisting_files
    edited("config.toml", "batch_size = 50", "batch_size = 51")(done)
    assert [problem for problem in done.verify() if "batch_size was 50 and is 51" in problem]


def test_a_state_that_was_put_back_from_a_copy_is_taken_and_told(copies, tmp_path):
    """An older state of the run itself: going on from it is right, and `verify` says that it is not the newest."""
    run, straight = copies["stopped"], copies["done"]
    kept = {path.name: path.read_bytes() for path in (run.path / "resume").iterdir()}
    with pytest.raises(Interrupted):
        gk.resume(run.path, device="cpu", callback=PressesCtrlC(20))
    for name, content in kept.items():
        (run.path / "resume" / name).write_bytes(content)
    done = gk.resume(run.path, device="cpu")
    assert done.metrics.equals(straight.metrics.assign(run=done.name)) and done.verify() == []


@pytest.mark.parametrize("both", [False, True])
def test_a_state_of_another_run_is_never_loaded(copies, both):
    run, other = copies["stopped"], copies["other"]
    for name in ("0.h5", "1.h5") if both else ("0.h5",):
        source = next(path for path in (other.path / "resume").iterdir())
        shutil.copy(source, run.path / "resume" / name)
    if both or not (run.path / "resume" / "1.h5").exists():
        with pytest.raises(TrajectoryError, match="belong to two different runs: restore"):
            gk.resume(run.path, device="cpu")
        assert not (run.path / "quarantine").exists()
    else:
        with pytest.warns(UserWarning, match="is the state of another run; it was moved to"):
            gk.resume(run.path, device="cpu")


# --- only what is one's own is removed --------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


PROBES = gk.probe_sets(gk.load_data("digits", size=8), train=8, test=8)


def test_a_failure_at_step_0_removes_no_run_of_another_writer(tmp_path):
    """While step 0 is measured the path comes to hold another writer's finished run."""
    path, elsewhere = tmp_path / "run", tmp_path / "moved"

    @dataclasses.dataclass(frozen=True)
    class Moves:
        def __call__(self, context):
            path.rename(elsewhere)
            with gk.record(path, net(), probes=PROBES, measures=["weight_norm"], schedule=[1]) as other:
                other.step(1)
            raise ValueError("this measure fails")

    from grokkit.measures import registry

    registry.register("moves_away")(Moves)
    try:
        with pytest.raises(ValueError, match="this measure fails"):
            gk.record(path, net(), probes=PROBES, measures=["moves_away"])
    finally:
        registry._members.pop("moves_away")
    assert gk.open_run(path).status["state"] == "done" and gk.open_run(path).verify() == []
    assert gk.open_run(path).steps() == [0, 1]


def test_a_failure_at_step_0_removes_ones_own_folder(tmp_path):
    with pytest.raises(GrokkitError):
        gk.record(tmp_path / "run", net(), probes=PROBES, measures=[gk.spec("accuracy", probe_sets=("none",))])
    assert not list(tmp_path.iterdir())


def test_a_signal_that_cannot_be_leaves_no_folder(tmp_path):
    with pytest.raises(GrokkitError):
        gk.record(tmp_path / "run", net(), probes=PROBES, signal={"every": 1, "probe_set": "nobody"})
    assert not list(tmp_path.iterdir())


def test_recover_removes_files_and_folders_of_its_own_pattern_alone(copies):
    run = copies["stopped"]
    own = [run.path / "snapshots" / ".000000000030.h5.1a2b3c4d.tmp", run.path / ".status.json.00ff00ff.tmp"]
    for path in own:
        path.write_bytes(b"half")
    draft = run.path / ".weights.1a2b3c4d.tmp"
    (draft / "within").mkdir(parents=True)
    (draft / "within" / "step.safetensors").write_bytes(b"half")
    persons = [
        run.path / ".notes.tmp",
        run.path / ".draft.2026.tmp",
        run.path / "snapshots" / ".mine.tmp",
        run.path / "measures" / ".swp.tmp",
        run.path / "paper.1a2b3c4d.tmp",
    ]
    for path in persons:
        path.write_bytes(b"a person's own")
    (run.path / ".folder.tmp").mkdir()
    done = gk.resume(run.path, device="cpu")
    assert done.status["state"] == "done"
    assert not draft.exists() and not any(path.exists() for path in own)
    assert all(path.read_bytes() == b"a person's own" for path in persons) and (run.path / ".folder.tmp").is_dir()


def test_the_draft_of_a_living_export_is_left_to_it(copies):
    run = copies["stopped"]
    draft = run.path / ".weights.1a2b3c4d.tmp"
    code = (
        "import sys, time; from pathlib import Path; from grokkit.trajectory.lock import locked_draft\n"
        "with locked_draft(Path(sys.argv[1])):\n    print('filling', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(draft)], stdout=subprocess.PIPE)
    with other, other.stdout as said:
        assert said.readline() == b"filling\n"
        assert recover(run.path) == [] and draft.is_dir()
        other.kill()
    assert recover(run.path) == [] and not draft.exists()


def test_an_export_killed_amid_its_work_leaves_the_run_resumable(copies):
    pytest.importorskip("safetensors")
    run = copies["stopped"]
    code = (
        "import time, sys; from grokkit.trajectory.run import Run; from grokkit import cli\n"
        "def slow(self, step, path): path.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
        "Run.to_safetensors = slow\n"
        "cli.main(['export', sys.argv[1], '--safetensors', '--out', sys.argv[1] + '/weights'])"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    with other, other.stdout as said:
        assert said.readline() == b"writing\n"
        other.kill()
    time.sleep(0.1)
    assert len(list(run.path.glob(".weights.*.tmp"))) == 1
    assert gk.resume(run.path, device="cpu").status["state"] == "done"
    assert not list(run.path.glob(".weights.*.tmp"))


def test_a_stack_that_fails_at_step_0_removes_no_run_that_another_made_meanwhile(tmp_path, monkeypatch):
    from grokkit.training import trainer

    paths = [tmp_path / CONFIG.replace(seed=seed).run_name for seed in (0, 1)]
    record, made = trainer.record, []

    def meanwhile(path, *arguments, **options):
        if made:
            gk.record(path, net(), probes=PROBES, measures=[], schedule=[]).close()
        made.append(path)
        return record(path, *arguments, **options)

    monkeypatch.setattr(trainer, "record", meanwhile)
    with pytest.raises(TrajectoryError, match="already exists"):
        gk.train_seeds(CONFIG, [0, 1], runs=tmp_path, device="cpu")
    assert not paths[0].exists() and gk.open_run(paths[1]).status["state"] == "done"
