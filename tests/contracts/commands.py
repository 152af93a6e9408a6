"""The commands of README as a user types them, on 36 small images and the tiny CLIP of the repository."""

import contextlib
import csv
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
CLIP = REPOSITORY / "assets/mini_clip.pt"
CLASSES = ["big_old_oak_tree", "dog", "guinea_pig"]  # of different lengths, and not in order of length
QUICK = [
    *["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", "2"],
    *["TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH',2]", "TRAINER.DPSPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH',2]"],
]


def make_images(root, domains=("blue", "green", "red"), classes=CLASSES):
    """Write <root>/<domain>/<class>/<i>.png: 4 images of 40 x 40 random pixels each, the same every time."""
    rng = np.random.default_rng(0)
    for domain, name in itertools.product(domains, classes):
        (root / domain / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(root / domain / name / f"{i}.png")


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


def script(name, *words):
    """`bash scripts/<name>` or `python <name>`."""
    start = ("bash", REPOSITORY / "scripts" / name) if name.endswith(".sh") else (sys.executable, REPOSITORY / name)
    return (*start, *words)


def train(trainer, output, *opts, images="images", dataset="folder", target="red", backbone=CLIP, flags=()):
    """`python train.py --trainer <trainer> ...`, by default with the method's default config and settings of QUICK."""
    folder, configs = {"SPG": "SPG_CGAN", "DPSPG_TRANSFORMER": "DPSPG"}.get(trainer, trainer), REPOSITORY / "configs"
    words = ["--trainer", trainer, "--root", images, "--backbone", backbone, "--seed", 1, "--output-dir", output]
    words += ["--dataset-config-file", configs / f"datasets/{dataset}.yaml", "--target-domains", target]
    words += ["--config-file", configs / f"trainers/{folder}/default.yaml"]
    return script("train.py", *words, *flags, *(opts or QUICK))


def config_of(command):
    """The config of a `train.py` command."""
    import train as command_line

    return command_line.setup_cfg(command_line.parse_args(list(map(str, command[2:]))))


def results(run_folder):
    return json.loads((Path(run_folder) / "results.json").read_text(encoding="utf-8"))


def numbers(run_folder):
    """Everything of a run that has to be equal when the same command runs again."""
    found = results(run_folder)
    keys = ("accuracy", "macro_f1", "accuracy_by_domain", "val_history", "loss_history")
    logits = np.load(Path(run_folder) / "logits.npy").tobytes()
    return {**{key: found[key] for key in keys}, "predictions": predictions(run_folder), "logits": logits}


def predictions(run_folder):
    with open(Path(run_folder) / "predictions.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
