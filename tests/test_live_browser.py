"""The live page and the exported one in a real browser, without a network: what is drawn, asked for and said."""

import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from grokkit.cli import main
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
