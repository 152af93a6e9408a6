"""What a command line asks a launcher for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from scripts.launching.demand import Demand
from scripts.launching.engines import check_engine
from trainers.methods import METHODS, check_methods, trainer_name

DEFAULT_BACKBONE = "RN50"
MAX_SEED = 2**32 - 1  # of NumPy
TRAINED_ON, TESTED_ON = "domainnet", "pacs,vlcs,office_home,terra_incognita"  # cross, as published


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        trainers: names, in the order of their runs.
        protocol: one of trainers.methods.PROTOCOLS.
        dataset: name or folder; None: the default.
        tested: of cross, the sets tested on, with commas between; None: the default.
        backbone: name or file; None: what the method's config names, or the default.
        opts: KEY VALUE pairs.
        data: the data root.
        output: folder of all output.
        seeds: numbers with spaces between; None: the default.
        domains: targets of multi, sources of single, by names or codes with commas or spaces between; "": all.
        cfg: config of the methods, by name (or, of one method, as a file); "": that of the data set, else the default.
        baseline: the method that differences are to; "": none; None: zero-shot CLIP where it is among the results.
        report: whether the report is written in the end.
        engine: name of what does the runs.
        jobs: how many runs at once; None: as the engine has it.
        task_gpus: GPUs of each; "": as the engine has it.
        ray_address: of a Ray cluster; "": none.
        visible_devices: CUDA_VISIBLE_DEVICES.
        only_print: whether the commands of open runs are printed, and nothing is done.
    """

    trainers: list[str]
    protocol: str = "multi"
    dataset: str | None = None
    tested: str | None = None
    backbone: str | None = None
    opts: Sequence[str] = ()
    data: str = "data"
    output: Path = Path("output")
    seeds: str | None = None
    domains: str = ""
    cfg: str = ""
    baseline: str | None = None
    report: bool = False
    engine: str = "local"
    jobs: str | None = None
    task_gpus: str = ""
    ray_address: str = ""
    visible_devices: str = ""
    only_print: bool = False

    def demand(self) -> Demand:
        """What is asked of the engine, before the runs are known."""
        return Demand(self.jobs, self.task_gpus, self.ray_address, self.visible_devices, self.output)


def seeds_of(text: str | None, default: str) -> list[str]:
    """The different seeds that a text names, as plain numbers.

    Raises:
        UserError: it names none, or something else.
    """
    text = default if text is None else text
    seeds = text.split()
    if not seeds or not all(seed.isdecimal() and len(seed) < 20 and int(seed) <= MAX_SEED for seed in seeds):
        raise UserError(
            f'SEEDS is {text!r}; accepted: numbers from 0 with spaces between, SEEDS="1 2 3", up to {MAX_SEED:,}.'
        )
    return list(dict.fromkeys(str(int(seed)) for seed in seeds))


def check_request(request: Request) -> None:
    """Raise UserError if a method is unknown, none of them has the config or is the baseline, or no engine can run."""
    check_methods(request.trainers)
    if not request.only_print:
        check_engine(request.engine, request.demand())
    cfg, methods = request.cfg, [method for method in METHODS if method.trainer in request.trainers]
    if cfg and len(request.trainers) > 1 and not any(method.config_file(cfg).is_file() for method in methods):
        raise UserError(
            f"CFG is {cfg!r}, but none of {', '.join(request.trainers)} has a config of that name in configs/trainers. "
            "(One method alone takes a file, too.)"
        )
    baseline = (request.baseline or "").partition(" (")[0]
    if baseline and trainer_name(baseline).lower() not in map(str.lower, request.trainers):
        raise UserError(f"BASELINE is {baseline!r}, which is none of the methods: {', '.join(request.trainers)}.")
