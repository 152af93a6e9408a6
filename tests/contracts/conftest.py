"""What the contracts run on: a small folder of images and two tiny CLIPs."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference import tiny_clip

CLASSES = ("big_old_oak_tree", "dog", "guinea_pig")  # of different lengths, and not in order of length


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """<domain>/<class>/<image>: 3 domains x 3 classes x 4 images of 40 x 40 random pixels, the same every time."""
    root, rng = tmp_path_factory.mktemp("contracts") / "pixels", np.random.default_rng(0)
    for domain in ("blue", "green", "red"):
        for classname in CLASSES:
            (root / domain / classname).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(root / domain / classname / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Files of two CLIPs and the models in double precision: clips["resnet"] and clips["vit"] -> (file, model)."""
    folder = tmp_path_factory.mktemp("clips")
    models = {"resnet": tiny_clip(embed_dim=64, width=128), "vit": tiny_clip(vision=3, vit_width=128)}
    for name, model in models.items():
        torch.save(model.state_dict(), folder / f"{name}.pt")
    return {name: (folder / f"{name}.pt", model.double()) for name, model in models.items()}
