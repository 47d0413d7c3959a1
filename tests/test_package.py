"""The package as users get it: found from any folder, with types, with its licence."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

USER = """
import grokkit as gk
from torch import Tensor, nn

def complexity(net: nn.Module, images: Tensor) -> list[int]:
    try:
        reveal_type(gk.local_complexity(net, images, 0.1, 5))
    except gk.errors.Interrupted:
        raise
    return gk.local_complexity(net, images, 0.1, 5).total.tolist()

reveal_type(gk.train)
reveal_type(gk.record)
reveal_type(gk.models.create("mlp", (1, 8, 8), 10))
gk.local_complexity(nn.Linear(1, 1), "images", 0.1)
gk.train("config")
"""


def test_a_script_next_to_a_clone_called_grokkit_imports_the_package(tmp_path: Path) -> None:
    """The clone's folder has no __init__.py and comes first on the path, as an empty package."""
    (tmp_path / "grokkit").symlink_to(ROOT)
    (tmp_path / "script.py").write_text("import grokkit as gk\nprint(gk.RunConfig.__module__)")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("grokkit.config.run_config\n", "")


def test_public_names_stand_once_and_cost_nothing_until_used() -> None:
    code = (
        "import sys, grokkit as gk; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(gk.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'train'" in done.stdout and "'errors'" in done.stdout
    import grokkit

    with pytest.raises(AttributeError, match="trian"):
        grokkit.trian  # noqa: B018


@pytest.mark.slow
def test_a_wheel_has_types_and_errors_for_a_user(tmp_path: Path) -> None:
    """In an environment of its own, whose other packages are those of this one."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = {"check": True, "capture_output": True, "text": True, "env": environment}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip, **run)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], **run)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert "grokkit/py.typed" in names and "grokkit/__init__.pyi" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "bench/", "experiments/")) for name in names)
    (tmp_path / "user.py").write_text(USER)
    python = tmp_path / "env" / "bin" / "python"
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "user.py"]
    done = subprocess.run(mypy, cwd=tmp_path, **{**run, "check": False})
    said = done.stdout
    assert 'Revealed type is "grokkit.spline.results.LocalComplexity"' in said, said + done.stderr
    assert "def (config: grokkit.config.run_config.RunConfig" in said and "-> grokkit.trajectory.run.Run" in said
    assert "-> grokkit.recording.recorder.Recorder" in said
    assert 'Revealed type is "torch.nn.modules.module.Module"' in said
    errors = [line for line in said.splitlines() if " error: " in line]
    assert [line.split(":")[1] for line in errors] == ["15", "16"] and all("arg-type" in line for line in errors), said
    catches = (
        "import grokkit as gk\ntry:\n    raise gk.errors.BudgetReached\n"
        "except gk.errors.Interrupted:\n    print('caught', gk.__file__)"
    )
    done = subprocess.run([python, "-c", catches], cwd=tmp_path, **run)
    assert done.stdout == f"caught {site / 'grokkit' / '__init__.py'}\n"
