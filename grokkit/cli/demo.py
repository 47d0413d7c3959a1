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
    """Parse arguments and run the demo."""
    parse_arguments("demo", demo, argv)


def demo(
    runs: Path = Path("runs"), seed: int = 0, steps: int | None = None, device: Literal["cpu", "cuda"] | None = None
) -> None:
    """Train the quickstart on handwritten digits with measures and attributions along the way, and draw the figures.

    Downloads nothing. A finished demo is not trained again; an interrupted one is resumed.

    Try:
        grokkit demo

    Args:
        runs: folder for the runs.
        seed: root seed.
        steps: number of optimizer updates, in place of the quickstart's.
        device: cpu or cuda; by default a GPU if there is one.
    """
    from grokkit import recipes
    from grokkit.config.overrides import apply_cli_overrides
    from grokkit.training import loop

    start = time.monotonic()
    study, on_device, webhook = recipes.load_shipped("quickstart"), select_machine(device), make_webhook(None)
    paths = []
    for base_config in study.configs():
        config = apply_cli_overrides(base_config, None, seed, steps)
        path = runs / config.run_name
        if path.exists():
            loop.resume(path, device=device, callback=make_callbacks(on_device, webhook))
        else:
            loop.train(
                config, runs=runs, device=device, callback=make_callbacks(on_device, webhook), experiment=study.source
            )
        paths.append(path)
    files = draw_figures(FIGURES, tuple(paths), runs / "quickstart" / "figures")
    print(f"done in {time.monotonic() - start:.0f} s")
    print(f"numbers:  {files[-1]}")
    print("runs:     " + "\n          ".join(map(str, paths)))
    print("figures:  " + "\n          ".join(str(path) for path in files if path.suffix == ".png"))
