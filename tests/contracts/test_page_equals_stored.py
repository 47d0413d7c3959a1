"""What the live page and the exported one are told equals what is stored: every route, each number, on a single run, a
sweep of configurations with two seeds each, and a loop of one's own."""

import base64
import inspect
import json
import math
import re
import threading
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import fmean
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

import grokkit as gk
from grokkit.config.run_config import spec
from grokkit.live.page import STATIC_FILES, build_single_file, read_static
from grokkit.live.run_browser import RunBrowser
from grokkit.live.server import Handler, Server
from grokkit.training.loop import train
from grokkit.trajectory import find_runs, open_run
from tests import live_runs
from tests.runs import SMALL

ROUTES = {"[]", '["static", name]', '["data"]', '["window", group, low, high]', '["maps", run, identity, which]'}
"""Patterns of `Handler._route`: a new one needs a test here."""
DIGITS = 5e-7
"""Relative accuracy of seven digits."""


def make_single(folder: Path) -> None:
    train(SMALL, runs=folder, device="cpu")


def make_sweep(folder: Path) -> None:
    """Two configurations of one name with two seeds each, whose further numbers end at different steps, have steps that
    only one seed has, and are not all finite."""
    base = SMALL.replace(attributions=(spec("saliency", images=2),), policy="constant", steps=12, records=3)
    for rate in (0.1, 0.2):
        for seed in (0, 1):
            run = train(base.replace(seed=seed, optimizer=spec("adamw", lr=rate)), runs=folder, device="cpu")
            live_runs.log(run.path, *((n, rate + n) for n in range(20, 30 + 10 * seed, 2 + seed)))
            live_runs.log(run.path, (40, -math.inf if seed else -0.0), split="validation")


def make_recorded(folder: Path) -> None:
    """A run that `gk.record` writes in a plain loop."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.rand(40, 1, 3, 3)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    probes = {
        "train": gk.ProbeSet("train", images[:8].numpy(), labels[:8].numpy(), "here", np.arange(8)),
        "test": gk.ProbeSet("test", images[8:16].numpy(), labels[8:16].numpy(), "here", np.arange(8)),
    }
    measures = ("accuracy", "loss", "weight_norm", spec("local_complexity", radii=(0.1,), directions=3, points=4))
    with gk.record(
        folder / "mine", model, optimizer, probes=probes, measures=measures, attributions=("saliency",), schedule=(2, 5)
    ) as recorder:
        for step in range(1, 6):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(step)


MAKERS = {"single": (make_single, 1), "sweep": (make_sweep, 2), "recorded": (make_recorded, 1)}


@pytest.fixture(scope="module", params=MAKERS)
def runs(request, tmp_path_factory):
    make, groups = MAKERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder)
    return folder, groups


@contextmanager
def serving(folder: Path):
    with Server(RunBrowser([folder])) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield lambda path: urlopen(f"{server.url}{path}", timeout=20).read()
        finally:
            server.shutdown()
            thread.join()


def test_every_route_is_compared_here():
    assert set(re.findall(r"case (\[.*?\])(?: if .*)?:", inspect.getsource(Handler._route))) == ROUTES


def test_page_and_static_files_are_those_of_the_package(runs):
    with serving(runs[0]) as get:
        assert get("").decode() == read_static("index.html")
        for name in STATIC_FILES:
            assert get(f"static/{name}").decode() == read_static(name)


# ---- numbers

Key = tuple[str, ...]


def stored_curves(run) -> dict[Key, dict[int, tuple[float, float, float]]]:
    """Every number of a run that the page draws: value, low and high by step, by what names the curve."""
    curves: dict[Key, dict[int, tuple[float, float, float]]] = {}
    nothing = (math.nan, math.nan)
    for row in run.metrics.itertuples():
        curves.setdefault(("metric", row.split, row.metric), {})[row.step] = (row.value, *nothing)
    for _, step, reading in run.readings():
        lowest: dict[tuple, tuple] = {}
        for row in reading.rows():
            dims = {dim: row[dim] for dim in reading.dims if dim != "attack"}
            key = (reading.measure, json.dumps(dims, sort_keys=True))
            numbers = (row["value"], row["low"], row["high"])
            lowest[key] = min(lowest.get(key, numbers), numbers, key=lambda each: each[0])
        for key, numbers in lowest.items():
            # Of layers with a total only this is drawn, except of local complexity.
            layer = json.loads(key[1]).get("layer", "total")
            if layer != "total" and "total" in reading.coords["layer"] and reading.measure != "local_complexity":
                continue
            curves.setdefault(key, {})[step] = numbers
    return curves


def expected_rows(members: list[dict[int, tuple]]) -> dict[int, tuple[float | None, float, float, int]]:
    """Mean, lowest, highest and number of runs by step, by the obvious loop: over the runs that have a finite value
    then or later, at the steps that all of these have recorded."""
    rows = {}
    for step in sorted({step for member in members for step in member}):
        going_on = [m for m in members if any(math.isfinite(m[later][0]) for later in m if later >= step)]
        if not all(step in member for member in going_on):
            continue
        values = [member[step][0] for member in going_on]
        if not values or not all(map(math.isfinite, values)):
            rows[step] = (None, math.nan, math.nan, 0)
        elif len(members) == 1:
            rows[step] = (*members[0][step], 1)
        else:
            rows[step] = (fmean(values), min(values), max(values), len(values))
    return rows


SPLIT_LABELS = {"batch": "batches", "test_set": "test set"}


def names_of_curve(key: Key) -> dict[str, str]:
    """What the page must call a curve: panel and the texts that label, setting and probe set together must contain."""
    if key[0] == "metric":
        _, split, metric = key
        panel = {"learning_rate": "rate"}.get(metric, "accuracy" if metric.startswith("accuracy") else metric)
        panel = ("signal_slope" if "_slope" in metric else "signal") if split == "signal" else panel
        text = metric.replace("_", " ") if split == "signal" or panel == "rate" else SPLIT_LABELS.get(split, split)
        return {"panel": panel, "texts": [text], "source": ""}
    measure, dims = key[0], json.loads(key[1])
    texts = []
    for dim, value in dims.items():
        if dim == "radius":
            value = f"r = {value:g}"
        if dim == "epsilon":
            value = f"eps = {value:g}"
        if (dim, value) != ("layer", "total"):
            texts.append(str(value))
    panel = measure
    if measure == "local_complexity":
        panel = "complexity" if dims["layer"] == "total" else "layers"
    return {"panel": "robust" if measure == "robust_accuracy" else panel, "texts": texts, "source": measure}


def find_curve(curves: list[dict], key: Key) -> dict:
    """The one curve that is called as it must be."""
    names = names_of_curve(key)
    found = [
        curve
        for curve in curves
        if curve["panel"] == names["panel"]
        and (curve["source"].rpartition("-")[0] == names["source"])
        and all(text in f"{curve['label']} {curve['choice']} {curve['probe']}" for text in names["texts"])
    ]
    assert len(found) == 1, (key, [curve["label"] for curve in found])
    return found[0]


def compare_curve(curve: dict, rows: dict[int, tuple], steps: list[int], members: int) -> None:
    """The curve has all rows of these steps (fewer than any chart has columns), with their numbers."""
    assert curve["x"] == steps, curve["label"]
    for place, step in enumerate(steps):
        value, low, high, count = rows[step]
        same = (
            curve["y"][place] is None if value is None else curve["y"][place] == pytest.approx(value, rel=DIGITS, abs=0)
        )
        assert same, (curve["label"], step)
        if members > 1:
            assert curve["count"][place] == count
        for bound, number in (("low", low), ("high", high)):
            told = curve[bound][place] if curve[bound] else None
            assert told is None if math.isnan(number) else told == pytest.approx(number, rel=DIGITS, abs=0), (
                bound,
                step,
            )


BOUNDED_BY = re.compile("_(se|low|high)$")


def compare_groups(told: dict, curves: list[dict], folder: Path, steps_from=0, steps_to=math.inf) -> int:
    """Compare the curves of all groups with what is stored in their runs; return how many numbers were compared."""
    by_name = {run.name: run for run in find_runs(folder)}
    compared = 0
    for group in told["groups"]:
        members = [stored_curves(open_run(by_name[told["runs"][run]["name"]].path)) for run in group["runs"]]
        drawn = [curve for curve in curves if curve["group"] == group["key"]]
        keys = {key for member in members for key in member}
        # Standard errors and bounds of signals are bands, not curves; test_live_follow.py compares them.
        keys = {key for key in keys if not (key[:2] == ("metric", "signal") and BOUNDED_BY.search(key[2]))}
        assert len(drawn) == len(keys), "every number that is stored is drawn once"
        for key in keys:
            having = [member[key] for member in members if key in member]
            rows = expected_rows(having)
            if key[:2] == ("metric", "signal") and len(having) == 1:
                rows = {
                    step: (value, *signal_bounds(members[0], key, step), n) for step, (value, _, _, n) in rows.items()
                }
            steps = [step for step in rows if steps_from <= step <= steps_to]
            compare_curve(find_curve(drawn, key), rows, steps, len(having))
            compared += len(steps)
    return compared


def signal_bounds(member: dict, key: Key, step: int) -> tuple[float, float]:
    """The band of a signal: its standard error, or its logged bounds."""
    value = member[key][step][0]
    error, low, high = (
        member.get((*key[:2], f"{key[2]}_{end}"), {}).get(step, (math.nan,))[0] for end in ("se", "low", "high")
    )
    if not math.isfinite(value):
        return math.nan, math.nan
    return (value - error, value + error) if math.isfinite(error) else (low, high)


def test_every_number_of_data_is_that_of_the_runs(runs):
    folder, groups = runs
    with serving(folder) as get:
        told = json.loads(get("data"))
    assert len(told["groups"]) == groups
    assert compare_groups(told, told["curves"], folder) > 20
    for run in find_runs(folder):
        (found,) = (each for each in told["runs"].values() if each["name"] == run.name)
        status = run.status
        assert found["seed"] == run.config["seed"] and found["state"] == status["state"]
        assert (found["total_steps"], found["seconds"], found["costs"]) == (
            status["total_steps"],
            status["seconds"],
            status["costs"],
        )
        assert found["step"] == max(status["step"], int(run.metrics["step"].max()) if len(run.metrics) else 0)
        events = told["events"].get(found["id"], [])
        assert [(each["step"], each["kind"], each["text"]) for each in events] == [
            (each["step"], each["kind"], each["text"]) for each in run.events
        ]


def test_every_number_of_a_window_is_that_of_the_runs(runs):
    folder, _ = runs
    with serving(folder) as get:
        told = json.loads(get("data"))
        pieces = [piece for group in told["groups"] for piece in json.loads(get(f"window/{group['key']}/2/26"))]
    assert all((piece["from"], piece["to"]) == (2, 26) for piece in pieces)
    compare_groups(told, pieces, folder, 2, 26)


def test_groups_are_called_by_what_differs(runs):
    folder, groups = runs
    with serving(folder) as get:
        told = json.loads(get("data"))
    labels = sorted(group["label"] for group in told["groups"])
    assert len(set(labels)) == groups
    if groups == 2:
        assert labels == ["small/default (optimizer.lr=0.1)", "small/default (optimizer.lr=0.2)"]
        assert all(len(group["runs"]) == 2 for group in told["groups"])


# ---- pictures


def test_every_picture_is_that_of_the_stored_maps(runs):
    folder, _ = runs
    by_name = {run.name: run for run in find_runs(folder)}
    compared = 0
    with serving(folder) as get:
        told = json.loads(get("data"))
        for key, sets in told["maps"].items():
            run = by_name[told["runs"][key]["name"]]
            for maps in sets:
                stored = {step: run.attribution(maps["identity"], step)[0].sum(1) for step in maps["steps"]}
                assert maps["steps"] == run.attributions()[maps["identity"]]
                assert maps["labels"] == run.attribution(maps["identity"], maps["steps"][0])[1].tolist()
                for step, values in stored.items():
                    pixels = picture(get(f"maps/{key}/{quote(maps['identity'])}/{step}.png"))
                    compare_picture(pixels, np.hstack(values), maps)
                    compared += 1
                images = picture(get(f"maps/{key}/{quote(maps['identity'])}/images.png"))
                compare_images(images, run, maps)
    assert compared >= 3


def picture(body: bytes) -> np.ndarray:
    return np.array(Image.open(BytesIO(body))).astype(int)


def compare_picture(pixels: np.ndarray, values: np.ndarray, maps: dict) -> None:
    """The colours are those of the values on the bar of colours that the page draws, from end to end by an obvious
    loop; so signs and the order of the values can be seen."""
    assert pixels.shape == (*values.shape, 3)
    stops = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in maps["colours"]]
    for pixel, value in zip(pixels.reshape(-1, 3), values.ravel(), strict=True):
        share = (value / maps["limit"] + 1) / 2 if maps["signed"] else value / maps["limit"]
        place = min(max(float(share), 0.0), 1.0) * (len(stops) - 1)
        below = min(int(place), len(stops) - 2)
        for channel in range(3):
            first, second = stops[below][channel], stops[below + 1][channel]
            assert abs(pixel[channel] - (first + (second - first) * (place - below))) <= 1.0
    if maps["signed"]:
        strong = np.abs(values) > 0.2 * maps["limit"]
        assert ((pixels[..., 0] > pixels[..., 2]) == (values > 0))[strong].all(), "red is positive, blue negative"


def compare_images(pixels: np.ndarray, run, maps: dict) -> None:
    probe = run.probes[maps["probe_set"]] if "probe_set" in maps else None
    candidates = [probe] if probe else run.probes.values()
    count = len(maps["labels"])
    grey = [
        np.hstack(np.asarray(each.images[:count], float)[:, 0]) * (1 if each.images.dtype == np.uint8 else 255)
        for each in candidates
    ]
    assert any(each.shape == pixels.shape[:2] and np.abs(pixels[..., 0] - each).max() <= 0.5 for each in grey)


# ---- export


def test_the_exported_file_has_the_same_numbers_and_pictures(runs):
    folder, _ = runs
    page = build_single_file(RunBrowser([folder]))
    (body,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    exported = json.loads(body)
    compare_groups(exported, exported["curves"], folder)
    with serving(folder) as get:
        told = json.loads(get("data"))
        for name in ("groups", "events", "panels", "sources", "shown"):
            assert exported[name] == told[name], name
        assert exported["curves"] == told["curves"]
        assert {name: without_times(run) for name, run in exported["runs"].items()} == {
            name: without_times(run) for name, run in told["runs"].items()
        }
        assert exported["pictures"]
        for name, address in exported["pictures"].items():
            assert address.partition("base64,")[2] == base64_of(get(name)), name
    for name in STATIC_FILES:
        assert read_static(name) in page


def without_times(run: dict) -> dict:
    return {name: value for name, value in run.items() if name != "ends_at"}


def base64_of(body: bytes) -> str:
    return base64.b64encode(body).decode()
