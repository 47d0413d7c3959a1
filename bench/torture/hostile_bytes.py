"""Random bytes in HDF5's own notes, with the checksums put right, so that HDF5 believes them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from grokkit.trajectory import checksummed, hdf5

SUPERBLOCK = 48
"""Bytes of one of version 2 or 3; the last four are its checksum."""

EXTREME = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
ADDRESSES = (0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)


def bend(path: Path, kind: str, chance: random.Random) -> str:
    """Change some bytes of the superblock or of object headers of a file, some in a form of HDF5 that has no
    checksums."""
    old = chance.random() < 0.35
    if old:
        _rewrite(path, kind, chance)
    content = bytearray(path.read_bytes())
    said = []
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        regions = [(0, SUPERBLOCK, False)] if old else list(_checked(content))
        begin, end, has_checksum = chance.choice(regions)
        if old:  # there is no telling where its notes lie; most are among the first bytes
            begin, end = (0, 96) if chance.random() < 0.2 else (0, min(len(content), 4096))
        said.append(_bend_once(content, begin, end, chance))
        if has_checksum and chance.random() < 0.95:
            _put_right(content, begin, end)
    path.write_bytes(bytes(content))
    return f"{'old form, ' if old else ''}{'; '.join(said)}"


def reseal(path: Path, kind: str) -> None:
    """Make the digest right over what a reader of the bent file gets, where it gets something."""
    with hdf5.open_untrusted(path) as file:
        arrays = {name[5:]: file.read_array(name) for name in file.locations if name.startswith("data/")}
        digest = checksummed.compute_digest(kind, file.read_metadata(), arrays).encode()
        place = file.locations["digest"]
    if place.nbytes == len(digest):
        with open(path, "r+b") as content:
            content.seek(place.offset)
            content.write(digest)


def _rewrite(path: Path, kind: str, chance: random.Random) -> None:
    """The same content as HDF5 wrote it twenty years ago."""
    arrays, note = checksummed.read(path, kind)
    with checksummed.open_h5(path, kind) as good:
        attributes = dict(good.attributes)
    with h5py.File(path, "w", libver=("earliest", chance.choice(("v108", "v110")))) as file:
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        file["meta"] = np.frombuffer(checksummed.pad_metadata(checksummed.canonical_json(note)), np.uint8)
        file["digest"] = np.zeros(64, np.uint8)
        for name, array in arrays.items():
            file[f"data/{name}"] = array
    reseal(path, kind)


def _checked(content: bytearray) -> Iterator[tuple[int, int, bool]]:
    """Begin and end of everything that ends with a checksum: the superblock and all object headers."""
    yield 0, SUPERBLOCK, True
    at = content.find(b"OHDR")
    while at >= 0:
        flags = content[at + 5]
        begin = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        end = begin + width + int.from_bytes(content[begin : begin + width], "little") + 4
        if end <= len(content):
            yield at, end, True
        at = content.find(b"OHDR", at + 1)


def _bend_once(content: bytearray, begin: int, end: int, chance: random.Random) -> str:
    at = chance.randrange(begin, end)
    way = chance.choice(("bit", "extreme", "random", "nearby", "address", "copied"))
    if way == "bit":
        content[at] ^= 1 << chance.randrange(8)
    elif way == "extreme":
        content[at] = chance.choice(EXTREME)
    elif way == "random":
        content[at] = chance.randrange(256)
    elif way == "nearby":
        content[at] = (content[at] + chance.choice((-1, 1))) % 256
    elif way == "address":
        number = chance.choice((*ADDRESSES, chance.randrange(len(content)), begin))
        width = min(8, end - at)
        content[at : at + width] = struct.pack("<Q", number)[:width]
    else:
        width = min(chance.choice((8, 16, 32)), end - at)
        source = chance.randrange(len(content) - width)
        content[at : at + width] = content[source : source + width]
    return f"{way} at {at}"


def _put_right(content: bytearray, begin: int, end: int) -> None:
    checksum = hdf5.lookup3(bytes(content[begin : end - 4]))
    content[end - 4 : end] = checksum.to_bytes(4, "little")
