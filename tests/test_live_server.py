"""The local page over real HTTP on loopback: who is let in, what is told, what is never reached."""

import gzip
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from grokkit.errors import UsageError
from grokkit.live import server as server_module
from grokkit.live.maps import DIVERGING, apply_colours, encode_png, to_photographs
from grokkit.live.page import STATIC_FILES, read_static
from grokkit.live.run_browser import RunBrowser
from grokkit.live.server import Server
from tests import live_runs

MAPS = np.array([[[[1.0, -1.0, 0.0]] * 3], [[[0.5, 0.5, -0.5]] * 3]])


@pytest.fixture
def run(tmp_path):
    path = live_runs.make(tmp_path / "study" / "plain-s0")
    live_runs.log(path, (1, 3.0), (2, 2.0))
    live_runs.maps(path, 10, 2 * MAPS)
    live_runs.maps(path, 20, MAPS)
    return path


@pytest.fixture
def served(run):
    with Server(RunBrowser([run.parent])) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def get(served, path, method="GET", token=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request(method, f"/{served.token if token is None else token}{path}", headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def data(served, query=""):
    return json.loads(get(served, f"/data{query}")[1])


def test_it_listens_on_this_machine_only_and_tells_a_long_random_token(served, run):
    assert served.socket.getsockname()[0] == "127.0.0.1"
    assert served.url == f"http://127.0.0.1:{served.port}/{served.token}/"
    with Server(RunBrowser([run])) as other:
        assert len(served.token) == len(other.token) == 32 and served.token != other.token
        assert other.port != served.port
    with pytest.raises(UsageError, match=rf"cannot listen on port {served.port}: .*; pass another --port"):
        Server(RunBrowser([run]), served.port)


@pytest.mark.parametrize("path", ["/", "/data", "/static/page.js", "/nowhere"])
@pytest.mark.parametrize("token", ["", "wrong", "x" * 32, "%00", "%C3%A9"])
def test_without_the_token_there_is_nothing_but_403(served, path, token):
    answer, body = get(served, path, token=token)
    assert answer.status == 403 and body == b"the URL must contain the token that `grokkit serve` printed\n"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "", "localhost.evil:1"]
)
def test_a_foreign_name_that_resolves_to_this_machine_is_refused(served, host):
    assert get(served, "/data", Host=host)[0].status == 403


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "localhost:9000"])
def test_a_forwarded_port_is_let_in(served, host):
    assert get(served, "/data", Host=host)[0].status == 200


STRANGE = """
    /static/../page.py /static/..%2fpage.py /static/%2e%2e/server.py /../../../../etc/passwd /static//etc/passwd
    /static/uPlot.LICENSE.txt /maps/..%2f..%2f/x/1.png /maps/{run}/..%2f..%2fprobes/test.png /maps/{run}/{maps}/99.png
    /maps/{run}/{maps}/..%2f10.png /maps/{run}/{maps}/%C2%B2.png /maps/none/{maps}/10.png
    /maps/{run}/{maps}/10.png/more /data/x /window /window/a/1 /window/a/-1/2 /window/a/1/9999999999999999
    /window/a/x/1 /window/a/%C2%B2/3
"""


@pytest.mark.parametrize("path", STRANGE.split())
def test_what_is_not_known_by_name_is_not_there(served, path):
    (run,) = data(served)["runs"]
    answer, body = get(served, path.format(run=run, maps="integrated_gradients-00000000"))
    assert answer.status == 404 and b"root:" not in body and b"def " not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "get", "__class__"])
def test_only_reading_is_possible(served, method):
    answer, body = get(served, "/data", method)
    assert answer.status == 501 and (body == b"" if method == "HEAD" else b"Unsupported method" in body)
    assert_headers(answer)


def assert_headers(answer):
    assert {name: answer.headers[name] for name in server_module.HEADERS} == server_module.HEADERS
    assert int(answer.headers["Content-Length"]) < 10_000 and answer.headers["Content-Type"].startswith("text/plain")


def raw(served, request: bytes) -> http.client.HTTPResponse:
    """What comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.body = answer.read()
        assert answer.will_close and connection.recv(1) == b"", "nothing of a refused request is read as another one"
    return answer


REFUSED = {
    "blank": (b"\r\n", 400),
    "no request": (b"nonsense\r\n\r\n", 400),
    "four words": (b"GET / a HTTP/1.1\r\n\r\n", 400),
    "no version": (b"GET / HTTP/x\r\n\r\n", 400),
    "next version": (b"GET / HTTP/2.0\r\n\r\n", 505),
    "long version": (b"GET / HTTP/1." + b"1" * 300 + b"\r\n\r\n", 400),
    "old POST": (b"POST /\r\n\r\n", 400),
    "no text": (b"\xff\x00\x1b[2J\r\n\r\n", 400),
    "long line": (b"GET /" + b"a" * 8_000_000, 414),
    "long header": (b"GET / HTTP/1.1\r\nA: " + b"a" * 8_000_000, 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"A: 1\r\n" * 2000 + b"\r\n", 431),
    "body": (b"POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /data HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
    "body of GET": (b"GET / HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /data HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
    "old GET": (b"GET /data\r\n\r\n", 403),
    "no host": (b"GET //[x HTTP/1.1\r\n\r\n", 403),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_answered_with_the_headers_of_all_answers(served, name):
    request, status = REFUSED[name]
    if b"Host" not in request and b" HTTP/1.1\r\n\r\n" in request:
        request = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = raw(served, request)
    assert answer.status == status and answer.body.endswith(b"\n") and b"\x1b" not in answer.body
    assert_headers(answer)


def test_an_answer_to_head_ends_with_its_headers(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
        said = b"".join(iter(lambda: connection.recv(1000), b""))
    assert said.startswith(b"HTTP/1.1 501 ") and said.endswith(b"\r\n\r\n") and b"Content-Security" in said


NUMBERS = ("9" * 300, "9" * 5000, "1" * 15, "-1", "1.5", "NaN", "%D9%A3" * 5, "%00", "[", "%ff", "")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "path",
    [
        "/data?cursor={boot}-{}",
        "/data?cursor={}",
        "/data?groups={}",
        "/data?groups={key},{},{key}",
        "/data?{}={}",
        "/window/{key}/{}/5",
        "/window/{key}/0/{}",
        "/window/{}/0/5",
        "/maps/{run}/{maps}/{}.png",
        "/maps/{run}/{}/10.png",
        "/maps/{}/{maps}/10.png",
        "/static/{}",
        "/{}",
        "/data#{}",
    ],
)
def test_every_number_in_an_address_gets_an_answer(served, path, number):
    told = data(served)
    ((run, (maps,)),) = told["maps"].items()
    (key,) = told["shown"]
    boot = told["cursor"].partition("-")[0]
    address = path.replace("{}", number).format(key=key, run=run, maps=maps["identity"], boot=boot)
    answer, body = get(served, address)
    assert answer.status in (200, 404), body
    if answer.status == 200 and path.startswith("/data"):
        found = json.loads(body)
        assert found["reset"] and len(found["shown"]) <= 1
    if answer.status == 404:
        assert_headers(answer)


def test_what_nobody_foresaw_is_answered(served, monkeypatch):
    monkeypatch.setattr(RunBrowser, "update", lambda *_: [][0])
    answer, body = get(served, "/data")
    assert answer.status == 500 and body == b"the page cannot be generated: IndexError: list index out of range\n"
    assert_headers(answer)


def test_the_page_comes_with_a_policy_that_lets_it_reach_nobody_else(served):
    answer, body = get(served, "/")
    assert answer.status == 200 and body.decode() == read_static("index.html")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer", "the address holds the token"
    for name in STATIC_FILES:
        answer, body = get(served, f"/static/{name}")
        assert answer.status == 200 and body.decode() == read_static(name)
        assert f'"static/{name}"' in read_static("index.html")


def test_a_cursor_brings_what_is_new_over_the_wire(served, run):
    first = data(served)
    assert first["reset"] and first["curves"][0]["y"] == [3.0, 2.0]
    assert data(served, f"?cursor={first['cursor']}")["curves"] == []
    live_runs.log(run, (5000, 1.0))
    second = data(served, f"?cursor={first['cursor']}")
    assert not second["reset"] and second["curves"][0]["x"][-1] == 5000
    (key,) = first["shown"]
    assert data(served, f"?groups={key}")["shown"] == [key]
    (piece,) = json.loads(get(served, f"/window/{key}/2/4")[1])
    assert (piece["x"], piece["y"], piece["from"], piece["to"]) == ([2], [2.0], 2, 4)
    assert json.loads(get(served, "/window/none/2/4")[1]) == []
    assert data(served, "?groups=")["shown"] == [], "nothing chosen is not the server's choice"


def test_long_answers_are_compressed_for_those_who_can(served, run):
    live_runs.log(run, *((n, 1.0 / n) for n in range(3, 2000)))
    answer, body = get(served, "/data", **{"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip" and len(json.loads(gzip.decompress(body))["curves"]) == 1
    assert get(served, "/data")[0].headers["Content-Encoding"] is None


def test_the_first_free_port_is_taken(run, monkeypatch):
    with Server(RunBrowser([run])) as first:
        monkeypatch.setattr(server_module, "FIRST_PORT", first.port)
        with Server(RunBrowser([run])) as second:
            assert first.port < second.port < first.port + server_module.PORTS_TO_TRY


def test_a_number_that_is_no_port_is_refused(run):
    with pytest.raises(UsageError, match=r"cannot listen on port 80000: .*; pass another --port"):
        Server(RunBrowser([run]), 80000)


def test_maps_are_pictures_on_one_scale(served):
    told = data(served)
    ((run, (maps,)),) = told["maps"].items()
    assert (maps["steps"], maps["signed"], maps["unit"]) == ([10, 20], True, "logits")
    assert maps["limit"] == pytest.approx(2.0)
    early, late = (picture(served, f"/maps/{run}/{maps['identity']}/{step}.png") for step in (10, 20))
    assert early.shape == late.shape == (3, 6, 3)
    ends = apply_colours(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), DIVERGING).tolist()
    assert early[0, :3].tolist() == [ends[4], ends[0], ends[2]], "2 is all of the scale, 1 half of it"
    assert late[0, :3].tolist() == [ends[3], ends[1], ends[2]]
    images = picture(served, f"/maps/{run}/{maps['identity']}/images.png")
    assert images[..., 0].tolist() == np.hstack(live_runs.IMAGES[:, 0]).tolist()


def picture(served, path):
    answer, body = get(served, path)
    assert answer.status == 200 and answer.headers["Content-Type"] == "image/png"
    return np.array(Image.open(BytesIO(body)))


def test_a_png_is_the_picture_that_went_in():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.array(Image.open(BytesIO(encode_png(pixels)))), pixels)


def test_probe_images_become_colours():
    grey = np.array([[[[0, 128], [255, 1]]]], dtype=np.uint8)
    assert to_photographs(grey)[0, ..., 1].tolist() == [[0, 128], [255, 1]]
    colour = np.zeros((1, 3, 1, 1), np.float32)
    colour[0, 2] = 1.0
    assert to_photographs(colour)[0, 0, 0].tolist() == [0, 0, 255]
    assert to_photographs(np.array([[[[-1.0, 1.0]]]], np.float32))[0, 0, :, 0].tolist() == [0, 255]
    assert to_photographs(np.zeros((2, 4, 3, 3), np.uint8)).shape == (2, 3, 3, 3)


def test_the_verb_prints_the_address_and_the_ssh_line_and_ends_with_ctrl_c(run, tmp_path):
    root = Path(__file__).resolve().parents[1]
    words = [sys.executable, "-m", "grokkit", "serve", str(run), str(tmp_path / "later")]
    env = {**os.environ, "SSH_CONNECTION": "10.0.0.1 5000 10.0.0.2 22", "LOGNAME": "me"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, env=env
    ) as server:
        assert server.stdout.readline().startswith(f"{tmp_path / 'later'} does not exist yet")
        url = server.stdout.readline().split()[1]
        port = urlsplit(url).port
        with urlopen(f"{url}data", timeout=10) as answer:
            assert json.load(answer)["curves"][0]["y"] == [3.0, 2.0]
        assert server.stdout.readline() == (
            f"from another machine, first run: ssh -L {port}:127.0.0.1:{port} me@10.0.0.2   (host and -p as in "
            "your ssh login)\n"
        )
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0 and server.stderr.read() == ""


def test_groups_have_24_colours_that_stand_out_on_either_ground():
    def luminance(colour):
        parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    css = read_static("page.css")
    for part, card in zip(css.split("prefers-color-scheme: dark"), ("#ffffff", "#1b1e23"), strict=True):
        assert f"--card: {card}" in part
        colours = re.findall(r"--group(\d+): (#[0-9a-f]{6});", part)
        assert [int(place) for place, _ in colours] == list(range(24)) and len(dict(colours)) == 24
        assert len({colour for _, colour in colours}) == 24
        for _, colour in colours:
            low, high = sorted((luminance(colour), luminance(card)))
            assert (high + 0.05) / (low + 0.05) >= 3, colour
    assert "GROUP_COLOURS = 24;" in read_static("colours.js")
