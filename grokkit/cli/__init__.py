"""The command line: `grokkit VERB ...`. A verb's module is imported only when it is called for, so help is quick."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import warnings

from grokkit import __version__
from grokkit.errors import GrokkitError, UntrustedCodeError
from grokkit.escape import escape_controls
from grokkit.interrupt import ignore_early_sigusr1
from grokkit.registry import did_you_mean

COMMANDS = {
    "demo": "train on digits, measure, explain, draw; no download",
    "train": "train an experiment: a name, or the path of a .py file",
    "estimate": "say how long an experiment would take, how much disk and how many dollars",
    "lr-find": "find lr_max, a peak learning rate for an experiment, by a range test",
    "resume": "go on with an interrupted run",
    "sweep": "train many runs overnight: grids, seeds, a queue, a report",
    "note": "write into a run's diary, or read it",
    "diff": "say what two runs differ in, and from which step on",
    "ls": "list the runs below a folder",
    "status": "say how a run stands",
    "watch": "follow a run in the terminal",
    "serve": "follow runs in a browser: a local page, also through ssh",
    "lc": "measure local complexity at the stored snapshots",
    "choose-radius": "say which radius and how many directions to measure it with",
    "attack": "attack the stored snapshots by projected gradient descent",
    "attribute": "explain the stored snapshots: which pixels speak for the true class",
    "figure": "draw a figure from stored tables",
    "export": "write runs as one HTML file, csv, parquet, safetensors or for TensorBoard",
    "model": "print parameters, FLOPs, receptive field and counted units of a model",
    "bench": "measure how fast a model trains here, and what binds it",
    "doctor": "check the machine: device, versions, data, disk",
}
KEPT_CONTROLS = "\n\t"
"""Control characters that an error may print."""
EXIT_FILES, EXIT_INTERRUPTED = 4, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code (0 done, 1 internal, 2 usage, 3 device, 4 data or run, 5 numbers,
    6 budget spent, 75 stopped and resumable, 130 left at once)."""
    argv = sys.argv[1:] if arguments is None else arguments
    warnings.formatwarning = lambda message, *_, **__: f"warning: {escape_controls(str(message), keep=KEPT_CONTROLS)}\n"
    ignore_early_sigusr1()
    try:
        return _run(argv)
    except UntrustedCodeError as error:
        allowed = shlex.join(["grokkit", *argv, "--trust"])
        print(f"grokkit {argv[0]}: {error.reason} Read it, then: {allowed}", file=sys.stderr)
        return error.exit_code
    except GrokkitError as error:
        print(f"grokkit {argv[0]}: {escape_controls(str(error), keep=KEPT_CONTROLS)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(*(stop.args or ("stopped; the same command goes on where it was",)), file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; nothing more may be written, not even while Python closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"grokkit {argv[0]}: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FILES


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), flush=True)
        return 0
    if argv[0] in ("-V", "--version"):
        print(__version__)
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        print(f"grokkit has no verb {command!r}.{did_you_mean(command, list(COMMANDS))}\n\n{_help()}", file=sys.stderr)
        return 2
    importlib.import_module(f"grokkit.cli.{command.replace('-', '_')}").main(rest)
    sys.stdout.flush()
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {what}" for command, what in COMMANDS.items()]
    return "\n".join(
        [
            "grokkit watches how a network carves up its input space while it learns.",
            "",
            "usage: grokkit VERB ...",
            "",
            *lines,
            "",
            "grokkit VERB --help says more. A first run: grokkit demo",
        ]
    )
