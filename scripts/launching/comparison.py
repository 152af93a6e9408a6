"""A launcher: plan the jobs of all methods, run the unfinished ones, print the tables."""

import contextlib
import gc
import io
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from typing import Any

from common.dassl_path import REPOSITORY
from common.errors import UserError
from common.failures import user_errors
from common.files import make_output_folder
from common.progress import progress
from common.run.folder import is_finished
from common.this_python import print_names
from common.threads import plan_threads, share_cores, usable_cores
from scripts.launching import ray, slurm
from scripts.launching.jobs import ENGINES, Job, Plan, Request, check_finished_job, check_request, plan_jobs
from scripts.launching.local import LocalEngine, local_gpus
from scripts.launching.schedule import Report, run_jobs
from scripts.launching.sets import save_names
from scripts.launching.status import save_plan
from scripts.reporting.finished import find_results
from scripts.reporting.tables import method_name
from scripts.reporting.text import results_tables
from trainers.methods import BackboneError, MethodError, trainer_name


class Comparison:
    """The jobs of all methods of a request. All are planned before the first one starts.

    A method that cannot run as requested is an error. In a comparison of several, the others run.

    Attributes:
        plans: of the methods that can run.
        refused: names of the methods that cannot.
        not_run: messages on methods that do not run, for the report.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.plans: list[Plan] = []
        self.refused: list[str] = []
        self.not_run: list[str] = []
        check_request(request)
        self._check_engine()
        for trainer in request.trainers:
            with self._refusing(trainer):
                plan = plan_jobs(request, trainer)
                self._check_config(plan)
                self.plans.append(plan)
        if not self.plans and not self.refused:
            raise UserError("None of these methods accepts the backbone.")
        backbones = {plan.backbone for plan in self.plans}
        if len(backbones) > 1:
            raise UserError(
                f"The configs of these methods name different backbones ({', '.join(sorted(backbones))}). Name one for "
                "all, after the data set."
            )
        self._print_notes()
        for plan in list(self.plans):
            with self._refusing(plan.trainer):
                for job in plan.jobs:
                    if job.is_finished():
                        check_finished_job(job)
        self._try_models()

    def _check_engine(self) -> None:
        request = self.request
        if request.engine not in ENGINES:
            raise UserError(f"ENGINE is {request.engine!r}; accepted: {', '.join(ENGINES)}.")
        if request.task_gpus and request.engine != "ray":
            raise UserError(
                f"TASK_GPUS is {request.task_gpus!r}, but ENGINE is {request.engine}. It is for ENGINE=ray."
            )
        if not request.only_print and request.engine == "ray":
            ray.check_request(request)
        if not request.only_print and request.engine == "slurm":
            slurm.check_request(request)

    @contextlib.contextmanager
    def _refusing(self, trainer: str) -> Any:
        """Within the block, a MethodError ends the jobs of this method alone, if there are other methods."""
        try:
            yield
        except MethodError as error:
            if len(self.request.trainers) == 1:
                raise
            self.plans = [plan for plan in self.plans if plan.trainer != trainer]
            is_left_out = isinstance(error, BackboneError)
            text = f"Left out: {error}" if is_left_out else f"Error: {error}"
            message = text if is_left_out else f"{trainer} is not run to the end. {error}"
            if not any(other.endswith(str(error)) for other in self.not_run):  # methods may share an error
                print(text, file=sys.stderr)
            self.not_run.append(message)
            self.refused += [] if is_left_out else [trainer]

    def _check_config(self, plan: Plan) -> None:
        from dassl.engine import TRAINER_REGISTRY

        import trainers.all  # noqa: F401 (registers trainers)
        from trainers.cross_checks import check_words
        from trainers.modules.backbone_sources import source_of
        from trainers.modules.tokenizers import CLIP_TOKENIZER

        trainer = TRAINER_REGISTRY.get(plan.trainer)
        try:
            trainer.check_config(plan.cfg)
            if not source_of(plan.backbone).prefix:  # others have their own tokenizer
                check_words(plan.cfg, trainer, CLIP_TOKENIZER)
        except UserError as error:
            raise MethodError(str(error)) from error

    def _print_notes(self) -> None:
        """Print notes on settings, each once for all methods."""
        from trainers.authors_configs import merge_method_file
        from trainers.config import default_cfg
        from trainers.cross_checks import settings_notes

        cfg = os.path.splitext(os.path.basename(self.request.cfg))[0]
        others = [f"{plan.trainer} ({plan.method_file.stem})" for plan in self.plans if plan.method_file.stem != cfg]
        if cfg and others:
            print(
                f"Note: these methods have no config {cfg} and use another one: {', '.join(others)}.", file=sys.stderr
            )
        authors = {merge_method_file(default_cfg(), plan.method_file, plan.trainer): None for plan in self.plans}
        for line in filter(None, (*authors, *settings_notes(*(plan.cfg for plan in self.plans)))):
            print(line, file=sys.stderr)

    def _try_models(self) -> None:
        """Build the model of each method once, without data, if the weights are on this machine."""
        from dassl.engine import TRAINER_REGISTRY

        from trainers.modules.backbone_sources import source_of
        from trainers.modules.clip_backbone import load_backbone

        plans = [plan for plan in self.plans if not all(job.is_finished() for job in plan.jobs)]
        named = plans[0].cfg.MODEL.BACKBONE if plans else None
        if named is None or not source_of(named.NAME).is_here(named.NAME, named.PATH):
            return
        backbone = load_backbone(named.NAME, root=named.PATH)
        for plan in plans:
            cfg, trainer = plan.cfg.clone(), TRAINER_REGISTRY.get(plan.trainer)
            cfg.defrost()
            cfg.VERBOSE = cfg.USE_CUDA = False
            if cfg.TRAINER[trainer.SETTINGS].get("CSC"):  # such weights are for the class names of the data set
                cfg.MODEL.INIT_WEIGHTS = ""
            cfg.freeze()
            with self._refusing(plan.trainer):
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        trainer(cfg, backbone, ["class", "other"])
                except user_errors() as error:
                    raise MethodError(str(error)) from error
        del backbone
        gc.collect()  # trainers have reference cycles

    @property
    def jobs(self) -> list[Job]:
        """All jobs, with numbered titles."""
        jobs = [job for plan in self.plans for job in plan.jobs]
        return [replace(job, title=f"[{i}/{len(jobs)}] {job.title}") for i, job in enumerate(jobs, start=1)]

    def threads(self) -> int:
        """Number of threads of each run on a CPU."""
        from trainers.modules.clip_backbone import load_backbone

        named = self.plans[0].cfg.MODEL.BACKBONE
        return plan_threads(load_backbone(named.NAME, root=named.PATH).n_tower_weights, 0).alone

    def print_commands(self) -> None:
        """Print the command of each unfinished job; tests across data sets come after their trainings."""
        print_names(sys.stdout)
        jobs = [job for job in self.jobs if not job.is_finished()]
        tests = [job for job in jobs if job.needs]
        trainings = [job for job in jobs if not job.needs]
        for job in trainings:
            print(shlex.join(job.command))
        if tests and trainings:
            print("# the commands below need the models of those above")
        for job in tests:
            print(shlex.join(job.command))

    def run(self) -> list[str]:
        """Run all unfinished jobs, then print the tables; returns the failures."""
        jobs, request = self.jobs, self.request
        engine, workers = None, max((plan.cfg.DATALOADER.NUM_WORKERS for plan in self.plans), default=0)
        description = (
            self.plans[0].jobs[0].title.partition(",")[0] if len(self.plans) == 1 else f"{len(self.plans)} methods"
        )
        for folder in (request.output, *(plan.folder for plan in self.plans)):
            make_output_folder(folder)
        save_names([one for plan in self.plans for one in plan.sets], request.output)
        save_plan(request.output, jobs)
        with progress(total=len(jobs), description=description, unit="run") as bar:
            report = Report(bar)
            for job in jobs:
                if job.is_finished():
                    report.skip(job)
            todo = [job for job in jobs if not job.is_finished()]
            if not todo:
                pass
            elif request.engine == "slurm":
                slurm.run_jobs(todo, request, workers, report)
            else:
                make = self._ray_engine if request.engine == "ray" else self._local_engine
                engine, workers = make(workers)
                try:
                    run_jobs([_with_workers(job, workers) for job in todo], engine, report)
                finally:
                    engine.close()
        return self._show(report)

    def _local_engine(self, workers: int) -> tuple[LocalEngine, int]:
        """The engine, and the number of loader workers of each run: all threads together fit on the cores."""
        wanted = self.request.n_jobs or 1
        uses_cuda = any(plan.cfg.USE_CUDA for plan in self.plans)
        if wanted == 1:
            return LocalEngine(1), workers
        gpus = local_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", "")) if uses_cuda else []
        threads = 1 if gpus else self.threads()
        share = share_cores(wanted, threads)
        if share.runs < wanted:
            print(
                f"Note: JOBS is {wanted}, but a run computes with {threads} threads on {usable_cores()} cores: "
                f"{share.runs} at once.",
                file=sys.stderr,
            )
        return LocalEngine(share.runs, gpus), workers if share.runs == 1 else min(workers, share.workers)

    def _ray_engine(self, workers: int) -> tuple[ray.RayEngine, int]:
        uses_cuda = any(plan.cfg.USE_CUDA for plan in self.plans)
        roots = {one.root for plan in self.plans for one in plan.sets if os.path.isdir(one.root)}
        engine = ray.RayEngine(self.request, self.threads, sorted(map(os.path.abspath, roots)), workers, uses_cuda)
        return engine, engine.workers

    def _show(self, report: Report) -> list[str]:
        """Print tables and failures, and write the report; returns the failures."""
        folders = [job.folder for job in self.jobs if job.tested]
        results = find_results([folder for folder in folders if is_finished(folder)])
        baseline = _baseline(self.request.baseline, results) if self.request.report else ""
        if results:
            print("\n" + results_tables(results, baseline=baseline))
        failed = [f"{job.title}: {reason}" for job, reason in report.failed.items()]
        if failed:
            print(f"\n{len(failed)} of {len(self.jobs)} runs failed:", *failed, sep="\n  ")
        if self.refused:
            print(f"\nNot run to the end, see the errors above: {', '.join(self.refused)}")
        if self.request.report and results and not self._write_report(baseline):
            failed.append("report")
        return failed

    def _write_report(self, baseline: str) -> bool:
        folder = self.plans[0].folder
        command = [sys.executable, str(REPOSITORY / "scripts" / "report.py"), str(folder), "--baseline", baseline]
        command += [f"--not-run={line}" for line in self.not_run]
        sys.stdout.flush()
        return subprocess.run([*command, "--out", str(folder / "report.html")], check=False).returncode == 0


def _with_workers(job: Job, workers: int) -> Job:
    """The job with at most this number of loader workers, which is no setting that changes numbers."""
    return replace(job, arguments=(*job.arguments, "DATALOADER.NUM_WORKERS", str(workers)))


def _baseline(chosen: str | None, results: list[dict[str, Any]]) -> str:
    """The method to compare with: the chosen one, else zero-shot CLIP if it has results."""
    if chosen is not None:
        return trainer_name(chosen)
    return next((method_name(result) for result in results if result["trainer"] == "ZeroshotCLIP"), "")


def launch(request: Request) -> int:
    """Run or print the jobs of a request; returns the number of failures.

    Raises:
        UserError: nothing can run.
        Interrupted: by SIGINT or SIGTERM.
    """
    comparison = Comparison(request)
    failed = [] if request.only_print else comparison.run()
    if request.only_print:
        comparison.print_commands()
    return len(failed) + len(comparison.refused)
