"""The live page and the exported one in a real browser, without a network: what is drawn, asked for and said."""

import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from grokkit.cli import main
from grokkit.live.page import build_single_file
from grokkit.live.run_browser import RunBrowser
from grokkit.live.server import Server
from grokkit.training.loop import train
from grokkit.trajectory import open_run
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.run import write_status
from tests import live_runs
from tests.runs import SMALL

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PANELS = {
    "loss",
    "accuracy",
    "complexity",
    "layers",
    "robust",
    "rate",
    "signal",
    "signal_slope",
    "weight_norm",
    "logit_scale",
}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        missing = "needs Chromium: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield started
        started.close()


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        train(SMALL.replace(seed=seed), runs=tmp_path / "runs", device="cpu")
    return tmp_path / "runs"


class Tab:
    """A page with what it asked for and what it complained about."""

    def __init__(self, browser, url: str, width: int = 1280, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.stop_requested, self.complaints = [], []
        self.page.on("request", lambda request: self.stop_requested.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def wait(self, condition: str) -> None:
        # Not wait_for_function: the page's policy forbids the evaluation of text, as it should.
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"it never came to: {condition}; {self.complaints}")

    def get(self, expression: str):
        return self.page.evaluate(expression)

    def lines(self) -> dict[str, int]:
        """Drawn points by chart, read from the plots themselves."""
        return self.get("""() => Object.fromEntries([...page.charts].map(([key, chart]) => [key,
            chart.plot.data.slice(1).flat().filter((value) => Number.isFinite(value)).length]))""")

    def ink(self, panel: str) -> int:
        """Pixels of a chart's canvas that something was drawn on."""
        return self.get(f"""() => {{
            const canvas = page.charts.get("{panel}").plot.ctx.canvas;
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let count = 0;
            for (let place = 3; place < pixels.length; place += 4) count += pixels[place] > 200;
            return count;
        }}""")


@contextmanager
def served(*folders: Path):
    with Server(RunBrowser(folders)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def check_charts(tab: Tab) -> None:
    """Every chart has data and ink; the axes' toggles, a legend's entry, a chart's log button and the slider work."""
    tab.wait("page.charts.size >= 9 && page.curvesOf('weight_norm').length > 0")
    lines = tab.lines()
    assert set(lines) == PANELS and all(count > 0 for count in lines.values()), lines
    assert all(tab.ink(panel) > 300 for panel in PANELS)
    last = "[...page.charts.get('loss').plot.data[0]].pop()"
    assert tab.get(last) == 24 and tab.get("page.charts.get('loss').plot.scales.x.distr") == 1
    tab.page.click("#unit [data-value=epoch]")
    assert tab.get(last) == 8.0, "24 updates of 50 of 120 images"
    tab.page.click("#axis [data-value=log]")
    assert tab.get("page.charts.get('loss').plot.scales.x.distr") == 4
    assert tab.page.get_attribute("#axis [data-value=log]", "aria-pressed") == "true"
    assert tab.ink("loss") > 300 and tab.lines() == lines
    tab.page.click(".chart[data-panel=loss] .legend button:has-text('batches')")
    assert 0 < tab.lines()["loss"] < lines["loss"]
    assert tab.get("page.charts.get('loss').plot.scales.y.distr") == 3
    tab.page.click(".chart[data-panel=loss] button.small")
    assert tab.get("page.charts.get('loss').plot.scales.y.distr") == 1
    check_pointer(tab)
    before = tab.lines()["layers"]
    tab.page.select_option(".chart[data-panel=layers] select[aria-label$='probe set']", "random")
    assert tab.get("page.charts.get('layers').lines.map((line) => line.curve.probe)") == ["random"] * 2
    assert tab.lines()["layers"] == before
    check_maps(tab)


def check_pointer(tab: Tab) -> None:
    """The legend tells the values under the pointer in every chart; dragging magnifies all charts, a double click
    undoes it."""
    legends = ".chart[data-panel={}] .legend .at"
    box = tab.page.locator(".chart[data-panel=accuracy] .u-over").bounding_box()
    middle = box["y"] + box["height"] / 2
    newest = tab.page.text_content(legends.format("accuracy"))
    tab.page.mouse.move(box["x"] + 3, middle)
    told = tab.page.text_content(legends.format("accuracy"))
    assert told == tab.page.text_content(legends.format("loss")) != newest == "newest, epoch 8"
    tab.page.mouse.move(box["x"] + box["width"] / 2, middle)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] * 0.75, middle, steps=4)
    tab.page.mouse.up()
    low, high = tab.get("page.zoom")
    assert 0 < low < high < 8
    assert tab.get("[...page.charts.values()].map((chart) => chart.plot.scales.x.min)") == [low] * len(PANELS)
    tab.page.mouse.dblclick(box["x"] + 20, middle)
    assert tab.get("page.zoom") is None and tab.get("page.charts.get('loss').plot.scales.x.min") == 0
    tab.page.mouse.move(2, 2)


def check_maps(tab: Tab) -> None:
    """Two images with a map each; the slider brings those of another snapshot, the choice those of another method."""
    shown = "document.querySelector('#map-strip .map').style.backgroundImage"
    tab.wait(f"{shown} !== ''")
    assert tab.get("document.querySelectorAll('#map-strip .cell').length") == 2
    assert tab.page.text_content("#map-at") == "step 24"
    newest = tab.get(shown)
    tab.page.evaluate("""() => {
        const slider = document.getElementById("map-step");
        slider.value = 0;
        slider.dispatchEvent(new Event("input"));
    }""")
    assert tab.page.text_content("#map-at") == "step 0"
    tab.wait(f"{shown} !== {newest!r}")
    first = tab.get(shown)
    tab.page.select_option("#map-method", label="saliency")
    tab.wait(f"{shown} !== {first!r}")
    assert "logits / pixel" in tab.page.text_content("#map-unit")


def test_the_page_is_live_and_asks_nobody_but_its_server(browser, runs):
    with served(runs) as server:
        tab = Tab(browser, server.url)
        check_charts(tab)
        assert tab.page.text_content(".run .name span") == "small/default"
        assert "2 seeds: 0, 1" in tab.page.text_content(".run") and "2 done" in tab.page.text_content(".run")
        assert tab.get("page.charts.get('loss').lines.every((line) => line.low !== null && line.curve.runs === 2)")
        assert tab.get("page.decisions().length") >= 1 and tab.page.locator("#events li .number").count() >= 2
        tab.get("window.unloaded = false, addEventListener('beforeunload', () => { window.unloaded = true; })")
        train(SMALL.replace(seed=2), runs=runs, device="cpu")
        tab.wait("page.charts.get('loss').lines.some((line) => line.curve.runs === 3)")
        path = next(run for run in (runs / "small").iterdir() if open_run(run).config["seed"] == 2)
        live_runs.log(path, (25, 0.125))
        tab.page.click(".chart[data-panel=loss] .legend button:has-text('batches')")
        tab.wait("Math.abs([...page.charts.get('loss').plot.data[0]].pop() - 25 / 3) < 1e-9")
        assert tab.get("window.unloaded") is False
        assert tab.get("performance.getEntriesByType('navigation').length") == 1
        tab.page.reload()
        tab.wait("page.charts.size >= 9 && page.curvesOf('weight_norm').length > 0")
        assert all(url.startswith((server.url, "data:")) for url in tab.stop_requested), tab.stop_requested
    assert tab.complaints == []


def test_it_tells_the_time_left_the_money_and_the_end_of_a_run(browser, tmp_path):
    path = live_runs.make(tmp_path / "a" / "x-s0", batch_size=60)
    live_runs.log(path, (50, 0.5))

    def stand(state):
        costs = {"training": 100.0, "local_complexity": 25.0}
        write_status(path, state=state, step=100, total_steps=1000, attempt=1, costs=costs, price=36.0, spent=1.25)

    stand("running")
    with served(tmp_path) as server:
        lock = RunLock(path)
        tab = Tab(browser, server.url)
        tab.wait("document.querySelector('.run .state')?.textContent === 'running'")
        text = tab.page.text_content(".run")
        assert "step 100 of 1,000" in text and "18 min" in text and "left" in text, text
        assert "$1.25" in text and "in total" in text
        assert "waiting for the first value" in tab.page.text_content(".chart[data-panel=complexity] .empty")
        assert tab.page.locator("#costs > span").all_text_contents() == [
            "training",
            "100 s",
            "",
            "local complexity",
            "25 s",
            "25.0 %",
        ]
        stand("done")
        lock.close()
        tab.wait("document.querySelector('.run .state').textContent === 'done'")
        tab.wait(
            "document.querySelector('.chart[data-panel=robust] .empty').textContent.includes('grokkit attack RUN')"
        )
    assert tab.complaints == []


def test_dragging_brings_what_was_thinned_out_and_going_back_forgets_it(browser, tmp_path):
    path = live_runs.make(tmp_path / "a" / "x-s0", total=60_000)
    live_runs.log(path, *((n, 1.0 + n % 7) for n in range(0, 60_000, 2)))
    inside = """(() => { const line = page.charts.get('loss').lines[0];
        return line.x.filter((step) => step >= page.seen[0] && step <= page.seen[1]).length; })()"""
    with served(tmp_path) as server:
        tab = Tab(browser, server.url)
        tab.wait("page.curvesOf('loss').length > 0 && page.charts.get('loss').plot !== undefined")
        whole = tab.get("page.charts.get('loss').lines[0].x.length")
        box = tab.page.locator(".chart[data-panel=loss] .u-over").bounding_box()
        tab.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 40)
        tab.page.mouse.down()
        tab.page.mouse.move(box["x"] + 0.52 * box["width"], box["y"] + 40, steps=4)
        tab.page.mouse.up()
        tab.get("page.seen = [...page.zoom]")
        low, high = tab.get("page.seen")
        rows = sum(low <= n <= high for n in range(0, 60_000, 2))
        tab.wait(f"{inside} === {rows}")
        assert tab.get("page.charts.get('loss').plot.scales.x.min") == low
        steps = tab.get("page.charts.get('loss').lines[0].x")
        assert steps == sorted(set(steps)), "the rows around it stay, each once"
        live_runs.log(path, (60_002, 9.0))
        tab.wait("[...page.charts.get('loss').lines[0].x].pop() === 60002")
        assert tab.get(inside) == rows
        tab.page.click("#unit [data-value=step]")
        assert tab.get("page.zoom") is None and tab.get(inside) < rows / 2
        assert tab.get("page.charts.get('loss').lines[0].x.length") <= whole + 2
    assert tab.complaints == []


def test_an_empty_folder_a_lost_server_and_a_narrow_screen(browser, runs, tmp_path):
    with served(tmp_path / "later") as server:
        tab = Tab(browser, server.url, width=390, scheme="dark")
        tab.wait("document.getElementById('notice').textContent.includes('no runs below')")
        assert tab.page.text_content(".chart[data-panel=loss] .empty") == "waiting for a run"
        runs.rename(tmp_path / "later")
        tab.wait("page.curvesOf('weight_norm').length > 0")
        assert tab.page.text_content("#notice") == ""
        assert tab.get("document.documentElement.scrollWidth") == 390, "nothing sticks out sideways"
        before = tab.lines()
        tab.page.context.set_offline(True)
        tab.wait("document.getElementById('notice').textContent.includes('no response from the server')")
        assert tab.lines() == before, "what is shown stays"
        tab.page.context.set_offline(False)
        tab.wait("document.getElementById('notice').textContent === ''")


def test_the_exported_file_is_the_same_page_without_a_server(browser, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(runs / "small"), "--html"]) == 0
    url = (tmp_path / "small.html").as_uri()
    tab = Tab(browser, url)
    check_charts(tab)
    assert "exported" in tab.page.text_content("#footer")
    assert [address for address in tab.stop_requested if not address.startswith("data:")] == [url]
    assert tab.complaints == []


def make_groups(folder: Path, count: int) -> None:
    """Groups that differ in lr; the second ended early, the third has two runs of one seed, one of them short."""
    for index in range(count):
        for copy in range(2 if index == 2 else 1):
            path = live_runs.make(folder / "a" / f"x-s0-{index:04x}{copy:04x}", batch_size=60, lr=0.01 * (index + 1))
            last = 400 if index == 1 or copy else 1000
            live_runs.log(path, *((n, 1.0 + index + n / 1000) for n in range(0, last + 1, 100)))
            live_runs.log(path, *((n, 0.5) for n in range(0, last + 1, 200)), split="test_set", metric="accuracy")
            live_runs.complexity(path, min(last, 900), 1.0, 2.0 + index)
            if index == 0:
                live_runs.log(path, (500, float("nan")), split="test_set")
            state = "failed" if last == 400 else "done"
            write_status(path, state=state, step=last, total_steps=1000, attempt=1, reason="no luck" * (last == 400))


LEGEND = """(panel) => [...document.querySelectorAll(`.chart[data-panel=${panel}] .legend tr`)].map(
    (row) => [...row.children].filter((cell) => cell.offsetParent).map((cell) => cell.textContent))"""
SWATCHES = "(where) => [...document.querySelectorAll(`${where} .swatch`)].map((each) => each.style.background)"


def test_every_number_of_several_groups_has_a_group_a_label_and_a_true_step(browser, tmp_path):
    make_groups(tmp_path, 3)
    with served(tmp_path) as server:
        tab = Tab(browser, server.url)
        tab.wait("page.curvesOf('loss').length > 3 && document.querySelectorAll('.legend tr').length > 0")
        short = [f"lr={rate}" for rate in ("0.01", "0.02", "0.03")]
        names = [f"a/x ({each})" for each in short]
        assert tab.page.evaluate(LEGEND, "loss") == [
            ["newest", "up to step", "batches", "test set"],
            [short[0], "1,000", "2", "not finite"],
            [short[1], "400", "2.4", "–"],
            [short[2], "1,000", "4", "–"],
        ]
        assert tab.page.evaluate(LEGEND, "complexity")[1:] == [
            [short[0], "900", "3"],
            [short[1], "400", "4"],
            [short[2], "900", "5"],
        ]
        cells = "[...document.querySelectorAll('.chart[data-panel=loss] tbody td.value')].map((cell) => cell.title)"
        assert tab.get(cells) == [
            f"{names[0]}\nbatches\n2 at step 1,000",
            f"{names[0]}\ntest set\nnot finite at step 500",
            f"{names[1]}\nbatches\n2.4 at step 400",
            f"{names[1]}\ntest set\nnot recorded",
            f"{names[2]}\nbatches\n4 at step 1,000\n1 of 2 runs",
            f"{names[2]}\ntest set\nnot recorded",
        ]
        point_at_step(tab, "loss", 700)
        assert tab.page.evaluate(LEGEND, "loss")[:3] == [
            ["at or before step 700", "up to step", "batches", "test set"],
            [short[0], "700", "1.7", "–"],
            [short[1], "–", "–", "–"],
        ]
        point_at_step(tab, "loss", 300)
        assert tab.page.evaluate(LEGEND, "loss")[3] == [short[2], "300", "3.3", "–"]
        assert tab.get(cells)[4].endswith("3.3 at step 300\nmean of 2 of 2 runs\nrange 3.3 to 3.3")
        tab.page.mouse.move(2, 2)
        tab.page.click("#unit [data-value=epoch]")
        assert [row[1] for row in tab.page.evaluate(LEGEND, "loss")] == ["up to epoch", "500", "200", "500"]
        texts = tab.page.locator(".run").all_text_contents()
        assert "2 runs, seeds 0, 0" in texts[2] and "1,400 of 2,000 steps of 2 runs together" in texts[2]
        assert "seed 0: no luck" in texts[2] and "1 done, 1 failed" in texts[2]
    assert tab.complaints == []


def test_the_step_that_is_told_in_one_group_is_true_for_each_number(browser, tmp_path):
    path = live_runs.make(tmp_path / "a" / "x-s0")
    live_runs.log(path, (0, 2.0), (1000, 1.0))
    live_runs.log(path, (0, 3.0), (900, 12345.67), split="test_set")
    live_runs.log(path, (1000, 0.1), metric="learning_rate")
    with served(tmp_path) as server:
        tab = Tab(browser, server.url)
        tab.wait("document.querySelectorAll('.chart[data-panel=loss] .toggle').length > 1")
        head = ".chart[data-panel={}] .legend .at"
        assert tab.page.text_content(head.format("loss")) == "newest, up to step 1,000"
        assert tab.page.text_content(head.format("rate")) == "newest, step 1,000"
        values = tab.page.locator(".chart[data-panel=loss] .toggle")
        assert values.all_text_contents() == ["batches1", "test set12346"]
        assert values.nth(1).get_attribute("title") == "test set\n12345.67 at step 900"
        point_at_step(tab, "loss", 990)  # nearest to the row of 1,000
        assert tab.page.text_content(head.format("loss")) == "at or before step 1,000"
        assert values.all_text_contents() == ["batches1", "test set–"]
        assert values.nth(1).get_attribute("title") == "test set\nits last value is of step 900"
    assert tab.complaints == []


def test_an_exported_page_draws_the_groups_that_are_chosen(browser, tmp_path):
    make_groups(tmp_path / "runs", 3)
    (tmp_path / "page.html").write_text(build_single_file(RunBrowser([tmp_path / "runs"])))
    tab = Tab(browser, (tmp_path / "page.html").as_uri())
    assert tab.page.text_content("#groups-drawn") == "3 of 3 groups of runs drawn"
    before = tab.page.evaluate(LEGEND, "loss")
    tab.page.click("#groups-none")
    assert tab.page.text_content("#groups-drawn") == "0 of 3 groups of runs drawn"
    assert tab.page.text_content(".chart[data-panel=loss] .empty") == "no group is drawn"
    tab.page.click("#groups-all")
    assert tab.page.evaluate(LEGEND, "loss") == before
    assert tab.complaints == []


def test_the_cards_of_a_sweep_show_all_that_differs(browser, tmp_path):
    for number, (size, rate) in enumerate(((20, 0.01), (20, 0.1), (40, 0.01), (40, 0.1))):
        path = tmp_path / "quickstart" / f"constant-s0-{number:08x}"
        live_runs.log(live_runs.make(path, batch_size=size, **{"optimizer.lr": rate}), (1, 0.5))
    with served(tmp_path) as server:
        for width in (800, 1280):
            tab = Tab(browser, server.url, width=width)
            tab.wait("document.querySelectorAll('.run .name .label').length === 4")
            labels = "[...document.querySelectorAll('.run .name .label')]"
            assert len(set(tab.get(f"{labels}.map((each) => each.textContent)"))) == 4
            assert tab.get(f"{labels}.every((each) => each.scrollHeight <= each.clientHeight)")
            tab.page.close()


def point_at_step(tab: Tab, panel: str, step: int) -> None:
    box = tab.page.locator(f".chart[data-panel={panel}] .u-over").bounding_box()
    left = tab.get(f"page.charts.get('{panel}').plot.valToPos({step}, 'x')")
    tab.page.mouse.move(box["x"] + left, box["y"] + 50)


@pytest.mark.parametrize("count", [1, 3, 24])
def test_groups_have_colours_of_their_own_and_nothing_sticks_out(browser, tmp_path, count):
    make_groups(tmp_path, count)
    with served(tmp_path) as server:
        for scheme, width in (("light", 800), ("dark", 1400)):
            tab = Tab(browser, server.url, width=width, scheme=scheme)
            tab.wait("page.curvesOf('loss').length > 0")
            if count == 24:
                assert tab.page.text_content("#groups-drawn") == "4 of 24 groups of runs drawn"
                tab.page.click("#groups-all")
                tab.wait("page.shown.length === 24")
                assert tab.page.text_content("#groups-drawn") == "24 of 24 groups of runs drawn"
                assert tab.page.locator("#groups-all").is_disabled()
            assert tab.page.locator("#groups").is_visible() == (count > 1)
            tab.wait("document.querySelectorAll('.chart[data-panel=loss] .legend :is(tbody tr, .toggle)').length > 0")
            assert tab.get("document.documentElement.scrollWidth") == width
            swatches = tab.page.evaluate(SWATCHES, ".chart[data-panel=loss] .legend")
            assert len(swatches) == len(set(swatches)) == (0 if count == 1 else count)
            assert tab.page.evaluate(SWATCHES, "#runs .run")[: len(swatches)] == swatches[:count] or count == 1
            if count > 1:
                check_colours(tab)
            heights = tab.get("[...document.querySelectorAll('.legend')].map((each) => each.offsetHeight)")
            assert max(heights) <= 130
            tab.page.close()
    assert tab.complaints == []


def check_colours(tab: Tab) -> None:
    """A group keeps its colour in all charts, and while others are not drawn; its name singles its lines out."""
    colours = """Object.fromEntries([...page.charts.values()].flatMap((chart) => chart.lines).map(
        (line) => [`${line.group} ${line.colour}`, line.group]))"""
    before = tab.get(colours)
    assert len(before) == len(set(before.values())), "one colour for each group in all charts"
    alphas = "page.charts.get('loss').plot.series.slice(1).map((series) => series.alpha)"
    assert set(tab.get(alphas)) == {1}
    tab.page.hover(".chart[data-panel=accuracy] .legend tbody tr:nth-child(2) .name")
    assert sorted(set(tab.get(alphas))) == [0.1, 1] and tab.get(alphas).count(1) == 1
    tab.page.mouse.move(2, 2)
    assert set(tab.get(alphas)) == {1}
    drawn = tab.get("page.shown.length")
    tab.page.click("#runs .run:first-child input")
    tab.wait(f"page.shown.length === {drawn - 1}")
    assert tab.get(colours).items() <= before.items()
    tab.page.click("#runs .run:first-child input")
    tab.wait(f"page.shown.length === {drawn}")


def test_many_settings_are_a_selection_and_many_layers_a_list_that_scrolls(browser, tmp_path):
    path = live_runs.make(tmp_path / "a" / ("x" * 200 + "-s0"), note="y" * 100)
    radii, layers = tuple(0.1 * n for n in range(1, 14)), tuple(f"layers.{n}.{'z' * 300}" for n in range(200))
    for step in (0, 10):
        live_runs.reading(
            path,
            step,
            "calibration",
            np.ones((1, 4, 13)),
            probe_set=("train",),
            directions=(5, 10, 20, 40),
            radius=radii,
        )
        live_runs.reading(path, step, "my_rank", np.arange(200.0), layer=layers)
    with served(tmp_path) as server:
        tab = Tab(browser, server.url, width=800)
        tab.wait("page.charts.size === 8 && page.charts.get('my_rank').lines.length === 64")
        assert tab.get("page.charts.get('calibration').lines.length") == 1
        assert tab.page.locator(".chart[data-panel=calibration] select[aria-label$='setting'] option").count() == 52
        assert "the first 64 of 200 layers" in tab.page.text_content(".chart[data-panel=my_rank] .unit")
        assert tab.get("document.documentElement.scrollWidth") == 800
        assert tab.get("Math.max(...[...document.querySelectorAll('.legend')].map((each) => each.offsetHeight))") <= 130
        tab.page.set_viewport_size({"width": 1400, "height": 900})
        rows = """Object.values(Object.groupBy(
            [...document.querySelectorAll('.chart')].map((each) => each.getBoundingClientRect()), (box) => box.top,
        )).map((row) => new Set(row.map((box) => box.height)).size)"""
        assert set(tab.get(rows)) == {1}, "the charts of a row have one height"
    assert tab.complaints == []
