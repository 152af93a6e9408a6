"""Schedules, optimizers, evaluator, checkpoints and trainers: numbers, resumes and errors."""

import contextlib
import functools
import hashlib
import io
import json
import math
import os

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.samplers import build_sampler
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.evaluation import build_evaluator
from dassl.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.radam import RAdam
from dassl.utils import (
    UserError,
    load_checkpoint,
    open_specified_layers,
    read_json,
    resume_from_checkpoint,
    save_checkpoint,
)
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler


def test_config_defaults_equal_dassl():
    content = json.dumps(get_cfg_default(), sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest() == "fdbd79be831c9b4d8e5f012624320c58dcf9ec53706372cedca1f33d5dc16747"
    first = get_cfg_default()
    first.INPUT.PIXEL_MEAN[0] = 9.0
    assert get_cfg_default().INPUT.PIXEL_MEAN[0] == 0.485


# -- schedules and optimizers -----------------------------------------------------------------------


def optim_cfg(**keys):
    node = get_cfg_default().OPTIM
    for key, value in keys.items():
        setattr(node, key, value)
    return node


def build(node):
    optimizer = build_optimizer(nn.Linear(2, 2), node)
    return optimizer, build_lr_scheduler(optimizer, node)


def cosine(epoch, max_epoch, lr=2e-3):
    return lr * (1 + math.cos(math.pi * epoch / max_epoch)) / 2


COSINE = {"LR": 2e-3, "LR_SCHEDULER": "cosine"}
LINEAR = {**COSINE, "MAX_EPOCH": 70, "WARMUP_EPOCH": 4, "WARMUP_TYPE": "linear"}
CONSTANT = {**COSINE, "MAX_EPOCH": 50, "WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant"}
STEPS = {"LR": 1.0, "LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5)}
RISE = [1e-5, 5e-4, 1e-3, 1.5e-3]


@pytest.mark.parametrize("stop", [1, 4, 6])  # the epoch after which a killed run resumes
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (LINEAR, [*RISE, *(cosine(e, 70) for e in range(10))]),
        (CONSTANT, [1e-5, *(cosine(e, 50) for e in range(13))]),
        (COSINE, [cosine(e, 10) for e in range(11)]),
        (STEPS, [1.0] * 2 + [0.1] * 3 + [0.01] * 4),
        ({**STEPS, "WARMUP_EPOCH": 4, "WARMUP_RECOUNT": False}, [1e-5, 0.25, 0.5, 0.75, 1.0, 0.1]),
        ({"LR": 1.0, "STEPSIZE": 3}, [1.0] * 3 + [0.1] * 3 + [0.01]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_schedules_give_the_rates_of_the_formulas_also_after_a_resume(keys, expected, stop):
    optimizer, schedule = build(optim_cfg(**keys))
    for epoch, rate in enumerate(expected):
        if epoch == stop:
            file = io.BytesIO()
            torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            optimizer, schedule = build(optim_cfg(**keys))
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]] == pytest.approx([rate], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_radam_equals_torch_with_decoupled_weight_decay():
    settings, found = {"lr": 0.1, "weight_decay": 0.1}, []
    for make in (RAdam, functools.partial(torch.optim.RAdam, decoupled_weight_decay=True)):
        generator = torch.Generator().manual_seed(0)
        parameter = nn.Parameter(torch.randn(5, generator=generator))
        optimizer = make([parameter], **settings)
        for _ in range(20):
            parameter.grad = torch.randn(5, generator=generator) * 1e-2
            optimizer.step()
        found.append(parameter.detach())
    torch.testing.assert_close(*found)


# -- evaluator --------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [5, 3])  # 3: classes that are predicted but never true
def test_evaluator_gives_the_numbers_of_sklearn(cfg, labels):
    cfg.TEST.PER_CLASS_RESULT = cfg.TEST.COMPUTE_CMAT = True
    scores, gt = torch.randn(1157, 5), torch.randint(labels, (1157,))
    pred = scores.argmax(1)
    evaluator = build_evaluator(cfg, lab2cname=dict(enumerate("abcde")))
    for _ in range(2):  # a reset forgets
        evaluator.reset()
        for part in torch.arange(1157).split(32):
            evaluator.process(scores[part], gt[part])
        results = evaluator.evaluate()
    matrix = confusion_matrix(gt, pred)
    rows = matrix / matrix.sum(1, keepdims=True).clip(1)
    accuracy = 100 * accuracy_score(gt, pred)
    f1 = 100 * f1_score(gt, pred, average="macro", labels=np.unique(gt))
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    expected = [accuracy, 100 - accuracy, f1, 100 * rows.diagonal()[:labels].mean()]
    assert list(results.values()) == pytest.approx(expected)
    np.testing.assert_allclose(torch.load(f"{cfg.OUTPUT_DIR}/cmat.pt", weights_only=False), rows)


# -- checkpoints ------------------------------------------------------------------------------------


class RunsCode:
    def __reduce__(self):
        return print, ("this code must not run",)


def test_load_checkpoint_of_code_or_other_files_raises(tmp_path, capsys):
    path = tmp_path / "m"
    for content, new_format, reason in (
        (RunsCode(), True, "loading it would run code that it carries"),
        (RunsCode(), False, "loading it would run code"),  # the format before PyTorch 1.6
        (nn.Linear(2, 2), True, r"carries \(torch\.nn.*Linear"),
    ):
        torch.save({"state_dict": {}, "x": content}, path, _use_new_zipfile_serialization=new_format)
        with pytest.raises(RuntimeError, match=f"m was not loaded: .*{reason}"):
            load_checkpoint(str(path))
    assert "must not run" not in capsys.readouterr().out
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(RuntimeError, match="m is damaged or is not a checkpoint"):
        load_checkpoint(str(path))


def test_dassl_checkpoint_resumes_without_running_its_code(tmp_path):
    """Dassl.pytorch pickles the scheduler after the warm-up, and with it the optimizer."""
    node = optim_cfg(**LINEAR)
    optimizer, schedule = build(node)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    rate = schedule.get_last_lr()
    state = {**schedule.state_dict(), "successor": schedule.successor}
    assert isinstance(state["successor"], lr_scheduler.CosineAnnealingLR)
    content = {"state_dict": nn.Linear(2, 2).state_dict(), "epoch": 6, "scheduler": state, "val_result": np.float64(81)}
    save_checkpoint({**content, "optimizer": optimizer.state_dict()}, str(tmp_path))
    optimizer, resumed = build(node)
    assert resume_from_checkpoint(str(tmp_path), nn.Linear(2, 2), optimizer, resumed) == 6
    assert resumed.get_last_lr() == [optimizer.param_groups[0]["lr"]] == rate
    assert type(load_checkpoint(str(tmp_path / "model.pth.tar-6"))["val_result"]) is float
    optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == pytest.approx([cosine(3, 70)])


# -- trainers ---------------------------------------------------------------------------------------


@BACKBONE_REGISTRY.register(force=True)
class Pixels(Backbone):
    def __init__(self, pretrained):
        super().__init__()
        self._out_features = 3 * 8 * 8

    def forward(self, x):
        return x.flatten(1)


@TRAINER_REGISTRY.register(force=True)
class TinyX(TrainerX):
    def forward_backward(self, batch):
        loss = F.cross_entropy(self.model(batch["img"]), batch["label"])
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@pytest.fixture
def tiny(cfg):
    def build(name="TinyX", **keys):
        for key, value in keys.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = name, "Pixels"
        torch.manual_seed(0)
        return build_trainer(cfg)

    return build


def run_until(trainer, epoch, val=()):
    """Train, and stop as if killed after ``epoch`` epochs. ``val``: results on the val split."""
    test, results = trainer.test, iter(val)

    def before_epoch():
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    trainer.before_epoch = before_epoch
    if val:
        trainer.test = lambda split=None: next(results) if split == "val" else test(split)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train()
    return trainer


def weight(trainer):
    return trainer.model.classifier.weight


def test_killed_run_resumes_with_equal_numbers(tiny, capsys):
    keys = {"TRAIN__CHECKPOINT_FREQ": 2, "OPTIM__MAX_EPOCH": 6, "OPTIM__WARMUP_EPOCH": 2}
    keys["DATALOADER__TRAIN_X__SAMPLER"] = "SequentialSampler"
    uninterrupted = run_until(tiny(**keys), 6)
    first = run_until(tiny(**keys, OUTPUT_DIR=uninterrupted.output_dir + "2"), 4)
    assert sorted(os.listdir(f"{first.output_dir}/model")) == ["checkpoint", "model.pth.tar-2", "model.pth.tar-4"]
    for folder in (uninterrupted.output_dir + "3", first.output_dir):  # another folder, then the same
        second = run_until(tiny(**keys, RESUME=first.output_dir, OUTPUT_DIR=folder), 6)
        assert second.start_epoch == 4
        assert torch.equal(weight(second), weight(uninterrupted))
        assert second.get_current_lr() == uninterrupted.get_current_lr()
        assert os.path.exists(f"{folder}/model/model.pth.tar-6")
    loaded = tiny()
    loaded.load_model(uninterrupted.output_dir, epoch=6)
    assert torch.equal(weight(loaded), weight(uninterrupted))
    assert "(will resume training)" in capsys.readouterr().out


def test_the_best_model_is_deployed_also_after_a_resume(tiny, capsys):
    keys = {"TEST__FINAL_MODEL": "best_val", "TRAIN__CHECKPOINT_FREQ": 1, "OPTIM__MAX_EPOCH": 4}
    first = run_until(tiny(**keys), 2, val=[90.0, 50.0])
    second = tiny(**keys, RESUME=first.output_dir, OUTPUT_DIR=first.output_dir + "2")
    run_until(second, 4, val=[60.0, 70.0])
    best = load_checkpoint(f"{second.output_dir}/model/model-best.pth.tar")
    assert (best["epoch"], best["val_result"]) == (1, 90.0)
    assert torch.equal(weight(second), best["state_dict"]["classifier.weight"])
    assert "model-best.pth.tar to model (epoch=1, val_result=90.0)" in capsys.readouterr().out


# -- errors -----------------------------------------------------------------------------------------

ERRORS = [  # of the types that Dassl.pytorch raises
    (FileNotFoundError, "Checkpoint not found: .*model.pth.tar-3", lambda t, c: t.load_model("/none", epoch=3)),
    (ValueError, "is not a JSON file", lambda t, c: read_json(__file__)),
    (KeyError, "Unknown backbone: 'x'.*no backbones of its own", lambda t, c: build_backbone("x")),
    (ValueError, "has 1 domains", lambda t, c: build_sampler("RandomDomainSampler", c, [Datum(__file__)], 4, 2)),
    (AssertionError, "split of ToyDG is empty", lambda t, c: build_data_loader(c, data_source=[])),
    (AssertionError, "Image not found: '/none.jpg'", lambda t, c: Datum("/none.jpg")),
    (AssertionError, "'flip'. Accepted: .*random_flip", lambda t, c: build_transform(c, choices=["flip"])),
    (AssertionError, "no layer 'x'. Accepted: backbone", lambda t, c: open_specified_layers(t.model, "x")),
    (FloatingPointError, "infinite or NaN", lambda t, c: t.model_backward(torch.tensor(float("nan")))),
]
SETTINGS = [
    ("TRAINER.NAME", "TinyZ", "Unknown trainer: 'TinyZ'. Accepted: .*TinyX.*Did you mean"),
    ("DATASET.SOURCE_DOMAINS", ["foto"], r"domain of ToyDG \(DATASET.SOURCE_DOMAINS\): 'foto'. Accepted: art"),
    ("DATASET.SOURCE_DOMAINS", [], "no training data"),
    ("DATASET.TARGET_DOMAINS", [], "no test data for DATASET.TARGET_DOMAINS"),
    ("OPTIM.NAME", "sdg", "OPTIM.NAME.*Did you mean sgd"),
    ("OPTIM.LR_SCHEDULER", "multi_step", r"OPTIM.STEPSIZE is \(-1,\)"),
    ("RESUME", "/elsewhere", "RESUME names the folder /elsewhere, which does not exist"),
]


@pytest.mark.parametrize(("kind", "message", "call"), ERRORS)
def test_errors_have_dassls_types_and_name_the_cause(tiny, cfg, kind, message, call):
    with pytest.raises(kind, match=message):
        call(tiny(), cfg)


@pytest.mark.parametrize(("key", "value", "message"), SETTINGS)
def test_wrong_settings_are_named(tiny, cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=message):
        tiny(cfg.TRAINER.NAME or "TinyX").train()
