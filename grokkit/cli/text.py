"""Tables as plain aligned text: whole numbers and paths, in a terminal as in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their header, columns two spaces apart."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def final_accuracy(newest: Mapping[str, float]) -> str:
    """A finished run's accuracy on the test set after its last step, plain and with test-time augmentation where it was
    taken; `newest` as `Run.newest_metrics` gives it. Empty for a run of a loop that did not log any."""
    if "test_set.accuracy" not in newest:
        return ""
    tta = newest.get("test_set.accuracy_tta")
    with_views = "" if tta is None else f", {tta:.4f} with TTA (mean over image and mirror)"
    return f", test accuracy {newest['test_set.accuracy']:.4f} plain{with_views}"


def cost(status: Mapping[str, Any]) -> str:
    """`, $0.42 spent`; empty where the run had no price."""
    from grokkit.training.money import dollars

    spent = status.get("spent")
    return "" if spent is None else f", {dollars(spent)} spent"
