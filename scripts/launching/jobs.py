"""From a command line to jobs: the data sets that it names, and the train.py command lines of each method."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, user_errors
from common.files import read_json, write_json
from common.locks import creation_lock
from common.run.record import is_finished
from common.startup import REPOSITORY
from trainers.methods import BackboneError, Method, MethodError, check_methods, find_method, trainer_name

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from datasets.base import DomainGeneralizationDataset

ENGINES = ("local", "ray", "slurm")
DEFAULT_BACKBONE = "RN50"
EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")
TRAINED_ON, TESTED_ON = "domainnet", "pacs,vlcs,office_home,terra_incognita"  # cross, as published
CROSS_TRAINING = "cross/train"  # the folder of the trainings of protocol cross
NAMES_FILE = "datasets.json"  # in OUTPUT: the paths of data sets by their names


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

    def config(self) -> "CfgNode":
        import train

        return train.setup_cfg(train.parse_args(list(self.arguments)))


@dataclass(frozen=True)
class Set:
    """A data set: `label` is DATASET.LABEL if `name` is not the name of its folder, `chosen` are domains to run.

    `place` is the path of a folder of images, or the config of a known set.
    """

    name: str
    config: Path
    root: str
    domains: tuple[str, ...]
    chosen: tuple[str, ...]
    place: str
    label: str = ""


@dataclass(frozen=True)
class Plan:
    """The jobs of one method; `folder` is the data set's in OUTPUT, `cfg` the config of the first job."""

    trainer: str
    sets: list[Set]
    folder: Path
    jobs: list[Job]
    cfg: "CfgNode"


def plan_all(args: Namespace) -> tuple[list[Plan], dict[str, MethodError]]:
    """Plan the jobs of all methods; in a comparison, methods that cannot run have an error instead of a plan."""
    check_args(args)
    plans, errors = list[Plan](), dict[str, MethodError]()
    for trainer in args.trainers:
        try:
            plans.append(plan_jobs(args, trainer))
        except MethodError as error:
            if len(args.trainers) == 1:
                raise
            if str(error) not in map(str, errors.values()):  # methods may share an error
                print(f"{'Left out' if isinstance(error, BackboneError) else 'Error'}: {error}", file=sys.stderr)
            errors[trainer] = error
    if not plans:
        raise UserError("None of these methods can run with these settings.")
    backbones = sorted({plan.cfg.MODEL.BACKBONE.NAME for plan in plans})
    if len(backbones) > 1:
        names = ", ".join(backbones)
        raise UserError(f"The configs of these methods name different backbones ({names}). Add one after the data set.")
    return plans, errors


def check_args(args: Namespace) -> None:
    """Raise UserError if a method or engine is unknown, JOBS is wrong, or CFG or BASELINE fits none of the methods."""
    check_methods(args.trainers)
    if args.engine not in ENGINES:
        raise UserError(f"ENGINE is {args.engine!r}; accepted: {', '.join(ENGINES)}.")
    if args.jobs is not None and (not args.jobs.isdecimal() or not int(args.jobs)):
        raise UserError(f"JOBS is {args.jobs!r}; accepted: the number of parallel runs, from 1.")
    configs = [find_method(name).config_file(args.cfg) for name in args.trainers]
    if args.cfg and len(configs) > 1 and not any(path.is_file() for path in configs):
        raise UserError(f"CFG is {args.cfg!r}; accepted: a name in configs/trainers/ of one of the methods.")
    baseline = (args.baseline or "").partition(" (")[0]
    if baseline and trainer_name(baseline).lower() not in map(str.lower, args.trainers):
        raise UserError(f"BASELINE is {baseline!r}; accepted: one of the methods {', '.join(args.trainers)}.")


# ---- data sets ----


def find_set(name: str, data: str, chosen: str, offer: bool) -> Set:
    """Find a data set by its name in configs/datasets/ or by its folder.

    Args:
        data: the data root.
        chosen: domains by names or codes; "": all.
        offer: whether to offer a download if the set is missing.
    """
    from datasets.download.offer import download_command, offer_download
    from datasets.known import EMBEDDED_DATASET, FOLDER, dataset_class, dataset_config
    from datasets.layouts import SetNotFound

    config, root = dataset_config(name, data)
    dataset, folder = dataset_class(config), Path(root).resolve()
    if config.stem not in (FOLDER, EMBEDDED_DATASET):
        try:
            if not folder.is_dir():
                raise SetNotFound(f"There is no folder {root} (DATA names another).")
            dataset.locate(folder, verbose=False)
        except SetNotFound as error:
            if not offer or not offer_download(config.stem, root):
                raise UserError(f"{error}\nTo download it: {download_command(config.stem, root)}") from error
    is_folder, domains = config.stem == FOLDER, tuple(dataset.list_domains(root))
    place = str(folder) if is_folder else f"configs/datasets/{config.name}"
    chosen_domains = tuple(_chosen_domains(chosen.strip(), dataset, root)) or domains
    return Set(folder.name if is_folder else config.stem, config, root, domains, chosen_domains, place)


def _chosen_domains(text: str, dataset: "type[DomainGeneralizationDataset]", root: str) -> list[str]:
    """Full names of the domains in a text with commas or spaces between; names may contain them, too."""
    names = [name for part in text.split("," if "," in text else None) if (name := part.strip())]
    names = [text] if text and dataset.find_domain(text, root) else names
    try:
        return list(dict.fromkeys(dataset.resolve_domains(root, (), (name,))[1][0] for name in names))
    except UserError as error:
        example = ",".join(dataset.list_codes(root)[:2])
        raise UserError(f'{error} Put commas between several: "{example}".') from error


def name_sets(sets: Sequence[Set], output: Path) -> list[Set]:
    """Give the sets names that no other data set has in OUTPUT; the second "test" is called "y_test" for y/test."""
    taken = _read_names(output)
    for one in sorted(sets, key=lambda one: os.path.isabs(one.place)):  # known sets first
        if one.place not in taken.values():
            taken[next(name for name in _possible_names(one) if _is_free(name, one, taken))] = one.place
    named = [(one, {place: name for name, place in taken.items()}[one.place]) for one in sets]
    return [replace(one, name=name, label="" if name == one.name else name) for one, name in named]


def save_names(sets: Sequence[Set], output: Path) -> None:
    """Write the names of data sets to OUTPUT."""
    with creation_lock(output / NAMES_FILE, "names data sets"):
        known = _read_names(output)
        names = {**known, **{one.name: one.place for one in sets}}
        if names != known:
            write_json(output / NAMES_FILE, {"names": names})


def _read_names(output: Path) -> dict[str, str]:
    try:
        return read_json(output / NAMES_FILE)["names"]
    except (OSError, ValueError, KeyError):
        return {}


def _possible_names(one: Set) -> list[str]:
    parts = Path(one.place).parts
    if not os.path.isabs(one.place):
        return [one.name, f"{one.name}_dataset"]
    return [one.name, *("_".join(parts[-n:]) for n in range(2, len(parts) + 1))]


def _is_free(name: str, one: Set, taken: dict[str, str]) -> bool:
    """Whether no other data set has the name; a folder with the same images is no other one."""
    from datasets.contents import same_images

    others = [other for known, other in taken.items() if known.casefold() == name.casefold()]
    return all(os.path.isabs(one.place) and os.path.isabs(other) and same_images(one.place, other) for other in others)


# ---- jobs ----


def plan_jobs(args: Namespace, trainer: str) -> Plan:
    """Plan the jobs of a method; MethodError if it cannot run with these settings, UserError if no method can."""
    from dassl.engine import TRAINER_REGISTRY

    import trainers.all  # noqa: F401 (registers trainers and data sets)
    from datasets.known import EMBEDDED_DATASET
    from trainers.authors_configs import merge_method_file
    from trainers.base.run_record import check_finished
    from trainers.config import default_cfg, settings_notes
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
    note = merge_method_file(cfg := default_cfg(), method_file, trainer)
    default = EMBEDDED_BACKBONE if is_embedded else cfg.MODEL.BACKBONE.NAME or DEFAULT_BACKBONE
    backbone = args.backbone or default
    check_backbone(backbone)
    if method.needs_vit:
        method.check_backbone(backbone, has_vit(backbone))
    output = args.output.absolute()
    base = output / dataset.name / trainer / backbone_label(backbone) / method_file.stem
    common = ["--trainer", trainer, "--backbone", absolute_name(backbone)]
    common += ["--config-file", str(method_file.absolute())]
    # A config that the user names may have another stage I, so it has its own labels.
    labels = output / (f"prompt_labels_{method_file.stem}" if chosen_cfg else "prompt_labels")
    node = "DPSPG" if trainer.startswith("DPSPG") else "SPG"
    opts = [f"TRAINER.{node}.LABEL_DIR", str(labels), "TRAINER.FEATURES.CACHE_DIR", str(output / "feature_cache")]
    jobs = []
    for seed in _seeds(args.seeds, "1" if args.dataset is None and is_embedded else "1 2 3"):
        for run, one, sources, targets, place in list_runs(args.protocol, sets):
            folder, needs = base / place / f"seed{seed}", None
            words = [*common, "--root", one.root and os.path.abspath(one.root)]
            words += ["--dataset-config-file", str(one.config), "--seed", seed, "--output-dir", str(folder)]
            words += ["--source-domains", *sources, "--target-domains", *targets]
            if is_cross and one is not dataset:
                needs = base / CROSS_TRAINING / f"seed{seed}"
                words += ["--eval-only", "--model-dir", str(needs)]
            words += [*opts, *(["DATASET.LABEL", one.label] if one.label else [])]
            tested = place != CROSS_TRAINING
            words += [*([] if tested else ["TEST.NO_TEST", "True"]), *args.opts]
            title = f"{trainer} on {dataset.name}, {run}, seed {seed}"
            jobs.append(Job(title, tuple(words), folder, needs, tested))
    cfg = jobs[0].config()
    try:
        TRAINER_REGISTRY.get(trainer).check_config(cfg)
        for job in jobs:
            if job.is_finished():
                check_finished(job.folder, job.config(), is_quick=True)
    except user_errors() as error:
        raise MethodError(str(error)) from error
    other = f"Note: {trainer} has no config {args.cfg} and uses {method_file.stem}." if args.cfg != chosen_cfg else ""
    for line in filter(None, (other, note, *settings_notes(cfg))):
        print(line, file=sys.stderr)
    return Plan(trainer, sets, output / dataset.name, jobs, cfg)


def list_runs(protocol: str, sets: Sequence[Set]) -> Iterator[tuple[str, Set, tuple[str, ...], tuple[str, ...], str]]:
    """The runs of a protocol for one seed: title, data set, source domains, target domains, folder.

    `sets` are the set trained on, and in protocol cross those tested on.
    """
    dataset, *others = sets
    if protocol == "cross":
        yield f"training on {dataset.name}", dataset, dataset.domains, dataset.domains, CROSS_TRAINING
        for other in {one.name: one for one in others}.values():
            yield f"{dataset.name} to {other.name}", other, other.domains, other.domains, f"cross/to_{other.name}"
        return
    for domain in dataset.chosen:
        rest = tuple(other for other in dataset.domains if other != domain)
        if protocol == "multi":
            yield f"target {domain}", dataset, rest, (domain,), domain
        else:  # with two domains these are the runs of protocol multi
            yield f"source {domain}", dataset, (domain,), rest, f"from_{domain}" if len(rest) > 1 else rest[0]


def _seeds(text: str | None, default: str) -> list[str]:
    seeds = (default if text is None else text).split()
    if not seeds or not all(map(str.isdecimal, seeds)):
        raise UserError(f'SEEDS is {text!r}; accepted: numbers from 0 with spaces between, SEEDS="1 2 3".')
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
