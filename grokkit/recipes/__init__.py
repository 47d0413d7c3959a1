"""Experiments included in grokkit, and lookup of experiments by name or path."""

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
    """An experiment: one Python file whose functions return a `RunConfig`, one function per variant.

    Args:
        name: name of the file, without `.py`.
        text: docstring of the file.
        source: text of the file.
        variants: the functions, by name.
    """

    name: str
    text: str
    source: str
    variants: dict[str, Callable[[], RunConfig]]

    def configs(self) -> list[RunConfig]:
        """Return the config of each variant, in order. Raises UsageError, naming the variant, if one fails."""
        configs = []
        for name, make in self.variants.items():
            try:
                config = make()
            except Exception as error:
                raise UsageError(f"{self.name}:{name} failed: {type(error).__name__}: {error}") from error
            if not isinstance(config, RunConfig):
                raise UsageError(f"{self.name}:{name} must return a RunConfig; got {config!r}")
            configs.append(config)
        return configs


def find_experiment(reference: str) -> Experiment:
    """Find an experiment: a `.py` file, a module in `./experiments`, or a recipe, that is, one included in grokkit.

    Args:
        reference: `NAME` or `PATH.py`, optionally followed by `:VARIANT` to select one function.

    Raises:
        UnknownNameError: no such experiment or variant; the message suggests the nearest name.
        UsageError: a file without a function that returns a RunConfig.
    """
    name, _, variant = reference.partition(":")
    module = _import_file(Path(name)) if name.endswith(".py") else _import_by_name(name)
    return _make_experiment(module, variant)


def load_shipped(name: str) -> Experiment:
    """Return the experiment `name` included in grokkit, ignoring `./experiments`."""
    return _make_experiment(importlib.import_module(f"grokkit.recipes.{name}"), "")


def _make_experiment(module: ModuleType, variant: str) -> Experiment:
    variants = {key: value for key, value in vars(module).items() if _returns_config(value)}
    source = Path(str(module.__file__)).read_text()
    short = Path(str(module.__file__)).stem
    if not variants:
        raise UsageError(f"{module.__file__} defines no function with the return annotation RunConfig")
    if variant:
        if variant not in variants:
            raise UnknownNameError(
                f"unknown variant {variant!r} of experiment {short!r}.{did_you_mean(variant, list(variants))} "
                f"It has: {', '.join(variants)}"
            )
        variants = {variant: variants[variant]}
    return Experiment(short, (module.__doc__ or "").strip(), source, variants)


def experiment_names() -> list[str]:
    """Return the names of the experiments in `./experiments` and of those included in grokkit."""
    local = {path.stem for path in Path("experiments").glob("[!_]*.py")}
    return sorted(local | {module.name for module in pkgutil.iter_modules(__path__)})


def _import_by_name(name: str) -> ModuleType:
    local = Path("experiments") / f"{name}.py"
    if local.is_file():
        return _import_file(local)
    if name not in experiment_names():
        raise UnknownNameError(
            f"unknown experiment {name!r}.{did_you_mean(name, experiment_names())} Known: "
            f"{', '.join(experiment_names())}; "
            "or give the path of a .py file"
        )
    return importlib.import_module(f"grokkit.recipes.{name}")


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownNameError(f"experiment file not found: {path}")
    return import_study(path)


def _returns_config(value: object) -> bool:
    if not callable(value) or isinstance(value, type) or getattr(value, "__name__", "_").startswith("_"):
        return False
    try:
        return typing.get_type_hints(value).get("return") is RunConfig
    except (NameError, TypeError):
        return False
