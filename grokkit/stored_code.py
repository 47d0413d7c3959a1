"""A run's own experiment.py: executed only for a name that is unknown without it, and only where the user trusts it.

What the file imports under names of earlier versions is found under today's (`old_names`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokkit.errors import UntrustedCodeError, UsageError
from grokkit.old_names import translate
from grokkit.registry import STUDY_PREFIX, import_source, study_name
from grokkit.trust import digest_of, is_trusted, list_path, read_regular

STUDY_FILE = "experiment.py"
"""The source of the study in a run folder."""


@dataclass(frozen=True)
class NameRequest:
    """A name that something is asked for by.

    Args:
        name: such as `my_mlp`.
        find: what the name stands for; a UsageError that says the nearest one otherwise.
    """

    name: str
    find: Callable[[str], Any]


def import_unknown(folders: Sequence[Path], wanted: Iterable[NameRequest], *, trust: bool = False) -> None:
    """Execute the experiment.py of run folders as far as that is needed to know every name in `wanted`.

    Nothing is read where all names are known to grokkit, to installed packages, or to the calling program. A name that
    another study has registered in this process counts as unknown, since the run's own study may mean another thing
    by it. The bytes that are executed are the ones that were held against the list.

    Args:
        folders: of the runs.
        wanted: names and how they are looked up.
        trust: execute a file that is not on the user's list, in this call; the list stays as it is.

    Raises:
        UntrustedCodeError: a name is unknown, and a file that may register it is not on the user's list.
        UsageError: a name that is unknown with the files too, or a file that cannot be read or imported.
    """
    missing = [each for each in wanted if not _is_known(each, ())]
    sources = _sources(folders, missing[0]) if missing else {}
    missing = _still_missing(missing, sources)
    refused = []
    for source, path in sources.items():
        if not missing:
            return
        if not trust and not is_trusted(source):
            refused.append((path, source))
            continue
        _execute(source, path, missing[0])
        missing = _still_missing(missing, sources)
    if missing and refused:
        raise UntrustedCodeError(_describe_refusal(missing[0], *refused[0]))
    for each in missing:
        each.find(each.name)


def _sources(folders: Sequence[Path], wanted: NameRequest) -> dict[bytes, Path]:
    """Source text -> where it is, the same text once. Raises UsageError for one that cannot be read."""
    found: dict[bytes, Path] = {}
    for folder in folders:
        path = folder / STUDY_FILE
        try:
            found.setdefault(read_regular(path), path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{_describe_unknown(wanted)} {path} is not read: {error.strerror}") from error
    return found


def _still_missing(wanted: Iterable[NameRequest], sources: Iterable[bytes]) -> list[NameRequest]:
    own = {study_name(source) for source in sources}
    return [each for each in wanted if not _is_known(each, own)]


def _is_known(wanted: NameRequest, own: Collection[str]) -> bool:
    """Whether the name is registered, and not by another study than those whose modules are called as in `own`."""
    try:
        module = str(getattr(wanted.find(wanted.name), "__module__", ""))
    except UsageError:
        return False
    return module in own or not module.startswith(STUDY_PREFIX)


def _execute(source: bytes, path: Path, wanted: NameRequest) -> None:
    try:
        import_source(source, path, translate)
    except UsageError as error:
        raise UsageError(
            f"{wanted.name!r} is looked for there, and {error}. A name that another study took in this process is free "
            "in a new one"
        ) from error


def _describe_refusal(wanted: NameRequest, path: Path, source: bytes) -> str:
    try:
        where = str(list_path())
    except OSError:
        where = "there is none: this user has no home folder"
    return (
        f"{_describe_unknown(wanted)} {path} may register it (sha256 {digest_of(source)[:12]}), and was not "
        "executed: it is not "
        f"on your list of trusted code ({where})."
    )


def _describe_unknown(wanted: NameRequest) -> str:
    """That the name is unknown, with the nearest one."""
    try:
        wanted.find(wanted.name)
    except UsageError as error:
        return f"{error}."
    return f"{wanted.name!r} is known in this process from another study only."
