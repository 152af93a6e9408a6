"""Run a method under a protocol: every target domain x every seed, skipping finished runs; then the table."""

import argparse
import os
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
from common.results import RESULTS_FILE  # noqa: E402
from common.run_identity import identity_differences, write_identity  # noqa: E402
from scripts.results import find_results, results_tables  # noqa: E402

EMBEDDED_DATASET = "mini_digits"
EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")
DEFAULT_BACKBONE = "RN50"
# SPG's config is that of its second stage; it names the first one's.
CONFIG_FOLDERS = {"SPG": "SPG_CGAN"}


def parse_args(argv=None):
    """Split the command line into trainer, data set, backbone and KEY VALUE pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="From the environment: DATA, OUTPUT, SEEDS, TARGETS, CFG; see scripts/spg/main.sh.",
    )
    parser.add_argument("trainer", help="SPG, SPG_CGAN, CoOp, ZeroshotCLIP ...")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="[dataset] [backbone] [KEY VALUE ...]")
    args = parser.parse_args(argv)
    words, args.opts = split_at_key(args.rest)
    if len(words) > 2:
        parser.error(f"expected a data set, a backbone and KEY VALUE pairs, found: {' '.join(words)}")
    args.dataset, args.backbone = [*words, None, None][:2]
    return args


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


def method_config(trainer, dataset, chosen):
    """The config file of a method: $CFG, the one for the data set, or the default.

    Raises:
        UserError: there is no such config, or none for the method at all.
    """
    folder = REPOSITORY / "configs" / "trainers" / CONFIG_FOLDERS.get(trainer, trainer)
    candidates = [folder / f"{dataset}.yaml", folder / "default.yaml"]
    if chosen:
        candidates = [Path(chosen), folder / f"{chosen}.yaml"]
    for path in candidates:
        if path.is_file():
            return path
    if not folder.is_dir():
        methods = sorted({path.name for path in folder.parent.iterdir()} | set(CONFIG_FOLDERS))
        raise UserError(f"Unknown trainer {trainer!r}; accepted: {', '.join(methods)}.")
    found = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise UserError(f"CFG is {chosen!r}, which is neither a file nor a config of {trainer}: {found}.")


def dataset_domains(dataset_file, root, targets):
    """All domains of a data set, and the full names of the chosen targets (default: all domains)."""
    import yaml
    from dassl.data.datasets import DATASET_REGISTRY

    import datasets  # noqa: F401 (registers the data sets)

    name = yaml.safe_load(dataset_file.read_text(encoding="utf-8"))["DATASET"]["NAME"]
    dataset = DATASET_REGISTRY.get(name)
    domains = dataset.list_domains(str(root))
    chosen = [dataset.resolve_domains(str(root), (), (target,))[1][0] for target in targets]
    return domains, chosen or domains


def leave_one_domain_out(domains, chosen):
    """(sources, target) pairs: each of the chosen targets, with all other domains as sources."""
    return [([d for d in domains if d != target], target) for target in chosen]


def run_command(args, config, root, sources, target, seed, folder, labels, features):
    """The train.py command line of one run."""
    command = [sys.executable, str(REPOSITORY / "train.py"), "--trainer", args.trainer, "--root", str(root)]
    command += ["--dataset-config-file", str(config["dataset"]), "--backbone", args.backbone]
    command += ["--config-file", str(config["method"])]
    command += ["--source-domains", *sources, "--target-domains", target]
    command += ["--seed", str(seed), "--output-dir", str(folder)]
    return [
        *command,
        "TRAINER.SPG.LABEL_DIR",
        str(labels),
        "TRAINER.FEATURES.CACHE_DIR",
        str(features),
        *args.opts,
    ]


def check_same_run(folder, asked):
    """Note in a run's folder what it was asked for; a folder that was asked for something else is not taken over.

    Raises:
        UserError: the folder belongs to a run on other data, another backbone file, or with other settings.
    """
    differences = identity_differences(folder / "launch", asked)
    if differences:
        raise UserError(
            f"{folder} holds a run that was started differently: {differences}. Name another OUTPUT, or delete it."
        )
    write_identity(folder / "launch", asked)


def launch(args):
    """Do all runs and print the table; returns the number of runs that failed."""
    embedded = args.dataset is None
    dataset = EMBEDDED_DATASET if embedded else args.dataset
    args.backbone = args.backbone or (EMBEDDED_BACKBONE if dataset == EMBEDDED_DATASET else DEFAULT_BACKBONE)
    seeds = os.environ.get("SEEDS", "1" if embedded else "1 2 3").split()
    output = Path(os.environ.get("OUTPUT", "output"))
    dataset_file, root = dataset_config(dataset, os.environ.get("DATA", "data"))

    use_dassl()
    from trainers.modules.clip_backbone import backbone_label

    domains, chosen = dataset_domains(dataset_file, root, os.environ.get("TARGETS", "").split())
    name = Path(root).resolve().name if dataset_file.stem == "folder" else dataset_file.stem
    method_file = method_config(args.trainer, name, os.environ.get("CFG"))
    config = {"dataset": dataset_file, "method": method_file}
    base = output / name / args.trainer / backbone_label(args.backbone)
    base = base / method_file.stem

    # A config that was asked for by name may have another stage I, so its labels are its own.
    labels = output / (f"prompt_labels_{method_file.stem}" if os.environ.get("CFG") else "prompt_labels")
    runs = [(pair, seed) for seed in seeds for pair in leave_one_domain_out(domains, chosen)]
    failed = []
    with progress(total=len(runs), description=f"{args.trainer} on {name}", unit="run") as bar:
        for i, ((sources, target), seed) in enumerate(runs, start=1):
            folder = base / target / f"seed{seed}"
            title = f"[{i}/{len(runs)}] {args.trainer} on {name}, target {target}, seed {seed}"
            check_same_run(
                folder, {"root": str(Path(root).resolve()), "backbone": args.backbone, "settings": args.opts}
            )
            if (folder / RESULTS_FILE).is_file():
                bar.write(f"{title}: finished before, in {folder}", file=sys.stdout)
            else:
                bar.write(f"{title}: log in {folder}/log.txt", file=sys.stdout)
                sys.stdout.flush()
                start = time.time()
                command = run_command(
                    args,
                    config,
                    root,
                    sources,
                    target,
                    seed,
                    folder,
                    labels,
                    output / "feature_cache",
                )
                # The log has it all; bars and errors come through on stderr.
                code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
                if code:
                    failed.append(title)
                    bar.write(f"{title}: failed with exit code {code}", file=sys.stdout)
                else:
                    bar.write(f"{title}: done in {time.time() - start:.0f} s", file=sys.stdout)
            bar.update()

    results = find_results([base])
    if results:
        print("\n" + results_tables(results))
    if failed:
        print(f"\n{len(failed)} of {len(runs)} runs failed:", *failed, sep="\n  ")
    return len(failed)


def main(argv=None):
    """Exit code 0, or 1 with one message."""
    args = parse_args(argv)
    try:
        return min(1, launch(args))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
