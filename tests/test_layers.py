"""Imports go down only, never sideways between rooms of one level; heavy libraries stay out of the quick verbs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import live_runs

PACKAGE = Path(__file__).resolve().parents[1] / "grokkit"
LEVELS = {
    name: level
    for level, names in {
        0: "errors escape interrupt",
        0.5: "literals names seeding registry trust old_names",
        0.75: "stored_code stats config",
        0.9: "operations",
        1: "units",
        1.25: "callbacks",
        1.5: "device",
        2: "data models spline robustness policies trajectory",
        2.5: "optim attributions",
        3: "measures",
        3.5: "analysis",
        4: "recording",
        5: "training",
        5.5: "ensemble",
        5.75: "diagnostics",
        6: "replay figures live",
        7: "recipes",
        7.5: "sweep",
        8: "cli",
        9: "__main__",
        10: "__init__",
    }.items()
    for name in names.split()
}
FORBIDDEN = {
    "stats": {"torch"},
    "policies": {"torch"},
    "figures": {"torch", "h5py"},
    "live": {"torch", "pandas", "matplotlib"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] in FORBIDDEN.get(room, ()):
            pytest.fail(f"grokkit/{room} may not import {parts[0]}: numbers in, numbers or figures out")
        if parts[0] != "grokkit" or len(parts) == 1 or parts[1] == room or parts[1] not in LEVELS:
            continue
        below = LEVELS[parts[1]] < LEVELS[room] or room in ("__init__",)
        assert below, f"grokkit/{room} may not import grokkit/{parts[1]}: imports go down, never up or sideways"


def test_every_room_has_a_level() -> None:
    assert {room_of(path) for path in FILES} <= set(LEVELS)


HEAVY = ("torch", "matplotlib", "seaborn", "scipy", "captum", "pandas", "sklearn")


QUICK = (
    "--help",
    "ls nowhere",
    "train --help",
    "lc --help",
    "lr-find --help",
    "watch run",
    "serve --help",
    "export --help",
)


@pytest.mark.parametrize("words", [line.split() for line in QUICK], ids=" ".join)
def test_quick_verbs_import_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    live_runs.complexity(live_runs.make(tmp_path / "run"), 1, 2.0)
    live_runs.log(tmp_path / "run", (1, 0.5))
    code = (
        "import sys\nfrom grokkit.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip().endswith("LOADED []"), done.stdout[-300:]


def test_a_page_with_data_is_served_without_anything_heavy(tmp_path: Path) -> None:
    live_runs.complexity(live_runs.make(tmp_path / "run"), 1, 2.0)
    code = (
        "import sys\nfrom pathlib import Path\nfrom grokkit.live import page, run_browser, server\n"
        "assert 'complexity' in page.build_single_file(run_browser.RunBrowser([Path('run')]))\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip().endswith("LOADED []"), done.stdout[-300:]
