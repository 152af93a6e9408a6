"""README's steps for a CoOp checkout, on a miniature checkout."""

import os
import shutil
import subprocess
import sys

import pytest
from quick_run import REPOSITORY, command_line

TRAIN = """
import argparse
import sys

from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed, setup_logger
from yacs.config import CfgNode as CN

import trainers.coop
import trainers.all


def extend_cfg(cfg):
    cfg.TRAINER.COOP = CN()
    cfg.TRAINER.COOP.N_CTX = 16
    from trainers.config import extend_cfg as extend_cfg_spg
    extend_cfg_spg(cfg)


parser = argparse.ArgumentParser()
for name in ("root", "trainer", "backbone", "dataset-config-file", "config-file", "output-dir"):
    parser.add_argument("--" + name)
parser.add_argument("--seed", type=int)
parser.add_argument("--target-domains", nargs=1)
parser.add_argument("opts", nargs=argparse.REMAINDER)
args = parser.parse_args()
cfg = get_cfg_default()
extend_cfg(cfg)
cfg.merge_from_file(args.dataset_config_file)
cfg.merge_from_file(args.config_file)
cfg.DATASET.ROOT, cfg.DATASET.TARGET_DOMAINS = args.root, args.target_domains
cfg.OUTPUT_DIR, cfg.SEED = args.output_dir, args.seed
cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = args.trainer, args.backbone
cfg.merge_from_list(args.opts)
cfg.freeze()
set_random_seed(cfg.SEED)
setup_logger(cfg.OUTPUT_DIR)
build_trainer(cfg).train()
"""


@pytest.mark.parametrize("trainer", ["SPG", "DPSPG", "LinearProbe"])
def test_trainers_in_a_coop_checkout_train_and_test(tmp_path, image_folder, clip_file, trainer):
    checkout = tmp_path / "CoOp"
    for folder in ("trainers", "datasets"):
        (checkout / folder).mkdir(parents=True)
        (checkout / folder / "__init__.py").write_text("")
    coop = '"""CoOp\'s own."""\n'
    (checkout / "trainers" / "coop.py").write_text(coop)
    (checkout / "train.py").write_text(TRAIN)
    (checkout / "configs" / "datasets").mkdir(parents=True)
    (checkout / "configs" / "datasets" / "caltech101.yaml").write_text('DATASET:\n  NAME: "Caltech101"\n')
    shutil.copytree(image_folder, tmp_path / "images", ignore=shutil.ignore_patterns("spg_coop_splits"))

    parts = [str(REPOSITORY / part) for part in ("trainers", "datasets", "common", "configs")]
    subprocess.run(["cp", "-rn", *parts, str(checkout)], check=True)
    assert (checkout / "trainers" / "coop.py").read_text() == coop

    before = sorted(path.name for path in checkout.iterdir())
    flags = ["--output-dir", str(tmp_path / "out/run")]
    arguments = command_line(trainer, "red", flags=flags, root=tmp_path / "images", clip=clip_file)
    process = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "compat")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "out/run/results.json").is_file()
    assert (tmp_path / "out/feature_cache").is_dir()
    assert (tmp_path / "out/prompt_labels").is_dir() == (trainer in ("SPG", "DPSPG"))
    assert sorted(path.name for path in checkout.iterdir()) == before
