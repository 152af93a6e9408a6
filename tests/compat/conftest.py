"""A tiny image folder, a dataset over it and a configuration, for the tests of the core."""

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from PIL import Image

DOMAINS = ["art", "photo", "sketch"]
CLASSES = ["cat", "dog", "owl"]
PER_CLASS = 4
COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


@DATASET_REGISTRY.register(force=True)
class ToyDG(DatasetBase):
    """<ROOT>/<domain>/<class>/<n>.png; val is the last image of each class of the source domains."""

    domains = DOMAINS

    def __init__(self, cfg):
        self.root = cfg.DATASET.ROOT
        self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
        source = self.read(cfg.DATASET.SOURCE_DOMAINS)
        super().__init__(
            train_x=[d for d in source if not d.impath.endswith("3.png")],
            val=[d for d in source if d.impath.endswith("3.png")],
            test=self.read(cfg.DATASET.TARGET_DOMAINS),
        )

    def read(self, domains):
        return [
            Datum(f"{self.root}/{domain}/{name}/{n}.png", label, DOMAINS.index(domain), name)
            for domain in domains
            for label, name in enumerate(CLASSES)
            for n in range(PER_CLASS)
        ]


@DATASET_REGISTRY.register(force=True)
class ToyDA(ToyDG):
    """The same with the target domains as unlabelled data, and without val."""

    def __init__(self, cfg):
        super().__init__(cfg)
        DatasetBase.__init__(self, train_x=self.train_x, train_u=self.test, test=self.test)


@pytest.fixture(scope="session")
def image_root(tmp_path_factory):
    """3 domains x 3 classes x 4 images of 20 x 16 pixels, with one colour for each class."""
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for shade, domain in enumerate(DOMAINS):
        for name, colour in zip(CLASSES, COLOURS, strict=True):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for n in range(PER_CLASS):
                noise = rng.integers(-20, 20, (16, 20, 3)) + 10 * shade
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")
    return root


@pytest.fixture
def cfg(image_root, tmp_path):
    """A configuration for ToyDG: sources art and photo, target sketch, 8 x 8 images, no workers."""
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["OUTPUT_DIR", str(tmp_path / "output"), "USE_CUDA", False, "VERBOSE", False]
        + ["INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ["normalize"]]
        + ["DATASET.ROOT", str(image_root), "DATASET.NAME", "ToyDG"]
        + ["DATASET.SOURCE_DOMAINS", ["art", "photo"], "DATASET.TARGET_DOMAINS", ["sketch"]]
        + ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 6]
        + ["OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, "OPTIM.MAX_EPOCH", 3, "OPTIM.LR_SCHEDULER", "cosine"]
    )
    return cfg


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """Every test starts from the same seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
