"""The engines that do runs, by the names that ENGINE takes."""

from collections.abc import Callable
from typing import NamedTuple

from common.errors import UserError
from common.threads import Share, share_cores, usable_cores
from scripts.launching import ray_engine
from scripts.launching.demand import Demand
from scripts.launching.local import LocalEngine, local_devices
from scripts.launching.plan import Engine

Say = Callable[[str], None]


class Maker(NamedTuple):
    """Of an engine.

    Attributes:
        check: raises UserError where it cannot do what is asked of it, as far as that takes no time.
        make: makes it; it is told what is asked, and whom to tell what is to be said of runs.
    """

    check: Callable[[Demand], None]
    make: Callable[[Demand, Say], Engine]


def check_engine(name: str, demand: Demand) -> None:
    """Raise UserError where an engine is unknown, or cannot do what is asked of it; takes no time."""
    if name not in ENGINES:
        raise UserError(f"ENGINE is {name!r}; accepted: {', '.join(ENGINES)}.")
    demand.n_jobs()
    ENGINES[name].check(demand)


def make_engine(name: str, demand: Demand, say: Say) -> Engine:
    """The engine that does runs; UserError where it cannot do what is asked of it."""
    return ENGINES[name].make(demand, say)


def _check_local(demand: Demand) -> None:
    if demand.task_gpus:
        raise UserError(
            f"TASK_GPUS ({demand.task_gpus}) goes with ENGINE=ray. On this machine JOBS are spread over its GPUs."
        )


def _make_local(demand: Demand, say: Say) -> LocalEngine:
    jobs = demand.n_jobs() or 1
    devices = local_devices(demand.visible_devices) if demand.uses_cuda else []
    share = Share(1, demand.workers) if jobs == 1 else _share(jobs, demand.threads(bool(devices)), say)
    if share.runs == 1:  # which computes, and decodes, as it does without JOBS
        return LocalEngine(1, say, workers=demand.workers)
    return LocalEngine(share.runs, say, devices, share.workers)


def _share(jobs: int, threads: int | None, say: Say) -> Share:
    """What each run may take of this machine, by JOBS and by the threads that the backbone computes with."""
    threads = threads or usable_cores()
    share = share_cores(jobs, threads)
    if share.runs < jobs:
        say(
            f"Note: JOBS is {jobs}, but a run with this backbone computes with {threads} threads, and there are "
            f"{usable_cores()} cores: {share.runs} at once."
        )
    return share


ENGINES = {
    "local": Maker(_check_local, _make_local),
    "ray": Maker(ray_engine.check, ray_engine.make),
}
