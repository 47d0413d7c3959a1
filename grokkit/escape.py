"""Text from outside, made safe to print: names, reasons and events come out of files that anyone may have written."""

from __future__ import annotations

import unicodedata

_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of what moves a cursor, starts an escape sequence, turns the writing direction round, or is half
a surrogate pair, which no terminal can be sent."""


def escape_controls(text: str, keep: str = "") -> str:
    """Write every control character of `text` as an escape, such as `\\x1b`; the characters in `keep`
    stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in keep or unicodedata.category(char) not in _UNPRINTABLE else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
