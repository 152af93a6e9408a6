"""Jobs on a Ray cluster, or on a local Ray if no address is given."""

import functools
import hashlib
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.dassl_path import REPOSITORY
from common.errors import UserError
from common.run.results import versions
from common.threads import usable_cores
from scripts.launching.jobs import Job, Request
from scripts.launching.run_job import CRASHED, Outcome, run_job

RETRIES = 5  # of a job whose process or node is lost
OUTPUT_ID = ".output_id"  # a file in OUTPUT: nodes that read the same text see the same folder
# Variables that processes need from the launcher.
PASSED_ON = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "SPG_", "HF_", "XDG_CACHE_")


def check_request(request: Request) -> None:
    """Raise UserError if Ray is missing, a variable is wrong, or nothing listens at the address."""
    if find_spec("ray") is None:
        raise UserError(f"ENGINE is ray, but Ray is missing: pip install -r {REPOSITORY / 'requirements-cluster.txt'}")
    _gpus(request)
    host, _, port = request.ray_address.rpartition(":")
    if request.ray_address in ("", "auto"):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), 3).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS is {request.ray_address!r}, and no Ray answers there ({error}). Set auto, or the <host>:<port> "
            "that `ray start --head` prints, or leave it out for a local Ray."
        ) from error


def _gpus(request: Request) -> float | None:
    try:
        gpus = float(request.task_gpus) if request.task_gpus else None
    except ValueError:
        gpus = -1.0
    if gpus is not None and not (0 <= gpus <= 1 or gpus == int(gpus) > 1):
        raise UserError(f"TASK_GPUS is {request.task_gpus!r}; accepted: GPUs of each run, 2, 1 or a part of one (0.5).")
    return gpus


class RayEngine:
    """Runs jobs as Ray tasks: Ray places them, and retries those of lost processes and nodes.

    Args:
        threads: returns the number of threads of a run on a CPU.
        roots: data folders, absolute.
        workers: loader workers of each run, at most.

    Raises:
        UserError: no Ray answers, a node differs, or no node is large enough.
    """

    def __init__(
        self, request: Request, threads: Callable[[], int], roots: Sequence[str], workers: int, uses_cuda: bool
    ) -> None:
        self.ray, self.n_jobs = _connect(request.ray_address), request.n_jobs
        self.refs: list[Any] = []
        try:
            self.expected = node_facts(str(request.output.absolute()), tuple(roots))
            self._check_nodes()
            gpus = _gpus(request)
            if gpus is None:
                gpus = 1.0 if uses_cuda and self.ray.cluster_resources().get("GPU") else 0.0
            # On GPUs a run computes with one thread.
            self.gpus, self.threads, self.workers = gpus, 1 if gpus else threads(), 0
            sizes = [(fit, node.get("CPU", 0)) for node in self._nodes() if (fit := self._fit(node))]
            if not sizes:
                raise UserError(
                    f"A run needs {self.threads} CPUs and {gpus:g} GPUs, and no node of the cluster has them."
                )
            self.workers = max(
                0, min(workers, *(int(cpus // min(n, self.n_jobs or n)) - self.threads for n, cpus in sizes))
            )
        except BaseException:
            self.ray.shutdown()
            raise
        options = {"num_cpus": self.threads + self.workers, "num_gpus": gpus, "max_retries": RETRIES}
        self.task = self.ray.remote(**options)(_run_job)

    @property
    def slots(self) -> int:
        """The number of jobs that fit on the nodes."""
        return max(1, min(sum(map(self._fit, self._nodes())), self.n_jobs or 10**6))

    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job."""
        self.refs.append(self.task.options(name=job.title).remote(job.arguments, job.folder, self.expected, os.environ.get("OMP_NUM_THREADS")))
        return self.refs[-1].future()

    def interrupt(self, number: int) -> None:
        """Make every running job finish its step and end; Ray knows only SIGINT."""
        for ref in self.refs:
            self.ray.cancel(ref)

    def close(self) -> None:
        """Disconnect; a local Ray ends."""
        self.ray.shutdown()

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _fit(self, node: Mapping[str, float]) -> int:
        by_cpus = int(node.get("CPU", 0) // (self.threads + self.workers))
        return min(by_cpus, int(node.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else by_cpus

    def _check_nodes(self) -> None:
        """Compare every node with this one by one task on each."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look, found = self.ray.remote(num_cpus=0, max_retries=0)(_differences), {}
        for node in self.ray.nodes():
            if node["Alive"]:
                on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                name = f"{node['NodeManagerHostname']} ({node['NodeName']})"
                found[name] = look.options(scheduling_strategy=on_node).remote(self.expected)
        lines = []
        for name, ref in found.items():
            try:
                differences = self.ray.get(ref, timeout=120)
            except Exception as error:
                differences = f"no answer: {str(error).strip().splitlines()[-1]}"
            lines += [f"  {name}: {differences}"] if differences else []
        if lines:
            raise UserError(
                "Nodes of the Ray cluster differ from this machine:\n" + "\n".join(lines) + "\nAll nodes need the same "
                "code, packages, data and OUTPUT at the same paths."
            )


def _connect(address: str) -> Any:
    """Connect to a Ray cluster, or start a local one that nobody else can use."""
    if not address:  # Ray reads these when it is imported
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    import ray

    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    variables |= {"PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1", "TQDM_DISABLE": "1"}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": variables}}
    if not address:
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": 100 * 2**20}
    try:
        ray.init(address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise UserError(f"RAY_ADDRESS is {address!r}, and Ray does not start: {error}") from error
    return ray


def node_facts(output: str, roots: tuple[str, ...]) -> dict[str, str]:
    """Everything that must be equal on all nodes, by name."""
    code = hashlib.sha256()
    for folder in ("common", "compat", "configs", "datasets", "scripts", "trainers"):
        for path in sorted(path for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".py", ".yaml")):
            code.update(path.read_bytes())
    path = Path(output, OUTPUT_ID)
    if not path.exists() and os.path.isdir(output):
        path.write_text(secrets.token_hex(16))
    facts = {name: str(version) for name, version in versions().items()}
    facts |= {
        f"code in {REPOSITORY}": code.hexdigest()[:8],
        "OUTPUT " + output: path.read_text() if path.exists() else "",
    }
    return facts | {
        f"data in {root}": ",".join(sorted(os.listdir(root))) if os.path.isdir(root) else "" for root in roots
    }


@functools.lru_cache
def _differences_of(expected: tuple[tuple[str, str], ...]) -> str:
    names = [name for name, _ in expected]
    output = next(name for name in names if name.startswith("OUTPUT ")).removeprefix("OUTPUT ")
    roots = [name.removeprefix("data in ") for name in names if name.startswith("data in ")]
    here = node_facts(output, tuple(roots))
    return ", ".join(
        f"{name} differs ({here.get(name) or 'missing'})" for name, value in expected if here.get(name) != value
    )


def _differences(expected: dict[str, str]) -> str:
    """The facts that differ on this node; "" if none does."""
    return _differences_of(tuple(expected.items()))


def _run_job(arguments: Sequence[str], folder: Path, expected: dict[str, str], threads: str | None) -> Outcome:
    if differences := _differences(expected):  # a node that joined after the check
        return Outcome(CRASHED, f"node {socket.gethostname()} differs from the launcher: {differences}")
    if str(REPOSITORY) != sys.path[0]:  # before the folder of the launcher, which Ray puts first
        sys.path.insert(0, str(REPOSITORY))
    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it, and numbers depend on it
    return run_job(arguments, folder)
