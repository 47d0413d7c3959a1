"""Sealed files with right digests whose notes, layouts and arrays say what they must not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from grokkit.trajectory import checksummed, snapshot

NUMBERS = (-1, 0, 1, 3, 64, 2**31, 2**62, 2**63, 2**64, 10**30, 0.0, 1.5, True, False, None, "0", [], {}, [0])
SHAPES: tuple[Any, ...] = (
    [],
    [0],
    [1],
    [-1],
    [-1, -2],
    [1 << 40],
    [1 << 62, 1 << 62],
    [1 << 20, 0],
    "ab",
    2,
    None,
    [True],
    [1.0],
    [[1]],
    [1] * 70,
    {"a": 1},
)
WORDS: tuple[Any, ...] = (
    "float64",
    "bfloat16",
    "float8_e4m3fn",
    "complex64",
    "nn",
    "load",
    "__class__",
    "Tensor",
    "bool",
    "quint8",
    3,
    None,
    "",
    "x" * 5000,
    "\ud800",
    ["float32"],
    "bits8",
    "uint16",
    "f4",
    "layout",
    "crc",
    "../x",
    "a/b",
)
DRAWN = {"offset": NUMBERS, "shape": SHAPES, "dtype": WORDS, "array": WORDS, "name": WORDS}
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    10**400,
    "",
    "text",
    [],
    [1],
    {},
    {"a": 1},
    [[]],
    [None],
    [[1]] * 3,
    "\ud800",
    "\x1b[2J",
    float("nan"),
    float("inf"),
    ["a"] * 1000,
    {"$": "tensor", "key": "99"},
    {"$": "tuple", "items": [1]},
)


def write_layout(path: Path, kind: str, chance: random.Random) -> str:
    """Put a file that is sealed rightly in the place of one, of which a part is another: an entry of the layout, a
    field of the note, an array."""
    arrays, note = checksummed.read(path, kind)
    with checksummed.open_h5(path, kind) as good:
        hashed = good.attributes.get("layout")
    attributes = {} if hashed is None else {"layout": str(hashed)}
    ways = ["note", "arrays", "nested"] + (["layout"] * 5 if "layout" in arrays else [])
    way = chance.choice(ways)
    said = ""
    if way == "layout":
        arrays["layout"], said = _bent_layout(arrays["layout"], chance)
        attributes = {"layout": snapshot.hash_layout(arrays["layout"].tobytes())}
    elif way == "note":
        note, said = _bent_note(note, chance)
    elif way == "arrays":
        arrays, said = _bent_arrays(arrays, chance)
    text = _nested(chance) if way == "nested" else _as_json(note)
    _write(path, kind, arrays, text, attributes)
    return f"{way} {said}"


def _write(path: Path, kind: str, arrays: dict[str, np.ndarray], note: bytes, attributes: dict[str, str]) -> None:
    """As `sealed.write` lays a file out, with a note that may be no JSON; what it would not write is written."""
    note = checksummed.pad_metadata(note)
    order = sorted(arrays, key=lambda name: (arrays[name].nbytes, name))
    form = tuple((name, arrays[name].dtype.str, arrays[name].shape) for name in order)
    content = {"meta": note, "digest": checksummed.compute_digest(kind, note, arrays).encode()}
    content |= {f"data/{name}": arrays[name].tobytes() for name in order}
    pieces = checksummed._build_skeleton(kind, tuple(attributes.items()), len(note), form)
    path.write_bytes(b"".join(each if isinstance(each, bytes) else content[each] for each in pieces))


def _as_json(note: Any) -> bytes:
    return json.dumps(note, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _bent_layout(layout: np.ndarray, chance: random.Random) -> tuple[np.ndarray, str]:
    columns = json.loads(layout.tobytes())
    if chance.random() < 0.1:
        columns = chance.choice(({}, [], None, {"name": 3}, {**columns, "more": []}, {"name": columns["name"]}))
        return np.frombuffer(_as_json(columns), np.uint8), "of other columns"
    said = []
    for _ in range(chance.randrange(1, 4)):
        key, row = chance.choice(sorted(DRAWN)), chance.randrange(len(columns["name"]))
        other = chance.randrange(len(columns["name"]))
        # another entry's value makes two tensors overlap, or share a name
        value = columns[key][other] if chance.random() < 0.3 else chance.choice(DRAWN[key])
        if key == "offset" and chance.random() < 0.5:
            value = columns[key][row] + chance.choice((-1, 1, 7, 100, 10**6))
        columns[key][row] = value
        said.append(f"{key}[{row}]={value!r:.40}")
    return np.frombuffer(_as_json(columns), np.uint8), ", ".join(said)


def _bent_note(note: dict[str, Any], chance: random.Random) -> tuple[Any, str]:
    if chance.random() < 0.1:
        return chance.choice(VALUES), "is another value"
    note = json.loads(json.dumps(note))
    for _ in range(chance.randrange(1, 3)):
        table, key = chance.choice(list(_places(note)))
        how, value = chance.random(), chance.choice(VALUES)
        if how < 0.2 and isinstance(table, dict):
            table.pop(key, None)
        else:
            table[key] = value
        said = f"{key}={value!r:.40}"
    return note, said


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every table or list of a note with one of its keys or numbers."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    for _, key in list(found):
        found += _places(value[key])
    return found or [({}, "")]


def _bent_arrays(arrays: dict[str, np.ndarray], chance: random.Random) -> tuple[dict[str, np.ndarray], str]:
    arrays, name = dict(arrays), chance.choice(sorted(arrays))
    way = chance.choice(("gone", "flat", "short", "another dtype", "empty", "more", "scalar", "large"))
    array = arrays[name]
    bent = {
        "flat": array.reshape(-1),
        "short": array.reshape(-1)[:-1],
        "empty": array.reshape(-1)[:0],
        "another dtype": array.astype(chance.choice(("f8", "i2", "c16", "?", ">f4"))),
        "scalar": np.zeros((), "f4"),
        "large": np.zeros(1 << 22, array.dtype),
    }
    if way == "gone":
        del arrays[name]
    elif way == "more":
        arrays[chance.choice(("more", "low", "high", "f4", "i8"))] = np.arange(7.0)
    else:
        arrays[name] = bent[way]
    return arrays, f"{name} {way}"


def _nested(chance: random.Random) -> bytes:
    deep = chance.choice((50, 500, 100_000))
    return chance.choice(
        (
            b"[" * deep,
            b"[" * deep + b"]" * deep,
            b'{"step":' * deep + b"1" + b"}" * deep,
            b" " * (4 << 20),
            b"\xff\xfe",
            b'{"step":' + b"9" * 5000 + b"}",
            b'{"step":1e999}',
            b"{}{}",
            b"\x00" * 64,
            b'{"a":"' + b"x" * (2 << 20) + b'"}',
        )
    )
