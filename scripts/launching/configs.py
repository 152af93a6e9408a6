"""Config files of methods: which one a run takes, and what it says."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import read_text
from trainers.methods import Method, MethodError


def method_config(method: Method, dataset: str, chosen: str | None) -> Path:
    """The config file of a method: the one chosen (a file or a name), the one for the data set, or the default.

    Args:
        method: whose.
        dataset: stem of the data set's config file.
        chosen: from CFG; None: not chosen.

    Raises:
        MethodError: there is no such config.
    """
    candidates = [method.config_file(dataset), method.config_file("default")]
    if chosen:
        candidates = [Path(chosen), method.config_file(chosen)]
    for path in candidates:
        if path.is_file():
            return path
    found = ", ".join(sorted(path.stem for path in candidates[-1].parent.glob("*.yaml")))
    raise MethodError(f"CFG is {chosen!r}, which is neither a file nor a config of {method.trainer}: {found}.")


def named_backbone(config: Path) -> str | None:
    """The backbone that a method's config names, as CoOp's do (vit_b16.yaml); None if it names none."""
    return _content(config).get("MODEL", {}).get("BACKBONE", {}).get("NAME")


def config_digest(config: Path) -> str:
    """Fingerprint of what a config file says, whatever its comments."""
    content = json.dumps(_content(config), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _content(config: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(read_text(config)) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"Config file {config} cannot be used: {' '.join(str(error).split())}.") from error
