"""Measure how much an SPG run depends on the noise of its prompts."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import read_json
from common.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.spg import SPG_CGAN

VARIABILITY_FILE = "variability.json"  # the values of `measure_variability`


def measure_variability(trainer: "SPG_CGAN", draws: int) -> dict[str, Any]:
    """Predict the test images of a trainer with several draws of the noise.

    "by_domain" has mean, std, min and max of the accuracy (%) of single draws, and the agreement of two draws (%);
    "averaged" has the accuracy (%) by n and domain if the logits of the first n draws are averaged.
    """
    import torch

    from trainers.base.evaluation import classify, feature_batches

    def draw_all(features: "Tensor", indices: Sequence[int]) -> "Tensor":
        """Logits (draws, B, C)."""
        return torch.stack([trainer.predict_draw(features, indices, draw) for draw in range(draws)])

    loader, dataset = trainer.test_loader, trainer.dm.dataset
    features = trainer.image_features.of_split(loader, "test")
    batches, n_batches = feature_batches(features, loader.batch_size), -(-len(features) // loader.batch_size)
    bar = progress(batches, n_batches, description="Drawing prompts", unit="batch")
    predictions = []
    for _, logits in classify(bar, draw_all, trainer.device, lambda rows: f"images {rows.start + 1} to {rows.stop}"):
        # A sum of logits has the prediction of their mean.
        predictions.append(torch.stack([logits.argmax(dim=2), logits.cumsum(dim=0).argmax(dim=2)]).cpu())
    single, averaged = torch.cat(predictions, dim=2)  # (draws, N) each
    labels = torch.tensor([item.label for item in dataset.test])
    domains = torch.tensor([item.domain for item in dataset.test])
    by_domain: dict[str, dict[str, float]] = {}
    by_count: dict[int, dict[str, float]] = {2**i: {} for i in range(draws.bit_length())}
    for name in dataset.target_domains:
        own = domains == dataset.domains.index(name)
        accuracies, averages = (100 * (found == labels)[:, own].double().mean(dim=1) for found in (single, averaged))
        by_domain[name] = {
            "mean": statistics.mean(accuracies.tolist()),
            "std": statistics.stdev(accuracies.tolist()),
            "min": accuracies.min().item(),
            "max": accuracies.max().item(),
            "agreement": agreement(single[:, own]),
        }
        for n, by_name in by_count.items():
            by_name[name] = averages[n - 1].item()
    return {"draws": draws, "by_domain": by_domain, "averaged": by_count}


def agreement(predicted: "Tensor") -> float:
    """How often two different draws have the same prediction, in %, of predictions (draws, images)."""
    n = len(predicted)
    votes = [(predicted == label).sum(dim=0) for label in predicted.unique()]
    pairs = sum(count * (count - 1) for count in votes)
    return 100.0 * (pairs / (n * (n - 1))).double().mean().item()


def read_variability(folder: str | Path) -> list[dict[str, str]]:
    """Read <folder>/variability.json as rows of texts; none without the file, UserError if it is damaged."""
    path = Path(folder) / VARIABILITY_FILE
    try:
        return variability_rows(read_json(path)) if path.is_file() else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: the file is damaged ({error}). Run scripts/variability.py again.") from error


def variability_rows(found: dict[str, Any]) -> list[dict[str, str]]:
    """The values of variability.json as texts, a row for each domain."""
    return [
        {
            "target": domain,
            "draws": str(found["draws"]),
            "accuracy": f"{of['mean']:.1f} ± {of['std']:.1f}",
            "range": f"{of['min']:.1f} to {of['max']:.1f}",
            "agreement": f"{of['agreement']:.1f}",
            **{f"{n} averaged": f"{values[domain]:.1f}" for n, values in found["averaged"].items()},
        }
        for domain, of in found["by_domain"].items()
    ]
