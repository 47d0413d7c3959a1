"""Messages arrive, in the form that each host understands; no server, however it behaves, holds a run up or ends it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import grokkit as gk
from grokkit.callbacks import webhook
from grokkit.callbacks.base import CallbackList
from grokkit.callbacks.webhook import Webhook, build_payload
from grokkit.cli import main
from grokkit.config.run_config import spec
from grokkit.errors import BudgetReached, Interrupted, NumericsError, UsageError
from tests.callbacks import PressesCtrlC
from tests.runs import SMALL, contents

BARE = SMALL.replace(measures=(), attributions=(), policy=spec("constant"), signal={})


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("GROKKIT_NOTIFY", raising=False)


class Server:
    """A web server on this machine; `answer` is its status code, `wait` is held before every answer."""

    def __init__(self, answer: int = 200, wait: threading.Event | None = None) -> None:
        self.got: list[tuple[str, bytes]] = []
        heard = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                heard.append((self.headers["Content-Type"], body))
                if wait is not None:
                    wait.wait(30)
                self.send_response(answer)
                self.end_headers()

            def log_message(self, *_) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/secret-topic"

    @property
    def told(self) -> list[dict]:
        return [json.loads(body) for _, body in self.got]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


def test_a_run_tells_its_start_its_first_numbers_its_decisions_and_its_end(server, tmp_path) -> None:
    run = gk.train(SMALL, runs=tmp_path, device="cpu", callback=Webhook(server.url))
    told = server.told
    decisions = [event["text"] for event in run.events if event["kind"] == "policy"]
    assert [each["kind"] for each in told] == ["start", "first_numbers", *["policy"] * len(decisions), "done"]
    assert [each["text"] for each in told if each["kind"] == "policy"] == decisions
    assert all(str(run.path) in each["run"] and each["total"] == 24 and each["time"] > 0 for each in told)
    assert told[0]["text"] == "starts at step 0 of 24" and told[1]["text"].startswith("step 1 of 24: loss ")
    assert {kind for kind, _ in server.got} == {"application/json"}


def test_failures_stops_and_empty_purses_are_told(server, tmp_path) -> None:
    for number, (error, config, wanted) in enumerate(
        (
            (NumericsError, BARE.replace(optimizer=spec("sgd", lr=1e30)), {}),
            (BudgetReached, BARE, {"price": 1e6, "budget": 1e-3}),
            (Interrupted, BARE, {"callback": True}),
        )
    ):
        callbacks = CallbackList(*([PressesCtrlC(9)] if wanted.pop("callback", False) else []), Webhook(server.url))
        with pytest.raises(error):
            gk.train(config, runs=tmp_path / str(number), device="cpu", callback=callbacks, **wanted)
    ends = [each for each in server.told if each["kind"] in ("failed", "budget", "interrupted")]
    assert [each["kind"] for each in ends] == ["failed", "budget", "interrupted"]
    assert "the training loss is" in ends[0]["text"] and "--budget" in ends[1]["text"]
    gk.resume(tmp_path / "2" / BARE.run_name, device="cpu", callback=Webhook(server.url))
    again = [each for each in server.told if each["text"] == "resumes at step 9 of 24"]
    assert len(again) == 1


def test_the_run_is_the_same_with_and_without_and_nowhere_says_the_address(server, tmp_path, capfd) -> None:
    with_it = gk.train(SMALL, runs=tmp_path / "a", device="cpu", callback=Webhook(server.url))
    alone = gk.train(SMALL, runs=tmp_path / "b", device="cpu")
    assert contents(with_it.path) == contents(alone.path)
    for path in with_it.path.rglob("*"):
        assert path.is_dir() or b"secret-topic" not in path.read_bytes()
    assert "secret-topic" not in "".join(capfd.readouterr())


def test_a_server_that_answers_500_is_complained_of_once(tmp_path, capfd) -> None:
    broken = Server(answer=500)
    run = gk.train(BARE, runs=tmp_path, device="cpu", callback=Webhook(broken.url))
    broken.close()
    assert run.status["state"] == "done" and len(broken.got) == 3
    said = capfd.readouterr().err
    assert said.count("was not delivered (HTTP status 500)") == 1
    assert "127.0.0.1" in said and "secret-topic" not in said


def test_a_dead_server_is_complained_of_once(tmp_path, capfd) -> None:
    dead = Server()
    dead.close()
    assert gk.train(BARE, runs=tmp_path, device="cpu", callback=Webhook(dead.url)).status["state"] == "done"
    said = capfd.readouterr().err
    assert said.count("was not delivered (ConnectionRefusedError)") == 1 and "secret-topic" not in said


def test_a_server_that_does_not_answer_holds_nothing_up(tmp_path, monkeypatch) -> None:
    """Its first message is never answered while the run goes on; the run's last step is over before."""
    monkeypatch.setattr(webhook, "POST_TIMEOUT", 20.0)
    monkeypatch.setattr(webhook, "FLUSH_TIMEOUT", 0.05)
    silent = threading.Event()
    slow = Server(wait=silent)
    run = gk.train(BARE, runs=tmp_path, device="cpu", callback=Webhook(slow.url))
    assert run.status["state"] == "done" and not silent.is_set()
    assert len(slow.got) <= 1, "the others wait"
    silent.set()
    slow.close()


def test_a_timeout_is_complained_of(monkeypatch, capfd) -> None:
    monkeypatch.setattr(webhook, "POST_TIMEOUT", 0.05)
    silent = threading.Event()
    slow = Server(wait=silent)
    hook = Webhook(slow.url)
    hook.event(1, "failed", "broken")
    silent.set()
    slow.close()
    assert "was not delivered (TimeoutError)" in capfd.readouterr().err


def test_too_many_messages_are_dropped_and_told_once(monkeypatch, capfd) -> None:
    monkeypatch.setattr(webhook, "MAX_QUEUED", 2)
    silent = threading.Event()
    slow = Server(wait=silent)
    hook = Webhook(slow.url)
    for step in range(10):
        hook.event(step, "policy", "a decision")
    silent.set()
    hook.event(10, "done", "")
    slow.close()
    assert len(slow.got) <= 4 and "the message queue is full" in capfd.readouterr().err


TOLD = {
    "run": "runs/a",
    "kind": "first_numbers",
    "step": 3,
    "total": 9,
    "text": "loss 0.5 – ü",
    "host": "box",
    "time": 1.0,
}


@pytest.mark.parametrize(
    ("host", "body"),
    [
        ("ntfy.sh", "first numbers: loss 0.5 – ü\nruns/a (box)".encode()),
        ("ntfy.example.org", "first numbers: loss 0.5 – ü\nruns/a (box)".encode()),
        ("hooks.slack.com", json.dumps({"text": "first numbers: loss 0.5 – ü\nruns/a (box)"}).encode()),
        ("discord.com", json.dumps({"content": "first numbers: loss 0.5 – ü\nruns/a (box)"}).encode()),
        ("example.org", json.dumps(TOLD).encode()),
    ],
)
def test_every_host_gets_the_form_it_understands(host: str, body: bytes) -> None:
    assert build_payload(host, TOLD) == body
    assert len(json.loads(build_payload("discord.com", TOLD | {"text": "x" * 5000}))["content"]) == 2000


def test_ntfy_is_told_that_it_is_text(monkeypatch) -> None:
    asked = []

    class Answer:
        def __enter__(self) -> None: ...

        def __exit__(self, *_) -> None: ...

    monkeypatch.setattr(webhook.urllib.request, "urlopen", lambda request, timeout: asked.append(request) or Answer())
    Webhook("https://ntfy.sh/mine").event(1, "done", "done at step 1")
    assert asked[0].get_header("Content-type") == "text/plain; charset=utf-8" and asked[0].get_method() == "POST"


@pytest.mark.parametrize("url", ["ftp://secret.example", "secret", "http://", "file:///etc/secret"])
def test_what_is_no_web_address_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="must be a URL") as error:
        Webhook(url)
    assert "secret.example" not in str(error.value) and "etc/secret" not in str(error.value)


def test_the_command_line_takes_the_address_from_flag_or_environment(server, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "quickstart:constant", "--steps", "3", "--device", "cpu"]
    assert main([*words, "--notify", server.url]) == 0
    monkeypatch.setenv("GROKKIT_NOTIFY", server.url)
    assert main([*words, "--seed", "1"]) == 0
    assert [each["kind"] for each in server.told].count("done") == 2
    assert "secret-topic" not in "".join(capfd.readouterr())
    assert not any(b"secret-topic" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_end_of_a_run_waits_for_its_messages(server, monkeypatch) -> None:
    monkeypatch.setattr(webhook, "FLUSH_TIMEOUT", 60.0)
    hook = Webhook(server.url)
    hook.event(1, "policy", "a decision")
    hook.event(1, "done", "")
    assert len(server.got) == 2
