"""README's steps for a CoOp checkout, on a miniature checkout."""

import os
import shutil
import subprocess
import sys

from quick_run import REPOSITORY

TRAIN = """
import sys

from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed, setup_logger
from yacs.config import CfgNode as CN

import trainers.coop
import trainers.all
from trainers.config import extend_cfg

cfg = get_cfg_default()
cfg.TRAINER.COOP = CN()
cfg.TRAINER.COOP.N_CTX = 16
extend_cfg(cfg)
cfg.merge_from_file(sys.argv[1])
cfg.merge_from_file(sys.argv[2])
cfg.merge_from_list(sys.argv[3:])
cfg.freeze()
set_random_seed(cfg.SEED)
setup_logger(cfg.OUTPUT_DIR)
build_trainer(cfg).train()
"""


def test_trainers_in_a_coop_checkout_train_and_test(tmp_path, image_folder, clip_file):
    checkout, coop = tmp_path / "CoOp", '"""CoOp\'s own."""\n'
    for name, text in {
        "train.py": TRAIN,
        "trainers/__init__.py": "",
        "trainers/coop.py": coop,
        "datasets/__init__.py": "",
        "configs/datasets/caltech101.yaml": 'DATASET:\n  NAME: "Caltech101"\n',
    }.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    parts = [str(REPOSITORY / part) for part in ("trainers", "datasets", "common", "configs")]
    subprocess.run(["cp", "-rn", *parts, str(checkout)], check=True)
    assert (checkout / "trainers/coop.py").read_text() == coop

    before, out = sorted(path.name for path in checkout.iterdir()), tmp_path / "out"
    images = shutil.copytree(image_folder, tmp_path / "images", ignore=shutil.ignore_patterns("spg_coop_splits"))
    words = ["configs/datasets/folder.yaml", "configs/trainers/SPG_CGAN/default.yaml"]
    words += ["TRAINER.NAME", "SPG", "MODEL.BACKBONE.NAME", clip_file, "OUTPUT_DIR", out / "run", "SEED", "1"]
    words += ["DATASET.ROOT", images, "DATASET.TARGET_DOMAINS", "['red']", "DATALOADER.NUM_WORKERS", "0"]
    words += ["OPTIM.MAX_EPOCH", "2", "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH',2]"]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", "8"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "compat")}
    command = [sys.executable, "train.py", *words]
    process = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert (out / "run/results.json").is_file()
    assert (out / "feature_cache").is_dir() and (out / "prompt_labels").is_dir()
    assert sorted(path.name for path in checkout.iterdir()) == before
