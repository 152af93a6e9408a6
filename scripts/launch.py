"""Run methods under a protocol, skipping finished runs; then the table, and for a comparison the report.

    bash scripts/<method>/main.sh      leave one domain out                     = --protocol multi --methods <method>
    bash scripts/<method>/single.sh    train on one domain, test on each other  = --protocol single --methods <method>
    bash scripts/<method>/cross.sh     train on one set, test on others         = --protocol cross --methods <method>
    bash scripts/compare.sh            methods side by side, then the report    = --compare

A name in brackets is the environment variable that gives a flag its default.
"""

import _repository

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from common.errors import UserError
from common.interruption import Interrupted
from common.startup import REPOSITORY, print_file_names, split_at_key
from scripts.launching.jobs import DEFAULT_BACKBONE, ENGINES, TESTED_ON, TRAINED_ON, Plan, plan_all, save_names
from trainers.methods import METHODS, PROTOCOLS, BackboneError, trainer_name

USAGE = """launch.py [flags] METHODS [dataset] [other,datasets (cross)] [backbone] [KEY VALUE ...]
       bash scripts/<method>/{main,single,cross}.sh [flags] [dataset] [other,datasets] [backbone] [KEY VALUE ...]
       bash scripts/compare.sh [flags] [dataset] [backbone] [KEY VALUE ...]"""
METHOD_LINES = "\n".join(f"  {one.name:18}{one.trainer:18}{one.summary}" for one in METHODS)
SLURM = {
    "slurm_partition": ("NAME", "of slurm: partition (default: SLURM's)"),
    "slurm_time": ("TIME", "of slurm: time limit of each job, 8:00:00; the job is requeued and resumes (default: 60)"),
    "slurm_gpus": ("N", "of slurm: GPUs of each run (default: none)"),
    "slurm_options": ("OPTIONS", 'of slurm: more options of sbatch, "qos=long mem=32G"'),
}
WORDS = f"""words:
  METHODS          of the methods below, with commas between; by short names or trainers
  dataset          a name of configs/datasets/ or a folder <domain>/<class>/<image> (default: mini_digits; of cross:
                   {TRAINED_ON})
  other,datasets   those that cross tests on (default: {TESTED_ON})
  backbone         an OpenAI name (RN50, ViT-B/16), open_clip:<architecture>@<tag or file>, hf:<folder or id>, or a file
                   in OpenAI's format (default: what the method's config names, else {DEFAULT_BACKBONE}; of mini_digits:
                   assets/mini_clip.pt)
  KEY VALUE        config keys, such as OPTIM.MAX_EPOCH 10

methods:
{METHOD_LINES}"""


def make_parser() -> argparse.ArgumentParser:
    """The flags, to which the environment gives defaults; it is read nowhere else."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=WORDS
    )

    def add_flag(variable: str, metavar: str, what: str, default: str | None = None) -> None:
        value = os.environ.get(variable, default)
        parser.add_argument(f"--{variable.lower()}", default=value, metavar=metavar, help=f"{what} [{variable}]")

    add_flag("PROTOCOL", "NAME", f"{', '.join(PROTOCOLS[:-1])} or {PROTOCOLS[-1]} (default: multi)", "multi")
    parser.add_argument("--compare", action="store_true", help="all methods side by side, if none are named; --report")
    parser.add_argument("--methods", metavar="NAMES", help="in place of the word METHODS [METHODS, of --compare alone]")
    parser.set_defaults(compared=os.environ.get("METHODS"))
    parser.add_argument("--report", action="store_true", help="end with report.html in the data set's output folder")
    parser.add_argument(
        "--print",
        action="store_true",
        help="do nothing but print the train.py commands of unfinished runs, a line each",
    )
    add_flag("JOBS", "N", "how many runs go on at once, within the cores (default: 1; of ray as many as fit)")
    add_flag("ENGINE", "NAME", f"what does the runs: {' or '.join(ENGINES)} (default: local, this machine)", "local")
    add_flag("RAY_ADDRESS", "ADDRESS", "of ray: auto or <host>:<port> of a cluster (default: one is started here)", "")
    add_flag("TASK_GPUS", "N", "of ray: GPUs of each run, 0.5 for half a one (default: 1 where there are any)", "")
    for name, (metavar, what) in SLURM.items():
        add_flag(name.upper(), metavar, what, "")
    add_flag("DATA", "FOLDER", "where the data sets are (default: data)", "data")
    add_flag("OUTPUT", "FOLDER", "where results go (default: output)", "output")
    add_flag("SEEDS", "NUMBERS", 'with spaces between (default: "1 2 3"; 1 where no data set is named)')
    add_flag("TARGETS", "DOMAINS", "of multi: names or codes, with commas or spaces between (default: all)", "")
    add_flag("SOURCES", "DOMAINS", "of single: names or codes, with commas or spaces between (default: all)", "")
    add_flag("CFG", "NAME", "config of the method, or its file (default: that of the data set, else default)", "")
    add_flag("BASELINE", "METHOD", 'of the report: what differences are to, "" for nothing (default: ZeroshotCLIP)')
    parser.add_argument("--script", help=argparse.SUPPRESS)  # scripts/<method>/<protocol>.sh, which starts this
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line; the result also has `trainers`, the words of the protocol, `domains` and `opts`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.protocol = args.protocol or "multi"
    if args.script:
        script = Path(args.script).resolve()
        args.protocol, args.methods = script.stem.replace("main", "multi"), script.parent.name
    if args.protocol not in PROTOCOLS:
        parser.error(f"--protocol is {args.protocol}; accepted: {', '.join(PROTOCOLS)}")
    for flag, protocol in (("targets", "multi"), ("sources", "single")):
        if protocol != args.protocol and getattr(args, flag) != parser.get_default(flag):
            parser.error(f"--{flag} goes with --protocol {protocol}")
    words, args.opts = split_at_key(args.words)
    if late := [word for word in words if word.startswith("--")]:
        parser.error(f"flags come before all words; found after them: {' '.join(late)}")
    methods = args.methods
    if args.compare and not methods:
        compared = (one.name for one in METHODS if one.compared and args.protocol in one.protocols)
        methods = args.compared or ",".join(compared)
    if not methods:
        if not words:
            parser.error(f"name a method: {', '.join(one.name for one in METHODS)}")
        methods, *words = words
    places = ["dataset", "tested", "backbone"] if args.protocol == "cross" else ["dataset", "backbone"]
    if len(words) > len(places):
        parser.error(f"expected at most {' '.join(places)} and KEY VALUE pairs, found: {' '.join(words)}")
    args.dataset = args.tested = args.backbone = None
    for place, word in zip(places, words, strict=False):
        setattr(args, place, word)
    args.trainers = list(dict.fromkeys(map(trainer_name, methods.replace(",", " ").split())))
    args.domains = {"multi": args.targets, "single": args.sources}.get(args.protocol, "")
    args.output, args.engine = Path(args.output), args.engine or "local"
    args.report = args.report or args.compare
    args.visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    args.python_path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return args


def launch(args: argparse.Namespace) -> int:
    """Run or print the jobs of a command line; returns the number of failures."""
    # Processes of runs import this file, but not these modules.
    from common.files import make_output_folder
    from common.progress import progress
    from scripts.launching.local import Report, run_by_engine
    from scripts.launching.status import save_plan

    plan = plan_all(args)
    jobs, todo = plan.jobs, [job for job in plan.jobs if not job.is_finished()]
    refused = [trainer for trainer, error in plan.errors.items() if not isinstance(error, BackboneError)]
    if args.print:
        print_file_names(sys.stdout)
        for job in sorted(todo, key=lambda job: job.needs is not None):  # trainings come first
            print(shlex.join([sys.executable, str(REPOSITORY / "train.py"), *job.arguments]))
        return len(refused)
    for folder in (args.output, plan.folder):
        make_output_folder(folder)
    save_names(plan.sets, args.output)
    save_plan(jobs)
    name = next(iter(plan.configs)) if len(plan.configs) == 1 else f"{len(plan.configs)} methods"
    with progress(total=len(jobs), initial=len(jobs) - len(todo), description=name, unit="run") as bar:
        report = Report(bar)
        for job in jobs:
            if job not in todo:
                report.say(f"{job.title}: finished before, in {job.folder}")
        if todo:
            run_by_engine(todo, plan, args, report)
    failed = [f"{job.title}: {reason}" for job, reason in report.failed.items()]
    lines = [f"\n{len(failed)} of {len(jobs)} runs failed:", *(f"  {line}" for line in failed)] if failed else []
    lines += [f"\nNot run to the end, see the errors above: {', '.join(refused)}"] if refused else []
    return len(failed) + len(refused) + show(args, plan, lines)


def show(args: argparse.Namespace, plan: Plan, lines: list[str]) -> int:
    """Print tables and lines on failures, then write the report, if it is asked for; returns its exit code."""
    from scripts.reporting.load import load_results
    from scripts.reporting.tables import make_tables
    from scripts.reporting.text import format_tables

    finished = [job.folder for job in plan.jobs if job.tested and job.is_finished()]
    baseline = trainer_name(args.baseline or "") if args.report else ""
    if finished:
        results = load_results(finished)
        if args.report and args.baseline is None:
            baseline = next(iter(results.loc[results["trainer"] == "ZeroshotCLIP", "method"]), "")
        print("\n" + format_tables(make_tables(results, baseline)))
    for line in lines:
        print(line)
    if not args.report or not finished:
        return 0
    command = [sys.executable, str(REPOSITORY / "scripts" / "report.py"), str(plan.folder), "--baseline", baseline]
    for trainer, error in plan.errors.items():
        left_out = isinstance(error, BackboneError)
        command += [f"--not-run={'Left out:' if left_out else f'{trainer} is not run to the end.'} {error}"]
    sys.stdout.flush()
    return min(1, subprocess.run([*command, "--out", str(plan.folder / "report.html")], check=False).returncode)


def main(argv: list[str] | None = None) -> int:
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
