"""Registries of members by name, found in the modules of a package, in entry points and by a decorator."""

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
from typing import Any, Generic, TypeVar

from grokkit.errors import UnknownNameError, UsageError

T = TypeVar("T")
Registered = TypeVar("Registered", bound=Callable[..., Any])

STUDY_PREFIX = "grokkit_study_"
"""Prefix of the names of modules that are made from study files."""


def did_you_mean(word: str, allowed: list[str]) -> str:
    """Return ` Did you mean 'x'?` with the closest allowed word, or an empty string if none is close."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """Functions or classes by name, each of which makes a `T`.

    Args:
        kind: singular noun for error messages, and of the entry point group `grokkit.<kind>`.
        package: dotted package whose modules are imported, once, at the first look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, Callable[..., T]] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Return a decorator that registers a function or class as `name`.

        Raises:
            UsageError: `name` cannot be the name of a folder, or is registered already.
        """
        if not name.isprintable() or name.startswith((".", " ")) or "/" in name or not name:
            raise UsageError(
                f"{name!r} cannot be the name of a {self.kind}, because folders are named after it: it must be "
                "printable, not empty, without '/' and not begin with '.' or a space"
            )

        def add(member: Registered) -> Registered:
            known = self._members.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (member.__module__, member.__qualname__):
                raise UsageError(
                    f"{self.kind} {name!r} is already registered by {known.__module__}; choose another name"
                )
            self._members[name] = member
            return member

        return add

    def names(self) -> list[str]:
        """List all registered names, sorted."""
        self._scan()
        return sorted(self._members)

    def get(self, name: str) -> Callable[..., T]:
        """Return the member `name`. Raises UnknownNameError with the closest names."""
        self._scan()
        if name not in self._members:
            known = self.names()
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}"
            )
        return self._members[name]

    def name_of(self, member: Callable[..., Any]) -> str:
        """Return the name under which `member` is registered. Raises UsageError if it is not."""
        self._scan()
        for name, known in self._members.items():
            if known is member:
                return name
        raise UsageError(
            f"{member.__qualname__} is not registered; decorate it with `@register(name)` of {self.package}"
        )

    def create(self, name: str, *arguments: Any, **parameters: Any) -> T:
        """Call the member `name`. Raises UsageError for an unknown parameter, with the allowed ones."""
        return self.check(name, parameters)(*arguments, **parameters)

    def check(self, name: str, parameters: Iterable[str]) -> Callable[..., T]:
        """Return the member `name` after checking that it takes `parameters`. Raises UsageError otherwise."""
        member = self.get(name)
        allowed = inspect.signature(member).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in allowed.values())
        for parameter in parameters:
            if parameter not in allowed and not takes_any:
                raise UsageError(
                    f"unknown parameter {parameter!r} of {self.kind} {name!r}.{did_you_mean(parameter, list(allowed))} "
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
    """Return the name of the module that is made from a study with this source."""
    return f"{STUDY_PREFIX}{hashlib.sha256(source).hexdigest()[:16]}"


def import_study(path: Path) -> ModuleType:
    """Import a study's file, so that what it registers is known; a file with the same text is executed once.

    Raises:
        UsageError: the file cannot be imported.
    """
    return import_source(path.read_bytes(), path)


def import_source(source: bytes, path: Path, parse: Callable[[bytes], ast.Module] = ast.parse) -> ModuleType:
    """Import a study from source text that was read from `path`; the file is not read again.

    Args:
        source: of the study.
        path: of the file, for tracebacks.
        parse: turns the source into a syntax tree.

    Raises:
        UsageError: the text cannot be imported.
    """
    name = study_name(source)
    if name in sys.modules:
        sys.modules[name].__file__ = str(path)  # a run's copy of the same text may be the one that exists now
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
