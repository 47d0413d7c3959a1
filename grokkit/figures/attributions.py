"""Draw how the explanation of one prediction changes along training."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from grokkit.errors import UsageError
from grokkit.figures import register
from grokkit.figures.theme import FULL, escape_math, hide_ticks, themed
from grokkit.names import SIGNED, SLOPES, FigureData

MAX_SNAPSHOTS = 8
"""Maximum number of columns; with more, each map would be too small to read."""


@register("attributions")
@themed
def attributions(data: FigureData, image: int = 0) -> Figure:
    """Draw one image's attributions: a row per method, a column per snapshot, beside the image itself.

    Relevance is summed over channels. A row has one colour scale, up to the 99.5 % quantile of its absolute values
    over the snapshots drawn, so columns can be compared; signed maps diverge from white at 0.

    Args:
        data: needs the arrays `attributions/<method>/{values,steps,labels,images}`.
        image: index of the image, from 0.

    Returns:
        A figure as wide as the page.

    Raises:
        UsageError: there are no attributions, methods share no step, or there is no such image.
    """
    methods = sorted({key.split("/")[1] for key in data.arrays if key.startswith("attributions/")})
    if not methods:
        raise UsageError("no attributions found, which this figure draws; add them with `grokkit attribute RUN`")
    steps, labels = _choose_steps(data.arrays, methods), data.arrays[f"attributions/{methods[0]}/labels"]
    if not 0 <= image < len(labels):
        raise UsageError(f"`image` must be an int in 0..{len(labels) - 1}, the explained images; got {image}")
    layout = ConstrainedLayoutEngine(w_pad=0.015, h_pad=0.02, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(FULL, 0.4 + 0.68 * len(methods)), layout=layout)
    panels = figure.subplots(len(methods), 1 + len(steps), squeeze=False)
    for row, method in zip(panels, methods, strict=True):
        _show_picture(row[0], _to_picture(data.arrays[f"attributions/{method}/images"][image]))
        row[0].set_ylabel(textwrap.fill(method.replace("_", " "), 12), rotation=0, ha="right", va="center")
        _draw_row(figure, row, data.arrays, method, image, steps)
    panels[0, 0].set_title(f"image {image}", loc="center")
    for axes, step in zip(panels[0, 1:], steps, strict=True):
        axes.set_title(f"step {step}" if step == steps[0] else f"{step:,}", loc="center")
    run = str(data.arrays.get(f"attributions/{methods[0]}/run", ""))
    title = f"relevance for class {labels[image]}, along training (optimizer updates)"
    figure.suptitle(f"{title}, {escape_math(run)}" if run else title, x=0.01, ha="left")
    return figure


def _choose_steps(arrays: Mapping[str, np.ndarray], methods: list[str]) -> list[int]:
    """Return at most `MAX_SNAPSHOTS` common steps of the methods, spaced logarithmically, first and last included."""
    common = set.intersection(*({int(s) for s in arrays[f"attributions/{m}/steps"]} for m in methods))
    if not common:
        raise UsageError("the attribution methods share no step; run `grokkit attribute RUN` for the same steps")
    steps = np.array(sorted(common))
    if len(steps) <= MAX_SNAPSHOTS:
        return sorted(common)
    log_steps = np.log1p(steps)
    chosen: list[int] = []
    for target in np.linspace(log_steps[0], log_steps[-1], MAX_SNAPSHOTS):
        chosen.append(int(steps[np.abs(log_steps - target).argmin()]))
    return sorted(set(chosen))


def _to_picture(image: np.ndarray) -> np.ndarray:
    """Return the image as (height, width) or (height, width, 3) in 0..1."""
    pixels = image.astype(float) / (255 if image.dtype == np.uint8 else 1)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[-1] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.min() < 0 or pixels.max() > 1:
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels


def _show_picture(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    hide_ticks(axes)


def _draw_row(
    figure: Figure, row: np.ndarray, arrays: Mapping[str, np.ndarray], method: str, image: int, steps: list[int]
) -> None:
    """Draw one method's maps and their common colour bar."""
    recorded = [int(step) for step in arrays[f"attributions/{method}/steps"]]
    values = arrays[f"attributions/{method}/values"]
    maps = np.stack([values[recorded.index(step), image].sum(axis=0) for step in steps])
    signed = method in SIGNED or bool((maps < 0).any())
    limit = float(np.quantile(np.abs(maps), 0.995)) or 1.0
    for axes, relevance in zip(row[1:], maps, strict=True):
        artist = axes.imshow(
            relevance, cmap="RdBu_r" if signed else "magma", vmin=-limit if signed else 0.0, vmax=limit
        )
        hide_ticks(axes)
    bar: Any = figure.colorbar(
        artist,
        ax=row,
        aspect=10,
        shrink=0.85,
        pad=0.01,
        extend="both" if signed else "max",
        label="logits / pixel" if method in SLOPES else "logits",
    )
    bar.outline.set_visible(False)
    bar.set_ticks([-limit, 0.0, limit] if signed else [0.0, limit])
    bar.set_ticklabels([f"{tick:.2g}".replace("-", "−") for tick in bar.get_ticks()])
