"""Our own clients in the style of MaPLe, the SPG authors' trainers and DePT. For CoOp's style see
test_dassl_coop_style.py. They use Dassl in the same way and compute other numbers."""

import os.path as osp
import pickle
import sys
import time

import dassl
import pytest
import torch
from dassl.config import clean_cfg
from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.data.transforms.transforms import INTERPOLATION_MODES, Compose, Normalize
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.engine.trainer import AverageMeter, MetricMeter, SummaryWriter
from dassl.engine.trainer import TrainerX as TrainerX_
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import ConstantWarmupScheduler
from dassl.optim.radam import RAdam
from dassl.utils import load_checkpoint, load_pretrained_weights, set_random_seed
from dassl.utils.meters import AverageMeter as Meter
from dassl.utils.tools import mkdir_if_missing
from dassl.utils.torchtools import partial
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms import RandomHorizontalFlip, Resize, ToTensor
from tqdm import tqdm
from yacs.config import CfgNode as CN

WIDTH = 6


@pytest.fixture
def run(cfg):
    """Set the seed and build a trainer by name."""

    def build(name, *opts):
        cfg.defrost()
        cfg.TRAINER.NAME = name
        cfg.merge_from_list(list(opts))
        cfg.freeze()
        set_random_seed(1)
        return build_trainer(cfg)

    return build


# -- MaPLe: one registered module with frozen and learned parts; its own transforms -------------------


class Prompts(nn.Module):
    def __init__(self, n_classes, depth):
        super().__init__()
        self.ctx = nn.Parameter(0.02 * torch.randn(2, WIDTH))
        self.compound_prompts_text = nn.ParameterList(
            [nn.Parameter(0.02 * torch.randn(2, WIDTH)) for _ in range(depth - 1)]
        )
        self.proj = nn.Linear(WIDTH, 3)
        self.register_buffer("token_prefix", torch.randn(n_classes, 1, WIDTH))
        self.register_buffer("token_suffix", torch.randn(n_classes, 2, WIDTH))

    def forward(self):
        contexts = [self.ctx, *self.compound_prompts_text]
        return sum(contexts).mean(0), self.proj(contexts[0]).mean(0)


class TwoTowers(nn.Module):
    def __init__(self, cfg, n_classes):
        super().__init__()
        self.prompt_learner = Prompts(n_classes, cfg.TRAINER.MAPLE_LIKE.DEPTH)
        self.image_encoder = nn.Linear(3, WIDTH)

    def forward(self, image, label=None):
        text, shift = self.prompt_learner()
        features = self.image_encoder(image.mean(dim=(2, 3)) + shift)
        logits = features @ (self.prompt_learner.token_suffix.mean(1) + text).t()
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


@TRAINER_REGISTRY.register(force=True)
class MapleLike(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.MAPLE_LIKE.PREC in ["fp16", "fp32", "amp"]

    def build_data_loader(self):
        mode = INTERPOLATION_MODES[self.cfg.INPUT.INTERPOLATION]
        normalize = Normalize(mean=self.cfg.INPUT.PIXEL_MEAN, std=self.cfg.INPUT.PIXEL_STD)
        strong = Compose([Resize(self.cfg.INPUT.SIZE, mode), RandomHorizontalFlip(), ToTensor(), normalize])
        weak = build_transform(self.cfg, is_train=False)
        self.dm = DataManager(self.cfg, custom_tfm_train=[strong, weak], custom_tfm_test=weak)
        for name in ("train_loader_x", "train_loader_u", "val_loader", "test_loader", "num_classes"):
            setattr(self, name, getattr(self.dm, name))
        self.num_source_domains, self.lab2cname = self.dm.num_source_domains, self.dm.lab2cname

    def build_model(self):
        self.model = TwoTowers(self.cfg, len(self.dm.dataset.classnames))
        for name, param in self.model.named_parameters():
            param.requires_grad_("prompt_learner" in name)
        if self.cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, self.cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("MultiModalPromptLearner", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        assert batch["img2"].shape == image.shape
        loss = self.model(image, label)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        for name in self.get_model_names():
            file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
            path = osp.join(directory, name, file)
            if not osp.exists(path):
                raise FileNotFoundError(f'Model not found at "{path}"')
            state_dict = load_checkpoint(path)["state_dict"]
            for key in ("prompt_learner.token_prefix", "prompt_learner.token_suffix"):
                del state_dict[key]
            self._models[name].load_state_dict(state_dict, strict=False)


@pytest.fixture
def maple_cfg(cfg):
    cfg.TRAINER.MAPLE_LIKE = CN({"PREC": "fp32", "DEPTH": 3})
    cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE = 0.2, 20, 1, "constant"
    return cfg


def test_maple_style_client_trains(maple_cfg, run, capsys):
    trainer = run("MapleLike")
    trainer.train()
    out = capsys.readouterr().out
    assert "* Using custom transform for training" in out
    losses = [float(line.split("loss ")[1].split()[0]) for line in out.splitlines() if line.startswith("epoch")]
    assert losses[-1] < losses[0]
    accuracy = trainer.test()
    loaded = run("MapleLike")
    with torch.no_grad():
        loaded.model.image_encoder.weight.zero_()
    loaded.load_model(trainer.output_dir, epoch=20)
    loaded.model.prompt_learner.token_suffix.copy_(trainer.model.prompt_learner.token_suffix)
    assert loaded.test() == accuracy
    with pytest.raises(FileNotFoundError, match="Model not found"):
        loaded.load_model(trainer.output_dir)
    weights = f"{trainer.output_dir}/MultiModalPromptLearner/model.pth.tar-20"
    fresh = run("MapleLike", "MODEL.INIT_WEIGHTS", weights)
    assert torch.equal(fresh.model.prompt_learner.ctx, trainer.model.prompt_learner.ctx)
    assert "Successfully loaded pretrained weights" in capsys.readouterr().out


def test_client_assertion_errors_stay_unchanged(maple_cfg, run):
    with pytest.raises(AssertionError):
        run("MapleLike", "TRAINER.MAPLE_LIKE.PREC", "bf16")
    maple_cfg.defrost()
    clean_cfg(maple_cfg, "maple_like")
    assert set(maple_cfg.TRAINER) == {"NAME", "MAPLE_LIKE"}


# -- SPG: two networks with two optimizers, a second pass through the loader in each step -------------


@TRAINER_REGISTRY.register(force=True)
class SpgLike(TrainerX):
    def build_model(self):
        self.gmodel, self.dmodel = nn.Linear(3, WIDTH), nn.Linear(WIDTH + 3, 1)
        self.optimizer_G = torch.optim.AdamW(self.gmodel.parameters(), lr=self.cfg.OPTIM.LR, weight_decay=1e-4)
        self.optimizer_D = torch.optim.AdamW(self.dmodel.parameters(), lr=self.cfg.OPTIM.LR, weight_decay=1e-4)
        self.sched_G = build_lr_scheduler(self.optimizer_G, self.cfg.OPTIM)
        self.sched_D = build_lr_scheduler(self.optimizer_D, self.cfg.OPTIM)
        self.register_model("generator", self.gmodel, self.optimizer_G, self.sched_G)
        self.register_model("discriminator", self.dmodel, self.optimizer_D, self.sched_D)
        self.labels = torch.randn(3, WIDTH)
        self.seen = []

    def before_train(self):
        self.fake_list = list(range(len(self.train_loader_x)))
        writer_dir = osp.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()

    def forward_backward(self, batch):
        image, label, domain = self.parse_batch_train(batch)
        for index, other in enumerate(self.train_loader_x):
            if index == self.fake_list[self.batch_idx]:
                batch_fake = other
                break
        self.seen.append((batch["index"].tolist(), batch_fake["index"].tolist()))
        features, fake_features = image.mean(dim=(2, 3)), batch_fake["img"].to(self.device).mean(dim=(2, 3))
        real, fake = torch.ones(len(label), 1), torch.zeros(len(label), 1)

        self.optimizer_D.zero_grad()
        validity = self.dmodel(torch.cat([self.labels[domain], features], 1))
        generated = self.gmodel(fake_features)
        validity_fake = self.dmodel(torch.cat([generated.detach(), fake_features], 1))
        d_loss = F.mse_loss(validity, real) + F.mse_loss(validity_fake, fake)
        d_loss.backward()
        self.optimizer_D.step()

        self.optimizer_G.zero_grad()
        g_loss = F.mse_loss(self.dmodel(torch.cat([generated, fake_features], 1)), real)
        g_loss.backward()
        self.optimizer_G.step()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"g_loss": g_loss.item(), "d_loss": d_loss.item()}

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        meter = Meter()
        for batch in tqdm(self.val_loader if split == "val" else self.test_loader):
            image, label = self.parse_batch_test(batch)
            output = self.gmodel(image.mean(dim=(2, 3)))[:, : self.num_classes]
            meter.update(compute_accuracy(output, label)[0], len(label))
            self.evaluator.process(output, label)
        results = self.evaluator.evaluate()
        assert results["accuracy"] == pytest.approx(meter.avg, abs=1e-3)
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return list(results.values())[0]

    def load_model(self, directory, epoch=None):
        for name in self.get_model_names():
            checkpoint = self.load_checkpoint(osp.join(directory, name, f"model.pth.tar-{epoch}"))
            self._models[name].load_state_dict(checkpoint["state_dict"])
            self._optims[name].load_state_dict(checkpoint["optimizer"])
            self._scheds[name].load_state_dict(checkpoint["scheduler"])

    def load_checkpoint(self, fpath):
        try:
            return torch.load(fpath, map_location="cpu", weights_only=True)
        except UnicodeDecodeError:
            pickle.load = partial(pickle.load, encoding="latin1")
            raise


@pytest.mark.parametrize("workers", [0, 2])
def test_spg_style_client_trains(cfg, run, workers):
    assert dassl.__version__.startswith("0.6.3")
    opts = ["OPTIM.MAX_EPOCH", 2, "OPTIM.WARMUP_EPOCH", 1, "DATALOADER.NUM_WORKERS", workers]
    trainer = run("SpgLike", *opts)
    torch.manual_seed(2)
    trainer.train()

    # The same looks into a loader of torch, as Dassl builds it.
    data = trainer.train_loader_x.dataset
    plain = DataLoader(data, 6, sampler=RandomSampler(data), num_workers=workers, drop_last=True)
    expected = []
    torch.manual_seed(2)
    for _ in range(2):
        for step, batch in enumerate(plain):
            for index, fake in enumerate(plain):
                if index == step:
                    expected.append((batch["index"].tolist(), fake["index"].tolist()))
                    break
    assert trainer.seen == expected

    loaded = run("SpgLike", *opts)
    loaded.load_model(trainer.output_dir, epoch=2)
    assert torch.equal(loaded.gmodel.weight, trainer.gmodel.weight)
    assert loaded.get_current_lr() == trainer.get_current_lr()
    assert loaded.test() == trainer.test()
    with pytest.raises(FileNotFoundError):
        loaded.load_model(trainer.output_dir, epoch=9)


# -- DePT: its own loop, log and optimizer ------------------------------------------------------------


class Tee:
    """A client's copy of Dassl's Logger: it has only write and flush."""

    def __init__(self, fpath):
        self.console, self.file = sys.stdout, open(fpath, "w")  # noqa: SIM115

    def write(self, message):
        self.console.write(message)
        self.file.write(message)

    def flush(self):
        self.console.flush()
        self.file.flush()


@TRAINER_REGISTRY.register(force=True)
class DeptLike(TrainerX_):
    def build_model(self):
        self.model = nn.Linear(3, self.num_classes)
        self.optim = RAdam([{"params": [self.model.weight]}, {"params": [self.model.bias], "lr": 0.01}], lr=0.1)
        successor = torch.optim.lr_scheduler.CosineAnnealingLR(self.optim, float(self.max_epoch))
        self.sched = ConstantWarmupScheduler(self.optim, successor, 1, 1e-5)
        self.register_model("linear", self.model, self.optim, self.sched)

    def init_writer(self, log_dir):
        self._writer = SummaryWriter(log_dir=log_dir)

    def run_epoch(self):
        self.set_model_mode("train")
        losses, batch_time = MetricMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        end = time.time()
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020
            image, label, _ = self.parse_batch_train(batch)
            loss = F.cross_entropy(self.model(image.mean(dim=(2, 3))), label)
            self.model_backward_and_update(loss)
            losses.update({"loss": loss})
            batch_time.update(time.time() - end)
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, self.epoch * self.num_batches + self.batch_idx)
            end = time.time()
        print(f"epoch {self.epoch + 1} {losses} lr {self.get_current_lr():.4e}")
        self.update_lr()

    def model_inference(self, input):
        return self.model(input.mean(dim=(2, 3)))


def test_dept_style_client_trains(cfg, run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Tee(tmp_path / "log.txt"))
    trainer = run("DeptLike", "OPTIM.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_FREQ", 1)
    trainer.train()
    sys.stdout.file.close()
    log = (tmp_path / "log.txt").read_text()
    assert [line.split("lr ")[1] for line in log.splitlines() if line.startswith("epoch ")][:2] == [
        "1.0000e-05",
        "1.0000e-01",
    ]
    assert "Elapsed: " in log
    monkeypatch.undo()
    resumed = run("DeptLike")
    assert resumed.resume_model_if_exist(trainer.output_dir) == 4
    assert [group["lr"] for group in resumed.optim.param_groups] == [
        group["lr"] for group in trainer.optim.param_groups
    ]
