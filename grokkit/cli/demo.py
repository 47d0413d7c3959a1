"""`grokkit demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from grokkit.cli.figure import draw_figures
from grokkit.cli.parse import parse_arguments
from grokkit.cli.setup import make_callbacks, make_webhook, select_machine

FIGURES = ["phases", "layers", "attributions", "policy"]


def main(argv: list[str]) -> None:
    """Read the words and show."""
    parse_arguments("demo", demo, argv)


def demo(
    runs: Path = Path("runs"), seed: int = 0, steps: int | None = None, device: Literal["cpu", "cuda"] | None = None
) -> None:
    """Train the quickstart on handwritten digits, measure and explain it along the way, and draw the figures.

    No download. A demo that is there already is shown again; an interrupted one goes on.

    Try:
        grokkit demo

    Args:
        runs: folder that the runs go to.
        seed: root seed.
        steps: another number of updates than the quickstart's.
        device: cpu or cuda; by default a GPU where there is one.
    """
    from grokkit import recipes
    from grokkit.config.overrides import apply_cli_overrides
    from grokkit.training import loop

    began = time.monotonic()
    found, on, messages = recipes.load_shipped("quickstart"), select_machine(device), make_webhook(None)
    paths = []
    for made in found.configs():
        config = apply_cli_overrides(made, None, seed, steps)
        path = runs / config.run_name
        if path.exists():
            loop.resume(path, device=device, callback=make_callbacks(on, messages))
        else:
            loop.train(config, runs=runs, device=device, callback=make_callbacks(on, messages), experiment=found.source)
        paths.append(path)
    drawn = draw_figures(FIGURES, tuple(paths), runs / "quickstart" / "figures")
    print(f"done in {time.monotonic() - began:.0f} s")
    print(f"numbers:  {drawn[-1]}")
    print("runs:     " + "\n          ".join(map(str, paths)))
    print("figures:  " + "\n          ".join(str(path) for path in drawn if path.suffix == ".png"))
