"""What may lie in a run folder that no writer has put there, as functions of the folder: each field of each document
with every kind of value, every kind of thing in the place of a file, whole files of nonsense; and random ones."""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import shutil
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from grokkit.names import Reading
from grokkit.trajectory import store
from grokkit.trajectory.run import write_status

Oddity = Callable[[Path], object]
Make = Callable[[Path], object]

VALUES = {
    "null": "null",
    "true": "true",
    "minus": "-1",
    "half": "1.5",
    "int64": str(2**63),
    "word": '"abc"',
    "empty": '""',
    "list": "[1]",
    "table": '{"a": 1}',
    "nan": "NaN",
    "inf": "Infinity",
    "exponent": "1e999",
    "large": "1e300",
    "hundreds": "9" * 300,
    "lists": "[[[]]]",
    "escape": json.dumps("\x1b[2J\x07\u202e"),
    "half_pair": '"\\ud800"',
    "zero": "0",
}
CONTENTS = {
    "nothing": b"",
    "[1]": b"[1]",
    "null": b"null",
    "number": b"1",
    "text": b'"a"',
    "{": b"{",
    "two": b"{}{}",
    "latin": b'{"state": "\xff"}',
    "zeros": b"\x00" * 40,
    "bom": b"\xef\xbb\xbf{}",
    "digits": b"1" * 5000,
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep_lists": b"[" * 100_000,
    "below_limit": b"[" * 500 + b"]" * 500,
    "wide_chars": '{"state": "done"}'.encode("utf-16"),
}
STATUS = ("state", "step", "attempt", "total_steps", "reason", "costs", "seconds", "price", "spent", "updated", "more")
ENVIRONMENT = ("device", "data", "precision")
DATA = ("classes", "train", "input_shape", "mean", "std", "name", "hash")
METRIC = ("step", "split", "metric", "value", "attempt", "not_finite")
EVENT = ("step", "kind", "text", "attempt", "lr", "run")


def odd_status(path: Path, field: str, value: str) -> None:
    fields = {"state": "done", "step": 3, "attempt": 1, "total_steps": 1000, "updated": 1.7e9}
    rewrite(path / "status.json", {name: json.dumps(told) for name, told in fields.items()} | {field: value})


def odd_environment(path: Path, field: str, value: str) -> None:
    rewrite(path / "environment.json", {"device": '"cpu"', field: value})


def odd_data(path: Path, field: str, value: str) -> None:
    rewrite(path / "environment.json", {"data": f'{{"train": 120, "{field}": {value}}}'})


def rewrite(path: Path, fields: dict[str, str]) -> None:
    path.write_text("{" + ",".join(f'"{name}": {value}' for name, value in fields.items()) + "}")


def odd_config(path: Path, text: str) -> None:
    (path / "config.toml").write_text(text)


def odd_line(path: Path, name: str, fields: dict[str, str], field: str, value: str) -> None:
    line(path / name, ("{" + ",".join(f'"{key}":{told}' for key, told in (fields | {field: value}).items()) + "}"))


def line(path: Path, body: str | bytes) -> None:
    """Append a line whose checksum is right."""
    body = body.encode() if isinstance(body, str) else body
    with open(path, "ab") as file:
        file.write(body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))


def in_place(path: Path, name: str, make: Make) -> None:
    """Put something else where a file or folder is."""
    shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink(missing_ok=True)
    make(path / name)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**40)


THINGS = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "socket": make_socket,
    "huge": make_huge,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
}
PLACES = (
    "status.json",
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "events.jsonl",
    "LOCK",
    "diary.md",
    "experiment.py",
    "snapshots",
    "measures",
    "attributions",
    "probes",
)


def odd_lock(path: Path, make: Make) -> None:
    write_status(path, state="running", step=1, total_steps=10, attempt=1)
    in_place(path, "LOCK", make)


def odd_reading(path: Path, changes: dict[str, Any]) -> None:
    coords = {"probe_set": ("test",), "layer": ("a", "total")}
    fields: dict[str, Any] = {
        "measure": "odd",
        "values": np.ones((1, 2)),
        "dims": tuple(coords),
        "coords": coords,
        "unit": "1",
        "n": 2,
    }
    reading = Reading(**fields)
    for name, value in changes.items():
        object.__setattr__(reading, name, value)
    store.write_reading(path / "measures" / "odd-00000000", 5, reading)


READINGS = {
    "unit": {"unit": float("nan")},
    "unit_list": {"unit": ["a"]},
    "layers": {"coords": {"probe_set": ["t"], "layer": [1, None]}},
    "lists": {"coords": {"probe_set": [["t"]], "layer": [["a"], {}]}},
    "shape": {"values": np.ones((3, 2))},
    "dims": {"dims": ("probe_set",)},
    "no_coords": {"coords": {}},
    "complex": {"values": np.ones((1, 2), complex)},
    "count": {"n": [1, 2, 3]},
    "settings": {"settings": {"parameters": 3, "live_units": [1], "units": 7}},
    "measure": {"measure": "local_complexity"},
    "robust": {"measure": "robust_accuracy"},
    "companions": {"settings": {"companions": [1]}},
    "nan": {"values": np.full((1, 2), np.nan)},
    "large": {"values": np.array([[1.7e308, -1.7e308]]), "low": np.full((1, 2), -np.inf), "high": np.ones((1, 2))},
}


def odd_maps(path: Path, values: np.ndarray, labels: np.ndarray, note: dict[str, Any]) -> None:
    store.write_attribution(path / "attributions" / "saliency-00000000", 5, values, labels, note)


NOTE = {"method": "saliency", "probe_set": "test"}
MAPS = {
    "flat": (np.ones(3), np.array([1]), NOTE),
    "numbers": (np.ones((3, 1, 3, 3)), np.array([1, 0]), NOTE),
    "nothing": (np.ones((0, 1, 3, 3)), np.array([], int), NOTE),
    "labels": (np.ones((2, 1, 3, 3)), np.ones((2, 2)), NOTE),
    "note": (np.ones((2, 1, 3, 3)), np.array([1, 0]), {}),
    "method": (np.ones((2, 1, 3, 3)), np.array([1, 0]), {"method": 3}),
    "infinite": (np.full((2, 1, 3, 3), np.inf), np.array([1, 0]), NOTE),
    "nan": (np.full((2, 1, 3, 3), np.nan), np.array([1, 0]), NOTE),
    "complex": (np.ones((2, 1, 3, 3), complex), np.array([1, 0]), NOTE),
    "probes": (np.ones((2, 1, 3, 3)), np.array([1, 0]), {"method": "saliency", "probe_set": "none"}),
    "small": (np.full((2, 1, 3, 3), 5e-324), np.array([1, 0]), NOTE),
    "large": (np.full((2, 2, 3, 3), 1.7e308), np.array([1, 0]), NOTE),
}
CONFIGS = {
    "seed_text": 'seed = "0"',
    "seed_half": "seed = 0.5",
    "seed_list": "seed = [1]",
    "seed_large": f"seed = {10**300}",
    "seed_true": "seed = true",
    "variant": "variant = 3",
    "experiment": "experiment = [1]",
    "date": "day = 1979-05-27",
    "batch_zero": "batch_size = 0",
    "batch_text": 'batch_size = "a"',
    "batch_huge": f"batch_size = {10**30}",
    "loss": "loss = [1]",
    "nan": "lr = nan",
    "dotted": ".".join("a" * 3000) + " = 1",
    "lists": "a = " + "[" * 5000,
    "bare": "a",
    "twice": "a = 1\na = 2",
}
NAMES = {"step": "000000000003", "large": "9" * 40, "digits": "9" * 240, "other": "٣٣"}
LOGGED = {"step": "9", "split": '"batch"', "metric": '"loss"', "value": "0.5", "attempt": "1"}
HAPPENED = {"step": "9", "kind": '"slow"', "text": '"it is slow"', "attempt": "1"}


def oddities() -> dict[str, Oddity]:
    """Every oddity by its name, as a function of the run's folder."""
    found: dict[str, Oddity] = {}
    each = itertools.product
    for field, (kind, value) in each(STATUS, VALUES.items()):
        found[f"status-{field}-{kind}"] = functools.partial(odd_status, field=field, value=value)
    for field, (kind, value) in each(ENVIRONMENT, VALUES.items()):
        found[f"environment-{field}-{kind}"] = functools.partial(odd_environment, field=field, value=value)
    for field, (kind, value) in each(DATA, VALUES.items()):
        found[f"data-{field}-{kind}"] = functools.partial(odd_data, field=field, value=value)
    for name, fields, own in (("metrics", LOGGED, METRIC), ("events", HAPPENED, EVENT)):
        log = f"{name}.jsonl"
        for field, (kind, value) in each(own, VALUES.items()):
            found[f"{name}-{field}-{kind}"] = functools.partial(
                odd_line, name=log, fields=fields, field=field, value=value
            )
        for kind, content in CONTENTS.items():
            found[f"{name}-line-{kind}"] = lambda path, log=log, content=content: line(path / log, content + b"}")
            found[f"{name}-bare-{kind}"] = lambda path, log=log, content=content: append(path / log, content)
        found[f"{name}-two-records"] = lambda path, log=log: line(path / log, '{"a":1},{"b":1}')
    for name, (kind, content) in each(("status.json", "environment.json", "config.toml"), CONTENTS.items()):
        found[f"{name}-is-{kind}"] = lambda path, name=name, content=content: (path / name).write_bytes(content)
    for name, (kind, make) in each(PLACES, THINGS.items()):
        found[f"{name}-is-{kind}"] = functools.partial(in_place, name=name, make=make)
    found |= {f"live-LOCK-is-{kind}": functools.partial(odd_lock, make=make) for kind, make in THINGS.items()}
    found |= {f"config-{kind}": functools.partial(odd_config, text=text) for kind, text in CONFIGS.items()}
    found |= {f"reading-{kind}": functools.partial(odd_reading, changes=changes) for kind, changes in READINGS.items()}
    found |= {f"maps-{kind}": lambda path, given=given: odd_maps(path, *given) for kind, given in MAPS.items()}
    for folder, (kind, stem) in each(("measures/a", "attributions/a", "snapshots"), NAMES.items()):
        found[f"{folder.replace('/', '-')}-named-{kind}"] = functools.partial(odd_name, folder=folder, stem=stem)
    return found


def append(path: Path, content: bytes) -> None:
    with open(path, "ab") as file:
        file.write(content + b"\n")


def odd_name(path: Path, folder: str, stem: str) -> None:
    (path / folder).mkdir(parents=True, exist_ok=True)
    (path / folder / f"{stem}.h5").write_bytes(b"no HDF5")


ODDITIES = oddities()

# --- random ones ------------------------------------------------------------------------------------------------------

NUMBERS = ("0", "-0.0", "1", "-1", "1.5", "1e-320", "1e308", "1e999", str(2**63), "9" * 5000, "NaN", "-Infinity")
WORDS = (
    "",
    "done",
    "running",
    "a",
    "nan",
    "\x1b[31m",
    "\u202e",
    "\ud800",
    "x" * 300,
    "%s%n",
    "[bold]",
    "=1+1",
    "\n",
    "\0",
)
DOCUMENTS = ("status.json", "environment.json", "config.toml", "metrics.jsonl", "events.jsonl", "MANIFEST", "LOCK")


def random_oddity(chance: random.Random) -> tuple[str, Oddity]:
    """An oddity that is drawn, with its name."""
    draw = chance.choice((_known, _known, _odd_field, _odd_field, _odd_log_line, _bent, _bent, _odd_toml))
    return draw(chance)


def _known(chance: random.Random) -> tuple[str, Oddity]:
    name = chance.choice(sorted(ODDITIES))
    return name, ODDITIES[name]


def _odd_field(chance: random.Random) -> tuple[str, Oddity]:
    odd, fields = chance.choice(((odd_status, STATUS), (odd_environment, ENVIRONMENT), (odd_data, DATA)))
    field, value = chance.choice((*fields, random_word(chance, '"\\\n\0'))), random_json(chance)
    return f"{odd.__name__} {field!r:.40} {value:.60}", functools.partial(odd, field=field, value=value)


def _odd_log_line(chance: random.Random) -> tuple[str, Oddity]:
    name, fields, own = chance.choice((("metrics.jsonl", LOGGED, METRIC), ("events.jsonl", HAPPENED, EVENT)))
    field, value = chance.choice(own), random_json(chance)
    odd = functools.partial(odd_line, name=name, fields=fields, field=field, value=value)
    return f"{name} {field} {value:.60}", odd


def _odd_toml(chance: random.Random) -> tuple[str, Oddity]:
    field = chance.choice(("seed", "variant", "experiment", "batch_size", "loss", "lr", "data", "steps"))
    value = random_json(chance).replace("Infinity", "inf").replace("NaN", "nan").replace("null", "1979-05-27T07:32:00Z")
    return f"config {field} {value:.60}", functools.partial(odd_config, text=f"{field} = {value}")


def _bent(chance: random.Random) -> tuple[str, Oddity]:
    """A document of which some bytes are others, or too many, or too few."""
    name = chance.choice(DOCUMENTS)
    edits = [(chance.random(), chance.randrange(256), chance.randrange(4)) for _ in range(2)]

    def bend(path: Path) -> None:
        content = bytearray((path / name).read_bytes() if (path / name).is_file() else b"")
        for share, byte, how in edits:
            at = int(share * len(content))
            if how == 0:
                content[at : at + 1] = bytes([byte])
            elif how == 1:
                content[at:at] = bytes([byte]) * (byte + 1)
            elif how == 2:
                del content[at : at + byte]
            else:
                content[at:at] = content[: 2 * byte]
        (path / name).write_bytes(bytes(content))

    return f"{name} bent {edits}", bend


def random_json(chance: random.Random, depth: int = 0) -> str:
    """The text of a JSON value, of numbers that no type holds and words that no line holds."""
    kind = chance.random()
    if depth > 3 or kind < 0.6:
        words = json.dumps(chance.choice(WORDS))
        return chance.choice((*NUMBERS, "null", "true", "false", words, words, words))
    if kind < 0.65:
        return "[" * 2000 + "]" * 2000
    parts = [random_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind < 0.85:
        return f"[{','.join(parts)}]"
    return "{" + ",".join(f"{json.dumps(chance.choice(WORDS))}: {part}" for part in parts) + "}"


def random_word(chance: random.Random, without: str) -> str:
    """A word with none of some characters, and no half of a pair, which no file holds."""
    return "".join(each for each in chance.choice(WORDS) if each not in without and each.isprintable())
