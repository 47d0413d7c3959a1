"""Argument parsing of every command: a typed function defines the options, its docstring is the --help text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tyro


def parse_arguments(command: str, function: Callable[..., Any], argv: list[str]) -> Any:
    """Parse `argv` by the signature of `function` and call it; wrong arguments exit with code 2 and a hint."""
    return tyro.cli(function, args=argv, prog=f"grokkit {command}", config=(tyro.conf.FlagCreatePairsOff,))
