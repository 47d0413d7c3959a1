"""A writer's system calls, replayed up to every boundary: what a kill leaves, and what a machine may leave that dies.

The calls are recorded by strace. For a killed process, whatever was called has happened. For a machine that dies the
model is pessimistic: of a file the bytes up to its last fsync are kept, and every later page of 4 KB survives or not,
each at a random later version, the length lies anywhere between; of a folder the names up to its last fsync are kept,
and every later creation, link, rename or removal has happened or not, each by itself.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.torture import workload

PAGE = 4096
TRACED = (
    "openat,mkdir,mkdirat,pwritev,pwritev2,pwrite64,write,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,rmdir,ftruncate,close,lseek"
)
ACKS = "acknowledged"


class Call(NamedTuple):
    """One change that a call makes: `create`, `write`, `cut`, `sync`, `name`, `drop`, `folder` or `acknowledge`.

    Args:
        what: of these.
        file: number of the file, 0 where there is none.
        path: of a name or folder.
        at: offset of a write, length of a cut.
        data: bytes of a write or an acknowledgement.
    """

    what: str
    file: int = 0
    path: str = ""
    at: int = 0
    data: bytes = b""


def recorded(folder: Path, steps: int) -> tuple[list[Call], Path]:
    """The calls of a writer of so many steps, and its run's path."""
    run, log = folder / "traced" / "run", folder / "strace.log"
    run.parent.mkdir()
    (run.parent / ACKS).touch()
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom bench.torture import workload\n"
        f"run = Path({str(run)!r})\n"
        f"handle = os.open(run.parent / {ACKS!r}, os.O_WRONLY | os.O_APPEND)\n"
        f"workload.write(run, workload.by_pipe(handle), last={steps})\n"
    )
    command = ["strace", "-f", "-xx", "-s", "10000000", "-e", f"trace={TRACED}", "-o", str(log), sys.executable, "-c"]
    subprocess.run([*command, code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    trace = _Trace(str(run.parent))
    return [call for line in _whole(log.read_text().splitlines()) for call in trace.of(line)], run


_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _whole(lines: list[str]) -> Iterator[str]:
    """Calls that another thread interrupted in the log, put together again where they ended."""
    begun: dict[str, str] = {}
    for line in lines:
        thread = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>").rstrip()
        elif "resumed>" in line and thread in begun:
            yield begun.pop(thread) + line.split("resumed>", 1)[1]
        else:
            yield line


class _Open(NamedTuple):
    """An open descriptor below the root."""

    path: str
    file: int
    appends: bool


class _Trace:
    """Follows descriptors, names and lengths through the calls; `of` says what each call changes below `root`."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._open: dict[int, _Open] = {}
        self._offsets: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._files: dict[str, int] = {}

    def of(self, line: str) -> Iterator[Call]:
        match = _LINE.match(line)
        if match is None or int(match[3]) < 0:
            return
        name, arguments, result = match[1], match[2], int(match[3])
        texts = [_bytes(text) for text in _TEXT.findall(arguments)]
        number = re.match(r"-?\d+", arguments)
        if name == "openat":
            yield from self._opened(texts[0].decode(), arguments, result)
        elif name.startswith(("mkdir", "rename", "link", "unlink", "rmdir")):
            yield from self._named(name, [text.decode() for text in texts])
        elif name == "close":
            self._open.pop(result if number is None else int(number[0]), None)
        elif number is not None and int(number[0]) in self._open:
            yield from self._used(name, int(number[0]), arguments, b"".join(texts), result)

    def _inside(self, path: str) -> bool:
        return (path + "/").startswith(self._root + "/")

    def _opened(self, path: str, arguments: str, handle: int) -> Iterator[Call]:
        self._open.pop(handle, None)
        if not self._inside(path):
            return
        if path not in self._files and "O_CREAT" in arguments:
            self._files[path] = file = len(self._sizes) + 1
            self._sizes[file] = 0
            yield Call("create", file)
            yield Call("name", file, path)
        file = self._files.get(path, 0)
        self._open[handle], self._offsets[handle] = _Open(path, file, "O_APPEND" in arguments), 0
        if "O_TRUNC" in arguments and self._sizes.get(file):
            self._sizes[file] = 0
            yield Call("cut", file)

    def _named(self, name: str, paths: list[str]) -> Iterator[Call]:
        old, new = paths[0], paths[-1]
        if not self._inside(old):
            return
        if name.startswith("mkdir"):
            yield Call("folder", path=old)
        elif name.startswith(("unlink", "rmdir")):
            self._files.pop(old, None)
            yield Call("drop", path=old)
        elif old not in self._files:  # a folder: all that is in it gets another name
            for path in [path for path in self._files if path.startswith(old + "/")]:
                self._files[new + path.removeprefix(old)] = self._files.pop(path)
            yield Call("move", path=old, data=new.encode())
        else:
            self._files[new] = self._files[old]
            yield Call("name", self._files[new], new)
            if name.startswith("rename"):
                del self._files[old]
                yield Call("drop", path=old)

    def _used(self, name: str, handle: int, arguments: str, data: bytes, result: int) -> Iterator[Call]:
        path, file, appends = self._open[handle]
        if path.endswith("/" + ACKS):
            yield Call("acknowledge", data=data)
        elif name in ("fsync", "fdatasync"):
            yield Call("sync", file, "" if file else path)
        elif name == "lseek":
            self._offsets[handle] = result
        elif name == "ftruncate":
            self._sizes[file] = int(arguments.split(",")[1])
            yield Call("cut", file, at=self._sizes[file])
        elif name in ("write", "writev"):
            at = self._sizes[file] if appends else self._offsets[handle]
            self._offsets[handle] = at + result
            yield self._written(file, at, data[:result])
        elif name.startswith("pwrite"):
            at = int(arguments.rsplit(",", 2 if name == "pwritev2" else 1)[1])
            yield self._written(file, at, data[:result])

    def _written(self, file: int, at: int, data: bytes) -> Call:
        self._sizes[file] = max(self._sizes[file], at + len(data))
        return Call("write", file, at=at, data=data)


@dataclass
class Disk:
    """Files, names and what of them is durable."""

    content: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    acknowledged: bytes = b""
    synced: dict[int, bytes] = field(default_factory=dict)
    since: dict[int, list[Call]] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    pending: list[Call] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    """Folders whose own names are not durable yet."""
    moved: tuple[str, str] | None = None
    """A folder's old and new name, where the change is not durable yet."""

    def do(self, call: Call) -> None:
        if call.what == "create":
            self.content[call.file], self.synced[call.file], self.since[call.file] = bytearray(), b"", []
        elif call.what in ("write", "cut"):
            change(self.content[call.file], call)
            self.since[call.file].append(call)
        elif call.what == "sync" and call.file:
            self.synced[call.file], self.since[call.file] = bytes(self.content[call.file]), []
        elif call.what == "sync":
            self._sync(call.path)
        elif call.what in ("name", "drop"):
            renamed(self.names, call)
            self.pending.append(call)
        elif call.what == "folder":
            self.folders.append(call.path)
            self.new.add(call.path)
        elif call.what == "move":
            self._move(call.path, call.data.decode())
        elif call.what == "acknowledge":
            self.acknowledged += call.data

    def _sync(self, folder: str) -> None:
        """The names in a folder are durable now."""
        for each in [each for each in self.pending if str(Path(each.path).parent) == folder]:
            renamed(self.durable, each)
            self.pending.remove(each)
        self.new = {path for path in self.new if str(Path(path).parent) != folder}
        if self.moved and str(Path(self.moved[1]).parent) == folder:
            self.moved = None

    def _move(self, old: str, new: str) -> None:
        """A folder's new name."""
        self.moved = old, new
        self.new = {new + path.removeprefix(old) if (path + "/").startswith(old + "/") else path for path in self.new}
        for table in (self.names, self.durable):
            for path in [path for path in table if path.startswith(old + "/")]:
                table[new + path.removeprefix(old)] = table.pop(path)
        self.pending = [
            each._replace(path=new + each.path.removeprefix(old)) if each.path.startswith(old + "/") else each
            for each in self.pending
        ]
        self.folders = [
            new + path.removeprefix(old) if (path + "/").startswith(old + "/") else path for path in self.folders
        ]

    def lost(self, chance: random.Random) -> tuple[dict[str, int], dict[int, bytes]]:
        """Names and contents that a machine may leave that dies now."""
        names = dict(self.durable)
        for call in self.pending:
            if chance.random() < 0.5:
                renamed(names, call)
        gone = [path + "/" for path in sorted(self.new) if chance.random() < 0.5]
        names = {path: file for path, file in names.items() if not path.startswith(tuple(gone))}
        if self.moved and chance.random() < 0.5:
            old, new = self.moved
            names = {
                old + path.removeprefix(new) if path.startswith(new + "/") else path: f for path, f in names.items()
            }
        return names, {file: self._torn(file, chance) for file in set(names.values())}

    def _torn(self, file: int, chance: random.Random) -> bytes:
        versions = [bytearray(self.synced[file])]
        for call in self.since[file]:
            versions.append(bytearray(versions[-1]))
            change(versions[-1], call)
        length = chance.choice(sorted({len(version) for version in versions}))
        whole = bytearray(length)
        for start in range(0, length, PAGE):
            source = chance.choice(versions)[start : min(start + PAGE, length)]
            whole[start : start + len(source)] = source
        return bytes(whole)


def change(content: bytearray, call: Call) -> None:
    """A write or a cut."""
    if call.what == "cut":
        del content[call.at :]
        content.extend(bytes(call.at - len(content)))
    else:
        content.extend(bytes(max(0, call.at + len(call.data) - len(content))))
        content[call.at : call.at + len(call.data)] = call.data


def renamed(names: dict[str, int], call: Call) -> None:
    """A name given or taken."""
    if call.what == "name":
        names[call.path] = call.file
    else:
        names.pop(call.path, None)


def laid_out(root: Path, run: Path, folders: list[str], names: Mapping[str, int], content: Mapping[int, bytes]) -> Path:
    """The files of a state as real ones below `root`; where the run is there."""
    shutil.rmtree(root, ignore_errors=True)
    base = run.parent
    for path in folders:
        (root / Path(path).relative_to(base)).mkdir(parents=True, exist_ok=True)
    for name, file in names.items():
        place = root / Path(name).relative_to(base)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content[file])
    return root / run.relative_to(base)


def at_every_call(calls: list[Call], run: Path, folder: Path, every: int = 1) -> tuple[int, list[str]]:
    """States after each `every`-th change, and amid each of its writes; how many, and what was lost or is wrong."""
    disk, count, found = Disk(), 0, list[str]()
    for number, call in enumerate(calls):
        halves = [call]
        if call.what == "write" and len(call.data) > 1:
            half = len(call.data) // 2
            halves = [call._replace(data=call.data[:half]), call._replace(at=call.at + half, data=call.data[half:])]
        for place, part in enumerate(halves):
            disk.do(part)
            if number % every:
                continue
            path = laid_out(
                folder / "state", run, disk.folders, disk.names, {k: bytes(v) for k, v in disk.content.items()}
            )
            told = workload.heard(disk.acknowledged.decode())
            found += [
                f"after call {number}.{place} ({call.what} {call.path}): {each}" for each in faults_of(path, told)
            ]
            count += 1
    return count, found


def lost_machines(calls: list[Call], run: Path, folder: Path, count: int, seed: int = 0) -> list[str]:
    """`count` machines that die at random moments."""
    chance, found = random.Random(seed), list[str]()
    for number in range(count):
        disk, cut = Disk(), chance.randrange(len(calls))
        for call in calls[:cut]:
            disk.do(call)
        names, content = disk.lost(chance)
        path = laid_out(folder / "state", run, disk.folders, names, content)
        told = workload.heard(disk.acknowledged.decode())
        found += [f"machine {number}, dead before call {cut}: {each}" for each in faults_of(path, told)]
    return found


def faults_of(path: Path, told: Mapping[str, int]) -> list[str]:
    """As `workload.faults`; a folder that has no status.json yet is none."""
    if path.exists() and not (path / "status.json").exists():
        return [f"acknowledged {dict(told)}, and status.json is missing"] if told else []
    return workload.faults(path, told)
