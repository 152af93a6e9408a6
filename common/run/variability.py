"""variability.json: how much a run's accuracy depends on the noise that its prompts are generated from."""

from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError
from common.files import read_json, write_json

VARIABILITY_FILE = "variability.json"


@dataclass(frozen=True)
class Spread:
    """What single draws of the noise make of a domain's test images, in %.

    Attributes:
        mean, std, min, max: of the draws' accuracies.
        agreement: how often two draws predict the same.
    """

    mean: float
    std: float
    min: float
    max: float
    agreement: float


@dataclass(frozen=True)
class Variability:
    """What several draws of the noise make of a run's test images.

    Attributes:
        draws: how many there were for each image.
        by_domain: the Spread of each domain tested.
        averaged: from n to the accuracy in % of each domain when the logits of the first n draws are averaged.
    """

    draws: int
    by_domain: dict[str, Spread]
    averaged: dict[int, dict[str, float]]

    def averages(self, domain: str) -> dict[int, float]:
        """From n to the accuracy of n averaged draws on a domain."""
        return {n: accuracies[domain] for n, accuracies in self.averaged.items()}


def write_variability(folder: str | Path, found: Variability) -> None:
    """Write a Variability to <folder>/variability.json, whole or not at all."""
    write_json(Path(folder) / VARIABILITY_FILE, asdict(found))


def read_variability(folder: str | Path) -> Variability | None:
    """The Variability that lies in a run's folder; None if none was measured.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / VARIABILITY_FILE
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        spreads = {
            domain: Spread(**{name: float(values[name]) for name in Spread.__dataclass_fields__})
            for domain, values in record["by_domain"].items()
        }
        averaged = {
            int(n): {domain: float(accuracies[domain]) for domain in spreads}
            for n, accuracies in record.get("averaged", {}).items()
        }
        return Variability(int(record["draws"]), spreads, averaged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run scripts/variability.py again.") from error
