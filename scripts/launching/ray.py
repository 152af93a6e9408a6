"""Jobs on a Ray cluster, or on a local Ray if no address is given."""

import hashlib
import os
import re
import secrets
import socket
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import Future
from operator import itemgetter
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from common.errors import UserError
from common.files import SPLIT_FOLDER
from common.reproducible import versions
from common.startup import REPOSITORY
from common.threads import usable_cores
from scripts.launching.jobs import Job
from scripts.launching.local import CRASHED, Outcome, count_threads, run_job

RETRIES = 5  # of a job that loses its process or node
OUTPUT_ID = ".output_id"  # a file in OUTPUT: nodes that read the same text see the same folder
# Variables of the launcher that its runs need.
PASSED_ON = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "SPG_", "HF_", "XDG_CACHE_")


class RayEngine:
    """Runs jobs as Ray tasks: Ray places them, and retries them if a process or node is lost."""

    def __init__(self, args: Namespace, data_folders: Sequence[str], cfg: CfgNode, most_workers: int) -> None:
        if args.task_gpus and not re.fullmatch(r"0?\.\d+|\d+", args.task_gpus):
            raise UserError(f"TASK_GPUS is {args.task_gpus!r}; accepted: the number of GPUs of each run, or 0.5.")
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        self.omp_threads = variables.get("OMP_NUM_THREADS")
        variables |= {"PYTHONPATH": args.python_path, "PYTHONUTF8": "1", "TQDM_DISABLE": "1"}
        self.ray, self.n_jobs = _connect(args.ray_address, variables), int(args.jobs or 10**6)
        self.refs: list[Any] = []
        try:
            output = str(args.output.absolute())
            Path(output, OUTPUT_ID).write_text(secrets.token_hex(16), encoding="utf-8")
            self.expected = node_facts(output, data_folders)
            self._check_nodes()
            self.gpus = float(args.task_gpus or (cfg.USE_CUDA and self.ray.cluster_resources().get("GPU", 0) > 0))
            self.cpus = 1 if self.gpus else count_threads(cfg)
            if not (fits := self._fits()):
                raise UserError(f"No node has {self.cpus} CPUs and {self.gpus:g} GPUs for a run. See `ray status`.")
        except BaseException:
            self.close()
            raise
        self.loader_workers = min(most_workers, *(int(cpus // fit) - self.cpus for cpus, fit in fits))
        self.cpus += self.loader_workers
        self.task = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(_run_on_node)

    @property
    def slots(self) -> int:
        return max(1, min(sum(n for _, n in self._fits()), self.n_jobs))

    def submit(self, job: Job) -> Future[Outcome]:
        context = self.expected, os.getcwd(), self.omp_threads
        self.refs.append(self.task.options(name=job.title).remote(job.arguments, job.folder, *context))
        return self.refs[-1].future()

    def interrupt(self, number: int) -> None:
        for ref in self.refs:
            self.ray.cancel(ref)

    def close(self) -> None:
        self.ray.shutdown()

    def _fits(self) -> list[tuple[float, int]]:
        """CPUs of each node where runs fit, and how many fit."""
        found = []
        for node in map(itemgetter("Resources"), filter(itemgetter("Alive"), self.ray.nodes())):
            n = int(node.get("CPU", 0) // self.cpus)
            n = min(n, int(node.get("GPU", 0) / self.gpus + 1e-9), self.n_jobs) if self.gpus else min(n, self.n_jobs)
            found += [(node["CPU"], n)] if n else []
        return found

    def _check_nodes(self) -> None:
        """Run one task on every node that compares it with this machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task, lines = self.ray.remote(num_cpus=0, max_retries=0)(node_differences), []
        for node in filter(itemgetter("Alive"), self.ray.nodes()):
            there = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            try:
                found = self.ray.get(there.remote(self.expected), timeout=120)
            except self.ray.exceptions.RayError as error:
                found = f"it cannot run the code in {REPOSITORY}: {str(error).strip().splitlines()[-1]}"
            lines += [f"  {node['NodeManagerHostname']} ({node['NodeName']}): {found}"] if found else []
        if lines:
            lines.insert(0, "Nodes of the Ray cluster differ from this machine. Make them equal:")
            raise UserError("\n".join(lines))


def _connect(address: str, variables: dict[str, str]) -> Any:
    """Connect to a Ray cluster, or start a local one that has its own token."""
    if ":" in address:
        host, _, port = address.rpartition(":")
        try:  # ray.init would try for a minute
            socket.create_connection((host.strip("[]"), int(port)), 3).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"RAY_ADDRESS is {address!r}, and no Ray answers there ({error}).") from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": variables}}
    if not address:  # Ray reads these variables when it is imported
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": 100 * 2**20}
    import ray

    try:
        ray.init(address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise UserError(f"RAY_ADDRESS is {address!r}, and Ray does not answer: {error}") from error
    return ray


def node_facts(output: str, roots: Sequence[str]) -> dict[str, str]:
    """The facts that must be equal on all nodes: versions, code, OUTPUT and data."""
    code, identity = hashlib.sha256(), Path(output, OUTPUT_ID)
    for folder in ("common", "compat", "configs", "datasets", "scripts", "trainers"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            code.update(path.read_bytes() if path.suffix in (".py", ".yaml") else b"")
    facts = {name: str(version) for name, version in versions().items()} | {"code": code.hexdigest()[:8]}
    facts[output] = identity.read_text(encoding="utf-8") if identity.is_file() else ""
    for root in filter(os.path.isdir, roots):
        facts[root] = ", ".join(sorted({*os.listdir(root)} - {SPLIT_FOLDER}))  # which the first run makes
    return facts


def node_differences(expected: dict[str, str]) -> str:
    """The facts that differ on the node that this runs on, "torch is 2.6, not 2.7"; "" if none does."""
    output, *roots = (name for name in expected if os.path.isabs(name))
    here = node_facts(output, roots)
    different = {name: fact for name, fact in expected.items() if here.get(name) != fact}
    return "; ".join(f"{name} is {here.get(name) or 'missing'}, not {fact}"[:200] for name, fact in different.items())


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
