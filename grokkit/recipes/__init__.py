"""Experiments that ship with the package, and how an experiment is found by name or path."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from grokkit.config.run_config import RunConfig
from grokkit.errors import UnknownNameError, UsageError
from grokkit.registry import did_you_mean, import_study


@dataclass(frozen=True)
class Experiment:
    """A study: its docstring, its source text, and its variants as functions that return a `RunConfig`."""

    name: str
    text: str
    source: str
    variants: dict[str, Callable[[], RunConfig]]

    def configs(self) -> list[RunConfig]:
        """What the variants return, in order. Raises UsageError, naming the variant, where one fails."""
        made = []
        for name, make in self.variants.items():
            try:
                config = make()
            except Exception as error:
                raise UsageError(f"{self.name}:{name} failed: {type(error).__name__}: {error}") from error
            if not isinstance(config, RunConfig):
                raise UsageError(f"{self.name}:{name} must return a RunConfig; it returned {config!r}")
            made.append(config)
        return made


def find_experiment(wanted: str) -> Experiment:
    """The experiment called `wanted`: a `.py` file, a module in `./experiments`, or one of this package.

    Args:
        wanted: `NAME`, `PATH.py`, either with `:VARIANT` behind it to choose one function.

    Raises:
        UnknownNameError: no such experiment or variant; names the nearest.
        UsageError: a file without a function that returns a RunConfig.
    """
    name, _, variant = wanted.partition(":")
    module = _from_file(Path(name)) if name.endswith(".py") else _by_name(name)
    return _experiment(module, variant)


def load_shipped(name: str) -> Experiment:
    """The experiment of this package called `name`, whatever lies in `./experiments`."""
    return _experiment(importlib.import_module(f"grokkit.recipes.{name}"), "")


def _experiment(module: ModuleType, variant: str) -> Experiment:
    variants = {key: value for key, value in vars(module).items() if _returns_config(value)}
    source = Path(str(module.__file__)).read_text()
    short = Path(str(module.__file__)).stem
    if not variants:
        raise UsageError(f"{module.__file__} defines no function with the return annotation RunConfig")
    if variant:
        if variant not in variants:
            raise UnknownNameError(
                f"experiment {short!r} has no variant {variant!r}.{did_you_mean(variant, list(variants))} "
                f"It has: {', '.join(variants)}"
            )
        variants = {variant: variants[variant]}
    return Experiment(short, (module.__doc__ or "").strip(), source, variants)


def experiment_names() -> list[str]:
    """Names of the experiments in `./experiments` and in this package."""
    local = {path.stem for path in Path("experiments").glob("[!_]*.py")}
    return sorted(local | {module.name for module in pkgutil.iter_modules(__path__)})


def _by_name(name: str) -> ModuleType:
    local = Path("experiments") / f"{name}.py"
    if local.is_file():
        return _from_file(local)
    if name not in experiment_names():
        raise UnknownNameError(
            f"no experiment is called {name!r}.{did_you_mean(name, experiment_names())} Known: "
            f"{', '.join(experiment_names())}; "
            "or give the path of a .py file"
        )
    return importlib.import_module(f"grokkit.recipes.{name}")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownNameError(f"there is no experiment file {path}")
    return import_study(path)


def _returns_config(value: object) -> bool:
    if not callable(value) or isinstance(value, type) or getattr(value, "__name__", "_").startswith("_"):
        return False
    try:
        return typing.get_type_hints(value).get("return") is RunConfig
    except (NameError, TypeError):
        return False
