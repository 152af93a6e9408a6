"""What each run takes of a node of a Ray cluster: cores and GPUs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import UserError
from scripts.launching.demand import Demand

ROUNDING = 1e-9


def asked_gpus(text: str) -> float | None:
    """GPUs of each run that a text means; None: that is not said. Raises UserError where it means none."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not (0 <= number <= 1 or (number > 1 and number == int(min(number, sys.maxsize)))):
        raise UserError(
            f"TASK_GPUS is {text!r}; accepted: the number of GPUs of each run, a whole one, or a fraction where runs "
            "share one (0.5)."
        )
    return number


@dataclass(frozen=True)
class Needs:
    """What each run takes of a node.

    Attributes:
        threads: that it computes with; None: as many as the node has cores.
        gpus: a whole number, or a part of one.
        workers: loader workers.
    """

    threads: int | None
    gpus: float
    workers: int = 0

    def fit(self, resources: dict[str, float]) -> int:
        """How many runs a node with these resources holds."""
        cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0.0)
        by_cores = min(1, cpus) if self.threads is None else cpus // (self.threads + self.workers)
        if not self.gpus:
            return by_cores
        by_gpus = int(gpus // self.gpus) if self.gpus >= 1 else int(gpus) * int(1 / self.gpus + ROUNDING)
        return min(by_cores, by_gpus)

    def lacking(self, resources: dict[str, float]) -> str:
        """What to tell of a node that holds none."""
        has = f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}"
        takes = 1 if self.threads is None else self.threads + self.workers
        return f"CPUs and GPUs there: {has}; each run takes {takes} and {self.gpus:g}"

    def cpus(self, resources: dict[str, float]) -> int:
        """How many of a node's cores each run takes."""
        return int(resources["CPU"]) if self.threads is None else self.threads + self.workers


def plan_needs(demand: Demand, nodes: Sequence[dict[str, Any]]) -> Needs:
    """What each run takes, so that those on a node never take more threads than it has cores.

    Raises:
        UserError: no node has that.
    """
    n_gpus = [node["Resources"].get("GPU", 0.0) for node in nodes]
    gpus = asked_gpus(demand.task_gpus)
    if gpus is None:
        gpus = 1.0 if demand.uses_cuda and any(n_gpus) else 0.0
    if gpus > max(n_gpus):
        each = ", ".join(f"{node_name(node)} {n:g}" for node, n in zip(nodes, n_gpus, strict=True))
        raise UserError(f"TASK_GPUS is {gpus:g}, but no node of the cluster has as many. Their GPUs: {each}.")
    threads = demand.threads(bool(gpus))
    needs = Needs(threads, gpus)
    fits = [(int(node["Resources"]["CPU"]), fit) for node in nodes if (fit := needs.fit(node["Resources"]))]
    if not fits:
        each = ", ".join(f"{node_name(node)} {node['Resources'].get('CPU', 0):g}" for node in nodes)
        raise UserError(
            f"A run computes with {threads or 1} threads, and no node of the cluster has as many CPUs"
            f"{' beside a GPU' if gpus else ''}. Their CPUs: {each}."
        )
    if threads is None:
        return replace(needs, workers=demand.workers)
    spare = min(cpus // min(fit, demand.n_jobs() or fit) - threads for cpus, fit in fits)
    return replace(needs, workers=min(demand.workers, spare))


def node_name(node: dict[str, Any]) -> str:
    """What a node is called: as its owner named it, else its machine."""
    return node["NodeName"] if node["NodeName"] != node["NodeManagerAddress"] else node["NodeManagerHostname"]
