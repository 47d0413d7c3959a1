"""The live page: its static files, its images, and its export as one self-contained HTML file."""

from __future__ import annotations

import base64
import json
from importlib import resources
from typing import Any

import numpy as np

from grokkit.errors import TrajectoryError
from grokkit.live.follow import Follower
from grokkit.live.maps import encode_png, side_by_side, to_photographs
from grokkit.live.run_browser import RunBrowser

CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
STATIC_FILES = (
    *("uPlot.min.css", "page.css", "uPlot.iife.min.js", "format.js", "colours.js", "legend.js", "charts.js", "maps.js"),
    *("runs.js", "page.js"),
)
"""Files that index.html refers to, in its order."""
OFFLINE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy of the page as one file: it cannot load anything from elsewhere."""


def read_static(name: str) -> str:
    """Return the text of a static file of the page, from the installed package."""
    return resources.files("grokkit.live").joinpath("static", name).read_text(encoding="utf-8")


def render_image(follower: Follower, identity: str, which: str) -> bytes:
    """Return a PNG of the attributed images (`which` is `images`) or of their maps at step `which`, side by side.

    Raises:
        TrajectoryError: the attribution or the step does not exist, or its file is damaged.
    """
    maps = follower.maps.get(identity)
    if maps is None:
        raise TrajectoryError(f"attribution {identity!r} not found in {follower.run.path}")
    if which == "images":
        probe = follower.run.probes.get(maps.probe_set)
        if probe is None:
            raise TrajectoryError(f"probe set {maps.probe_set!r} not found in {follower.run.path}")
        return encode_png(side_by_side(to_photographs(np.asarray(probe.images)[: len(maps.labels)])))
    if which not in map(str, maps.steps):
        raise TrajectoryError(f"maps of {identity} at step {which!r} not found in {follower.run.path}")
    return maps.render(follower.run.attribution(identity, int(which))[0])


def build_single_file(browser: RunBrowser) -> str:
    """Return the page as one self-contained HTML file: style, scripts, the runs' data and images, no requests.

    Contains the maps of only the first run of each group that has any: those of every seed would take many megabytes.
    """
    groups = browser.update(groups=())["groups"]
    data = browser.update(groups=[group["key"] for group in groups])
    data["roots"] = []  # a file for others must not contain folders of this machine
    runs_with_maps = {run for group in data["groups"] for run in [r for r in group["runs"] if data["maps"].get(r)][:1]}
    data["maps"] = {run: maps for run, maps in data["maps"].items() if run in runs_with_maps}
    data["pictures"] = {}
    for run in sorted(runs_with_maps):
        for identity in [maps["identity"] for maps in data["maps"][run]]:
            try:
                images = _render_images(browser.followers[run], identity)
            except Exception as error:  # report any damaged file of a run on the page instead of failing
                data["maps"][run] = [maps for maps in data["maps"][run] if maps["identity"] != identity]
                data["runs"][run]["problems"].append(f"maps of {identity} cannot be drawn: {error}")
                continue
            data["pictures"] |= {name: _to_data_uri(body) for name, body in images}
    return inline_files(data)


def _render_images(follower: Follower, identity: str) -> list[tuple[str, bytes]]:
    """Return URL path and PNG of every image that is shown of one attribution."""
    steps = map(str, follower.maps[identity].steps)
    path = f"maps/{follower.id}/{identity}"
    return [(f"{path}/{which}.png", render_image(follower, identity, which)) for which in ("images", *steps)]


def _to_data_uri(body: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(body).decode()}"


def inline_files(data: dict[str, Any]) -> str:
    """Return index.html with its static files and `data` inlined."""
    page = read_static("index.html").replace(
        "<!--policy-->", f'<meta http-equiv="Content-Security-Policy" content="{OFFLINE_POLICY}">'
    )
    for name in STATIC_FILES:
        if name.endswith(".css"):
            page = page.replace(
                f'<link rel="stylesheet" href="static/{name}">', f"<style>\n{read_static(name)}\n</style>"
            )
        else:
            page = page.replace(f'<script src="static/{name}"></script>', f"<script>\n{read_static(name)}\n</script>")
    # Escape "<", so that no text of a run can close the script element.
    inlined = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return page.replace("<!--data-->", f'<script id="data" type="application/json">{inlined}</script>')
