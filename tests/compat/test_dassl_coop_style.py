"""A trainer, a data set and a command line in CoOp's style, on a toy CLIP."""

import argparse
import os
import os.path as osp
import pickle
import re

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    collect_env_info,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    read_json,
    set_random_seed,
    write_json,
)
from torch import nn
from torch.amp import GradScaler, autocast
from torch.nn import functional as F
from yacs.config import CfgNode as CN

DIM = 8


# -- the dataset: a split file, a few-shot cache ----------------------------------------------------


@DATASET_REGISTRY.register(force=True)
class CoOpStyleDataset(DatasetBase):
    dataset_dir = "art"

    def __init__(self, cfg):
        root = osp.abspath(osp.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = osp.join(root, self.dataset_dir)
        self.split_path = osp.join(cfg.OUTPUT_DIR, "split.json")
        self.split_fewshot_dir = osp.join(cfg.OUTPUT_DIR, "split_fewshot")
        mkdir_if_missing(self.split_fewshot_dir)
        if not osp.exists(self.split_path):
            write_json({"train": self.read_folder()}, self.split_path)
        train = [Datum(impath=p, label=int(y), classname=c) for p, y, c in read_json(self.split_path)["train"]]
        val, test = train[::2], train

        num_shots = cfg.DATASET.NUM_SHOTS
        if num_shots >= 1:
            preprocessed = osp.join(self.split_fewshot_dir, f"shot_{num_shots}-seed_{cfg.SEED}.pkl")
            if osp.exists(preprocessed):
                with open(preprocessed, "rb") as file:
                    data = pickle.load(file)
                    train, val = data["train"], data["val"]
            else:
                train = self.generate_fewshot_dataset(train, num_shots=num_shots)
                val = self.generate_fewshot_dataset(val, num_shots=min(num_shots, 4))
                with open(preprocessed, "wb") as file:
                    pickle.dump({"train": train, "val": val}, file, protocol=pickle.HIGHEST_PROTOCOL)
        super().__init__(train_x=train, val=val, test=test)

    def read_folder(self):
        items = []
        for label, name in enumerate(listdir_nohidden(self.dataset_dir, sort=True)):
            folder = osp.join(self.dataset_dir, name)
            items += [(osp.join(folder, file), label, name) for file in listdir_nohidden(folder, sort=True)]
        return items


# -- the trainer ------------------------------------------------------------------------------------


class PromptLearner(nn.Module):
    def __init__(self, cfg, classnames):
        super().__init__()
        n_ctx = cfg.TRAINER.COOP.N_CTX
        self.ctx = nn.Parameter(torch.empty(n_ctx, DIM).normal_(std=0.02))
        generator = torch.Generator().manual_seed(0)
        embedding = torch.randn(len(classnames), 2, DIM, generator=generator)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1:])

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, classnames)
        self.image_encoder = nn.Linear(3, DIM)
        self.text_encoder = nn.Linear((cfg.TRAINER.COOP.N_CTX + 2) * DIM, DIM)

    def forward(self, image):
        image_features = F.normalize(self.image_encoder(image.mean(dim=(2, 3))), dim=-1)
        text_features = F.normalize(self.text_encoder(self.prompt_learner().flatten(1)), dim=-1)
        return 20.0 * image_features @ text_features.t()


@TRAINER_REGISTRY.register(force=True)
class CoOpStyle(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.COOP.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        classnames = self.dm.dataset.classnames
        torch.manual_seed(0)
        self.model = CustomCLIP(cfg, classnames)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = GradScaler(self.device.type) if cfg.TRAINER.COOP.PREC == "amp" else None
        if torch.cuda.device_count() > 1:
            self.model = nn.DataParallel(self.model)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if self.cfg.TRAINER.COOP.PREC == "amp":
            with autocast(self.device.type, dtype=torch.bfloat16):
                output = self.model(image)
                loss = F.cross_entropy(output, label)
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
        loss_summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return loss_summary

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        names = self.get_model_names()
        model_file = "model-best.pth.tar"
        if epoch is not None:
            model_file = "model.pth.tar-" + str(epoch)
        for name in names:
            model_path = osp.join(directory, name, model_file)
            if not osp.exists(model_path):
                raise FileNotFoundError(f'Model not found at "{model_path}"')
            checkpoint = load_checkpoint(model_path)
            state_dict = checkpoint["state_dict"]
            epoch = checkpoint["epoch"]
            if "token_prefix" in state_dict:
                del state_dict["token_prefix"]
            if "token_suffix" in state_dict:
                del state_dict["token_suffix"]
            print(f'Loading weights to {name} from "{model_path}" (epoch = {epoch})')
            self._models[name].load_state_dict(state_dict, strict=False)


# -- the command line -------------------------------------------------------------------------------


def setup_cfg(args):
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CN()
    cfg.TRAINER.COOP.N_CTX = 16
    cfg.TRAINER.COOP.CSC = False
    cfg.TRAINER.COOP.CTX_INIT = ""
    cfg.TRAINER.COOP.PREC = "fp16"
    cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.merge_from_file(args.config_file)
    cfg.DATASET.ROOT = args.root
    cfg.OUTPUT_DIR = args.output_dir
    cfg.RESUME = args.resume
    cfg.SEED = args.seed
    cfg.TRAINER.NAME = args.trainer
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def main(args):
    cfg = setup_cfg(args)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    print(cfg)
    print("** System info **\n{}\n".format(collect_env_info()))  # noqa: UP032
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        return trainer, trainer.test()
    trainer.train()
    return trainer, None


CONFIG = """
DATALOADER:
  TRAIN_X:
    BATCH_SIZE: 4
  TEST:
    BATCH_SIZE: 100
  NUM_WORKERS: 0
INPUT:
  SIZE: (8, 8)
  INTERPOLATION: "bicubic"
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  PIXEL_STD: [0.26862954, 0.26130258, 0.27577711]
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]
OPTIM:
  NAME: "sgd"
  LR: 0.05
  MAX_EPOCH: 8
  LR_SCHEDULER: "cosine"
  WARMUP_EPOCH: 1
  WARMUP_TYPE: "constant"
  WARMUP_CONS_LR: 1e-5
TRAIN:
  PRINT_FREQ: 5
DATASET:
  NAME: "CoOpStyleDataset"
"""


@pytest.fixture
def run(image_root, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("1e-5", "0.00001"))

    def run(*opts, **changes):
        args = {
            "config_file": str(config),
            "root": str(image_root),
            "output_dir": str(tmp_path / "out"),
            "resume": "",
            "seed": 1,
            "trainer": "CoOpStyle",
            "eval_only": False,
            "model_dir": "",
            "load_epoch": None,
        }
        return main(argparse.Namespace(**{**args, **changes}, opts=["USE_CUDA", "False", *opts]))

    return run


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_coop_client_trains_and_evaluates(run, precision, capsys):
    opts = ["TRAINER.COOP.N_CTX", "4", "TRAINER.COOP.PREC", precision, "DATASET.NUM_SHOTS", "3"]
    trainer, _ = run(*opts)
    out = capsys.readouterr().out
    # CoOp's parse_test_res.py looks for this line.
    accuracies = re.findall(r"^\* accuracy: ([\.\deE+-]+)%$", out[out.index("Finish training") :], re.MULTILINE)
    assert len(accuracies) == 1
    losses = [float(x) for x in re.findall(r"loss ([\d.]+) \(", out)]
    assert len(losses) == 8 * 2  # 9 images, batches of 4; fewer than PRINT_FREQ, so each is printed
    assert losses[-1] < losses[0]
    rates = re.findall(r"lr (\S+)", out)
    # update_lr() comes before the line of the last batch, as in Dassl.
    assert rates[:3] == ["1.0000e-05", "5.0000e-02", "5.0000e-02"]
    assert osp.exists(f"{trainer.output_dir}/prompt_learner/model.pth.tar-8")
    assert os.listdir(f"{trainer.output_dir}/split_fewshot") == ["shot_3-seed_1.pkl"]
    assert "Creating a 3-shot dataset" in out

    evaluated, accuracy = run(*opts, eval_only=True, model_dir=trainer.output_dir, load_epoch=8)
    assert f"{accuracy:.1f}" == f"{float(accuracies[0]):.1f}"
    assert torch.equal(evaluated.model.prompt_learner.ctx, trainer.model.prompt_learner.ctx)
    # The cache of the first run was used.
    assert [item.impath for item in evaluated.dm.dataset.train_x] == [
        item.impath for item in trainer.dm.dataset.train_x
    ]
    assert "Creating" not in capsys.readouterr().out


def test_coop_client_repeats_its_numbers(run, tmp_path):
    contexts = []
    for folder in ("a", "b"):
        trainer, _ = run("TRAINER.COOP.PREC", "fp32", output_dir=str(tmp_path / folder))
        contexts.append(trainer.model.prompt_learner.ctx)
    assert torch.equal(*contexts)


def test_coop_client_loads_initial_weights(run, tmp_path, capsys):
    trained, _ = run("TRAINER.COOP.PREC", "fp32")
    weights = f"{trained.output_dir}/prompt_learner/model.pth.tar-8"
    opts = ["TRAINER.COOP.PREC", "fp32", "MODEL.INIT_WEIGHTS", weights]
    fresh, _ = run(*opts, eval_only=True, output_dir=str(tmp_path / "b"))
    assert torch.equal(fresh.model.prompt_learner.ctx, trained.model.prompt_learner.ctx)
    assert "Successfully loaded pretrained weights" in capsys.readouterr().out
