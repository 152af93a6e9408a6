"""Run methods under a protocol, skip finished runs, then print the tables and, for a comparison, write the report.

    bash scripts/<method>/main.sh      leave one domain out
    bash scripts/<method>/single.sh    train on one domain, test on each other domain
    bash scripts/<method>/cross.sh     train on one data set, test on others
    bash scripts/compare.sh            all methods, then report.html

Each flag has an environment variable, shown in brackets: --jobs 4 or JOBS=4.
"""

import _repository

import argparse
import os
import shlex
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from common.errors import UserError, command
from common.interruption import Interrupted
from common.startup import REPOSITORY, escape_unprintable, split_at_key
from scripts.launching.jobs import DEFAULT_BACKBONE, ENGINES, TESTED_ON, TRAINED_ON, Plan, plan_all, save_names
from trainers.methods import METHODS, PROTOCOLS, BackboneError, check_methods, find_method, trainer_name

USAGE = """bash scripts/<method>/{main,single,cross}.sh [flags] [dataset] [other,datasets] [backbone] [KEY VALUE ...]
       bash scripts/compare.sh [flags] [dataset] [backbone] [KEY VALUE ...]
       launch.py [flags] METHODS [dataset] [other,datasets] [backbone] [KEY VALUE ...]"""
FLAGS = (  # environment variable, name of the value, default, help
    ("PROTOCOL", "NAME", "multi", "protocol of launch.py: multi (main.sh), single or cross (default: multi)"),
    ("METHODS", "NAMES", None, "methods with commas between (default of --compare: all methods of the protocol)"),
    ("JOBS", "N", None, "number of parallel runs (default: 1; Ray: as many as fit; SLURM: 1000)"),
    ("ENGINE", "NAME", "local", f"engine of the runs: {', '.join(ENGINES)} (default: local)"),
    ("RAY_ADDRESS", "ADDRESS", "", "Ray: auto or <host>:<port> of a cluster (default: start a local Ray)"),
    ("TASK_GPUS", "N", "", "Ray: GPUs of each run, 0.5 for half a GPU (default: 1 if the cluster has any)"),
    ("SLURM_PARTITION", "NAME", "", "SLURM: partition (default: the cluster's)"),
    ("SLURM_TIME", "TIME", "", "SLURM: time limit of each job, for example 8:00:00 (default: 60 minutes)"),
    ("SLURM_GPUS", "N", "", "SLURM: GPUs of each run (default: none)"),
    ("SLURM_OPTIONS", "OPTIONS", "", 'SLURM: more options of sbatch, for example "qos=long mem=32G" (default: none)'),
    ("DATA", "FOLDER", "data", "folder of the data sets (default: data)"),
    ("OUTPUT", "FOLDER", "output", "folder of the results (default: output)"),
    ("SEEDS", "NUMBERS", None, 'seeds (default: "1 2 3"; without a data set: 1)'),
    ("TARGETS", "DOMAINS", "", "main.sh: target domains, names or codes (default: all)"),
    ("SOURCES", "DOMAINS", "", "single.sh: source domains, names or codes (default: all)"),
    ("CFG", "NAME", "", "config of the method, a name or a file (default: named after the data set, else default)"),
    ("BASELINE", "METHOD", None, 'report: baseline of the differences, or "" (default: ZeroshotCLIP if it is there)'),
)
METHOD_LINES = "\n".join(f"  {one.name:18}{one.trainer:18}{one.summary}" for one in METHODS)
WORDS = f"""words:
  METHODS          methods from the list below, by either name, with commas between
  dataset          a name in configs/datasets/, or a folder <domain>/<class>/<image>
                   (default: mini_digits; cross.sh: {TRAINED_ON})
  other,datasets   cross.sh: data sets to test on (default: {TESTED_ON})
  backbone         OpenAI's name (RN50, ViT-B/16), open_clip:<architecture>@<tag or file>, hf:<folder or id>, or a file
                   (default: {DEFAULT_BACKBONE}; mini_digits: assets/mini_clip.pt)
  KEY VALUE        config keys, such as OPTIM.MAX_EPOCH 10

methods:
{METHOD_LINES}"""


def make_parser() -> argparse.ArgumentParser:
    """Make a parser of the flags; environment variables override their defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=WORDS
    )
    parser.add_argument("--compare", action="store_true", help="run all methods, then write report.html")
    parser.add_argument("--report", action="store_true", help="write report.html")
    parser.add_argument("--print", action="store_true", help="only print the train.py commands of unfinished runs")
    parser.add_argument("--script", help=argparse.SUPPRESS)  # scripts/<method>/<protocol>.sh
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    for name, metavar, default, meaning in FLAGS:
        default = os.environ.get(name, default)
        parser.add_argument(f"--{name.lower()}", default=default, metavar=metavar, help=f"{meaning} [{name}]")
    parser.set_defaults(methods=None)  # only --compare reads METHODS
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line; the result also has trainers, dataset, test_datasets, backbone, domains and opts."""
    parser = make_parser()
    args = parser.parse_intermixed_args(argv)
    args.protocol = args.protocol or "multi"
    if args.script:
        script = Path(args.script).resolve()
        args.protocol = "multi" if script.stem == "main" else script.stem
        args.methods = script.parent.name
    if args.protocol not in PROTOCOLS:
        parser.error(f"--protocol is {args.protocol}; accepted: {', '.join(PROTOCOLS)}")
    for flag, protocol in (("targets", "multi"), ("sources", "single")):
        if protocol != args.protocol and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--{flag} goes with --protocol {protocol}")
    words, args.opts = split_at_key(args.words)
    methods = args.methods
    if args.compare and not methods:
        compared = (one.name for one in METHODS if one.compared and args.protocol in one.protocols)
        methods = os.environ.get("METHODS") or ",".join(compared)
    if not methods:
        if not words:
            parser.error(f"name a method: {', '.join(one.name for one in METHODS)}")
        methods, *words = words
    positions = ["dataset", "test_datasets", "backbone"] if args.protocol == "cross" else ["dataset", "backbone"]
    if len(words) > len(positions):
        parser.error(f"expected at most {' '.join(positions)} and KEY VALUE pairs, found: {' '.join(words)}")
    args.dataset = args.test_datasets = args.backbone = None
    for position, word in zip(positions, words, strict=False):
        setattr(args, position, word)
    args.trainers = list(dict.fromkeys(map(trainer_name, methods.replace(",", " ").split())))
    args.domains = {"multi": args.targets, "single": args.sources}.get(args.protocol, "")
    args.output, args.engine = Path(args.output), args.engine or "local"
    args.report = args.report or args.compare
    args.visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    args.python_path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError if a method or engine is unknown, JOBS is wrong, or CFG or BASELINE fits none of the methods."""
    check_methods(args.trainers)
    if args.engine not in ENGINES:
        raise UserError(f"ENGINE is {args.engine!r}; accepted: {', '.join(ENGINES)}.")
    package = ENGINES[args.engine]
    if package and find_spec(package) is None and not args.print:
        raise UserError(f"ENGINE is {args.engine}, but the package {package} is missing. Run: pip install {package}")
    if args.jobs is not None and (not args.jobs.isdecimal() or not int(args.jobs)):
        raise UserError(f"JOBS is {args.jobs!r}; accepted: the number of parallel runs, from 1.")
    if args.seeds is not None and not "".join(args.seeds.split()).isdecimal():
        raise UserError(f'SEEDS is {args.seeds!r}; accepted: numbers from 0 with spaces between, SEEDS="1 2 3".')
    configs = [find_method(name).config_file(args.cfg) for name in args.trainers]
    if args.cfg and len(configs) > 1 and not any(path.is_file() for path in configs):
        raise UserError(f"CFG is {args.cfg!r}; accepted: a name in configs/trainers/ of one of the methods.")
    baseline = (args.baseline or "").partition(" (")[0] if args.report else ""
    if baseline and trainer_name(baseline).lower() not in map(str.lower, args.trainers):
        raise UserError(f"BASELINE is {baseline!r}; accepted: one of the methods {', '.join(args.trainers)}.")


def launch(args: argparse.Namespace) -> int:
    """Run or print the jobs of a command line; returns the number of failures."""
    # Processes of runs import this file, but not these modules.
    from common.files import make_output_folder
    from common.progress import progress
    from scripts.launching.local import JobLog, run_by_engine
    from scripts.launching.status import save_plan

    check_args(args)
    plan = plan_all(args)
    jobs, todo = plan.jobs, [job for job in plan.jobs if not job.is_finished()]
    # A comparison leaves out methods that cannot take the backbone. Other errors of a method are failures.
    not_started = [trainer for trainer, error in plan.errors.items() if not isinstance(error, BackboneError)]
    if args.print:
        escape_unprintable(sys.stdout, "utf-8", "surrogateescape")
        for job in sorted(todo, key=lambda job: job.needs is not None):  # trainings come first
            print(shlex.join([sys.executable, str(REPOSITORY / "train.py"), *job.arguments]))
        return len(not_started)
    for folder in (args.output, plan.folder):
        make_output_folder(folder)
    save_names(plan.sets, args.output)
    save_plan(jobs)
    name = next(iter(plan.configs)) if len(plan.configs) == 1 else f"{len(plan.configs)} methods"
    with progress(total=len(jobs), initial=len(jobs) - len(todo), description=name, unit="run") as bar:
        log = JobLog(bar)
        for job in jobs:
            if job not in todo:
                log.print(f"{job.title}: finished before, in {job.folder}")
        if todo:
            run_by_engine(todo, plan, args, log)
    failed = defaultdict(list)
    for job, reason in log.failed.items():
        failed[reason].append(job.title)
    lines = [f"\n{len(log.failed)} of {len(jobs)} runs failed:"] if failed else []
    lines += [f"  {', '.join(titles)}: {reason}" for reason, titles in failed.items()]
    lines += [f"\nNot started because of the errors above: {', '.join(not_started)}"] if not_started else []
    show(args, plan, lines)
    return len(log.failed) + len(not_started)


def show(args: argparse.Namespace, plan: Plan, lines: list[str]) -> None:
    """Print tables and lines on failures, then write the report if --report or --compare asks for it."""
    from scripts.reporting.load import load_results
    from scripts.reporting.tables import make_tables
    from scripts.reporting.text import format_tables

    tables, finished = [], [job.folder for job in plan.jobs if job.has_test and job.is_finished()]
    if finished:
        results, baseline = load_results(finished), (args.baseline or "") if args.report else ""
        if args.report and args.baseline is None:
            baseline = next(iter(results.loc[results["trainer"] == "ZeroshotCLIP", "method"]), "")
        tables = make_tables(results, baseline)
        print("\n" + format_tables(tables))
    for line in lines:
        print(line)
    if args.report and tables:
        from scripts.reporting.page import write_report

        method_errors = [
            f"Left out: {error}" if isinstance(error, BackboneError) else f"{name} is not started: {error}"
            for name, error in plan.errors.items()
        ]
        write_report(tables, [job.folder for job in plan.jobs], plan.folder / "report.html", method_errors)


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 with one message or a list of failures, or 130 and 143 after an interruption."""
    args = parse_args(argv)
    try:
        return min(1, launch(args))
    except Interrupted as interrupted:
        return interrupted.exit_code


if __name__ == "__main__":
    sys.exit(main())
