"""A config is a frozen value that survives TOML, names its folder, and refuses what it does not know."""

import pytest

from grokkit import recipes
from grokkit.config.run_config import RunConfig, spec
from grokkit.config.schedule import log_spaced, validate_steps
from grokkit.errors import UnknownNameError, UsageError


@pytest.mark.parametrize("name", ["quickstart", "cifar10_small", "cifar10_in_minutes"])
def test_every_shipped_config_survives_toml(name: str) -> None:
    for make in recipes.load_shipped(name).variants.values():
        config = make()
        assert RunConfig.from_toml(config.to_toml()) == RunConfig.from_dict(config.to_dict())
        assert RunConfig.from_toml(config.to_toml()).run_name == config.run_name


def test_the_hash_follows_every_choice() -> None:
    config = RunConfig(experiment="a")
    assert config.run_name == RunConfig(experiment="a").run_name
    assert config.run_name != config.replace(steps=999).run_name
    assert config.run_name != config.replace(optimizer=spec("adamw", lr=2e-3)).run_name
    assert config.replace(seed=7).run_name.startswith("a/default-s7-")


def test_unknown_and_impossible_choices_are_named() -> None:
    with pytest.raises(UsageError, match=r"no field 'step'. Did you mean 'steps'\?"):
        RunConfig(experiment="a").replace(step=3)
    with pytest.raises(UsageError, match="Did you mean 'batch_size'"):
        RunConfig.from_toml('experiment = "a"\nbatchsize = 3')
    with pytest.raises(UsageError, match="`steps` must be an int of at least 1; got 0"):
        RunConfig(experiment="a", steps=0)
    with pytest.raises(UsageError, match=r"`seed` must be an int of at least 0; got 1\.5"):
        RunConfig(experiment="a", seed=1.5)
    with pytest.raises(UsageError, match="`measures` takes a tuple"):
        RunConfig(experiment="a", measures="accuracy")
    with pytest.raises(UsageError, match="Did you mean 'train'"):
        RunConfig(experiment="a", probes={"trian": 3})
    assert RunConfig(experiment="a", model="mlp", measures=("loss",)) == RunConfig(
        experiment="a", model=spec("mlp"), measures=(spec("loss"),)
    )
    with pytest.raises(UsageError, match="names a folder"):
        RunConfig(experiment="../a")


def test_experiments_are_found_by_name_path_and_variant(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(recipes.find_experiment("quickstart").variants) == ["constant", "decay_at_peak"]
    assert list(recipes.find_experiment("quickstart:constant").variants) == ["constant"]
    with pytest.raises(UnknownNameError, match="Did you mean 'quickstart'"):
        recipes.find_experiment("quickstrat")
    with pytest.raises(UnknownNameError, match="Did you mean 'constant'"):
        recipes.find_experiment("quickstart:konstant")
    study = tmp_path / "experiments" / "mine.py"
    study.parent.mkdir()
    study.write_text(
        "from grokkit import RunConfig\n\ndef arm() -> RunConfig:\n    return RunConfig(experiment='mine')\n"
    )
    assert list(recipes.find_experiment("mine").variants) == ["arm"]
    assert recipes.find_experiment(str(study)).source == study.read_text()
    moved = study.rename(tmp_path / "moved.py")
    assert recipes.find_experiment(str(moved)).name == "moved", "the same text under another name"
    study.write_text("x = 1\n")
    with pytest.raises(UsageError, match="no function with the return annotation RunConfig"):
        recipes.find_experiment(str(study))
    with pytest.raises(UnknownNameError, match="experiment file not found"):
        recipes.find_experiment("nowhere.py")


def test_log_spaced_steps() -> None:
    assert log_spaced(4, 1000) == (0, 1, 10, 100, 1000)
    assert log_spaced(1, 7) == (0, 7)
    assert log_spaced(50, 10) == (0, *range(1, 11))
    assert validate_steps([5, 3, 5]) == (0, 3, 5)
    with pytest.raises(UsageError, match="at least 0; got -1"):
        validate_steps([-1])


def test_recorded_steps_are_a_number_or_named() -> None:
    assert RunConfig(experiment="a", steps=1000, records=4).schedule == (0, 1, 10, 100, 1000)
    named = RunConfig(experiment="a", steps=1000, records=(300, 7))
    assert named.records == (7, 300) and named.schedule == (0, 7, 300, 1000)
    assert RunConfig.from_toml(named.to_toml()) == named
    for wrong in ((7, 1001), (), (0,), 0, True):
        with pytest.raises(UsageError, match="records"):
            RunConfig(experiment="a", steps=1000, records=wrong)
