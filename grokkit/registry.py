"""Names to things. A registry finds its members by importing the modules of its package, entry points, and
whatever a decorator adds at run time; there is no list to edit."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from grokkit.errors import UnknownNameError, UsageError

Member = TypeVar("Member", bound=Callable[..., Any])

STUDY_PREFIX = "grokkit_study_"
"""How the modules are called that studies become."""


def did_you_mean(word: str, allowed: list[str]) -> str:
    """The part of an error that names the closest allowed word, or nothing."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


class Registry:
    """One kind of thing by name.

    Args:
        kind: singular noun used in errors and as the entry point group `grokkit.<kind>`.
        package: dotted package whose modules are imported, once, at the first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, Callable[..., Any]] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[Member], Member]:
        """Decorator: make the function or class below known as `name`.

        Raises:
            UsageError: a name of which no folder can be called, or that another member has.
        """
        if not name.isprintable() or name.startswith((".", " ")) or "/" in name or not name:
            raise UsageError(f"{name!r} cannot be the name of a {self.kind}: folders are called so")

        def add(member: Member) -> Member:
            known = self._members.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (member.__module__, member.__qualname__):
                raise UsageError(
                    f"{self.kind} {name!r} is already registered by {known.__module__}; choose another name"
                )
            self._members[name] = member
            return member

        return add

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._scan()
        return sorted(self._members)

    def get(self, name: str) -> Callable[..., Any]:
        """The member called `name`; an `UnknownNameError` with the nearest match otherwise."""
        self._scan()
        if name not in self._members:
            known = self.names()
            raise UnknownNameError(
                f"no {self.kind} is called {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}"
            )
        return self._members[name]

    def name_of(self, member: Callable[..., Any]) -> str:
        """The name under which `member` is registered; an error that says how to register it otherwise."""
        self._scan()
        for name, known in self._members.items():
            if known is member:
                return name
        raise UsageError(f"{member.__qualname__} has no name; put `@register(...)` of its {self.kind} room above it")

    def create(self, name: str, *arguments: Any, **parameters: Any) -> Any:
        """Call the member `name`; an unknown parameter is answered with the allowed ones."""
        return self.check(name, parameters)(*arguments, **parameters)

    def check(self, name: str, parameters: Iterable[str]) -> Callable[..., Any]:
        """The member `name`, which is known to take `parameters`; an error with the allowed ones otherwise."""
        member = self.get(name)
        allowed = inspect.signature(member).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in allowed.values())
        for parameter in parameters:
            if parameter not in allowed and not takes_any:
                raise UsageError(
                    f"{self.kind} {name!r} has no parameter {parameter!r}.{did_you_mean(parameter, list(allowed))} "
                    f"It takes: {', '.join(allowed) or 'none'}"
                )
        return member

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            for entry in entry_points(group=f"grokkit.{self.kind}"):
                entry.load()
        except BaseException:
            self._scanned = False
            raise


def study_name(source: bytes) -> str:
    """The name of the module that a study with this source text becomes."""
    return f"{STUDY_PREFIX}{hashlib.sha256(source).hexdigest()[:16]}"


def import_study(path: Path) -> ModuleType:
    """Run a study's own file, so that what it registers has a name; a file with the same text is run once.

    Raises:
        UsageError: the file cannot be imported.
    """
    return import_source(path.read_bytes(), path)


def import_source(source: bytes, path: Path, parse: Callable[[bytes], ast.Module] = ast.parse) -> ModuleType:
    """`import_study` of a text that was read from `path` before; nothing is read again. `parse` makes its syntax tree.

    Raises:
        UsageError: the text cannot be imported.
    """
    name = study_name(source)
    if name in sys.modules:
        sys.modules[name].__file__ = str(path)  # the same text may lie elsewhere by now, as a run's copy
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(parse(source), str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
