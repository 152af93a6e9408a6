"""A run of seconds on 30 images: the images, train.py's arguments, train.py's main in this process, the results."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MADE = ("run", "prompt_labels", "feature_cache")  # folders that a quick run may leave


def make_images(folder):
    """Write 30 images of 40 x 40 pixels: 3 domains (tints) x 2 classes (stripes across or down) x 5, always equal."""
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


def command_line(trainer, target, *opts, flags=(), root="data", clip="tiny.pt", output="run", batch_size=8, epochs=2):
    """Arguments of train.py with seed 1 and the trainer's default config, if it has one; opts are KEY VALUE pairs."""
    from trainers.methods import METHODS  # conftest.py, which imports this module first, adds its path

    configs = REPOSITORY / "configs"
    folders = {method.trainer: method.config_folder for method in METHODS}
    config = configs / "trainers" / folders.get(trainer, trainer) / "default.yaml"
    words = ["--trainer", trainer, "--root", root, "--backbone", clip, "--seed", 1]
    words += ["--dataset-config-file", configs / "datasets/folder.yaml", "--target-domains", target]
    words += [*(["--config-file", config] if config.is_file() else []), "--output-dir", output, *flags]
    words += ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", batch_size, "OPTIM.MAX_EPOCH", epochs]
    node = "DPSPG" if trainer.startswith("DPSPG") else "SPG"
    words += [f"TRAINER.{node}.STAGE1_OPTS", f"['OPTIM.MAX_EPOCH', {epochs}]", *opts]
    return list(map(str, words))


def run_train(arguments):
    """Run train.py's main in this process; returns its exit code."""
    import train

    stdout, stderr = sys.stdout, sys.stderr
    try:
        return train.main(arguments)
    finally:  # Dassl's logger takes the place of stdout
        sys.stdout, sys.stderr = stdout, stderr


def outcome(run):
    """The results of a run's folder, without durations and revision."""
    from common.run import TIMES, read_results

    found = read_results(run / "results.json")
    return {key: value for key, value in found.items() if key not in (*TIMES, "revision")}
