"""A run of seconds: 30 images, and train.py's arguments for any method on them."""

from collections.abc import Iterable
from pathlib import Path

from common.startup import REPOSITORY
from trainers.methods import METHODS


def make_images(folder: Path) -> None:
    """30 images of 40 x 40 pixels: 3 domains (tints) x 2 classes (stripes across or down) x 5, the same every time."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for domain, tint in {"blue": 2, "green": 1, "red": 0}.items():
        for classname in ("across", "down"):
            (folder / domain / classname).mkdir(parents=True)
            for i in range(5):
                stripes = 255 * (np.arange(40) // (3 + i) % 2)
                image = rng.integers(0, 60, (40, 40, 3))
                image[..., tint] = stripes[:, None] if classname == "across" else stripes[None, :]
                Image.fromarray(image.astype(np.uint8)).save(folder / domain / classname / f"{i}.png")


def arguments(
    trainer: str,
    target: str,
    images: str | Path,
    backbone: str | Path,
    output: str | Path,
    *opts: str,
    flags: Iterable[str] = (),
    batch_size: int = 8,
    epochs: int = 2,
) -> list[str]:
    """Arguments of train.py for a quick run with seed 1, by the trainer's own default config, if it has one.

    Args:
        trainer: its name.
        target: domain to test on.
        images: folder of domains, see :func:`make_images`.
        backbone: name or file of a CLIP.
        output: the run's folder.
        opts: KEY VALUE pairs, after the quick ones.
        flags: more of train.py's flags.
        batch_size: images a training step.
        epochs: of each stage.
    """
    configs = REPOSITORY / "configs"
    folders = {method.trainer: method.config_folder for method in METHODS}
    config = configs / "trainers" / folders.get(trainer, trainer) / "default.yaml"
    words: list[object] = ["--trainer", trainer, "--root", images, "--backbone", backbone, "--seed", 1]
    words += ["--dataset-config-file", configs / "datasets/folder.yaml", "--target-domains", target]
    words += [*(["--config-file", config] if config.is_file() else []), "--output-dir", output, *flags]
    words += ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", batch_size, "OPTIM.MAX_EPOCH", epochs]
    node = "DPSPG" if trainer.startswith("DPSPG") else "SPG"
    words += [f"TRAINER.{node}.STAGE1_OPTS", f"['OPTIM.MAX_EPOCH', {epochs}]", *opts]
    return list(map(str, words))
