"""The page: served in pieces, or written as one file that holds its own data."""

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

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
STATIC = ("uPlot.min.css", "page.css", "uPlot.iife.min.js", "charts.js", "maps.js", "page.js")
"""What index.html refers to, in its order."""
CLOSED = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The policy of a page in one file: it cannot reach anything."""


def read_static(name: str) -> str:
    """A file of the page, from the installed package."""
    return resources.files("grokkit.live").joinpath("static", name).read_text(encoding="utf-8")


def render_picture(follower: Follower, identity: str, which: str) -> bytes:
    """PNG of the images that were explained (`which` is `images`), or of their maps at a step, side by side.

    Raises:
        TrajectoryError: there is no such recording or step, or its file is damaged.
    """
    maps = follower.maps.get(identity)
    if maps is None:
        raise TrajectoryError(f"{follower.run.path} holds no attribution {identity!r}")
    if which == "images":
        probe = follower.run.probes.get(maps.probe_set)
        if probe is None:
            raise TrajectoryError(f"{follower.run.path} holds no probe set {maps.probe_set!r}")
        return encode_png(side_by_side(to_photographs(np.asarray(probe.images)[: len(maps.labels)])))
    if which not in map(str, maps.steps):
        raise TrajectoryError(f"{follower.run.path} holds no maps of {identity} at step {which!r}")
    return maps.picture(follower.run.attribution(identity, int(which))[0])


def build_single_file(study: RunBrowser) -> str:
    """The page with everything in it: style, script, the runs' data and pictures. It asks no server for anything.

    Maps are of the first run of each group that has any: those of every seed would make a file of many megabytes.
    """
    found = study.update(groups=())["groups"]
    data = study.update(groups=[group["key"] for group in found])
    data["roots"] = []  # a file that is handed on names no folder of this machine
    told = {run for group in data["groups"] for run in [r for r in group["runs"] if data["maps"].get(r)][:1]}
    data["maps"] = {run: maps for run, maps in data["maps"].items() if run in told}
    data["pictures"] = {}
    for run in sorted(told):
        for identity in [maps["identity"] for maps in data["maps"][run]]:
            try:
                drawn = _render_pictures(study.followers[run], identity)
            except Exception as error:  # as of any file of a run: it is named, and the page goes on
                data["maps"][run] = [maps for maps in data["maps"][run] if maps["identity"] != identity]
                data["runs"][run]["problems"].append(f"maps of {identity} cannot be drawn: {error}")
                continue
            data["pictures"] |= {name: _data_uri(body) for name, body in drawn}
    return assemble(data)


def _render_pictures(follower: Follower, identity: str) -> list[tuple[str, bytes]]:
    """Address and PNG of everything that is shown of one recording."""
    steps = map(str, follower.maps[identity].steps)
    address = f"maps/{follower.id}/{identity}"
    return [(f"{address}/{which}.png", render_picture(follower, identity, which)) for which in ("images", *steps)]


def _data_uri(body: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(body).decode()}"


def assemble(data: dict[str, Any]) -> str:
    """index.html with its files and `data` written into it."""
    page = read_static("index.html").replace(
        "<!--policy-->", f'<meta http-equiv="Content-Security-Policy" content="{CLOSED}">'
    )
    for name in STATIC:
        if name.endswith(".css"):
            page = page.replace(
                f'<link rel="stylesheet" href="static/{name}">', f"<style>\n{read_static(name)}\n</style>"
            )
        else:
            page = page.replace(f'<script src="static/{name}"></script>', f"<script>\n{read_static(name)}\n</script>")
    # No "<" in it, so that no text of a run can end the element.
    inlined = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return page.replace("<!--data-->", f'<script id="data" type="application/json">{inlined}</script>')
