"""Write and read CSV text that a spreadsheet does not interpret as a formula."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pandas as pd

_FORMULA_START = re.compile(r"'*[=+\-@\t\r]")
"""Text that a spreadsheet may run as a formula, also if quotes already precede it, so that adding one quote is
reversible. See OWASP, "CSV Injection".
"""


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as comma-separated text without its index, see `encode_csv`."""
    path.write_bytes(encode_csv(frame))


def encode_csv(frame: pd.DataFrame) -> bytes:
    """Encode a frame as comma-separated text without its index.

    Text cells and column names that begin like a formula (`=`, `+`, `-`, `@`, tab, carriage return) get a `'` in
    front, which spreadsheets do not show; `grokkit.analysis.tables.read_table` removes it. Numbers are unchanged.
    """
    quoted = _map_text(frame, lambda text: f"'{text}" if _FORMULA_START.match(text) else text)
    text = quoted.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # it ends a line for readers, and Python 3.11 does not quote it by itself
        text = quoted.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text.encode(errors="backslashreplace")


def unquote_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Remove the quotes that `encode_csv` added."""
    return _map_text(frame, lambda text: text[1:] if text.startswith("'") and _FORMULA_START.match(text) else text)


def _map_text(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    """Apply `change` to every text cell and column name of a frame."""
    changed = frame.rename(columns=lambda name: change(name) if isinstance(name, str) else name)
    for column in range(len(frame.columns)):
        cells = frame.iloc[:, column]
        if not (pd.api.types.is_object_dtype(cells.dtype) or pd.api.types.is_string_dtype(cells.dtype)):
            continue
        texts = [change(cell) if isinstance(cell, str) else cell for cell in cells]
        changed.isetitem(column, pd.Series(texts, dtype=cells.dtype).array)
    return changed
