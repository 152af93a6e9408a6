"""Whether a finished run in a folder is the one that is asked for."""

from os import PathLike
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

from common.errors import UserError
from common.run.identity import identity_differences, read_identity
from common.run.results import RESULTS_FILE, read_results
from datasets.base import DomainGeneralizationDataset
from trainers.base.run_record import LATER, settings_of
from trainers.base.trainer import FrozenClipTrainer
from trainers.config_keys import KEYS

COUNTED = [name for name, key in KEYS.items() if key.words]  # lengths of contexts, which their words tell


def check_finished(folder: str | PathLike, cfg: CfgNode) -> None:
    """Raise UserError where the finished run in a folder had other settings, another seed or other domains.

    What is not on record, or takes more than the config to be known, such as the images, is not looked at.
    """
    differences = ", ".join(filter(None, (_settings(folder, cfg), _domains(folder, cfg))))
    if differences:
        raise UserError(
            f"{folder} holds a finished run with other settings: {differences}. Delete it to run anew, or name another "
            "--output-dir."
        )


def _settings(folder: str | PathLike, cfg: CfgNode) -> str:
    trainer, found = TRAINER_REGISTRY.get(cfg.TRAINER.NAME), read_identity(folder)
    if not issubclass(trainer, FrozenClipTrainer) or not found:
        return ""
    usual = {key: value for key, value in LATER.items() if key in found}
    asked = {**usual, **settings_of(cfg, trainer.SETTINGS), "SEED": cfg.SEED}
    known = {key: value for key, value in asked.items() if (key in found or key in LATER) and key not in COUNTED}
    return identity_differences(folder, {**found, **known})


def _domains(folder: str | PathLike, cfg: CfgNode) -> str:
    dataset, asked = DATASET_REGISTRY.get(cfg.DATASET.NAME), cfg.DATASET
    if not issubclass(dataset, DomainGeneralizationDataset):
        return ""
    try:
        found = read_results(Path(folder) / RESULTS_FILE)
        domains = dataset.resolve_domains(asked.ROOT, asked.SOURCE_DOMAINS, asked.TARGET_DOMAINS)
    except (UserError, OSError):  # of a damaged file, or where the data are no longer
        return ""
    differing = []
    for key, names in zip(("source_domains", "target_domains"), domains, strict=True):
        if sorted(found[key]) != sorted(names):
            differing.append(f"{key} {found[key]} there and {names} here")
    return ", ".join(differing)
