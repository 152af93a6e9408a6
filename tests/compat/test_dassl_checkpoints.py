"""Checkpoints: what is saved is loaded, and nothing that is loaded runs code."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    UserError,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.torchtools import adjust_learning_rate, partial, set_bn_to_eval
from torch import nn


def parts():
    node = get_cfg_default().OPTIM
    node.LR_SCHEDULER, node.WARMUP_EPOCH = "cosine", 2
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, node)
    return model, optimizer, build_lr_scheduler(optimizer, node)


def step(model, optimizer, scheduler):
    optimizer.zero_grad()
    model(torch.ones(1, 3)).pow(2).sum().backward()
    optimizer.step()
    scheduler.step()


def state(model, optimizer, scheduler, epoch):
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": 50.0,
    }


def test_round_trip(tmp_path, capsys):
    trained = parts()
    for epoch in (1, 2, 3):
        step(*trained)
        save_checkpoint(state(*trained, epoch), str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"] + [f"model.pth.tar-{e}" for e in (1, 2, 3)]
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-3\n"
    assert f"Checkpoint saved to {tmp_path}/model.pth.tar-3" in capsys.readouterr().out

    resumed = parts()
    assert resume_from_checkpoint(str(tmp_path), *resumed) == 3
    step(*trained)
    step(*resumed)
    assert torch.equal(trained[0].weight, resumed[0].weight)
    assert trained[2].get_last_lr() == resumed[2].get_last_lr()


def test_best_and_named_checkpoints(tmp_path):
    trained = parts()
    save_checkpoint(state(*trained, 5), str(tmp_path), is_best=True)
    assert load_checkpoint(str(tmp_path / "model-best.pth.tar"))["epoch"] == 5
    save_checkpoint(state(*trained, 6), str(tmp_path), model_name="model-best.pth.tar")
    assert (tmp_path / "checkpoint").read_text() == "model-best.pth.tar\n"
    assert load_checkpoint(str(tmp_path / "model-best.pth.tar"))["epoch"] == 6


def test_module_is_taken_from_the_keys_and_the_state_stays(tmp_path):
    model = nn.DataParallel(nn.Linear(3, 2))
    content = {"state_dict": model.state_dict(), "epoch": 1}
    save_checkpoint(content, str(tmp_path))
    assert list(load_checkpoint(str(tmp_path / "model.pth.tar-1"))["state_dict"]) == ["weight", "bias"]
    assert list(content["state_dict"]) == ["module.weight", "module.bias"]
    assert resume_from_checkpoint(str(tmp_path), model) == 1
    save_checkpoint(content, str(tmp_path), remove_module_from_keys=False)
    assert "module.weight" in load_checkpoint(str(tmp_path / "model.pth.tar-1"))["state_dict"]


class Breaks:
    """Stands for the disk that is full in the middle of a save."""

    def __reduce__(self):
        raise RuntimeError("disk full")


def test_a_failed_save_leaves_the_former_checkpoint(tmp_path):
    trained = parts()
    save_checkpoint(state(*trained, 1), str(tmp_path), model_name="m")
    before = (tmp_path / "m").read_bytes()
    with pytest.raises(RuntimeError, match="disk full"):
        save_checkpoint({**state(*trained, 2), "extra": Breaks()}, str(tmp_path), model_name="m")
    assert (tmp_path / "m").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m"]


# -- what cannot be loaded --------------------------------------------------------------------------


class RunsCode:
    """Pickles as a call."""

    def __reduce__(self):
        return print, ("this code must not run",)


def test_code_is_not_run(tmp_path, capsys):
    path = str(tmp_path / "evil.pth.tar")
    for new_format in (True, False):
        torch.save({"state_dict": {}, "epoch": 1, "x": RunsCode()}, path, _use_new_zipfile_serialization=new_format)
        with pytest.raises(UserError, match=r"evil\.pth\.tar was not loaded: loading it would run code"):
            load_checkpoint(path)
    assert "must not run" not in capsys.readouterr().out


def test_a_whole_pickled_model_is_refused_by_name(tmp_path):
    path = str(tmp_path / "whole.pth.tar")
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UserError, match=r"would run code that it carries \(torch\.nn\.modules\.linear\.Linear"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"Checkpoint not found: .*none"):
        load_checkpoint(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="None"):
        load_checkpoint(None)
    path = tmp_path / "cut"
    torch.save({"state_dict": nn.Linear(50, 50).state_dict(), "epoch": 1}, path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cut is damaged or is not a checkpoint.*again"):
        load_checkpoint(str(path))
    for content in (b"", b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cut is damaged or is not a checkpoint"):
            load_checkpoint(str(path))
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    with pytest.raises(UserError, match="cut is a TorchScript archive"):
        load_checkpoint(str(path))


def test_resuming_from_nothing_or_from_other_settings(tmp_path):
    with pytest.raises(UserError, match=r"No checkpoint to resume from: .*checkpoint does not exist"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(2, 2))
    save_checkpoint(state(*parts(), 1), str(tmp_path))
    with pytest.raises(UserError, match=r"model\.pth\.tar-1 do not fit the model(.|\n)*size mismatch"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(4, 2))


# -- Dassl.pytorch's own files ----------------------------------------------------------------------


def test_a_checkpoint_of_dasslpytorch_loads(tmp_path):
    """Its warm-up schedulers' states hold a whole scheduler, which holds the whole optimizer."""
    model, optimizer, _ = parts()
    step(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))
    with torch.no_grad():
        successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10.0)
    successor.last_epoch = 3
    scheduler = {"last_epoch": 2, "warmup_epoch": 2, "base_lrs": [3e-4], "successor": successor}
    content = {"state_dict": model.state_dict(), "epoch": 5, "scheduler": scheduler, "val_result": 9.0}
    content["optimizer"] = optimizer.state_dict()
    path = tmp_path / "model.pth.tar-5"
    torch.save(content, path)
    (tmp_path / "checkpoint").write_text("model.pth.tar-5\n")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)

    loaded = load_checkpoint(str(path))
    assert loaded["scheduler"]["successor"]["last_epoch"] == 3
    assert "optimizer" not in loaded["scheduler"]["successor"]
    resumed = parts()
    assert resume_from_checkpoint(str(tmp_path), *resumed) == 5
    assert torch.equal(resumed[0].weight, model.weight)
    assert resumed[2].last_epoch == 5


def test_numbers_of_numpy_become_plain_ones(tmp_path):
    """As an evaluator leaves them that computes its results by scikit-learn."""
    path = str(tmp_path / "model.pth.tar-5")
    for number in (np.float64(81.25), np.float32(0.5), np.int64(-7), np.bool_(True)):
        torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "epoch": 5, "val_result": number}, path)
        found = load_checkpoint(path)["val_result"]
        assert (found, type(found)) == (number.item(), type(number.item()))
    old = torch.load(path, weights_only=False)  # as NumPy before version 2 names it
    torch.save({**old, "val_result": np.float64(1.5)}, path, _use_new_zipfile_serialization=False)
    content = Path(path).read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    Path(path).write_bytes(content)
    assert load_checkpoint(path)["val_result"] == 1.5
    for other in (np.str_("81"), np.void(b"81"), np.ones(3)):
        torch.save({"state_dict": {}, "epoch": 5, "val_result": other}, path)
        with pytest.raises(UserError, match="model.pth.tar-5"):
            load_checkpoint(path)


# -- parameters -------------------------------------------------------------------------------------


def test_pretrained_weights_that_fit_are_loaded(tmp_path, capsys):
    source = nn.Linear(3, 2)
    weights = OrderedDict(("module." + key, value) for key, value in source.state_dict().items())
    weights["module.other"] = torch.ones(1)
    for content in (weights, {"state_dict": weights}):
        torch.save(content, tmp_path / "w")
        model = nn.Linear(3, 2)
        load_pretrained_weights(model, str(tmp_path / "w"))
        assert torch.equal(model.weight, source.weight)
        out = capsys.readouterr().out
        assert "Successfully loaded pretrained weights" in out
        assert "discarded due to unmatched keys or size: ['other']" in out


def test_pretrained_weights_that_do_not_fit_warn(tmp_path):
    torch.save(nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "w")
    with pytest.warns(UserWarning, match="none of its 2 weights fits"):
        load_pretrained_weights(nn.Linear(7, 7), str(tmp_path / "w"))


def test_counting_and_opening():
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 2), b=nn.Dropout(), c=nn.Linear(2, 1)))
    assert count_num_param(model) == 11
    assert count_num_param(params=list(model.c.parameters())) == 3
    assert count_num_param(params=[{"params": list(model.c.parameters())}]) == 3
    open_specified_layers(model, "c")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert [m.training for m in model] == [False, False, True]
    open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    assert model.b.training
    with pytest.raises(UserError, match=r"no layer 'd'. Accepted: a, b, c"):
        open_specified_layers(model, ["d"])


def test_batch_normalisation_keeps_its_statistics():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm1d(1), nn.Dropout())
    model.apply(set_bn_to_eval)
    assert [module.training for module in model] == [True, False, False, True]
    assert all(p.requires_grad for p in model.parameters())


def test_rates_by_hand():
    optimizer = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters()}, {"params": [torch.ones(1)]}], lr=9.0)

    def rate(*args, **keys):
        adjust_learning_rate(optimizer, *args, **keys)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == second
        return first

    assert [rate(0.1, epoch) for epoch in (0, 19, 20, 40)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert rate(1.0, 5, stepsize=2, gamma=0.5) == 0.25
    assert rate(1.0, 25, linear_decay=True, final_lr=0.2, max_epoch=100) == pytest.approx(0.8)


def test_what_authors_patch_pickle_with():
    """The SPG authors' load_checkpoint takes partial from here."""
    assert partial(int, base=2)("101") == 5
