"""Code in a run folder: executed for an unknown name only, and only where its text is on the user's own list."""

import hashlib
import os
import shlex
import stat
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import grokkit as gk
from grokkit import figures, measures, models, policies, stored_code, trust
from grokkit.cli import main
from grokkit.config.run_config import RunConfig, spec
from grokkit.errors import Interrupted, UnknownNameError, UntrustedCodeError, UsageError
from grokkit.live.run_browser import RunBrowser
from grokkit.live.server import Server
from grokkit.live.terminal import watch_run
from grokkit.optim import build
from grokkit.registry import STUDY_PREFIX, import_study
from grokkit.sweep.cluster import RayLauncher
from grokkit.sweep.local import LocalLauncher
from grokkit.sweep.plan import read_plan
from grokkit.sweep.run_status import SweepFolder, trusted_digests
from grokkit.training.required_names import list_training_names
from grokkit.trajectory import open_run
from tests import live_runs
from tests.callbacks import PressesCtrlC

REGISTRIES = (
    models.registry,
    measures.registry,
    policies.registry,
    policies.wrapper_registry,
    figures.registry,
    gk.attributions.registry,
)

MARK = 'from pathlib import Path\nPath({marker!r}).write_text("executed")\n'

STUDY = """
from dataclasses import dataclass
import numpy as np
from matplotlib.figure import Figure
from grokkit import Reading, RunConfig, attributions, figures, measures, models, spec, policies
from grokkit.attributions.methods import Saliency

@models.register("study_model")
def study_model(input_shape, classes):
    return models.create("mlp", input_shape, classes, widths=(4,))

@policies.register("study_policy")
@dataclass(frozen=True)
class StudyPolicy:
    def init(self):
        return {}
    def update(self, observation, state):
        return policies.Decision(1.0, state)

@measures.register("study_measure")
@dataclass(frozen=True)
class StudyMeasure:
    def __call__(self, context):
        return Reading("study_measure", np.zeros(1), ("probe_set",), {"probe_set": ("test",)}, "1", n=(1,))

@attributions.register("study_method")
@dataclass(frozen=True)
class StudyMethod(Saliency):
    pass

@figures.register("study_figure")
def study_figure(data):
    return Figure()

def arm() -> RunConfig:
    return RunConfig(
        experiment="study", data=spec("digits", size=8, train=40, test=20), model=spec("study_model"),
        policy=spec("warmup", share=0.5, policy={"name": "study_policy"}), batch_size=20, steps=6, records=2,
        probes={"train": 8, "test": 8},
    )
"""

KNOWN = RunConfig(
    experiment="study",
    data=spec("digits", size=8, train=40, test=20),
    model=spec("mlp", widths=(4,)),
    batch_size=20,
    steps=6,
    records=2,
    probes={"train": 8, "test": 8},
)
OWN = KNOWN.replace(model=spec("study_model"), policy=spec("warmup", share=0.5, policy={"name": "study_policy"}))


def forget() -> None:
    """Everything that a study has registered, as a new process would not know it."""
    for registry in REGISTRIES:
        own = registry._members.items()
        registry._members = {name: each for name, each in own if not each.__module__.startswith(STUDY_PREFIX)}
    for name in [name for name in sys.modules if name.startswith(STUDY_PREFIX)]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """An empty list of trusted code, and nothing that a study of another test has registered."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setattr(trust, "_warned", False)
    monkeypatch.chdir(tmp_path)
    kept = [(registry, dict(registry._members)) for registry in REGISTRIES if registry.names()]
    modules = {name: module for name, module in sys.modules.items() if name.startswith(STUDY_PREFIX)}
    forget()
    yield tmp_path / "settings" / "grokkit" / "trusted_code"
    forget()
    for registry, members in kept:
        registry._members = members
    sys.modules.update(modules)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def source(marker) -> str:
    """A study that leaves a mark when it is executed, registers names and is asked for two of them."""
    return MARK.format(marker=str(marker)) + STUDY


def interrupted(config: RunConfig, source: str, marker: Path) -> Path:
    """A run of that study, stopped amid it; the process knows nothing of the study afterwards."""
    Path("own.py").write_text(source)
    import_study(Path("own.py"))
    with pytest.raises(Interrupted):
        gk.train(config, device="cpu", experiment=source, callback=PressesCtrlC(4))
    forget()
    marker.unlink()
    return Path("runs") / config.run_name


def of_another(path: Path) -> None:
    """The run as one that somebody else trained: on no list here."""
    trust.get_list_path().unlink()
    assert not trust.is_trusted((path / "experiment.py").read_bytes())


def code(words: str, path: Path) -> int:
    return main(
        [*shlex.split(words.replace("RUN", str(path))), *(["--device", "cpu"] if "figure" not in words else [])]
    )


# The list


def test_a_hash_on_the_list_is_the_sha256_of_the_text_and_is_there_once(settings) -> None:
    text = "x = 1  # Grüße\n"
    assert not trust.is_trusted(text.encode())
    trust.add_trusted(text)
    trust.add_trusted("x = 2\n")
    trust.add_trusted(text)
    expected = [hashlib.sha256(each.encode()).hexdigest() for each in (text, "x = 2\n")]
    assert settings.read_text().splitlines() == expected
    assert trust.is_trusted(text.encode()) and not trust.is_trusted(text.encode() + b" ")
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600 and stat.S_IMODE(settings.parent.stat().st_mode) == 0o700


def test_the_list_of_a_text_known_by_hand(settings) -> None:
    settings.parent.mkdir(parents=True)
    settings.write_text("not a digest\n9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08  \n")
    assert trust.is_trusted(b"test") and not trust.is_trusted(b"Test")


def test_a_line_cut_short_does_not_swallow_the_next(settings) -> None:
    settings.parent.mkdir(parents=True)
    settings.write_text("9f86d081884c7d65")
    trust.add_trusted("x = 1\n")
    assert trust.is_trusted(b"x = 1\n") and len(settings.read_text().splitlines()) == 2


def test_many_writers_lose_no_line(settings) -> None:
    texts = [f"x = {number}\n" for number in range(64)]
    writers = [threading.Thread(target=trust.add_trusted, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert all(trust.is_trusted(text.encode()) for text in texts)


def test_the_list_is_at_home_unless_told_and_never_in_the_working_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for told in ("", "here", "./here"):
        monkeypatch.setenv("XDG_CONFIG_HOME", told)
        assert trust.get_list_path() == tmp_path / "home" / ".config" / "grokkit" / "trusted_code"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert trust.get_list_path() == tmp_path / "home" / ".config" / "grokkit" / "trusted_code"


def test_a_home_that_cannot_be_written_is_a_warning_once_and_ends_no_training(settings, tmp_path) -> None:
    settings.parent.parent.write_text("no folder")
    with pytest.warns(UserWarning, match="list of trusted code cannot be written") as told:
        trust.add_trusted("x = 1\n")
        done = gk.train(KNOWN, device="cpu", experiment="x = 2\n")
    assert len(told) == 1 and done.status["state"] == "done"
    assert not trust.is_trusted(b"x = 1\n")


def test_a_list_that_is_a_pipe_is_neither_waited_for_nor_believed(settings) -> None:
    settings.parent.mkdir(parents=True)
    os.mkfifo(settings)
    assert not trust.is_trusted(b"x = 1\n")
    with pytest.warns(UserWarning, match="not a regular file"):
        trust.add_trusted("x = 1\n")


def test_the_environment_adds_to_the_list_and_is_handed_on(monkeypatch) -> None:
    one, two = (trust.hash_source(text) for text in (b"x = 1\n", b"x = 2\n"))
    assert trust.make_worker_environment(()) == {}
    assert trust.make_worker_environment([two, one]) == {"GROKKIT_TRUSTED": ",".join(sorted((one, two)))}
    monkeypatch.setenv("GROKKIT_TRUSTED", f" {one.upper()} , short")
    assert trust.is_trusted(b"x = 1\n") and not trust.is_trusted(b"x = 2\n") and not trust.is_trusted(b"short")
    assert trust.make_worker_environment([two]) == {"GROKKIT_TRUSTED": ",".join(sorted((one, two)))}


def test_train_and_record_write_the_list_and_a_resumed_recorder_does_not(settings, tmp_path) -> None:
    gk.train(KNOWN, device="cpu", experiment="trained = 1\n")
    gk.train_seeds(KNOWN, [1, 2], device="cpu", experiment="stacked = 1\n")
    net, probes = models.create("mlp", (1, 8, 8), 10, widths=(4,)), gk.open_run(Path("runs") / KNOWN.run_name).probes
    gk.record("recorded", net, probes=probes, measures=(), experiment="recorded = 1\n").close()
    gk.record("bare", net, probes=probes, measures=()).close()
    gk.record("recorded", net, probes=probes, measures=(), experiment="other = 1\n", resume=True).close()
    assert [trust.is_trusted(f"{word} = 1\n".encode()) for word in ("trained", "stacked", "recorded", "other")] == [
        True,
        True,
        True,
        False,
    ]
    assert len(settings.read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_process_for_each_seed_learns_its_study_and_writes_the_list(source, marker, settings) -> None:
    Path("own.py").write_text(source)
    import_study(Path("own.py"))
    convolutions = OWN.replace(model=spec("cnn", channels=(4, 4, 4, 4, 8)), steps=2)
    assert [done.status["state"] for done in gk.train_seeds(convolutions, [0, 1], device="cpu", experiment=source)] == [
        "done",
        "done",
    ]
    assert trust.is_trusted(source.encode())


# The verbs


VERBS = {
    "resume RUN": "unknown model 'study_model'",
    "lc RUN --radius 0.05 --directions 2 --points 4": "unknown model 'study_model'",
    "attack RUN --steps 1 --points 4": "unknown model 'study_model'",
    "attribute RUN --method saliency --images 2": "unknown model 'study_model'",
    "choose-radius RUN --points 4 --snapshots 1 --radius 0.01 0.1 --directions 2 4": "unknown model 'study_model'",
    "figure study_figure RUN": "unknown figure 'study_figure'",
}


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words.split()[0])
def test_an_unknown_name_in_the_run_of_another_is_refused_with_the_command_that_allows_it(
    words, source, marker, capsys
) -> None:
    path = interrupted(OWN, source, marker)
    of_another(path)
    assert code(words, path) == 2
    said = capsys.readouterr().err
    assert not marker.exists(), "it was executed"
    assert (
        VERBS[words] in said and trust.hash_source(source.encode())[:12] in said and str(trust.get_list_path()) in said
    )
    device = "" if "figure" in words else " --device cpu"
    assert said.rstrip().endswith(f"Read it, then run: grokkit {words.replace('RUN', str(path))}{device} --trust"), said
    allowed = shlex.split(said.rpartition("then run: grokkit ")[2])
    assert main(allowed) == 0 and marker.exists(), "the command that was shown"
    assert not trust.get_list_path().exists(), "--trust holds for one call"


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words.split()[0])
def test_what_this_user_trained_is_known_again_until_a_byte_of_it_changes(words, source, marker, capsys) -> None:
    path = interrupted(OWN, source, marker)
    kept = (path / "experiment.py").read_bytes()
    (path / "experiment.py").write_bytes(kept + b"\n")
    assert code(words, path) == 2 and not marker.exists()
    assert "--trust" in capsys.readouterr().err
    (path / "experiment.py").write_bytes(kept)
    assert code(words, path) == 0 and marker.exists()


@pytest.mark.parametrize("listed", [True, False], ids=["own", "of another"])
@pytest.mark.parametrize("words", VERBS, ids=lambda words: words.split()[0])
def test_nothing_is_executed_for_names_that_are_known(words, listed, source, marker) -> None:
    drawn = spec("accuracy"), spec("local_complexity", radii=(0.05,), directions=2, points=4)
    path = interrupted(KNOWN.replace(measures=drawn), source, marker)
    if not listed:
        of_another(path)
    words = words.replace("study_figure", "phases")
    assert code(words, path) == 0
    assert not marker.exists()
    assert code(f"{words} --trust", path) == 0
    assert not marker.exists(), "--trust executes nothing that is not needed"


READING = (
    "ls runs",
    "status RUN",
    "status RUN --verify",
    "export RUN --csv",
    "export RUN --html",
    "diff RUN RUN",
    "note RUN seen",
    "note RUN",
    "watch RUN",
)


@pytest.mark.parametrize("words", READING)
def test_verbs_that_only_read_execute_nothing(words, source, marker) -> None:
    """Not even what is on the list."""
    path = interrupted(OWN, source, marker)
    assert main(shlex.split(words.replace("RUN", str(path)))) == 0
    assert not marker.exists()


def test_the_live_views_execute_nothing(source, marker) -> None:
    path = interrupted(OWN, source, marker)
    watch_run(open_run(path), Console(file=StringIO()))
    with Server(RunBrowser([Path("runs")])) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        for page in ("/", "/data"):
            connection = HTTPConnection("127.0.0.1", served.port, timeout=10)
            connection.request("GET", f"/{served.token}{page}")
            assert connection.getresponse().status == 200
            connection.close()
        served.shutdown()
        thread.join()
    assert not marker.exists()


# From Python


def test_replay_asks_for_the_names_of_the_call_and_of_the_model_only(source, marker) -> None:
    path = interrupted(KNOWN.replace(policy=spec("study_policy")), source, marker)
    of_another(path)
    assert gk.replay_run(path, ["weight_norm"], device="cpu") > 0 and not marker.exists(), "a policy is not needed"
    with pytest.raises(UsageError, match=r"unknown measure 'study_measure'.* Read it, then pass trust=True"):
        gk.replay_run(path, "study_measure", device="cpu")
    with pytest.raises(UntrustedCodeError, match="unknown attribution 'study_method'"):
        gk.replay_run(path, attributions=[spec("study_method", images=2)], device="cpu")
    with pytest.raises(UntrustedCodeError, match="unknown policy 'study_policy'"):
        gk.resume(path, device="cpu")
    assert not marker.exists()
    assert gk.replay_run(path, ["study_measure"], device="cpu", trust=True) > 0 and marker.exists()


def test_a_model_that_is_given_needs_no_code_and_a_measure_beside_it_does(source, marker) -> None:
    path = interrupted(OWN, source, marker)
    of_another(path)
    net = gk.Classifier(gk.Normalise([0.0], [1.0]), models.create("mlp", (1, 8, 8), 10, widths=(4,)))
    facts = open_run(path).environment["data"]
    net = gk.Classifier(gk.Normalise(facts["mean"], facts["std"]), net.net)
    assert gk.replay_run(path, (name for name in ["weight_norm"]), model=net) > 0 and not marker.exists()
    with pytest.raises(UntrustedCodeError):
        gk.replay_run(path, ["study_measure"], model=net)
    assert not marker.exists()


def test_a_name_that_the_file_does_not_register_is_the_ordinary_mistake(source, marker, capsys) -> None:
    path = interrupted(KNOWN, source, marker)
    with pytest.raises(UnknownNameError, match=r"unknown measure 'study_mesure'\. Did you mean 'study_measure'\?"):
        gk.replay_run(path, ["study_mesure"], device="cpu")
    (path / "experiment.py").unlink()
    forget()
    with pytest.raises(UnknownNameError, match=r"unknown measure 'acuracy'\. Did you mean 'accuracy'\?"):
        gk.replay_run(path, ["acuracy"], device="cpu", trust=True)
    assert main(["figure", "phaes", str(path)]) == 2 and "Did you mean 'phases'?" in capsys.readouterr().err


def test_the_nearest_name_is_said_in_a_refusal_too(source, marker) -> None:
    path = interrupted(KNOWN, source, marker)
    of_another(path)
    with pytest.raises(UntrustedCodeError, match=r"'acuracy'\. Did you mean 'accuracy'\?.*may register it"):
        gk.replay_run(path, ["acuracy"], device="cpu")


@pytest.mark.parametrize(
    ("change", "unknown"),
    [
        ({"model": spec("mine")}, "mine"),
        ({"data": spec("mine")}, "mine"),
        ({"optimizer": spec("mine")}, "mine"),
        ({"loss": "mine"}, "mine"),
        ({"policy": spec("mine")}, "mine"),
        ({"measures": (spec("mine"),)}, "mine"),
        ({"attributions": (spec("mine"),)}, "mine"),
        ({"policy": spec("warmup", policy="mine")}, "mine"),
        ({"policy": spec("warmup", policy={"name": "clip", "policy": {"name": "mine"}})}, "mine"),
        ({"data": spec("own.npz")}, None),
        ({"policy": spec("warmup", policy="cosine")}, None),
        ({"augment": ("flip",), "measures": (spec("loss"),), "attributions": (spec("saliency"),)}, None),
    ],
    ids=str,
)
def test_every_name_of_a_config_is_among_those_looked_up(change, unknown) -> None:
    def is_known(each: stored_code.NameRequest) -> bool:
        try:
            each.find(each.name)
        except UsageError:
            return False
        return True

    missing = {each.name for each in list_training_names(KNOWN.replace(**change)) if not is_known(each)}
    assert missing == ({unknown} if unknown else set())


def test_what_a_study_puts_into_a_table_by_hand_is_found(marker, monkeypatch) -> None:
    monkeypatch.setattr(build, "OPTIMIZERS", dict(build.OPTIMIZERS))
    text = MARK.format(marker=str(marker)) + (
        "from torch.optim import SGD\nfrom grokkit.optim import build\nbuild.OPTIMIZERS['mine'] = SGD\n"
    )
    path = interrupted(KNOWN.replace(optimizer=spec("mine", lr=0.1)), text, marker)
    del build.OPTIMIZERS["mine"]
    assert gk.resume(path, device="cpu").status["state"] == "done" and marker.exists()


# Files that are none, and files that change


def test_a_pipe_a_folder_or_a_device_is_refused_at_once_also_with_trust(source, marker, tmp_path) -> None:
    path = interrupted(OWN, source, marker)
    file = path / "experiment.py"
    for make in (lambda: os.mkfifo(file), lambda: file.mkdir(), lambda: file.symlink_to("/dev/zero")):
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        make()
        began = time.monotonic()
        with pytest.raises(UsageError, match=r"experiment\.py cannot be read: not a regular file"):
            gk.resume(path, device="cpu", trust=True)
        assert main(["diff", str(path), str(path)]) == 4
        assert time.monotonic() - began < 5


def test_the_file_is_not_even_read_for_names_that_are_known(source, marker) -> None:
    path = interrupted(KNOWN, source, marker)
    (path / "experiment.py").unlink()
    os.mkfifo(path / "experiment.py")
    assert gk.replay_run(path, ["weight_norm"], device="cpu") > 0


def test_a_link_is_judged_by_the_text_that_it_leads_to(source, marker, tmp_path) -> None:
    path = interrupted(OWN, source, marker)
    file = path / "experiment.py"
    (tmp_path / "moved.py").write_bytes(file.read_bytes())
    (tmp_path / "hostile.py").write_text(source + "\n")
    file.unlink()
    file.symlink_to(tmp_path / "hostile.py")
    with pytest.raises(UntrustedCodeError):
        gk.resume(path, device="cpu")
    file.unlink()
    file.symlink_to(tmp_path / "moved.py")
    assert not marker.exists() and gk.resume(path, device="cpu").status["state"] == "done"


def test_what_is_executed_is_what_was_held_against_the_list(source, marker, monkeypatch) -> None:
    """The file is replaced after the check and before the execution."""
    path = interrupted(OWN, source, marker)
    asked = stored_code.is_trusted

    def replacing(text: bytes) -> bool:
        (path / "experiment.py").write_text("raise SystemExit('the other text was executed')\n")
        return asked(text)

    monkeypatch.setattr(stored_code, "is_trusted", replacing)
    assert gk.replay_run(path, ["weight_norm"], device="cpu") > 0 and marker.exists()


def test_a_file_of_endless_size_is_not_read(source, marker) -> None:
    path = interrupted(OWN, source, marker)
    with open(path / "experiment.py", "r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match="larger than 16 MiB"):
        gk.resume(path, device="cpu")


def test_a_hash_in_the_run_folder_or_the_working_folder_never_counts(source, marker, monkeypatch) -> None:
    path = interrupted(OWN, source, marker)
    of_another(path)
    for folder in (path, Path(), path / "grokkit", Path("grokkit"), Path(".config/grokkit")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trusted_code").write_text(trust.hash_source(source.encode()) + "\n")
    monkeypatch.setenv("HOME", str(Path("elsewhere").absolute()))
    for told in (os.environ["XDG_CONFIG_HOME"], ".", str(path)):
        monkeypatch.setenv("XDG_CONFIG_HOME", told if told != str(path) else os.path.relpath(path))
        with pytest.raises(UntrustedCodeError):
            gk.resume(path, device="cpu")
    assert not marker.exists()


def test_two_texts_of_a_study_do_not_stand_for_each_other(source, marker) -> None:
    """The name is known in the process, from the other text: a count of another net would be silently wrong."""
    path = interrupted(OWN, source, marker)
    Path("edited.py").write_text(source.replace("widths=(4,)", "widths=(4, 4)"))
    import_study(Path("edited.py"))
    with pytest.raises(UsageError, match=r"'study_model' is already registered by .* free in a new process"):
        gk.replay_run(path, ["weight_norm"], device="cpu")
    of_another(path)
    with pytest.raises(
        UntrustedCodeError, match="'study_model' is registered in this process by another experiment only"
    ):
        gk.replay_run(path, ["weight_norm"], device="cpu")


def test_a_run_without_a_copy_uses_what_the_process_knows(source, marker) -> None:
    path = interrupted(OWN, source, marker)
    (path / "experiment.py").unlink()
    with pytest.raises(UnknownNameError, match="'study_model'"):
        gk.replay_run(path, ["weight_norm"], device="cpu")
    import_study(Path("own.py"))
    assert gk.replay_run(path, ["weight_norm"], device="cpu") > 0


def test_a_study_that_cannot_be_imported_is_told(marker) -> None:
    path = interrupted(KNOWN, MARK.format(marker=str(marker)), marker)
    text = "import no_such_module\n"
    (path / "experiment.py").write_text(text)
    trust.add_trusted(text)
    with pytest.raises(UsageError, match=r"experiment\.py cannot be imported: ModuleNotFoundError.*no_such_module"):
        gk.replay_run(path, ["mine"], device="cpu")


def test_a_figure_over_several_runs_takes_the_file_that_is_trusted(source, marker, capsys) -> None:
    path = interrupted(KNOWN, source, marker)
    other = live_runs.make(Path("runs/study/other"))
    hostile = Path("hostile")
    (other / "experiment.py").write_text(MARK.format(marker=str(hostile.absolute())))
    assert main(["figure", "study_figure", str(other), str(path), "--out", "drawn"]) == 0
    assert marker.exists() and not hostile.exists()
    forget()
    of_another(path)
    assert main(["figure", "study_figure", str(other), str(path), "--out", "drawn"]) == 2
    assert f"{other}/experiment.py may register it" in capsys.readouterr().err and not hostile.exists()


@pytest.mark.slow
def test_nobody_is_asked(source, marker) -> None:
    """A queue would hang: the refusal comes with a terminal, too, and nothing is read from it."""
    path = interrupted(OWN, source, marker)
    of_another(path)
    read, write = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "grokkit", "lc", str(path)], stdin=write, capture_output=True, text=True, timeout=120
    )
    os.close(read)
    os.close(write)
    assert done.returncode == 2 and "--trust" in done.stderr and not marker.exists()


# Queues


NIGHT = 'experiment = "own.py"\ndevice = "cpu"\n'


def test_a_queue_accepts_the_plan_and_what_is_on_the_list_in_its_folders(source, marker) -> None:
    path = interrupted(OWN, source, marker)
    Path("own.py").write_text(source + "# edited\n")
    Path("night.toml").write_text(NIGHT)
    plan, place = read_plan(Path("night.toml")), SweepFolder(Path("runs"), "night")
    assert place.run_path(plan.runs[0]).resolve() == path.resolve()
    old, new = trust.hash_source(source.encode()), trust.hash_source((source + "# edited\n").encode())
    assert trusted_digests(plan, place) == {old, new}
    of_another(path)
    assert trusted_digests(plan, place) == {new}


def test_workers_are_told_by_the_environment_on_this_machine_and_by_ray(monkeypatch, tmp_path) -> None:
    one, two = (trust.hash_source(text) for text in (b"x = 1\n", b"x = 2\n"))
    both = ",".join(sorted((one, two)))
    monkeypatch.setenv("GROKKIT_TRUSTED", two)
    assert LocalLauncher([], trusted=[one])._make_environment("")["GROKKIT_TRUSTED"] == both
    assert LocalLauncher([])._make_environment("")["GROKKIT_TRUSTED"] == two
    handed = []

    class Ray:
        """What a cluster needs of Ray: it hears what is handed to the task."""

        def remote(self, *arguments):
            handed.append(arguments)
            return self

        def options(self, **_):
            return self

    cluster = RayLauncher(Ray(), 1.0, [one])
    cluster._task.remote = lambda *arguments: handed.append(arguments)
    cluster.start(["resume", "RUN"], tmp_path / "log")
    assert handed[-1][3]["GROKKIT_TRUSTED"] == both and "PYTHONPATH" in handed[-1][3]


@pytest.mark.slow
def test_a_sweep_goes_on_with_its_runs_though_the_workers_have_no_list(source, marker, settings) -> None:
    """As on another machine: the list is empty, and what the queue accepted comes by the environment alone."""
    path = interrupted(OWN, source, marker)
    settings.unlink()
    Path("night.toml").write_text(NIGHT)
    assert main(["sweep", "night.toml"]) == 0
    assert "resumed" in next(Path("runs/sweeps/night/logs").glob(f"{path.name}.txt")).read_text()
    assert open_run(path).status["state"] == "done" and "GROKKIT_TRUSTED" not in os.environ


@pytest.mark.slow
def test_a_sweep_does_not_execute_what_was_put_into_a_folder_of_its_runs(source, marker, tmp_path) -> None:
    path = interrupted(OWN, source, marker)
    hostile = tmp_path / "hostile"
    (path / "experiment.py").write_text(MARK.format(marker=str(hostile)) + STUDY)
    Path("night.toml").write_text(NIGHT)
    assert main(["sweep", "night.toml"]) == 1
    assert not hostile.exists()
    assert "not on your list of trusted code" in (tmp_path / "runs/sweeps/night/report.txt").read_text()


def test_the_tests_and_their_subprocesses_keep_to_a_list_of_their_own(monkeypatch) -> None:
    monkeypatch.undo()  # what this file sets for each test; the session's own remains
    told = "from grokkit import trust; print(trust.get_list_path())"
    heard = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert heard.strip() == str(trust.get_list_path()) and "pytest" in heard
    assert trust.get_list_path().parent != Path("~").expanduser() / ".config" / "grokkit"
