"""Classify what limits a training loop, from its measured speeds: its input, its host, or its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from grokkit.errors import DataError

INPUT_BOUND_SHARE = 0.8
"""A loop is input-bound if making the batches alone takes at least this share of its time."""
LOW_CEILING_SHARE = 1 / 3
"""Below this share of the device's ceiling, the explanation of an arithmetic-bound loop names what else uses time."""


@dataclass(frozen=True)
class LoopBottleneck:
    """Speed of a training loop at one batch size, and what limits it.

    Args:
        run: description of model, data and device.
        source: of its batches.
        batch_size: images per update.
        images_per_s: of the loop.
        share: FLOP/s of the loop over the device's ceiling.
        bound: `input`, `host` or `arithmetic`, see `classify_bottleneck`.
        sentence: the bound with its reason.
    """

    run: str
    source: str
    batch_size: int
    images_per_s: float
    share: float
    bound: str
    sentence: str


def classify_bottleneck(loop: float, input: float, step: float, fixed: float) -> str:
    """Return what limits a training loop: `input`, `host` or `arithmetic`.

    - `input`: making the batches alone takes at least `INPUT_BOUND_SHARE` of the loop's time, or the loop takes at
      least twice as long as its step on a ready batch; faster steps would hardly help.
    - `host`: at least half of a step does not depend on its number of images: Python, launches, kernels too small to
      fill the device; larger batches would help.
    - `arithmetic`: everything else; the time grows with the images.

    Args:
        loop: seconds per update of the whole loop.
        input: seconds to make a batch without training; with worker processes, between two batches.
        step: seconds of an update on a fixed batch.
        fixed: seconds of `step` that do not depend on the batch size, see `fit_fixed_seconds`.
    """
    if input >= INPUT_BOUND_SHARE * loop or loop >= 2 * step:
        return "input"
    return "host" if fixed >= step / 2 else "arithmetic"


def fit_fixed_seconds(smallest: float, few: int, step: float, batch_size: int) -> float:
    """Return the seconds of a step without any image, on the straight line through two measured steps; at least 0.

    Args:
        smallest: seconds of a step of `few` images.
        few: below `batch_size`.
        step: seconds of a step of `batch_size` images.
    """
    per_image = (step - smallest) / (batch_size - few)
    return max(0.0, min(smallest - few * per_image, step))


def find_bottlenecks(table: pd.DataFrame) -> list[LoopBottleneck]:
    """Classify every loop of a throughput table: one result per run, source and batch size, in the table's order.

    Args:
        table: rows of `grokkit bench throughput`: `loop_images_per_s`, `input_images_per_s`, `step_images_per_s`,
            `ceiling_flop_per_s` and `training_flop_per_image`, with the source as `probe_set` and the batch size as
            `n`. The step of the smallest batch gives the fixed cost of an update.

    Raises:
        DataError: one of these numbers is missing or occurs twice.
    """
    bottlenecks = []
    for row in table[table["measure"] == "loop_images_per_s"].itertuples():
        run, source, size, speed = str(row.run), str(row.probe_set), int(float(str(row.n))), float(str(row.value))
        run_rows = table[table["run"] == run]
        step = size / _get_value(run_rows, "step_images_per_s", size)
        smallest = int(run_rows.loc[run_rows["measure"] == "step_images_per_s", "n"].min())
        fixed = fit_fixed_seconds(smallest / _get_value(run_rows, "step_images_per_s", smallest), smallest, step, size)
        input_speed = _get_value(run_rows, "input_images_per_s", size, source)
        flop, ceiling = _get_value(run_rows, "training_flop_per_image"), _get_value(run_rows, "ceiling_flop_per_s")
        bound, share = classify_bottleneck(size / speed, size / input_speed, step, fixed), speed * flop / ceiling
        sentence = _explain(bound, share, input_speed, size / step, fixed / step)
        bottlenecks.append(LoopBottleneck(run, source, size, speed, share, bound, sentence))
    return bottlenecks


def _get_value(rows: pd.DataFrame, measure: str, size: int = 0, source: str = "") -> float:
    values = rows[(rows["measure"] == measure) & (rows["n"] == size) & (rows["probe_set"] == source)]["value"]
    if len(values) != 1:
        of = f" of {source} batches" if source else ""
        raise DataError(f"expected one row of {measure}{of} with n = {size}; got {len(values)}")
    return float(values.iloc[0])


def _explain(bound: str, share: float, input_speed: float, step_speed: float, fixed_share: float) -> str:
    if bound == "input":
        return f"input: the step alone reaches {step_speed:,.0f} images/s, making batches alone {input_speed:,.0f}"
    if bound == "host":
        return f"host: {fixed_share:.0%} of a step does not depend on its images; larger batches help"
    rest = "; memory traffic and small kernels take the rest" if share < LOW_CEILING_SHARE else ""
    return f"arithmetic: {share:.1%} of the device's ceiling{rest}"
