"""Run methods under a protocol, skipping finished runs; then the table, and for a comparison the report."""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from common.config_keys import split_at_key  # noqa: E402
from common.dassl_path import use_dassl  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.progress import progress  # noqa: E402
from common.run.identity import IDENTITY_FILE, TRAINED_FILE, identity_differences, write_identity  # noqa: E402
from common.run.results import RESULTS_FILE  # noqa: E402
from scripts.plans import Set, cross_dataset, multi_source, single_source  # noqa: E402
from scripts.report_tables import method_name  # noqa: E402
from scripts.results import find_results, results_tables  # noqa: E402

EMBEDDED_DATASET = "mini_digits"
EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")
DEFAULT_BACKBONE = "RN50"
PROTOCOLS = ("multi", "single", "cross")
TRAINED_ON, TESTED_ON = "domainnet", "pacs,vlcs,office_home,terra_incognita"  # cross, as published
# What the folders of scripts/ call the methods, in the order of a comparison.
METHODS = {
    "zsclip": "ZeroshotCLIP",
    "zsclip2": "ZeroshotCLIP2",
    "linear_probe": "LinearProbe",
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "spg": "SPG",
}
# What a run may use, not what it computes.
RESOURCES = (
    "TEST.MEMORY_MB",
    "DATALOADER.NUM_WORKERS",
    "DATASET.SKIP_UNREADABLE",
    "TRAINER.FEATURES.CACHE",
    "TRAINER.FEATURES.CACHE_DIR",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
)
# SPG's config is that of its second stage; it names the first one's.
CONFIG_FOLDERS = {"SPG": "SPG_CGAN"}


def parse_args(argv=None):
    """Split the command line into methods, data sets, backbone and KEY VALUE pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="From the environment: DATA, OUTPUT, SEEDS, TARGETS or SOURCES, CFG, METHODS; see scripts/spg/*.sh and "
        "scripts/compare.sh.",
    )
    parser.add_argument("--protocol", default="multi", choices=PROTOCOLS)
    parser.add_argument("--report", action="store_true", help="end with the report of the data set's output folder")
    parser.add_argument("methods", help=f"{', '.join(METHODS)} or a trainer's name; several with commas between")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="[dataset] [other,datasets (cross)] [backbone] [KEY VALUE ...]"
    )
    args = parser.parse_args(argv)
    words, args.opts = split_at_key(args.rest)
    places = ["dataset", "tested", "backbone"] if args.protocol == "cross" else ["dataset", "backbone"]
    if len(words) > len(places):
        parser.error(f"expected at most {' '.join(places)} and KEY VALUE pairs, found: {' '.join(words)}")
    args.dataset = args.tested = args.backbone = None
    for place, word in zip(places, words, strict=False):
        setattr(args, place, word)
    args.trainers = [METHODS.get(name, name) for name in args.methods.replace(",", " ").split()]
    return args


class MethodError(UserError):
    """A method cannot be run as asked; others of a comparison can."""


def dataset_config(name, data):
    """The data set config file and the data root for a name or a folder.

    Raises:
        UserError: neither a config nor a folder goes by that name.
    """
    folder = REPOSITORY / "configs" / "datasets"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name.lower() in names:
        return folder / f"{name.lower()}.yaml", data
    if Path(name).is_dir():
        return folder / "folder.yaml", name
    raise UserError(
        f"Unknown data set {name!r}: neither a folder nor one of {', '.join(n for n in names if n != 'folder')}."
    )


def config_of(trainer, name):
    """Where the config of a method by some name would lie."""
    return REPOSITORY / "configs" / "trainers" / CONFIG_FOLDERS.get(trainer, trainer) / f"{name}.yaml"


def method_config(trainer, dataset, chosen):
    """The config file of a method: the one chosen (a file or a name), the one for the data set, or the default.

    Args:
        trainer: its name.
        dataset: stem of the data set's config file.
        chosen: from CFG; None: not chosen.

    Raises:
        MethodError: there is no such config, or none for the method at all.
    """
    candidates = [config_of(trainer, dataset), config_of(trainer, "default")]
    if chosen:
        candidates = [Path(chosen), config_of(trainer, chosen)]
    for path in candidates:
        if path.is_file():
            return path
    folder = candidates[-1].parent
    if not folder.is_dir():
        methods = sorted({path.name for path in folder.parent.iterdir()} | set(CONFIG_FOLDERS))
        raise MethodError(f"Unknown trainer {trainer!r}; accepted: {', '.join(methods)}.")
    found = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise MethodError(f"CFG is {chosen!r}, which is neither a file nor a config of {trainer}: {found}.")


def named_backbone(method_file):
    """The backbone that a method's config names, as CoOp's do (vit_b16.yaml); None if it names none."""
    import yaml

    config = yaml.safe_load(method_file.read_text(encoding="utf-8")) or {}
    return config.get("MODEL", {}).get("BACKBONE", {}).get("NAME")


def find_set(name, data, chosen=()):
    """The Set that a name or folder means; one that is missing is offered for download.

    Args:
        name: of configs/datasets/, or a folder.
        data: the data root.
        chosen: domains that were asked for, by name or code; none: all.

    Raises:
        UserError: it is unknown, or not there.
    """
    import yaml
    from dassl.data.datasets import DATASET_REGISTRY

    import datasets  # noqa: F401 (registers the data sets)
    from datasets.layouts import SetNotFound
    from scripts.download import download_command, offer_download

    config, root = dataset_config(name, data)
    dataset = DATASET_REGISTRY.get(yaml.safe_load(config.read_text(encoding="utf-8"))["DATASET"]["NAME"])
    if config.stem not in ("folder", EMBEDDED_DATASET):
        try:
            if not Path(root).is_dir():
                raise SetNotFound(f"There is no folder {root} (DATA names another).")
            dataset.locate(Path(root).resolve(), verbose=False)
        except SetNotFound as error:
            if not offer_download(config.stem, root):
                raise UserError(f"{error}\nTo download it: {download_command(config.stem, root)}") from error
    domains = dataset.list_domains(str(root))
    asked = [dataset.resolve_domains(str(root), (), (domain,))[1][0] for domain in chosen]
    label = Path(root).resolve().name if config.stem == "folder" else config.stem
    return Set(label, config, str(root), tuple(domains), tuple(asked or domains))


def run_command(trainer, run, method_file, backbone, opts, labels, features):
    """The train.py command line of one run."""
    command = [sys.executable, str(REPOSITORY / "train.py"), "--trainer", trainer, "--root", run.dataset.root]
    command += ["--dataset-config-file", str(run.dataset.config), "--backbone", backbone]
    command += ["--config-file", str(method_file)]
    command += ["--source-domains", *run.sources, "--target-domains", *run.targets]
    command += ["--seed", run.seed, "--output-dir", str(run.folder)]
    if run.model_dir is not None:
        command += ["--eval-only", "--model-dir", str(run.model_dir)]
    command += ["TRAINER.SPG.LABEL_DIR", str(labels), "TRAINER.FEATURES.CACHE_DIR", str(features)]
    return [*command, *([] if run.test else ["TEST.NO_TEST", "True"]), *opts]


def check_same_run(folder, asked):
    """Note in a run's folder what it was asked for; a folder that was asked for something else is not taken over.

    Raises:
        MethodError: the folder belongs to a run on other data, another backbone file, or with other settings.
    """
    differences = identity_differences(folder / "launch", asked)
    if differences:
        raise MethodError(
            f"{folder} holds a run that was started differently: {differences}. Name another OUTPUT, or delete it."
        )
    write_identity(folder / "launch", asked)


def resolved(backbone):
    """A backbone's name, or the whole path of its file."""
    return str(Path(backbone).resolve()) if Path(backbone).is_file() else backbone


def settings_that_matter(opts):
    """KEY VALUE pairs without those that only say how much memory, disk and time a run may take."""
    pairs = dict(zip(opts[::2], opts[1::2], strict=False))
    return {key: value for key, value in sorted(pairs.items()) if key not in RESOURCES}


def config_digest(path):
    """Fingerprint of what a config file says, whatever its comments."""
    import yaml

    content = json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Interrupted(Exception):
    """The launcher was asked to end.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, exit_code):
        super().__init__()
        self.exit_code = exit_code


def run_to_the_end(command):
    """Run a command, which gets SIGINT and SIGTERM as well and may finish its step; returns its exit code.

    Raises:
        Interrupted: one of them came. What the command made of it does not matter: it may have been just starting.
    """
    process, received = None, []

    def pass_on(number, frame):
        received.append(number)
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # The log has it all; bars and errors come through on stderr. In a session of its own it gets a terminal's
        # Ctrl-C once, from here, like that of anyone who signals the launcher alone.
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        if received:  # before there was a process to tell
            process.send_signal(received[0])
        code = process.wait()
        if received:
            raise Interrupted(128 + received[0])
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Launch:
    """The runs of one method.

    Args:
        args: from `parse_args`.
        trainer: its name.
        output: folder of all output.
        data: the data root.
    """

    def __init__(self, args, trainer, output, data):
        import train
        from trainers.modules.clip_backbone import backbone_label, check_backbone

        self.opts, self.trainer = args.opts, trainer
        chosen = "SOURCES" if args.protocol == "single" else "TARGETS" if args.protocol == "multi" else None
        domains = os.environ.get(chosen, "").split() if chosen else ()
        name = args.dataset or (TRAINED_ON if args.protocol == "cross" else EMBEDDED_DATASET)
        dataset = find_set(name, data, domains)
        embedded = dataset.config.stem == EMBEDDED_DATASET and args.protocol != "cross"
        if args.protocol != "cross" and len(dataset.domains) < 2:
            raise UserError(
                f"{dataset.root} has one domain, {dataset.domains[0]}; generalization takes another one to test on."
            )
        seeds = os.environ.get("SEEDS", "1" if args.dataset is None and embedded else "1 2 3")
        if not seeds.split() or not all(seed.isdecimal() for seed in seeds.split()):
            raise UserError(f'SEEDS is {seeds!r}; accepted: numbers from 0 with spaces between, SEEDS="1 2 3".')
        seeds = seeds.split()
        cfg = os.environ.get("CFG")
        if cfg and len(args.trainers) > 1 and not config_of(trainer, cfg).is_file():
            cfg = None  # of several methods, those that have it
        self.method_file = method_config(trainer, dataset.config.stem, cfg)
        default = EMBEDDED_BACKBONE if embedded else named_backbone(self.method_file) or DEFAULT_BACKBONE
        self.backbone = args.backbone or default
        self.folder = output / dataset.name
        self.base = self.folder / trainer / backbone_label(self.backbone) / self.method_file.stem
        # A config that was asked for by name may have another stage I, so its labels are its own.
        self.labels = output / (f"prompt_labels_{self.method_file.stem}" if cfg else "prompt_labels")
        self.features = output / "feature_cache"
        if args.protocol == "cross":
            tested = [find_set(other, data) for other in (args.tested or TESTED_ON).split(",")]
            self.runs = cross_dataset(dataset, tested, self.base, seeds)
        else:
            plan = multi_source if args.protocol == "multi" else single_source
            self.runs = plan(dataset, self.base, seeds)
        self.name = f"{trainer} on {dataset.name}"
        # What every run would say of its config, said once and before the first begins.
        check_backbone(self.backbone)
        train.setup_cfg(train.parse_args(self.command(self.runs[0])[2:]))

    def command(self, run):
        """The train.py command line of one of the runs."""
        return run_command(self.trainer, run, self.method_file, self.backbone, self.opts, self.labels, self.features)

    def go(self, first=1, total=None):
        """Do all runs that are not finished; returns the titles of those that failed.

        Args:
            first, total: of a comparison, the number of this method's first run and that of all runs.

        Raises:
            Interrupted: a run was.
        """
        failed = []
        with progress(total=len(self.runs), description=self.name, unit="run") as bar:
            for i, run in enumerate(self.runs, start=first):
                title = f"[{i}/{total or len(self.runs)}] {self.name}, {run.title}"
                asked = {
                    "root": str(Path(run.dataset.root).resolve()),
                    "backbone": resolved(self.backbone),
                    "settings": settings_that_matter(self.opts),
                    "sources": run.sources,
                    "targets": run.targets,
                    self.method_file.name: config_digest(self.method_file),
                }
                check_same_run(run.folder, asked)
                if (run.folder / (RESULTS_FILE if run.test else TRAINED_FILE)).is_file():
                    bar.write(f"{title}: finished before, in {run.folder}", file=sys.stdout)
                elif not self._do(run, title, bar):
                    failed.append(title)
                bar.update()
        return failed

    def _do(self, run, title, bar):
        """Do one run; returns whether it succeeded."""
        begun = (run.folder / "log.txt").is_file()
        log = "going on, log in log.txt-<time> beside" if begun else "log in"
        bar.write(f"{title}: {log} {run.folder}/log.txt", file=sys.stdout)
        sys.stdout.flush()
        start = time.time()
        try:
            code = run_to_the_end(self.command(run))
        except Interrupted:
            bar.write(f"{title}: interrupted; the same command goes on from here", file=sys.stdout)
            raise
        done = f"done in {time.time() - start:.0f} s" if code == 0 else f"failed with exit code {code}"
        bar.write(f"{title}: {done}", file=sys.stdout)
        if code and not (run.folder / IDENTITY_FILE).is_file():
            # It never began to train, so there is nothing that other settings could be mixed up with.
            (run.folder / "launch" / IDENTITY_FILE).unlink(missing_ok=True)
        return code == 0


def baseline_of(results):
    """The method that a comparison's differences are to: BASELINE, or zero-shot CLIP where it is among the results."""
    chosen = os.environ.get("BASELINE")
    chosen = METHODS.get(chosen, chosen)
    zero_shot = (method_name(result) for result in results if result["trainer"] == "ZeroshotCLIP")
    return next(zero_shot, "") if chosen is None else chosen


def launch(args):
    """Do all runs of all methods and print the table; returns the number of runs that failed."""
    use_dassl()
    output, data = Path(os.environ.get("OUTPUT", "output")), os.environ.get("DATA", "data")
    launches, failed, refused = [], [], []

    def refuse(trainer, error):
        if len(args.trainers) == 1:
            raise error
        print(f"Error: {error}", file=sys.stderr)
        refused.append(trainer)

    cfg = os.environ.get("CFG")
    if cfg and len(args.trainers) > 1 and not any(config_of(trainer, cfg).is_file() for trainer in args.trainers):
        raise UserError(
            f"CFG is {cfg!r}, but none of {', '.join(args.trainers)} has a config of that name in configs/trainers. "
            "(One method alone takes a file, too.)"
        )
    baseline = os.environ.get("BASELINE", "").partition(" (")[0]
    if baseline and METHODS.get(baseline, baseline).lower() not in map(str.lower, args.trainers):
        raise UserError(f"BASELINE is {baseline!r}, which is none of the methods: {', '.join(args.trainers)}.")
    # All of them before the first begins, so that a mistake shows at once.
    for trainer in args.trainers:
        try:
            launches.append(Launch(args, trainer, output, data))
        except MethodError as error:
            refuse(trainer, error)
    backbones = {one.backbone for one in launches}
    if len(backbones) > 1:
        raise UserError(
            f"These methods' configs name different backbones ({', '.join(sorted(backbones))}), which do not compare: "
            "name one for all, after the data set."
        )
    total, first = sum(len(one.runs) for one in launches), 1
    for one in launches:
        try:
            failed += one.go(first, total)
        except MethodError as error:
            refuse(one.trainer, error)
        first += len(one.runs)
    # Those of these runs alone: another protocol may have its own beside them.
    folders = [run.folder for one in launches for run in one.runs if run.test]
    results = find_results([folder for folder in folders if (folder / RESULTS_FILE).is_file()])
    baseline = baseline_of(results) if args.report else ""
    if results:
        print("\n" + results_tables(results, baseline=baseline))
    if failed:
        print(f"\n{len(failed)} of {total} runs failed:", *failed, sep="\n  ")
    if refused:
        print(f"\nNot run to the end, see the errors above: {', '.join(refused)}")
        failed += refused
    if args.report and results:
        folder = launches[0].folder
        command = [sys.executable, str(REPOSITORY / "scripts" / "report.py"), str(folder), "--baseline", baseline]
        sys.stdout.flush()
        if subprocess.run([*command, "--out", str(folder / "report.html")], check=False).returncode:
            failed.append("report")
    return len(failed)


def main(argv=None):
    """Exit code 0, 1 with one message or a list of what failed, or 130 and 143 if it was interrupted."""
    args = parse_args(argv)
    try:
        return min(1, launch(args))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:  # between runs
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
