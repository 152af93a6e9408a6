"""Jobs on a Ray cluster, or on a local Ray if no address is given."""

import functools
import hashlib
import os
import re
import secrets
import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.reproducible import versions
from common.startup import REPOSITORY
from common.threads import usable_cores
from scripts.launching.jobs import Job
from scripts.launching.run_job import CRASHED, Outcome, run_job

RETRIES = 5  # of a job that loses its process or node
OUTPUT_ID = ".output_id"  # a file in OUTPUT: nodes that read the same text see the same folder
# Variables of the launcher that its runs need.
PASSED_ON = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "SPG_", "HF_", "XDG_CACHE_")


def check_args(args: Namespace) -> None:
    """Raise UserError if Ray is missing, TASK_GPUS is wrong, or nothing listens at RAY_ADDRESS."""
    if find_spec("ray") is None:
        raise UserError("ENGINE is ray, but Ray is missing: pip install 'ray>=2.60'")
    if args.task_gpus and not re.fullmatch(r"0?\.\d+|\d+", args.task_gpus):
        raise UserError(
            f"TASK_GPUS is {args.task_gpus!r}; accepted: the number of GPUs of each run, or a part of one, 0.5."
        )
    if args.ray_address in ("", "auto"):
        return
    host, _, port = args.ray_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 3).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS is {args.ray_address!r}, and no Ray answers there ({error}). Set auto, or the <host>:<port> "
            "that `ray start --head` prints, or unset it for a local Ray."
        ) from error


class RayEngine:
    """Runs jobs as Ray tasks: Ray places them, and retries them if a process or node is lost.

    Args:
        roots: data folders, absolute.
        threads: returns the number of threads of a run on a CPU.
        workers: loader workers of each run, at most.
    """

    def __init__(
        self, args: Namespace, roots: Sequence[str], threads: Callable[[], int], workers: int, uses_cuda: bool
    ) -> None:
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        self.omp_threads = variables.get("OMP_NUM_THREADS")
        variables |= {"PYTHONPATH": args.python_path, "PYTHONUTF8": "1", "TQDM_DISABLE": "1"}
        self.ray, self.n_jobs = _connect(args.ray_address, variables), int(args.jobs or 10**6)
        self.refs: list[Any] = []
        self.workers = 0
        try:
            output = str(args.output.absolute())
            Path(output, OUTPUT_ID).write_text(secrets.token_hex(16), encoding="utf-8")
            self.expected = node_facts(output, tuple(roots))
            self._check_nodes()
            has_gpus = uses_cuda and self.ray.cluster_resources().get("GPU", 0) > 0
            self.gpus = float(args.task_gpus or has_gpus)
            self.threads = 1 if self.gpus else threads()
            fits = [(node.get("CPU", 0), fit) for node in self._nodes() if (fit := self._fit(node))]
            if not fits:
                text = f"A run needs {self.threads} CPUs and {self.gpus:g} GPUs"
                raise UserError(f"{text}, and no node of the cluster has them. See `ray status`.")
            spare = (int(cpus // min(fit, self.n_jobs)) - self.threads for cpus, fit in fits)
            self.workers = min(workers, *spare)
        except BaseException:
            self.ray.shutdown()
            raise
        needs = {"num_cpus": self.threads + self.workers, "num_gpus": self.gpus, "max_retries": RETRIES}
        self.task = self.ray.remote(**needs)(_run_on_node)

    @property
    def slots(self) -> int:
        return max(1, min(sum(map(self._fit, self._nodes())), self.n_jobs))

    def submit(self, job: Job) -> Future[Outcome]:
        place = os.getcwd(), self.omp_threads
        self.refs.append(self.task.options(name=job.title).remote(job.arguments, job.folder, self.expected, *place))
        return self.refs[-1].future()

    def interrupt(self, number: int) -> None:
        for ref in self.refs:
            self.ray.cancel(ref)

    def close(self) -> None:
        self.ray.shutdown()

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _fit(self, node: Mapping[str, float]) -> int:
        """The number of runs that fit on a node."""
        by_cpus = int(node.get("CPU", 0) // (self.threads + self.workers))
        return min(by_cpus, int(node.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else by_cpus

    def _check_nodes(self) -> None:
        """Run one task on every node that compares it with this machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look, refs = self.ray.remote(num_cpus=0, max_retries=0)(node_differences), {}
        for node in self.ray.nodes():
            if node["Alive"]:
                on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                refs[f"{node['NodeManagerHostname']} ({node['NodeName']})"] = look.options(
                    scheduling_strategy=on_node
                ).remote(self.expected)
        lines = []
        for name, ref in refs.items():
            try:
                found = self.ray.get(ref, timeout=120)
            except self.ray.exceptions.RayError as error:
                found = f"it cannot run the code in {REPOSITORY}: {str(error).strip().splitlines()[-1]}"
            lines += [f"  {name}: {found}"] if found else []
        if lines:
            text = "All nodes need the same code, packages, data and OUTPUT at the same paths."
            raise UserError("\n".join(["Nodes of the Ray cluster differ from this machine:", *lines, text]))


def _connect(address: str, variables: dict[str, str]) -> Any:
    """Connect to a Ray cluster, or start a local one that has its own token."""
    if not address:  # Ray reads these when it is imported
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": variables}}
    if not address:
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": 100 * 2**20}
    try:
        ray.init(address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise UserError(f"RAY_ADDRESS is {address!r}, and Ray does not answer: {error}") from error
    return ray


def node_facts(output: str, roots: tuple[str, ...]) -> dict[str, str]:
    """The facts that must be equal on all nodes: versions, code, OUTPUT and data; "" for a missing folder."""
    code, identity = hashlib.sha256(), Path(output, OUTPUT_ID)
    for folder in ("common", "compat", "configs", "datasets", "scripts", "trainers"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            code.update(path.read_bytes() if path.suffix in (".py", ".yaml") else b"")
    facts = {name: str(version) for name, version in versions().items()} | {"code": code.hexdigest()[:8]}
    facts[output] = identity.read_text(encoding="utf-8") if identity.is_file() else ""
    return facts | {root: ", ".join(sorted(os.listdir(root))) if os.path.isdir(root) else "" for root in roots}


def node_differences(expected: dict[str, str]) -> str:
    """The facts that differ on the node that this runs on, "torch is 2.6, not 2.7"; "" if none does."""
    here = _facts_here(tuple(path for path in expected if os.path.isabs(path)))
    differing = [name for name, fact in expected.items() if here[name] != fact]
    texts = (f"is {here[name] or 'missing'}, not {expected[name]}"[:200] for name in differing)
    return "; ".join(f"{name} {text}" for name, text in zip(differing, texts, strict=True))


@functools.lru_cache(maxsize=1)
def _facts_here(paths: tuple[str, ...]) -> dict[str, str]:
    return node_facts(paths[0], paths[1:])


def _run_on_node(
    arguments: Sequence[str], folder: Path, expected: dict[str, str], cwd: str, omp_threads: str | None
) -> Outcome:
    if differences := node_differences(expected):  # of a node that joined after the check
        return Outcome(CRASHED, f"{socket.gethostname()} differs from the launcher's machine: {differences}")
    os.chdir(cwd)
    if sys.path[0] != str(REPOSITORY):  # Ray puts the folder of the launcher first
        sys.path.insert(0, str(REPOSITORY))
    if omp_threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it, and the last digits depend on it
    return run_job(arguments, folder)
