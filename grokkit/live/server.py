"""The local page's server: standard library, loopback only, a random token in every address."""

from __future__ import annotations

import gzip
import hmac
import json
import secrets
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qs, unquote, urlsplit

from grokkit.errors import TrajectoryError, UsageError
from grokkit.live.page import STATIC, TYPES, picture, static
from grokkit.live.study import Study

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
"""What a browser may call this machine: a foreign name that resolves to it is another site's (DNS rebinding)."""
FIRST_PORT, TRIED = 8642, 20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip
WORTH_PACKING = 4096
"""Bytes of an answer from which on it is compressed: it may have to pass a slow line."""


class Server(ThreadingHTTPServer):
    """Serves one study until it is shut down.

    Args:
        study: the runs.
        port: None takes the first free one from 8642 on.

    Raises:
        UsageError: the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, study: Study, port: int | None = None) -> None:
        self.study, self.token = study, secrets.token_urlsafe(24)
        super().__init__((HOST, 0), Handler, bind_and_activate=False)
        try:
            self._bind(range(FIRST_PORT, FIRST_PORT + TRIED) if port is None else (port,))
        except (OSError, OverflowError) as error:  # the latter of a number that is no port
            self.server_close()
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"port {port or FIRST_PORT} cannot be listened on: {why}; give another --port") from error

    def _bind(self, ports: range | tuple[int, ...]) -> None:
        for port in ports:
            self.server_address = (HOST, port)
            try:
                TCPServer.server_bind(self)  # not HTTPServer's, which looks the host's name up
            except OSError:
                if port == ports[-1]:
                    raise
                continue
            self.server_activate()
            return

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The page's address, with the token."""
        return f"http://{HOST}:{self.port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """GET only. Nothing of an address ever becomes part of a path: names are looked up among those that are known."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        _, token, *rest = [*urlsplit(self.path).path.split("/"), ""][:8]
        if host not in NAMES or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "the address needs the token that `grokkit serve` printed")
            return
        answer = self._answer([unquote(part) for part in rest if part])
        if answer is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        try:
            kind, body = answer()
        except TrajectoryError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        else:
            self._send(HTTPStatus.OK, kind, body)

    def _answer(self, parts: list[str]) -> Callable[[], tuple[str, bytes]] | None:
        match parts:
            case []:
                return partial(_file, "index.html")
            case ["static", name] if name in STATIC:
                return partial(_file, name)
            case ["data"]:
                return self._data
            case ["window", group, low, high] if _is_step(low) and _is_step(high):
                return partial(self._window, group, int(low), int(high))
            case ["maps", run, identity, which] if which.endswith(".png"):
                return partial(self._picture, run, identity, which.removesuffix(".png"))
        return None

    def _data(self) -> tuple[str, bytes]:
        asked = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        groups = asked["groups"][0].split(",") if "groups" in asked else None
        return _json(self.server.study.update(asked.get("cursor", [""])[0], groups))

    def _window(self, group: str, low: int, high: int) -> tuple[str, bytes]:
        return _json(self.server.study.window(group, low, high))

    def _picture(self, run: str, identity: str, which: str) -> tuple[str, bytes]:
        follower = self.server.study.follower(run)
        if follower is None:
            raise TrajectoryError("there is no such run")
        return "image/png", picture(follower, identity, which)

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, "text/plain", f"{sentence}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        packed = len(body) > WORTH_PACKING and kind != "image/png" and "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, 1) if packed else body
        self.send_response(status)
        self.send_header("Content-Type", kind if kind == "image/png" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the reader has gone

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the terminal belongs to whoever started the server."""


def _is_step(text: str) -> bool:
    return text.isdecimal() and len(text) <= 15


def _json(told: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(told, separators=(",", ":"), allow_nan=False).encode()


def _file(name: str) -> tuple[str, bytes]:
    return TYPES[name[name.rindex(".") :]], static(name).encode()
