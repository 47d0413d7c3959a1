"""Snapshots: every dtype back bit for bit, damage found in whole and partial reads, kills leave whole files only."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from grokkit.errors import TrajectoryError, UsageError
from grokkit.trajectory import resume, snapshot

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def tensors():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=generator)
    state = {
        str(dtype): torch.randn(3, 4, generator=generator).to(dtype)
        for dtype in (torch.float16, torch.float32, torch.float64, torch.bfloat16, *FLOAT8)
    }
    return state | {
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([[True, False], [False, True]]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "scalar": torch.tensor(7),
        "bfloat16 scalar": torch.tensor(-1.5, dtype=torch.bfloat16),
        "empty": torch.empty(0),
        "empty bfloat16": torch.empty(3, 0, 2, dtype=torch.bfloat16),
        "only bytes of its dtype": torch.empty(0, dtype=torch.int16),
        "transposed": image.transpose(1, 3),
        "strided": image[:, ::2, 1],
        "expanded": torch.ones(1).expand(5),
        "channels_last": image.to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(image),
        "special": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45]),
    }


def bits(tensor):
    same_width = {torch.bfloat16: torch.int16, **dict.fromkeys(FLOAT8, torch.int8)}.get(tensor.dtype, tensor.dtype)
    return tensor.dtype, tuple(tensor.shape), tensor.detach().contiguous().view(same_width).numpy().tobytes()


def all_bits(state):
    return {name: bits(tensor) for name, tensor in state.items()}


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path):
    state = tensors()
    snapshot.write_snapshot(tmp_path / "a.h5", 12, state)
    back = snapshot.read_snapshot(tmp_path / "a.h5")
    assert list(back) == list(state)
    assert all_bits(back) == all_bits(state) == all_bits(snapshot.read_snapshot(tmp_path / "a.h5", verify=False))
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in back.values())


@pytest.mark.parametrize(
    ("tensor", "form"),
    [
        (torch.eye(3).to_sparse(), "it is torch.sparse_coo on cpu; expected a dense"),
        (torch.empty(3, device="meta"), "it is torch.strided on meta; expected a dense"),
        ({"count": 3}, "expected a tensor, got dict"),
        (torch.empty(2, dtype=torch.bits8), "NumPy has no array of torch.bits8"),
    ],
)
def test_a_tensor_that_cannot_be_kept_is_named_and_nothing_is_written(tmp_path, tensor, form):
    with pytest.raises(UsageError, match=f"^'mask' cannot be stored: {form}"):
        snapshot.write_snapshot(tmp_path / "a.h5", 0, {"weight": torch.ones(2), "mask": tensor})
    assert list(tmp_path.iterdir()) == []


def test_a_partial_read_gives_the_same_tensors_in_the_wanted_order(tmp_path):
    state = tensors()
    snapshot.write_snapshot(tmp_path / "a.h5", 12, state)
    for name in state:
        assert all_bits(snapshot.read_snapshot(tmp_path / "a.h5", [name])) == {name: bits(state[name])}
    some = snapshot.read_snapshot(tmp_path / "a.h5", (name for name in ("special", "bool")))
    assert list(some) == ["special", "bool"] and all_bits(some) == {n: bits(state[n]) for n in some}
    assert snapshot.read_snapshot(tmp_path / "a.h5", []) == {}


def test_tensors_that_come_back_can_be_written_to_without_harm(tmp_path):
    snapshot.write_snapshot(tmp_path / "a.h5", 0, {"x": torch.zeros(3)})
    for verify in (True, False):
        snapshot.read_snapshot(tmp_path / "a.h5", verify=verify)["x"].add_(1)
        assert snapshot.read_snapshot(tmp_path / "a.h5")["x"].tolist() == [0, 0, 0]


def test_an_empty_state_is_a_snapshot(tmp_path):
    snapshot.write_snapshot(tmp_path / "a.h5", 0, {})
    assert snapshot.read_snapshot(tmp_path / "a.h5") == {}


def test_plain_h5py_finds_every_tensor_through_the_layout(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0]).bfloat16(), "c": torch.tensor(3.0)}
    snapshot.write_snapshot(tmp_path / "a.h5", 12, state)
    with h5py.File(tmp_path / "a.h5", "r") as file:
        meta = json.loads(file["meta"][()].tobytes())
        assert meta == {"step": 12} and sorted(file["data"]) == ["crc", "f4", "i2", "layout"]
        layout = json.loads(file["data/layout"][()].tobytes())
        rows = [dict(zip(layout, row, strict=True)) for row in zip(*layout.values(), strict=True)]
        raw = {
            entry["name"]: file["data"][entry["array"]][entry["offset"] :][: int(np.prod(entry["shape"]))]
            for entry in rows
        }
    assert raw["a"].tolist() == [0, 1, 2, 3, 4, 5] and raw["c"].tolist() == [3]
    # A bfloat16 is the upper half of a float32.
    assert (raw["b"].view(np.uint16).astype(np.uint32) << 16).view(np.float32).tolist() == [1.5, -2.0]
    assert [(e["name"], e["dtype"], e["shape"]) for e in rows] == [
        ("a", "float32", [2, 3]),
        ("b", "bfloat16", [2]),
        ("c", "float32", []),
    ]


def test_the_same_state_again_is_fine_and_another_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    digest = snapshot.write_snapshot(path, 3, {"x": torch.zeros(3)})
    raw = path.read_bytes()
    assert snapshot.write_snapshot(path, 3, {"x": torch.zeros(3)}) == digest
    for step, state in ((3, {"x": -torch.zeros(3)}), (4, {"x": torch.zeros(3)}), (3, {"y": torch.zeros(3)})):
        with pytest.raises(TrajectoryError, match="other content"):
            snapshot.write_snapshot(path, step, state)
    assert path.read_bytes() == raw


def test_a_snapshot_holds_a_state_or_another_one(tmp_path):
    path, state = tmp_path / "a.h5", tensors()
    snapshot.write_snapshot(path, 3, state)
    assert snapshot.has_state(path, tensors())
    for name, other in (
        ("special", state["special"].neg()),
        ("strided", state["strided"].double()),
        ("scalar", torch.tensor([7])),
        ("new", torch.zeros(1)),
    ):
        assert not snapshot.has_state(path, {**state, name: other}), name
    assert not snapshot.has_state(path, {name: state[name] for name in list(state)[1:]})


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    snapshot.write_snapshot(tmp_path / "a.h5", 3, {"fc.weight": torch.zeros(3)})
    with pytest.raises(TrajectoryError, match=r"no tensor 'fc.wieght'\. Did you mean 'fc.weight'\?"):
        snapshot.read_snapshot(tmp_path / "a.h5", ["fc.wieght"])


def layered():
    """A state whose names differ in single bits of one digit and whose tensors share dtype and shape."""
    state = {}
    for layer in range(10):
        generator = torch.Generator().manual_seed(layer)
        state[f"layers.{layer}.weight"] = torch.randn(9, 9, generator=generator)
        state[f"layers.{layer}.bias"] = torch.randn(9, generator=generator).bfloat16()
    return state | {"steps": torch.tensor(5), "mask": torch.tensor([True, False])}


def harmless(path, names, wanted):
    """Whether the file can be read; the data must then be right."""
    try:
        found = snapshot.read_snapshot(path, names)
    except TrajectoryError:
        return False
    assert all_bits(found) == wanted
    return True


def test_damage_is_an_error_or_harmless_but_never_wrong_tensors(tmp_path):
    path, state, rng = tmp_path / "a.h5", layered(), np.random.default_rng(2)
    snapshot.write_snapshot(path, 3, state)
    raw, wanted = path.read_bytes(), all_bits(state)
    survived = 0
    for trial in range(150):
        copy = bytearray(raw)
        at = int(rng.integers(len(raw)))
        if trial % 3 == 0:
            copy[at] ^= 1 << int(rng.integers(8))
        elif trial % 3 == 1:
            copy[at : at + 4096] = bytes(len(copy[at : at + 4096]))
        else:
            del copy[at:]
        path.write_bytes(copy)
        names = rng.choice(sorted(state), 3, replace=False).tolist()
        survived += harmless(path, None, wanted)
        harmless(path, names, {name: wanted[name] for name in names})
    assert survived < 15


def test_no_flipped_bit_of_the_layout_gives_another_tensor_under_a_name(tmp_path):
    path, state, rng = tmp_path / "a.h5", layered(), np.random.default_rng(3)
    snapshot.write_snapshot(path, 3, state)
    raw, wanted = path.read_bytes(), all_bits(state)
    places = [at for name in state for at in [raw.index(f'"{name}"'.encode()) + len('"layers.')]]
    start, end = raw.index(b'{"array"'), raw.rindex(b"]]}")
    places += rng.integers(start, end, 60).tolist()
    for at in places:
        copy = bytearray(raw)
        copy[at] ^= 1 << int(rng.integers(3))
        path.write_bytes(copy)
        assert not harmless(path, None, wanted)
        for name in ("layers.1.weight", "layers.3.weight", "layers.4.bias", "steps", "mask"):
            harmless(path, [name], {name: wanted[name]})


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from grokkit.trajectory import resume, snapshot

def write_for_ever(folder, step, said):
    slots = resume.ResumeStore(folder / "resume")
    while True:
        step += 1
        state = {"weight": torch.full((40_000,), float(step)), "count": torch.tensor(step)}
        snapshot.write_snapshot(folder / "snapshots" / f"{step:012d}.h5", step, state)
        slots.save(resume.stage(step, {"state": state, "step": step}, snapshot.Staging()))
        os.write(said, b"%d " % step)

generator = random.Random(5)
for number in range(8):
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        write_for_ever(Path(sys.argv[1]) / str(number), 0, said)
    os.close(said)
    first = os.read(heard, 100)
    time.sleep(generator.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print((first + os.read(heard, 10**6)).split()[-1].decode())
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_files_and_everything_it_acknowledged(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLER, str(tmp_path)], capture_output=True, text=True, check=True)
    last_said = [int(word) for word in killed.stdout.split()]
    assert len(last_said) == 8
    for number, acknowledged in enumerate(last_said):
        run = tmp_path / str(number)
        files = list((run / "snapshots").glob("[0-9]*.h5"))
        assert {int(path.stem) for path in files} >= set(range(1, acknowledged + 1))
        for path in files:
            state = snapshot.read_snapshot(path)
            assert state["weight"].eq(int(path.stem)).all() and state["count"] == int(path.stem)
        step, state = resume.ResumeStore(run / "resume").load()
        assert step >= acknowledged and state["step"] == step and state["state"]["weight"].eq(step).all()


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_every_version_are_read(version):
    """The golden files hold the same state, each written by the code of its version."""
    path = Path(__file__).parent / "golden" / f"snapshot_v{version}.h5"
    state = {
        "weight": torch.arange(6.0).reshape(2, 3),
        "half": torch.tensor([1.5, -2.0]).bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }
    assert (
        all_bits(snapshot.read_snapshot(path))
        == all_bits(snapshot.read_snapshot(path, verify=False))
        == all_bits(state)
    )
    assert all_bits(snapshot.read_snapshot(path, ["half"])) == {"half": bits(state["half"])}
    with h5py.File(path) as file:
        assert file.attrs["version"] == version and file["data/f4"][()].tolist() == [0, 1, 2, 3, 4, 5]
