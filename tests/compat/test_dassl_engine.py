"""Training, evaluation, selection, resuming: on a tiny model and tiny data."""

import os
import re

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerX, TrainerXU, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, load_checkpoint
from torch import nn
from torch.nn import functional as F


class TinyMixin:
    """A linear classifier on pixels."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, self.num_classes)).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("tiny", self.model, self.optim, self.sched)
        self.calls = []

    def step(self, output, label):
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}


@TRAINER_REGISTRY.register(force=True)
class TinyX(TinyMixin, TrainerX):
    def forward_backward(self, batch):
        image, label, domain = self.parse_batch_train(batch)
        assert image.shape[0] == label.shape[0] == domain.shape[0]
        assert self.model.training
        return self.step(self.model(image), label)


@TRAINER_REGISTRY.register(force=True)
class TinyXU(TinyMixin, TrainerXU):
    def forward_backward(self, batch_x, batch_u):
        image, label, image_u = self.parse_batch_train(batch_x, batch_u)
        self.calls.append((len(image), len(image_u), tuple(batch_u["index"].tolist())))
        return self.step(self.model(image), label)


@TRAINER_REGISTRY.register(force=True)
class TinyPair(TrainerX):
    """Two models, as a GAN has."""

    def build_model(self):
        for name in ("generator", "discriminator"):
            model = nn.Linear(3 * 8 * 8, self.num_classes)
            optim = build_optimizer(model, self.cfg.OPTIM)
            self.register_model(name, model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        for name, model in self._models.items():
            self.model_backward_and_update(F.cross_entropy(model(image.flatten(1)), label), name)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()

    def model_inference(self, input):
        return self._models["generator"](input.flatten(1))


@TRAINER_REGISTRY.register(force=True)
class Guess(TrainerX):
    """Needs no training, like zero-shot CLIP."""

    def build_model(self):
        pass

    def model_inference(self, input):
        return F.one_hot(input.mean(dim=(2, 3)).argmax(dim=1), 3).float()


@pytest.fixture
def tiny(cfg):
    def build(name="TinyX", **keys):
        for key, value in keys.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        cfg.TRAINER.NAME = name
        torch.manual_seed(0)
        return build_trainer(cfg)

    return build


LINE = re.compile(
    r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\] time [\d.]+ \([\d.]+\) data [\d.]+ \([\d.]+\) "
    r"loss [\d.]+ \([\d.]+\) acc [\d.]+ \([\d.]+\) lr \d\.\d{4}e[-+]\d\d eta \d+:\d\d:\d\d"
)


def test_a_run_from_start_to_end(tiny, capsys):
    trainer = tiny(OPTIM__MAX_EPOCH=12)
    trainer.train()
    out = capsys.readouterr().out
    lines = [LINE.fullmatch(line) for line in out.splitlines() if line.startswith("epoch")]
    assert [tuple(map(int, m.groups())) for m in lines[:4]] == [
        (1, 12, 1, 3),
        (1, 12, 2, 3),
        (1, 12, 3, 3),
        (2, 12, 1, 3),
    ]
    assert len(lines) == 36
    tail = out[out.index("Finish training") :]
    assert re.fullmatch(
        r"Finish training\nDeploy the last-epoch model\nEvaluate on the \*test\* set\n=> result\n"
        r"\* total: 12\n\* correct: \d+\n\* accuracy: [\d.]+%\n\* error: [\d.]+%\n\* macro_f1: [\d.]+%\n"
        r"Elapsed: \d:\d\d:\d\d\n",
        tail,
    )
    assert trainer.test() == 100.0  # the colours are that easy
    assert sorted(os.listdir(trainer.output_dir)) == ["tensorboard", "tiny"]
    assert os.listdir(f"{trainer.output_dir}/tensorboard")
    saved = load_checkpoint(f"{trainer.output_dir}/tiny/model.pth.tar-12")
    assert set(saved) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert saved["epoch"] == 12


def test_attributes_are_set(tiny, cfg):
    trainer = tiny()
    assert trainer.cfg is cfg
    assert trainer.device == torch.device("cpu")
    assert (trainer.start_epoch, trainer.epoch, trainer.max_epoch) == (0, 0, 3)
    assert (trainer.num_classes, trainer.num_source_domains) == (3, 2)
    assert trainer.lab2cname == trainer.dm.lab2cname
    assert trainer.train_loader_x is trainer.dm.train_loader_x
    assert trainer.best_result == -float("inf")
    assert trainer.get_model_names() == trainer.get_model_names("tiny") == ["tiny"]
    assert trainer.get_current_lr() == 0.05


def test_lines_are_printed_as_often_as_asked(tiny, capsys):
    tiny(TRAIN__PRINT_FREQ=2, OPTIM__MAX_EPOCH=2, TEST__NO_TEST=True).train()
    out = capsys.readouterr().out
    assert re.findall(r"epoch \[(\d)/2\] batch \[(\d)/3\]", out) == [("1", "2"), ("2", "2")]
    assert "=> result" not in out
    assert out.endswith("\n")
    assert re.search(r"Finish training\nElapsed: 0:00:\d\d\n$", out)


def test_checkpoints_at_the_asked_epochs(tiny):
    trainer = tiny(TRAIN__CHECKPOINT_FREQ=2, OPTIM__MAX_EPOCH=5, TEST__NO_TEST=True)
    trainer.train()
    names = sorted(os.listdir(f"{trainer.output_dir}/tiny"))
    assert names == ["checkpoint", "model.pth.tar-2", "model.pth.tar-4", "model.pth.tar-5"]


def val_results(trainer, results):
    """Let test("val") give these results, whatever the model does."""
    given = iter(results)
    real = trainer.test

    def test(split=None):
        return next(given) if split == "val" else real(split)

    trainer.test = test


def test_the_best_model_on_val_is_deployed(tiny, capsys):
    trainer = tiny(TEST__FINAL_MODEL="best_val", OPTIM__MAX_EPOCH=4)
    val_results(trainer, [50.0, 80.0, 80.0, 60.0])
    trainer.train()
    best = load_checkpoint(f"{trainer.output_dir}/tiny/model-best.pth.tar")
    assert (best["epoch"], best["val_result"]) == (2, 80.0)
    assert torch.equal(trainer.model[1].weight, best["state_dict"]["1.weight"])
    out = capsys.readouterr().out
    assert "Deploy the model with the best val performance" in out
    assert re.search(r"Load .*/tiny/model-best\.pth\.tar to tiny \(epoch=2, val_result=80\.0\)", out)


def test_val_is_evaluated_every_epoch(tiny, capsys):
    tiny(TEST__FINAL_MODEL="best_val", OPTIM__MAX_EPOCH=2).train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *val* set\n=> result\n* total: 6") == 2
    assert out.count("Evaluate on the *test* set\n=> result\n* total: 12") == 1


def test_without_val_the_test_split_stands_in_and_is_named(tiny, capsys):
    trainer = tiny(DATASET__NAME="ToyDA")
    assert trainer.test("val") == trainer.test("test")
    out = capsys.readouterr().out
    assert "no val split" in out
    assert "Evaluate on the *test* set" in out


class Stop(Exception):
    pass


def run_until(trainer, epoch):
    """Train, and be killed when ``epoch`` epochs are done."""

    def before_epoch():
        if trainer.epoch == epoch:
            raise Stop

    trainer.before_epoch = before_epoch
    with pytest.raises(Stop):
        trainer.train()


def test_a_killed_run_goes_on_where_it_stopped(tiny, capsys):
    keys = {"TRAIN__CHECKPOINT_FREQ": 1, "OPTIM__MAX_EPOCH": 6, "OPTIM__WARMUP_EPOCH": 2}
    keys["DATALOADER__TRAIN_X__SAMPLER"] = "SequentialSampler"
    whole = tiny(**keys)
    whole.train()
    weight, rate = whole.model[1].weight, whole.get_current_lr()

    first = tiny(**keys, OUTPUT_DIR=whole.output_dir + "2")
    assert "No checkpoint found, train from scratch" in capsys.readouterr().out
    run_until(first, 3)
    second = tiny(**keys, OUTPUT_DIR=whole.output_dir + "2")
    seen = []
    second.before_epoch = lambda: seen.append(second.epoch)
    second.train()
    assert seen == [3, 4, 5]
    assert torch.equal(second.model[1].weight, weight)
    assert second.get_current_lr() == rate
    out = capsys.readouterr().out
    assert f"Found checkpoint at {second.output_dir} (will resume training)" in out

    # A finished run only tests.
    third = tiny(**keys)
    third.before_epoch = lambda: pytest.fail("no epoch is left")
    third.train()
    assert torch.equal(third.model[1].weight, weight)


def test_resume_names_another_folder(tiny):
    first = tiny(TRAIN__CHECKPOINT_FREQ=1, OPTIM__MAX_EPOCH=4)
    run_until(first, 2)
    second = tiny(RESUME=first.output_dir, OUTPUT_DIR=first.output_dir + "2")
    second.train()
    assert os.path.exists(f"{second.output_dir}/tiny/model.pth.tar-4")
    assert not os.path.exists(f"{first.output_dir}/tiny/model.pth.tar-4")


def test_the_best_result_is_known_after_a_resume(tiny):
    keys = {"TEST__FINAL_MODEL": "best_val", "TRAIN__CHECKPOINT_FREQ": 1, "OPTIM__MAX_EPOCH": 4}
    first = tiny(**keys)
    val_results(first, [90.0, 50.0])
    run_until(first, 2)
    second = tiny(**keys)
    val_results(second, [60.0, 70.0])
    second.train()
    assert second.best_result == 90.0
    assert load_checkpoint(f"{first.output_dir}/tiny/model-best.pth.tar")["epoch"] == 1


def test_the_best_model_comes_along_from_another_folder(tiny):
    keys = {"TEST__FINAL_MODEL": "best_val", "TRAIN__CHECKPOINT_FREQ": 1, "OPTIM__MAX_EPOCH": 3}
    first = tiny(**keys)
    val_results(first, [90.0, 50.0])
    run_until(first, 2)
    second = tiny(**keys, RESUME=first.output_dir, OUTPUT_DIR=first.output_dir + "2")
    val_results(second, [60.0])
    second.train()
    assert load_checkpoint(f"{second.output_dir}/tiny/model-best.pth.tar")["val_result"] == 90.0


def test_resuming_from_a_folder_that_is_not_there(tiny):
    with pytest.raises(UserError, match=r"RESUME names the folder .*elsewhere, which does not exist"):
        tiny(RESUME="/elsewhere").train()


def test_models_resume_from_the_same_epoch(tiny, capsys):
    keys = {"TRAIN__CHECKPOINT_FREQ": 1, "OPTIM__MAX_EPOCH": 4}
    first = tiny("TinyPair", **keys)
    run_until(first, 3)
    # Killed between the two saves of epoch 3.
    os.unlink(f"{first.output_dir}/discriminator/model.pth.tar-3")
    with open(f"{first.output_dir}/discriminator/checkpoint", "w") as handle:
        handle.write("model.pth.tar-2\n")
    second = tiny("TinyPair", **keys)
    assert second.resume_model_if_exist(second.output_dir) == 2
    assert "different epochs: {'generator': 3, 'discriminator': 2}" in capsys.readouterr().out
    for name in ("generator", "discriminator"):
        saved = load_checkpoint(f"{first.output_dir}/{name}/model.pth.tar-2")
        assert torch.equal(second._models[name].weight, saved["state_dict"]["weight"])
    # None in common: from the start.
    os.unlink(f"{first.output_dir}/generator/model.pth.tar-1")
    os.unlink(f"{first.output_dir}/generator/model.pth.tar-2")
    assert tiny("TinyPair", **keys).resume_model_if_exist(first.output_dir) == 0


def test_models_without_training(tiny, capsys):
    trainer = tiny("Guess")
    trainer.load_model("")
    assert "load_model() is skipped" in capsys.readouterr().out
    assert trainer.test() == 100.0
    assert trainer.get_current_lr() == 0.0


def test_loading_a_model(tiny):
    trained = tiny(TEST__FINAL_MODEL="best_val")
    trained.train()
    for epoch in (None, 3):
        loaded = tiny()
        loaded.load_model(trained.output_dir, epoch=epoch)
        name = "model-best.pth.tar" if epoch is None else "model.pth.tar-3"
        saved = load_checkpoint(f"{trained.output_dir}/tiny/{name}")["state_dict"]
        assert torch.equal(loaded.model[1].weight, saved["1.weight"])
    with pytest.raises(UserError, match=r"Checkpoint not found: .*tiny/model\.pth\.tar-99"):
        loaded.load_model(trained.output_dir, epoch=99)


def test_model_modes_and_names(tiny):
    trainer = tiny("TinyPair")
    trainer.set_model_mode("eval")
    assert not any(model.training for model in trainer._models.values())
    trainer.set_model_mode("train", "generator")
    assert [model.training for model in trainer._models.values()] == [True, False]
    with pytest.raises(KeyError, match="dev"):
        trainer.set_model_mode("dev")
    for kind in (AssertionError, UserError):
        with pytest.raises(kind, match=r"Unknown model: 'critic'. Accepted: discriminator, generator"):
            trainer.get_model_names(["critic"])
    with pytest.raises(AssertionError, match="already"):
        trainer.register_model("generator", nn.Linear(1, 1))


def test_a_model_before_init_is_an_error():
    trainer = TrainerX.__new__(TrainerX)
    with pytest.raises(AttributeError, match="super"):
        trainer.register_model("a", nn.Linear(1, 1))


def test_scalars_are_written(tiny):
    written = []

    class Recorder(TinyX):
        def write_scalar(self, tag, scalar_value, global_step=None):
            written.append((tag, global_step))

    TRAINER_REGISTRY.register(Recorder, force=True)
    tiny("Recorder", OPTIM__MAX_EPOCH=2).train()
    assert [step for tag, step in written if tag == "train/loss"] == list(range(6))
    assert [step for tag, step in written if tag == "train/lr"] == list(range(6))
    assert {"test/accuracy", "test/macro_f1", "test/error_rate"} <= {tag for tag, _ in written}


def test_a_loss_that_is_not_a_number_stops_the_run(tiny):
    trainer = tiny()
    for value in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError, match="infinite or NaN"):
            trainer.detect_anomaly(torch.tensor(value))
    trainer.detect_anomaly(torch.tensor(1.0))


# -- labelled and unlabelled data -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch_u", "batches"),
    # ToyDA has 18 labelled images, 3 batches of 6, and 12 unlabelled ones.
    [("train_x", 2, 3), ("train_u", 2, 6), ("smaller_one", 2, 3), ("smaller_one", 10, 1), ("train_x", 10, 3)],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_labelled_and_unlabelled_batches(tiny, count, batch_u, batches, workers):
    trainer = tiny(
        "TinyXU",
        TRAIN__COUNT_ITER=count,
        DATASET__NAME="ToyDA",
        DATALOADER__TRAIN_U__SAME_AS_X=False,
        DATALOADER__TRAIN_U__BATCH_SIZE=batch_u,
        DATALOADER__NUM_WORKERS=workers,
        OPTIM__MAX_EPOCH=2,
        TEST__NO_TEST=True,
    )
    trainer.train()
    assert [call[:2] for call in trainer.calls] == 2 * batches * [(6, batch_u)]


def test_unlabelled_data_is_needed(tiny):
    with pytest.raises(UserError, match=r"ToyDG has no unlabelled training data \(train_u\), which TinyXU needs"):
        tiny("TinyXU").train()
    with pytest.raises(UserError, match=r"TRAIN.COUNT_ITER\): 'both'. Accepted: smaller_one, train_u, train_x"):
        tiny("TinyXU", DATASET__NAME="ToyDA", TRAIN__COUNT_ITER="both").train()


# -- what users get wrong ---------------------------------------------------------------------------


def test_unknown_trainers_and_missing_parts(tiny, cfg):
    with pytest.raises(UserError, match=r"Unknown trainer: 'TinyZ'. Accepted: .*TinyX.*Did you mean"):
        tiny("TinyZ")
    cfg.MODEL.BACKBONE.NAME = "resnet18"
    with pytest.raises(UserError, match=r"Unknown backbone: 'resnet18'.*Dassl-compatible core carries no backbones"):
        SimpleTrainer(cfg)


def test_splits_that_are_not_there(tiny):
    trainer = tiny(DATASET__TARGET_DOMAINS=[])
    with pytest.raises(UserError, match=r"ToyDG has no test data for DATASET.TARGET_DOMAINS \[\]"):
        trainer.test()
    with pytest.raises(UserError, match=r"TEST.SPLIT\): 'dev'. Accepted: test, val"):
        trainer.test("dev")
    trainer.train_loader_x = None
    with pytest.raises(UserError, match="ToyDG has no training data"):
        trainer.train()


def test_asking_for_cuda_without_it_uses_the_cpu(tiny):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    assert tiny(USE_CUDA=True).device.type == "cpu"
