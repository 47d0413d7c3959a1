"""What every registered policy promises, and every wrapper around every one of them; a new file in grokkit/policies is
tested here without a change."""

import copy
import json
import math
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest
import torch

from grokkit import policies
from grokkit.errors import UsageError
from grokkit.optim.policy_lr import PolicyLR
from grokkit.policies import Observation, Policy

NEWS = [(step, {"log_density": 5 - abs(step - 30) / 10, "train_loss": 1.0}) for step in range(2, 60, 2)]
OPTIONS = {"yoked": {"news": NEWS}, "shuffled": {"news": NEWS, "seed": 3}}
"""What a wrapper cannot be without."""

ALL = {name: lambda name=name: policies.create(name) for name in policies.names()} | {
    f"{wrapper} {name}": lambda wrapper=wrapper, name=name: policies.create(
        wrapper, policy=name, **OPTIONS.get(wrapper, {})
    )
    for wrapper in policies.wrapper_names()
    for name in policies.names()
}
every_policy = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
listening = {name: make for name, make in ALL.items() if " " not in name and hasattr(make(), "reading")}
every_listener = pytest.mark.parametrize("make", listening.values(), ids=listening)


def _news(step: int, reading: str | None) -> dict[str, float]:
    """A rise and a fall with holes in it, every second step."""
    if step % 2 or reading is None:
        return {}
    if step % 14 == 0:
        return {reading: math.nan, "train_loss": math.inf}
    value = 5 - abs(step - 30) / 10
    slope = {f"{reading}_slope{side}": (30 - step) / 100 for side in ("", "_low", "_high")}
    return {reading: value, f"{reading}_se": 0.01, **slope}


def _run(policy, total: int, through_json: bool = False) -> list[tuple[float, str | None]]:
    state, answers = policy.init(), []
    for step in range(total + 2):
        state = json.loads(json.dumps(state, allow_nan=False)) if through_json else state
        observation = Observation(step, total, 0.1, _news(step, getattr(policy, "reading", None)))
        before = copy.deepcopy((observation.readings, state))
        scale, after, reason = policy.update(observation, state)
        assert repr((observation.readings, state)) == repr(before), "neither argument is changed"
        state = after
        answers.append((scale, reason))
    return answers


@every_policy
def test_it_is_a_frozen_dataclass_that_documents_each_parameter(make):
    policy = make()
    assert isinstance(policy, Policy) and is_dataclass(policy) and type(policy).__dataclass_params__.frozen
    documents = [each.__doc__ or "" for each in type(policy).__mro__ if is_dataclass(each)]
    lines = [line.strip() for document in documents for line in document.splitlines()]
    undocumented = [f.name for f in fields(policy) if not any(line.startswith(f"{f.name}: ") for line in lines)]
    assert not undocumented


@every_policy
@pytest.mark.parametrize("total", [1, 2, 3, 60])
def test_its_scale_is_positive_and_finite_at_every_step_and_after_the_last(make, total):
    assert all(0 < scale < math.inf for scale, _ in _run(make(), total))


@every_policy
def test_it_is_pure_and_its_state_survives_json_at_every_step(make):
    policy = make()
    assert _run(policy, 60, through_json=True) == _run(policy, 60) == _run(make(), 60)


@every_policy
def test_its_reasons_are_sentences_with_numbers(make):
    reasons = [reason for _, reason in _run(make(), 60) if reason is not None]
    assert all(any(sign.isdigit() for sign in reason) and " " in reason for reason in reasons)


@every_listener
def test_missing_and_not_finite_readings_are_counted_and_change_nothing_else(make):
    policy = make()
    state = policy.init()
    for step in range(20):
        state = policy.update(Observation(step, 100, 1.0, _news(step, policy.reading)), state).state
    silent = policy.update(Observation(20, 100, 1.0, {}), state)
    for useless, counter in (
        ({policy.reading: math.nan}, "ignored"),
        ({policy.reading: -math.inf}, "ignored"),
        ({"something": 1.0}, "missing"),
    ):
        heard = policy.update(Observation(20, 100, 1.0, useless), state)
        assert heard.scale == silent.scale
        assert heard.state == silent.state | {counter: silent.state[counter] + 1}


@pytest.mark.parametrize("name", [*policies.names(), *policies.wrapper_names()])
def test_it_refuses_an_unknown_parameter_with_the_allowed_ones(name):
    with pytest.raises(UsageError, match="It takes"):
        policies.create(name, no_such_parameter=1)


@every_policy
def test_the_scheduler_resumes_it_exactly_at_every_step(make):
    whole, states = _drive(make(), 0, None)
    for stop, saved in enumerate(states):
        assert _drive(make(), stop, copy.deepcopy(saved))[0] == whole[stop:]


def _drive(policy, start: int, saved, total: int = 40):
    """Rates of the updates from `start` on, and the state before each of them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = PolicyLR(optimizer, policy, total)
    if saved is not None:
        optimizer.load_state_dict(saved[0])
        scheduler.load_state_dict(json.loads(saved[1]))
    rates, states = [], []
    for step in range(start, total):
        states.append((copy.deepcopy(optimizer.state_dict()), json.dumps(scheduler.state_dict())))
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.observe(_news(step + 1, getattr(policy, "reading", None)))
        scheduler.step()
    return rates, states


def test_policies_import_no_torch():
    code = "import sys; from grokkit import policies; policies.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
