"""What a run's prompt labels have to be, by its config and data: where they lie and what they are made from."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from common.content_hashes import content_hashes
from common.errors import UserError
from common.run.names import class_subset, dataset_label
from datasets.known import known_domains
from trainers.base.trainer import FrozenClipTrainer
from trainers.modules.clip_backbone import backbone_label
from trainers.modules.image_data import Item
from trainers.modules.prompt_encoder import PromptEncoder
from trainers.modules.prompt_labels import LabelFolder, LabelOrigin, load_prompt_label


def check_targets(trainer: FrozenClipTrainer, key: str, empty: str) -> None:
    """Raise UserError where a key of a trainer's node names a domain that no data set has.

    A published config may name domains of one data set, and serves all of them.

    Args:
        trainer: with its data.
        key: a list of domains by full names.
        empty: what no name at all means.
    """
    domains = trainer.dm.dataset.domains
    if strange := sorted(set(trainer.settings[key]) - {*domains, *known_domains()}):
        raise UserError(
            f"TRAINER.{trainer.SETTINGS}.{key} names {', '.join(strange)}, which {trainer.cfg.DATASET.NAME} does not "
            f'have. Accepted: {", ".join(domains)}; or "()", {empty}.'
        )


def label_folder(cfg: CfgNode, node: str = "SPG", sign: str = "") -> LabelFolder:
    """The LabelFolder of a run.

    Args:
        cfg: the run's.
        node: of the method, under cfg.TRAINER.
        sign: folder in there, where labels have a sign; "": they have none.
    """
    settings = cfg.TRAINER[node]
    seed = cfg.SEED if settings.LABEL_SEED < 0 else settings.LABEL_SEED
    subset = class_subset(cfg)
    dataset = dataset_label(cfg) if subset == "all" else f"{dataset_label(cfg)}_{subset}"
    return LabelFolder(settings.LABEL_DIR, dataset, backbone_label(cfg.MODEL.BACKBONE.NAME), seed, sign)


def label_origin(
    trainer: FrozenClipTrainer, train_items: Iterable[Item], stage1_cfg: CfgNode | None = None
) -> LabelOrigin:
    """What a label for this run has to be made from.

    Args:
        trainer: any trainer of SPG or DPSPG.
        train_items: the domain's training items.
        stage1_cfg: config of stage I; None where the run does not know it.

    Returns:
        LabelOrigin.
    """
    items = list(train_items)
    hashes = content_hashes([item.impath for item in items])
    entries = sorted(f"{item.label}/{content}\n" for item, content in zip(items, hashes, strict=True))
    return LabelOrigin(
        backbone_sha256=trainer.backbone.sha256,
        classnames=tuple(trainer.dm.dataset.classnames),
        class_token_position=trainer.settings.get("CLASS_TOKEN_POSITION", "end"),
        data=hashlib.sha256("".join(entries).encode()).hexdigest(),
        recipe=None if stage1_cfg is None else _recipe(stage1_cfg, trainer.SETTINGS, trainer.started_from),
    )


def _recipe(cfg, node, started_from):
    """The settings that a prompt label depends on, as plain values by name."""
    recipe = {f"OPTIM.{key}": value for key, value in cfg.OPTIM.items()}
    recipe |= {f"INPUT.{key}": cfg.INPUT[key] for key in ("TRANSFORMS", "INTERPOLATION", "RRCROP_SCALE")}
    recipe["DATALOADER.TRAIN_X.BATCH_SIZE"] = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    recipe |= {f"TRAINER.{node}.{key}": value for key, value in cfg.TRAINER[node].items() if key.endswith("CTX_INIT")}
    recipe["TRAINER.FEATURES.TRAIN_VIEWS"] = cfg.TRAINER.FEATURES.TRAIN_VIEWS
    recipe["TEST.FINAL_MODEL"] = cfg.TEST.FINAL_MODEL
    if started_from:
        recipe["MODEL.INIT_WEIGHTS"] = started_from
    return {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in recipe.items()}


def read_labels(
    trainer: FrozenClipTrainer, folder: LabelFolder, stage1_cfg: Callable[[str], CfgNode | None], stage1: str
) -> Tensor:
    """Prompt labels of the source domains: (number of all domains, n_ctx, D), NaN for every other domain.

    Args:
        trainer: whose; has an `encoder`.
        folder: where they are.
        stage1_cfg: called with a domain; the config that its label has to be trained by, or None: any.
        stage1: name of the trainer that learns them.

    Raises:
        UserError: one is missing or does not fit this run.
    """
    dataset, encoder, node = trainer.dm.dataset, trainer.encoder, f"TRAINER.{trainer.SETTINGS}"
    labels = torch.full((len(dataset.domains), encoder.n_ctx, encoder.ctx_dim), float("nan"))
    for domain in dataset.source_domains:
        path = folder.find(domain, dataset.code(domain))
        if path is None:
            raise UserError(
                f"The prompt label of source domain {domain} is missing: no {folder.file_for(domain)}. Train it "
                f"with --trainer {stage1} --source-domains {domain} --target-domains {domain}, use --trainer "
                f"{trainer.SETTINGS}, which trains the missing ones, or name another folder or seed "
                f"({node}.LABEL_DIR, LABEL_SEED)."
            )
        index = list(dataset.domains).index(domain)
        items = [item for item in dataset.train_x if item.domain == index]
        origin = label_origin(trainer, items, stage1_cfg(domain))
        labels[index] = load_prompt_label(path, encoder.n_ctx, encoder.ctx_dim, origin, node)
        print(f"Prompt label of {domain}: {path}")
    return labels.to(trainer.device)


class LabelTrainer(FrozenClipTrainer):
    """Base class of what is trained by the prompt labels of the source domains."""

    LABEL_SIGNS: tuple[str, ...] = (
        "",
    )  # of the labels that a domain has, that of the one that is written last at the end

    encoder: PromptEncoder
    labels: Tensor | None = None  # of the source domains, once training begins

    @classmethod
    def label_folders_of(cls, cfg: CfgNode) -> list[LabelFolder]:
        """Where the labels of a run with this config are, the one that is written last at the end."""
        return [label_folder(cfg, cls.SETTINGS, sign) for sign in cls.LABEL_SIGNS]

    def label_folders(self) -> list[LabelFolder]:
        """Where this run's labels are, see `label_folders_of`."""
        return self.label_folders_of(self.cfg)

    def load_labels(self) -> Tensor:
        """Prompt labels of all source domains, as `read_labels` has them.

        Raises:
            UserError: one is missing or does not fit this run.
        """
        raise NotImplementedError

    def stage1_cfg(self, domain: str) -> CfgNode | None:
        """The config that a domain's label has to be trained by; None: any."""
        return None

    def before_train(self) -> None:
        self.labels = self.load_labels()
        super().before_train()

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        if self.labels is None:
            return identity
        return {**identity, "prompt labels": hashlib.sha256(self.labels.cpu().numpy().tobytes()).hexdigest()[:16]}
