"""What the contracts run on: a small folder of images and two tiny CLIPs."""

import shutil

import pytest
import torch
from commands import make_images
from reference import tiny_clip


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("contracts") / "images"
    make_images(root)
    return root


@pytest.fixture
def folder(images, tmp_path):
    """A folder to run in, with a copy of the images."""
    shutil.copytree(images, tmp_path / "images")
    return tmp_path


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Files of two CLIPs and the models in double precision: clips["resnet"] and clips["vit"] -> (file, model)."""
    folder = tmp_path_factory.mktemp("clips")
    models = {"resnet": tiny_clip(embed_dim=64, width=128), "vit": tiny_clip(vision=3, vit_width=128)}
    for name, model in models.items():
        torch.save(model.state_dict(), folder / f"{name}.pt")
    return {name: (folder / f"{name}.pt", model.double()) for name, model in models.items()}
