"""Text in CSV files that a spreadsheet must not take for a formula."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What a spreadsheet may run, and the same behind quotes of ours or of others: with one more it comes back exactly.
See OWASP, "CSV Injection"."""


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as comma-separated text without its index, see `encode_csv`."""
    path.write_bytes(encode_csv(frame))


def encode_csv(frame: pd.DataFrame) -> bytes:
    """A frame as comma-separated text without its index.

    Text cells and column names that begin like a formula (`=`, `+`, `-`, `@`, tab, carriage return) get a `'` in front,
    which spreadsheets do not show; `grokkit.analysis.tables.read_table` takes it off. Numbers stay as they are.
    """
    quoted = _map_text(frame, lambda text: f"'{text}" if _FORMULA.match(text) else text)
    text = quoted.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # which ends a line for readers, and is not put into quotes of its own by Python 3.11
        text = quoted.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text.encode(errors="backslashreplace")


def unquote_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it was before `encode_csv`."""
    return _map_text(frame, lambda text: text[1:] if text.startswith("'") and _FORMULA.match(text) else text)


def _map_text(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    """The frame with every text cell and column name changed."""
    changed = frame.rename(columns=lambda name: change(name) if isinstance(name, str) else name)
    for place in range(len(frame.columns)):
        cells = frame.iloc[:, place]
        if not (pd.api.types.is_object_dtype(cells.dtype) or pd.api.types.is_string_dtype(cells.dtype)):
            continue
        texts = [change(cell) if isinstance(cell, str) else cell for cell in cells]
        changed.isetitem(place, pd.Series(texts, dtype=cells.dtype).array)
    return changed
