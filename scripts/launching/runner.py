"""What a launcher does: plan the runs of each method, do those that are not finished, show the results."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.dassl_path import REPOSITORY
from common.errors import UserError
from common.interruption import Interrupted
from common.progress import progress
from common.run.folder import has_begun, is_finished
from common.run.identity import IDENTITY_FILE, write_identity
from scripts.launching.configs import config_digest, config_of, method_config, named_backbone
from scripts.launching.plans import Run, cross_dataset, multi_source, single_source
from scripts.launching.runs import (
    ASKED,
    anchored,
    check_same_run,
    resolved,
    run_command,
    run_to_the_end,
    settings_that_matter,
)
from scripts.launching.sets import find_set
from scripts.reporting.finished import find_results
from scripts.reporting.tables import method_name
from scripts.reporting.text import results_tables
from trainers.methods import METHODS, BackboneError, Backbones, MethodError, find_method, trainer_name

EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")
DEFAULT_BACKBONE = "RN50"
TRAINED_ON, TESTED_ON = "domainnet", "pacs,vlcs,office_home,terra_incognita"  # cross, as published


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        trainers: names, in the order of their runs; what is none is refused when its runs are planned.
        protocol: one of trainers.methods.PROTOCOLS.
        dataset: name or folder; None: the default.
        tested: of cross, the sets tested on, with commas between; None: the default.
        backbone: name or file; None: what the method's config names, or the default.
        opts: KEY VALUE pairs.
        data: the data root.
        output: folder of all output.
        seeds: numbers with spaces between; None: the default.
        domains: targets of multi, sources of single, by names or codes with commas or spaces between; "": all.
        cfg: config of the methods, by name (or, of one method, as a file); "": that of the data set, else the default.
        baseline: the method that differences are to; "": none; None: zero-shot CLIP where it is among the results.
        report: whether the report is written in the end.
        only_print: whether the commands of open runs are printed, and nothing is done.
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
    only_print: bool = False


class Launch:
    """The runs of one method.

    Args:
        request: what was asked for.
        trainer: the method's trainer.

    Raises:
        MethodError: the method is unknown, or cannot be run so.
        UserError: nothing can be run so.
    """

    def __init__(self, request: Request, trainer: str) -> None:
        import train
        from datasets.known import EMBEDDED_DATASET
        from trainers.config_check import check_settings, settings_without_effect
        from trainers.modules.clip_backbone import backbone_label, check_backbone, has_vit

        method, cross = find_method(trainer), request.protocol == "cross"
        method.check_protocol(request.protocol)
        self.opts, self.trainer = request.opts, trainer
        name, offer = request.dataset or (TRAINED_ON if cross else EMBEDDED_DATASET), not request.only_print
        dataset = find_set(name, request.data, request.domains, offer)
        embedded = dataset.config.stem == EMBEDDED_DATASET and not cross
        if not cross and len(dataset.domains) < 2:
            raise UserError(
                f"{dataset.root} has one domain, {dataset.domains[0]}; generalization takes another one to test on."
            )
        seeds = seeds_of(request.seeds, "1" if request.dataset is None and embedded else "1 2 3")
        cfg = request.cfg
        if cfg and len(request.trainers) > 1 and not config_of(method, cfg).is_file():
            cfg = ""  # of several methods, those that have it
        self.method_file = method_config(method, dataset.config.stem, cfg)
        default = EMBEDDED_BACKBONE if embedded else named_backbone(self.method_file) or DEFAULT_BACKBONE
        self.backbone = request.backbone or default
        self.folder = request.output / dataset.name
        base = self.folder / trainer / backbone_label(self.backbone) / self.method_file.stem
        # A config that was asked for by name may have another stage I, so its labels are its own.
        self.labels = request.output / (f"prompt_labels_{self.method_file.stem}" if cfg else "prompt_labels")
        self.features = request.output / "feature_cache"
        self.runs: list[Run]
        if cross:
            tested = [find_set(other, request.data, offer=offer) for other in (request.tested or TESTED_ON).split(",")]
            self.runs = cross_dataset(dataset, tested, base, seeds)
        else:
            plan = multi_source if request.protocol == "multi" else single_source
            self.runs = plan(dataset, base, seeds)
        self.name = f"{trainer} on {dataset.name}"
        # What every run would say of its config, said once and before the first begins.
        check_backbone(self.backbone)
        if method.backbones is not Backbones.ANY:
            method.check_backbone(self.backbone, has_vit(self.backbone))
        cfg = train.setup_cfg(train.parse_args(self.command(self.runs[0])[2:]))
        try:
            check_settings(cfg)
        except UserError as error:  # of a comparison others may do with these settings
            raise MethodError(str(error)) from error
        for line in settings_without_effect(cfg):
            print(line, file=sys.stderr)

    def command(self, run: Run) -> list[str]:
        """The train.py command line of one of the runs."""
        return run_command(self.trainer, run, self.method_file, self.backbone, self.opts, self.labels, self.features)

    def command_from_anywhere(self, run: Run) -> list[str]:
        """The same command line with whole paths, so that it does the same wherever it is started."""
        dataset = replace(run.dataset, root=run.dataset.root and os.path.abspath(run.dataset.root))
        model_dir = None if run.model_dir is None else run.model_dir.absolute()
        return run_command(
            self.trainer,
            replace(run, dataset=dataset, folder=run.folder.absolute(), model_dir=model_dir),
            self.method_file.absolute(),
            resolved(self.backbone),
            anchored(self.opts),
            self.labels.absolute(),
            self.features.absolute(),
        )

    def open_runs(self) -> Iterator[Run]:
        """The runs that are not finished.

        Raises:
            MethodError: a folder holds another run.
        """
        for run in self.runs:
            check_same_run(run.folder, self._asked(run))
            if not is_finished(run.folder, run.test):
                yield run

    def go(self, first: int = 1, total: int | None = None) -> list[str]:
        """Do all runs that are not finished; returns the titles of those that failed.

        Args:
            first, total: of a comparison, the number of this method's first run and that of all runs.

        Raises:
            MethodError: a folder holds another run.
            Interrupted: a run was.
        """
        failed = []
        with progress(total=len(self.runs), description=self.name, unit="run") as bar:
            for i, run in enumerate(self.runs, start=first):
                title = f"[{i}/{total or len(self.runs)}] {self.name}, {run.title}"
                asked = self._asked(run)
                check_same_run(run.folder, asked)
                write_identity(run.folder / ASKED, asked)
                if is_finished(run.folder, run.test):
                    bar.write(f"{title}: finished before, in {run.folder}", file=sys.stdout)
                elif not self._do(run, title, bar):
                    failed.append(title)
                bar.update()
        return failed

    def _asked(self, run: Run) -> dict[str, Any]:
        """What a run's folder is for, so that it is not taken for another run's."""
        return {
            "root": str(Path(run.dataset.root).resolve()),
            "backbone": resolved(self.backbone),
            "settings": settings_that_matter(self.opts),
            "sources": run.sources,
            "targets": run.targets,
            self.method_file.name: config_digest(self.method_file),
        }

    def _do(self, run: Run, title: str, bar: Any) -> bool:
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
        if code and not has_begun(run.folder):
            # It never began to train, so there is nothing that other settings could be mixed up with.
            (run.folder / ASKED / IDENTITY_FILE).unlink(missing_ok=True)
        return code == 0


def seeds_of(text: str | None, default: str) -> list[str]:
    """The seeds that a text names.

    Raises:
        UserError: it names none, or something else.
    """
    text = default if text is None else text
    seeds = text.split()
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise UserError(f'SEEDS is {text!r}; accepted: numbers from 0 with spaces between, SEEDS="1 2 3".')
    return seeds


def check_request(request: Request) -> None:
    """Raise UserError if none of the methods has the config, or the baseline is none of them."""
    cfg, methods = request.cfg, [method for method in METHODS if method.trainer in request.trainers]
    if cfg and len(request.trainers) > 1 and not any(config_of(method, cfg).is_file() for method in methods):
        raise UserError(
            f"CFG is {cfg!r}, but none of {', '.join(request.trainers)} has a config of that name in configs/trainers. "
            "(One method alone takes a file, too.)"
        )
    baseline = (request.baseline or "").partition(" (")[0]
    if baseline and trainer_name(baseline).lower() not in map(str.lower, request.trainers):
        raise UserError(f"BASELINE is {baseline!r}, which is none of the methods: {', '.join(request.trainers)}.")


class Comparison:
    """The runs of all methods that were asked for.

    All of them are planned before the first begins, so that a mistake shows at once. One method that cannot be run as
    asked is an error; of several, the others go on, and its trainer is among those `refused`. One that only cannot take
    the backbone that is compared on is left out, with a line that says so.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.launches: list[Launch] = []
        self.refused: list[str] = []
        self.told: set[str] = set()  # errors, which several methods may share
        check_request(request)
        for trainer in request.trainers:
            try:
                self.launches.append(Launch(request, trainer))
            except BackboneError as error:
                if len(request.trainers) == 1:
                    raise
                print(f"Left out: {error}", file=sys.stderr)
            except MethodError as error:
                self._refuse(trainer, error)
        if not self.launches and not self.refused:
            raise UserError("None of these methods takes the backbone.")
        backbones = {one.backbone for one in self.launches}
        if len(backbones) > 1:
            raise UserError(
                f"These methods' configs name different backbones ({', '.join(sorted(backbones))}), which do not "
                "compare: name one for all, after the data set."
            )

    def _refuse(self, trainer: str, error: MethodError) -> None:
        if len(self.request.trainers) == 1:
            raise error
        if str(error) not in self.told:
            print(f"Error: {error}", file=sys.stderr)
        self.told.add(str(error))
        self.refused.append(trainer)

    def print_commands(self) -> None:
        """Print the train.py command of each run that is not finished, a line each, in an order that they can have."""
        for one in self.launches:
            try:
                for run in one.open_runs():
                    print(shlex.join(one.command_from_anywhere(run)))
            except MethodError as error:
                self._refuse(one.trainer, error)

    def go(self) -> list[str]:
        """Do all runs that are not finished, then show the results; returns what failed."""
        failed: list[str] = []
        total, first = sum(len(one.runs) for one in self.launches), 1
        for one in self.launches:
            try:
                failed += one.go(first, total)
            except MethodError as error:
                self._refuse(one.trainer, error)
            first += len(one.runs)
        # Those of these runs alone: another protocol may have its own beside them.
        folders = [run.folder for one in self.launches for run in one.runs if run.test]
        results = find_results([folder for folder in folders if is_finished(folder)])
        baseline = baseline_of(self.request.baseline, results) if self.request.report else ""
        if results:
            print("\n" + results_tables(results, baseline=baseline))
        if failed:
            print(f"\n{len(failed)} of {total} runs failed:", *failed, sep="\n  ")
        if self.refused:
            print(f"\nNot run to the end, see the errors above: {', '.join(self.refused)}")
        if self.request.report and results and not self._report(baseline):
            failed.append("report")
        return failed

    def _report(self, baseline: str) -> bool:
        """Write the report of the data set's output folder; returns whether that succeeded."""
        folder = self.launches[0].folder
        command = [sys.executable, str(REPOSITORY / "scripts" / "report.py"), str(folder), "--baseline", baseline]
        sys.stdout.flush()
        return subprocess.run([*command, "--out", str(folder / "report.html")], check=False).returncode == 0


def baseline_of(chosen: str | None, results: list[dict[str, Any]]) -> str:
    """The method that differences are to: the one chosen, or zero-shot CLIP where it is among the results."""
    if chosen is not None:
        return trainer_name(chosen)
    return next((method_name(result) for result in results if result["trainer"] == "ZeroshotCLIP"), "")


def launch(request: Request) -> int:
    """Do, or print, what was asked for; returns how many runs and methods failed.

    Raises:
        UserError: it cannot be done so.
        Interrupted: a run was.
    """
    comparison = Comparison(request)
    if request.only_print:
        comparison.print_commands()
        return len(comparison.refused)
    failed = comparison.go()
    return len(failed) + len(comparison.refused)
