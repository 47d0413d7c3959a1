"""Terminal view of a run: state, progress bar, newest values with sparklines, last events."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grokkit.escape import escape_controls
from grokkit.live.follow import ENDED_STATES, Follower, is_bound
from grokkit.live.panels import PANELS, Trace
from grokkit.live.sources import label_sources
from grokkit.trajectory import Run

SPARK_CHARACTERS, SPARK_WIDTH, NARROW_SPARK_WIDTH = "▁▂▃▄▅▆▇█", 32, 18
MAX_EVENTS, MIN_WIDTH_WITH_UNITS = 5, 110
REFRESH_SECONDS, LINE_SECONDS = 1.0, 10.0
LOGGED_ROLES = ("batch", "test_set", "validation", "rate")
COLOURS = {"running": "blue", "done": "green", "failed": "red", "killed": "red", "unreadable": "red"}


def watch_run(
    run: Run, console: Console, refresh_seconds: float = REFRESH_SECONDS, line_seconds: float = LINE_SECONDS
) -> None:
    """Show `run` until it ends: redrawn in place in a terminal, as plain lines elsewhere; a run that has ended is shown
    once.

    Args:
        run: run to follow.
        console: output.
        refresh_seconds: seconds between two refreshes.
        line_seconds: minimum seconds between two plain lines.
    """
    follower = Follower(run, maps=False)
    follower.refresh(0)
    if follower.state not in ENDED_STATES:
        _follow(follower, console, refresh_seconds, line_seconds)
    console.print(render(follower, console.width))


def _follow(follower: Follower, console: Console, refresh_seconds: float, line_seconds: float) -> None:
    tick, last_line = 0, -line_seconds
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while follower.state not in ENDED_STATES:
            if console.is_terminal:
                live.update(render(follower, console.width), refresh=True)
            elif time.monotonic() - last_line >= line_seconds:
                last_line = time.monotonic()
                console.print(format_line(follower), highlight=False, soft_wrap=True)
            time.sleep(refresh_seconds)
            tick += 1
            follower.refresh(tick)


def render(follower: Follower, width: int) -> Group:
    """Return the complete view of a run, `width` columns wide."""
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
    """Format as in `step 4,120 of 12,000  34 %  2 min 10 s left  ran 1 min 05 s  $0.02 spent`."""
    parts = [f"step {follower.step:,}" + (f" of {follower.total_steps:,}" if follower.total_steps else "")]
    if follower.total_steps:
        parts.append(f"{100 * follower.step / follower.total_steps:.0f} %")
    ends = follower.estimate_end_time()
    if ends is not None:
        parts.append(f"{format_wall_time(ends - time.time())} left")
    parts.append(f"ran {format_wall_time(follower.seconds)}")
    spent = follower.status.get("spent")
    return "  ".join(parts if spent is None else [*parts, f"${spent:.2f} spent"])


def format_line(follower: Follower) -> str:
    """Format progress and newest logged values in one line."""
    settings = label_sources([follower.sources])
    logged = (trace for trace in select_curves(follower) if trace.role in LOGGED_ROLES)
    return f"{format_progress(follower)}  {', '.join(_format_newest(follower, trace, settings) for trace in logged)}"


def _format_newest(follower: Follower, trace: Trace, settings: Mapping[str, str]) -> str:
    step = _format_step(follower, trace)
    newest = f"{_format_name(trace, settings)} {follower.series[trace].last[1]:.4g}"
    return f"{newest} ({step})" if step else newest


def _format_step(follower: Follower, trace: Trace) -> str:
    """Return of which step the newest value is, if it is not that of the run."""
    step = follower.series[trace].last[0]
    return "" if step == follower.step else f"step {step:,}"


def select_curves(follower: Follower) -> list[Trace]:
    """Return the curves shown in a terminal: those of the page's fixed charts and of signals, without layers, and of
    local complexity the middle one of the settings, such as radii, in the order in which they were read."""
    order = {panel.key: index for index, panel in enumerate((*PANELS, PANELS[0]._replace(key="signal")))}
    traces = [t for t in follower.series if t.panel in order and t.panel != "layers" and not is_bound(t)]
    choices = list(dict.fromkeys(trace.choice for trace in traces if trace.choice))
    middle = choices[(len(choices) - 1) // 2] if choices else ""
    shown = (trace for trace in traces if trace.choice in ("", middle))
    return sorted(shown, key=lambda trace: (order[trace.panel], trace.order, trace.label))


def _render_numbers(follower: Follower, width: int) -> Table:
    """Return a table of name, newest value, sparkline, the value's step if it is not that of the run and, if the
    console is wide enough, unit."""
    table, settings = Table.grid(padding=(0, 2)), label_sources([follower.sources])
    is_wide = width >= MIN_WIDTH_WITH_UNITS
    for trace in select_curves(follower):
        _, values, _, _ = follower.series[trace].rows_from(0)
        about = ", ".join(part for part in (trace.unit, trace.remark) if part)
        unit = [Text(escape_controls(about), style="dim")] if is_wide else []
        table.add_row(
            Text(_format_name(trace, settings)),
            Text(f"{values[-1]:.4g}", justify="right"),
            render_sparkline(values, SPARK_WIDTH if is_wide else NARROW_SPARK_WIDTH),
            Text(_format_step(follower, trace), style="dim"),
            *unit,
        )
    if not table.row_count:
        table.add_row("waiting for the first value")
    return table


def _format_name(trace: Trace, settings: Mapping[str, str]) -> str:
    titles = {"complexity": f"LC at {trace.choice}", "rate": "", "robust": "lowest robust accuracy"}
    parts = (titles.get(trace.panel, trace.panel), trace.label, settings.get(trace.source, ""))
    return escape_controls(", ".join(part for part in parts if part))


def render_sparkline(values: np.ndarray, width: int = SPARK_WIDTH) -> str:
    """Format values as at most `width` characters, each the mean of a part; a dot for a part without finite values."""
    parts = np.array_split(np.asarray(values, dtype=float), min(width, len(values)))
    finite = [part[np.isfinite(part)] for part in parts]
    # Halved, because the sum or difference of two large values may overflow.
    means = np.array([(part / len(part)).sum() / 2 if len(part) else np.nan for part in finite])
    if np.isnan(means).all():
        return "·" * len(means)
    low, high = np.nanmin(means), np.nanmax(means)
    levels = np.nan_to_num((means - low) / (high - low if high > low else 1.0) * (len(SPARK_CHARACTERS) - 1))
    return "".join(
        "·" if np.isnan(mean) else SPARK_CHARACTERS[round(level)] for mean, level in zip(means, levels, strict=True)
    )


def _render_events(follower: Follower) -> Iterable[Text]:
    if follower.events:
        yield Text()
    for event in follower.events[-MAX_EVENTS:]:
        yield Text.assemble((f"step {event['step']:>8,}  ", "dim"), escape_controls(event["text"], keep="\n"))


def format_wall_time(seconds: float) -> str:
    """Format as in `42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
