"""The jobs of a launcher: the train.py command lines of a protocol for one method."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.errors import UserError
from common.run.record import is_finished
from common.startup import REPOSITORY
from scripts.launching.sets import Set, find_set, name_sets
from trainers.methods import METHODS, Method, MethodError, check_methods, find_method, trainer_name

if TYPE_CHECKING:
    from yacs.config import CfgNode

ENGINES = ("local", "ray", "slurm")
DEFAULT_BACKBONE = "RN50"
EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")
MAX_SEED = 2**32 - 1  # NumPy's
TRAINED_ON, TESTED_ON = "domainnet", "pacs,vlcs,office_home,terra_incognita"  # cross, as published


@dataclass(frozen=True)
class Job:
    """One call of train.py; `needs` is the folder of the job that trains its model, if it is a test of another run."""

    title: str
    arguments: tuple[str, ...]
    folder: Path
    needs: Path | None = None
    tested: bool = True

    def is_finished(self) -> bool:
        return is_finished(self.folder, self.tested)


@dataclass(frozen=True)
class Plan:
    """The jobs of one method; `folder` is the data set's in OUTPUT, `cfg` the config of the first job."""

    trainer: str
    sets: list[Set]
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


def check_args(args: Namespace) -> None:
    """Raise UserError if a method or engine is unknown, JOBS is wrong, or CFG or BASELINE fits none of the methods."""
    check_methods(args.trainers)
    if args.engine not in ENGINES:
        raise UserError(f"ENGINE is {args.engine!r}; accepted: {', '.join(ENGINES)}.")
    if args.jobs is not None and (not args.jobs.isdecimal() or not int(args.jobs)):
        raise UserError(f"JOBS is {args.jobs!r}; accepted: the number of parallel runs, from 1.")
    if args.task_gpus and args.engine != "ray":
        raise UserError(f"TASK_GPUS is {args.task_gpus!r}, but ENGINE is {args.engine}. Set ENGINE=ray, or unset it.")
    methods = [method for method in METHODS if method.trainer in args.trainers]
    if args.cfg and len(args.trainers) > 1 and not any(method.config_file(args.cfg).is_file() for method in methods):
        raise UserError(
            f"CFG is {args.cfg!r}, and none of {', '.join(args.trainers)} has a config of that name in "
            "configs/trainers. One method alone also accepts a file."
        )
    baseline = (args.baseline or "").partition(" (")[0]
    if baseline and trainer_name(baseline).lower() not in map(str.lower, args.trainers):
        raise UserError(f"BASELINE is {baseline!r}; accepted: one of the methods {', '.join(args.trainers)}.")


def plan_jobs(args: Namespace, trainer: str) -> Plan:
    """Plan the jobs of a method; MethodError if it cannot run with these settings, UserError if no method can."""
    from datasets.known import EMBEDDED_DATASET
    from trainers.authors_configs import merge_method_file
    from trainers.config import default_cfg
    from trainers.modules.clip.backbone import absolute_name, backbone_label, check_backbone, has_vit

    method, is_cross = find_method(trainer), args.protocol == "cross"
    method.check_protocol(args.protocol)
    names = [args.dataset or (TRAINED_ON if is_cross else EMBEDDED_DATASET)]
    names += (args.tested or TESTED_ON).split(",") if is_cross else []
    chosen = [args.domains, *[""] * len(names)]
    sets = [find_set(name, args.data, which, offer=not args.print) for name, which in zip(names, chosen, strict=False)]
    dataset, *_ = sets = name_sets(sets, args.output)
    is_embedded = dataset.config.stem == EMBEDDED_DATASET and not is_cross
    if not is_cross and len(dataset.domains) < 2:
        raise UserError(f"{dataset.root} has one domain, {dataset.domains[0]}. Add another one to test on.")
    # In a comparison, only the methods that have the chosen config use it.
    chosen_cfg = args.cfg if len(args.trainers) == 1 or method.config_file(args.cfg).is_file() else ""
    method_file = _method_file(method, dataset.config.stem, chosen_cfg)
    merge_method_file(cfg := default_cfg(), method_file, trainer)
    default = EMBEDDED_BACKBONE if is_embedded else cfg.MODEL.BACKBONE.NAME or DEFAULT_BACKBONE
    backbone = args.backbone or default
    check_backbone(backbone)
    if method.needs_vit:
        method.check_backbone(backbone, has_vit(backbone))
    output = args.output.absolute()
    base = output / dataset.name / trainer / backbone_label(backbone) / method_file.stem
    # A config that the user names may have another stage I, so it has its own labels.
    labels = output / (f"prompt_labels_{method_file.stem}" if chosen_cfg else "prompt_labels")
    node = "DPSPG" if trainer.startswith("DPSPG") else "SPG"
    common = ["--trainer", trainer, "--backbone", absolute_name(backbone)]
    common += ["--config-file", str(method_file.absolute())]
    opts = [f"TRAINER.{node}.LABEL_DIR", str(labels), "TRAINER.FEATURES.CACHE_DIR", str(output / "feature_cache")]
    jobs = []
    for run in _runs(args.protocol, sets, _seeds(args.seeds, "1" if args.dataset is None and is_embedded else "1 2 3")):
        root, needs = run.dataset.root, base / run.needs if run.needs else None
        words = [*common, "--root", root and os.path.abspath(root), "--dataset-config-file", str(run.dataset.config)]
        words += ["--source-domains", *run.sources, "--target-domains", *run.targets]
        words += ["--seed", run.seed, "--output-dir", str(base / run.place)]
        words += ["--eval-only", "--model-dir", str(needs)] if needs else []
        words += [*opts, *(["DATASET.LABEL", run.dataset.label] if run.dataset.label else [])]
        words += [*([] if run.tested else ["TEST.NO_TEST", "True"]), *args.opts]
        title = f"{trainer} on {dataset.name}, {run.title}, seed {run.seed}"
        jobs.append(Job(title, tuple(words), base / run.place, needs, run.tested))
    return Plan(trainer, sets, method_file, output / dataset.name, jobs, job_config(jobs[0]))


def _runs(protocol: str, sets: Sequence[Set], seeds: Sequence[str]) -> Iterator[_Run]:
    """The runs of a protocol: `sets` are the set trained on, and in protocol cross those tested on."""
    dataset, *tested = sets
    for seed in seeds:
        if protocol == "cross":
            trained, everywhere = f"cross/train/seed{seed}", (dataset.domains, dataset.domains)
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


def job_command(job: Job) -> list[str]:
    """The command line of a job."""
    return [sys.executable, str(REPOSITORY / "train.py"), *job.arguments]


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
