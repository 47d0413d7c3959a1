"""Text output of the commands: aligned tables, paths and JSON, the same in a terminal and in a pipe, with control
characters escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grokkit.escape import escape_controls


def align_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows under their header, columns two spaces apart; control characters are escaped."""
    lines = [list(header), *([escape_controls(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def shorten_path(path: Path) -> str:
    """Return the path relative to the working directory if it lies below it, else unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def pretty_json(value: Any) -> str:
    """Format as indented JSON, with null for numbers that are not finite and text for types such as dates."""
    from grokkit.trajectory.documents import drop_non_finite

    return json.dumps(drop_non_finite(value), indent=1, default=str, allow_nan=False)


def format_final_accuracy(newest: Mapping[str, float]) -> str:
    """Format the final test accuracy of a run, and that with test-time augmentation if it was evaluated; `newest` is
    `Run.newest_metrics()`. Empty if the training loop did not log any."""
    if "test_set.accuracy" not in newest:
        return ""
    tta = newest.get("test_set.accuracy_tta")
    with_views = "" if tta is None else f" plain, {tta:.4f} with TTA (mean over image and mirror)"
    return f", test accuracy {newest['test_set.accuracy']:.4f}{with_views}"


def format_cost(status: Mapping[str, Any]) -> str:
    """Format the cost of a run, as in `, $0.42 spent`; empty if the run had no price."""
    from grokkit.recording.budget import format_dollars

    spent = status.get("spent")
    return "" if spent is None else f", {format_dollars(spent)} spent"
