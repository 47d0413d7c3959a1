"""The code in README and docs runs, page by page, as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from grokkit.operations import OPERATIONS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_of(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))


QUICK = {"extending.md"}
"""Pages whose code runs with the fast tests; that of the others with the slow ones."""

RUNNABLE = [
    pytest.param(page, marks=[] if page.name in QUICK else [pytest.mark.slow], id=page.name)
    for page in PAGES
    if python_of(page)
]


@pytest.mark.parametrize("page", RUNNABLE)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text(python_of(page))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} points at {target}, which is not there"


def test_every_public_name_is_in_the_list_of_public_names() -> None:
    import grokkit
    from grokkit import errors

    names, _, listed_errors = (ROOT / "docs" / "api.md").read_text().partition("## Errors")
    assert set(re.findall(r"^\| `([a-zA-Z_]+)", names, flags=re.MULTILINE)) == set(grokkit.__all__)
    assert all(getattr(grokkit, name) is not None for name in grokkit.__all__)
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    rows = re.findall(r"^\| `([a-zA-Z_]+)` \| (\d+) \|", listed_errors, flags=re.MULTILINE)
    assert rows == sorted((name, str(kind.exit_code)) for name, kind in classes.items())


@pytest.mark.slow
def test_every_counted_activation_is_on_the_page_of_local_complexity() -> None:
    text = (ROOT / "docs" / "local-complexity.md").read_text()
    counted = {row.name for row in OPERATIONS.values() if row.activation is not None} - {"clamp_max"}
    assert {name for name in counted if f"`{name}`" not in text} == set()


def test_the_picture_of_local_complexity_is_made_by_its_script(tmp_path: Path) -> None:
    script = ROOT / "docs" / "local_complexity.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "local_complexity.png").stat().st_size > 50_000
