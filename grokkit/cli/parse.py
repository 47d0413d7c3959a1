"""How every verb reads its words: a typed function whose docstring is the help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tyro


def parse_arguments(command: str, function: Callable[..., Any], argv: list[str]) -> Any:
    """Call `function` with the arguments in `words`; wrong ones end the process with exit code 2 and a hint."""
    return tyro.cli(function, args=argv, prog=f"grokkit {command}", config=(tyro.conf.FlagCreatePairsOff,))
