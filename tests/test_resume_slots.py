"""Resume slots: any training state back without pickle; of two slots the newest valid one counts."""

import random
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from grokkit.errors import TrajectoryError
from grokkit.trajectory import checksummed, resume
from grokkit.trajectory.snapshot import Staging


def save(folder, step, state):
    resume.ResumeStore(folder).save(resume.stage(step, state, Staging()))


def load(folder):
    return resume.ResumeStore(folder).load()


def through(folder, value):
    save(folder, 1, {"value": value})
    return load(folder)[1]["value"]


def same(a, b):
    """Equal in type, value and bits, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**200,
        "",
        "Grüße\n\ud800",
        0.1,
        -0.0,
        5e-324,
        float("nan"),
        float("inf"),
        -float("inf"),
        (),
        [],
        {},
        ((1, (2.0, [3])), []),
        {7: "int", "1": "text", (2, "b"): None, None: 0, 2.5: {}, True: 1},
        {"$": "tensor", "key": "0"},
        [{"$": "dict"}],
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.ones(2).bfloat16(),
        np.arange(6, dtype=np.uint32).reshape(2, 3),
        np.array(1.5, np.float16),
        np.zeros((0, 2)),
        np.array([True, False]),
        np.arange(8)[::-2],
        random.Random(3).getstate(),
        np.random.default_rng(3).bit_generator.state,
        np.random.Generator(np.random.MT19937(3)).bit_generator.state,
    ],
    ids=lambda value: f"{type(value).__name__}-{repr(value)[:20]}".encode("ascii", "replace").decode(),
)
def test_a_value_comes_back_equal_in_type_and_bits(tmp_path, value):
    assert same(through(tmp_path, value), value)


def trained(make_optimizer, steps, resume_at=None, folder=None):
    """Weights after `steps` steps; at `resume_at` everything goes through a slot into new objects."""
    torch_generator = torch.Generator().manual_seed(0)

    def fresh():
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return net, make_optimizer(net.parameters())

    net, optimizer = fresh()
    for step in range(steps):
        if step == resume_at:
            state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch_generator.get_state()}
            save(folder, step, state)
            found, state = load(folder)
            assert found == step
            net, optimizer = fresh()
            net.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            torch_generator.set_state(state["rng"])
        optimizer.zero_grad()
        net(torch.randn(6, 4, generator=torch_generator)).square().sum().backward()
        optimizer.step()
    return net.state_dict(), optimizer.state_dict()


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True),
        lambda parameters: torch.optim.SGD(parameters, lr=torch.tensor(0.01)),
    ],
    ids=["adamw", "amsgrad", "momentum", "tensor-lr"],
)
def test_training_through_a_slot_ends_at_the_same_bits(tmp_path, make_optimizer):
    straight = trained(make_optimizer, 6)
    resumed = trained(make_optimizer, 6, resume_at=3, folder=tmp_path)
    assert same(dict(resumed[0]), dict(straight[0])) and same(resumed[1], straight[1])


def test_a_slot_holds_the_state_of_the_moment_it_was_saved(tmp_path):
    weight = torch.zeros(3)
    save(tmp_path, 1, {"weight": weight})
    weight.add_(1)
    loaded = load(tmp_path)[1]["weight"]
    assert loaded.tolist() == [0, 0, 0]
    loaded.add_(5)
    assert load(tmp_path)[1]["weight"].tolist() == [0, 0, 0]


class Named(tuple):
    """Stands for a named tuple: a tuple with a type of its own."""


@pytest.mark.parametrize("value", [{1}, b"bytes", 1j, object(), np.int64(3), Named((1,)), torch.float32, print])
def test_what_a_slot_cannot_hold_is_named_and_nothing_is_written(tmp_path, value):
    with pytest.raises(TypeError, match=f"a resume state cannot hold {type(value).__name__}: "):
        save(tmp_path, 1, {"deep": [{"er": (value,)}]})
    assert list(tmp_path.iterdir()) == []


def test_counters_and_ordered_dicts_stay_what_they_are_and_other_kinds_are_refused(tmp_path):
    state = {"milestones": Counter({10: 1, 20: 2}), "shadow": OrderedDict(a=torch.ones(2))}
    save(tmp_path, 1, state)
    back = load(tmp_path)[1]
    assert type(back["milestones"]) is Counter and back["milestones"] == state["milestones"]
    assert type(back["shadow"]) is OrderedDict and torch.equal(back["shadow"]["a"], torch.ones(2))
    with pytest.raises(TypeError, match="a resume state cannot hold defaultdict"):
        save(tmp_path, 2, {"x": defaultdict(int)})


def test_every_tensor_comes_back_where_a_fresh_one_would_lie(tmp_path):
    save(tmp_path, 1, {str(n): torch.ones(n) for n in range(1, 9)})
    assert all(tensor.data_ptr() % 64 == 0 for tensor in load(tmp_path)[1].values())


def test_an_array_that_torch_does_not_know_is_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="str_"):
        save(tmp_path, 1, {"names": np.array(["a"])})


def steps_in_slots(folder):
    paths = [folder / name for name in resume.RESUME_FILES]
    return [checksummed.read(path, "resume")[1]["step"] for path in paths if path.exists()]


def test_one_writer_alternates_without_reading_its_slots_again(tmp_path, monkeypatch):
    slots = resume.ResumeStore(tmp_path)
    slots.save(resume.stage(10, {}, Staging()))
    monkeypatch.setattr(checksummed, "read", lambda *_: pytest.fail("a slot was read"))
    for step in (20, 30):
        slots.save(resume.stage(step, {}, Staging()))
    monkeypatch.undo()
    assert steps_in_slots(tmp_path) == [30, 20]


def test_slots_alternate_and_the_newest_counts(tmp_path):
    assert load(tmp_path) is None
    seen = []
    for step in (10, 20, 30, 40):
        save(tmp_path, step, {"step": step})
        seen.append(steps_in_slots(tmp_path))
        assert load(tmp_path) == (step, {"step": step})
    assert seen == [[10], [10, 20], [30, 20], [30, 40]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.h5", "1.h5"]


def test_of_two_saves_at_one_step_the_later_counts(tmp_path):
    for value in ("first", "second", "third"):
        save(tmp_path, 10, {"value": value})
        assert load(tmp_path) == (10, {"value": value})


def flip(path, at=-20):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("newest", [0, 1])
def test_a_damaged_newest_slot_falls_back_to_the_older_and_is_written_next(tmp_path, newest):
    for step in (10, 20) if newest == 1 else (5, 10, 20):
        save(tmp_path, step, {"weight": torch.full((100,), float(step))})
    flip(tmp_path / resume.RESUME_FILES[newest])
    step, state = load(tmp_path)
    assert step == 10 and state["weight"].eq(10).all()
    good = (tmp_path / resume.RESUME_FILES[1 - newest]).read_bytes()
    save(tmp_path, 15, {"weight": torch.full((100,), 15.0)})
    assert (tmp_path / resume.RESUME_FILES[1 - newest]).read_bytes() == good, "the only good slot was overwritten"
    assert load(tmp_path)[0] == 15


def test_a_damaged_older_slot_does_no_harm(tmp_path):
    for step in (10, 20):
        save(tmp_path, step, {"weight": torch.zeros(100)})
    (tmp_path / "0.h5").write_bytes(b"")
    assert load(tmp_path)[0] == 20
    save(tmp_path, 30, {})
    assert steps_in_slots(tmp_path) == [30, 20]


def test_two_damaged_slots_are_no_slot(tmp_path):
    for step in (10, 20):
        save(tmp_path, step, {"weight": torch.zeros(100)})
    for name in resume.RESUME_FILES:
        flip(tmp_path / name)
        with pytest.raises(TrajectoryError):
            checksummed.read(tmp_path / name, "resume")
    assert load(tmp_path) is None
