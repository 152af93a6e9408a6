"""Optimizers and learning-rate schedules."""

import io
import math
import warnings

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from dassl.optim.radam import AdamW, PlainRAdam, RAdam
from dassl.utils import UserError
from torch import nn


def optim_cfg(**keys):
    node = get_cfg_default().OPTIM
    for key, value in keys.items():
        setattr(node, key, value)
    return node


def build(node, model=None):
    optimizer = build_optimizer(model or nn.Linear(2, 2), node)
    return optimizer, build_lr_scheduler(optimizer, node)


def rates(node, epochs):
    """The learning rate in each epoch, as optimizer and schedule tell it."""
    optimizer, scheduler = build(node)
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == [seen[-1]]
        optimizer.step()
        scheduler.step()
    return seen


def cosine(epoch, max_epoch, lr=2e-3):
    return lr * (1 + math.cos(math.pi * epoch / max_epoch)) / 2


LINEAR = {"LR": 2e-3, "LR_SCHEDULER": "cosine", "MAX_EPOCH": 70, "WARMUP_EPOCH": 4, "WARMUP_TYPE": "linear"}
CONSTANT = {
    "LR": 2e-3,
    "LR_SCHEDULER": "cosine",
    "MAX_EPOCH": 50,
    "WARMUP_EPOCH": 1,
    "WARMUP_TYPE": "constant",
}


def test_cosine_after_linear_warmup():
    seen = rates(optim_cfg(**LINEAR), 70)
    expected = [1e-5, 5e-4, 1e-3, 1.5e-3] + [cosine(e, 70) for e in range(66)]
    assert seen == pytest.approx(expected, abs=1e-9)
    assert [round(lr, 8) for lr in seen[4:7]] == [0.002, 0.00199899, 0.00199597]


def test_cosine_after_constant_warmup():
    seen = rates(optim_cfg(**CONSTANT), 50)
    assert seen == pytest.approx([1e-5] + [cosine(e, 50) for e in range(49)], abs=1e-9)
    assert [round(lr, 8) for lr in seen[1:4]] == [0.002, 0.00199803, 0.00199211]


def test_without_recount_the_decay_starts_at_its_later_epochs_from_the_full_rate():
    seen = rates(optim_cfg(**LINEAR, WARMUP_RECOUNT=False), 70)
    expected = [1e-5, 5e-4, 1e-3, 1.5e-3] + [2e-3 * cosine(e, 70) / cosine(4, 70) for e in range(4, 70)]
    assert seen == pytest.approx(expected, abs=1e-9)
    # As Dassl.pytorch gives them.
    node = optim_cfg(
        **{**LINEAR, "LR": 0.1, "MAX_EPOCH": 10, "WARMUP_EPOCH": 3, "WARMUP_RECOUNT": False, "NAME": "sgd"}
    )
    assert [round(lr, 4) for lr in rates(node, 10)[3:6]] == [0.1, 0.0824, 0.063]


@pytest.mark.parametrize("keys", [{"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5)}, {"STEPSIZE": (3,)}])
def test_steps_within_the_warmup_are_not_made_up_for(keys):
    node = optim_cfg(**keys, LR=1.0, WARMUP_EPOCH=4, WARMUP_TYPE="linear", WARMUP_RECOUNT=False)
    later = 5 if "LR_SCHEDULER" in keys else 6  # the next step after epoch 4
    assert rates(node, 8)[4:] == pytest.approx([1.0 if epoch < later else 0.1 for epoch in range(4, 8)])


@pytest.mark.parametrize(
    ("keys", "torch_scheduler"),
    [
        ({"LR_SCHEDULER": "cosine"}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10)),
        (
            {"LR_SCHEDULER": "single_step", "STEPSIZE": (4,)},
            lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.1),
        ),
        (
            {"LR_SCHEDULER": "single_step", "STEPSIZE": 3},
            lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.1),
        ),
        ({"LR_SCHEDULER": "single_step"}, lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.1)),
        (
            {"LR_SCHEDULER": "multi_step", "STEPSIZE": (3, 6)},
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 6], 0.1),
        ),
    ],
)
def test_without_warmup_the_schedules_are_those_of_torch(keys, torch_scheduler):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=3e-4)
    scheduler, expected = torch_scheduler(optimizer), []
    for _ in range(14):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates(optim_cfg(**keys), 14) == pytest.approx(expected, abs=1e-12)


def test_warmup_is_per_parameter_group():
    model = nn.Sequential()
    model.add_module("old", nn.Linear(2, 2))
    model.add_module("new", nn.Linear(2, 2))
    node = optim_cfg(**LINEAR, STAGED_LR=True, NEW_LAYERS=("new",), BASE_LR_MULT=0.5)
    optimizer, scheduler = build(node, model)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([2.5e-4, 5e-4])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


@pytest.mark.parametrize("keys", [LINEAR, CONSTANT, {"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5)}])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 9])
def test_a_resumed_schedule_goes_on_exactly(keys, stop):
    node = optim_cfg(**keys)
    expected = rates(node, 14)
    optimizer, scheduler = build(node)
    for _ in range(stop):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    optimizer, scheduler = build(node)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    seen = []
    for _ in range(stop, 14):
        assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == expected[stop:]


@pytest.mark.parametrize("recount", [True, False])
def test_the_state_of_dassls_own_warmup_is_understood(recount):
    # Dassl.pytorch: the warm-up stands still at its end, its successor counts on.
    node = optim_cfg(**LINEAR, WARMUP_RECOUNT=recount)
    expected = rates(node, 14)
    for epoch in (2, 4, 9):
        optimizer, scheduler = build(node)
        successor = {"last_epoch": max(epoch - 4, 0) + (0 if recount else 4)}
        state = {"last_epoch": min(epoch, 4), "warmup_epoch": 4, "base_lrs": [2e-3], "successor": successor}
        scheduler.load_state_dict(state)
        assert scheduler.get_last_lr() == pytest.approx([expected[epoch]])


def test_no_warning_when_epochs_step_after_batches():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates(optim_cfg(**LINEAR), 3)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"amsgrad": True}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0, "nesterov": False}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.99}),
        ("radam", RAdam, {"betas": (0.9, 0.999)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "fused": None}),
        ("adamw_fused", torch.optim.AdamW, {"betas": (0.9, 0.999), "fused": True}),
    ],
)
def test_optimizers(name, kind, settings):
    model = nn.Linear(2, 2)
    for parameters in (model, list(model.parameters())):
        optimizer = build_optimizer(parameters, optim_cfg(NAME=name))
        assert type(optimizer) is kind
        group = optimizer.param_groups[0]
        assert {"lr": 3e-4, "weight_decay": 5e-4, **settings}.items() <= group.items()
        assert len(group["params"]) == 2


def test_adamw_gives_the_bits_of_the_plain_one_and_its_fused_form_nearly():
    plain = run(lambda p: torch.optim.AdamW(p, lr=3e-4, weight_decay=5e-4))
    assert torch.equal(run(lambda p: build_optimizer(p, optim_cfg(NAME="adamw"))), plain)
    torch.testing.assert_close(run(lambda p: build_optimizer(p, optim_cfg(NAME="adamw_fused"))), plain)


def test_param_groups_replace_the_parameters_of_the_model():
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, optim_cfg(), [{"params": [model.bias], "lr": 0.5}])
    assert [p is model.bias for p in optimizer.param_groups[0]["params"]] == [True]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_what_is_wrong_is_named():
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"OPTIM.NAME.*'sdg'.*Accepted: .*adamw.*Did you mean sgd"):
        build_optimizer(model, optim_cfg(NAME="sdg"))
    optimizer = build_optimizer(model, optim_cfg())
    with pytest.raises(UserError, match=r"OPTIM.LR_SCHEDULER.*'cosin'.*multi_step"):
        build_lr_scheduler(optimizer, optim_cfg(LR_SCHEDULER="cosin"))
    with pytest.raises(UserError, match=r"OPTIM.WARMUP_TYPE.*'cubic'.*constant, linear"):
        build_lr_scheduler(optimizer, optim_cfg(WARMUP_TYPE="cubic", WARMUP_EPOCH=1))
    with pytest.raises(UserError, match=r"OPTIM.STEPSIZE is \(-1,\)"):
        build_lr_scheduler(optimizer, optim_cfg(LR_SCHEDULER="multi_step"))
    with pytest.raises(UserError, match="STAGED_LR needs a module"):
        build_optimizer(model.parameters(), optim_cfg(STAGED_LR=True))
    with pytest.raises(TypeError, match="STAGED_LR needs a module"):
        build_optimizer(model.parameters(), optim_cfg(STAGED_LR=True))


def test_new_layers_that_are_not_there_are_named_and_passed_over():
    """DePT names the new layers of all its models at once."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    node = optim_cfg(STAGED_LR=True, NEW_LAYERS=("1", "film"), BASE_LR_MULT=0.5, LR=0.1)
    with pytest.warns(UserWarning, match="NEW_LAYERS names film, which this model does not have; it has 0, 1"):
        optimizer = build_optimizer(model, node)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]
    assert all(group["params"][0] is child.weight for group, child in zip(optimizer.param_groups, model, strict=True))


def test_param_groups_go_before_staged_rates():
    model = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="STAGED_LR is ignored"):
        optimizer = build_optimizer(model, optim_cfg(STAGED_LR=True), [{"params": [model.bias]}])
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4]
    assert optimizer.param_groups[0]["params"] == [model.bias]


# -- schedules and optimizers that clients make themselves --------------------------------------------


def warm(kind):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=2e-3)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    if kind == "constant":
        return optimizer, ConstantWarmupScheduler(optimizer, successor, 1, 1e-5)
    return optimizer, LinearWarmupScheduler(optimizer, successor, 4, 1e-5)


@pytest.mark.parametrize("kind", ["constant", "linear"])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6])
def test_warmups_made_by_hand_are_those_of_the_configuration_and_resume(kind, stop):
    keys = CONSTANT if kind == "constant" else {**LINEAR, "MAX_EPOCH": 50}
    expected = rates(optim_cfg(**keys), 10)
    optimizer, scheduler = warm(kind)
    seen = []
    for epoch in range(10):
        if epoch == stop:
            file = io.BytesIO()
            torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            optimizer, scheduler = warm(kind)
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
        seen.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == [seen[-1]]
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(expected, abs=1e-12)


def run(make, steps=20):
    """Parameters after some steps on a fixed sequence of gradients."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(5, generator=generator))
    optimizer = make([parameter])
    for _ in range(steps):
        parameter.grad = torch.randn(5, generator=generator)
        optimizer.step()
    return parameter.detach()


def test_rectified_adam():
    settings = {"lr": 0.1, "weight_decay": 0.1}
    expected = run(lambda p: torch.optim.RAdam(p, decoupled_weight_decay=True, **settings))
    for kind in (RAdam, PlainRAdam):
        torch.testing.assert_close(run(lambda p, kind=kind: kind(p, **settings)), expected)
        # Without the first five steps, which are not rectified.
        waiting = run(lambda p, kind=kind: kind(p, degenerated_to_sgd=False, **settings), 5)
        torch.testing.assert_close(waiting, run(lambda p: torch.optim.SGD(p, lr=0.0), 5))
    with pytest.raises(ValueError, match="Invalid lr: -1"):
        RAdam([nn.Parameter(torch.zeros(1))], lr=-1)


def test_adamw_with_a_warmup_of_its_own():
    settings = {"lr": 0.1, "weight_decay": 0.1}
    torch.testing.assert_close(run(lambda p: AdamW(p, **settings)), run(lambda p: torch.optim.AdamW(p, **settings)))

    def by_hand(parameters):
        optimizer = torch.optim.AdamW(parameters, **settings)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 8, 1.0))
        return optimizer

    first_step = run(lambda p: AdamW(p, warmup=8, **settings), 1)
    torch.testing.assert_close(first_step, run(by_hand, 1), atol=1e-6, rtol=0)


def test_half_precision_parameters_learn_in_single_precision():
    parameter = nn.Parameter(torch.ones(4, dtype=torch.float16))
    optimizer = RAdam([parameter], lr=0.1)
    parameter.grad = torch.full((4,), 1e-4, dtype=torch.float16)
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg_sq"].dtype == torch.float32
    assert optimizer.state[parameter]["exp_avg_sq"].gt(0).all()
    restored = RAdam([parameter], lr=0.1)
    restored.load_state_dict(optimizer.state_dict())
    restored.step()
