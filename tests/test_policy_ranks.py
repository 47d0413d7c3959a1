"""PolicyLR in a process group: rank 0 decides for all; without one, and in a run of grokkit's own, nothing is sent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import grokkit as gk
from grokkit.optim import policy_lr
from tests.runs import SMALL

RANK = """
import json, sys
import torch
from torch import distributed
from torch.optim import SGD, lr_scheduler
import grokkit as gk

rank, meeting = int(sys.argv[1]), sys.argv[2]
sent = [0]
send = distributed.broadcast_object_list
def counted(*arguments, **options):
    sent[0] += 1
    return send(*arguments, **options)
distributed.broadcast_object_list = counted

def path(heard, steps=40, policy=None, chained=False, **options):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    policy = policy or gk.policies.create("plateau", patience=0, factor=0.5)
    scheduler = clock = gk.PolicyLR(optimizer, policy, steps, **options)
    if chained:
        clock = lr_scheduler.ChainedScheduler([scheduler, lr_scheduler.ExponentialLR(optimizer, 0.99)])
    rates, before = [], sent[0]
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % 4 == 0:
            scheduler.observe(heard(step))
        clock.step()
    return {"rates": rates, "sent": sent[0] - before, "decisions": scheduler.decisions, "state": scheduler.state_dict()}

def own(step):
    return {"train_loss": 1.0 + abs(step - 10 - 12 * rank)}

found = {"before": path(own)}
distributed.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
found["differing"] = path(own)
found["silent"] = path(lambda step: own(step) if rank == 0 else None)
found["chained"] = path(own, chained=True)
found["none"] = path(lambda step: None if rank == 0 else own(step))
found["apart"] = path(own, broadcast=False)
distributed.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes says that observes other numbers than the other."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(folder / "meeting")],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    told = []
    try:
        for process in processes:
            out, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors[-3000:]
            told.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return told


@pytest.mark.parametrize("case", ["differing", "silent", "chained"])
def test_ranks_that_observe_different_numbers_follow_rank_0(ranks, case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first["rates"] == second["rates"] and first["decisions"] == second["decisions"]
    assert first["state"] == second["state"]
    alone = ranks[0]["before"]
    why, why_alone = ([(each["step"], each["reason"]) for each in told["decisions"]] for told in (first, alone))
    assert why == why_alone and len(why) > 2
    for told in ("rates", "decisions"):
        assert (first[told] == alone[told]) == (case != "chained"), "the chain lowers the rate besides"
    assert alone["rates"] != ranks[1]["before"]["rates"], "on its own the other would have decided otherwise"


def test_what_rank_0_did_not_observe_nobody_hears(ranks) -> None:
    assert all(rank["none"]["rates"] == [0.1] * 40 for rank in ranks)


def test_only_an_observation_is_sent_never_a_step(ranks) -> None:
    for rank in ranks:
        assert rank["before"]["sent"] == 0 and rank["apart"]["sent"] == 0
        assert [rank[case]["sent"] for case in ("differing", "silent", "chained", "none")] == [10] * 4


def test_nets_of_their_own_may_be_trained_by_the_ranks(ranks) -> None:
    for rank in ranks:
        assert rank["apart"]["rates"] == rank["before"]["rates"]
    assert ranks[0]["apart"]["rates"] != ranks[1]["apart"]["rates"]


def test_the_state_does_not_say_who_decides(ranks) -> None:
    assert ranks[0]["apart"]["state"] == ranks[0]["before"]["state"]


def test_a_run_of_grokkits_own_sends_nothing_twice(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(policy_lr, "_broadcast_from_rank_zero", lambda news: pytest.fail("the team tells the news"))
    with pytest.raises(pytest.fail.Exception):
        gk.PolicyLR(torch.optim.SGD([torch.zeros(1)]), "cosine", 10).observe(None)
    gk.train(SMALL.replace(measures=(), attributions=()), runs=tmp_path, device="cpu")
