"""What a launcher does: plan the runs of each method, do those that are not finished, show the results."""

import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.run.folder import is_finished

from common.errors import UserError, show_warnings
from common.files import make_output_folder
from common.progress import progress
from common.startup import REPOSITORY, print_file_names
from scripts.launching.conduct import Conduct
from scripts.launching.demand import Demand
from scripts.launching.engines import make_engine
from scripts.launching.launch import Launch
from scripts.launching.plan import Task, carry_out
from scripts.launching.planned import note_planned
from scripts.launching.plans import Run
from scripts.launching.printed import printed_commands
from scripts.launching.request import Request, check_request
from scripts.launching.sets import note_names
from scripts.launching.shared import Plan, Shared, plan_shared
from scripts.reporting.finished import find_results
from scripts.reporting.tables import method_name
from scripts.reporting.text import results_tables
from trainers.methods import BackboneError, MethodError, trainer_name


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
        self.not_run: list[str] = []  # why methods are left out, or refused: lines
        self.told: set[str] = set()  # errors, which several methods may share
        check_request(request)
        for trainer in request.trainers:
            try:
                self.launches.append(Launch(request, trainer))
            except BackboneError as error:
                if len(request.trainers) == 1:
                    raise
                print(f"Left out: {error}", file=sys.stderr)
                self.not_run.append(f"Left out: {error}")
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
        self._tell_notes()
        self._try_models()

    def _try_models(self) -> None:
        """Refuse methods with open runs whose model cannot be built, where the backbone is here without a download."""
        from trainers.modules.clip.backbone import load_backbone

        to_do = [one for one in self.launches if not all(is_finished(run.folder, run.test) for run in one.runs)]
        if not to_do or not Path(to_do[0].backbone).exists():
            return
        backbone = load_backbone(to_do[0].backbone, root=to_do[0].clips)
        for one in to_do:
            try:
                one.try_model(backbone)
            except MethodError as error:
                self.launches.remove(one)
                self._refuse(one.trainer, error)
        del backbone
        gc.collect()  # trainers go in circles, and hold the CLIP in memory as long as the launcher lives

    def _tell_notes(self) -> None:
        """Say what there is to say of settings, each once with the methods that it holds for."""
        from trainers.authors_configs import merge_method_file
        from trainers.config import default_cfg, settings_notes

        cfg = Path(self.request.cfg).stem
        files = {one.trainer: one.method_file.stem for one in self.launches}
        if cfg and (others := [f"{name} (runs by {stem})" for name, stem in files.items() if stem != cfg]):
            print(f"Note: CFG is {cfg}, a config that these do not have: {', '.join(others)}.", file=sys.stderr)
        configs = [one.config(one.runs[0]) for one in self.launches]
        authors = {merge_method_file(default_cfg(), one.method_file, one.trainer): None for one in self.launches}
        for line in filter(None, (*authors, *(line for cfg in configs for line in settings_notes(cfg)))):
            print(line, file=sys.stderr)

    def _refuse(self, trainer: str, error: MethodError) -> None:
        if len(self.request.trainers) == 1:
            raise error
        if str(error) not in self.told:
            print(f"Error: {error}", file=sys.stderr)
        self.told.add(str(error))
        self.refused.append(trainer)
        self.not_run.append(f"{trainer} is not run to the end. {error}")

    def print_commands(self) -> None:
        """Print the train.py commands of all that is not done, see `printed_commands`."""
        print_file_names(sys.stdout)
        for line in printed_commands(self._open_pairs(quiet=False)):
            print(line)

    def _open_pairs(self, quiet: bool = True) -> list[tuple[Launch, Run]]:
        """The runs that are to be done, each with its launch.

        Args:
            quiet: whether nothing is said of those that cannot be, which shows again when they are to begin.
        """
        pairs: list[tuple[Launch, Run]] = []
        for one in self.launches:
            try:
                pairs += [(one, run) for run in one.open_runs()]
            except MethodError as error:
                if not quiet:
                    self._refuse(one.trainer, error)
        return pairs

    def go(self) -> list[str]:
        """Do all runs that are not finished, then show the results; returns what failed.

        Raises:
            MethodError: a folder holds another run than the one method's that was asked for.
            Interrupted: a run was.
        """
        pairs = [(one, run) for one in self.launches for run in one.runs]
        total = len(pairs)
        name = self.launches[0].name if len(self.launches) == 1 else f"{len(self.launches)} methods"
        say = _each_warning_once(lambda line: bar.write(line, file=sys.stderr))
        with progress(total=total, description=name, unit="run") as bar, show_warnings(say):
            engine = make_engine(self.request.engine, self._demand(), say)
            for folder in (self.request.output, *(one.folder for one in self.launches)):
                make_output_folder(folder)
            note_names([one for launch in self.launches for one in launch.sets], self.request.output)
            note_planned(self.request.output, {run.folder: run.test for _, run in pairs})
            # One after another, a run finds what the one before has made.
            plan = plan_shared(self._open_pairs(), True, engine.on_gpu) if engine.several else Plan([], {})
            workers = engine.workers_each
            of_shared: dict[Task, Shared] = {}
            for thing in plan.shared:
                of_shared[thing.launch.task(thing.run, thing.what, workers, thing.needs, thing.flags)] = thing
            of_task: dict[Task, tuple[Launch, Run]] = {}
            for i, (one, run) in enumerate(pairs, start=1):
                title, needs = f"[{i}/{total}] {one.name}, {run.title}", plan.needs.get(run.folder, ())
                of_task[one.task(run, title, workers, needs)] = one, run
            conduct = Conduct(of_task, of_shared, self._refuse, self.refused, bar)
            try:
                carry_out([*of_shared, *of_task], engine, conduct.begin, conduct.end, conduct.block)
            finally:
                engine.close()
                conduct.close()
        return self._show(conduct.failed, total)

    def _show(self, failed: list[str], total: int) -> list[str]:
        """Show results, and what failed of so many runs; returns that, with the report if it did."""
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

    def _demand(self) -> Demand:
        """What these runs ask of the engine that does them."""
        reads = {path for one in self.launches for path in one.reads()}
        return replace(
            self.request.demand(),
            reads=tuple(sorted(reads)),
            threads=self.launches[0].threads if self.launches else lambda on_gpu: 1,
            workers=max((one.workers for one in self.launches), default=0),
            uses_cuda=any(one.uses_cuda for one in self.launches),
        )

    def _report(self, baseline: str) -> bool:
        """Write the report of the data set's output folder; returns whether that succeeded."""
        folder = self.launches[0].folder
        command = [sys.executable, str(REPOSITORY / "scripts" / "report.py"), str(folder), "--baseline", baseline]
        command += [f"--not-run={line}" for line in self.not_run]
        sys.stdout.flush()
        return subprocess.run([*command, "--out", str(folder / "report.html")], check=False).returncode == 0


def _each_warning_once(write: Callable[[str], None]) -> Callable[[str], None]:
    """As `write`, but without warnings that were written before: several runs of a data set have the same."""
    warned = set[str]()

    def say(line: str) -> None:
        if line not in warned:
            write(line)
        if line.startswith("Warning: "):
            warned.add(line)

    return say


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
