"""Webhook callback: post messages about a run to a URL (ntfy, Slack, Discord or any other).

Messages are sent by a background thread: they neither block the training nor end it if they fail.
"""

from __future__ import annotations

import json
import queue
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from grokkit.callbacks.base import FINAL_EVENTS, BaseCallback, format_values
from grokkit.errors import UsageError

POST_TIMEOUT = 3.0
"""Timeout of one request, in seconds."""

FLUSH_TIMEOUT = 6.0
"""Longest time that a run waits at its end until its messages are sent, in seconds."""

MAX_QUEUED = 100
"""Capacity of the message queue; further messages are dropped."""

IGNORED_EVENTS = frozenset({"resumed", "restarted", "imported"})
"""Events that no message is sent for."""


class Webhook(BaseCallback):
    """Callback that posts a run's start, first metrics, events and outcome to a URL.

    ntfy gets plain text, Slack and Discord JSON with the text field that they display, every other host JSON with
    `run`, `kind`, `step`, `total`, `text`, `host` and `time`. The URL may hold a secret: it is never stored, and errors
    name only its host.

    Args:
        url: an http or https URL.

    Raises:
        UsageError: any other URL.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                "--notify (or GROKKIT_NOTIFY) must be a URL such as https://ntfy.sh/my-secret-topic; the value does "
                "not begin with http:// or https:// and a host (it is not shown here, as it may hold a secret)"
            )
        self._url, self._host = url.strip(), parts.hostname
        self._run, self._total, self._has_reported, self._warned = "", 0, False, False
        self._began = time.monotonic(), 0
        self._queue: queue.Queue[bytes | threading.Event] = queue.Queue(MAX_QUEUED)
        threading.Thread(target=self._work, name="grokkit-notify", daemon=True).start()

    def start(self, title: str, done: int, total: int) -> None:
        self._run, self._total, self._has_reported, self._began = title, total, False, (time.monotonic(), done)
        self._send("start", done, f"{'resumes at' if done else 'starts at'} step {done} of {total}")

    def report(self, step: int, values: Mapping[str, float]) -> None:
        if self._has_reported or step <= self._began[1]:
            return
        self._has_reported = True
        speed = (step - self._began[1]) / max(time.monotonic() - self._began[0], 1e-9)
        self._send(
            "first_numbers", step, f"step {step} of {self._total}: {format_values(values)}; {speed:.3g} steps/s so far"
        )

    def event(self, step: int, kind: str, text: str) -> None:
        if kind not in IGNORED_EVENTS:
            self._send(kind, step, text)
        if kind in FINAL_EVENTS:
            self._flush()

    def _send(self, kind: str, step: int, text: str) -> None:
        message = {
            "run": self._run,
            "kind": kind,
            "step": step,
            "total": self._total,
            "text": text,
            "host": socket.gethostname(),
            "time": time.time(),
        }
        try:
            self._queue.put_nowait(build_payload(self._host, message))
        except queue.Full:
            self._warn_once("the message queue is full; messages are dropped")

    def _flush(self) -> None:
        """Wait until all messages are sent, at most `FLUSH_TIMEOUT` for each of two steps."""
        sent = threading.Event()
        try:
            self._queue.put(sent, timeout=FLUSH_TIMEOUT)
        except queue.Full:
            return
        sent.wait(FLUSH_TIMEOUT)

    def _work(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._post(item)

    def _post(self, body: bytes) -> None:
        kind = "text/plain; charset=utf-8" if _is_ntfy(self._host) else "application/json"
        request = urllib.request.Request(self._url, body, {"Content-Type": kind, "User-Agent": "grokkit"})
        try:
            with urllib.request.urlopen(request, timeout=POST_TIMEOUT):
                pass
        except urllib.error.HTTPError as error:
            self._warn_once(f"HTTP status {error.code}")
            error.close()
        except Exception as error:  # no network error may end the run; its message may hold the URL
            reason = getattr(error, "reason", error)
            self._warn_once(f"{type(reason).__name__}")

    def _warn_once(self, reason: str) -> None:
        """Print once that messages cannot be delivered."""
        if not self._warned:
            self._warned = True
            with suppress(OSError):
                print(
                    f"a message to {self._host} was not delivered ({reason}); the run continues, and later failures "
                    "are not reported",
                    file=sys.stderr,
                    flush=True,
                )


def build_payload(host: str, message: Mapping[str, Any]) -> bytes:
    """Return the request body in the format of `host`."""
    line = f"{message['kind'].replace('_', ' ')}: {message['text']}\n{message['run']} ({message['host']})"
    if _is_ntfy(host):
        return line.encode()
    if host == "hooks.slack.com":
        return json.dumps({"text": line}).encode()
    if host in ("discord.com", "discordapp.com"):
        return json.dumps({"content": line[:2000]}).encode()
    return json.dumps(message).encode()


def _is_ntfy(host: str) -> bool:
    return host == "ntfy.sh" or host.startswith("ntfy.")
