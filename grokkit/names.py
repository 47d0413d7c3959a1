"""Data classes shared by all packages: probe sets, readings, tables, figure data. NumPy only, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

TABLE_COLUMNS = (
    "run",
    "seed",
    "group",
    "config",
    "step",
    "probe_set",
    "layer",
    "measure",
    "measure_id",
    "radius",
    "directions",
    "epsilon",
    "attack",
    "value",
    "low",
    "high",
    "n",
    "unit",
)
"""Columns of a table, one row per number. Runs of one `group` differ only in their seed: it is a label, `config` a hash
of their configuration without the seed. `low` and `high` bound `value` (NaN if no interval is known),
`n` counts the images behind it, `radius` is in the input space of the net, `directions` counts those of the frame,
`epsilon` is in pixels."""

SIGNED = ("integrated_gradients", "input_x_gradient", "deep_lift")
"""Attributions whose sign is meaningful even if all values of a map have the same sign."""
SLOPES = ("saliency", "guided_backprop")
"""Attributions that are a gradient per unit of pixel, not a share of the logit."""


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Named, fixed set of images on which measures are computed, identified by a hash.

    Args:
        name: `train`, `test`, `random` or a name of the caller's choice.
        images: (N, ...) array; uint8 in 0..255 stands for pixels in [0, 1], float32 is used unchanged.
        labels: (N,) int64 class numbers; -1 for an image without a label (the `random` set).
        source: origin of the images, for example `digits/train`.
        indices: (N,) int64 positions in that source; -1 if there is none.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    source: str
    indices: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.indices):
            raise ValueError(
                f"probe set {self.name!r} needs as many labels and indices as images; got "
                f"{len(self.images)} images, {len(self.labels)} labels, {len(self.indices)} indices"
            )
        if self.images.dtype not in (np.uint8, np.float32):
            raise ValueError(f"probe set {self.name!r} needs uint8 or float32 images; got {self.images.dtype}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 over images, labels, source and indices."""
        digest = hashlib.sha256(f"{self.images.dtype}{self.images.shape}{self.source}".encode())
        for array in (self.images, self.labels, self.indices):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Reading:
    """Result of a measure: values with named dims, coords and a unit.

    Args:
        measure: name of the measure.
        values: array with one axis per name in `dims`.
        dims: names of the axes; `probe_set`, `layer`, `radius`, `directions`, `epsilon`, `attack` become table columns;
            labels of other axes are not in the table.
        coords: for every dim the tuple of its labels, in order.
        unit: unit of `values`, as text.
        n: images behind each value; one number, or one per probe set if `probe_set` is a dim.
        low, high: bounds of an interval around `values`, of the same shape, or None.
        settings: JSON-able parameters and checks of the values; `companions`, a list of rows as in `rows`, are added to
            the table under their own measure names.
    """

    measure: str
    values: np.ndarray
    dims: tuple[str, ...]
    coords: Mapping[str, Sequence[Any]]
    unit: str
    n: int | tuple[int, ...] = 0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = tuple(len(self.coords[dim]) for dim in self.dims)
        if self.values.shape != expected:
            raise ValueError(
                f"reading {self.measure!r}: values have shape {self.values.shape}, coords require {expected}"
            )
        for bound in (self.low, self.high):
            if bound is not None and bound.shape != expected:
                raise ValueError(f"reading {self.measure!r}: a bound has shape {bound.shape}, values {expected}")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one dict per value, with the dims as keys next to `measure`, `value`, `low`, `high`, `n`, `unit`."""
        for index in product(*(range(length) for length in self.values.shape)):
            labels = {dim: self.coords[dim][position] for dim, position in zip(self.dims, index, strict=True)}
            yield labels | {
                "measure": self.measure,
                "value": float(self.values[index]),
                "low": float("nan") if self.low is None else float(self.low[index]),
                "high": float("nan") if self.high is None else float(self.high[index]),
                "n": self._count(index),
                "unit": self.unit,
            }

    def _count(self, index: tuple[int, ...]) -> int:
        if isinstance(self.n, int):
            return self.n
        return self.n[index[self.dims.index("probe_set")]]


@dataclass(frozen=True, eq=False)
class FigureData:
    """Input of a figure.

    Args:
        table: tidy frame with `TABLE_COLUMNS`.
        arrays: named arrays of each attribution method, `attributions/<method>/...`: `values` (step, image, channel,
            height, width), `steps` (step,), `labels` (image,), `images` (image, ...) and `run`, the run's name.
        events: frame of decisions and incidents: `run`, `seed`, `step`, `kind`, `text` and the event's own fields.
    """

    table: pd.DataFrame
    arrays: Mapping[str, np.ndarray]
    events: pd.DataFrame


def format_epsilon(epsilon: float) -> str:
    """Format an l_inf radius in pixels as k/255 if it is a multiple of 1/255, else as a decimal number."""
    levels = 255 * epsilon
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{epsilon:g}"
