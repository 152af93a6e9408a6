"""The commands of README as a user types them, on 30 small images and the tiny CLIP of the repository."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
CLIP = REPOSITORY / "assets/mini_clip.pt"
QUICK = ("DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "2")
TWO_STAGES = (*QUICK, "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 2]")


def make_images(folder):
    """Make 3 domains x 2 classes x 5 images of 40 x 40 pixels."""
    rng = np.random.default_rng(0)
    for channel, domain in enumerate(("red", "green", "blue")):
        for axis, name in enumerate(("across", "down")):
            (folder / domain / name).mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
                stripes = (255 * (np.arange(40) // (3 + i) % 2)).astype(np.uint8)
                pixels[..., channel] = stripes[None, :] if axis else stripes[:, None]
                Image.fromarray(pixels).save(folder / domain / name / f"{i}.png")


def start(folder, command, **environment):
    """Start a command in a folder as a session of its own; its output goes to a pipe."""
    environment = {**os.environ, "PYTHON": sys.executable, "SEEDS": "1", "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    words = list(map(str, command))
    return subprocess.Popen(words, cwd=folder, env=environment, start_new_session=True, **pipes)


def run(folder, command, code=0, **environment):
    """Run a command, check its exit code, and return (stdout, stderr)."""
    process = start(folder, command, **environment)
    stdout, stderr = process.communicate()
    assert process.returncode == code, f"exit code {process.returncode}\n{stdout[-3000:]}\n{stderr[-3000:]}"
    assert "Traceback" not in stderr
    return stdout, stderr


def run_train(folder, command, code=0):
    """Run a `train.py` command in this process, check its exit code, and return (stdout, stderr)."""
    import train as command_line

    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        found = command_line.main(list(map(str, command[2:])))
    assert found == code, f"exit code {found}\n{stdout.getvalue()[-3000:]}\n{stderr.getvalue()[-3000:]}"
    return stdout.getvalue(), stderr.getvalue()


def bash(script, *words):
    """`bash scripts/<script> <words>`."""
    return ("bash", REPOSITORY / "scripts" / script, *words)


def python(script, *words):
    """`python <script> <words>`."""
    return (sys.executable, REPOSITORY / script, *words)


def train(trainer, output, *opts, images="images", target="red", backbone=CLIP, flags=(), seed=1, config=""):
    """`python train.py --trainer <trainer> ...` on a folder of images, by the method's default config."""
    config = REPOSITORY / "configs/trainers" / (config or trainer) / "default.yaml"
    words = ["--trainer", trainer, "--root", images, "--backbone", backbone, "--seed", seed, "--output-dir", output]
    words += ["--dataset-config-file", REPOSITORY / "configs/datasets/folder.yaml", "--config-file", config]
    return python("train.py", *words, "--target-domains", target, *flags, *(opts or QUICK))


def spg(output, *opts, **options):
    """A whole SPG run of two epochs a stage."""
    return train("SPG", output, *TWO_STAGES, "DATALOADER.TRAIN_X.BATCH_SIZE", "4", *opts, config="SPG_CGAN", **options)


def results(run_folder):
    """The keys of a run's results.json."""
    return json.loads((Path(run_folder) / "results.json").read_text(encoding="utf-8"))


def numbers(run_folder):
    """Everything of a run that has to be equal when the same command runs again."""
    found = results(run_folder)
    keys = ("accuracy", "macro_f1", "accuracy_by_domain", "val_history", "loss_history")
    logits = np.load(Path(run_folder) / "logits.npy").tobytes()
    return {**{key: found[key] for key in keys}, "predictions": predictions(run_folder), "logits": logits}


def predictions(run_folder):
    """The rows of predictions.csv as dictionaries."""
    with open(Path(run_folder) / "predictions.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
