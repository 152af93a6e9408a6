"""The jobs of a launcher: the train.py command lines of a protocol for one method."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from common.dassl_path import REPOSITORY
from common.errors import UserError
from common.files import read_text
from common.run.folder import is_finished
from scripts.launching.sets import Set, find_set, name_sets
from trainers.methods import METHODS, Backbones, Method, MethodError, check_methods, find_method, trainer_name

if TYPE_CHECKING:
    from yacs.config import CfgNode

ENGINES = ("local", "ray", "slurm")
DEFAULT_BACKBONE = "RN50"
EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")
MAX_SEED = 2**32 - 1  # NumPy's
TRAINED_ON, TESTED_ON = "domainnet", "pacs,vlcs,office_home,terra_incognita"  # cross, as published
# Keys that hold paths.
PATHS = (
    "TRAINER.SPG.LABEL_DIR",
    "TRAINER.SPG.STAGE1_CONFIG_FILE",
    "TRAINER.DPSPG.LABEL_DIR",
    "TRAINER.DPSPG.STAGE1_CONFIG_FILE",
    "TRAINER.FEATURES.CACHE_DIR",
    "MODEL.BACKBONE.PATH",
    "MODEL.INIT_WEIGHTS",
)


@dataclass(frozen=True)
class Request:
    """The command line of a launcher; None is the default, and texts are as the user wrote them.

    Attributes:
        tested: the sets that protocol cross tests on.
        domains: targets of protocol multi or sources of single; "": all.
        cfg: config of the methods, a name or a file; "": the one of the data set, else default.yaml.
        baseline: method that the report compares with; "": none; None: zero-shot CLIP if it has results.
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
    ray_address: str = ""
    task_gpus: str = ""
    slurm_partition: str = ""
    slurm_time: str = ""
    slurm_gpus: str = ""
    slurm_options: str = ""
    only_print: bool = False

    @property
    def n_jobs(self) -> int | None:
        """The number of parallel runs; None: the default of the engine."""
        if self.jobs is None:
            return None
        if not self.jobs.isdecimal() or not int(self.jobs):
            raise UserError(f"JOBS is {self.jobs!r}; accepted: the number of parallel runs, from 1.")
        return int(self.jobs)


@dataclass(frozen=True)
class Job:
    """One call of train.py.

    Attributes:
        title: for messages.
        arguments: of train.py, with absolute paths.
        folder: output folder, absolute.
        needs: folder of the job that trains the model of this test; None: this job trains its own.
        tested: whether the run ends with a test.
    """

    title: str
    arguments: tuple[str, ...]
    folder: Path
    needs: Path | None = None
    tested: bool = True

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [sys.executable, str(REPOSITORY / "train.py"), *self.arguments]

    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return is_finished(self.folder, self.tested)


@dataclass(frozen=True)
class Plan:
    """The jobs of one method.

    Attributes:
        folder: the data set's folder in OUTPUT.
        cfg: config of the first job.
    """

    trainer: str
    sets: list[Set]
    backbone: str
    method_file: Path
    folder: Path
    jobs: list[Job]
    cfg: "CfgNode"


class _Run(NamedTuple):
    """A run of a protocol; `place` and `needs` are folders below the method's."""

    title: str
    dataset: Set
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    seed: str
    place: str
    needs: str = ""
    tested: bool = True


def check_request(request: Request) -> None:
    """Raise UserError if a method is unknown, or CFG or BASELINE fits none of the methods."""
    check_methods(request.trainers)
    _ = request.n_jobs
    cfg, methods = request.cfg, [method for method in METHODS if method.trainer in request.trainers]
    if cfg and len(request.trainers) > 1 and not any(method.config_file(cfg).is_file() for method in methods):
        raise UserError(
            f"CFG is {cfg!r}, but none of {', '.join(request.trainers)} has a config of that name in configs/trainers. "
            "One method alone also accepts a file."
        )
    baseline = (request.baseline or "").partition(" (")[0]
    if baseline and trainer_name(baseline).lower() not in map(str.lower, request.trainers):
        raise UserError(f"BASELINE is {baseline!r}; accepted: one of the methods {', '.join(request.trainers)}.")


def plan_jobs(request: Request, trainer: str) -> Plan:
    """Plan the jobs of a method.

    Raises:
        MethodError: the method is unknown, or cannot run with these settings.
        UserError: no method can.
    """
    from datasets.known import EMBEDDED_DATASET
    from trainers.modules.backbone_sources import source_of
    from trainers.modules.clip_backbone import backbone_label, check_backbone, has_vit

    method, is_cross = find_method(trainer), request.protocol == "cross"
    method.check_protocol(request.protocol)
    offer = not request.only_print
    name = request.dataset or (TRAINED_ON if is_cross else EMBEDDED_DATASET)
    sets = [find_set(name, request.data, request.domains, offer)]
    if is_cross:
        sets += [find_set(other, request.data, offer=offer) for other in (request.tested or TESTED_ON).split(",")]
    sets = name_sets(sets, request.output)
    dataset, is_embedded = sets[0], sets[0].config.stem == EMBEDDED_DATASET and not is_cross
    if not is_cross and len(dataset.domains) < 2:
        raise UserError(f"{dataset.root} has one domain, {dataset.domains[0]}. Add another one to test on.")
    seeds = _seeds(request.seeds, "1" if request.dataset is None and is_embedded else "1 2 3")
    cfg_name = request.cfg
    if cfg_name and len(request.trainers) > 1 and not method.config_file(cfg_name).is_file():
        cfg_name = ""  # in a comparison, the methods that have this config use it
    method_file = _method_file(method, dataset.config.stem, cfg_name)
    default = EMBEDDED_BACKBONE if is_embedded else _backbone_in(method_file) or DEFAULT_BACKBONE
    backbone = request.backbone or default
    check_backbone(backbone)
    if method.backbones is not Backbones.ANY:
        method.check_backbone(backbone, has_vit(backbone))
    output = request.output.absolute()
    folder = output / dataset.name
    base = folder / trainer / backbone_label(backbone) / method_file.stem
    # A config that the user names may have another stage I, so it has its own labels.
    labels = output / (f"prompt_labels_{method_file.stem}" if cfg_name else "prompt_labels")
    node = "DPSPG" if trainer.startswith("DPSPG") else "SPG"
    common = ["--trainer", trainer, "--backbone", source_of(backbone).resolved(backbone)]
    common += ["--config-file", str(method_file.absolute())]
    opts = [f"TRAINER.{node}.LABEL_DIR", str(labels), "TRAINER.FEATURES.CACHE_DIR", str(output / "feature_cache")]
    opts += _absolute(request.opts)
    jobs = []
    for run in _runs(request.protocol, sets, seeds):
        one, needs = run.dataset, base / run.needs if run.needs else None
        words = [*common, "--root", one.root and os.path.abspath(one.root), "--dataset-config-file", str(one.config)]
        words += ["--source-domains", *run.sources, "--target-domains", *run.targets]
        words += ["--seed", run.seed, "--output-dir", str(base / run.place)]
        words += ["--eval-only", "--model-dir", str(needs)] if needs else []
        words += [
            *(["DATASET.LABEL", one.label] if one.label else []),
            *([] if run.tested else ["TEST.NO_TEST", "True"]),
        ]
        title = f"{trainer} on {dataset.name}, {run.title}, seed {run.seed}"
        jobs.append(Job(title, (*words, *opts), base / run.place, needs, run.tested))
    return Plan(trainer, sets, backbone, method_file, folder, jobs, job_config(jobs[0]))


def _runs(protocol: str, sets: Sequence[Set], seeds: Sequence[str]) -> Iterator[_Run]:
    """The runs of a protocol: `sets` are the set trained on, and in protocol cross those tested on."""
    dataset, *tested = sets
    for seed in seeds:
        if protocol == "cross":
            trained = f"cross/train/seed{seed}"
            everywhere = dataset.domains, dataset.domains
            yield _Run(f"training on {dataset.name}", dataset, *everywhere, seed, trained, tested=False)
            for other in {one.name: one for one in tested}.values():
                title, place = f"{dataset.name} to {other.name}", f"cross/to_{other.name}/seed{seed}"
                yield _Run(title, other, other.domains, other.domains, seed, place, trained)
            continue
        for domain in dataset.chosen:
            others = tuple(other for other in dataset.domains if other != domain)
            if protocol == "multi":
                yield _Run(f"target {domain}", dataset, others, (domain,), seed, f"{domain}/seed{seed}")
            else:  # with two domains these are the runs of protocol multi
                place = f"from_{domain}" if len(others) > 1 else others[0]
                yield _Run(f"source {domain}", dataset, (domain,), others, seed, f"{place}/seed{seed}")


def job_config(job: Job) -> "CfgNode":
    """The config of a job."""
    import train

    return train.setup_cfg(train.parse_args(list(job.arguments)))


def check_finished_job(job: Job) -> None:
    """Raise MethodError if the finished run in the folder of a job is another run.

    Images are compared only if the settings of the data set differ, weights only if the backbone has another name.
    """
    import trainers.all  # noqa: F401 (registers trainers and data sets)
    from trainers.base.finished import check_finished

    cfg = job_config(job)
    try:
        there = yaml.load(read_text(job.folder / "config.yaml"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return
    same_data = there.get("DATASET") == yaml.safe_load(cfg.DATASET.dump())
    same_backbone = there.get("MODEL", {}).get("BACKBONE") == yaml.safe_load(cfg.MODEL.BACKBONE.dump())
    try:
        check_finished(job.folder, cfg, images=not same_data, weights=not same_backbone)
    except UserError as error:
        raise MethodError(f"{error} (OUTPUT names another folder for all runs.)") from error


def _seeds(text: str | None, default: str) -> list[str]:
    text = default if text is None else text
    seeds = text.split()
    if not seeds or not all(seed.isdecimal() and len(seed) < 20 and int(seed) <= MAX_SEED for seed in seeds):
        raise UserError(
            f'SEEDS is {text!r}; accepted: numbers from 0 to {MAX_SEED:,} with spaces between, SEEDS="1 2 3".'
        )
    return list(dict.fromkeys(str(int(seed)) for seed in seeds))


def _method_file(method: Method, dataset: str, chosen: str) -> Path:
    """The config file of a method: the chosen file or name, else the config of the data set, else default.yaml."""
    candidates = [method.config_file(dataset), method.config_file("default")]
    if chosen:
        candidates = [Path(chosen), method.config_file(chosen)]
    for path in candidates:
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in candidates[-1].parent.glob("*.yaml")))
    raise MethodError(f"CFG is {chosen!r}; accepted by {method.trainer}: a file, or one of {names}.")


def _backbone_in(config: Path) -> str | None:
    """The backbone that a config of CoOp's repository names (vit_b16.yaml), or None."""
    try:
        content: dict[str, Any] = yaml.safe_load(read_text(config)) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"Config file {config} cannot be read: {' '.join(str(error).split())}.") from error
    return content.get("MODEL", {}).get("BACKBONE", {}).get("NAME")


def _absolute(opts: Sequence[str]) -> list[str]:
    """KEY VALUE pairs with absolute paths; a config file may also lie in the repository."""
    found = list(opts)
    for i in range(0, len(opts) - 1, 2):
        value = os.path.expanduser(opts[i + 1])
        if opts[i] in PATHS and value and (not opts[i].endswith("CONFIG_FILE") or os.path.isfile(value)):
            found[i + 1] = os.path.abspath(value)
    return found
