"""From a command line to jobs: the data sets that it names, and the train.py command lines of each method."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from yacs.config import CfgNode

from common.errors import UserError, user_errors
from common.files import write_json
from common.locks import creation_lock
from common.run import is_finished
from common.startup import REPOSITORY
from scripts.launching.status import read_or_empty
from trainers.methods import BackboneError, Method, MethodError, find_method

ENGINES = {"local": "", "ray": "ray", "slurm": "submitit"}  # and the extra packages that they need
DEFAULT_BACKBONE = "RN50"
EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")
TRAINED_ON, TESTED_ON = "domainnet", "pacs,vlcs,office_home,terra_incognita"  # cross, as published
CROSS_TRAINING = "cross/train"  # the folder of the trainings of protocol cross
NAMES_FILE = "datasets.json"  # in OUTPUT: the paths of folders of images by their names


@dataclass(frozen=True)
class Job:
    """One call of train.py; `needs` is the folder of the job that trains its model, if it is a test of another run."""

    title: str
    arguments: tuple[str, ...]
    folder: Path
    needs: Path | None = None
    has_test: bool = True

    def is_finished(self) -> bool:
        return is_finished(self.folder, self.has_test)

    def config(self) -> CfgNode:
        import train

        return train.setup_cfg(train.parse_args(list(self.arguments)))


@dataclass(frozen=True)
class Set:
    """A data set: `chosen` are domains to run, `display_name` is `name` if its folder has another one, else ""."""

    name: str
    config: Path
    root: str
    domains: tuple[str, ...]
    chosen: tuple[str, ...]
    display_name: str = ""


@dataclass
class Plan:
    """The jobs of a command line. Each method has the config of its first job, or an error if it cannot run."""

    sets: list[Set]
    folder: Path  # of the data set, in OUTPUT
    jobs: list[Job] = field(default_factory=list)
    configs: dict[str, CfgNode] = field(default_factory=dict)
    errors: dict[str, MethodError] = field(default_factory=dict)


def plan_all(args: Namespace) -> Plan:
    """Plan the jobs of all methods; raises UserError if none can run, or if one method is named and cannot."""
    sets = name_sets(find_sets(args), args.output)
    plan = Plan(sets, args.output.absolute() / sets[0].name)
    for trainer in args.trainers:
        try:
            jobs, plan.configs[trainer] = plan_jobs(args, trainer, sets)
            plan.jobs += jobs
        except MethodError as error:
            if len(args.trainers) == 1:
                raise
            if str(error) not in map(str, plan.errors.values()):  # methods may share an error
                print(f"{'Left out' if isinstance(error, BackboneError) else 'Error'}: {error}", file=sys.stderr)
            plan.errors[trainer] = error
    backbones = sorted({cfg.MODEL.BACKBONE.NAME for cfg in plan.configs.values()})
    if len(backbones) != 1:
        problem = f"their configs name different backbones ({', '.join(backbones)})" if backbones else "none can run"
        raise UserError(f"METHODS: {problem}. Name another backbone or config.")
    plan.jobs = [replace(job, title=f"[{i}/{len(plan.jobs)}] {job.title}") for i, job in enumerate(plan.jobs, start=1)]
    return plan


def find_sets(args: Namespace) -> list[Set]:
    """The data set of a command line, and in protocol cross the sets to test on."""
    from datasets.base import EMBEDDED_DATASET

    is_cross = args.protocol == "cross"
    names = [args.dataset or (TRAINED_ON if is_cross else EMBEDDED_DATASET)]
    names += (args.test_datasets or TESTED_ON).split(",") if is_cross else []
    # Domains can be named in protocols with one data set alone.
    sets = [find_set(name, args.data, args.domains, not args.print) for name in names]
    if len(sets) == 1 and len(sets[0].domains) < 2:
        raise UserError(f"{sets[0].root} has one domain, {sets[0].domains[0]}. Add another one to test on.")
    return sets


def find_set(name: str, data: str, chosen: str, offer: bool) -> Set:
    """Find a data set by its name below `data`, or by its folder; `chosen` are names or codes of domains."""
    from datasets.base import EMBEDDED_DATASET, FOLDER, dataset_class, dataset_config
    from datasets.download.install import download_command, offer_download
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
    name, domains, chosen = folder.name if config.stem == FOLDER else config.stem, [], chosen.strip()
    # A whole name is tried first, since names may contain commas and spaces.
    words = [chosen] if dataset.find_domain(chosen, root) else chosen.split("," if "," in chosen else None)
    try:
        for word in filter(None, map(str.strip, words)):
            domains += dataset.resolve_domains(root, (), [word])[1]
    except UserError as error:
        example = ",".join(dataset.list_codes(root)[:2])
        raise UserError(f'{error} Put commas between several: "{example}".') from error
    every = tuple(dataset.list_domains(root))
    return Set(name, config, root, every, tuple(dict.fromkeys(domains)) or every)


def name_sets(sets: Sequence[Set], output: Path) -> list[Set]:
    """Give folders of images names of their own in OUTPUT: the second "test" is called "y_test" for y/test."""
    from datasets.base import known_names
    from datasets.image_files import same_images

    taken, named, known = read_or_empty(output / NAMES_FILE), [], known_names()
    for one in sets:
        if one.config.stem not in known:
            path = Path(one.root).resolve()
            names = [name for name, folder in taken.items() if folder == str(path)]
            names += ["_".join(path.parts[-n:]) for n in range(1, len(path.parts))]
            # Moved images keep their name.
            free = (name for name in names if name not in taken or same_images(taken[name], str(path)))
            taken[name := next(name for name in free if name not in known)] = str(path)
            one = replace(one, name=name, display_name="" if name == one.name else name)
        named.append(one)
    return named


def save_names(sets: Sequence[Set], output: Path) -> None:
    from datasets.base import FOLDER

    names = {one.name: str(Path(one.root).resolve()) for one in sets if one.config.stem == FOLDER}
    with creation_lock(output / NAMES_FILE, "names data sets"):
        write_json(output / NAMES_FILE, {**read_or_empty(output / NAMES_FILE), **names})


def plan_jobs(args: Namespace, trainer: str, sets: Sequence[Set]) -> tuple[list[Job], CfgNode]:
    """The jobs of a method, and the config of the first; raises MethodError if it cannot run with these settings."""
    from dassl.engine import TRAINER_REGISTRY

    import trainers.all  # noqa: F401 (registers trainers and data sets)
    from datasets.base import EMBEDDED_DATASET
    from trainers.base.run_record import check_finished
    from trainers.config import SHARED_FOLDERS, default_cfg, merge_method_file, settings_notes
    from trainers.modules.clip.backbone import absolute_name, backbone_label, check_backbone, has_vit

    method, dataset, output = find_method(trainer), sets[0], args.output.absolute()
    method.check_protocol(args.protocol)
    is_embedded = dataset.config.stem == EMBEDDED_DATASET and args.protocol != "cross"
    # In a comparison, only the methods that have the chosen config use it.
    chosen_cfg = args.cfg if len(args.trainers) == 1 or method.config_file(args.cfg).is_file() else ""
    method_file = _method_file(method, dataset.config.stem, chosen_cfg)
    note = merge_method_file(cfg := default_cfg(), method_file, trainer)
    backbone = args.backbone or (EMBEDDED_BACKBONE if is_embedded else cfg.MODEL.BACKBONE.NAME or DEFAULT_BACKBONE)
    check_backbone(backbone)
    if method.needs_vit:
        method.check_image_tower(backbone, has_vit(backbone))
    base = output / dataset.name / trainer / backbone_label(backbone) / method_file.stem
    common = ["--trainer", trainer, "--backbone", absolute_name(backbone)]
    common += ["--config-file", str(method_file.absolute())]
    # A config that the user names may have another stage I, so it has its own labels.
    labels = output / (f"prompt_labels_{method_file.stem}" if chosen_cfg else "prompt_labels")
    label_key = f"TRAINER.{TRAINER_REGISTRY.get(trainer).NODE}.LABEL_DIR"
    opts = [label_key, str(labels)] if label_key in SHARED_FOLDERS else []
    opts += ["TRAINER.FEATURES.CACHE_DIR", str(output / "feature_cache")]
    jobs = []
    default = "1" if args.dataset is None and is_embedded else "1 2 3"
    for seed in dict.fromkeys(str(int(seed)) for seed in (default if args.seeds is None else args.seeds).split()):
        for run, one, sources, targets, subfolder in list_runs(args.protocol, sets):
            folder, needs, has_test = base / subfolder / f"seed{seed}", None, subfolder != CROSS_TRAINING
            words = [*common, "--root", one.root and os.path.abspath(one.root)]
            words += ["--dataset-config-file", str(one.config), "--seed", seed, "--output-dir", str(folder)]
            words += ["--source-domains", *sources, "--target-domains", *targets]
            if len(sets) > 1 and has_test:
                needs = base / CROSS_TRAINING / f"seed{seed}"
                words += ["--eval-only", "--model-dir", str(needs)]
            words += [*opts, *(["DATASET.LABEL", one.display_name] if one.display_name else [])]
            words += [*([] if has_test else ["TEST.NO_TEST", "True"]), *args.opts]
            title = f"{trainer} on {dataset.name}, {run}, seed {seed}"
            jobs.append(Job(title, tuple(words), folder, needs, has_test))
    cfg = jobs[0].config()
    try:
        TRAINER_REGISTRY.get(trainer).check_config(cfg)
        for job in jobs:
            if job.is_finished():
                check_finished(job.folder, job.config(), is_quick=True)
    except user_errors() as error:
        raise MethodError(str(error)) from error
    other = f"Note: {trainer} has no config {args.cfg} and uses {method_file.stem}." if args.cfg != chosen_cfg else ""
    for line in filter(None, (other, note, *settings_notes(cfg, TRAINER_REGISTRY.get(trainer)))):
        print(line, file=sys.stderr)
    return jobs, cfg


def list_runs(protocol: str, sets: Sequence[Set]) -> Iterator[tuple[str, Set, tuple[str, ...], tuple[str, ...], str]]:
    """The runs of a protocol for one seed: title, data set, source domains, target domains, folder."""
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
