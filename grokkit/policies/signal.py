"""Names and units of the readings that signals produce for policies."""

from __future__ import annotations

QUANTITIES = {"density": "crossings / radius / live unit", "loss": "loss", "oui": "OUI"}
"""Quantities measured on the probe images, with units: local complexity, and those of the comparison signals."""

UNITS = {f"log_{name}": f"log({unit})" for name, unit in QUANTITIES.items()} | {
    f"log_{name}_slope{end}": "per unit of log step" for name in QUANTITIES for end in ("", "_low", "_high")
}
"""Reading name -> unit."""
