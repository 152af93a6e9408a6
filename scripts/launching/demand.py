"""What a launcher asks of an engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError


@dataclass(frozen=True)
class Demand:
    """What a launcher asks of an engine.

    Attributes:
        jobs: how many runs at once, as the user wrote it; None: as the engine has it.
        task_gpus: GPUs of each, as the user wrote it; "": as the engine has it.
        address: of a Ray cluster; "": none, one is started.
        visible_devices: CUDA_VISIBLE_DEVICES.
        output: folder of all output.
        reads: files and folders that runs read beside the repository.
        threads: says how many threads each computes with, on a GPU or not; None: as many as a machine has cores.
        workers: loader workers that each would have alone.
        uses_cuda: whether they compute on a GPU where there is one.
    """

    jobs: str | None = None
    task_gpus: str = ""
    address: str = ""
    visible_devices: str = ""
    output: Path = Path("output")
    reads: tuple[str, ...] = ()
    threads: Callable[[bool], int | None] = lambda on_gpu: 1
    workers: int = 0
    uses_cuda: bool = False

    def n_jobs(self) -> int | None:
        """How many runs at once; None: as the engine has it. UserError if it is no such number."""
        if self.jobs is None:
            return None
        if not self.jobs.isdecimal() or not int(self.jobs):
            raise UserError(f"JOBS is {self.jobs!r}; accepted: a whole number from 1, how many runs go on at once.")
        return int(self.jobs)
