"""Numbers from papers, from configs/published/*.yaml. They are rows of our tables and change no other number."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from common.errors import UserError
from common.files import read_text
from common.startup import REPOSITORY

PUBLISHED = REPOSITORY / "configs" / "published"


def _check_percent(value: float) -> float:
    if 0 < value < 1:
        raise ValueError(f"{value} %: is {100 * value:g} % meant?")
    return value


Percent = Annotated[float, Field(ge=0, le=100, strict=True), AfterValidator(_check_percent)]


class PaperResult(BaseModel):
    """The accuracies that a paper reports for a method on a data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: str
    dataset: str  # as in results.json; of cross-dataset, the data set of the training
    backbone: str
    protocol: Literal["multi-source", "single-source", "cross-dataset", "base-to-new", "in-domain"]
    accuracy: dict[str, Percent] = Field(min_length=1)  # by column of the table, or "average"
    note: str = ""  # other conditions of the measurement
    source: str = ""

    def fits(self, run: Any) -> bool:
        """Whether the numbers are for the data set, backbone and protocol of a run (a row of the results)."""
        dataset = run["trained_on"] if self.protocol == "cross-dataset" else run["dataset"]
        # Folders and results.json have ViT-B16 for ViT-B/16.
        backbones = {name.replace("/", "") for name in (self.backbone, run["backbone"])}
        return (self.dataset, self.protocol) == (dataset, run["protocol"]) and len(backbones) == 1


class Paper(BaseModel):
    """One file of numbers."""

    model_config = ConfigDict(extra="forbid")
    source: str = Field(min_length=1)
    figures: list[PaperResult] = Field(min_length=1)


def read_published(folder: Path = PUBLISHED) -> list[PaperResult]:
    """Read all YAML files of a folder, sorted by name; raises UserError if there is none or one is wrong."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise UserError(f"{folder}: no *.yaml file is there. Add one like spg.yaml of the repository.")
    found = []
    for path in paths:
        try:
            paper = Paper.model_validate(yaml.safe_load(read_text(path)))
        except ValidationError as error:
            (first, *_) = error.errors()
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(f"{path}: {where}: {first['msg']}. See configs/published/spg.yaml.") from error
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}. Write it as YAML in UTF-8.") from error
        found += [figures.model_copy(update={"source": paper.source}) for figures in paper.figures]
    return found
