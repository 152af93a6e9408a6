"""Fixtures of all tests, import paths, and the optional folder ../shared."""

import os
import shutil
import sys

import pytest
from hypothesis import HealthCheck, settings
from quick_run import MADE, REPOSITORY, command_line, make_images, run_train

os.environ.setdefault("SPG_DASSL", "bundled")
sys.path.insert(0, str(REPOSITORY))
sys.path.insert(0, str(REPOSITORY / "compat"))

from common.threads import use_sleeping_waits  # noqa: E402

use_sleeping_waits()
# Several processes run the tests, each with one thread, and start processes with one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every run tests the same examples, so a failure can be repeated on any machine.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

SHARED = REPOSITORY.parent / "shared"
FINISHED = {}  # folders of finished runs by trainer and settings


def pytest_runtest_setup(item):
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(f"needs a GPU: PyTorch ({torch.__version__}) finds no CUDA device here")


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """Skip fsync, which only matters at a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory):
    """Cache hashes of images in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared():
    """The folder ../shared with real images and published files, which developers and CI have."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real PACS images and published files), which is not here")
    return SHARED


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """A file with a tiny CLIP of random weights: ModifiedResNet, 32 px, E = 32, text width 64."""
    import torch
    from reference import tiny_clip

    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny_clip().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory):
    """A file with a tiny CLIP of random weights: ViT, 12 layers in each tower."""
    import torch
    from reference import tiny_clip

    path = tmp_path_factory.mktemp("vit") / "tiny.pt"
    torch.save(tiny_clip(layers=12, vision=12).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def clip_for(clip_file, vit_file):
    """The tiny CLIP that a trainer takes: clip_for("CoOp") -> its file."""
    from trainers.methods import METHODS

    vits = {method.trainer for method in METHODS if method.needs_vit}
    return lambda trainer: vit_file if trainer in vits else clip_file


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """30 images: 3 domains (blue, green, red) x 2 classes (across, down) x 5."""
    root = tmp_path_factory.mktemp("data") / "stripes"
    make_images(root)
    return root


@pytest.fixture
def images(image_folder, tmp_path):
    """A copy of the 30 images, without split files."""
    return shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))


@pytest.fixture
def train(tmp_path, image_folder, clip_for, monkeypatch):
    """Run train.py's main in tmp_path: train("SPG", "red", "KEY", "VALUE", flags=[...]) -> exit code."""
    monkeypatch.chdir(tmp_path)

    def run(trainer, target, *opts, flags=()):
        clip = clip_for(trainer)
        return run_train(command_line(trainer, target, *opts, flags=flags, root=image_folder, clip=clip))

    return run


@pytest.fixture
def build(tmp_path, image_folder, clip_for, monkeypatch):
    """An untrained trainer with the target red: build("SPG_CGAN", "KEY", "VALUE", flags=[...])."""
    from dassl.engine import build_trainer

    import datasets  # noqa: F401 (registers)
    import train as command
    import trainers.all  # noqa: F401 (registers)

    monkeypatch.chdir(tmp_path)

    def make(trainer, *opts, flags=()):
        words = command_line(trainer, "red", *opts, flags=flags, root=image_folder, clip=clip_for(trainer))
        return build_trainer(command.setup_cfg(command.parse_args(words)))

    return make


@pytest.fixture
def finish_run(train, tmp_path, tmp_path_factory):
    """A finished run on the 30 images: finish_run("SPG", "KEY", "VALUE") -> its folder, a copy."""

    def get(trainer, *opts):
        kind = (trainer, *opts)
        if kind in FINISHED:
            shutil.copytree(FINISHED[kind], tmp_path, dirs_exist_ok=True)
        else:
            found = [name for name in MADE if (tmp_path / name).exists()]
            assert train(trainer, "red", *opts) == 0
            if found:  # an earlier run of this test left files, so other tests cannot use this run
                return tmp_path / "run"
            folder = tmp_path_factory.mktemp("finished")
            for name in MADE:
                if (tmp_path / name).is_dir():
                    shutil.copytree(tmp_path / name, folder / name)
            FINISHED[kind] = folder
        return tmp_path / "run"

    return get


@pytest.fixture
def expect_error(train, capsys):
    """Run, expect exit code 1, and return the one message on stderr."""

    def run(*args, **kwargs):
        capsys.readouterr()
        assert train(*args, **kwargs) == 1
        message = capsys.readouterr().err
        assert message.startswith("Error: ") and "Traceback" not in message
        return message

    return run


@pytest.fixture
def opened(monkeypatch, capsys):
    """(path, whether the final model is selected) of each image that runs decode, in order."""
    from PIL import ImageFile

    load, opened = ImageFile.ImageFile.load, []

    def spy(self):
        if self.tile:  # empty once the pixels are there
            opened.append((str(self.filename), "Deploy the model" in capsys.readouterr().out))
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", spy)
    return opened
