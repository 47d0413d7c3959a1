"""Random networks of any calls of torch: what the survey accepts bends only where a unit or a pool is counted."""

import warnings

import pytest
import torch
from torch import nn

from grokkit.errors import ModelContractError
from grokkit.spline import local_complexity
from grokkit.spline.affine import build_program
from grokkit.spline.passes import forward_with_interception
from grokkit.spline.rules import Dual
from grokkit.spline.uncounted import find_uncounted
from tests.reference.bends import draw_line, find_bends, find_explained
from tests.reference.lc_nets import draw
from tests.reference.random_calls import HIDING, WIDTH, RandomNet, draw_net, find_steps, list_functions


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def is_model(net: nn.Module) -> bool:
    """Whether a net runs on any batch and returns finite numbers."""
    try:
        return bool(net(draw_line((WIDTH,), 7, torch.Generator().manual_seed(0))).isfinite().all())
    except Exception:  # whatever torch raises for shapes that do not fit
        return False


def survey(net: nn.Module, images: torch.Tensor) -> str:
    """Return "accepted", "named" or "refused"; any other error than a contract error fails the test."""
    try:
        return "named" if find_uncounted(net, images).layers else "accepted"
    except ModelContractError:
        return "refused"


def find_unseen_bends(net: nn.Module, seed: int, points: int = 161) -> int:
    """Count the bends along a random line at which no counted unit or pool changes."""
    line = draw_line((WIDTH,), points, torch.Generator().manual_seed(seed))
    if not net(line).isfinite().all():
        return 0
    return int((find_bends(net, line) & ~find_explained(net, line)).sum())


def check_nets(kind: str, seeds: range) -> dict[str, int]:
    """Hold the survey of random nets against their bends; return how many were accepted, named and refused."""
    verdicts = {"accepted": 0, "named": 0, "refused": 0}
    for seed in seeds:
        net = draw_net(seed, kind)
        if not is_model(net):
            continue
        verdict = survey(net, draw(5, WIDTH, seed=seed))
        verdicts[verdict] += 1
        if verdict == "accepted":
            assert find_unseen_bends(net, seed) == 0, f"{kind} {seed}: {net}"
    return verdicts


# --- the survey -------------------------------------------------------------------------------------------------------


def test_affine_nets_are_accepted_and_have_an_exact_program():
    for seed in range(60):
        net, images = draw_net(seed, "clean"), draw(5, WIDTH, seed=seed)
        assert find_uncounted(net, images).layers == (), net
        program = build_program(net, images)
        assert torch.allclose(program.forward(images), net(images), rtol=1e-10, atol=1e-10), net
        assert find_unseen_bends(net, seed) == 0, net


def test_nets_of_counted_activations_are_accepted_and_bend_where_these_do():
    assert check_nets("counted", range(60)) == {"accepted": 60, "named": 0, "refused": 0}


@pytest.mark.parametrize("step", HIDING, ids=lambda step: step.name)
def test_whatever_hides_its_work_is_named_or_bends_where_it_is_counted(step):
    net = RandomNet([step], 3)
    if survey(net, draw(5, WIDTH)) == "accepted":
        assert find_unseen_bends(net, 0) == find_unseen_bends(net, 1) == 0


def test_nets_that_hide_a_step_never_bend_unseen():
    verdicts = check_nets("hiding", range(80))
    assert verdicts["accepted"] > 10 and verdicts["named"] > 10


def test_nets_with_any_call_of_torch_never_bend_unseen():
    verdicts = check_nets("any", range(120))
    assert verdicts["accepted"] > 10 and verdicts["named"] > 10


@pytest.mark.slow
def test_every_public_function_in_every_way_never_bends_unseen():
    accepted = 0
    for name, _ in list_functions():
        for step in find_steps(name):
            net = RandomNet([step], 3)
            if is_model(net) and survey(net, draw(5, WIDTH)) == "accepted":
                assert find_unseen_bends(net, 0) == 0, step.name
                accepted += 1
    assert accepted > 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["counted", "hiding", "any"])
def test_many_random_nets_never_bend_unseen(kind):
    verdicts = check_nets(kind, range(1000, 2500))
    assert verdicts["accepted"] > 100


# --- tangents and rays ------------------------------------------------------------------------------------------------


def check_tangents(kind: str, seeds: range) -> int:
    """Hold the derivatives that tangents carry against differences; return how many nets had some."""
    carried = 0
    for seed in seeds:
        net, x, v = draw_net(seed, kind), draw(1, WIDTH, seed=seed), draw(2, 1, WIDTH, seed=seed + 1)
        if not is_model(net) or survey(net, draw(5, WIDTH, seed=seed)) == "refused":
            continue
        try:
            out = forward_with_interception(net, Dual(x.clone(), v.clone()), lambda call: None)
        except ModelContractError:
            continue
        if not isinstance(out, Dual):
            continue
        h = 1e-6
        before, after = (torch.stack([net(x + side * h * one) for one in v]) for side in (-1, 1))
        one_sided = (after - net(x)) / h, (net(x) - before) / h
        smooth = (one_sided[0] - one_sided[1]).abs() <= 1e-3 * (1 + one_sided[0].abs())
        error = (out.tangent - (after - before) / (2 * h)).abs() / (1 + out.tangent.abs())
        assert (error[smooth] < 1e-5).all(), f"{kind} {seed}: {net}"
        carried += 1
    return carried


@pytest.mark.parametrize(("kind", "least"), [("counted", 30), ("hiding", 15), ("any", 25)])
def test_tangents_are_the_slopes_of_the_values(kind, least):
    assert check_tangents(kind, range(40)) >= least


def count_by_samples(net: nn.Module, x: torch.Tensor, radius: float, frame: torch.Tensor) -> int:
    """Units of one point that change sign on any of the rays, by dense samples."""
    changed: dict[str, torch.Tensor] = {}
    t = torch.linspace(-radius, radius, 401, dtype=torch.float64)[:, None]

    def on_call(call) -> None:
        sides = torch.stack([(call.z > kink).flatten(1) for kink in call.kinks])
        changes = sides.any(1) & ~sides.all(1)
        changed[call.layer] = changes | changed.get(call.layer, torch.zeros_like(changes))

    for direction in frame:
        forward_with_interception(net, x + t * direction, on_call)
    return sum(int(changes.sum()) for changes in changed.values())


def test_rays_count_what_dense_samples_see():
    found = [0, 0]
    for seed in range(25):
        net, x = draw_net(seed, "counted"), draw(1, WIDTH, seed=seed)
        frame = torch.linalg.qr(draw(WIDTH, 3, seed=seed)).Q.T
        try:
            rays = int(local_complexity(net, x, 0.7, method="ray", frame=frame).counts.sum())
        except ModelContractError as error:
            assert "not continuous" in str(error) or "stale" in str(error), net
            continue
        samples = count_by_samples(net, x, 0.7, frame)
        vertices = int(local_complexity(net, x, 0.7, method="vertex", frame=frame).counts.sum())
        assert vertices <= samples + 1 and samples <= rays, f"{seed}: {net}"
        found[0], found[1] = found[0] + samples, found[1] + rays
    assert 0.97 * found[1] <= found[0] > 30
