"""HDF5 files with whatever HDF5 knows and a sealed file has not: links, packed, virtual, outside and huge arrays."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.torture.kills import forked
from grokkit.trajectory import checksummed

SECRET = b"of another file " * 64
"""The content of a file beside, which no reader may give."""

READ_AT_MOST = 1 << 22
"""Bytes of an array that are read to make the digest right."""

VERSIONS = (("earliest", "v108"), ("v108", "v108"), ("v110", "v110"), ("v110", "latest"))
Put = Callable[[h5py.Group, str, np.ndarray, random.Random], None]
"""Puts an array under a name in a group, in a way of its own."""


def write_structure(path: Path, kind: str, chance: random.Random) -> str:
    """Write a file like the one at `path`, with one thing in it that a sealed file does not have; the digest is right
    over what HDF5 reads."""
    arrays, meta = checksummed.read(path, kind)
    with checksummed.open_h5(path, kind) as good:
        attributes = dict(good.attributes)
    how = chance.choice(sorted(PUTS | SPOILS))
    everything = {"meta": np.frombuffer(checksummed.pad_metadata(checksummed.canonical_json(meta)), np.uint8)}
    everything |= {f"data/{name}": arrays[name] for name in arrays}
    hostile = chance.choice(sorted(everything)) if how in PUTS else ""
    _write_secret(path)
    try:
        _build(path, attributes, everything, how, hostile, chance, chance.choice(VERSIONS))
    except (ValueError, OSError, RuntimeError):  # the older forms have not everything
        _build(path, attributes, everything, how, hostile, chance, VERSIONS[-1])
    _seal(path, kind)
    return f"{how} as {hostile}" if hostile else how


def _build(
    path: Path,
    attributes: dict[str, Any],
    arrays: dict[str, np.ndarray],
    how: str,
    hostile: str,
    chance: random.Random,
    version: tuple[str, str],
) -> None:
    options: dict[str, Any] = {"libver": version}
    if chance.random() < 0.2:
        options |= {"userblock_size": 512}
    elif chance.random() < 0.2:
        options |= {"fs_strategy": chance.choice(("fsm", "page", "aggregate")), "fs_persist": True}
    path.unlink(missing_ok=True)
    with h5py.File(path, "w", track_order=chance.random() < 0.2, **options) as file:
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        file.create_group("data")
        for name, array in arrays.items():
            group, key = (file["data"], name[5:]) if name.startswith("data/") else (file, name)
            put = PUTS[how] if name == hostile else _put_plainly
            put(group, key, array, chance)
        if how in SPOILS:
            SPOILS[how](file, chance)


def _write_secret(path: Path) -> None:
    _secret(path).write_bytes(SECRET)
    with h5py.File(_secret(path).with_suffix(".secret5"), "w") as other:
        other["x"] = np.frombuffer(SECRET, np.uint8)


def _secret(path: Path) -> Path:
    return path.parent / "beside.secret"


def _seal(path: Path, kind: str) -> None:
    """Put a digest into the file, over what h5py reads there; any 64 digits where that cannot be had."""
    hear, say = os.pipe()
    child = forked(lambda: os.write(say, _digest(path, kind).encode()))  # some of these files crash h5py
    os.close(say)
    with os.fdopen(hear, "rb") as pipe:
        digest = pipe.read() or b"0" * 64
    os.waitpid(child, 0)
    with h5py.File(path, "r+") as file:
        if "digest" not in file:
            file["digest"] = np.frombuffer(digest, np.uint8)


def _digest(path: Path, kind: str) -> str:
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: _read(file["data"][name]) for name in _names(file["data"])}
            return checksummed.compute_digest(kind, _read(file["meta"]).tobytes(), arrays)
    except Exception:
        return ""


def _names(group: h5py.Group) -> list[str]:
    return [name for name in group if isinstance(group[name], h5py.Dataset)]


def _read(array: h5py.Dataset) -> np.ndarray:
    if array.size is None or array.size * array.dtype.itemsize > READ_AT_MOST:
        raise ValueError("too large")
    return np.asarray(array[()])


# --- an array in the place of a good one ------------------------------------------------------------------------------


def _put_plainly(group: h5py.Group, name: str, array: np.ndarray, _: random.Random) -> None:
    group.create_dataset(name, data=array)


def _external(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    path = _secret(Path(group.file.filename))
    place = chance.choice((str(path), path.name, "/dev/zero", f"../{path.parent.name}/{path.name}"))
    size = max(1, array.nbytes)
    parts = [(place, 0, size)] if chance.random() < 0.5 else [(place, 8, size // 2), (place, 64, h5py.h5f.UNLIMITED)]
    group.create_dataset(name, shape=array.shape, dtype=array.dtype, external=parts)


def _virtual(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    path = _secret(Path(group.file.filename)).with_suffix(".secret5")
    place = chance.choice((str(path), path.name, "."))
    layout = h5py.VirtualLayout(shape=(64,), dtype="u1")
    layout[:] = h5py.VirtualSource(place, chance.choice(("x", "/meta")), shape=(64,))
    group.create_virtual_dataset(name, layout, fillvalue=7)


def _external_link(group: h5py.Group, name: str, _: np.ndarray, chance: random.Random) -> None:
    path = _secret(Path(group.file.filename)).with_suffix(".secret5")
    group[name] = h5py.ExternalLink(chance.choice((str(path), path.name)), chance.choice(("/x", "/")))


def _soft_link(group: h5py.Group, name: str, _: np.ndarray, chance: random.Random) -> None:
    group[name] = h5py.SoftLink(chance.choice(("/meta", "/data", "/", ".", "nowhere", f"/data/{name}", name)))


def _hard_link(group: h5py.Group, name: str, array: np.ndarray, _: random.Random) -> None:
    group["another"] = array
    group[name] = group["another"]


def _group(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    made = group.create_group(name)
    if chance.random() < 0.5:
        made[name] = array
    if chance.random() < 0.5:
        made["above"] = chance.choice((group, made, group.file))


def _named_type(group: h5py.Group, name: str, array: np.ndarray, _: random.Random) -> None:
    group[name] = array.dtype


def _packed(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    flat = np.resize(array, max(4, array.size)).astype(array.dtype)
    options: dict[str, Any] = {"chunks": (chance.choice((1, 4)),)}
    options |= chance.choice(
        (
            {},
            {"compression": "gzip"},
            {"compression": "lzf"},
            {"shuffle": True},
            {"fletcher32": True},
            {"maxshape": (None,)},
        )
    )
    group.create_dataset(name, data=flat, **options)


def _compressed_zeros(group: h5py.Group, name: str, array: np.ndarray, _: random.Random) -> None:
    group.create_dataset(name, data=np.zeros(1 << 24, np.uint8), chunks=(1 << 22,), compression="gzip")


def _huge(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    shape = chance.choice([(1 << 33,), (1 << 31, 1 << 20), (1 << 62,), (2,) * 32, (1 << 20, 0), (1 << 40, 1 << 10)])
    options: dict[str, Any] = chance.choice(({}, {"chunks": True}, {"fillvalue": 1}))
    try:
        group.create_dataset(name, shape=shape, dtype=array.dtype, **options)
    except (ValueError, OSError, RuntimeError, OverflowError):  # HDF5 itself refuses some of them
        group.create_dataset(name, shape=(1 << 33,), dtype=array.dtype)


def _empty(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    if chance.random() < 0.5:
        group[name] = h5py.Empty(array.dtype)
    else:
        group.create_dataset(name, shape=chance.choice([(), (0,), (3, 0, 2)]), dtype=array.dtype)


def _compact(group: h5py.Group, name: str, array: np.ndarray, _: random.Random) -> None:
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.COMPACT)
    flat = array.reshape(-1)[: 32000 // max(1, array.dtype.itemsize)]
    space, kind = h5py.h5s.create_simple(flat.shape), h5py.h5t.py_create(flat.dtype, logical=True)
    made = h5py.h5d.create(group.id, name.encode(), kind, space, how)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(flat))


def _other_numbers(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    kinds = (">f4", ">i8", "f2", "f8", "g", "c8", "c16", "?", "i1", "u8", "u2")
    group[name] = np.resize(np.arange(8), max(1, array.size)).astype(chance.choice(kinds))


def _odd_numbers(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    """Of a precision that NumPy does not know."""
    made = chance.choice((h5py.h5t.IEEE_F32LE, h5py.h5t.STD_I32LE, h5py.h5t.STD_U64BE, h5py.h5t.STD_B16LE)).copy()
    if made.get_class() == h5py.h5t.FLOAT:
        made.set_fields(15, 7, 8, 0, 7)
        made.set_size(2)
        made.set_ebias(127)
    elif made.get_class() == h5py.h5t.INTEGER:
        made.set_precision(chance.choice((3, 17, 24)))
    space = h5py.h5s.create_simple((max(1, array.size),))
    h5py.h5d.create(group.id, name.encode(), made, space)


def _no_numbers(group: h5py.Group, name: str, array: np.ndarray, chance: random.Random) -> None:
    reference = np.array([group.ref], dtype=h5py.ref_dtype)
    enum = np.zeros(3, h5py.enum_dtype({"a": 0, "b": 7}, "i2"))
    vectors = np.empty(2, h5py.vlen_dtype("f4"))
    vectors[:] = [np.ones(3, "f4"), np.ones(5, "f4")]
    group[name] = chance.choice(
        (
            ["text of any length"],
            np.array([b"fixed"]),
            np.zeros(3, [("a", "f4"), ("b", "i8", (2, 2))]),
            reference,
            enum,
            np.zeros(2, "V5"),
            vectors,
            np.zeros(2, [("a", h5py.vlen_dtype("u1"))]),
            np.zeros((2,), "(3,)f4"),
        )
    )


PUTS: dict[str, Put] = {
    put.__name__[1:]: put
    for put in (
        _external,
        _virtual,
        _external_link,
        _soft_link,
        _hard_link,
        _group,
        _named_type,
        _packed,
        _compressed_zeros,
        _huge,
        _empty,
        _compact,
        _other_numbers,
        _odd_numbers,
        _no_numbers,
    )
}

# --- something beside the arrays --------------------------------------------------------------------------------------


def _circles(file: h5py.File, chance: random.Random) -> None:
    for name in "abcdefgh"[: chance.randrange(1, 9)]:
        file["data"][name] = chance.choice((file["data"], file))


def _deep(file: h5py.File, chance: random.Random) -> None:
    group = file["data"]
    for _ in range(chance.choice((10, 100, 1500))):
        group = group.create_group("g")


def _many(file: h5py.File, chance: random.Random) -> None:
    for number in range(chance.choice((100, 3000))):
        file["data"].create_group(f"g{number}")


def _strange_names(file: h5py.File, chance: random.Random) -> None:
    for name in chance.sample(["\ud800", "..", "a" * 5000, "x\x01y", "Ünicode", "data", "meta"], 3):
        path = name.encode("utf-8", "surrogatepass")
        h5py.h5g.create(file["data"].id, b"n" + path)


def _attributes(file: h5py.File, chance: random.Random) -> None:
    values: list[Any] = [
        "text of any length",
        np.zeros(3),
        np.bytes_(b"x" * 60000),
        2**62,
        -1,
        0.5,
        np.bytes_(b""),
        np.zeros((), [("a", "f4")]),
        np.array([file.ref], dtype=h5py.ref_dtype),
        h5py.Empty("f4"),
        np.bytes_(b"\xff"),
        np.int8(3),
    ]
    for name in chance.sample(["format", "kind", "version", "layout", "more"], 2):
        value = values[chance.randrange(len(values))]
        file.attrs.pop(name, None)
        file.attrs.create(name, value)


def _many_attributes(file: h5py.File, chance: random.Random) -> None:
    for number in range(200):
        file.attrs[f"a{number}"] = chance.choice(("text of any length", number))


def _another_digest(file: h5py.File, chance: random.Random) -> None:
    size = chance.choice((0, 63, 65, 1 << 33))
    file.create_dataset("digest", shape=(size,), dtype="u1")


SPOILS: dict[str, Callable[[h5py.File, random.Random], None]] = {
    spoil.__name__[1:]: spoil
    for spoil in (
        _circles,
        _deep,
        _many,
        _strange_names,
        _attributes,
        _many_attributes,
        _another_digest,
    )
}
