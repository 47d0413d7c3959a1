"""The local page's server: standard library, loopback only, a random token in every address."""

from __future__ import annotations

import gzip
import hmac
import json
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_WR
from socketserver import TCPServer
from urllib.parse import parse_qs, unquote

from grokkit.errors import TrajectoryError, UsageError
from grokkit.escape import escape_controls
from grokkit.live.page import STATIC, TYPES, read_static, render_picture
from grokkit.live.run_browser import RunBrowser

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
"""What a browser may call this machine: a foreign name that resolves to it is another site's (DNS rebinding)."""
FIRST_PORT, TRIED = 8642, 20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MOST_UNREAD, UNREAD_SECONDS = 16 * 2**20, 2.0
"""Bytes of a refused request that are still taken, and the longest time to wait for more of them."""
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

    def __init__(self, study: RunBrowser, port: int | None = None) -> None:
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

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that went away amid a request; anything else is printed, as by default."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

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
    raw_requestline: bytes
    _query, _unread = "", False

    def do_GET(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self._leave_unread()  # what follows must not be taken for the next request
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        address, _, self._query = self.path.partition("#")[0].partition("?")
        if address.startswith("http://"):  # as proxies are asked
            address = "/" + address.removeprefix("http://").partition("/")[2]
        _, token, *rest = [*address.split("/"), ""][:8]
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
        except Exception as error:  # the page asks again; a connection that dies without an answer tells nobody why
            said = f"the page cannot be made: {type(error).__name__}: {error}"
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, said)
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
        asked = parse_qs(self._query, keep_blank_values=True)
        groups = asked["groups"][0].split(",") if "groups" in asked else None
        return _json(self.server.study.update(asked.get("cursor", [""])[0], groups))

    def _window(self, group: str, low: int, high: int) -> tuple[str, bytes]:
        return _json(self.server.study.window(group, low, high))

    def _picture(self, run: str, identity: str, which: str) -> tuple[str, bytes]:
        follower = self.server.study.follower(run)
        if follower is None:
            raise TrajectoryError("there is no such run")
        return "image/png", render_picture(follower, identity, which)

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, "text/plain", f"{escape_controls(sentence)}\n".encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the standard library refuses (another method, a line that is too long or no request) with the
        headers of every answer, and close the connection: what follows may belong to the refused request."""
        self._leave_unread()
        status = HTTPStatus(code)
        self._refuse(status, message or status.phrase)

    def parse_request(self) -> bool:
        """Read the first line and the headers; also a blank line is answered."""
        if self.raw_requestline.strip():
            return super().parse_request()
        self.requestline, self.command = "", None  # type: ignore[assignment]
        self.send_error(HTTPStatus.BAD_REQUEST, "the request is empty")
        return False

    def _leave_unread(self) -> None:
        self.close_connection = self._unread = True

    def finish(self) -> None:
        """End the connection. What was not read is taken off it first: a socket that is closed over unread bytes is
        reset, and then the answer may never arrive."""
        super().finish()
        left = MOST_UNREAD if self._unread else 0
        with suppress(OSError):
            self.connection.shutdown(SHUT_WR)
            self.connection.settimeout(UNREAD_SECONDS)
            while left > 0 and (read := self.connection.recv(1 << 16)):
                left -= len(read)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        # There are no headers yet where the request's first line is refused.
        accepted = self.headers.get("Accept-Encoding", "") if getattr(self, "headers", None) else ""
        packed = len(body) > WORTH_PACKING and kind != "image/png" and "gzip" in accepted
        body = gzip.compress(body, 1) if packed else body
        self.request_version = self.protocol_version  # also of a line that names none: an answer has headers
        self.send_response(status)
        self.send_header("Content-Type", kind if kind == "image/png" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        try:
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)
        except OSError:
            self.close_connection = True  # the reader has gone

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the terminal belongs to whoever started the server."""


def _is_step(text: str) -> bool:
    return text.isdecimal() and len(text) <= 15


def _json(told: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(told, separators=(",", ":"), allow_nan=False).encode()


def _file(name: str) -> tuple[str, bytes]:
    return TYPES[name[name.rindex(".") :]], read_static(name).encode()
