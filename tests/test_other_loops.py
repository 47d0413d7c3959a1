"""The code of docs/other-loops.md: the blocks for frameworks that are not installed here are compiled at least; where
Lightning or transformers are there, they run, and a run is the plain loop's, bit for bit, also after a stop."""

import ast
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import grokkit as gk
from grokkit.policies import Decision, Observation
from grokkit.policies.simulate import simulate

PAGE = Path(__file__).resolve().parents[1] / "docs" / "other-loops.md"
BLOCKS = {name or "plain": code for name, code in re.findall(r"```python ?(\w*)\n(.*?)```", PAGE.read_text(), re.S)}
STEPS, STOP, ROWS = 60, 23, 64  # the stop lies within an epoch of 8 batches, and between two readings


@dataclass(frozen=True)
class Nervous:
    """Every reading and every slope moves the rate: one that is missed, late or heard twice shows at once."""

    def init(self) -> dict[str, Any]:
        return {"scale": 1.0}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        if "log_density" not in observation.readings:
            return Decision(state["scale"], state)
        slope = float(np.nan_to_num(observation.readings["log_density_slope"]))
        scale = float(np.exp(0.1 * np.tanh(observation.readings["log_density"]) - 0.1 * np.tanh(slope)))
        return Decision(scale, {"scale": scale}, f"heard {observation.readings['log_density']:.17g} and {slope:.17g}")


POLICIES = {"nervous": Nervous(), "step": gk.policies.create("step", milestones=(0.3, 0.5))}


@dataclass
class Course:
    """What a loop did: the rate of every update that it made itself, all decisions, the weights at the end."""

    rates: list[float]
    decisions: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]

    def goes_on_as(self, straight: "Course", start: int = 0) -> None:
        assert self.rates == straight.rates[start:]
        assert self.decisions == straight.decisions
        assert all(torch.equal(self.weights[name], value) for name, value in straight.weights.items())


def plain(net: nn.Module, space: dict[str, Any], micro: int, logits: Callable = lambda found: found) -> Course:
    """The page's first loop on one batch that comes `micro` times in an update."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    policy = gk.PolicyLR(optimizer, space["lc_policy"], total_steps=STEPS)
    told = space["Logits"](net) if "Logits" in space else net
    signal = gk.LocalComplexitySignal(told, space["x"], space["signal_config"])
    heard, rates = {}, []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        for _ in range(micro):
            (cross_entropy(logits(net(space["x"][:ROWS])), space["y"][:ROWS]) / micro).backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        news = signal(step)
        policy.observe(news)
        heard |= {step: news} if news else {}
        policy.step()
    items = [heard.get(step, {}) for step in range(1, STEPS)]
    assert simulate(space["lc_policy"], items, STEPS, base_lr=0.1).rates.tolist() == pytest.approx(rates)
    return Course(rates, policy.decisions, {name: value.clone() for name, value in net.state_dict().items()})


def run_blocks(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the first block and the framework's leave behind."""
    pytest.importorskip(framework, reason=f"{framework} is not installed; its block is only compiled")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    for block in ("plain", framework):
        exec(compile(BLOCKS[block], f"{PAGE.name}:{block}", "exec"), space)
    return space


def test_a_recorded_loop_keeps_every_rate_and_decision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    for block in ("plain", "recorder"):
        exec(compile(BLOCKS[block], f"{PAGE.name}:{block}", "exec"), space)
    run = gk.open_run("runs/lc_hold")
    news, decisions = gk.signal_history("runs/lc_hold"), space["policy"].decisions
    told = [(event["step"], event["text"], event["lr"]) for event in run.events if event["kind"] == "policy"]
    assert told == [(each["step"], each["reason"], each["lr"]) for each in decisions] and len(told) >= 2
    assert [step for step, _ in news] == [1, *range(10, 201, 10)]
    assert space["policy"].state_dict()["_policy_state"]["probes"] >= 10, "the policy was told"
    by_step = dict(news)
    twin = simulate(space["lc_policy"], [by_step.get(step, {}) for step in range(1, 200)], 200, base_lr=0.1)
    rates = run.metrics.query("metric == 'learning_rate'")["value"].tolist()
    assert rates == pytest.approx(twin.rates.tolist())
    assert gk.figures.create("policy", gk.figure_data([run])) is not None


@pytest.mark.parametrize("name", ["plain", "recorder", "lightning", "transformers"])
def test_a_block_compiles_and_names_only_what_grokkit_has(name):
    tree = ast.parse(BLOCKS[name])
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grokkit"):
            assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gk":
            assert hasattr(gk, node.attr), f"grokkit has no {node.attr}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_takes_the_path_of_the_plain_loop(tmp_path, monkeypatch):
    space = run_blocks("lightning", tmp_path, monkeypatch)
    assert space["policy"].updates == space["model"].lr_schedulers().updates == 200
    for name, policy in POLICIES.items():
        for micro in (1, 2):
            space |= {"lc_policy": policy, "signal_config": gk.Signal(every=5, points=16)}
            folder = tmp_path / f"{name}-{micro}"
            torch.manual_seed(1)
            twin = plain(space["Digits"]().net, space, micro)
            torch.manual_seed(1)
            _fit(space, folder, micro).goes_on_as(twin)
            _fit(space, folder, micro, folder / f"step={STOP}.ckpt").goes_on_as(twin, STOP)


def _fit(space: dict[str, Any], folder: Path, micro: int, checkpoint: Path | None = None) -> Course:
    lightning, rates = space["lightning"], []

    class Rates(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    saves = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, filename="{step}", every_n_train_steps=STOP, save_top_k=-1
    )
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=micro,
        callbacks=[Rates(), saves],
    )
    rows = [(space["x"][i % ROWS], space["y"][i % ROWS]) for i in range(8 * ROWS)]
    batches = torch.utils.data.DataLoader(rows, batch_size=ROWS)
    module = space["Digits"]()
    trainer.fit(module, batches, ckpt_path=checkpoint)
    return Course(rates, module.lr_schedulers().decisions, module.net.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer_takes_the_path_of_the_plain_loop(tmp_path, monkeypatch):
    space = run_blocks("transformers", tmp_path, monkeypatch)
    assert space["policy"].updates == 200 and Path("runs/hf/checkpoint-200/signal.pt").exists()
    for name, policy in POLICIES.items():
        for micro in (1, 2):
            space |= {"lc_policy": policy, "signal_config": gk.Signal(every=5, points=16)}
            folder = tmp_path / f"{name}-{micro}"
            twin = plain(_resnet(space, seed=1).train(), space, micro, lambda found: found.logits)
            _train(space, folder, micro, seed=1).goes_on_as(twin)
            _train(space, folder, micro, seed=2, checkpoint=folder / f"checkpoint-{STOP}").goes_on_as(twin, STOP)


def _resnet(space: dict[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return space["ResNetForImageClassification"](space["model"].config)


def _train(space: dict[str, Any], folder: Path, micro: int, seed: int, checkpoint: Path | None = None) -> Course:
    rates = []

    class Rates(space["TrainerCallback"]):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
            rates.append(optimizer.param_groups[0]["lr"])

    args = space["TrainingArguments"](
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=micro,
        save_steps=STOP,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        max_grad_norm=0,
        train_sampling_strategy="sequential",
    )
    model = _resnet(space, seed)
    model.accepts_loss_kwargs = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy = gk.PolicyLR(optimizer, space["lc_policy"], total_steps=STEPS)
    signal_callback = space["SignalCallback"](
        gk.LocalComplexitySignal(space["Logits"](model), space["x"], space["signal_config"])
    )
    rows = [{"pixel_values": space["x"][i % ROWS], "labels": space["y"][i % ROWS]} for i in range(8 * ROWS)]
    trainer = space["Trainer"](
        model, args, train_dataset=rows, optimizers=(optimizer, policy), callbacks=[signal_callback, Rates()]
    )
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return Course(rates, policy.decisions, model.state_dict())
