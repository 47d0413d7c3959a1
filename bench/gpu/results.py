"""One stage's results: a JSON file that is whole after every part, so that a stage cut short keeps what it measured."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Rows = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
ENDED = "begun, and ended from outside before it was done"


@dataclass(frozen=True)
class Setting:
    """What a stage is told.

    Args:
        stage: its letter.
        out: folder of the results.
        work: folder for runs and weights, which do not belong to the results.
        device: `cuda`, or `cpu` for the miniature.
        data: an .npz file, or `cifar10`.
        small: the miniature: the same code on next to nothing.
        seconds: what it may take.
        going_on: file of a long run to go on with (stage e).
    """

    stage: str
    out: Path
    work: Path
    device: str
    data: str
    small: bool
    seconds: float
    going_on: Path | None = None


@dataclass
class Results:
    """Parts of a stage, by name; those that an earlier call finished are not measured again, and those in which an
    earlier call was ended are measured last, so that one that hangs does not hold up the rest for ever.

    Args:
        setting: of the stage.
        title: of the stage, in words.
    """

    setting: Setting
    title: str
    parts: dict[str, Rows] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = False

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        found = read(self.path)
        self._ended: set[str] = set()
        self._deferred: list[tuple[str, Callable[[], Rows], float]] = []
        if found is not None and found["asked"] == asked(self.setting):
            self.parts, self.seconds = found["parts"], found["seconds"]
            self._ended = {name for name, why in found["failed"].items() if why == ENDED}

    @property
    def path(self) -> Path:
        return path_of(self.setting)

    @property
    def left(self) -> float:
        """Seconds that the stage still has."""
        return self.setting.seconds - (time.monotonic() - self._began)

    def part(self, name: str, measure: Callable[[], Rows], *, needs: float = 10.0) -> None:
        """Measure a part, unless it is there already or fewer than `needs` seconds are left; what fails is written
        down and does not stop the rest."""
        if name in self.parts:
            return
        if name in self._ended:
            self._deferred.append((name, measure, needs))
            self.failed[name] = ENDED
            return
        if self.left < (0 if self.setting.small else needs):
            self.failed[name] = f"not begun: {self.left:.0f} s were left, and it needs {needs:.0f} s"
            self.save()
            return
        print(f"  {name} ...", flush=True)
        self.failed[name] = ENDED
        self.save()
        start = time.monotonic()
        try:
            self.parts[name] = measure()
            del self.failed[name]
        except Exception as error:  # one part that cannot be had must not cost the others
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error} ({place_of(error)})"
        self.seconds[name] = round(time.monotonic() - start, 2)
        self.save()

    def finish(self) -> None:
        """Measure what was put off, and say whether the stage is complete."""
        self._ended.clear()
        for name, measure, needs in self._deferred:
            del self.failed[name]
            self.part(name, measure, needs=needs)
        self.save(complete=True)

    def save(self, *, complete: bool = False) -> None:
        """Write what there is; `complete` where every part was measured."""
        self.complete = complete and not self.failed
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "title": self.title, "complete": self.complete, "asked": asked(self.setting),
            **machine(self.setting.device), "failed": self.failed, "seconds": self.seconds, "parts": self.parts,
        }  # fmt: skip
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(draft, self.path)


def path_of(setting: Setting) -> Path:
    """Where a stage's results go."""
    return setting.out / f"{setting.stage}.json"


def read(path: Path) -> dict[str, Any] | None:
    """A stage's results, None where there are none yet."""
    return json.loads(path.read_text()) if path.exists() else None


def asked(setting: Setting) -> dict[str, Any]:
    """What decides whether earlier results count for this call."""
    told = asdict(setting)
    return {"stage": told["stage"], "device": told["device"], "data": Path(told["data"]).name, "small": told["small"]}


def machine(device: str) -> dict[str, str]:
    """Device, versions, date and command."""
    words = sys.argv[1 : sys.argv.index("--child") if "--child" in sys.argv else None]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {os.cpu_count()} cores",
        "torch": torch.__version__, "cuda": str(torch.version.cuda), "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "command": " ".join(["python -m bench.gpu", *words]),
    }  # fmt: skip


def place_of(error: Exception) -> str:
    """File and line of the innermost call in grokkit or here: which of our lines it was."""
    calls = traceback.extract_tb(error.__traceback__)
    ours = [call for call in calls if call.filename.startswith(str(ROOT)) and "site-packages" not in call.filename]
    return "; ".join(f"{Path(call.filename).relative_to(ROOT)}:{call.lineno}" for call in ours[-2:])


def broken(parts: dict[str, Rows]) -> list[str]:
    """Rows whose check does not hold, in words."""
    checks = ("passes", "left_as_it_was")
    return [
        f"{name}: {json.dumps(row)}"
        for name, rows in parts.items() for row in rows if not all(row.get(check, True) for check in checks)
    ]  # fmt: skip


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
