"""What several runs of a launch need, so that it is made once, before them: features of images, and prompt labels."""

import contextlib
import functools
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from scripts.launching.plans import Run, Set
from scripts.launching.runs import SHARED_FOLDER

if TYPE_CHECKING:
    from yacs.config import CfgNode

    from scripts.launching.launch import Launch
    from trainers.base.image_features import ImageFeatures
    from trainers.modules.features import FeatureCache
    from trainers.modules.prompt_labels import LabelFolder

# Images of a domain that one task encodes, about: of a ViT-B/16 a minute's work for a GPU.
SHARD_IMAGES = 20_000


@dataclass(frozen=True, eq=False)
class Shared:
    """Something that several runs need.

    Attributes:
        what: for messages: "features of art (val, test)", "prompt label of art, seed 1".
        launch, run: whose command makes it; the run's folder is that of the log.
        flags: of train.py, that say what is made.
        needs: folders of those that have to be made before it.
        is_there: whether it is made by now.
    """

    what: str
    launch: "Launch"
    run: Run
    flags: tuple[str, ...]
    needs: tuple[Path, ...]
    is_there: Callable[[], bool]


class Plan(NamedTuple):
    """What to make before the runs.

    Args:
        shared: features, then labels.
        needs: folders of those that a run needs, by the run's folder.
    """

    shared: list[Shared]
    needs: dict[Path, tuple[Path, ...]]


class Entry(NamedTuple):
    """An entry in the cache of features."""

    key: str
    domain: str
    split: str
    n_images: int


def plan_shared(pairs: Sequence[tuple["Launch", Run]], writes: bool = True, on_gpu: bool | None = None) -> Plan:
    """What several of these runs need and is not there; what only one needs, that makes for itself.

    Args:
        pairs: runs that are to be done, each with its launch.
        writes: whether what a run would download or make when it reads its data may be; else, where it is not there, it
            is taken for granted that no features of it are.
        on_gpu: whether runs compute on a GPU where they may; None: where this process sees one.
    """
    if len(pairs) < 2:
        return Plan([], {})
    planner = _Planner(pairs, writes, on_gpu)
    features = list(planner.features())
    labels = list(planner.labels())
    # What is made of a domain before its label, that needs it as the runs do.
    needs = {run.folder: planner.needed_by(run.folder) for _, run in pairs}
    return Plan([*features, *labels], {folder: found for folder, found in needs.items() if found})


class _Planner:
    """Collects what each of the runs needs, see `plan_shared`."""

    def __init__(self, pairs: Sequence[tuple["Launch", Run]], writes: bool, on_gpu: bool | None) -> None:
        self.pairs = pairs
        self.looking = _Looking(writes, on_gpu)
        self.folders: dict[Path, list[Path]] = defaultdict(list)  # of a run -> those of what is made for it

    def needed_by(self, run: Path) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(self.folders[run]))

    # ---- features ----

    def features(self) -> Iterator[Shared]:
        """Tasks that encode the images of a domain."""
        from trainers.base.encoding import SPLITS

        users: dict[Entry, list[tuple[Launch, Run]]] = defaultdict(list)
        for launch, run in self.pairs:
            for entry in self.looking.entries(launch, run):
                users[entry].append((launch, run))
        missing: dict[tuple[Set, str], dict[Entry, list[tuple[Launch, Run]]]] = defaultdict(dict)
        for entry, pairs in users.items():
            if len(pairs) > 1 and not self._cache(*pairs[0]).holds(entry.key):
                missing[pairs[0][1].dataset, entry.domain][entry] = pairs
        for (_, domain), entries in missing.items():
            while entries:
                # One task for as many splits as there is a run that has all of them.
                counts: dict[tuple[Launch, str], list[Entry]] = defaultdict(list)
                for entry, pairs in entries.items():
                    for who in dict.fromkeys((launch, run.seed) for launch, run in pairs):
                        counts[who].append(entry)
                (launch, seed), chosen = max(counts.items(), key=lambda item: len(item[1]))
                chosen.sort(key=lambda entry: SPLITS.index(entry.split))
                run = next(run for one, run in entries[chosen[0]] if one is launch and run.seed == seed)
                yield from self._encoding(launch, run, domain, chosen)
                folder = _place(launch, run, f"features_of_{domain}").folder
                for entry in chosen:
                    for _, user in entries.pop(entry):
                        self.folders[user.folder].append(folder)

    def _cache(self, launch: "Launch", run: Run) -> "FeatureCache":
        look = self.looking.look(launch, run)
        assert look is not None  # or there would be no entry
        return look.cache

    def _encoding(self, launch: "Launch", run: Run, domain: str, entries: Sequence[Entry]) -> Iterator[Shared]:
        cache = self._cache(launch, run)
        place = replace(_place(launch, run, f"features_of_{domain}"), sources=(domain,), targets=(domain,))
        large = [entry for entry in entries if entry.n_images >= 1.5 * SHARD_IMAGES]
        n = max((round(entry.n_images / SHARD_IMAGES) for entry in large), default=0)
        what = "features of {} ({})".format
        whole = functools.partial(_all_there, cache, [entry.key for entry in entries])
        parts = []
        for i in range(1, n + 1):
            part = replace(place, folder=place.folder / f"part{i}of{n}")
            parts.append(part.folder)
            flags = ("--encode", _names(large, ","), "--part", f"{i}/{n}")
            yield Shared(f"{what(domain, _names(large))}, part {i} of {n}", launch, part, flags, (), whole)
        yield Shared(
            what(domain, _names(entries)), launch, place, ("--encode", _names(entries, ",")), tuple(parts), whole
        )

    # ---- prompt labels ----

    def labels(self) -> Iterator[Shared]:
        """Tasks that learn the prompt label of a domain."""
        users: dict[tuple[str, Path], list[tuple[Launch, Run]]] = defaultdict(list)
        for launch, run in self.pairs:
            trainer, cfg = _trainer(launch), launch.config(run)
            if not getattr(trainer, "LEARNS_LABELS", False) or run.model_dir is not None:
                continue
            folders = trainer.label_folders_of(cfg)
            for domain in run.sources if folders[-1].seed >= 0 else ():
                users[domain, folders[-1].file_for(domain)].append((launch, run))
        for (domain, _), pairs in users.items():
            launch, run = pairs[0]
            folders = _trainer(launch).label_folders_of(launch.config(run))
            there = functools.partial(_label_there, folders, domain, launch.code(run, domain))
            if len(pairs) < 2 or there():
                continue
            place = replace(_place(launch, run, f"label_of_{domain}"), sources=(domain,), targets=(domain,))
            # Its images are among those of the runs that need it.
            before = [folder for folder in self.needed_by(run.folder) if folder.parent.name == f"features_of_{domain}"]
            what = f"prompt label of {domain}, seed {folders[-1].seed} ({launch.trainer})"
            yield Shared(what, launch, place, ("--learn-labels",), tuple(before), there)
            for _, user in pairs:
                self.folders[user.folder].append(place.folder)


def _names(entries: Iterable[Entry], between: str = ", ") -> str:
    return between.join(entry.split for entry in entries)


def _all_there(cache: "FeatureCache", keys: Iterable[str]) -> bool:
    return all(map(cache.holds, keys))


def _label_there(folders: Iterable["LabelFolder"], domain: str, code: str) -> bool:
    return all(folder.find(domain, code) is not None for folder in folders)


def _place(launch: "Launch", run: Run, name: str) -> Run:
    """A run without a test of its own, in the folder of what is made for several."""
    # Of several data sets, which may have domains of one name.
    folder_name = name if run.dataset.name == launch.folder.name else f"{name}_of_{run.dataset.name}"
    folder = launch.base / SHARED_FOLDER / folder_name / f"seed{run.seed}"
    return replace(run, title=name, folder=folder, model_dir=None, test=True)


def _trainer(launch: "Launch") -> Any:
    from dassl.engine import TRAINER_REGISTRY

    import trainers.all  # noqa: F401 (registers them)

    return TRAINER_REGISTRY.get(launch.trainer)


# ---- what the cache calls features ----


class _Look(NamedTuple):
    """What a run's features are called.

    Args:
        cache: where they are kept.
        settings: what they depend on beside images and weights, as text.
        dataset: with all its domains as sources and as targets; None where it cannot be looked at.
        features: of the run; None as above.
        transforms: of training images and of others.
        n_views: TRAIN_VIEWS.
    """

    cache: "FeatureCache"
    settings: str
    dataset: Any = None
    features: "ImageFeatures | None" = None
    transforms: tuple[Any, Any] = (None, None)
    n_views: int = 0


class _Looking:
    """Looks at data sets and CLIPs as runs will, each once.

    Args:
        writes, on_gpu: see `plan_shared`.
    """

    def __init__(self, writes: bool, on_gpu: bool | None) -> None:
        self.writes, self.on_gpu = writes, on_gpu
        self.datasets: dict[tuple[str, int | None], Any] = {}
        self.backbones: dict[tuple, Any] = {}
        self.looks: dict[tuple, _Look | None] = {}
        self.known: dict[tuple, Entry | None] = {}

    def entries(self, launch: "Launch", run: Run) -> Iterator[Entry]:
        """The entries in the cache of features that a run has use for."""
        cfg = launch.config(run)
        splits = _trainer(launch).splits_encoded(cfg)
        if run.model_dir is not None:
            splits = tuple(split for split in splits if split == "test")
        if not splits or not cfg.TRAINER.FEATURES.CACHE or cfg.DATASET.SKIP_UNREADABLE:
            return  # which images can be read is known only when all have been decoded
        look = self.look(launch, run)
        if look is None:
            return
        for split in splits:
            for domain in run.targets if split == "test" else run.sources:
                if entry := self._entry(look, split, domain):
                    yield entry

    def look(self, launch: "Launch", run: Run) -> _Look | None:
        """None where something is wrong, which the run itself will tell."""
        cfg = launch.config(run)
        which = launch.trainer, run.dataset, cfg.SEED
        if which not in self.looks:
            from common.errors import UserError as NotMadeYet
            from trainers.modules.features import FeatureCache

            trainer = _trainer(launch)
            settings = f"{cfg.INPUT.dump()} {trainer.normalises(cfg)} {cfg.TRAINER[trainer.SETTINGS].PREC}"
            # With a key that no entry has.
            unknown = _Look(FeatureCache(cfg.TRAINER.FEATURES.CACHE_DIR), f"{settings} {cfg.DATASET.dump()} {cfg.SEED}")
            self.looks[which] = None
            # Whatever it is: of that run alone.
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                try:
                    self.looks[which] = self._look(trainer, cfg, unknown)
                except NotMadeYet:
                    self.looks[which] = unknown
        return self.looks[which]

    def _look(self, trainer: Any, cfg: "CfgNode", unknown: _Look) -> _Look:
        import torch
        from dassl.data.transforms import build_transform

        from trainers.base.image_features import ImageFeatures, follow_facts, follow_resize_mode
        from trainers.modules.clip.backbone import load_backbone

        on_gpu = torch.cuda.is_available() if self.on_gpu is None else self.on_gpu
        device = "cuda" if on_gpu and cfg.USE_CUDA else "cpu"
        named = cfg.MODEL.BACKBONE
        if not self.writes and not Path(named.NAME).exists():
            return unknown
        what = named.NAME, device, cfg.TRAINER[trainer.SETTINGS].PREC, named.PATH
        if what not in self.backbones:
            self.backbones[what] = load_backbone(*what)
        backbone = self.backbones[what]
        dataset = self._dataset(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        follow_facts(cfg.INPUT, backbone.info)
        cfg.INPUT.SIZE = (backbone.image_size,) * 2
        features = ImageFeatures(backbone, cfg.INPUT.dump(), normalised=trainer.normalises(cfg))
        testing = follow_resize_mode(build_transform(cfg, is_train=False), cfg.INPUT, backbone.info)
        transforms = build_transform(cfg, is_train=True), testing
        return _Look(unknown.cache, "", dataset, features, transforms, cfg.TRAINER.FEATURES.TRAIN_VIEWS)

    def _dataset(self, cfg: "CfgNode") -> Any:
        from dassl.data.datasets import DATASET_REGISTRY

        from trainers.base.run_record import is_split_by_seed

        kind = DATASET_REGISTRY.get(cfg.DATASET.NAME)
        cfg = cfg.clone()
        cfg.defrost()
        domains = kind.list_domains(cfg.DATASET.ROOT)
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = tuple(domains)
        cfg.VERBOSE = False
        settings = cfg.DATASET.dump()
        known = self.datasets.get((settings, None)) or self.datasets.get((settings, cfg.SEED))
        if known is not None:
            return known
        dataset = type(kind.__name__, (kind,), {"writes": self.writes})(cfg)
        by_seed = is_split_by_seed(cfg, dataset)
        self.datasets[settings, cfg.SEED if by_seed else None] = dataset
        return dataset

    def _entry(self, look: _Look, split: str, domain: str) -> Entry | None:
        """The entry of a domain's split; None of a split that is empty."""
        if look.features is None:
            digest = hashlib.sha256(look.settings.encode()).hexdigest()
            return Entry(f"unknown-{digest[:16]}", domain, split, 0)
        features, transform = look.features, look.transforms[split != "views"]
        leading = (look.n_views,) if split == "views" else ()
        how = features.backbone.sha256, features.inputs, features.normalised, repr(transform), leading
        what = id(look.dataset), split, domain, how
        if what not in self.known:
            of_split = {"views": look.dataset.train_x, "val": look.dataset.val, "test": look.dataset.test}[split]
            index = list(look.dataset.domains).index(domain)
            items = [item for item in of_split if item.domain == index]
            images: Any = SimpleNamespace(data_source=items, transform=transform)
            key = features.key(images, *leading) if items else ""
            self.known[what] = Entry(key, domain, split, len(items)) if items else None
        return self.known[what]
