"""Studies that runs keep are read with the names that they were written with."""

import ast
import importlib

import pytest

from grokkit import old_names
from grokkit.old_names import current_name, translate

MOVED = "grokkit.training.config"
NOW = "grokkit.config.run_config"
HEAD = '"""Doc."""\nfrom __future__ import annotations\n'


def translated(text: str) -> str:
    return ast.unparse(translate(text.encode()))


def test_every_module_of_the_table_has_moved_and_is_there():
    for before, after in old_names.MODULES.items():
        assert importlib.util.find_spec(after) is not None, after
        with pytest.raises(ImportError):
            importlib.import_module(before)


def test_every_name_of_the_table_is_there_and_its_old_one_means_nothing_else():
    for before, after in old_names.NAMES.items():
        assert meaning(after) is not None, after
        assert meaning(before) in (None, meaning(after)), before


def meaning(qualified: str) -> object:
    module, _, name = qualified.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"from {MOVED} import RunConfig, part", f"from {NOW} import RunConfig\nfrom {NOW} import old as part"),
        (f"from {MOVED} import part as p", f"from {NOW} import old as p"),
        (f"import {MOVED}\nx = {MOVED}.part('a')", f"import {NOW}\nx = {NOW}.old('a')"),
        (f"import {MOVED} as c\nx = c.part('a')", f"import {NOW} as c\nx = c.old('a')"),
        (
            "from grokkit.training import config\nx = config.part",
            "from grokkit.config import run_config as config\nx = config.old",
        ),
        ("import grokkit as gk\ngk.part('a').name", "import grokkit as gk\ngk.new('a').name"),
        ("import grokkit\ngrokkit.part('a')", "import grokkit\ngrokkit.new('a')"),
        ("def f():\n    import grokkit as g\n    return g.part", "def f():\n    import grokkit as g\n    return g.new"),
        (
            f"{HEAD}from grokkit.training import build\nbuild.OPTIMIZERS['a'] = 1",
            f"{HEAD}import grokkit.optim.build\nfrom grokkit.training import build\n"
            "grokkit.optim.build.OPTIMIZERS['a'] = 1",
        ),
        ("from grokkit import part", "from grokkit import new as part"),
        ("from .grokkit import part", "from .grokkit import part"),
        ("import other as gk\ngk.part('a')", "import other as gk\ngk.part('a')"),
        ("from grokkit.trained import part", "from grokkit.trained import part"),
    ],
)
def test_what_is_imported_under_an_old_name(before, after, monkeypatch):
    monkeypatch.setattr(
        old_names,
        "NAMES",
        {
            f"{NOW}.part": f"{NOW}.old",
            "grokkit.part": "grokkit.new",
            "grokkit.training.build.OPTIMIZERS": "grokkit.optim.build.OPTIMIZERS",
        },
    )
    monkeypatch.setattr(old_names, "MODULES", {MOVED: NOW})
    assert translated(before) == after


def test_a_study_in_todays_words_is_kept_as_it_is():
    text = "import grokkit as gk\nfrom grokkit.policies import Decision\nx = gk.train(Decision.a.b)[0].c"
    assert translated(text) == text and current_name("grokkit.policies") == "grokkit.policies"
