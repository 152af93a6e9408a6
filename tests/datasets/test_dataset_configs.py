"""The config files name registered datasets, and a dataset becomes loaders."""

from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY
from dataset_trees import config, make_set, write_images

import datasets  # noqa: F401
from datasets.spg_pacs import SPG_PACS

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs/datasets").glob("*.yaml"))


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "mini_digits"], ids=lambda path: path.stem)
def test_config_names_a_dataset(path):
    cfg = get_cfg_default()
    cfg.merge_from_file(str(path))
    assert DATASET_REGISTRY.get(cfg.DATASET.NAME).__name__ == cfg.DATASET.NAME


def test_there_is_a_config_for_each_set():
    assert {path.stem for path in CONFIGS} >= {
        "pacs", "vlcs", "office_home", "terra_incognita", "domainnet", "folder", "mini_digits",
    }  # fmt: skip


def test_loaders(tmp_path):
    make_set(tmp_path, SPG_PACS, SPG_PACS.layouts[0], 2)
    write_images(tmp_path / "pacs/images/photo/dog", ["gray.png"])
    cfg = config(tmp_path, ["p"])
    cfg.DATASET.NAME = "SPG_PACS"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 7
    cfg.INPUT.SIZE = (8, 8)
    manager = DataManager(cfg)
    assert manager.num_classes == 7
    assert manager.lab2cname[0] == "dog"
    batch = next(iter(manager.train_loader_x))
    assert batch["img"].shape == (7, 3, 8, 8)
    assert set(batch["domain"].tolist()) <= {0, 1, 3}
    assert sum(len(batch["label"]) for batch in manager.test_loader) == 15
