"""A data set and trainers of CoOp's users print the same lines on our core as on the original Dassl.

As a script, this file records the lines of the original. Run it in the folder of Dassl.pytorch, with the patch in
README: `PYTHONPATH=. TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 python <this file>`.
"""

import contextlib
import io
import os
import pickle
import random
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, mkdir_if_missing, read_json, set_random_seed, write_json
from PIL import Image
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode as CN

RECORDED = Path(__file__).with_name("recorded_lines.txt")
DOMAINS, CLASSES = ["art", "photo", "sketch"], ["cat", "dog", "fox"]
SHOTS = ["DATASET.NUM_SHOTS", 4, "TEST.PER_CLASS_RESULT", True]
BY_DOMAIN = ["DATALOADER.TRAIN_X.SAMPLER", "RandomDomainSampler", "DATALOADER.TRAIN_U.SAME_AS_X", False]
CASES = {
    "ClientCoOp": SHOTS,
    "ClientCoOp with workers": [*SHOTS, "DATALOADER.NUM_WORKERS", 2],
    "ClientEntropy": ["TRAIN.COUNT_ITER", "train_u"],
    "ClientEntropy with workers": ["DATALOADER.NUM_WORKERS", 2, "TRAIN.COUNT_ITER", "smaller_one"],
    "ClientEntropy by domain": [*BY_DOMAIN, "DATALOADER.TRAIN_U.BATCH_SIZE", 4, "DATALOADER.K_TRANSFORMS", 2],
}


@DATASET_REGISTRY.register()
class ClientPets(DatasetBase):
    """Split file and pickled few-shot sets as in CoOp's data sets; the target domain is the unlabelled data."""

    dataset_dir = "client_pets"
    domains = DOMAINS

    def __init__(self, cfg):
        self.dataset_dir = os.path.join(cfg.DATASET.ROOT, self.dataset_dir)
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        train, test = (self.read(names) for names in (cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS))
        if cfg.DATASET.NUM_SHOTS >= 1:
            fewshot = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
            train = pickle.loads(pickle.dumps(fewshot))
        super().__init__(train_x=train, train_u=test, test=test)

    def read(self, domains):
        rows = read_json(os.path.join(self.dataset_dir, "split.json"))
        return [Datum(os.path.join(self.dataset_dir, p), y, d, c) for p, y, d, c in rows if DOMAINS[d] in domains]


def make_images(root):
    """Write the data set: 3 domains x 3 classes x 5 to 7 images of random pixels, each class with its colour."""
    rng, rows = np.random.RandomState(0), []
    for d, domain in enumerate(DOMAINS):
        for label, name in enumerate(CLASSES):
            for n in range(5 + (d + label) % 3):
                rows.append((f"images/{domain}/{name}/{n}.png", label, d, name))
                path = Path(root, ClientPets.dataset_dir, rows[-1][0])
                mkdir_if_missing(path.parent)
                pixels = rng.randint(0, 160, (12, 10, 3)) + 80 * np.eye(3, dtype=int)[label] + 5 * d
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    write_json(rows, os.path.join(root, ClientPets.dataset_dir, "split.json"))


class PromptLearner(nn.Module):
    def __init__(self, cfg, classnames):
        super().__init__()
        self.ctx = nn.Parameter(nn.init.normal_(torch.empty(cfg.TRAINER.CLIENT.N_CTX, 6), std=0.02))
        self.register_buffer("token_prefix", torch.randn(len(classnames), 1, 6))
        self.register_buffer("image_encoder", torch.randn(192, 6) / 8)

    def forward(self, image):
        ctx = self.ctx.unsqueeze(0).expand(len(self.token_prefix), -1, -1)
        text_features = (torch.cat([self.token_prefix, ctx], dim=1) + 1).pow(2).mean(dim=1)
        return F.dropout(image.flatten(1) @ self.image_encoder, 0.2, self.training) @ text_features.t()


@TRAINER_REGISTRY.register()
class ClientCoOp(TrainerX):
    def build_model(self):
        self.model = PromptLearner(self.cfg, self.dm.dataset.classnames).to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_test(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def load_model(self, directory, epoch=None):
        for name in self.get_model_names():
            checkpoint = load_checkpoint(os.path.join(directory, name, f"model.pth.tar-{epoch}"))
            print(f"Loading weights to {name} (epoch = {checkpoint['epoch']})")
            del checkpoint["state_dict"]["token_prefix"]
            self._models[name].load_state_dict(checkpoint["state_dict"], strict=False)


@TRAINER_REGISTRY.register()
class ClientEntropy(TrainerXU):
    def build_model(self):
        self.model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, self.num_classes))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def forward_backward(self, batch_x, batch_u):
        views_x, views_u = (b["img"] if isinstance(b["img"], list) else [b["img"]] for b in (batch_x, batch_u))
        loss_x = F.cross_entropy(self.model(views_x[0]), batch_x["label"])
        prob = self.model(torch.cat(views_u)).softmax(dim=1)
        loss_u = -(prob * prob.log()).sum(dim=1).mean()
        self.model_backward_and_update(loss_x + 0.1 * loss_u)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss_x": loss_x.item(), "loss_u": loss_u.item()}


def run(case, folder):
    """Make the images in an empty folder, train and test one of CASES, and return the lines that both cores print."""
    make_images(folder)
    cfg = get_cfg_default()
    cfg.TRAINER.CLIENT = CN({"N_CTX": 2})
    cfg.merge_from_list(
        ["OUTPUT_DIR", f"{folder}/output", "USE_CUDA", False, "SEED", 1, "TRAINER.NAME", case.split()[0]]
        + ["DATASET.ROOT", str(folder), "DATASET.NAME", "ClientPets", "DATALOADER.NUM_WORKERS", 0]
        + ["DATASET.SOURCE_DOMAINS", ["art", "photo"], "DATASET.TARGET_DOMAINS", ["sketch"], "INPUT.SIZE", (8, 8)]
        + ["INPUT.TRANSFORMS", ["random_translation", "random_flip", "normalize"], "DATALOADER.TRAIN_X.BATCH_SIZE", 6]
        + ["OPTIM.NAME", "sgd", "OPTIM.LR", 0.02, "OPTIM.MAX_EPOCH", 3, "OPTIM.LR_SCHEDULER", "cosine"]
        + ["OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant", *CASES[case]]
    )
    cfg.freeze()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        set_random_seed(cfg.SEED)
        trainer = build_trainer(cfg)
        trainer.train()
        if cfg.DATASET.NUM_SHOTS > 0:
            trainer.load_model(cfg.OUTPUT_DIR, epoch=3)
            trainer.test()
        print(f"next draws {torch.rand(1).item():.6f} {random.random():.6f} {np.random.rand():.6f}")
    text = re.sub(r"(time|data|eta|Elapsed:) [\d.:]+( \([\d.]+\))?", r"\1 T", printed.getvalue())
    # "+ ...": the cores describe transforms in other words.
    return [line.rstrip() for line in text.replace(str(folder), "").splitlines() if not line.startswith("+ ")]


@pytest.mark.parametrize("case", CASES)
def test_client_prints_the_lines_recorded_from_the_original(case, tmp_path):
    torch.set_num_threads(1)
    recorded = dict(part.split("\n", 1) for part in RECORDED.read_text(encoding="utf-8").split("== ")[1:])
    assert run(case, tmp_path) == recorded[case].splitlines()


if __name__ == "__main__":
    import dassl.engine.da  # noqa: F401 (only the original has it)

    torch.set_num_threads(1)
    parts = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            parts.append("\n".join([f"== {case}", *run(case, folder), ""]))
    RECORDED.write_text("".join(parts), encoding="utf-8")
