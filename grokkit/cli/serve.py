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
    """Read the words and serve."""
    parse_arguments("serve", serve, argv)


def serve(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS...")] = (Path("runs"),),
    port: int | None = None,
) -> None:
    """Serve a live page of runs to browsers on this machine, or through ssh to one elsewhere, until Ctrl-C.

    Only this machine can connect, and only with the random token in the address. The page needs no network.

    Try:
        grokkit serve
        grokkit serve runs/quickstart --port 9000

    Args:
        runs: folders of runs, or folders that hold runs; they may appear later.
        port: to listen on; by default the first free one from 8642 on.
    """
    from grokkit.live.run_browser import RunBrowser
    from grokkit.live.server import Server

    server = Server(RunBrowser(runs), port)
    for path in runs:
        if not path.exists():
            print(f"{path} is not there yet; its runs will be shown when they appear")
    print(f"open     {server.url}")
    print(f"from elsewhere, first: {format_ssh_command(server.port)}")
    print("Ctrl-C ends the page, not the runs", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def format_ssh_command(port: int) -> str:
    """The ssh command that makes the page reachable at the same address on another machine; behind a rented machine's
    gateway the address and `-p` are those that one logs in with, which cannot be seen from inside."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    host = connection[2] if len(connection) == 4 else socket.gethostname()
    return f"ssh -L {port}:127.0.0.1:{port} {getpass.getuser()}@{host}   (host and -p as you log in)"
