"""What a launcher does: plan the runs of each method, do those that are not finished, show the results."""

import contextlib
import io
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.dassl_path import REPOSITORY
from common.errors import UserError
from common.failures import explain
from common.progress import progress
from common.run.folder import has_begun, is_finished
from common.run.identity import IDENTITY_FILE, read_identity, write_identity
from common.run.lock import holder, owned
from common.run.records import write_record
from common.threads import LARGE, asked_for
from scripts.launching.configs import config_digest, config_of, method_config, named_backbone
from scripts.launching.demand import Demand
from scripts.launching.engines import check_engine, make_engine
from scripts.launching.plan import Task, carry_out
from scripts.launching.planned import FAILED_FILE, note_planned
from scripts.launching.plans import Run, cross_dataset, multi_source, single_source
from scripts.launching.runs import (
    ASKED,
    anchored,
    check_same_run,
    resolved,
    run_command,
    settings_that_matter,
)
from scripts.launching.sets import find_set
from scripts.launching.shared import Plan, Shared, plan_shared
from scripts.reporting.finished import find_results
from scripts.reporting.tables import method_name
from scripts.reporting.text import results_tables
from trainers.methods import METHODS, BackboneError, Backbones, MethodError, check_methods, find_method, trainer_name

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from trainers.modules.clip_backbone import Backbone

EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")
DEFAULT_BACKBONE = "RN50"
LAUNCHER_LOCK = "launcher.lock"  # in the folder of what a run was asked for: held by the launcher that does it
# Of what is printed.
TRAININGS, RUNS = "trainings whose models others test", "runs"
ORDER = (
    "features of images that several runs need, in parts",
    "features of images that several runs need",
    "prompt labels that several runs need",
    TRAININGS,
    RUNS,
)
TRAINED_ON, TESTED_ON = "domainnet", "pacs,vlcs,office_home,terra_incognita"  # cross, as published


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        trainers: names, in the order of their runs.
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
        engine: name of what does the runs.
        jobs: how many runs at once; None: as the engine has it.
        task_gpus: GPUs of each; "": as the engine has it.
        ray_address: of a Ray cluster; "": none.
        visible_devices: CUDA_VISIBLE_DEVICES.
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
    engine: str = "local"
    jobs: str | None = None
    task_gpus: str = ""
    ray_address: str = ""
    visible_devices: str = ""
    only_print: bool = False

    def demand(self) -> Demand:
        """What is asked of the engine, before the runs are known."""
        return Demand(self.jobs, self.task_gpus, self.ray_address, self.visible_devices, self.output)


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
        import torch

        from datasets.known import EMBEDDED_DATASET
        from trainers.config_check import check_settings
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
        self.base = self.folder / trainer / backbone_label(self.backbone) / self.method_file.stem
        # A config that was asked for by name may have another stage I, so its labels are its own.
        self.labels = request.output / (f"prompt_labels_{self.method_file.stem}" if cfg else "prompt_labels")
        self.features = request.output / "feature_cache"
        self.runs: list[Run]
        if cross:
            tested = [find_set(other, request.data, offer=offer) for other in (request.tested or TESTED_ON).split(",")]
            self.runs = cross_dataset(dataset, tested, self.base, seeds)
        else:
            plan = multi_source if request.protocol == "multi" else single_source
            self.runs = plan(dataset, self.base, seeds)
        self.name = f"{trainer} on {dataset.name}"
        # What every run would say of its config, said once and before the first begins.
        check_backbone(self.backbone)
        if method.backbones is not Backbones.ANY:
            method.check_backbone(self.backbone, has_vit(self.backbone))
        self.configs: dict[tuple, CfgNode] = {}  # see `config`
        cfg = self.config(self.runs[0])
        try:
            check_settings(cfg)
        except UserError as error:  # of a comparison others may do with these settings
            raise MethodError(str(error)) from error
        self.workers = cfg.DATALOADER.NUM_WORKERS
        self.uses_cuda = cfg.USE_CUDA
        self.on_gpu = cfg.USE_CUDA and torch.cuda.is_available()
        self.clips = cfg.MODEL.BACKBONE.PATH

    def command(self, run: Run, flags: Sequence[str] = ()) -> list[str]:
        """The train.py command line of one of the runs, with more flags where there are any."""
        return run_command(
            self.trainer, run, self.method_file, self.backbone, self.opts, self.labels, self.features, flags
        )

    def config(self, run: Run) -> "CfgNode":
        """The config of a run, but for domains and folder, which may be those of another one."""
        import train

        which = run.dataset, run.seed, run.test
        if which not in self.configs:
            self.configs[which] = train.setup_cfg(train.parse_args(self.command(run)[2:]))
        return self.configs[which]

    def try_model(self, backbone: "Backbone") -> None:
        """Build the model of a run, without its data, so that what cannot be built is told before anything is done.

        Raises:
            MethodError: why it cannot.
        """
        from dassl.engine import TRAINER_REGISTRY

        import trainers.all  # noqa: F401 (registers them)

        cfg = self.config(self.runs[0]).clone()
        cfg.defrost()
        cfg.VERBOSE = cfg.USE_CUDA = False
        cfg.freeze()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                TRAINER_REGISTRY.get(self.trainer)(cfg, backbone, ["class"])
        except UserError as error:
            raise MethodError(str(error)) from error

    def command_from_anywhere(self, run: Run, flags: Sequence[str] = ()) -> list[str]:
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
            flags,
        )

    def task(self, run: Run, title: str, workers: int, needs: tuple[Path, ...] = (), flags: Sequence[str] = ()) -> Task:
        """One of the runs as a task, which takes no more loader workers than it may beside others.

        Args:
            run: which.
            title: for messages.
            workers: loader workers, at most.
            needs: folders of what has to be made before, beside the run whose model it tests.
            flags: more of train.py's.
        """
        arguments = self.command(run, flags)[2:]
        if self.workers > workers:
            arguments += ["DATALOADER.NUM_WORKERS", str(workers)]
        model = () if run.model_dir is None else (run.model_dir,)
        return Task(title, tuple(arguments), run.folder, (*needs, *model))

    def threads(self) -> int | None:
        """How many threads each of the runs computes with, None: as many as a machine has cores; on a GPU that does."""
        from trainers.modules.clip_backbone import load_backbone

        asked = asked_for()
        if asked is not None or self.on_gpu:
            return asked or 1
        return 1 if load_backbone(self.backbone, root=self.clips).n_tower_weights < LARGE else None

    def reads(self) -> list[str]:
        """Files and folders that the runs read beside the repository."""
        roots = [root for run in self.runs if os.path.isdir(root := run.dataset.root)]
        return [*roots, *(path for path in (self.backbone, str(self.method_file)) if os.path.exists(path))]

    def code(self, run: Run, domain: str) -> str:
        """The code of a domain of a run's data set."""
        from datasets.known import dataset_class

        kind, root = dataset_class(run.dataset.config), run.dataset.root
        return kind.list_codes(root)[kind.list_domains(root).index(domain)]

    def check(self, run: Run) -> None:
        """Raise MethodError where a run's folder holds another run."""
        check_same_run(run.folder, self._asked(run))

    def begin(self, run: Run) -> bool:
        """Take a run's folder for it; returns whether there is anything left to do.

        Raises:
            MethodError: the folder holds another run.
        """
        asked = self._asked(run)
        check_same_run(run.folder, asked)
        write_identity(run.folder / ASKED, asked)
        (run.folder / ASKED / FAILED_FILE).unlink(missing_ok=True)
        return not is_finished(run.folder, run.test)

    def open_runs(self) -> Iterator[Run]:
        """The runs that are not finished.

        Raises:
            MethodError: a folder holds another run.
        """
        for run in self.runs:
            check_same_run(run.folder, self._asked(run))
            if not is_finished(run.folder, run.test):
                yield run

    def _settings(self, run: Run) -> dict[str, str]:
        """The settings that have an effect on a run; those without one stay as they were noted, if they were."""
        from trainers.config_check import has_effect

        cfg = self.config(run)
        noted = read_identity(run.folder / ASKED).get("settings", {})
        settings = {key: value for key, value in settings_that_matter(self.opts).items() if has_effect(key, cfg)}
        return {**{key: value for key, value in noted.items() if not has_effect(key, cfg)}, **settings}

    def _asked(self, run: Run) -> dict[str, Any]:
        """What a run's folder is for, so that it is not taken for another run's."""
        return {
            "root": str(Path(run.dataset.root).resolve()),
            "backbone": resolved(self.backbone),
            "settings": self._settings(run),
            "sources": run.sources,
            "targets": run.targets,
            self.method_file.name: config_digest(self.method_file),
        }


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
    """Raise UserError if a method is unknown, none of them has the config or is the baseline, or no engine can run."""
    check_methods(request.trainers)
    if not request.only_print:
        check_engine(request.engine, request.demand())
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
                self.not_run.append(f"{trainer} is left out. {error}")
            except MethodError as error:
                self._refuse(trainer, error)
        if not self.launches and not self.refused:
            raise UserError("None of these methods takes the backbone.")
        self._tell_notes()
        backbones = {one.backbone for one in self.launches}
        if len(backbones) > 1:
            raise UserError(
                f"These methods' configs name different backbones ({', '.join(sorted(backbones))}), which do not "
                "compare: name one for all, after the data set."
            )
        self._try_models()

    def _try_models(self) -> None:
        """Refuse methods with open runs whose model cannot be built, where the backbone is here without a download."""
        from trainers.modules.backbone_sources import source_of
        from trainers.modules.clip_backbone import load_backbone

        to_do = [one for one in self.launches if not all(is_finished(run.folder, run.test) for run in one.runs)]
        if not to_do or not source_of(to_do[0].backbone).is_here(to_do[0].backbone, to_do[0].clips):
            return
        backbone = load_backbone(to_do[0].backbone, root=to_do[0].clips)
        for one in to_do:
            try:
                one.try_model(backbone)
            except MethodError as error:
                self.launches.remove(one)
                self._refuse(one.trainer, error)

    def _tell_notes(self) -> None:
        """Say what there is to say of settings, each once with the methods that it holds for."""
        from trainers.config_check import only_warm_up, settings_without_effect

        configs = [one.config(one.runs[0]) for one in self.launches]
        for line in (*settings_without_effect(*configs), *only_warm_up(*configs)):
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
        """Print the train.py command of all that is not done, a line each, in an order that they can have.

        Where several runs need the same, what makes it comes first, and lines of comment say what has to end before
        what comes next begins.
        """
        pairs = self._open_pairs(quiet=False)
        groups: dict[str, list[str]] = {}
        for thing in plan_shared(pairs, writes=False).shared:
            what = "prompt labels" if "--learn-labels" in thing.flags else "features of images"
            stage = f"{what} that several runs need" + (", in parts" if "--part" in thing.flags else "")
            command = thing.launch.command_from_anywhere(thing.run, thing.flags)
            groups.setdefault(stage, []).append(shlex.join(command))
        trainings = {run.model_dir for _, run in pairs}
        for one, run in pairs:
            stage = TRAININGS if run.folder in trainings else RUNS
            groups.setdefault(stage, []).append(shlex.join(one.command_from_anywhere(run)))
        for stage in sorted(groups, key=ORDER.index):
            if len(groups) > 1:
                print(f"# {stage}" + ("" if stage == RUNS else ": all of these before what comes below"))
            print(*groups[stage], sep="\n")

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
        with progress(total=total, description=name, unit="run") as bar:
            engine = make_engine(self.request.engine, self._demand(), lambda line: bar.write(line, file=sys.stderr))
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
            conduct = _Conduct(of_task, of_shared, self._refuse, self.refused, bar)
            try:
                carry_out([*of_shared, *of_task], engine, conduct.begin, conduct.end, conduct.block)
            finally:
                engine.close()
                conduct.close()
        failed = conduct.failed
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
            threads=self.launches[0].threads if self.launches else lambda: 1,
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


class _Conduct:
    """What is said and kept of the tasks of a comparison as they begin and end.

    While a task is being done, this launcher holds it: others, on whichever machine, leave it alone and wait.

    Args:
        of_task: whose run each task is.
        of_shared: what each of the others makes, for several runs.
        refuse: called with a trainer whose runs cannot go on as asked, and why.
        refused: trainers of those.
        bar: over all runs.

    Attributes:
        failed: titles of runs that failed, or were not begun since what they need failed.
    """

    def __init__(
        self,
        of_task: dict[Task, tuple[Launch, Run]],
        of_shared: dict[Task, Shared],
        refuse: Callable[[str, MethodError], None],
        refused: list[str],
        bar: Any,
    ) -> None:
        self.of_task, self.of_shared, self.refuse, self.refused, self.bar = of_task, of_shared, refuse, refused, bar
        self.failed: list[str] = []
        self.began: dict[Task, float] = {}
        self.held: dict[Task, contextlib.ExitStack] = {}
        self.elsewhere: set[Task] = set()

    def begin(self, task: Task) -> bool | None:
        """Whether a task has to be done; it is said that it begins, or that it was finished before.

        None while another process does it, which is said, too.
        """
        launch = self.of_shared[task].launch if task in self.of_shared else self.of_task[task][0]
        if launch.trainer in self.refused:
            return False
        try:
            if task in self.of_task:
                launch.check(self.of_task[task][1])
            if not self._hold(task):
                return None
            is_open = self._begin_shared(task) if task in self.of_shared else self._begin_run(task)
        except MethodError as error:
            self.refuse(launch.trainer, error)
            is_open = False
        except OSError as error:  # of this one: others may lie on another disk, or have begun
            self._say(f"{task.title}: not begun: {explain(error) or error}")
            if task in self.of_task:
                self.failed.append(task.title)
                self.bar.update()
            is_open = False
        if is_open:
            self.began[task] = time.time()
        else:
            self._let_go(task)
        return is_open

    def _begin_shared(self, task: Task) -> bool:
        (task.folder / ASKED / FAILED_FILE).unlink(missing_ok=True)
        if self.of_shared[task].is_there():
            return False
        self._say(f"{task.title}: for several runs; log in {task.folder}/log.txt")
        return True

    def _begin_run(self, task: Task) -> bool:
        launch, run = self.of_task[task]
        if not launch.begin(run):
            if task in self.elsewhere:
                self._say(f"{task.title}: finished by another launcher, in {run.folder}")
                self.bar.update()
            else:
                self._say(f"{task.title}: finished before, in {run.folder}")
                # As a bar that begins there: it took no time, by which the time of the others is told.
                self.bar.initial += 1
                self.bar.n += 1
                self.bar.refresh()
            return False
        log = run.folder / "log.txt"  # where there is one, Dassl gives the next the time at which it begins
        self._say(f"{task.title}: {f'going on, log in the newest {log}-*' if log.is_file() else f'log in {log}'}")
        return True

    def end(self, task: Task, code: int, interrupted: bool) -> None:
        """Say how a task has ended."""
        self._let_go(task)
        if code and interrupted:  # what it made of it does not matter: it may have been just starting
            self._say(f"{task.title}: interrupted; the same command goes on from here")
            return
        done = f"{'made' if task in self.of_shared else 'done'} in {time.time() - self.began[task]:.0f} s"
        self._say(f"{task.title}: {f'failed with exit code {code}' if code else done}")
        if task in self.of_task:
            self.bar.update()
        if code:
            self._note_failure(task, code)

    def _note_failure(self, task: Task, code: int) -> None:
        with contextlib.suppress(OSError):  # the disk may be full, which is why it failed
            write_record(task.folder / ASKED / FAILED_FILE, {"exit_code": code})
        if task in self.of_task:
            self.failed.append(task.title)
            if not has_begun(task.folder):
                # It never began to train, so there is nothing that other settings could be mixed up with.
                (task.folder / ASKED / IDENTITY_FILE).unlink(missing_ok=True)

    def block(self, task: Task, by: Task) -> None:
        """Say that a task is not done, since another one that it needs has failed."""
        self._say(f"{task.title}: not begun, for want of what failed: {by.title}")
        if task in self.of_task:
            self.failed.append(f"{task.title} (not begun, for want of: {by.title})")
            self.bar.update()

    def close(self) -> None:
        """Let go of what is still held."""
        for task in list(self.held):
            self._let_go(task)

    def _hold(self, task: Task) -> bool:
        """Take the right to do a task; False, which is said once, while another process has it, or does it."""
        (task.folder / ASKED).mkdir(parents=True, exist_ok=True)
        self.held[task] = contextlib.ExitStack()
        with contextlib.suppress(UserError):
            self.held[task].enter_context(owned(task.folder / ASKED, LAUNCHER_LOCK))
            # A run that was started by itself, or whose launcher has died just now.
            if holder(task.folder) is None:
                return True
        self._let_go(task)
        if task not in self.elsewhere:
            self.elsewhere.add(task)
            who = holder(task.folder) or holder(task.folder / ASKED, LAUNCHER_LOCK) or "another process"
            self._say(f"{task.title}: {who} does it, so its result is waited for")
        return False

    def _let_go(self, task: Task) -> None:
        if stack := self.held.pop(task, None):
            stack.close()

    def _say(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


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
