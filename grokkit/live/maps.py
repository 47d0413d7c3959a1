"""Attribution maps as pictures: one colour scale for all snapshots, PNG from the standard library."""

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
"""ColorBrewer's red-blue, as in the figure `attributions`: white is 0."""
SEQUENTIAL = ("#000004", "#1c1044", "#4f127b", "#812581", "#b5367a", "#e55064", "#fb8761", "#fec287", "#fcfdbf")
"""Matplotlib's magma, at nine places."""
QUANTILE = 0.995


class MapSet:
    """What is known of a run's maps by one method: their steps, and the scale that they share.

    Args:
        identity: the recording.
        note: the note of any of its files.
        labels: (image,) target classes.

    Raises:
        TrajectoryError: the note names no method or no probe set, or the labels are something else.
    """

    def __init__(self, identity: str, note: dict[str, Any], labels: np.ndarray) -> None:
        named = [note.get(name) for name in ("method", "probe_set")]
        if not all(isinstance(name, str) for name in named):
            raise TrajectoryError(f"maps name their method and their probe set as text; got {named}")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise TrajectoryError(f"labels must be (image,) integers; got {labels.shape} of {labels.dtype}")
        self.identity, (self.method, self.probe_set) = identity, map(str, named)
        self.labels = [int(label) for label in labels]
        self.steps: list[int] = []
        self.limit, self.signed = 0.0, self.method in SIGNED

    def add(self, step: int, values: np.ndarray) -> None:
        """Take the maps (image, channel, height, width) of one step into account.

        The scale reaches to the largest of the snapshots' 99.5 % quantiles of absolute relevance, summed over channels;
        numbers that are not finite are left out of it.

        Raises:
            TrajectoryError: the maps have another form, or are of another number of images than the labels.
        """
        maps = self._sum_channels(values)
        finite = np.abs(maps[np.isfinite(maps)])
        self.steps = sorted({*self.steps, step})
        self.limit = max(self.limit, float(np.quantile(finite, QUANTILE)) if len(finite) else 0.0)
        self.signed = self.signed or bool((maps < 0).any())

    def describe(self) -> dict[str, Any]:
        """What a page needs to draw the slider, the labels and the colour bar."""
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

    def picture(self, values: np.ndarray) -> bytes:
        """PNG of all maps (image, channel, height, width) side by side. Raises as `add`."""
        limit = self.limit or 1.0
        maps = self._sum_channels(values)
        with np.errstate(over="ignore"):  # beside a scale of next to nothing
            share = (maps / limit + 1) / 2 if self.signed else maps / limit
        return encode_png(side_by_side(apply_colours(share, DIVERGING if self.signed else SEQUENTIAL)))

    def _sum_channels(self, values: np.ndarray) -> np.ndarray:
        """(image, height, width): relevance summed over channels."""
        if values.ndim != 4 or not values.size or values.dtype.kind not in "fiu" or len(values) != len(self.labels):
            raise TrajectoryError(
                f"maps must be (image, channel, height, width) numbers of {len(self.labels)} images; "
                f"got {values.shape} of {values.dtype}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            maps: np.ndarray = values.sum(axis=1)
        return maps


def apply_colours(share: np.ndarray, colours: tuple[str, ...]) -> np.ndarray:
    """Numbers 0..1 (others are cut off) as uint8 colours between the given ones; one axis more, of 3."""
    stops = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours], dtype=float)
    places = np.linspace(0, 1, len(stops))
    flat = np.nan_to_num(share, nan=0.0).clip(0, 1).ravel()
    channels = [np.interp(flat, places, stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8).reshape(*share.shape, 3)


def to_photographs(images: np.ndarray) -> np.ndarray:
    """Probe images (image, channel, height, width) as uint8 colours (image, height, width, 3); floats outside 0..1 are
    stretched to it, what is not finite is black. Raises TrajectoryError if they have another form."""
    if images.ndim != 4 or not images.size or images.dtype.kind not in "fiub":
        raise TrajectoryError(
            f"images must be (image, channel, height, width) numbers; got {images.shape} of {images.dtype}"
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


def side_by_side(pictures: np.ndarray) -> np.ndarray:
    """(N, height, width, 3) as one picture (height, N * width, 3)."""
    count, height, width, _ = pictures.shape
    return pictures.transpose(1, 0, 2, 3).reshape(height, count * width, 3)


def encode_png(picture: np.ndarray) -> bytes:
    """A picture (height, width, 3) of uint8 as the bytes of a PNG file."""
    height, width, _ = picture.shape
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), picture.reshape(height, -1)], axis=1)
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
