"""A tensor left on another device is named with both devices and the usual cause; `meta` stands for the other one."""

import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.config.run_config import spec
from grokkit.device import placement
from grokkit.device.placement import check_placement, explain_device_mismatch
from grokkit.errors import PlacementError
from grokkit.models.resnet import resnet18
from grokkit.training import loop
from tests.runs import SMALL, contents

CPU, META = torch.device("cpu"), torch.device("meta")
BARE = {"measures": (), "attributions": (), "policy": spec("constant"), "signal": {}}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


class PlainList(nn.Module):
    """Its second layer is in a list that torch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(4, 3), [{"second": nn.Linear(3, 2)}]

    def forward(self, x):
        return self.rest[0]["second"](self.first(x))


class MadeInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) + torch.ones(2, device="cpu")


def refused(*arguments, **batch) -> str:
    with pytest.raises(PlacementError) as error:
        check_placement(*arguments, **batch)
    assert error.value.exit_code == 3
    return str(error.value)


def test_all_on_one_device_is_no_error() -> None:
    for device in (CPU, META):
        model = net().to(device)
        optimizer = torch.optim.Adam(model.parameters())
        check_placement(device, model, optimizer, x=torch.ones(2, 4, device=device))
    model(torch.ones(2, 4, device=META)).sum().backward()
    optimizer.step()
    assert {state["step"].device for state in optimizer.state.values()} == {CPU}, "as torch keeps it"
    check_placement(META, nn.DataParallel(model), optimizer)


def test_a_part_that_was_moved_back_is_named() -> None:
    model = net().to(META)
    model[2] = nn.Linear(3, 2)
    told = refused(META, model)
    assert told.startswith(
        "parameter 2.weight of the model is on cpu, and the run is on meta. The usual cause: a .to()"
    )
    model = net()
    model[1].running_var = model[1].running_var.to(META)
    assert refused(CPU, model).startswith("buffer 1.running_var of the model is on meta, and the run is on cpu")


def test_a_module_in_a_plain_list_is_named() -> None:
    told = refused(META, PlainList().to(META))
    assert told.startswith("rest[0]['second'].weight of the model is on cpu, and the run is on meta")
    assert "nn.ModuleList" in told


def test_a_tensor_made_in_forward_is_explained_and_other_errors_are_not_touched() -> None:
    model = MadeInForward().to(META)
    with pytest.raises(PlacementError, match=r"the first update mixes devices: .*device=x.device"):
        explain_device_mismatch(lambda: model(torch.ones(2, 4, device=META)))
    with pytest.raises(RuntimeError, match="a and b must have same"):
        explain_device_mismatch(lambda: model(torch.ones(2, 5)))
    assert "device=x.device" in refused(META, model, logits=torch.ones(2, 2))


def test_an_optimizer_made_before_the_move_is_named() -> None:
    model = net()
    early = torch.optim.SGD([parameter.detach().clone() for parameter in model.parameters()], lr=0.1)
    told = refused(META, model.to(META), early)
    assert told.startswith("the optimizer's parameter group 0, number 0 is on cpu") and "create it afterwards" in told


def test_optimizer_state_left_behind_is_named() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    optimizer.state[model[0].bias]["exp_avg_sq"] = torch.zeros(3, device=META)
    assert refused(CPU, model, optimizer).startswith("the optimizer's exp_avg_sq of 0.bias is on meta")


def test_a_batch_that_was_not_moved_is_named() -> None:
    told = refused(META, net().to(META), x=torch.ones(2, 4))
    assert told == (
        "the batch's x is on cpu, and the run is on meta. The usual cause: the batch was not moved with .to(device)"
    )


def test_another_gpu_is_another_device() -> None:
    assert not placement._is_on(torch.device("cuda:1"), torch.device("cuda:0"))
    assert placement._is_on(torch.device("cuda:1"), torch.device("cuda")) and not placement._is_on(CPU, META)


def test_a_large_net_is_looked_at_whole() -> None:
    model = resnet18((3, 32, 32), 10, width=4).to(META)
    check_placement(META, model)
    list(model.modules())[-1].weight = nn.Parameter(torch.zeros(1))
    assert "is on cpu" in refused(META, model)


def test_a_run_checks_at_its_start_after_the_first_update_and_later_again(tmp_path, monkeypatch) -> None:
    checked = []
    monkeypatch.setattr(placement, "CHECK_INTERVAL", 10)
    check = loop.check_placement
    monkeypatch.setattr(
        loop, "check_placement", lambda *a, **batch: checked.append(sorted(batch)) or check(*a, **batch)
    )
    run = gk.train(SMALL.replace(**BARE), runs=tmp_path / "a", device="cpu")
    whole = ["logits", "loss", "x", "y"]
    assert checked == [[], whole, whole, whole], "before step 1, behind 1, 10 and 20"
    monkeypatch.setattr(loop, "check_placement", lambda *a, **batch: None)
    assert contents(gk.train(SMALL.replace(**BARE), runs=tmp_path / "b", device="cpu").path) == contents(run.path)


def test_a_run_with_a_tensor_elsewhere_ends_as_failed(tmp_path, monkeypatch) -> None:
    build = loop.build_trainer

    def misplaced(*arguments, **named):
        trainer = build(*arguments, **named)
        trainer.model.net.kept = [nn.Linear(1, 1, device="meta")]
        return trainer

    monkeypatch.setattr(loop, "build_trainer", misplaced)
    with pytest.raises(PlacementError, match=r"net.kept\[0\].weight of the model is on meta, and the run is on cpu"):
        gk.train(SMALL.replace(**BARE), runs=tmp_path, device="cpu")
    assert not any(tmp_path.rglob("*.h5")), "nothing was recorded: the mended run is to have its name"
