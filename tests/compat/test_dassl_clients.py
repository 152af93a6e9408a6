"""A client in the style of MaPLe: one registered module with frozen and learned parts, and its own transforms.

tests/contracts/test_clients.py has clients in CoOp's style.
"""

import pytest
import torch
from dassl.config import clean_cfg
from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.data.transforms.transforms import INTERPOLATION_MODES, Compose, Normalize
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights, set_random_seed
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
