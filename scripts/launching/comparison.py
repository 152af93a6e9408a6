"""A launcher: plan the jobs of all methods, run the unfinished ones, print the tables."""

import contextlib
import gc
import io
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace

from common.errors import UserError, user_errors
from common.files import make_output_folder
from common.progress import progress
from common.startup import REPOSITORY, print_file_names
from common.threads import plan_threads, share_cores, usable_cores
from scripts.launching import ray, slurm
from scripts.launching.jobs import Job, Plan, check_args, job_command, job_config, plan_jobs
from scripts.launching.local import LocalEngine, local_gpus
from scripts.launching.schedule import Engine, Report, run_jobs
from scripts.launching.sets import save_names
from scripts.launching.status import save_plan
from trainers.methods import BackboneError, MethodError, trainer_name


class Comparison:
    """The jobs of all methods of a command line, planned before the first one starts.

    A method that cannot run as requested is an error. In a comparison of several, it is `refused` and the others run.
    """

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.plans: list[Plan] = []
        self.refused: list[str] = []
        self.not_run: list[str] = []
        check_args(args)
        if not args.print and args.engine == "ray":
            ray.check_args(args)
        if not args.print and args.engine == "slurm":
            slurm.check_args()
        for trainer in args.trainers:
            with self._refusing(trainer):
                self.plans.append(plan := plan_jobs(args, trainer))
                _check_plan(plan)
        backbones = {plan.cfg.MODEL.BACKBONE.NAME for plan in self.plans}
        if not backbones and not self.refused:
            raise UserError("None of these methods accepts the backbone.")
        if len(backbones) > 1:
            raise UserError(
                f"The configs of these methods name different backbones ({', '.join(sorted(backbones))}). Name one for "
                "all, after the data set."
            )
        self._print_notes()
        self._try_models()
        jobs = [job for plan in self.plans for job in plan.jobs]
        self.jobs = [replace(job, title=f"[{i}/{len(jobs)}] {job.title}") for i, job in enumerate(jobs, start=1)]

    @contextlib.contextmanager
    def _refusing(self, trainer: str) -> Iterator[None]:
        """Within the block, a MethodError drops this method, unless it is the only one."""
        try:
            yield
        except MethodError as error:
            if len(self.args.trainers) == 1:
                raise
            self.plans = [plan for plan in self.plans if plan.trainer != trainer]
            is_left_out = isinstance(error, BackboneError)
            if not any(line.endswith(str(error)) for line in self.not_run):  # methods may share an error
                print(f"{'Left out' if is_left_out else 'Error'}: {error}", file=sys.stderr)
            self.not_run.append(f"{'Left out:' if is_left_out else f'{trainer} is not run to the end.'} {error}")
            self.refused += [] if is_left_out else [trainer]

    def _print_notes(self) -> None:
        """Print notes on settings, each once for all methods."""
        from trainers.authors_configs import merge_method_file
        from trainers.config import default_cfg, settings_notes

        cfg = os.path.splitext(os.path.basename(self.args.cfg))[0]
        others = [f"{plan.trainer} ({plan.method_file.stem})" for plan in self.plans if plan.method_file.stem != cfg]
        if cfg and others:
            print(f"Note: these methods have no {cfg} and use another config: {', '.join(others)}.", file=sys.stderr)
        authors = {merge_method_file(default_cfg(), plan.method_file, plan.trainer): None for plan in self.plans}
        notes = dict.fromkeys(line for plan in self.plans for line in settings_notes(plan.cfg))
        for line in filter(None, (*authors, *notes)):
            print(line, file=sys.stderr)

    def _try_models(self) -> None:
        """Build the model of each method once, without data, if the weights are on this machine."""
        from dassl.engine import TRAINER_REGISTRY

        from trainers.modules.clip.backbone import load_backbone

        plans = [plan for plan in self.plans if not all(job.is_finished() for job in plan.jobs)]
        named = plans[0].cfg.MODEL.BACKBONE if plans else None
        if named is None or not os.path.exists(named.NAME):
            return
        backbone = load_backbone(named.NAME, root=named.PATH)
        for plan in plans:
            cfg, trainer = plan.cfg.clone(), TRAINER_REGISTRY.get(plan.trainer)
            cfg.defrost()
            cfg.VERBOSE = cfg.USE_CUDA = False
            if cfg.TRAINER[trainer.SETTINGS].get("CSC"):  # such weights are for the class names of the data set
                cfg.MODEL.INIT_WEIGHTS = ""
            cfg.freeze()
            with self._refusing(plan.trainer), _method_errors(), contextlib.redirect_stdout(io.StringIO()):
                trainer(cfg, backbone, ["class", "other"])
        del backbone
        gc.collect()  # trainers have reference cycles

    def threads(self) -> int:
        """Number of threads of each run on a CPU."""
        from trainers.modules.clip.backbone import load_backbone

        named = self.plans[0].cfg.MODEL.BACKBONE
        return plan_threads(load_backbone(named.NAME, root=named.PATH).n_tower_weights, 0).alone

    def print_commands(self) -> None:
        """Print the command of each unfinished job; tests across data sets come after their trainings."""
        print_file_names(sys.stdout)
        jobs = [job for job in self.jobs if not job.is_finished()]
        for job in sorted(jobs, key=lambda job: job.needs is not None):
            print(shlex.join(job_command(job)))

    def run(self) -> list[str]:
        """Run all unfinished jobs, then print the tables; returns the failures."""
        name = self.plans[0].trainer if len(self.plans) == 1 else f"{len(self.plans)} methods"
        for folder in (self.args.output, *(plan.folder for plan in self.plans)):
            make_output_folder(folder)
        save_names([one for plan in self.plans for one in plan.sets], self.args.output)
        save_plan(self.args.output, self.jobs)
        todo = [job for job in self.jobs if not job.is_finished()]
        done = len(self.jobs) - len(todo)
        with progress(total=len(self.jobs), initial=done, description=name, unit="run") as bar:
            report = Report(bar)
            for job in self.jobs:
                if job not in todo:
                    report.say(f"{job.title}: finished before, in {job.folder}")
            if todo:
                self._run_jobs(todo, report)
        return self._show(report)

    def _run_jobs(self, jobs: list[Job], report: Report) -> None:
        workers = max(plan.cfg.DATALOADER.NUM_WORKERS for plan in self.plans)
        uses_cuda = any(plan.cfg.USE_CUDA for plan in self.plans)
        engine: Engine
        if self.args.engine == "slurm":
            slurm.run_jobs(jobs, self.args, workers, report)
            return
        if self.args.engine == "ray":
            roots = {os.path.abspath(one.root) for plan in self.plans for one in plan.sets if os.path.isdir(one.root)}
            engine = ray.RayEngine(self.args, sorted(roots), self.threads, workers, uses_cuda)
            workers = engine.workers
        else:
            engine, workers = self._local_engine(workers, uses_cuda)
        jobs = [replace(job, arguments=(*job.arguments, "DATALOADER.NUM_WORKERS", str(workers))) for job in jobs]
        try:
            run_jobs(jobs, engine, report)
        finally:
            engine.close()

    def _local_engine(self, workers: int, uses_cuda: bool) -> tuple[LocalEngine, int]:
        """The engine, and the number of loader workers of each run: all threads together fit on the cores."""
        n_jobs = int(self.args.jobs or 1)
        if n_jobs == 1:
            return LocalEngine(1), workers
        gpus = local_gpus(self.args.visible_gpus) if uses_cuda else []
        threads = 1 if gpus else self.threads()
        n_runs, most_workers = share_cores(n_jobs, threads)
        if n_runs < n_jobs:
            text = f"Note: JOBS is {n_jobs}, but a run has {threads} threads, and {usable_cores()} cores have room for"
            print(f"{text} {n_runs}.", file=sys.stderr)
        return LocalEngine(n_runs, gpus), workers if n_runs == 1 else min(workers, most_workers)

    def _show(self, report: Report) -> list[str]:
        """Print tables and failures, and write the report; returns the failures."""
        finished = [job.folder for job in self.jobs if job.tested and job.is_finished()]
        baseline = trainer_name(self.args.baseline or "") if self.args.report else ""
        if finished:
            # Imported here, since pandas takes a second and the jobs come first.
            from scripts.reporting.load import load_results
            from scripts.reporting.tables import make_tables
            from scripts.reporting.text import format_tables

            results = load_results(finished)
            if self.args.report and self.args.baseline is None:
                baseline = next(iter(results.loc[results["trainer"] == "ZeroshotCLIP", "method"]), "")
            print("\n" + format_tables(make_tables(results, baseline)))
        failed = [f"{job.title}: {reason}" for job, reason in report.failed.items()]
        if failed:
            print(f"\n{len(failed)} of {len(self.jobs)} runs failed:", *failed, sep="\n  ")
        if self.refused:
            print(f"\nNot run to the end, see the errors above: {', '.join(self.refused)}")
        if self.args.report and finished:
            folder = self.plans[0].folder
            command = [sys.executable, str(REPOSITORY / "scripts" / "report.py"), str(folder), "--baseline", baseline]
            command += [*(f"--not-run={line}" for line in self.not_run), "--out", str(folder / "report.html")]
            sys.stdout.flush()
            failed += ["report"] if subprocess.run(command, check=False).returncode else []
        return failed


def _check_plan(plan: Plan) -> None:
    """Raise MethodError if the config is wrong, or a finished run in one of the folders is another run."""
    from dassl.engine import TRAINER_REGISTRY

    import trainers.all  # noqa: F401 (registers trainers and data sets)
    from trainers.base.run_record import check_finished

    with _method_errors():
        TRAINER_REGISTRY.get(plan.trainer).check_config(plan.cfg)
        for job in plan.jobs:
            if job.is_finished():
                check_finished(job.folder, job_config(job), is_quick=True)


@contextlib.contextmanager
def _method_errors() -> Iterator[None]:
    try:
        yield
    except user_errors() as error:
        raise MethodError(str(error)) from error


def launch(args: Namespace) -> int:
    """Run or print the jobs of a command line; returns the number of failures."""
    comparison = Comparison(args)
    if args.print:
        comparison.print_commands()
        return len(comparison.refused)
    return len(comparison.run()) + len(comparison.refused)
