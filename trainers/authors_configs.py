"""Read config files of SPG's authors. Our trainers then train as the authors' code does."""

from os import PathLike
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from trainers.config import AUTHORS_KEYS, leaves, merge_file, set_key, value_of
from trainers.methods import method_of

# All config files of the authors have the first keys and lack the others. CoOp's files lack TEST.NO_TEST.
AUTHORS_HAVE, AUTHORS_LACK = {"TEST.NO_TEST", "INPUT.SIZE"}, {"OPTIM.WEIGHT_DECAY", "TEST.FINAL_MODEL"}
# The authors' code sets these keys and ignores their values in config files.
AUTHORS_OVERRIDE = (
    *("OPTIM.NAME", "OPTIM.LR", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_EPOCH", "TEST.FINAL_MODEL"),
    *(key for key in AUTHORS_KEYS.values() if key.endswith("_NORM")),
)


def merge_method_file(cfg: CfgNode, path: str | PathLike, trainer: str, kind: str = "Config file") -> str:
    """Merge the config file of a method, in place.

    For a file of SPG's authors, our as_run.yaml (or default.yaml) has the settings of the authors' code. Returns a line
    with the values of the file that this code overrides, or "".
    """
    given, method = cfg.clone(), method_of(trainer)
    merge_file(given, path, kind)
    if method is None or not _is_authors_file(path):
        merge_file(cfg, path, kind)
        return ""
    ours = next(file for file in map(method.config_file, ("as_run", "default")) if file.is_file())
    for file in (ours, path):
        merge_file(cfg, file, kind)
    changes = []
    for key, value in _leaves_of(ours).items():
        if key in AUTHORS_OVERRIDE:
            set_key(cfg, key, value)
            if (new := value_of(cfg, key)) != (old := value_of(given, key)):
                changes.append(f"{key} {new} (not {old})")
    cfg.TRAINER.SPG.GRAD_CLIP_OFF_TARGETS = ()  # the authors edit GRAD_CLIP for each target
    return f"Note: {path} is a config of SPG's authors. Their code sets {', '.join(changes)}." if changes else ""


def _is_authors_file(path: str | PathLike) -> bool:
    keys = _leaves_of(path).keys()
    return not keys.isdisjoint(AUTHORS_KEYS) or (keys >= AUTHORS_HAVE and keys.isdisjoint(AUTHORS_LACK))


def _leaves_of(path: str | PathLike) -> dict[str, Any]:
    return dict(leaves(CfgNode.load_cfg(Path(path).read_text(encoding="utf-8-sig"))))
