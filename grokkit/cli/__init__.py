"""The command line: `grokkit COMMAND ...`. A command's module is imported only when the command runs, so that --help is
fast."""

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
    "train": "train an experiment, given by name or as the path of a .py file",
    "estimate": "estimate time, disk space and cost of an experiment",
    "lr-find": "find a peak learning rate (lr_max) for an experiment by a range test",
    "resume": "resume an interrupted run",
    "sweep": "train many runs from one file: grids, seeds, a queue, a report",
    "note": "add a line to a run's diary, or print it",
    "diff": "compare two runs: config, data, source, results, first differing step",
    "ls": "list the runs below a folder",
    "status": "show the status of a run",
    "watch": "follow a run in the terminal",
    "serve": "follow runs in a browser, locally or through ssh",
    "lc": "measure local complexity at the stored snapshots",
    "choose-radius": "recommend a radius and a number of directions for local complexity",
    "attack": "attack the stored snapshots by projected gradient descent",
    "attribute": "compute pixel attributions for the true class at the stored snapshots",
    "figure": "draw a figure from stored tables",
    "export": "write runs as one HTML file, csv, parquet, safetensors or for TensorBoard",
    "model": "print parameters, FLOPs, receptive field and counted units of a model",
    "bench": "measure training throughput and find the bottleneck",
    "doctor": "check the machine: device, versions, data, disk",
}
PRINTED_CONTROLS = "\n\t"
"""Control characters that error messages keep; all others are escaped."""
EXIT_FILE_ERROR, EXIT_INTERRUPTED = 4, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 internal, 2 usage, 3 device, 4 data or run, 5 numerics,
    6 budget spent, 75 interrupted and resumable, 130 exited immediately."""
    argv = sys.argv[1:] if arguments is None else arguments
    warnings.formatwarning = lambda message, *_, **__: (
        f"warning: {escape_controls(str(message), keep=PRINTED_CONTROLS)}\n"
    )
    ignore_early_sigusr1()
    try:
        return _run(argv)
    except UntrustedCodeError as error:
        trust_command = shlex.join(["grokkit", *argv, "--trust"])
        print(f"grokkit {argv[0]}: {error.reason} Read it, then run: {trust_command}", file=sys.stderr)
        return error.exit_code
    except GrokkitError as error:
        print(f"grokkit {argv[0]}: {escape_controls(str(error), keep=PRINTED_CONTROLS)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        print(*(interrupt.args or ("Interrupted. Run the same command again to resume",)), file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Nothing reads our output any more. Redirect it, so that Python's flush at exit does not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"grokkit {argv[0]}: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FILE_ERROR


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), flush=True)
        return 0
    if argv[0] in ("-V", "--version"):
        print(__version__)
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        hint = did_you_mean(command, list(COMMANDS))
        print(f"grokkit: unknown command {command!r}.{hint}\n\n{_help()}", file=sys.stderr)
        return 2
    importlib.import_module(f"grokkit.cli.{command.replace('-', '_')}").main(rest)
    sys.stdout.flush()
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {summary}" for command, summary in COMMANDS.items()]
    return "\n".join(
        [
            "grokkit trains image classifiers and measures how they partition their input space along the way.",
            "",
            "usage: grokkit COMMAND ...",
            "",
            *lines,
            "",
            "Run `grokkit COMMAND --help` for details. To get started: grokkit demo",
        ]
    )
