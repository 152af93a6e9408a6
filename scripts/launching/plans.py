"""What a protocol consists of: which runs, on what, in which folders."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Set:
    """A data set as train.py takes it.

    Attributes:
        name: for folders and titles.
        config: its config file.
        root: DATASET.ROOT.
        domains: full names of all its domains.
        chosen: those of them that were asked for.
        label: DATASET.LABEL, where its folder has another name than it; "".
    """

    name: str
    config: Path
    root: str
    domains: tuple[str, ...]
    chosen: tuple[str, ...]
    label: str = ""


@dataclass(frozen=True)
class Run:
    """One call of train.py.

    Attributes:
        title: for messages.
        dataset: Set.
        sources, targets: full names of domains.
        seed: the run's.
        folder: where it goes.
        model_dir: folder of the run whose model it tests; None: it trains its own.
        test: whether it is tested on its targets.
    """

    title: str
    dataset: Set
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    seed: str
    folder: Path
    model_dir: Path | None = None
    test: bool = True


def multi_source(dataset: Set, base: Path, seeds: Iterable[str]) -> list[Run]:
    """Leave one domain out: each chosen domain as the target, all others as sources."""
    return [
        Run(
            f"target {target}, seed {seed}",
            dataset,
            tuple(domain for domain in dataset.domains if domain != target),
            (target,),
            seed,
            base / target / f"seed{seed}",
        )
        for seed in seeds
        for target in dataset.chosen
    ]


def single_source(dataset: Set, base: Path, seeds: Iterable[str]) -> list[Run]:
    """Train on each chosen domain, once, and test on each other one.

    Of two domains these are the runs of `multi_source`, so they go by its folders.
    """

    def folder(source: str) -> str:
        others = [domain for domain in dataset.domains if domain != source]
        return f"from_{source}" if len(others) > 1 else others[0]

    return [
        Run(
            f"source {source}, seed {seed}",
            dataset,
            (source,),
            tuple(domain for domain in dataset.domains if domain != source),
            seed,
            base / folder(source) / f"seed{seed}",
        )
        for seed in seeds
        for source in dataset.chosen
    ]


def cross_dataset(dataset: Set, tested: Iterable[Set], base: Path, seeds: Iterable[str]) -> list[Run]:
    """Train on all domains of one set, then test on each of others, with their class names.

    Args:
        dataset: the Set trained on.
        tested: the Sets tested on.
        base: folder of the set trained on.
        seeds: the runs' seeds.
    """
    runs = []
    for seed in seeds:
        trained = base / "cross" / "train" / f"seed{seed}"
        title = f"training on {dataset.name}, seed {seed}"
        runs.append(Run(title, dataset, dataset.domains, dataset.domains, seed, trained, test=False))
        for other in tested:
            title = f"{dataset.name} to {other.name}, seed {seed}"
            folder = base / "cross" / f"to_{other.name}" / f"seed{seed}"
            runs.append(Run(title, other, other.domains, other.domains, seed, folder, model_dir=trained))
    return runs
