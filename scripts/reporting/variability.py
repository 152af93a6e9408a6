"""How much the results of a run depend on the noise that its prompts are generated from: measured, and as a table."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from common.errors import UserError
from common.files import read_json, write_json
from common.progress import progress
from common.run.results import RESULTS_FILE, read_results

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.spg import SPG_CGAN

LEGEND = (
    "accuracy: mean ± std over single draws of the noise, in %; agreement: how often two draws predict the same, in %; "
    "n averaged: accuracy when the logits of n draws are averaged (TEST.N_PROMPTS n)."
)


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


def find_runs(folders: Iterable[str | Path], methods: Sequence[str]) -> list[Path]:
    """The folders of all finished runs of some methods below some folders.

    Raises:
        UserError: a folder is missing or holds none.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        runs = {path.parent: read_results(path).get("trainer") for path in sorted(folder.rglob(RESULTS_FILE))}
        if not runs:
            what = "holds no finished run" if folder.is_dir() else "is not there"
            raise UserError(f"{folder} {what}.")
        wanted = [run for run, trainer in runs.items() if trainer in methods]
        if not wanted:
            others = ", ".join(sorted(set(map(str, runs.values()))))
            raise UserError(
                f"{folder} holds runs of {others} alone, whose prompts do not depend on noise. Name runs of "
                f"{' or '.join(methods)}."
            )
        found += [run for run in wanted if run not in found]
    return found


def measure(trainer: "SPG_CGAN", draws: int) -> Variability:
    """What `draws` draws of the noise make of a trainer's test images."""
    import torch

    from trainers.base.evaluation import classify, feature_batches

    def draw_all(features: "Tensor", indices: Sequence[int]) -> "Tensor":
        """Logits (draws, B, C)."""
        return torch.stack([trainer.predict_draw(features, indices, draw) for draw in range(draws)])

    loader, dataset = trainer.test_loader, trainer.dm.dataset
    features = trainer.image_features.of_split(loader, "test")
    labels = torch.tensor([item.label for item in dataset.test])
    domains = torch.tensor([item.domain for item in dataset.test])
    counts = [n for n in (2**i for i in range(draws.bit_length())) if n <= draws]
    predicted = torch.empty(draws, len(labels), dtype=torch.long)
    averaged = {n: torch.empty(len(labels), dtype=torch.long) for n in counts}
    batches, n_batches = feature_batches(features, loader.batch_size), -(-len(features) // loader.batch_size)
    bar = progress(batches, n_batches, description="Drawing prompts", unit="batch")

    def describe(rows: range) -> str:
        return f"images {rows.start + 1} to {rows.stop} of the test split"

    with trainer.threads.all():
        for rows, logits in classify(bar, draw_all, trainer.device, describe):
            logits = logits.cpu()
            predicted[:, rows] = logits.argmax(dim=2)
            for n, total in enumerate(accumulate(logits), start=1):
                if n in averaged:
                    averaged[n][rows] = total.argmax(dim=1)
    of_domain = {name: domains == i for i, name in enumerate(dataset.domains) if name in dataset.target_domains}
    return Variability(
        draws,
        {name: spread(predicted[:, own], labels[own], len(dataset.classnames)) for name, own in of_domain.items()},
        {
            n: {name: accuracy(found[own], labels[own]) for name, own in of_domain.items()}
            for n, found in averaged.items()
        },
    )


def spread(predicted: "Tensor", labels: "Tensor", n_classes: int) -> Spread:
    """The Spread of predictions (draws, images) of images with these labels (images)."""
    accuracies = [accuracy(of_draw, labels) for of_draw in predicted]
    return Spread(
        statistics.mean(accuracies),
        statistics.stdev(accuracies),
        min(accuracies),
        max(accuracies),
        agreement(predicted, n_classes),
    )


def accuracy(predicted: "Tensor", labels: "Tensor") -> float:
    """Share of right predictions in %."""
    return 100.0 * (predicted == labels).double().mean().item()


def agreement(predicted: "Tensor", n_classes: int) -> float:
    """How often two different draws predict the same, in %, of predictions (draws, images)."""
    import torch

    draws = len(predicted)
    votes = torch.stack([(predicted == label).sum(dim=0) for label in range(n_classes)])
    return 100.0 * ((votes * (votes - 1)).sum(dim=0) / (draws * (draws - 1))).double().mean().item()


def table(found: dict[str, Variability]) -> str:
    """What was measured, by run and domain, as text."""
    rows, counts = [], []
    for run, record in found.items():
        counts = list(record.averaged)
        for domain, of_domain in record.by_domain.items():
            ranges = f"{of_domain.mean:.1f} ± {of_domain.std:.1f}", f"{of_domain.min:.1f} to {of_domain.max:.1f}"
            averages = [f"{value:.1f}" for value in record.averages(domain).values()]
            rows.append([run, domain, *ranges, f"{of_domain.agreement:.1f}", *averages])
    headers = ["run", "target", "accuracy", "range", "agreement", *(f"{n} averaged" for n in counts)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + f"\n\n{LEGEND}"
