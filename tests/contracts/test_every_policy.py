"""What every registered policy promises; a new file in grokkit/policies is tested here without a change."""

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
from grokkit.policies import Observation, Policy
from grokkit.training.lr_scheduler import PolicyLR

every_policy = pytest.mark.parametrize("name", policies.names())


def _news(step: int, reading: str | None) -> dict[str, float]:
    """A rise and a fall with holes in it, every second step."""
    if step % 2 or reading is None:
        return {}
    if step % 14 == 0:
        return {reading: math.nan}
    return {reading: 5 - abs(step - 30) / 10, "log_density_se": 0.01}


def _run(policy, total: int, through_json: bool = False) -> list[tuple[float, str | None]]:
    state, answers = policy.init(), []
    for step in range(total + 2):
        state = json.loads(json.dumps(state, allow_nan=False)) if through_json else state
        observation = Observation(step, total, 0.1, _news(step, getattr(policy, "reading", None)))
        before = copy.deepcopy((observation.readings, state))
        scale, after, reason = policy.update(observation, state)
        assert (observation.readings, state) == before, "neither argument is changed"
        state = after
        answers.append((scale, reason))
    return answers


@every_policy
def test_it_is_a_frozen_dataclass_that_documents_each_parameter(name):
    policy = policies.create(name)
    assert isinstance(policy, Policy) and is_dataclass(policy) and type(policy).__dataclass_params__.frozen
    documents = [each.__doc__ or "" for each in type(policy).__mro__ if is_dataclass(each)]
    lines = [line.strip() for document in documents for line in document.splitlines()]
    undocumented = [f.name for f in fields(policy) if not any(line.startswith(f"{f.name}: ") for line in lines)]
    assert not undocumented


@every_policy
@pytest.mark.parametrize("total", [1, 2, 3, 60])
def test_its_scale_is_positive_and_finite_at_every_step_and_after_the_last(name, total):
    assert all(0 < scale < math.inf for scale, _ in _run(policies.create(name), total))


@every_policy
def test_its_state_survives_json_at_every_step(name):
    policy = policies.create(name)
    assert _run(policy, 60, through_json=True) == _run(policy, 60)


@every_policy
def test_its_reasons_are_sentences_with_numbers(name):
    reasons = [reason for _, reason in _run(policies.create(name), 60) if reason is not None]
    assert all(any(sign.isdigit() for sign in reason) and " " in reason for reason in reasons)


@every_policy
def test_it_refuses_an_unknown_parameter_with_the_allowed_ones(name):
    with pytest.raises(UsageError, match="It takes"):
        policies.create(name, no_such_parameter=1)


@every_policy
def test_the_scheduler_resumes_it_exactly_at_every_step(name):
    whole, states = _drive(name, 0, None)
    for stop, saved in enumerate(states):
        assert _drive(name, stop, copy.deepcopy(saved))[0] == whole[stop:]


def _drive(name: str, start: int, saved, total: int = 60):
    """Rates of the updates from `start` on, and the state before each of them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = PolicyLR(optimizer, name, total)
    if saved is not None:
        optimizer.load_state_dict(saved[0])
        scheduler.load_state_dict(json.loads(saved[1]))
    rates, states = [], []
    for step in range(start, total):
        states.append((copy.deepcopy(optimizer.state_dict()), json.dumps(scheduler.state_dict())))
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.observe(_news(step + 1, getattr(scheduler.policy, "reading", None)))
        scheduler.step()
    return rates, states


def test_policies_import_no_torch():
    code = "import sys; from grokkit import policies; policies.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
