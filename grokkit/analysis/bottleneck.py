"""Where a training loop is bound, from its measured speeds: by its input, by its host, or by its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from grokkit.errors import DataError

NEARLY = 0.8
"""Share of the loop's time from which on its input, made alone, takes nearly all of it."""
LOW = 1 / 3
"""Share of the ceiling below which a loop that is bound by arithmetic is told what else takes the time."""


@dataclass(frozen=True)
class Bottleneck:
    """How fast a loop runs at one batch size and what binds it.

    Args:
        run: model, data and device, in words.
        source: where its batches come from.
        batch_size: images per update.
        images_per_s: of the loop.
        share: FLOP/s of the loop over the device's ceiling.
        bound: `input`, `host` or `arithmetic`, see `classify_bottleneck`.
        sentence: the same with its reason.
    """

    run: str
    source: str
    batch_size: int
    images_per_s: float
    share: float
    bound: str
    sentence: str


def classify_bottleneck(loop: float, input: float, step: float, fixed: float) -> str:
    """What binds a training loop.

    `input` where making the batches alone takes at least `NEARLY` of the loop's time, or where the loop takes at least
    twice as long as its step on a batch that is there: faster steps would hardly help. Else `host` where at least half
    of a step does not depend on its number of images: Python, launches, kernels too small to fill the device; larger
    batches would help. Else `arithmetic`: the time goes with the images.

    Args:
        loop: seconds per update of the whole loop.
        input: seconds to make a batch, nothing trained; with worker processes, between two batches.
        step: seconds of an update on a fixed batch.
        fixed: of these, seconds that do not depend on the batch size, see `fit_fixed_seconds`.
    """
    if input >= NEARLY * loop or loop >= 2 * step:
        return "input"
    return "host" if fixed >= step / 2 else "arithmetic"


def fit_fixed_seconds(smallest: float, few: int, step: float, batch_size: int) -> float:
    """Seconds of a step without any image, on the straight line through two measured ones; never below 0.

    Args:
        smallest: seconds of a step of `few` images.
        few: below `batch_size`.
        step: seconds of a step of `batch_size` images.
    """
    per_image = (step - smallest) / (batch_size - few)
    return max(0.0, min(smallest - few * per_image, step))


def find_bottlenecks(table: pd.DataFrame) -> list[Bottleneck]:
    """One verdict per run, source and batch size, in the table's order.

    Args:
        table: rows of `grokkit bench throughput`: `loop_images_per_s`, `input_images_per_s`, `step_images_per_s`,
            `ceiling_flop_per_s` and `training_flop_per_image`, with the source as `probe_set` and the batch size as
            `n`; the smallest batch of which a step was measured shows what an update costs whatever its batch.

    Raises:
        DataError: one of these numbers is missing or there twice.
    """
    found = []
    for row in table[table["measure"] == "loop_images_per_s"].itertuples():
        run, source, size, speed = str(row.run), str(row.probe_set), int(float(str(row.n))), float(str(row.value))
        own = table[table["run"] == run]
        step = size / _value(own, "step_images_per_s", size)
        few = int(own.loc[own["measure"] == "step_images_per_s", "n"].min())
        fixed = fit_fixed_seconds(few / _value(own, "step_images_per_s", few), few, step, size)
        made = _value(own, "input_images_per_s", size, source)
        flop, ceiling = _value(own, "training_flop_per_image"), _value(own, "ceiling_flop_per_s")
        bound, share = classify_bottleneck(size / speed, size / made, step, fixed), speed * flop / ceiling
        sentence = _sentence(bound, share, made, size / step, fixed / step)
        found.append(Bottleneck(run, source, size, speed, share, bound, sentence))
    return found


def _value(rows: pd.DataFrame, measure: str, size: int = 0, source: str = "") -> float:
    chosen = rows[(rows["measure"] == measure) & (rows["n"] == size) & (rows["probe_set"] == source)]["value"]
    if len(chosen) != 1:
        raise DataError(f"the table holds {len(chosen)} rows of {measure} for batches of {size} {source}; needs one")
    return float(chosen.iloc[0])


def _sentence(bound: str, share: float, made: float, step: float, fixed: float) -> str:
    if bound == "input":
        return f"input: the step alone does {step:,.0f} images/s, making batches alone {made:,.0f}"
    if bound == "host":
        return f"host: {fixed:.0%} of a step does not depend on its images; larger batches help"
    rest = "; memory traffic and small kernels take the rest" if share < LOW else ""
    return f"arithmetic: {share:.1%} of the device's ceiling{rest}"
