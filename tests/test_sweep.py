"""A sweep file and its queue: which runs, in what order, on which GPU, and what happens when one fails or stops."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import grokkit as gk
from grokkit import interrupt
from grokkit.cli import main
from grokkit.errors import DataError, DeviceRefusedError, Interrupted, TrajectoryError, UsageError
from grokkit.interrupt import StopRequest
from grokkit.sweep import queue as queue_module
from grokkit.sweep.cluster import connect
from grokkit.sweep.local import LocalLauncher, list_visible_gpus
from grokkit.sweep.plan import read_plan, validate_plan
from grokkit.sweep.queue import MAX_ATTEMPTS_WITHOUT_PROGRESS, Launcher, Queue
from grokkit.sweep.run_status import SweepFolder, collect_statuses, read_last_line
from tests.runs import SMALL, contents

STUDY = '''"""Two small arms."""
from grokkit import RunConfig, spec

def plain() -> RunConfig:
    return RunConfig(
        experiment="study", variant="plain", data=spec("digits", size=8, train=60), model=spec("mlp", widths=(4,)),
        optimizer=spec("sgd", lr=0.1, momentum=0.9), batch_size=20, steps=6, records=3,
        probes={"train": 8, "test": 8, "random": 4},
    )

def scaled() -> RunConfig:
    return plain().replace(variant="scaled", init_scale=2.0)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("study.py").write_text(STUDY)
    return tmp_path


def planned(text: str):
    Path("night.toml").write_text(text)
    return read_plan(Path("night.toml"))


# What a file asks for


def test_variants_grid_and_seeds_multiply_one_seed_of_everything_first(folder) -> None:
    plan = planned('experiment = "study.py"\nseeds = "0-1"\nsteps = 4\n[grid]\n"optimizer.lr" = [0.1, 0.03]\n')
    told = [(run.config.variant, run.config.seed, run.config.optimizer.options["lr"]) for run in plan.runs]
    assert told == [
        ("plain", 0, 0.1),
        ("plain", 0, 0.03),
        ("scaled", 0, 0.1),
        ("scaled", 0, 0.03),
        ("plain", 1, 0.1),
        ("plain", 1, 0.03),
        ("scaled", 1, 0.1),
        ("scaled", 1, 0.03),
    ]
    assert [dict(run.changes) for run in plan.runs][1] == {"optimizer.lr": 0.03, "steps": 4}
    assert plan.runs[3].config.optimizer.options == {"lr": 0.03, "momentum": 0.9} and plan.name == "night"
    assert all(run.config.steps == 4 and run.study.source == STUDY for run in plan.runs)


def test_entries_have_the_keys_at_the_top_unless_they_say_otherwise(folder) -> None:
    plan = planned(
        'experiment = "study.py:plain"\nseeds = [3]\ngrid.batch_size = 10\ndevice = "cpu"\n'
        '[[run]]\nname = "wide"\ngrid = { model.widths = [[8], [8, 8]] }\n'
        '[[run]]\nexperiment = "study.py:scaled"\nseeds = 5\nafter = "wide"\n'
        'grid = { model = ["nin", {name = "mlp", widths = [3]}], augment = [["flip"]], batch_size = 20 }\n'
    )
    told = [
        (run.config.model.name, dict(run.config.model.options), run.config.seed, run.config.batch_size, run.after)
        for run in plan.runs
    ]
    assert told == [
        ("mlp", {"widths": [8]}, 3, 10, ()),
        ("mlp", {"widths": [8, 8]}, 3, 10, ()),
        ("nin", {}, 5, 20, ("wide",)),
        ("mlp", {"widths": [3]}, 5, 20, ("wide",)),
    ]
    assert plan.runs[2].config.augment == ("flip",) and plan.device == "cpu"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('experiment = "study.py"\nsedes = "0"', "unknown key 'sedes'. Did you mean 'seeds'"),
        ('[[run]]\nexperiment = "study.py"\nafterr = "x"', r"\[\[run\]\] 1: unknown key 'afterr'. Did you mean"),
        ('experiment = "study.py"\n"optimizer.lr" = 0.1', "such as optimizer.lr, belong under"),
        ('experiment = "study.py"\ngrid.optimiser.lr = 0.1', "no field 'optimiser.lr'. Did you mean 'optimizer'"),
        ('experiment = "study.py"\ngrid.optimizer.momentumm = 1', "no option 'momentumm'. Did you mean 'momentum'"),
        ('experiment = "study.py"\ngrid.optimizer = "sdg"', "Did you mean 'sgd'"),
        ('experiment = "study.py"\ngrid.model.width = 3', "unknown parameter 'width' of .*Did you mean 'widths'"),
        ('experiment = "study.py"\ngrid.data.trian = 3', "unknown parameter 'trian' of .*Did you mean 'train'"),
        ('experiment = "study.py"\ngrid.measures = [["acuracy"]]', "Did you mean 'accuracy'"),
        ('experiment = "study.py"\ngrid.measures = "accuracy"', "`measures` takes a list"),
        ('experiment = "study.py"\ngrid.measures.points = 3', "`measures` has no named fields; set it as a whole"),
        ('experiment = "study.py"\ngrid.signal.evry = 3', "Did you mean 'every'"),
        ('experiment = "study.py"\ngrid.model = 3', "`model` takes a name, or a table"),
        ('experiment = "study.py"\ngrid.steps = 0', "`steps` must be an int of at least 1; got 0"),
        ('experiment = "study.py"\ngrid = 3', "`grid` must be a table such as"),
        ('experiment = "study.py"\nseeds = "3-1"', "increasing ranges"),
        ('experiment = "study.py"\nseeds = 0.5', '`seeds` must be text such as "0-3"'),
        ('experiment = "study.py"\ndevice = "gpu"', "`device` must be cpu or cuda; got 'gpu'"),
        ('experiment = "study.py"\nrun = 3', "with two brackets"),
        ('experiment = "study.py"\nrun = ["x"]', "with two brackets"),
        ('experiment = "study.py"\n[[run]]\nafter = 3', "`name` must be text, and `after` the name of another"),
        ('experiment = "study.py"\n[[run]]\nafter = ["a", 3]', "`name` must be text, and `after` the name of another"),
        ('experiment = "study.py"\n[[run]]\nname = ["a"]', "`name` must be text, and `after` the name of another"),
        ('experiment = "study.py"\ngrid.optimizer.lr = []', "`optimizer.lr` in the grid is an empty list"),
        ('seeds = "0"', "`experiment` must be the name of an experiment"),
        ('experiment = "study.py"\n[grid]\nbatch_size = [10, 10]', "the same run twice: study/plain-s0-"),
        (
            '[[run]]\nname = "a"\nexperiment = "study.py"\n[[run]]\nexperiment = "study.py"\nseeds = 1\nafter = "b"',
            "`after` names 'b', but no",
        ),
        ('[[run]]\nname = "a"\nexperiment = "study.py"\nafter = "a"', "'a' waits for itself"),
        (
            '[[run]]\nname = "a"\nexperiment = "study.py:plain"\nafter = "b"\n'
            '[[run]]\nname = "b"\nexperiment = "study.py:scaled"\nafter = "a"',
            "is circular",
        ),
        (
            '[[run]]\nname = "a"\nexperiment = "study.py:plain"\n[[run]]\nname = "a"\nexperiment = "study.py:scaled"',
            "two .* have the name 'a'",
        ),
    ],
    ids=lambda value: value.split("\n")[-1],
)
def test_a_mistake_in_the_file_is_named_before_anything_starts(folder, text, sentence) -> None:
    with pytest.raises(UsageError, match=sentence):
        validate_plan(planned(text))


def test_the_file_in_the_docs_asks_for_what_they_say(folder) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "sweep.md").read_text()
    plan = planned(re.search("```toml\n(.*?)```", page, re.DOTALL)[1])
    validate_plan(plan)
    assert len(plan.runs_in_group("rates")) == 2 * 2 * 3 and plan.runs[12].after == ("rates",) and len(plan.runs) == 13


def test_missing_files_are_named(folder, capsys) -> None:
    with pytest.raises(DataError, match=r"no file or folder .own\.npz"):
        validate_plan(planned('experiment = "study.py"\ndata = "own.npz"'))
    assert main(["sweep", "nowhere.toml"]) == 4 and "sweep file nowhere.toml not found" in capsys.readouterr().err
    Path("torn.toml").write_text("a = ")
    assert main(["sweep", "torn.toml"]) == 4 and "is not TOML" in capsys.readouterr().err


def test_a_dry_run_lists_folders_and_differences_and_starts_nothing(folder, capsys) -> None:
    planned('experiment = "study.py:plain"\nseeds = "0-1"\n[grid]\n"optimizer.lr" = [0.5]\n')
    assert main(["sweep", "night.toml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("runs/study/plain-s") == 2 and "seed=1 optimizer.lr=0.5" in said and not Path("runs").exists()
    assert main(["sweep", "night.toml", "--dry-run", "--as-json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["changes"] == {"optimizer.lr": 0.5} and second["changes"] == {"seed": 1, "optimizer.lr": 0.5}


# The queue, with acted processes


class Acted:
    """A process that acts: it writes the run's folder as its script says and ends with the script's exit code."""

    def __init__(self, stage, words: list[str], log: Path) -> None:
        self.location, self._stage = "the stage", stage
        self.run = stage.run_of(words)
        self.key = stage.key(self.run)
        stage.started.append((words[0], self.key))
        self._looks = 0

    def poll(self) -> int | None:
        self._looks += 1
        if self._looks < 2:
            return None
        acts = self._stage.script.get(self.key, [(6, 0)])
        step, code = acts.pop(0) if len(acts) > 1 else acts[0]
        self._stage.play(self.run, step, code)
        self._stage.busy -= 1
        return code

    def stop(self) -> None:
        self._stage.script[self.key] = [(3, 75)]


class Stage:
    """A launcher of acted processes.

    Args:
        script: `variant-seed` -> steps and exit codes of its attempts, the last one for ever; by default it is done.
        room: processes at a time.
    """

    def __init__(self, plan, script=None, room: int = 1) -> None:
        self.plan, self.script, self.room, self.busy = plan, dict(script or {}), room, 0
        self.started: list[tuple[str, str]] = []
        self.most = 0

    def key(self, run) -> str:
        return f"{run.config.variant}-{run.config.seed}"

    def run_of(self, words):
        name = words[1] if words[0] == "resume" else words[words.index("--config") + 1]
        return next(run for run in self.plan.runs if Path(run.config.run_name).name in name)

    def start(self, words, log: Path):
        if self.busy >= self.room:
            return None
        self.busy += 1
        self.most = max(self.most, self.busy)
        return Acted(self, list(words), log)

    def play(self, run, step: int, code: int) -> None:
        if step < 0:
            return
        path = Path("runs") / run.config.run_name
        path.mkdir(parents=True, exist_ok=True)
        state = {0: "done", 75: "interrupted", -9: "running", 130: "running"}.get(code, "failed")
        told = {"state": state, "step": step, "attempt": 1, "reason": f"code {code}", "costs": {"training": 2.0}}
        (path / "status.json").write_text(json.dumps(told))


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(queue_module, "POLL_SECONDS", 0.001)


def work(plan, stage, **options):
    said: list[str] = []
    stands = Queue(plan, SweepFolder(Path("runs"), plan.name), stage, on_message=said.append, **options).work()
    return {stage.key(run): each for run, each in stands.items()}, said


ORDERED = (
    '[[run]]\nname = "last"\nexperiment = "study.py:scaled"\nseeds = 1\nafter = ["pair", "one"]\n'
    '[[run]]\nname = "pair"\nexperiment = "study.py:plain"\nseeds = "0-1"\n'
    '[[run]]\nname = "one"\nexperiment = "study.py:scaled"\nseeds = 0\nafter = "pair"\n'
)


def test_a_run_waits_until_every_run_of_the_group_is_done(folder) -> None:
    plan = planned(ORDERED)
    stage = Stage(plan, room=5)
    stands, _ = work(plan, stage)
    assert [key for _, key in stage.started] == ["plain-0", "plain-1", "scaled-0", "scaled-1"] and stage.most == 2
    assert {each.state for each in stands.values()} == {"done"}


def test_a_failure_passes_by_all_but_what_waits_for_it(folder) -> None:
    plan = planned(ORDERED + '[[run]]\nexperiment = "study.py:scaled"\nseeds = 7\n')
    stage = Stage(plan, {"plain-0": [(2, 5)]})
    stands, said = work(plan, stage)
    assert {key: each.state for key, each in stands.items()} == {
        "plain-0": "failed",
        "plain-1": "done",
        "scaled-0": "skipped",
        "scaled-1": "skipped",
        "scaled-7": "done",
    }
    assert stands["plain-0"].reason == "code 5" and "waits for pair, and study/plain-s0-" in stands["scaled-0"].reason
    assert "was skipped" in stands["scaled-1"].reason or "failed" in stands["scaled-1"].reason
    assert any(line.startswith("failed") and "code 5" in line for line in said)
    told = {
        stage.key(run): each.state for run, each in collect_statuses(plan, SweepFolder(Path("runs"), "night")).items()
    }
    assert told == {key: each.state for key, each in stands.items()}, "the folders alone say the same"


def test_a_preempted_run_is_resumed_and_given_up_only_without_progress(folder) -> None:
    plan = planned('experiment = "study.py"\n')
    stage = Stage(
        plan, {"plain-0": [(-1, 75), (1, -9), (2, 130), (3, 75), (4, 75), (5, 75), (6, 0)], "scaled-0": [(2, 75)]}
    )
    stands, said = work(plan, stage)
    assert stands["plain-0"].state == "done"
    assert stage.started[:7] == [("train", "plain-0")] * 2 + [("resume", "plain-0")] * 5
    tries = [verb for verb, key in stage.started if key == "scaled-0"]
    assert tries == ["train"] + ["resume"] * MAX_ATTEMPTS_WITHOUT_PROGRESS, (
        "the first attempt saved two steps, no later one any"
    )
    assert stands["scaled-0"].state == "failed" and "given up after 3 attempts" in stands["scaled-0"].reason
    assert sum(line.startswith("preempted") for line in said) == 6 + MAX_ATTEMPTS_WITHOUT_PROGRESS


def test_the_same_command_passes_by_what_is_done_and_resumes_what_is_not(folder) -> None:
    plan = planned('experiment = "study.py:plain"\nseeds = "0-4"\n')
    before = Stage(plan)
    for seed, code in ((0, 0), (1, 75), (2, 5), (3, -9)):
        before.play(plan.runs[seed], 3, code)
    stage = Stage(plan)
    stands, said = work(plan, stage)
    assert stage.started == [("resume", "plain-1"), ("resume", "plain-3"), ("train", "plain-4")]
    assert stands["plain-2"].state == "failed" and stands["plain-3"].state == "done"
    assert said[0] == "5 runs: 1 done, 1 failed, 2 interrupted, 1 waiting"
    stage.started.clear()
    stands, _ = work(plan, stage, retry_failed=True)
    assert stage.started == [("resume", "plain-2")] and {each.state for each in stands.values()} == {"done"}


def test_a_run_that_another_process_trains_is_waited_for(folder) -> None:
    plan = planned('experiment = "study.py:plain"\nseeds = "0-1"\n')
    stage = Stage(plan)
    stage.play(plan.runs[0], 3, -9)
    path = Path("runs") / plan.runs[0].config.run_name
    with open(path / "LOCK", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        class Other(Stage):
            def start(self, words, log):
                if not file.closed and self.run_of(words) is plan.runs[1]:
                    self.play(plan.runs[0], 6, 0)
                    file.close()
                return super().start(words, log)

        stage = Other(plan)
        stands, _ = work(plan, stage)
    assert stage.started == [("train", "plain-1")] and stands["plain-0"].state == "done"


def test_a_run_whose_process_outlived_its_queue_is_waited_for(folder) -> None:
    plan = planned('experiment = "study.py:plain"\nseeds = "0-1"\n')
    with open("held", "w") as held:

        class Orphaned(Stage):
            def play(self, run, step, code):
                super().play(run, step, -9 if code == 4 else code)  # refused: another process writes the run
                if code == 4:
                    lock = open(Path("runs") / run.config.run_name / "LOCK", "w")  # noqa: SIM115
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    os.dup2(lock.fileno(), held.fileno())
                    lock.close()
                elif run is plan.runs[1]:
                    super().play(plan.runs[0], 6, 0)
                    held.close()

        stage = Orphaned(plan, {"plain-0": [(3, 4)]})
        stands, said = work(plan, stage)
    assert stage.started == [("train", "plain-0"), ("train", "plain-1")]
    assert {each.state for each in stands.values()} == {"done"} and any("in another process" in line for line in said)


def test_an_attempt_that_does_not_begin_is_told_by_its_last_words(folder) -> None:
    plan = planned('experiment = "study.py:plain"\n')
    Stage(plan).play(plan.runs[0], 3, 75)

    class Refused(Stage):
        def start(self, words, log):
            log.write_text("grokkit resume: it is being written by process 7\n")
            return super().start(words, log)

        def play(self, run, step, code): ...

    stands, _ = work(plan, Refused(plan, {"plain-0": [(3, 4)]}))
    assert (stands["plain-0"].state, stands["plain-0"].reason) == (
        "failed",
        "grokkit resume: it is being written by process 7",
    )


def test_a_run_that_fails_before_it_has_a_folder_is_told_by_its_last_words(folder) -> None:
    plan = planned('experiment = "study.py:plain"\n')

    class Speaking(Stage):
        def start(self, words, log):
            log.write_text("grokkit train: the data are gone\n")
            return super().start(words, log)

    stands, _ = work(plan, Speaking(plan, {"plain-0": [(-1, 4)]}))
    assert stands["plain-0"].state == "failed" and stands["plain-0"].reason == "grokkit train: the data are gone"
    again = collect_statuses(plan, SweepFolder(Path("runs"), "night"))[plan.runs[0]]
    assert (again.state, again.reason) == ("failed", "grokkit train: the data are gone")


def test_a_folder_that_cannot_be_read_is_a_failure_of_that_run_alone(folder) -> None:
    plan = planned('experiment = "study.py:plain"\nseeds = "0-1"\n')
    stage = Stage(plan)
    stage.play(plan.runs[0], 3, 0)
    (Path("runs") / plan.runs[0].config.run_name / "status.json").write_text("{")
    stands, _ = work(plan, stage)
    assert stands["plain-0"].state == "failed" and "unreadable" in stands["plain-0"].reason
    assert stands["plain-1"].state == "done"


@pytest.fixture
def heard():
    """A hang-up is one, also where the tests were begun by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_the_processes_first(folder, number, heard) -> None:
    before = signal.getsignal(number)
    plan = planned('experiment = "study.py:plain"\nseeds = "0-3"\n')

    class Ringing(Stage):
        def start(self, words, log):
            if len(self.started) == 2:
                os.kill(os.getpid(), number)
            return super().start(words, log)

    with pytest.raises(Interrupted, match=r"Interrupted with 2 interrupted, 2 waiting. Run the same command again"):
        work(plan, Ringing(plan, room=2))
    assert signal.getsignal(number) is before
    states = [each.state for each in collect_statuses(plan, SweepFolder(Path("runs"), "night")).values()]
    assert states == ["interrupted", "interrupted", "waiting", "waiting"]


def test_under_nohup_a_hang_up_is_nothing_and_a_second_signal_leaves_at_once(monkeypatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(os, "_exit", sys.exit)
    try:
        with StopRequest() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.stop_requested
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.stop_requested
            os.kill(os.getpid(), signal.SIGTERM)  # an echo: it has reached the group, and this process again
            monkeypatch.setattr(interrupt, "ECHO_SECONDS", 0.0)
            with pytest.raises(SystemExit) as left:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
        assert left.value.code == 130
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_queues_of_one_sweep_are_refused(folder) -> None:
    plan = planned('experiment = "study.py:plain"\n')
    Path("runs/sweeps/night").mkdir(parents=True)
    with open("runs/sweeps/night/LOCK", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TrajectoryError, match="is being written by"):
            work(plan, Stage(plan))


# Slots, with real processes that are not grokkit

HOLDS_ITS_GPU = """
import os, sys, time
gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
places = int(os.environ.get("PLACES", "1"))
for place in range(places):
    try:
        os.close(os.open(f"{gpu}.{place}", os.O_CREAT | os.O_EXCL))
        break
    except FileExistsError:
        continue
else:
    sys.exit("two on one")
print("saw", gpu, os.environ.get("OMP_NUM_THREADS"), flush=True)
time.sleep(0.3)
if sys.argv[1] == "long":
    time.sleep(60)
os.remove(f"{gpu}.{place}")
"""


@pytest.fixture
def impostor(folder) -> Path:
    """`python -m grokkit` in this folder is a program that fails where another one has its GPU already."""
    Path("grokkit").mkdir()
    Path("grokkit/__init__.py").touch()
    Path("grokkit/__main__.py").write_text(HOLDS_ITS_GPU)
    return folder


def through(launcher: Launcher, count: int, log: Path) -> list[int]:
    """Exit codes of so many processes, each with a log of its own beside `log`, started as soon as there is room."""
    attempts: list = []
    most = 0
    while len(attempts) < count or any(each.poll() is None for each in attempts):
        if len(attempts) < count and (new := launcher.start(["short"], Path(f"{log}.{len(attempts)}"))):
            attempts.append(new)
        most = max(most, sum(each.poll() is None for each in attempts))
        time.sleep(0.01)
    return [each.poll() for each in attempts] + [most]


def printed(log: Path) -> str:
    """What the processes of `through` have printed."""
    return "".join(each.read_text() for each in sorted(log.parent.glob(f"{log.name}.*")))


def test_never_two_on_one_gpu_and_all_gpus_at_once(impostor, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    codes = through(LocalLauncher(["7", "9"], locks=impostor / "locks"), 6, impostor / "log")
    assert codes == [0] * 6 + [2]
    saw = printed(impostor / "log").split("\n")
    assert sum(line.startswith("saw 7") for line in saw) >= 2 and sum(line.startswith("saw 9") for line in saw) >= 2
    assert not any(line.endswith("None") for line in saw), "each has its share of the cores"


def test_as_many_on_one_gpu_as_told(impostor, monkeypatch) -> None:
    monkeypatch.setenv("PLACES", "2")
    assert through(LocalLauncher(["7"], per_gpu=2, locks=impostor / "locks"), 5, impostor / "log") == [0] * 5 + [2]


def test_one_at_a_time_without_a_gpu_unless_told(impostor, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert through(LocalLauncher([]), 3, impostor / "log") == [0] * 3 + [1]
    monkeypatch.setenv("PLACES", "3")
    assert through(LocalLauncher([], at_once=3), 4, impostor / "log") == [0] * 4 + [3]
    for options in ({"at_once": 0}, {"per_gpu": 0}):
        with pytest.raises(UsageError, match="must be at least 1; got 0"):
            LocalLauncher(["0"], **options)


def test_a_gpu_stays_taken_while_the_process_of_a_queue_that_died_goes_on(impostor) -> None:
    """Its lock is the process's own: another queue on this machine gets the GPU when the process is gone."""
    dead, heir = (LocalLauncher(["7"], locks=impostor / "locks") for _ in range(2))
    orphan = dead.start(["long"], impostor / "log")
    assert orphan is not None and heir.start(["short"], impostor / "log") is None
    orphan.stop()
    while orphan.poll() is None:
        time.sleep(0.01)
    for left in impostor.glob("7.*"):
        left.unlink()
    assert through(heir, 1, impostor / "log") == [0, 1] and orphan.poll() == -signal.SIGTERM


def test_the_gpus_of_a_sweep_are_those_that_a_run_would_see(monkeypatch) -> None:
    for told, gpus in (("", []), ("-1", []), ("2,3", ["2", "3"]), ("GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert list_visible_gpus() == gpus
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert list_visible_gpus() == ["0", "1", "2"]


# The command, with real runs

REAL = """
[[run]]
name = "first"
experiment = "study.py:whole"
grid.steps = [24, 3_000]
[[run]]
experiment = "study.py:whole"
seeds = 1
after = "first"
"""


@pytest.fixture
def real(folder, monkeypatch) -> Path:
    """A sweep of three runs of `SMALL`, one of which is long enough to be stopped."""
    monkeypatch.setenv("PYTHONPATH", str(Path(gk.__file__).parents[1]))  # this grokkit, whichever is installed
    config = SMALL.replace(steps=24).to_toml()
    Path("study.py").write_text(
        f'from grokkit import RunConfig\nTEXT = """{config}"""\n'
        "def whole() -> RunConfig:\n    return RunConfig.from_toml(TEXT)\n"
    )
    Path("night.toml").write_text('device = "cpu"\n' + REAL)
    return folder


def child_at_work(parent: subprocess.Popen, steps: int, other_than: int = 0) -> int:
    """The process that trains the run of so many steps, once its loop goes round."""
    while True:
        assert parent.poll() is None, parent.communicate()
        for status in Path("runs/small").glob("*/status.json"):
            lock = status.parent / "LOCK"  # made after the folder
            told, process = json.loads(status.read_text()), json.loads((lock.exists() and lock.read_text()) or "{}")
            at_work = (told["total_steps"], told["state"]) == (steps, "running") and told["step"] > 20
            if at_work and process.get("pid", other_than) != other_than:
                return process["pid"]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["--at-once", "2"], ["--launcher", "ray"]], ids=["local", "ray"])
def test_a_real_sweep_is_preempted_stopped_and_gone_on_with_to_the_same_bits(real, launcher) -> None:
    words = [sys.executable, "-m", "grokkit", "sweep", "night.toml", *launcher]
    sweep = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = child_at_work(sweep, 3000)
    os.kill(first, signal.SIGTERM)
    child_at_work(sweep, 3000, other_than=first)
    sweep.send_signal(signal.SIGINT)
    out, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 75 and "Run the same command again to resume" in err, (out, err)
    assert "preempted" in out and "resumed" in out and out.index("preempted") < out.index("resumed")
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, (done.stdout, done.stderr)
    report = subprocess.run([*words, "--report"], capture_output=True, text=True, timeout=60)
    assert report.returncode == 0 and report.stdout.count(" done ") == 3
    plan = read_plan(Path("night.toml"))
    for run in plan.runs:
        straight = gk.train(run.config, runs="straight", device="cpu", experiment=run.study.source)
        ours, theirs = contents(Path("runs") / run.config.run_name), contents(straight.path)
        for found in (ours, theirs):
            kept = [each for each in found["events.jsonl"] if each["kind"] not in ("resumed", "restarted")]
            found["events.jsonl"] = kept
            found.pop("manifest.jsonl", None)  # it tells which attempt wrote what
        assert ours == theirs
        assert (Path("runs") / run.config.run_name / "experiment.py").read_text() == Path("study.py").read_text()


@pytest.fixture
def ray_with_gpus(impostor):
    """Ray on this machine, told that there are two GPUs, and started where interrupts are ignored, as by `nohup`."""
    ray = pytest.importorskip("ray")
    heard, interrupted = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, signal.SIG_IGN)
    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGINT, interrupted)
    yield impostor
    ray.shutdown()
    signal.signal(signal.SIGTERM, heard)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_ray_gives_each_run_its_share_of_a_gpu(ray_with_gpus, monkeypatch) -> None:
    with connect(None, None, None) as cluster:
        assert through(cluster, 5, ray_with_gpus / "log")[:5] == [0] * 5
    said = printed(ray_with_gpus / "log")
    assert {line.split()[1] for line in said.splitlines() if line.startswith("saw")} == {"0", "1"}
    with connect(None, 0.0, None) as cluster:
        assert through(cluster, 1, ray_with_gpus / "none")[:1] == [0]
    assert "saw  " in printed(ray_with_gpus / "none"), "a run without a share sees no GPU"
    refused = pytest.raises(
        DeviceRefusedError, match=r"has 2 GPUs, but each run needs 3; pass a smaller --gpus-per-run"
    )
    with refused, connect(None, 3.0, None):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_what_ray_stops_or_cannot_start_is_told(ray_with_gpus, monkeypatch) -> None:
    with connect(None, None, None) as cluster:
        attempt = cluster.start(["long"], ray_with_gpus / "log")
        while "saw" not in (Path("log").read_text() if Path("log").exists() else ""):
            time.sleep(0.05)
        attempt.stop()
        assert through_one(attempt) == -signal.SIGTERM
        monkeypatch.setattr("os.getcwd", lambda: "/nowhere")
        assert through_one(cluster.start(["short"], ray_with_gpus / "lost")) == 1
    assert "/nowhere" in read_last_line(ray_with_gpus / "lost")


def through_one(attempt) -> int:
    while attempt.poll() is None:
        time.sleep(0.05)
    return attempt.poll()


def test_a_stop_is_still_the_queues_own_beside_ray(monkeypatch) -> None:
    ray = pytest.importorskip("ray")
    heard = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))  # it takes its own
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with connect(None, None, "cpu"):
        assert signal.getsignal(signal.SIGTERM) is heard


def test_options_of_the_other_launcher_are_refused_and_ray_may_be_missing(folder, capsys, monkeypatch) -> None:
    planned('experiment = "study.py:plain"\ndevice = "cpu"\n')
    words = ["sweep", "night.toml"]
    assert main([*words, "--gpus-per-run", "1"]) == 2 and "need --launcher ray" in capsys.readouterr().err
    assert (
        main([*words, "--launcher", "ray", "--at-once", "2"]) == 2
        and "need --launcher local" in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*words, "--launcher", "ray"]) == 2
    assert "pip install 'grokkit[ray]'" in capsys.readouterr().err
