"""A run in the terminal: state, bar, newest numbers with sparklines, last events."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grokkit.escape import escape_controls
from grokkit.live.follow import ENDED_STATES, Follower, is_error
from grokkit.live.panels import PANELS, Trace
from grokkit.trajectory import Run

SPARK, WIDTH = "▁▂▃▄▅▆▇█", 32
EVENTS, UNITS_FROM = 5, 110
LOOK_SECONDS, LINE_SECONDS = 1.0, 10.0
LOGGED = ("batch", "test_set", "validation", "rate")
COLOURS = {"running": "blue", "done": "green", "failed": "red", "killed": "red", "unreadable": "red"}


def watch_run(run: Run, console: Console, look: float = LOOK_SECONDS, line: float = LINE_SECONDS) -> None:
    """Show `run` until it ends: redrawn in place in a terminal, a plain line now and then anywhere else; a run that has
    ended is shown once.

    Args:
        run: what to follow.
        console: where to.
        look: seconds between two looks.
        line: shortest time between two plain lines, in seconds.
    """
    follower = Follower(run, maps=False)
    follower.refresh(0)
    if follower.state not in ENDED_STATES:
        _follow(follower, console, look, line)
    console.print(render(follower, console.width))


def _follow(follower: Follower, console: Console, look: float, line: float) -> None:
    tick, told = 0, -line
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while follower.state not in ENDED_STATES:
            if console.is_terminal:
                live.update(render(follower, console.width), refresh=True)
            elif time.monotonic() - told >= line:
                told = time.monotonic()
                console.print(format_line(follower), highlight=False, soft_wrap=True)
            time.sleep(look)
            tick += 1
            follower.refresh(tick)


def render(follower: Follower, width: int) -> Group:
    """Everything at a glance, in so many columns."""
    name = escape_controls(follower.run.name)
    head = Text.assemble((name, "bold"), "  ", (follower.state, COLOURS.get(follower.state, "yellow")))
    device = Text(escape_controls(follower.environment.get("device", "")), style="dim")
    reason = follower.status.get("reason")
    notes = [Text(escape_controls(reason, keep="\n"), style="yellow")] if reason else []
    notes += [Text(escape_controls(problem, keep="\n"), style="red") for problem in follower.problems.values()]
    return Group(
        head, device, _render_bar(follower), Text(), _render_numbers(follower, width), *notes, *_render_events(follower)
    )


def _render_bar(follower: Follower) -> Table:
    line = Table.grid(padding=(0, 2))
    if follower.total_steps:
        line.add_row(
            ProgressBar(total=follower.total_steps, completed=follower.step, width=20), format_progress(follower)
        )
    else:
        line.add_row(format_progress(follower))
    return line


def format_progress(follower: Follower) -> str:
    """`step 4,120 of 12,000  34 %  2 min 10 s left  ran 1 min 05 s  $0.02 spent`."""
    words = [f"step {follower.step:,}" + (f" of {follower.total_steps:,}" if follower.total_steps else "")]
    if follower.total_steps:
        words.append(f"{100 * follower.step / follower.total_steps:.0f} %")
    ends = follower.ends_at()
    if ends is not None:
        words.append(f"{format_wall_time(ends - time.time())} left")
    words.append(f"ran {format_wall_time(follower.seconds)}")
    spent = follower.status.get("spent")
    return "  ".join(words if spent is None else [*words, f"${spent:.2f} spent"])


def format_line(follower: Follower) -> str:
    """Where the run is and its newest logged numbers, in one line."""
    logged = (trace for trace in select_curves(follower) if trace.role in LOGGED)
    newest = (f"{_name(trace)} {follower.series[trace].last[1]:.4g}" for trace in logged)
    return f"{format_progress(follower)}  {', '.join(newest)}"


def select_curves(follower: Follower) -> list[Trace]:
    """The curves that a terminal has room for: those of the page's first charts, at one radius, without layers."""
    order = {panel.key: place for place, panel in enumerate((*PANELS, PANELS[0]._replace(key="signal")))}
    traces = [t for t in follower.series if t.panel in order and t.panel != "layers" and not is_error(t)]
    choices = sorted({trace.choice for trace in traces if trace.choice})
    middle = choices[(len(choices) - 1) // 2] if choices else ""
    kept = (trace for trace in traces if trace.choice in ("", middle))
    return sorted(kept, key=lambda trace: (order[trace.panel], trace.order, trace.label))


def _render_numbers(follower: Follower, width: int) -> Table:
    """Name, newest value, course, and where there is room the unit."""
    table = Table.grid(padding=(0, 2))
    for trace in select_curves(follower):
        _, values, _, _ = follower.series[trace].since(0)
        unit = [Text(escape_controls(trace.unit), style="dim")] if width >= UNITS_FROM else []
        table.add_row(Text(_name(trace)), Text(f"{values[-1]:.4g}", justify="right"), render_sparkline(values), *unit)
    if not table.row_count:
        table.add_row("waiting for the first number")
    return table


def _name(trace: Trace) -> str:
    titles = {"complexity": f"LC at {trace.choice.split(',')[0]}", "rate": "", "robust": "robust accuracy"}
    return escape_controls(", ".join(word for word in (titles.get(trace.panel, trace.panel), trace.label) if word))


def render_sparkline(values: np.ndarray, width: int = WIDTH) -> str:
    """Some numbers in at most `width` characters, each the mean of its part; a dot where nothing is finite."""
    parts = np.array_split(np.asarray(values, dtype=float), min(width, len(values)))
    finite = [part[np.isfinite(part)] for part in parts]
    # Halves of halves: the sum or difference of two large numbers is not finite.
    means = np.array([(part / len(part)).sum() / 2 if len(part) else np.nan for part in finite])
    if np.isnan(means).all():
        return "·" * len(means)
    low, high = np.nanmin(means), np.nanmax(means)
    places = np.nan_to_num((means - low) / (high - low if high > low else 1.0) * (len(SPARK) - 1))
    return "".join("·" if np.isnan(mean) else SPARK[round(place)] for mean, place in zip(means, places, strict=True))


def _render_events(follower: Follower) -> Iterable[Text]:
    if follower.events:
        yield Text()
    for event in follower.events[-EVENTS:]:
        yield Text.assemble((f"step {event['step']:>8,}  ", "dim"), escape_controls(event["text"], keep="\n"))


def format_wall_time(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
