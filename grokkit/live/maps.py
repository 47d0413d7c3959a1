"""Render attribution maps as PNG images with one colour scale for all snapshots, using only the standard library."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from grokkit.errors import TrajectoryError
from grokkit.names import SIGNED, SLOPES

DIVERGING = (
    "#053061",
    "#2166ac",
    "#4393c3",
    "#92c5de",
    "#d1e5f0",
    "#f7f7f7",
    "#fddbc7",
    "#f4a582",
    "#d6604d",
    "#b2182b",
    "#67001f",
)
"""ColorBrewer's red-blue colours, as in the figure `attributions`: white is 0."""
SEQUENTIAL = ("#000004", "#1c1044", "#4f127b", "#812581", "#b5367a", "#e55064", "#fb8761", "#fec287", "#fcfdbf")
"""Matplotlib's magma at nine positions."""
QUANTILE = 0.995


class MapSet:
    """Attribution maps of a run by one method: their steps, and the colour scale that they share.

    Args:
        identity: folder name of the attribution.
        metadata: metadata of any of its files.
        labels: (image,) target classes.

    Raises:
        TrajectoryError: method or probe set is missing from the metadata, or the labels have another form.
    """

    def __init__(self, identity: str, metadata: dict[str, Any], labels: np.ndarray) -> None:
        names = [metadata.get(name) for name in ("method", "probe_set")]
        if not all(isinstance(name, str) for name in names):
            raise TrajectoryError(f"expected method and probe set of the maps as text; got {names}")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise TrajectoryError(
                f"expected labels as integers of shape (image,); got {labels.shape} of {labels.dtype}"
            )
        self.identity, (self.method, self.probe_set) = identity, map(str, names)
        settings = metadata.get("settings")
        self.parameters = settings if isinstance(settings, dict) else {}
        self.labels = [int(label) for label in labels]
        self.steps: list[int] = []
        self.limit, self.signed = 0.0, self.method in SIGNED

    def add_step(self, step: int, values: np.ndarray) -> None:
        """Add the maps (image, channel, height, width) of one step to the colour scale.

        The scale extends to the largest of the snapshots' 99.5 % quantiles of absolute relevance, summed over channels;
        values that are not finite are ignored.

        Raises:
            TrajectoryError: the maps have another form, or another number of images than the labels.
        """
        maps = self._sum_channels(values)
        finite = np.abs(maps[np.isfinite(maps)])
        self.steps = sorted({*self.steps, step})
        self.limit = max(self.limit, float(np.quantile(finite, QUANTILE)) if len(finite) else 0.0)
        self.signed = self.signed or bool((maps < 0).any())

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to draw the slider, the labels and the colour bar, as JSON values."""
        colours = DIVERGING if self.signed else SEQUENTIAL
        return {
            "identity": self.identity,
            "method": self.method,
            "steps": self.steps,
            "labels": self.labels,
            "limit": self.limit or 1.0,
            "signed": self.signed,
            "colours": colours,
            "unit": "logits / pixel" if self.method in SLOPES else "logits",
        }

    def render(self, values: np.ndarray) -> bytes:
        """Return a PNG of all maps (image, channel, height, width) side by side. Raises as `add_step`."""
        limit = self.limit or 1.0
        maps = self._sum_channels(values)
        with np.errstate(over="ignore"):  # the scale may be close to zero
            fraction = (maps / limit + 1) / 2 if self.signed else maps / limit
        return encode_png(side_by_side(apply_colours(fraction, DIVERGING if self.signed else SEQUENTIAL)))

    def _sum_channels(self, values: np.ndarray) -> np.ndarray:
        """Return relevance summed over channels, (image, height, width)."""
        if values.ndim != 4 or not values.size or values.dtype.kind not in "fiu" or len(values) != len(self.labels):
            raise TrajectoryError(
                f"expected maps as numbers of shape (image, channel, height, width) for {len(self.labels)} images; "
                f"got {values.shape} of {values.dtype}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            maps: np.ndarray = values.sum(axis=1)
        return maps


def apply_colours(fraction: np.ndarray, colours: tuple[str, ...]) -> np.ndarray:
    """Map values in 0..1 (others are clipped) to uint8 colours interpolated between the given ones, on a new last axis
    of size 3."""
    stops = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours], dtype=float)
    positions = np.linspace(0, 1, len(stops))
    flat = np.nan_to_num(fraction, nan=0.0).clip(0, 1).ravel()
    channels = [np.interp(flat, positions, stops[:, channel]) for channel in range(3)]
    pixels: np.ndarray = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return pixels.reshape(*fraction.shape, 3)


def to_photographs(images: np.ndarray) -> np.ndarray:
    """Convert probe images (image, channel, height, width) to uint8 colours (image, height, width, 3).

    Images with values outside 0..1 are rescaled to it; values that are not finite become black.

    Raises:
        TrajectoryError: the images have another form.
    """
    if images.ndim != 4 or not images.size or images.dtype.kind not in "fiub":
        raise TrajectoryError(
            f"expected images as numbers of shape (image, channel, height, width); got {images.shape} of {images.dtype}"
        )
    pixels = images.astype(float) / (255 if images.dtype == np.uint8 else 1)
    pixels = np.where(np.isfinite(pixels), pixels, 0.0)
    if pixels.min() < 0 or pixels.max() > 1:
        half = pixels / 2 - pixels.min() / 2  # the difference of two large numbers is not finite
        pixels = half / (half.max() or 1.0)
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.mean(axis=1, keepdims=True)
    pixels = np.moveaxis(np.repeat(pixels, 3 // pixels.shape[1], axis=1), 1, -1)
    return np.rint(255 * pixels).astype(np.uint8)


def side_by_side(images: np.ndarray) -> np.ndarray:
    """Join images (N, height, width, 3) to one image (height, N * width, 3)."""
    count, height, width, _ = images.shape
    return images.transpose(1, 0, 2, 3).reshape(height, count * width, 3)


def encode_png(image: np.ndarray) -> bytes:
    """Encode a uint8 image (height, width, 3) as PNG."""
    height, width, _ = image.shape
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), image.reshape(height, -1)], axis=1)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows.tobytes(), 6),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
