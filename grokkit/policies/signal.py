"""Readings that a signal gives a policy, with their units."""

from __future__ import annotations

QUANTITIES = {"density": "crossings / radius / live unit", "loss": "loss", "oui": "OUI"}
"""What can be read at the points, with its unit: local complexity, and what its twins follow."""

UNITS = {f"log_{name}": f"log({unit})" for name, unit in QUANTITIES.items()} | {
    f"log_{name}_slope{end}": "per unit of log step" for name in QUANTITIES for end in ("", "_low", "_high")
}
"""Units of the readings by name."""
