"""Messages about a run to a web address: a phone, a chat room, a script. They never hold a run up and never end one."""

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

SECONDS = 3.0
"""That one message may take."""

LAST_SECONDS = 6.0
"""That a run waits at its end until its messages are out."""

WAITING = 100
"""Messages that wait at most; more are dropped."""

QUIET = frozenset({"resumed", "restarted", "imported"})
"""Events that no message is sent for."""


class Webhook(BaseCallback):
    """Posts a run's start, its first numbers, its decisions and incidents, and how it ended.

    ntfy gets plain text with a title, Slack and Discord the field that they show, every other address JSON with `run`,
    `kind`, `step`, `total`, `text`, `host` and `time`. The address may hold a secret: it is written nowhere, and errors
    name its host alone.

    Args:
        url: http or https.

    Raises:
        UsageError: another kind of address.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                "--notify (or GROKKIT_NOTIFY) takes a web address such as https://ntfy.sh/my-secret-topic; what came "
                "does not begin with http:// or https:// and a host (it is not repeated here, it may hold a secret)"
            )
        self._url, self._host = url.strip(), parts.hostname
        self._run, self._total, self._met, self._complained = "", 0, False, False
        self._began = time.monotonic(), 0
        self._waiting: queue.Queue[bytes | threading.Event] = queue.Queue(WAITING)
        threading.Thread(target=self._work, name="grokkit-notify", daemon=True).start()

    def start(self, title: str, done: int, total: int) -> None:
        self._run, self._total, self._met, self._began = title, total, False, (time.monotonic(), done)
        self._send("start", done, f"{'goes on from' if done else 'starts at'} step {done} of {total}")

    def report(self, step: int, values: Mapping[str, float]) -> None:
        if self._met or step <= self._began[1]:
            return
        self._met = True
        speed = (step - self._began[1]) / max(time.monotonic() - self._began[0], 1e-9)
        self._send(
            "first_numbers", step, f"step {step} of {self._total}: {format_values(values)}; {speed:.3g} steps/s so far"
        )

    def event(self, step: int, kind: str, text: str) -> None:
        if kind not in QUIET:
            self._send(kind, step, text)
        if kind in FINAL_EVENTS:
            self._finish()

    def _send(self, kind: str, step: int, text: str) -> None:
        told = {
            "run": self._run,
            "kind": kind,
            "step": step,
            "total": self._total,
            "text": text,
            "host": socket.gethostname(),
            "time": time.time(),
        }
        try:
            self._waiting.put_nowait(build_payload(self._host, told))
        except queue.Full:
            self._complain("too many messages wait; some are dropped")

    def _finish(self) -> None:
        """Wait a little until all messages are out."""
        out = threading.Event()
        try:
            self._waiting.put(out, timeout=LAST_SECONDS)
        except queue.Full:
            return
        out.wait(LAST_SECONDS)

    def _work(self) -> None:
        while True:
            message = self._waiting.get()
            if isinstance(message, threading.Event):
                message.set()
            else:
                self._post(message)

    def _post(self, body: bytes) -> None:
        kind = "text/plain; charset=utf-8" if _is_ntfy(self._host) else "application/json"
        request = urllib.request.Request(self._url, body, {"Content-Type": kind, "User-Agent": "grokkit"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                pass
        except urllib.error.HTTPError as error:
            self._complain(f"it answered {error.code}")
            error.close()
        except Exception as error:  # whatever a network does is no matter of the run; its words may hold the address
            reason = getattr(error, "reason", error)
            self._complain(f"{type(reason).__name__}")

    def _complain(self, why: str) -> None:
        """Say once that messages do not arrive."""
        if not self._complained:
            self._complained = True
            with suppress(OSError):
                print(
                    f"a message to {self._host} was not delivered ({why}); the run goes on, and later failures are "
                    "not told",
                    file=sys.stderr,
                    flush=True,
                )


def build_payload(host: str, told: Mapping[str, Any]) -> bytes:
    """The body that `host` understands."""
    line = f"{told['kind'].replace('_', ' ')}: {told['text']}\n{told['run']} ({told['host']})"
    if _is_ntfy(host):
        return line.encode()
    if host == "hooks.slack.com":
        return json.dumps({"text": line}).encode()
    if host in ("discord.com", "discordapp.com"):
        return json.dumps({"content": line[:2000]}).encode()
    return json.dumps(told).encode()


def _is_ntfy(host: str) -> bool:
    return host == "ntfy.sh" or host.startswith("ntfy.")
