"""Escape untrusted text for printing: names, reasons and events are read from files that anyone may have written."""

from __future__ import annotations

import unicodedata

_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of characters that move the cursor, start an escape sequence, reverse the writing direction, or
are half a surrogate pair, which cannot be encoded for a terminal."""


def escape_controls(text: str, keep: str = "") -> str:
    """Replace every control character of `text` with an escape such as `\\x1b`, except those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in keep or unicodedata.category(char) not in _UNPRINTABLE else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
