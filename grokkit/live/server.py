"""HTTP server of the live page: standard library only, loopback only, with a random token in every URL."""

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
from grokkit.live.page import CONTENT_TYPES, STATIC_FILES, read_static, render_image
from grokkit.live.run_browser import RunBrowser

HOST = "127.0.0.1"
ALLOWED_HOSTS = ("127.0.0.1", "localhost")
"""Allowed Host headers: any other name that resolves to this machine may belong to another site (DNS rebinding)."""
FIRST_PORT, PORTS_TO_TRY = 8642, 20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAX_UNREAD_BYTES, UNREAD_SECONDS = 16 * 2**20, 2.0
"""Maximum number of bytes of a refused request that are still read, and the longest wait for more of them."""
MIN_COMPRESSED_BYTES = 4096
"""Responses above this size in bytes are compressed: the connection may be slow."""


class Server(ThreadingHTTPServer):
    """HTTP server of the live page of some runs.

    Args:
        browser: the runs.
        port: port to listen on; None: the first free one from 8642.

    Raises:
        UsageError: the port is in use or not allowed.
    """

    daemon_threads = True

    def __init__(self, browser: RunBrowser, port: int | None = None) -> None:
        self.browser, self.token = browser, secrets.token_urlsafe(24)
        super().__init__((HOST, 0), Handler, bind_and_activate=False)
        try:
            self._bind(range(FIRST_PORT, FIRST_PORT + PORTS_TO_TRY) if port is None else (port,))
        except (OSError, OverflowError) as error:  # OverflowError: the number is not a valid port
            self.server_close()
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot listen on port {port or FIRST_PORT}: {reason}; pass another --port") from error

    def _bind(self, ports: range | tuple[int, ...]) -> None:
        for port in ports:
            self.server_address = (HOST, port)
            try:
                TCPServer.server_bind(self)  # not HTTPServer.server_bind, which looks up the host name
            except OSError:
                if port == ports[-1]:
                    raise
                continue
            self.server_activate()
            return

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a browser that disconnects during a request; print any other error, as by default."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        return int(self.socket.getsockname()[1])

    @property
    def url(self) -> str:
        """URL of the page, with the token."""
        return f"http://{HOST}:{self.port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """Request handler for GET only. No part of a URL becomes part of a path: names are looked up among known ones."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60
    raw_requestline: bytes
    _query, _unread = "", False

    def do_GET(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self._close_unread()  # the body must not be parsed as the next request
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        address, _, self._query = self.path.partition("#")[0].partition("?")
        if address.startswith("http://"):  # absolute form, as sent to proxies
            address = "/" + address.removeprefix("http://").partition("/")[2]
        _, token, *rest = [*address.split("/"), ""][:8]
        if host not in ALLOWED_HOSTS or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "the URL must contain the token that `grokkit serve` printed")
            return
        respond = self._route([unquote(part) for part in rest if part])
        if respond is None:
            self._refuse(HTTPStatus.NOT_FOUND, "page not found")
            return
        try:
            kind, body = respond()
        except TrajectoryError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except Exception as error:  # respond with the reason instead of closing the connection; the page will retry
            message = f"the page cannot be generated: {type(error).__name__}: {error}"
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, message)
        else:
            self._send(HTTPStatus.OK, kind, body)

    def _route(self, parts: list[str]) -> Callable[[], tuple[str, bytes]] | None:
        match parts:
            case []:
                return partial(_read_file, "index.html")
            case ["static", name] if name in STATIC_FILES:
                return partial(_read_file, name)
            case ["data"]:
                return self._get_data
            case ["window", group, low, high] if _is_step(low) and _is_step(high):
                return partial(self._get_window, group, int(low), int(high))
            case ["maps", run, identity, which] if which.endswith(".png"):
                return partial(self._get_image, run, identity, which.removesuffix(".png"))
        return None

    def _get_data(self) -> tuple[str, bytes]:
        query = parse_qs(self._query, keep_blank_values=True)
        groups = query["groups"][0].split(",") if "groups" in query else None
        return _encode_json(self.server.browser.update(query.get("cursor", [""])[0], groups))

    def _get_window(self, group: str, low: int, high: int) -> tuple[str, bytes]:
        return _encode_json(self.server.browser.get_window(group, low, high))

    def _get_image(self, run: str, identity: str, which: str) -> tuple[str, bytes]:
        follower = self.server.browser.get_follower(run)
        if follower is None:
            raise TrajectoryError("run not found")
        return "image/png", render_image(follower, identity, which)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._send(status, "text/plain", f"{escape_controls(message)}\n".encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Respond to a request that the standard library refuses (another method, a line too long, not HTTP) with our
        headers, and close the connection: the following bytes may belong to the refused request."""
        self._close_unread()
        status = HTTPStatus(code)
        self._refuse(status, message or status.phrase)

    def parse_request(self) -> bool:
        """Read the request line and the headers; a blank line also gets a response."""
        if self.raw_requestline.strip():
            return super().parse_request()
        self.requestline, self.command = "", None  # type: ignore[assignment]
        self.send_error(HTTPStatus.BAD_REQUEST, "the request is empty")
        return False

    def _close_unread(self) -> None:
        self.close_connection = self._unread = True

    def finish(self) -> None:
        """End the connection after reading what is left of the request: closing a socket with unread bytes resets it,
        and then the response may never arrive."""
        super().finish()
        remaining = MAX_UNREAD_BYTES if self._unread else 0
        with suppress(OSError):
            self.connection.shutdown(SHUT_WR)
            self.connection.settimeout(UNREAD_SECONDS)
            while remaining > 0 and (read := self.connection.recv(1 << 16)):
                remaining -= len(read)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        # If the request line is refused, there are no headers yet.
        accepted = self.headers.get("Accept-Encoding", "") if getattr(self, "headers", None) else ""
        compress = len(body) > MIN_COMPRESSED_BYTES and kind != "image/png" and "gzip" in accepted
        body = gzip.compress(body, 1) if compress else body
        self.request_version = self.protocol_version  # even if the request names no version: responses have headers
        self.send_response(status)
        self.send_header("Content-Type", kind if kind == "image/png" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if compress:
            self.send_header("Content-Encoding", "gzip")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        try:
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)
        except OSError:
            self.close_connection = True  # the client has disconnected

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing, so that the terminal stays clean."""


def _is_step(text: str) -> bool:
    return text.isdecimal() and len(text) <= 15


def _encode_json(value: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _read_file(name: str) -> tuple[str, bytes]:
    return CONTENT_TYPES[name[name.rindex(".") :]], read_static(name).encode()
