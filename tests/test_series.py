"""Reading along time: the same numbers as file by file, damage found, other layouts and formats told apart."""

import threading

import h5py
import pytest
import torch

from grokkit.errors import TrajectoryError, UsageError
from grokkit.trajectory import open_run, run, snapshot, store, tensor_series

STEPS = (0, 7, 40, 1000)


def state(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "big": torch.randn(30, 7, generator=generator),
        "half": torch.randn(5, 2, generator=generator).bfloat16(),
        "eighth": torch.randn(3, generator=generator).to(torch.float8_e4m3fn),
        "count": torch.tensor(step),
        "mask": torch.rand(6, generator=generator) > 0.5,
        "empty": torch.empty(0, 3),
    }


@pytest.fixture
def made(tmp_path):
    run.create_run(
        tmp_path / "run", config="seed = 0\n", environment={}, probes=[], status={"state": "done", "step": 0}
    )
    opened = open_run(tmp_path / "run")
    for step in STEPS:
        snapshot.write_snapshot(opened.path / "snapshots" / store.step_file_name(step), step, state(step))
    return opened


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", list(state(0)))
def test_a_trajectory_is_the_stack_of_what_load_gives(made, name, verify):
    slow = torch.stack([state(step)[name] for step in STEPS])
    fast = made.trajectory(name, verify=verify)
    assert fast.dtype == slow.dtype and torch.equal(fast, slow)
    assert torch.equal(made.trajectory(name, [40, 0], verify=verify), slow[[2, 0]])


def test_a_large_tensor_is_read_by_two_threads_to_the_same_numbers(made, monkeypatch):
    monkeypatch.setattr(tensor_series, "MIN_PARALLEL_BYTES", 1)
    out = torch.empty(4, 30, 7)
    assert made.trajectory("big", out=out) is out
    assert torch.equal(out, torch.stack([state(step)["big"] for step in STEPS]))
    with pytest.raises(UsageError, match=r"`out` must be contiguous, torch.float32 and of shape \[4, 30, 7\]; got"):
        made.trajectory("big", out=torch.empty(3, 30, 7))
    (made.path / "snapshots" / store.step_file_name(1000)).write_bytes(b"")
    with pytest.raises(TrajectoryError, match="is damaged"):
        made.trajectory("big")


@pytest.mark.parametrize("index", [0, 29, -1, slice(2, 9), slice(None, None, 4), slice(20, 3, -5), slice(5, 5)])
def test_only_some_of_the_first_dimension(made, index):
    slow = torch.stack([torch.from_numpy(state(step)["big"].numpy()[index].copy()) for step in STEPS])
    assert torch.equal(made.trajectory("big", index=index), slow)


def test_checkpoints_come_in_order_with_what_was_asked_for(made):
    found = list(made.iter_snapshots(names=["count"]))
    assert [(step, int(each["count"]), list(each)) for step, each in found] == [(s, s, ["count"]) for s in STEPS]
    assert [step for step, _ in made.iter_snapshots([40, 7])] == [40, 7]


def test_every_flipped_bit_of_a_tensor_is_found(made):
    path = made.path / "snapshots" / store.step_file_name(40)
    whole = path.read_bytes()
    start = whole.index(state(40)["half"].view(torch.uint8).numpy().tobytes())
    for bit in range(8 * 20):
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(TrajectoryError, match=r"0040.h5 is damaged: tensor 'half'"):
            made.trajectory("half")
    assert made.trajectory("half", verify=False).shape == (4, 5, 2), "and is not looked for without `verify`"


def test_a_file_cut_short_is_an_error(made):
    path = made.path / "snapshots" / store.step_file_name(40)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrajectoryError, match="damaged"):
        made.trajectory("big")


def test_a_model_that_grew_keeps_its_common_tensors_readable(made):
    grown = state(2000) | {"new": torch.ones(4)}
    snapshot.write_snapshot(made.path / "snapshots" / store.step_file_name(2000), 2000, grown)
    whole = torch.stack([state(step)["big"] for step in (*STEPS, 2000)])
    assert torch.equal(made.trajectory("big"), whole)
    with pytest.raises(TrajectoryError, match="holds no tensor 'new'"):
        made.trajectory("new")
    assert torch.equal(made.trajectory("new", [2000]), torch.ones(1, 4))


def test_the_same_names_in_another_order_are_another_layout(made):
    """Files of one size whose tensors lie elsewhere."""
    first = {"a": torch.zeros(4), "b": torch.ones(4)}
    second = {"b": torch.ones(4), "a": torch.zeros(4)}
    folder = made.path / "other"
    for step, each in enumerate((first, second)):
        snapshot.write_snapshot(folder / store.step_file_name(step), step, each)
    files = [folder / store.step_file_name(step) for step in range(2)]
    assert files[0].stat().st_size == files[1].stat().st_size
    assert tensor_series.read_series(files, "a", verify=False).tolist() == [[0] * 4] * 2


def test_a_tensor_that_changes_its_shape_is_named(made):
    snapshot.write_snapshot(made.path / "snapshots" / store.step_file_name(2000), 2000, {"big": torch.zeros(31, 7)})
    with pytest.raises(TrajectoryError, match=r"'big' of .*2000.h5 is float32 \[31, 7\]; the first file has"):
        made.trajectory("big")


def test_what_is_not_there_is_told(made):
    with pytest.raises(TrajectoryError, match=r"holds no tensor 'bib'. Did you mean 'big'"):
        made.trajectory("bib")
    with pytest.raises(TrajectoryError, match="no snapshot at step 8; the nearest is 7"):
        made.trajectory("big", [0, 8])
    with pytest.raises(UsageError, match=r"`index` must be in -30..29; got 30"):
        made.trajectory("big", index=30)
    with pytest.raises(UsageError, match="a single number"):
        made.trajectory("count", index=0)


def test_a_packed_file_is_read_by_plain_h5py(made, tmp_path):
    made.pack(tmp_path / "packed.h5")
    with h5py.File(tmp_path / "packed.h5") as file:
        assert file.attrs["run"] == made.name and file["steps"][()].tolist() == list(STEPS)
        for name in state(0):
            expected = made.trajectory(name)
            expected = expected.float() if name in ("half", "eighth") else expected
            assert torch.equal(torch.from_numpy(file["state"][name][()]), expected)
        assert file["state/big"].compression == "gzip" and file["state/big"].fletcher32
    with pytest.raises(UsageError, match="already exists and is not overwritten"):
        made.pack(tmp_path / "packed.h5")


def test_safetensors_hold_the_same_state(made, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    made.to_safetensors(40, tmp_path / "a.safetensors")
    back = safetensors.load_file(tmp_path / "a.safetensors")
    assert back.keys() == state(40).keys() and all(torch.equal(back[name], each) for name, each in state(40).items())
    with pytest.raises(UsageError, match="already exists and is not overwritten"):
        made.to_safetensors(40, tmp_path / "a.safetensors")


def test_following_a_finished_run_gives_its_steps_and_ends(made):
    assert list(made.follow()) == list(STEPS)


def test_following_a_live_run_gives_what_comes_and_gives_up_after_a_while(made, monkeypatch):
    from grokkit.trajectory import run as run_module

    run.write_status(made.path, state="running", step=0)
    monkeypatch.setattr(run_module, "is_held", lambda path: True)
    following = made.follow(timeout=0.05, poll=0.01)
    assert [next(following) for _ in STEPS] == list(STEPS)
    snapshot.write_snapshot(made.path / "snapshots" / store.step_file_name(2000), 2000, state(2000))
    assert list(following) == [2000]


def test_a_run_is_followed_from_before_its_lock(made):
    run.write_status(made.path, state="starting", step=0)
    following = made.follow(timeout=5, poll=0.01)
    assert [next(following) for _ in STEPS] == list(STEPS)
    later = made.path / "snapshots" / store.step_file_name(2000), 2000, state(2000)
    threading.Timer(0.2, snapshot.write_snapshot, later).start()
    assert next(following) == 2000
    run.write_status(made.path, state="running", step=0)
    assert made.state == "killed" and list(following) == []


def test_a_damaged_layout_of_the_first_file_gives_no_rows(made):
    path = made.path / "snapshots" / store.step_file_name(0)
    content = bytearray(path.read_bytes())
    content[content.index(b'"offset":[') + 11] ^= 1
    path.write_bytes(content)
    for look in (lambda: made.trajectory("big", index=0), lambda: made.load(0, verify=False)):
        with pytest.raises(TrajectoryError, match="damaged: its layout does not match its hash"):
            look()
