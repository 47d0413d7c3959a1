"""What a policy hears: level, error, slope with its interval, at fixed points; and OUI by its formula."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import grokkit as gk
from grokkit.errors import ModelContractError, UsageError
from grokkit.measures.oui import gate_distances
from grokkit.recording.signal import check_policy_readings
from grokkit.stats.trends import SLOPE_RESAMPLES, fit_slope, log_mean, theil_sen
from tests.reference.patterns import patterns


def test_log_mean_is_the_log_of_the_mean_with_the_error_of_the_delta_method():
    value, error = log_mean(np.array([1.0, 2.0, 3.0]))
    assert value == pytest.approx(math.log(2)) and error == pytest.approx(1 / math.sqrt(3) / 2)
    assert log_mean(np.zeros(4)) == (-math.inf, math.inf)
    assert log_mean(np.array([2.0])) == (math.log(2), math.inf)
    assert log_mean(np.array([2.0, math.inf])) == (math.inf, math.inf)
    assert math.isnan(log_mean(np.array([2.0, math.nan]))[0])


def test_the_error_is_the_spread_over_samples_of_points():
    rng = np.random.default_rng(0)
    population = rng.gamma(4.0, size=100_000)
    found = [log_mean(rng.choice(population, 128)) for _ in range(2000)]
    values, errors = np.array(found).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.05)


def test_theil_sen_is_the_one_of_scipy_and_takes_an_outlier():
    rng = np.random.default_rng(1)
    x, y = np.sort(rng.normal(size=(2, 9)), axis=1)
    assert theil_sen(x, y) == pytest.approx(stats.theilslopes(y, x)[0])
    line = 3.0 * np.arange(8.0)
    line[5] += 100
    assert theil_sen(np.arange(8.0), line) == pytest.approx(3.0)
    both = theil_sen(np.arange(8.0), np.stack([line, -line]))
    assert both.tolist() == pytest.approx([3.0, -3.0])


def test_slope_of_an_exact_power_law_is_its_exponent_without_an_interval():
    steps = [100, 200, 400, 800]
    values = np.array([[s**-0.7 * factor for factor in (1.0, 2.0, 5.0)] for s in steps])
    found = fit_slope(steps, values)
    assert found == pytest.approx((-0.7, -0.7, -0.7))
    assert fit_slope(steps, values, scales=[float(s) for s in steps]) == pytest.approx((-1.7, -1.7, -1.7))


def test_slope_of_fewer_than_two_readings_is_none():
    assert all(math.isnan(end) for end in fit_slope([], np.empty((0, 3)))) and math.isnan(
        fit_slope([5], np.ones((1, 3))).value
    )


def _course(rng, points: int, trend: float) -> tuple[list[int], np.ndarray]:
    """Points of very different height, each with a trend of its own around the common one."""
    steps = [200 * k for k in range(8, 16)]
    heights, trends = rng.lognormal(0, 1, points), rng.normal(trend, 1.0, points)
    return steps, heights * np.exp(trends * np.log(np.array(steps)[:, None] / steps[0]))


def test_the_interval_covers_the_trend_of_the_population():
    rng = np.random.default_rng(2)
    steps, everything = _course(rng, 200_000, -0.3)
    truth = fit_slope(steps, everything[:, :20_000]).value
    chosen = [rng.choice(everything.shape[1], 128) for _ in range(300)]
    ends = np.array([fit_slope(steps, everything[:, own])[1:] for own in chosen])
    covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
    assert 0.88 <= covered <= 0.99


def test_the_points_being_the_same_is_used_by_the_interval():
    steps, values = _course(np.random.default_rng(3), 128, -0.3)
    mixed = np.stack([np.random.default_rng(k).permutation(row) for k, row in enumerate(values)])
    paired, unpaired = fit_slope(steps, values), fit_slope(steps, mixed)
    assert paired.value == pytest.approx(unpaired.value)
    assert unpaired.high - unpaired.low > 1.3 * (paired.high - paired.low)


def test_samples_without_a_crossing_are_left_out_up_to_half_of_them():
    # one point of two is crossed: a quarter of the samples miss it, and two such rows miss more than half
    steps, row = [1, 2], np.array([1.0, 0.0])
    assert np.isfinite(fit_slope(steps, np.stack([row, 2 * row]))).all()
    few = np.array([1.0, *[0.0] * 9])
    assert np.isfinite(fit_slope(steps, np.stack([few, few]))).all()
    found = fit_slope(steps, np.stack([few, few[::-1]]))
    assert found.value == 0.0 and math.isnan(found.low) and math.isnan(found.high)
    assert SLOPE_RESAMPLES == 200


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 4))
    with torch.no_grad():
        net[1].bias[0] = -100.0
    return net


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(40, 1, 3, 3, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(40) % 4
SMALL = gk.Signal(every=10, points=30, directions=4, quantities=("density", "loss", "oui"), window=3)


def test_the_density_is_the_median_over_radii_of_complexity_per_radius_and_live_unit(net, images):
    readings = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS, seed=5).read(0)
    found = [
        gk.local_complexity(net, images[:30], radius=r, directions=4, method="tangent", seed=5) for r in SMALL.radii
    ]
    counts = [each.counts.sum(1).double().numpy() for each in found]
    density = np.median([count / r for count, r in zip(counts, SMALL.radii, strict=True)], axis=0)
    live = sum(found[0].live_units.values())
    assert live < 35, "a dead unit makes the difference"
    assert readings["log_density"] == pytest.approx(math.log(density.mean() / live))
    assert readings["log_density_se"] == pytest.approx(density.std(ddof=1) / math.sqrt(30) / density.mean())


def test_the_loss_is_that_of_the_points_in_eval_mode(net, images):
    model = nn.Sequential(net, nn.Dropout(0.5))
    model.train()
    readings = gk.LocalComplexitySignal(model, images, SMALL, labels=LABELS, loss="mse").read(0)
    with torch.no_grad():
        each = (net(images[:30]) - nn.functional.one_hot(LABELS[:30], 4)).square().mean(1)
    assert readings["log_loss"] == pytest.approx(math.log(each.mean()), rel=1e-5)
    assert readings["log_loss_se"] == pytest.approx(float(each.std() / each.mean()) / math.sqrt(30), rel=1e-4)
    assert model.training


def _oui(net: nn.Module, images: torch.Tensor, layers: list[int]) -> float:
    """By the published formula, pair by pair."""
    rows, total = patterns(net, images), 0.0
    parts = rows.split(layers, dim=1)
    pairs = [(i, j) for i in range(len(images)) for j in range(len(images)) if i != j]
    for part in parts:
        for i, j in pairs:
            total += min(float((part[i] != part[j]).double().mean()), 0.5)
    return 2 * total / (len(layers) * len(pairs))


def test_oui_is_that_of_the_formula(net, images):
    expected = _oui(net, images[:30], [20, 15])
    assert gate_distances(net, images[:30]).mean() == pytest.approx(expected, rel=1e-12)
    readings = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS).read(0)
    assert readings["log_oui"] == pytest.approx(math.log(expected))


def test_oui_is_0_for_a_linear_net_and_1_for_opposite_gates(images):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(9, 20), nn.ReLU())
    with torch.no_grad():
        linear[1].bias.fill_(100.0)
    assert gate_distances(linear, images).mean() == 0.0
    assert gate_distances(nn.ReLU(), torch.tensor([[-1.0, 1.0], [1.0, -1.0]])).mean() == 1.0
    assert gate_distances(nn.ReLU(), torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0]])).mean() == 0.5
    # of the kinks at -1 and 1 all gates differ at the second alone
    assert gate_distances(nn.Hardtanh(), torch.tensor([[0.0, 0.0], [2.0, 2.0]])).mean() == 0.5


def test_the_error_of_oui_is_its_spread_over_samples_of_images(net):
    generator = torch.Generator().manual_seed(2)
    samples = [gate_distances(net, torch.rand(40, 9, generator=generator)) for _ in range(300)]
    means = np.array([each.mean() for each in samples])
    errors = np.array([each.std(ddof=1) / math.sqrt(40) for each in samples])
    assert errors.mean() == pytest.approx(means.std(), rel=0.12)


def test_oui_says_what_it_cannot_compare(net, images):
    with pytest.raises(UsageError, match="at least 2; got 1"):
        gate_distances(net, images[:1])
    with pytest.raises(ModelContractError, match="no activation that grokkit counts"):
        gate_distances(nn.Flatten(), images)
    with pytest.raises(UsageError, match="`points` must be at least 2"):
        gk.measures.create("oui", points=1)


def _trained(net, signal, first: int, last: int) -> list[dict[str, float]]:
    """Readings while the weights move along a fixed path."""
    told = []
    for step in range(first, last):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.01).add_(0.02 * math.sin(step))
        readings = signal(step)
        if readings is not None:
            told.append(readings)
    return told


def _same(a, b) -> bool:
    return repr(a) == repr(b)


def test_it_is_read_where_it_is_due_and_has_a_slope_from_the_second_reading_on(net, images):
    signal = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS)
    assert not signal.is_due(5) and signal(5) is None
    first, second, third = signal(0), signal(10), signal(20)
    assert list(first) == [
        f"log_{name}{end}"
        for name in ("density", "loss", "oui")
        for end in ("", "_se", "_slope", "_slope_low", "_slope_high")
    ]
    assert math.isnan(first["log_density_slope"]) and math.isnan(second["log_density_slope_high"])
    assert third["log_density_slope"] == third["log_density_slope_low"] == 0.0, "the net did not change"


def test_the_slope_is_that_of_the_last_readings_alone(net, images):
    signal = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS)
    told = _trained(net, signal, 1, 61)
    steps = [40, 50, 60]
    levels = [each["log_loss"] for each in told[-3:]]
    assert told[-1]["log_loss_slope"] == pytest.approx(stats.theilslopes(levels, np.log(steps))[0])


def test_the_slope_is_of_the_density_per_unit_that_lives_at_its_reading(net, images):
    signal = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS)
    first = signal.read(10)["log_density"]
    with torch.no_grad():
        net[1].bias[0] = 0.0
    second = signal.read(20)
    assert second["log_density_slope"] == pytest.approx((second["log_density"] - first) / math.log(2))


@pytest.mark.parametrize("stop", [1, 10, 11, 35, 60])
def test_it_goes_on_from_its_state_exactly(net, images, stop):
    begin = copy.deepcopy(net.state_dict())
    whole = _trained(net, gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS), 1, 71)
    net.load_state_dict(begin)
    before = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS)
    told = _trained(net, before, 1, stop)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS)
    after.load_state_dict(torch.load(file, weights_only=True))
    assert _same(told + _trained(net, after, stop, 71), whole)


def test_a_step_that_is_read_again_takes_its_own_place(net, images):
    signal = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS)
    _trained(net, signal, 1, 31)
    assert _same(signal.read(30), signal.read(30))


def test_a_net_without_crossings_reads_as_minus_infinity_and_keeps_no_row(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 20), nn.ReLU())
    with torch.no_grad():
        net[1].bias.fill_(1000.0)
    signal = gk.LocalComplexitySignal(net, images, gk.Signal(every=1))
    for step in range(3):
        assert signal(step)["log_density"] == -math.inf and math.isnan(signal(step)["log_density_slope"])


def test_the_ten_lines_of_the_readme_steer_a_rate(net, images):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    signal = gk.LocalComplexitySignal(net, images, gk.Signal(every=5))
    policy = gk.PolicyLR(optimizer, "lc_hold", total_steps=60)
    for step in range(1, 61):
        nn.functional.cross_entropy(net(images), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.observe(signal(step))
        policy.step()
    state = policy.state_dict()["_policy_state"]
    assert state["probes"] == 9, "twelve readings, of which three came when the last fall had begun"
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 1e-4)


def test_what_a_run_heard_is_told_to_a_yoked_policy(tmp_path):
    config = gk.RunConfig(
        experiment="yoke",
        data=gk.spec("digits", train=60),
        model=gk.spec("mlp", widths=(16,)),
        steps=40,
        batch_size=30,
        probes={"train": 40, "test": 0, "random": 0},
        records=2,
        signal={"every": 4, "points": 20, "directions": 3},
        policy=gk.spec("lc_wsd", min_stable=0.0, patience=1, errors=0.0, range_share=0.2),
    )
    donor = gk.train(config, runs=tmp_path, device="cpu")
    news = gk.signal_history(donor)
    assert [step for step, _ in news] == [1, *range(4, 41, 4)]
    assert news[3][1]["log_density"] == donor.metrics.query("metric == 'log_density' and step == 12").value.item()
    yoked = config.replace(seed=1, policy=gk.spec("yoked", policy=config.policy, news=news), signal={})
    assert gk.RunConfig.from_toml(yoked.to_toml()).run_name == yoked.run_name
    assert _same(gk.signal_history(donor.path), news)
    twin = gk.train(yoked, runs=tmp_path, device="cpu")
    rates = [run.metrics.query("metric == 'learning_rate'").value.tolist() for run in (donor, twin)]
    assert rates[0] == rates[1]
    assert [event["text"] for event in donor.events if event["kind"] == "policy"] == [
        event["text"] for event in twin.events if event["kind"] == "policy"
    ]
    assert any("peaked" in event["text"] for event in twin.events), "otherwise the test says nothing"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"every": 0}, "`every` of a signal"),
        ({"points": 1}, "`points`"),
        ({"radii": ()}, "`radii`"),
        ({"radii": 0.05}, "`radii`"),
        ({"radii": (0.1, -1.0)}, "`radii`"),
        ({"directions": 0}, "`directions`"),
        ({"window": 1}, "`window`"),
        ({"quantities": ()}, "`quantities`"),
        ({"quantities": "loss"}, "`quantities`"),
        ({"quantities": 3}, "`quantities`"),
        ({"radii": ("a",)}, "`radii`"),
        ({"radii": (math.inf,)}, "`radii`"),
        ({"quantities": ("los",)}, "Did you mean 'loss'"),
        ({"quantities": (3,)}, "got '3'"),
    ],
)
def test_a_signal_says_what_it_takes(wrong, words):
    with pytest.raises(UsageError, match=words):
        gk.Signal(**wrong)


def test_a_signal_without_images_or_labels_is_refused(net, images):
    for wrong in (images[:1], images.numpy()):
        with pytest.raises(UsageError, match="tensor of at least 2 images; got"):
            gk.LocalComplexitySignal(net, wrong)
    for wrong in (None, LABELS[:3], LABELS.float(), LABELS.tolist()):
        with pytest.raises(UsageError, match="int64 tensor with a label for each of the 40 images; got"):
            gk.LocalComplexitySignal(net, images, SMALL, labels=wrong)
    for wrong in (-1, "a", 1.5):
        with pytest.raises(UsageError, match="`seed` of a signal must be an int of 0 or more; got"):
            gk.LocalComplexitySignal(net, images, seed=wrong)
    with pytest.raises(UsageError, match=r"must be a gk\.Signal or a mapping of its fields; got 20"):
        gk.LocalComplexitySignal(net, images, 20)
    assert gk.LocalComplexitySignal(net, images, {"every": 20}).signal == gk.Signal(every=20)


def test_a_net_without_countable_units_is_refused_at_the_first_reading(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    with pytest.raises(ModelContractError, match="no activation that grokkit counts"):
        gk.LocalComplexitySignal(net, images).read(0)


BOTH = {"name": "dry_run", "policy": {"name": "lc_wsd", "reading": "log_oui"}, "instead": "lc_hold"}


@pytest.mark.parametrize(
    ("policy", "told", "words"),
    [
        (
            "lc_hold",
            {},
            r"needs the readings log_density, and this run provides train_loss\. .*'quantities': \('density',\)",
        ),
        (BOTH, {"signal": gk.Signal(quantities=("oui",))}, r"provides train_loss, log_oui\. .*: \('oui', 'density'\)"),
        ({"name": "lc_wsd", "reading": "log_los"}, {"signal": SMALL}, "A run can provide .*Did you mean 'log_loss'"),
        ({"name": "plateau", "reading": "validation_los"}, {}, "Did you mean 'validation_loss'"),
        ({"name": "plateau", "reading": "validation_loss"}, {}, "Hold out validation images"),
        (
            {"name": "guard", "policy": "constant", "loss": "loss"},
            {},
            "A run can provide train_loss, validation_loss, log_density",
        ),
    ],
)
def test_a_run_that_never_tells_a_policy_what_it_listens_to_is_refused(policy, told, words):
    asked = {"signal": None, "validation": False} | told
    with pytest.raises(UsageError, match=words):
        check_policy_readings(gk.policies.as_policy(policy), **asked)


def test_what_a_run_tells_is_enough():
    for policy in (
        "constant",
        "plateau",
        "greedy",
        {"name": "sham", "policy": "lc_hold"},
        {"name": "yoked", "policy": "lc_hold", "news": [(1, {"log_density": 1.0})]},
    ):
        check_policy_readings(gk.policies.as_policy(policy), None, False)
    check_policy_readings(gk.policies.as_policy("lc_hold"), gk.Signal(), False)
    check_policy_readings(gk.policies.create("plateau", reading="validation_loss"), None, True)


def test_such_a_run_leaves_no_folder(tmp_path):
    with pytest.raises(UsageError, match="needs the readings log_density"):
        gk.train(LONELY, runs=tmp_path, device="cpu")
    assert not list(tmp_path.iterdir())


LONELY = gk.RunConfig(
    experiment="lonely",
    data=gk.spec("digits", train=60),
    model=gk.spec("mlp", widths=(16,)),
    steps=10,
    batch_size=30,
    policy=gk.spec("lc_hold"),
)


def test_a_recorder_tells_the_reading_of_step_0_once(tmp_path):
    data = gk.load_data("digits", train=60)
    probes = gk.probe_sets(data, train=20, test=0, random=0)
    net = gk.models.create("mlp", data.input_shape, 10, widths=(16,))
    asked = {"probes": probes, "measures": ("accuracy",), "schedule": [0, 3], "signal": {"every": 2, "points": 20}}
    with gk.record(tmp_path / "a", net, **asked) as recorder:
        told = [recorder.step(step) for step in range(1, 4)]
    news = gk.signal_history(tmp_path / "a")
    levels = [each["log_density"] for each in told[:2]]
    assert levels == [each["log_density"] for _, each in news] and told[2] is None
    assert [step for step, _ in news] == [1, 2]
    with gk.record(tmp_path / "b", net, **asked) as recorder:
        assert recorder.pop_first_readings()["log_density"] == levels[0]
        assert recorder.pop_first_readings() is recorder.step(1) is None
    with gk.record(tmp_path / "c", net, **{**asked, "signal": {"every": 1, "points": 20}}) as recorder:
        assert recorder.step(1) is not None and recorder.pop_first_readings() is None, "the newer ones stand for them"


def test_its_points_stay_when_the_caller_shuffles_his_images(net, images):
    signal = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS.clone())
    before = signal.read(0)
    images.copy_(images.flip(0))
    assert _same(signal.read(0), before)


def test_a_state_of_another_signal_is_refused_and_an_empty_one_is_a_fresh_start(net, images):
    signal = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS)
    signal.read(10)
    state = signal.state_dict()
    with pytest.raises(
        UsageError, match=r"with every 10, .*'loss', 'oui'\].*; this signal has every 200, .*\['density'\]"
    ):
        gk.LocalComplexitySignal(net, images).load_state_dict(state)
    for others in (images[:20], images.flip(0)):
        with pytest.raises(UsageError, match=r"other images than the [23]0 of this signal"):
            gk.LocalComplexitySignal(net, others, SMALL, labels=LABELS[: len(others)]).load_state_dict(state)
    with pytest.raises(UsageError, match=r"a signal with seed 0; this signal has seed 1\. "):
        gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS, seed=1).load_state_dict(state)
    with pytest.raises(UsageError, match="saved by a signal with every None"):
        signal.load_state_dict({"density": []})
    nearly = gk.LocalComplexitySignal(net, images * (1 + 1e-6), SMALL, labels=LABELS)
    nearly.load_state_dict(state)  # as pixels of another device are
    signal.load_state_dict({})
    assert math.isnan(signal.read(20)["log_density_slope"])


def test_a_state_is_of_plain_numbers_whatever_the_choices_came_as(net, images):
    radii = tuple(np.geomspace(0.02, 0.1, 3))
    signal = gk.LocalComplexitySignal(net, images, {"every": 1, "radii": list(radii), "quantities": ["density"]})
    signal.read(1)
    file = io.BytesIO()
    torch.save(signal.state_dict(), file)
    file.seek(0)
    again = gk.LocalComplexitySignal(net, images, gk.Signal(every=1, radii=radii))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert _same(again.read(2), signal.read(2)) and math.isfinite(signal.read(2)["log_density_slope"])


@pytest.mark.parametrize(("loss", "wrong"), [("cross_entropy", math.nan), ("mse", math.inf)])
def test_a_loss_that_is_not_finite_does_not_stay_in_the_window(net, images, loss, wrong):
    signal = gk.LocalComplexitySignal(net, images, SMALL, labels=LABELS, loss=loss)
    signal.read(5), signal.read(10)
    kept = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net[5].bias[0] = wrong
    found = signal.read(20)
    assert not math.isfinite(found["log_loss"]) and math.isnan(found["log_loss_slope"])
    net.load_state_dict(kept)
    assert math.isfinite(signal.read(30)["log_loss_slope_high"])
