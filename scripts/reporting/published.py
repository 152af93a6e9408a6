"""Figures that papers report, from configs/published/*.yaml; they stand beside ours and are never mixed into them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import read_text
from common.run.results import BASE_TO_NEW
from common.startup import REPOSITORY

PUBLISHED = REPOSITORY / "configs" / "published"
PROTOCOLS = ("multi-source", "single-source", "cross-dataset", BASE_TO_NEW, "in-domain")
TEXTS = ("method", "dataset", "backbone", "protocol")


@dataclass(frozen=True)
class Figures:
    """What a source reports of a method on a data set.

    Attributes:
        method: as the source calls it.
        dataset: as results call it; of cross-dataset, what was trained on.
        backbone: name of the CLIP.
        protocol: as results call it.
        accuracy: in percent, by column of the table or "average".
        source: where it is from.
        note: what else there is to say of how it was measured; "".
    """

    method: str
    dataset: str
    backbone: str
    protocol: str
    accuracy: Mapping[str, float]
    source: str
    note: str = ""

    def fits(self, result: Mapping[str, Any]) -> bool:
        """Whether it was measured on the data set, backbone and protocol of a result."""
        dataset = result.get("trained_on") if self.protocol == "cross-dataset" else result["dataset"]
        # Folders and results call ViT-B/16 ViT-B16.
        backbones = {name.replace("/", "") for name in (self.backbone, result["backbone"])}
        return (self.dataset, self.protocol) == (dataset, result["protocol"]) and len(backbones) == 1


def read_published(folder: Path = PUBLISHED) -> list[Figures]:
    """The figures in all YAML files of a folder, in order of their names.

    Raises:
        UserError: there is none, or one is not what it has to be.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise UserError(f"There are no published figures: no *.yaml in {folder}.")
    return [figures for path in paths for figures in _read(path)]


def _read(path: Path) -> Iterable[Figures]:
    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or set(content) != {"source", "figures"}:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else content and f"a {type(content).__name__}"
        raise UserError(f"{path} holds {found or 'nothing'}; accepted: source (a text) and figures (a list).")
    if not content["source"] or not isinstance(content["source"], str):
        raise UserError(f"{path}: source is {content['source']!r}; accepted: a text, where the figures are from.")
    entries = content["figures"]
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{path}: figures is {entries!r}; accepted: a list of entries with {', '.join(TEXTS)}, accuracy."
        )
    return [_figures(path, i, entry, content["source"]) for i, entry in enumerate(entries, start=1)]


def _figures(path: Path, number: int, entry: Any, source: str) -> Figures:
    def refuse(what: str) -> UserError:
        name = f" ({entry['method']})" if isinstance(entry, dict) and entry.get("method") else ""
        return UserError(f"{path}, entry {number}{name} of figures: {what}.")

    if not isinstance(entry, dict):
        raise refuse(f"it is a {type(entry).__name__}; accepted: a mapping with {', '.join(TEXTS)}, accuracy")
    missing = [name for name in (*TEXTS, "accuracy") if not entry.get(name)]
    unknown = [str(name) for name in entry if name not in (*TEXTS, "accuracy", "note")]
    if missing or unknown:
        wrong = [f"it lacks {', '.join(missing)}"] * bool(missing) + [f"it has {', '.join(unknown)}"] * bool(unknown)
        raise refuse(f"{' and '.join(wrong)}; accepted: {', '.join(TEXTS)}, accuracy, and, if need be, note")
    for name in (*TEXTS, "note"):
        if not isinstance(entry.get(name, ""), str):
            raise refuse(f"{name} is {entry[name]!r}; accepted: a text")
    if entry["protocol"] not in PROTOCOLS:
        raise refuse(f"protocol is {entry['protocol']}; accepted: {', '.join(PROTOCOLS)}")
    accuracy = entry["accuracy"]
    if not isinstance(accuracy, dict):
        raise refuse(f"accuracy is {accuracy!r}; accepted: percentages by column, such as {{average: 97.0}}")
    for column, value in accuracy.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
            raise refuse(f"the accuracy of {column} is {value!r}; accepted: a percentage, 0 to 100")
        if 0 < value < 1:
            raise refuse(f"the accuracy of {column} is {value!r} %; accepted: a percentage. Is {100 * value:g} meant?")
    by_column = {str(column): float(value) for column, value in accuracy.items()}
    method, dataset, backbone, protocol = (entry[name] for name in TEXTS)
    return Figures(method, dataset, backbone, protocol, by_column, source, entry.get("note", ""))
