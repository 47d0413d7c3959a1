"""`grokkit serve [RUNS]`."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path
from typing import Annotated

import tyro

from grokkit.cli.parse import parse_arguments


def main(argv: list[str]) -> None:
    """Parse arguments and serve."""
    parse_arguments("serve", serve, argv)


def serve(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS...")] = (Path("runs"),),
    port: int | None = None,
) -> None:
    """Serve a live page of runs to browsers on this machine, or on another one through ssh, until Ctrl-C.

    Accepts connections from this machine only, and only with the random token in the URL. The page needs no network.

    Try:
        grokkit serve
        grokkit serve runs/quickstart --port 9000

    Args:
        runs: folders of runs, or folders that hold runs; they may appear later.
        port: port to listen on; by default the first free one from 8642.
    """
    from grokkit.live.run_browser import RunBrowser
    from grokkit.live.server import Server

    server = Server(RunBrowser(runs), port)
    for path in runs:
        if not path.exists():
            print(f"{path} does not exist yet; its runs are shown as soon as they appear")
    print(f"open     {server.url}")
    print(f"from another machine, first run: {format_ssh_command(server.port)}")
    print("Press Ctrl-C to stop serving; the runs are not affected", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def format_ssh_command(port: int) -> str:
    """Return the ssh command that makes the page reachable at the same URL on another machine. For a rented machine
    behind a gateway, host and `-p` are those of the login, which cannot be determined from inside."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    host = connection[2] if len(connection) == 4 else socket.gethostname()
    return f"ssh -L {port}:127.0.0.1:{port} {getpass.getuser()}@{host}   (host and -p as in your ssh login)"
