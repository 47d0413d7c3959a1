"""One stage's results: a JSON file that is whole after every row, so that a stage cut short keeps what it measured."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
Rows = list[Row]

ROOT = Path(__file__).resolve().parents[2]
SICK = 70
"""Exit code of a stage whose device answers nothing any more: a fresh process may go on with the next part."""


@dataclass(frozen=True)
class Setting:
    """What a stage is told.

    Args:
        stage: its letter.
        out: folder of the results.
        work: folder of runs and weights, which do not belong to the results.
        device: `cuda`, or `cpu` for the miniature.
        data: an .npz file, or `cifar10`.
        small: the miniature: the same code on next to nothing.
        seconds: what it may take.
        resume: file of a long run to resume (stage e).
    """

    stage: str
    out: Path
    work: Path
    device: str
    data: str
    small: bool
    seconds: float
    resume: Path | None = None

    @property
    def path(self) -> Path:
        """Where the results go."""
        return self.out / f"{self.stage}.json"


class Results:
    """Parts of a stage, by name, each a list of rows; those that an earlier call finished are not measured again.

    Args:
        setting: of the stage.
        title: of the stage, in words.
        fresh: a new call: what failed is tried again. False: this process goes on for one that died, and leaves alone
            what failed before it, and what it died of.

    A part in which an earlier call was ended from outside is measured last, so that one that hangs does not hold up the
    rest for ever.

    In the file: `parts`; `unfinished`, names of those that are cut short; `failed`, name to reason; `left_out`,
    for want of time; `seconds`, `code` (digest of the sources) and `warned`, by part; `running`, what is being
    measured; `ended`, in which an earlier call was.
    """

    def __init__(self, setting: Setting, title: str, *, fresh: bool = True) -> None:
        self.setting, self.title = setting, title
        self.parts: dict[str, Rows] = {}
        self.unfinished: list[str] = []
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.code: dict[str, str] = {}
        self.warned: dict[str, list[str]] = {}
        self.running: str | None = None
        self.complete = False
        self.ended: list[str] = []
        self._last = False
        self._waiting: list[tuple[str, Callable[[], Iterable[Row]], float]] = []
        self._began = time.monotonic()
        self._digest = digest()
        found = read(setting.path)
        if found is not None and found["asked"] == asked(setting):
            for name in ("parts", "unfinished", "seconds", "code", "warned"):
                setattr(self, name, found[name])
            self.ended = found["ended"]
            running = [] if found["running"] is None else [found["running"]]
            if fresh:
                self.ended += running
            else:
                self.failed = found["failed"] | {name: "the process died while this was measured" for name in running}

    @property
    def left(self) -> float:
        """Seconds that the stage still has."""
        return self.setting.seconds - (time.monotonic() - self._began)

    def part(self, name: str, measure: Callable[[], Iterable[Row]], *, needs: float = 10.0) -> None:
        """Measure a part, unless it is there already or fewer than `require_package` seconds are left; what fails is
        written down and does not stop the rest.

        Args:
            name: of the part, within its stage.
            measure: gives its rows; those of a generator are written as they come.
            needs: seconds below which it is not begun.

        Raises:
            SystemExit: with `SICK`, where the device is unusable afterwards.
        """
        if (name in self.parts and name not in self.unfinished) or name in self.failed:
            return
        if name in self.ended and not self._last:
            self._waiting.append((name, measure, needs))
            return
        if self.left < (0 if self.setting.small else needs):
            self.left_out[name] = f"{max(self.left, 0):.0f} s were left, and it needs {needs:.0f} s"
            self.save()
            return
        print(f"  {name} ...", flush=True)
        self.left_out.pop(name, None)
        self.running, self.parts[name] = name, []
        self.ended = [other for other in self.ended if other != name]
        self.unfinished = [*(other for other in self.unfinished if other != name), name]
        self.code[name] = self._digest
        start = time.monotonic()
        self.save()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("default")
            try:
                for row in measure():
                    self.parts[name].append(row)
                    self.save()
                self.unfinished.remove(name)
            except Exception as error:  # one part that cannot be had must not cost the others
                traceback.print_exc()
                self.failed[name] = told(error)
        self._note(name, heard)
        self.running = None
        self.seconds[name] = round(time.monotonic() - start, 2)
        self.save()
        if not clean_up(self.setting.device):
            sys.exit(SICK)

    def _note(self, name: str, heard: list[warnings.WarningMessage]) -> None:
        """Keep the warnings of a part, each text once."""
        texts = list(dict.fromkeys(" ".join(str(one.message).split())[:300] for one in heard))
        self.warned.pop(name, None)
        if texts:
            self.warned[name] = texts[:10]
            print("".join(f"    warned: {text}\n" for text in self.warned[name]), end="", flush=True)

    def measured_last(self) -> None:
        """Measure the parts that were put off."""
        self._last = True
        for name, measure, needs in self._waiting:
            self.part(name, measure, needs=needs)

    def finish(self) -> None:
        """Write that the stage is complete, if it is."""
        self.complete = not (self.failed or self.left_out or self.unfinished or self.ended)
        self.save()

    def save(self) -> None:
        """Write what there is."""
        content = {
            "title": self.title,
            "complete": self.complete,
            "asked": asked(self.setting),
            **machine(self.setting),
            "running": self.running,
            "ended": self.ended,
            "unfinished": self.unfinished,
            "failed": self.failed,
            "left_out": self.left_out,
            "warned": self.warned,
            "seconds": self.seconds,
            "code": self.code,
            "parts": self.parts,
        }
        self.setting.out.mkdir(parents=True, exist_ok=True)
        draft = self.setting.path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(draft, self.setting.path)


def told(error: Exception) -> str:
    """The error in a sentence, with the innermost line of this project that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame[0]]
    place = f" (at {Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}: {ours[-1].line})" if ours else ""
    return f"{type(error).__name__}: {str(error)[:2000]}{place}"


def clean_up(device: str) -> bool:
    """Free what a part left behind, compiled code too; False where the device answers nothing any more."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        # Nets compiled one after the other count as variants of one function, and beyond eight torch stops compiling.
        torch.compiler.reset()
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except RuntimeError:
        traceback.print_exc()
        return False


def read(path: Path) -> dict[str, Any] | None:
    """A stage's results, None where there are none yet."""
    return json.loads(path.read_text()) if path.exists() else None


def asked(setting: Setting) -> dict[str, Any]:
    """What decides whether earlier results count for this call."""
    file = Path(setting.data)
    size = file.stat().st_size if file.is_file() else None
    return {
        "stage": setting.stage,
        "device": device_name(setting.device),
        "torch": torch.__version__,
        "data": file.name,
        "data_bytes": size,
        "small": setting.small,
    }


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {os.cpu_count()} cores"


def machine(setting: Setting) -> dict[str, str]:
    """Device, versions, date and command."""
    words = sys.argv[1 : sys.argv.index("--child") if "--child" in sys.argv else None]
    cudnn = torch.backends.cudnn.version() if setting.device == "cuda" else None
    return {
        "device": device_name(setting.device),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(cudnn),
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python -m bench.gpu", *words]),
    }


def digest() -> str:
    """Of the sources that measure: grokkit and this suite."""
    found = hashlib.sha256()
    for folder in ("grokkit", "bench/gpu"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


def settle(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device's work included."""
    settle(device)
    start = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - start
