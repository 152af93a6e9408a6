"""One run: its command line, and what its folder was asked for."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.run.identity import identity_differences

from common.startup import REPOSITORY
from scripts.launching.plans import Run
from trainers.methods import MethodError

ASKED = "launch"  # folder in a run's, for what it was asked for
SHARED_FOLDER = "made_once"  # folder in a method's, for the logs of what is made for several runs
PLACES = ("root", "backbone")  # paths in the record of what was asked for: contents may move, see `Launch.begin`
# What a run may use, not what it computes.
RESOURCES = (
    "TEST.MEMORY_MB",
    "DATALOADER.NUM_WORKERS",
    "DATASET.SKIP_UNREADABLE",
    "TRAINER.FEATURES.CACHE",
    "TRAINER.FEATURES.CACHE_DIR",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
)
# Keys whose values are files or folders.
PATHS = (
    "TRAINER.SPG.LABEL_DIR",
    "TRAINER.SPG.STAGE1_CONFIG_FILE",
    "TRAINER.DPSPG.LABEL_DIR",
    "TRAINER.DPSPG.STAGE1_CONFIG_FILE",
    "TRAINER.FEATURES.CACHE_DIR",
    "MODEL.BACKBONE.PATH",
    "MODEL.INIT_WEIGHTS",
)


def run_command(
    trainer: str,
    run: Run,
    method_file: str | Path,
    backbone: str,
    opts: Sequence[str],
    labels: str | Path,
    features: str | Path,
    flags: Sequence[str] = (),
) -> list[str]:
    """The train.py command line of one run.

    Args:
        trainer: its name.
        run: what of what plan.
        method_file: the method's config.
        backbone: name or file.
        opts: KEY VALUE pairs.
        labels, features: folders of prompt labels and of the cache of image features.
        flags: more of train.py's, where it does not do the whole run.
    """
    command = [sys.executable, str(REPOSITORY / "train.py"), "--trainer", trainer, "--root", run.dataset.root]
    command += ["--dataset-config-file", str(run.dataset.config), "--backbone", backbone]
    command += ["--config-file", str(method_file)]
    command += ["--source-domains", *run.sources, "--target-domains", *run.targets]
    command += ["--seed", run.seed, "--output-dir", str(run.folder), *flags]
    if run.model_dir is not None:
        command += ["--eval-only", "--model-dir", str(run.model_dir)]
    node = "DPSPG" if trainer.startswith("DPSPG") else "SPG"
    command += [f"TRAINER.{node}.LABEL_DIR", str(labels), "TRAINER.FEATURES.CACHE_DIR", str(features)]
    command += ["DATASET.LABEL", run.dataset.label] if run.dataset.label else []
    return [*command, *([] if run.test else ["TEST.NO_TEST", "True"]), *opts]


def check_same_run(folder: Path, asked: dict[str, Any]) -> None:
    """Raise MethodError if a run's folder was asked for something else; data and weights may have moved."""
    differences = identity_differences(folder / ASKED, asked, PLACES)
    if differences:
        raise MethodError(
            f"{folder} holds a run that was started differently: {differences}. Name another OUTPUT, or delete it."
        )


def resolved(backbone: str) -> str:
    """A backbone's name, with the whole path of its file or folder."""
    from trainers.modules.clip.backbone import absolute_name

    return absolute_name(backbone)


def settings_that_matter(opts: Sequence[str]) -> dict[str, str]:
    """KEY VALUE pairs without those that only say how much memory, disk and time a run may take."""
    pairs = dict(zip(opts[::2], opts[1::2], strict=False))
    return {key: value for key, value in sorted(pairs.items()) if key not in RESOURCES}


def anchored(opts: Sequence[str]) -> list[str]:
    """KEY VALUE pairs that mean the same in any folder: paths from the folder that this is started in.

    A path that is not there yet is one to be made, but for a config file: that is looked up in the repository as well.
    """
    found = list(opts)
    for i, key in enumerate(opts[:-1:2]):
        value = os.path.expanduser(opts[2 * i + 1])
        if key in PATHS and (not key.endswith(".STAGE1_CONFIG_FILE") or os.path.isfile(value)):
            found[2 * i + 1] = os.path.abspath(value)
    return found
