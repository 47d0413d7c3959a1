"""Execute the experiment.py stored in a run folder, only if a name is unknown without it and the user trusts it.

Imports of names from earlier versions are translated to current names (`old_names`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokkit.errors import UntrustedCodeError, UsageError
from grokkit.old_names import translate
from grokkit.registry import STUDY_PREFIX, import_source, study_name
from grokkit.trust import get_list_path, hash_source, is_trusted, read_regular

STUDY_FILE = "experiment.py"
"""File in a run folder that holds the source of the experiment."""


@dataclass(frozen=True)
class NameRequest:
    """A name and how to look it up.

    Args:
        name: such as `my_mlp`.
        find: returns what is registered under the name, or raises a UsageError that suggests the nearest one.
    """

    name: str
    find: Callable[[str], Any]


def import_unknown(folders: Sequence[Path], requests: Iterable[NameRequest], *, trust: bool = False) -> None:
    """Execute the experiment.py of run folders until every name in `requests` is known.

    No file is read if all names are known from grokkit, installed packages or the calling program. A name that another
    experiment has registered in this process counts as unknown, because the run's own experiment may use it for
    something else. The executed bytes are the same bytes that were checked against the list.

    Args:
        folders: run folders.
        requests: names and how to look them up.
        trust: also execute files that are not on the user's list, in this call only; the list is not changed.

    Raises:
        UntrustedCodeError: a name is unknown, and a file that may register it is not on the user's list.
        UsageError: a name is unknown even with the files, or a file cannot be read or imported.
    """
    missing = [request for request in requests if not _is_known(request, ())]
    sources = _read_sources(folders, missing[0]) if missing else {}
    missing = _select_unknown(missing, sources)
    refused = []
    for source, path in sources.items():
        if not missing:
            return
        if not trust and not is_trusted(source):
            refused.append((path, source))
            continue
        _execute(source, path, missing[0])
        missing = _select_unknown(missing, sources)
    if missing and refused:
        raise UntrustedCodeError(_describe_refusal(missing[0], *refused[0]))
    for request in missing:
        request.find(request.name)


def _read_sources(folders: Sequence[Path], request: NameRequest) -> dict[bytes, Path]:
    """Return source text -> path, without duplicates. Raises UsageError for a file that cannot be read."""
    sources: dict[bytes, Path] = {}
    for folder in folders:
        path = folder / STUDY_FILE
        try:
            sources.setdefault(read_regular(path), path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{_describe_unknown(request)} {path} cannot be read: {error.strerror}") from error
    return sources


def _select_unknown(requests: Iterable[NameRequest], sources: Iterable[bytes]) -> list[NameRequest]:
    modules = {study_name(source) for source in sources}
    return [request for request in requests if not _is_known(request, modules)]


def _is_known(request: NameRequest, modules: Collection[str]) -> bool:
    """Return whether the name is registered by code outside experiments or by one whose module is in `modules`."""
    try:
        module = str(getattr(request.find(request.name), "__module__", ""))
    except UsageError:
        return False
    return module in modules or not module.startswith(STUDY_PREFIX)


def _execute(source: bytes, path: Path, request: NameRequest) -> None:
    try:
        import_source(source, path, translate)
    except UsageError as error:
        raise UsageError(
            f"{request.name!r} is looked up there, and {error}. Names registered by another experiment in this process "
            "are free in a new process"
        ) from error


def _describe_refusal(request: NameRequest, path: Path, source: bytes) -> str:
    try:
        location = str(get_list_path())
    except OSError:
        location = "no list: this user has no home folder"
    return (
        f"{_describe_unknown(request)} {path} may register it (sha256 {hash_source(source)[:12]}), and was not "
        "executed: it is not "
        f"on your list of trusted code ({location})."
    )


def _describe_unknown(request: NameRequest) -> str:
    """Return a sentence that the name is unknown, with the nearest known name."""
    try:
        request.find(request.name)
    except UsageError as error:
        return f"{error}."
    return f"{request.name!r} is registered in this process by another experiment only."
