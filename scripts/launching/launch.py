"""The runs of one method: which they are, their command lines, and whether their folders are theirs."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.run.folder import is_finished
from common.run.identity import read_identity, write_identity

from common.errors import UserError, user_errors
from common.startup import REPOSITORY
from common.threads import LARGE, asked_threads
from scripts.launching.configs import config_digest, method_config, named_backbone
from scripts.launching.plan import Task
from scripts.launching.planned import FAILED_FILE
from scripts.launching.plans import Run, cross_dataset, multi_source, single_source
from scripts.launching.request import DEFAULT_BACKBONE, TESTED_ON, TRAINED_ON, Request, seeds_of
from scripts.launching.runs import (
    ASKED,
    PLACES,
    anchored,
    check_same_run,
    resolved,
    run_command,
    settings_that_matter,
)
from scripts.launching.sets import find_set, named_apart
from trainers.methods import MethodError, find_method

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from trainers.modules.clip.backbone import Backbone

EMBEDDED_BACKBONE = str(REPOSITORY / "assets" / "mini_clip.pt")


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
        from dassl.engine import TRAINER_REGISTRY
        from trainers.modules.backbone_sources import source_of

        import trainers.all  # noqa: F401 (registers trainers)
        from datasets.known import EMBEDDED_DATASET
        from trainers.config import check_words
        from trainers.modules.clip.backbone import backbone_label, check_backbone, has_vit
        from trainers.modules.clip.tokenizer import CLIP_TOKENIZER

        method, cross = find_method(trainer), request.protocol == "cross"
        method.check_protocol(request.protocol)
        self.opts, self.trainer = request.opts, trainer
        name, offer = request.dataset or (TRAINED_ON if cross else EMBEDDED_DATASET), not request.only_print
        sets = [find_set(name, request.data, request.domains, offer)]
        if cross:
            sets += [find_set(other, request.data, offer=offer) for other in (request.tested or TESTED_ON).split(",")]
        dataset, *tested = self.sets = named_apart(sets, request.output)
        embedded = dataset.config.stem == EMBEDDED_DATASET and not cross
        if not cross and len(dataset.domains) < 2:
            raise UserError(
                f"{dataset.root} has one domain, {dataset.domains[0]}; generalization takes another one to test on."
            )
        seeds = seeds_of(request.seeds, "1" if request.dataset is None and embedded else "1 2 3")
        cfg = request.cfg
        if cfg and len(request.trainers) > 1 and not method.config_file(cfg).is_file():
            cfg = ""  # of several methods, those that have it
        self.method_file = method_config(method, dataset.config.stem, cfg)
        default = EMBEDDED_BACKBONE if embedded else named_backbone(self.method_file) or DEFAULT_BACKBONE
        self.backbone = request.backbone or default
        self.said_by_config = {self.method_file.name: config_digest(self.method_file)}
        self.folder = request.output / dataset.name
        self.base = self.folder / trainer / backbone_label(self.backbone) / self.method_file.stem
        # A config that was asked for by name may have another stage I, so its labels are its own.
        self.labels = request.output / (f"prompt_labels_{self.method_file.stem}" if cfg else "prompt_labels")
        self.features = request.output / "feature_cache"
        self.runs: list[Run]
        if cross:
            self.runs = cross_dataset(dataset, {one.name: one for one in tested}.values(), self.base, seeds)
        else:
            plan = multi_source if request.protocol == "multi" else single_source
            self.runs = plan(dataset, self.base, seeds)
        self.name = f"{trainer} on {dataset.name}"
        # What every run would say of its config, said once and before the first begins.
        check_backbone(self.backbone)
        if method.needs_vit:
            method.check_backbone(self.backbone, has_vit(self.backbone))
        self.configs: dict[tuple, CfgNode] = {}  # see `config`
        cfg = self.config(self.runs[0])
        try:
            trainer_class = TRAINER_REGISTRY.get(trainer)
            trainer_class.check_config(cfg)
            if not source_of(self.backbone).prefix:  # else only the backbone has the tokenizer
                check_words(cfg, trainer_class, CLIP_TOKENIZER)
        except UserError as error:  # of a comparison others may do with these settings
            raise MethodError(str(error)) from error
        self.workers = cfg.DATALOADER.NUM_WORKERS
        self.uses_cuda = cfg.USE_CUDA
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

        cfg, trainer = self.config(self.runs[0]).clone(), TRAINER_REGISTRY.get(self.trainer)
        cfg.defrost()
        cfg.VERBOSE = cfg.USE_CUDA = False
        if cfg.TRAINER[trainer.SETTINGS].get("CSC"):  # these have to be for the data's class names
            cfg.MODEL.INIT_WEIGHTS = ""
        cfg.freeze()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                trainer(cfg, backbone, ["class", "other"])
        except user_errors() as error:  # Dassl's, too: of a file that is no checkpoint
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

    def threads(self, on_gpu: bool) -> int | None:
        """How many threads each of the runs computes with; None: as many as a machine has cores.

        Args:
            on_gpu: whether they compute on a GPU, and so need one alone.
        """
        from trainers.modules.clip.backbone import load_backbone

        asked = asked_threads()
        if asked is not None or on_gpu:
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
        asked = self._check_contents(run)
        if read_identity(run.folder / ASKED) != asked:
            write_identity(run.folder / ASKED, asked)
        (run.folder / ASKED / FAILED_FILE).unlink(missing_ok=True)
        return not is_finished(run.folder, run.test)

    def open_runs(self) -> Iterator[Run]:
        """The runs that are not finished.

        Raises:
            MethodError: a folder holds another run.
        """
        for run in self.runs:
            self._check_contents(run)
            if not is_finished(run.folder, run.test):
                yield run

    def _check_contents(self, run: Run) -> dict[str, Any]:
        """What a run's folder is for. Of a finished run whose data or weights moved, the contents are compared.

        An unfinished run compares them itself.

        Raises:
            MethodError: the folder holds another run.
        """
        from trainers.base.finished import check_finished

        import train
        import trainers.all  # noqa: F401 (registers trainers and data sets)

        asked, noted = self._asked(run), read_identity(run.folder / ASKED)
        check_same_run(run.folder, asked)
        moved = [key for key in PLACES if noted.get(key, asked[key]) != asked[key]]
        if moved and is_finished(run.folder, run.test):
            try:
                cfg = train.setup_cfg(train.parse_args(self.command(run)[2:]))
                check_finished(run.folder, cfg, weights="backbone" in moved)
            except UserError as error:
                raise MethodError(str(error)) from error
        return asked

    def _settings(self, run: Run) -> dict[str, str]:
        """The settings that have an effect on a run; those without one stay as they were noted, if they were."""
        from trainers.config import has_effect

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
            **self.said_by_config,
        }
