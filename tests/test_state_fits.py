"""A saved state is loaded only into what it is of; what differs is named, before anything is loaded."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

import grokkit as gk
from grokkit.errors import UsageError
from grokkit.optim.muon import Muon
from grokkit.recording.state import collect_state, load_state
from grokkit.seeding import preserved_rng
from tests.runs import SMALL


class Net(nn.Module):
    """Two layers with parameters of the same shapes."""

    def __init__(self, *, tied: bool = False, names: tuple[str, str] = ("one", "two")) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(3, 3))
        self.names = names
        if tied:
            getattr(self, names[1]).weight = getattr(self, names[0]).weight

    def forward(self, x):
        return getattr(self, self.names[1])(getattr(self, self.names[0])(x).relu())


def trained(model: nn.Module, *optimizers, updates: int = 3, seed: int = 0) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    for _ in range(updates):
        model.zero_grad()
        model(x).square().mean().backward()
        for each in optimizers:
            each.step()


def everything(model, optimizer, parts):
    """All that could be loaded, to be compared with itself later."""
    things = [model, *([optimizer] if optimizer else []), *parts.values()]
    return [*copy.deepcopy([each.state_dict() for each in things]), torch.get_rng_state()]


def same(one, other) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def refused(saved, given, match: str) -> None:
    """The state of `saved` is refused by `given`, each a model, an optimizer and parts, and changes nothing."""
    state, before = collect_state(*saved), everything(*given)
    with preserved_rng():
        torch.rand(3)
        before[-1] = torch.get_rng_state()
        with pytest.raises(UsageError, match=match):
            load_state(state, *given)
        assert same(everything(*given), before), "nothing is loaded"


def made(kind, model=None, **options):
    """A model, its trained optimizer, no parts."""
    model = model or Net()
    optimizer = kind(model.parameters(), **{"lr": 0.1, **options})
    trained(model, optimizer)
    return model, optimizer, {}


@pytest.mark.parametrize(
    ("saved", "given", "told"),
    [
        (SGD, Adam, "torch.SGD as `optimizer`, and a torch.Adam was passed"),
        (Adam, AdamW, "torch.Adam as `optimizer`, and a torch.AdamW was passed"),
        (AdamW, Adam, "torch.AdamW as"),
        (Muon, SGD, "grokkit.Muon as"),
    ],
)
def test_the_state_of_another_optimizer_is_refused(saved, given, told) -> None:
    refused(made(saved), made(given), told)


def test_how_an_update_is_computed_is_no_difference() -> None:
    state = collect_state(*made(Adam, foreach=True))
    model, optimizer, _ = made(Adam, fused=True)
    load_state(state, model, optimizer, {})
    trained(model, optimizer)
    given = made(SGD)
    named = SGD(given[0].named_parameters(), lr=0.1)
    load_state(collect_state(*given), given[0], named, {})


def of_groups(model, *groups, **options):
    """SGD with momentum, its groups of parameters by name."""
    parameters = dict(model.named_parameters())
    optimizer = SGD([{"params": [parameters[name] for name in names]} for names in groups], lr=0.1, momentum=0.9)
    for group in optimizer.param_groups:
        group.update(options)
    trained(model, optimizer)
    return model, optimizer, {}


def test_groups_in_another_order_are_refused() -> None:
    one, two = ("one.weight", "one.bias"), ("two.weight", "two.bias")
    told = r"parameter 0 of group 0 of `optimizer` is 'one.weight' \[3, 3\] in the saved one and 'two.weight' \[3, 3\]"
    refused(of_groups(Net(), one, two), of_groups(Net(), two, one), told)
    refused(of_groups(Net(), one), of_groups(Net(), one[:1] + two[1:]), "parameter 1 of group 0 .*'two.bias'")
    refused(of_groups(Net(), one + two[:1], two[1:]), of_groups(Net(), one, two), "other numbers of parameters")


def test_a_frozen_subset_of_other_parameters_is_refused() -> None:
    def subset(frozen):
        model = Net()
        getattr(model, frozen).requires_grad_(False)
        optimizer = Adam([each for each in model.parameters() if each.requires_grad])
        trained(model, optimizer)
        return model, optimizer, {}

    refused(subset("one"), subset("two"), "parameter 0 of group 0 .*'two.weight'.*'one.weight'")


def test_two_optimizers_that_are_swapped_are_refused() -> None:
    def pair(body, head):
        model = Net()
        parts = {name: Adam(getattr(model, of).parameters()) for name, of in (("body", body), ("head", head))}
        trained(model, *parts.values())
        return model, None, parts

    refused(pair("one", "two"), pair("two", "one"), "parameter 0 of group 0 of `body` is 'one.weight'")
    refused(pair("one", "two"), pair("one", "one"), "parameter 0 of group 0 of `head`")


def test_parameters_that_are_not_the_models_are_known_by_place_and_shape() -> None:
    def with_own(*shapes):
        model = Net()
        optimizer = Adam([nn.Parameter(torch.ones(shape)) for shape in shapes])
        return model, optimizer, {}

    load_state(collect_state(*with_own(2, 3)), *with_own(2, 3))
    refused(
        with_own(2, 3), with_own(3, 2), r"one that does not belong to the model \(#0\) \[2\] in the saved .*#0\) \[3\]"
    )
    model = Net()
    refused(with_own((3, 3)), (model, Adam([model.one.weight]), {}), "does not belong to the model .* and 'one.weight'")


def test_the_same_shapes_under_other_names_are_another_model() -> None:
    refused(made(SGD), made(SGD, Net(names=("two", "three"))), "'one.bias' is .* saved one and missing in the given")


def test_tied_parameters_are_told_from_two_of_the_same_shape() -> None:
    refused((Net(tied=True), None, {}), (Net(), None, {}), r"tied parameters are \[\['one.weight', 'two.weight'\]\]")
    refused(made(SGD), made(SGD, Net(tied=True)), "other numbers of parameters|tied")
    load_state(collect_state(*made(SGD, Net(tied=True))), *made(SGD, Net(tied=True)))


def test_a_group_with_more_hyper_parameters_is_refused() -> None:
    names = ("one.weight", "two.weight")
    refused(
        of_groups(Net(), names), of_groups(Net(), names, depth=3), "group 0 of `optimizer` has the hyper-parameters"
    )
    refused(of_groups(Net(), names, depth=3), of_groups(Net(), names), "depth")


def test_buffers_and_dtypes_belong_to_the_model() -> None:
    def with_buffer(model, buffer, persistent=True):
        model.register_buffer("mean", buffer, persistent=persistent)
        return model, None, {}

    refused(with_buffer(Net(), torch.ones(2)), with_buffer(Net(), torch.ones(3)), r"'mean' is \[2\] in the saved")
    refused(with_buffer(Net(), torch.ones(2)), (Net(), None, {}), "'mean' is .* missing in the given")
    load_state(collect_state(Net(), None, {}), *with_buffer(Net(), torch.ones(2), persistent=False))
    refused(
        (Net(), None, {}), (Net().double(), None, {}), r"'one.bias' is \[3\] float32 in the saved .* \[3\] float64 in"
    )
    refused((Net(), None, {}), (Net().bfloat16(), None, {}), "bfloat16 in the given one")


class Body(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.layer = nn.Linear(wide, 1)


class Counter:
    """A part that refuses what is not its own only while it loads."""

    def __init__(self, size: int = 0) -> None:
        self.size = size

    def state_dict(self):
        return {"size": self.size}

    def load_state_dict(self, state):
        if state["size"] != self.size:
            raise ValueError(f"another size: {state['size']}")


class Named(Counter):
    pass


def test_a_part_of_another_class_or_shape_is_refused_before_anything_is_loaded() -> None:
    model, optimizer, _ = made(Adam)
    for saved, given, told in (
        (Counter(), Named(), "Counter as `part`, and a tests.Named was passed"),
        (Body(2), Body(3), r"another module as `part`: 'layer.weight' is \[1, 2\] in the saved one and \[1, 3\]"),
        (lr_scheduler.StepLR(optimizer, 3), lr_scheduler.ExponentialLR(optimizer, 0.1), "torch.StepLR as `part`"),
    ):
        refused((model, optimizer, {"part": saved}), (*made(Adam)[:2], {"part": given}), told)


def test_a_policy_refuses_another_budget_before_anything_is_loaded() -> None:
    def with_policy(steps, chained):
        model, optimizer, _ = made(Adam)
        policy = gk.PolicyLR(optimizer, "constant", steps)
        return model, optimizer, {"policy": lr_scheduler.ChainedScheduler([policy]) if chained else policy}

    for chained in (False, True):
        refused(with_policy(10, chained), with_policy(11, chained), "saved with total_steps 10; this scheduler has 11")


def test_a_part_that_fails_while_it_loads_leaves_model_optimizer_and_randomness_alone() -> None:
    model, optimizer, _ = made(Adam)
    state = collect_state(model, optimizer, {"part": Counter(3)})
    given = (*made(Adam)[:2], {"part": Counter(4)})
    with preserved_rng():
        torch.rand(3)
        before = everything(*given)
        with pytest.raises(ValueError, match="another size: 3"):
            load_state(state, *given)
        assert same(everything(*given), before)


# Values that the saved ones replace


@pytest.mark.parametrize(
    ("kind", "then", "now", "told"),
    [
        (SGD, {"lr": 0.1}, {"lr": 0.01}, "the base rate of group 0 of `optimizer` is 0.1 and was passed as 0.01"),
        (SGD, {"momentum": 0.9}, {"momentum": 0.5}, "momentum of group 0 .* is 0.9 and was passed as 0.5"),
        (AdamW, {"weight_decay": 0.01}, {"weight_decay": 0.1}, "weight_decay of .* is 0.01 and was passed as 0.1"),
        (Adam, {"betas": (0.9, 0.95)}, {}, r"betas of .* is \[0.9, 0.95\] and was passed as \[0.9, 0.999\]"),
        (Adam, {"eps": 1e-8}, {"eps": 1e-6}, "eps of"),
    ],
)
@pytest.mark.parametrize("scheduled", [False, True])
def test_values_that_were_edited_are_told(kind, then, now, told, scheduled) -> None:
    model, optimizer, _ = made(kind, **then)
    given = made(kind, **now)
    if scheduled:
        saved, new = (gk.PolicyLR(each, "cosine", 10) for each in (optimizer, given[1]))
        for _ in range(4):
            optimizer.step()
            saved.step()
        state, parts = collect_state(model, optimizer, {"policy": saved}), {"policy": new}
    else:
        state, parts = collect_state(model, optimizer, {}), {}
    with pytest.warns(UserWarning, match=told) as seen:
        load_state(state, *given[:2], parts)
    assert len(seen) == 1 and "set it in `param_groups` after" in str(seen[0].message)


SCHEDULERS = {
    "cosine": lambda o: gk.PolicyLR(o, "cosine", 20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.3, 20),
    "chain": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), gk.PolicyLR(o, "one_cycle", 20)]
    ),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), gk.PolicyLR(o, "cosine", 20)], [4]
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("tensors", [False, True])
def test_what_schedulers_move_is_no_difference(scheduler, fixed, tensors) -> None:
    def built():
        model = Net()
        rate = torch.tensor(0.1) if tensors else 0.1
        optimizer = AdamW(model.parameters(), rate, weight_decay=0.1)
        for group in optimizer.param_groups:
            group["fixed_decay"] = fixed
        return model, optimizer, {"clock": SCHEDULERS[scheduler](optimizer)}

    model, optimizer, parts = built()
    for _ in range(7):
        trained(model, optimizer, updates=1)
        parts["clock"].step()
    state, again = copy.deepcopy(collect_state(model, optimizer, parts)), built()
    load_state(state, *again)
    for each in (optimizer, again[1]):
        trained(model if each is optimizer else again[0], each, updates=1)
    parts["clock"].step()
    again[2]["clock"].step()
    assert same(everything(model, optimizer, parts)[:-1], everything(*again)[:-1])


def test_a_rate_that_a_loop_moves_by_hand_is_no_difference() -> None:
    model, optimizer, _ = made(SGD)
    optimizer.param_groups[0]["lr"] = 0.003
    given = made(SGD)
    load_state(collect_state(model, optimizer, {}), *given)
    assert given[1].param_groups[0]["lr"] == 0.003


@pytest.mark.parametrize("policy", ["cosine", "lc_wsd"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_run_of_train_that_is_resumed_warns_of_nothing(tmp_path, policy, optimizer) -> None:
    from tests.callbacks import PressesCtrlC

    config = SMALL.replace(policy=gk.spec(policy), optimizer=gk.spec(optimizer), measures=(), attributions=())
    with pytest.raises(gk.errors.Interrupted):
        gk.train(config, runs=tmp_path, device="cpu", callback=PressesCtrlC(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gk.resume(tmp_path / config.run_name, device="cpu")


def test_a_slot_of_an_older_version_is_compared_as_before() -> None:
    model, optimizer, _ = made(SGD, momentum=0.9)
    state = {key: value for key, value in collect_state(model, optimizer, {}).items() if key != "identity"}
    given = made(SGD, momentum=0.5)
    load_state(state, *given)
    assert given[1].param_groups[0]["momentum"] == 0.9
    with pytest.raises(UsageError, match="other numbers of parameters"):
        load_state(state, *of_groups(Net(), ["one.weight"]))


# A policy without its rates


def decayed(steps: int = 15):
    model, optimizer, _ = made(SGD)
    policy = gk.PolicyLR(optimizer, "cosine", 20)
    for _ in range(steps):
        optimizer.step()
        policy.step()
    return model, optimizer, policy


@pytest.mark.parametrize("chained", [False, True])
def test_a_policy_that_is_restored_without_its_optimizer_is_told(chained) -> None:
    def held(policy):
        return {"policy": lr_scheduler.ChainedScheduler([policy]) if chained else policy}

    model, _, policy = decayed()
    state = collect_state(model, None, held(policy))
    model, optimizer, _ = made(SGD)
    fresh = gk.PolicyLR(optimizer, "cosine", 20)
    with pytest.warns(UserWarning, match="the optimizer has 0.1, as it was built: load the optimizer's state too"):
        load_state(state, model, None, held(fresh))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        fresh.step()


def test_a_policy_of_another_optimizer_than_the_restored_one_is_told() -> None:
    model, optimizer, policy = decayed()
    state = collect_state(model, optimizer, {"policy": policy})
    model, optimizer, _ = made(SGD)
    other = SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="PolicyLR resumes at a rate of 0.01"):
        load_state(state, model, optimizer, {"policy": gk.PolicyLR(other, "cosine", 20)})


def test_a_policy_whose_optimizer_is_a_part_is_not_told_of() -> None:
    model, optimizer, policy = decayed()
    state = collect_state(model, None, {"policy": policy, "sgd": optimizer})
    model, optimizer, _ = made(SGD)
    fresh = gk.PolicyLR(optimizer, "cosine", 20)
    load_state(state, model, None, {"policy": fresh, "sgd": optimizer})
    optimizer.step()
    fresh.step()


@pytest.mark.parametrize("order", ["policy", "optimizer", "built later"])
def test_both_states_loaded_by_hand_in_any_order_are_not_told_of(order) -> None:
    _, saved, policy = decayed()
    _, optimizer, _ = made(SGD)
    fresh = None if order == "built later" else gk.PolicyLR(optimizer, "cosine", 20)
    if order == "policy":
        fresh.load_state_dict(policy.state_dict())
    optimizer.load_state_dict(saved.state_dict())
    if fresh is None:
        fresh = gk.PolicyLR(optimizer, "cosine", 20)
    if order != "policy":
        fresh.load_state_dict(policy.state_dict())
    for each, its in ((optimizer, fresh), (saved, policy)):
        each.step()
        its.step()
    assert optimizer.param_groups[0]["lr"] == saved.param_groups[0]["lr"]


def test_a_policy_alone_without_its_optimizers_state_is_told_at_its_first_step() -> None:
    _, _, policy = decayed()
    _, optimizer, _ = made(SGD)
    fresh = gk.PolicyLR(optimizer, "cosine", 20)
    fresh.load_state_dict(policy.state_dict())
    optimizer.step()
    with pytest.warns(UserWarning, match="load the optimizer's state too"):
        fresh.step()


@pytest.mark.parametrize("loaded", [False, True])
def test_a_second_policy_on_a_decayed_optimizer_is_told(loaded) -> None:
    _, optimizer, _ = decayed()
    if loaded:
        state = optimizer.state_dict()
        optimizer = made(SGD)[1]
        optimizer.load_state_dict(state)
    second = gk.PolicyLR(optimizer, "cosine", 20)
    optimizer.step()
    with pytest.warns(UserWarning, match=r"an earlier scheduler had changed from 0.1 to 0.01.*use a new optimizer"):
        second.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.step()


def test_fresh_schedulers_of_one_training_are_not_told_of() -> None:
    for built in SCHEDULERS.values():
        _, optimizer, _ = made(SGD, momentum=0.9)
        scheduler = built(optimizer)
        for _ in range(3):
            optimizer.step()
            scheduler.step()
    _, optimizer, _ = decayed(steps=0)
    second = gk.PolicyLR(optimizer, "cosine", 20)
    optimizer.step()
    second.step()
