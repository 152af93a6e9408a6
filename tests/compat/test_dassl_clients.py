"""Our own clients in the style of MaPLe and of the SPG authors' trainers, which use Dassl in the same way.

tests/contracts/test_clients.py has clients in CoOp's style.
"""

import os.path as osp
import time

import pytest
import torch
from dassl.config import clean_cfg
from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.data.transforms.transforms import INTERPOLATION_MODES, Compose, Normalize
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights, set_random_seed
from dassl.utils.meters import AverageMeter as Meter
from dassl.utils.tools import mkdir_if_missing
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import RandomHorizontalFlip, Resize, ToTensor
from yacs.config import CfgNode as CN


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


# ---- MaPLe: one registered module with frozen and learned parts; its own transforms ----


class TwoTowers(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.prompt_learner = nn.ModuleDict({"proj": nn.Linear(3, 3)})
        self.image_encoder = nn.Linear(3, n_classes)

    def forward(self, image, label=None):
        logits = self.image_encoder(self.prompt_learner["proj"](image.mean(dim=(2, 3))))
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
        self.model = TwoTowers(len(self.dm.dataset.classnames))
        for name, param in self.model.named_parameters():
            param.requires_grad_("prompt_learner" in name)
        if self.cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, self.cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("MultiModalPromptLearner", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = batch["img"].to(self.device), batch["label"].to(self.device)
        assert batch["img2"].shape == image.shape
        loss = self.model(image, label)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@pytest.fixture
def maple_cfg(cfg):
    cfg.TRAINER.MAPLE_LIKE = CN({"PREC": "fp32"})
    cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE = 0.2, 20, 1, "constant"
    return cfg


def test_maple_style_client_trains_and_starts_from_given_weights(maple_cfg, run, capsys):
    trainer = run("MapleLike")
    before = trainer.model.image_encoder.weight.clone()
    trainer.train()
    out = capsys.readouterr().out
    assert "* Using custom transform for training" in out
    losses = [float(line.split("loss ")[1].split()[0]) for line in out.splitlines() if line.startswith("epoch")]
    assert losses[-1] < losses[0] and torch.equal(trainer.model.image_encoder.weight, before)
    weights = f"{trainer.output_dir}/MultiModalPromptLearner/model.pth.tar-20"
    fresh = run("MapleLike", "MODEL.INIT_WEIGHTS", weights)
    assert "Successfully loaded pretrained weights" in capsys.readouterr().out
    assert fresh.test() == trainer.test()


def test_client_assertion_errors_stay_unchanged(maple_cfg, run):
    with pytest.raises(AssertionError):
        run("MapleLike", "TRAINER.MAPLE_LIKE.PREC", "bf16")
    maple_cfg.defrost()
    clean_cfg(maple_cfg, "maple_like")
    assert set(maple_cfg.TRAINER) == {"NAME", "MAPLE_LIKE"}


# ---- SPG: two networks with two optimizers, a second pass through the loader in each step ----


@TRAINER_REGISTRY.register(force=True)
class SpgLike(TrainerX):
    def build_model(self):
        self.gmodel, self.dmodel = nn.Linear(3, 6), nn.Linear(9, 1)
        for name, network in (("generator", self.gmodel), ("discriminator", self.dmodel)):
            optimizer = torch.optim.AdamW(network.parameters(), lr=self.cfg.OPTIM.LR, weight_decay=1e-4)
            self.register_model(name, network, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))
        self.labels = torch.randn(3, 6)

    def before_train(self):
        self.fake_list = list(range(len(self.train_loader_x)))
        writer_dir = osp.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()

    def forward_backward(self, batch):
        image, label, domain = self.parse_batch_train(batch)
        for index, batch_fake in enumerate(self.train_loader_x):
            if index == self.fake_list[self.batch_idx]:
                fake_features = batch_fake["img"].to(self.device).mean(dim=(2, 3))
                break
        features = image.mean(dim=(2, 3))
        generated = self.gmodel(fake_features)
        real, fake = torch.ones(len(label), 1), torch.zeros(len(label), 1)
        validity = self.dmodel(torch.cat([self.labels[domain], features], 1))
        validity_fake = self.dmodel(torch.cat([generated.detach(), fake_features], 1))
        d_loss = F.mse_loss(validity, real) + F.mse_loss(validity_fake, fake)
        self.model_backward_and_update(d_loss, "discriminator")
        g_loss = F.mse_loss(self.dmodel(torch.cat([generated, fake_features], 1)), real)
        self.model_backward_and_update(g_loss, ["generator"])
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"g_loss": g_loss.item(), "d_loss": d_loss.item()}

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        meter = Meter()
        for batch in self.val_loader if split == "val" else self.test_loader:
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
            checkpoint = torch.load(osp.join(directory, name, f"model.pth.tar-{epoch}"), weights_only=True)
            self._models[name].load_state_dict(checkpoint["state_dict"])
            self._optims[name].load_state_dict(checkpoint["optimizer"])
            self._scheds[name].load_state_dict(checkpoint["scheduler"])


def test_spg_style_client_trains_and_loads_its_checkpoints(run):
    opts = ["OPTIM.MAX_EPOCH", 2, "OPTIM.WARMUP_EPOCH", 1, "DATALOADER.NUM_WORKERS", 2]
    trainer = run("SpgLike", *opts)
    trainer.train()
    loaded = run("SpgLike", *opts)
    loaded.load_model(trainer.output_dir, epoch=2)
    assert torch.equal(loaded.gmodel.weight, trainer.gmodel.weight)
    assert loaded.get_current_lr() == trainer.get_current_lr()
    assert loaded.test() == trainer.test()
