"""SPG (Bai et al., Soft Prompt Generation for Domain Generalization, ECCV 2024): both stages.

Stage I, `SPG_CoOp`, learns the prompt label of one source domain by CoOp (Sec. 3.2). Stage II, `SPG_CGAN`, trains a
conditional GAN that generates a prompt from an image feature (Sec. 3.3, Algorithm 1). `SPG` runs stage I for each
missing label, then stage II. `StageTwoTrainer` has the part of stage II that DPSPG shares: reading and learning labels.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import set_random_seed
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler
from yacs.config import CfgNode

from common.errors import UserError, warn
from common.files import make_output_folder
from common.image_results import Contexts, write_contexts
from common.interruption import check_interruption
from common.locks import InUse, creation_lock
from common.run import class_subset, dataset_name
from common.startup import REPOSITORY
from datasets.base import known_domains
from trainers.base.context_trainer import ContextTrainer
from trainers.base.trainer import PromptTrainer
from trainers.config import (
    ClassTokenPosition,
    NCtx,
    NonNegativeFloat,
    PositiveInt,
    Precision,
    Section,
    Seed,
    apply_settings,
    check_values,
    default_cfg,
    merge_method_file,
    value_of,
)
from trainers.modules.cgan import (
    DISCRIMINATOR_SPECIAL,
    GENERATOR_SPECIAL,
    Discriminator,
    Generator,
    GradientNorms,
    clip_gradients,
    image_noise,
)
from trainers.modules.clip.backbone import backbone_label
from trainers.modules.prompt_encoder import PromptEncoder
from trainers.modules.prompt_labels import LabelFolder, load_prompt_label, save_prompt_label
from trainers.modules.sampling import Batches, PairedBatchSampler

CONTEXTS_PER_DOMAIN = 200  # generated contexts in contexts.npz


class SPGKeys(Section, node="TRAINER.SPG"):
    N_CTX: NCtx = 4
    CSC: Literal[False] = False  # CoOp's key; a prompt label is one context for all classes
    CTX_INIT: str = "a photo of a"
    PREC: Precision = "fp16"
    CLASS_TOKEN_POSITION: ClassTokenPosition = "end"
    LATENT_DIM: PositiveInt = 100  # length of the generator's noise vector
    # Largest gradient norm of each parameter tensor in stage II. Discriminator: weights, biases, first and last Linear.
    # Generator: weights, biases, biases of the last BatchNorm and the last Linear.
    GRAD_CLIP: bool = True
    D_WEIGHT_NORM: NonNegativeFloat = 5e-2
    D_BIAS_NORM: NonNegativeFloat = 5e-1
    D_ENDS_NORM: NonNegativeFloat = 5.0
    G_WEIGHT_NORM: NonNegativeFloat = 5e-3
    G_BIAS_NORM: NonNegativeFloat = 5e-8
    G_LAST_BIAS_NORM: NonNegativeFloat = 1.0
    GRAD_CLIP_OFF_TARGETS: tuple[str, ...] = ()  # target domains (full names) without clipping
    # <LABEL_DIR>/<dataset>/<backbone>/seed_<k>/<domain>.pt; "": prompt_labels next to OUTPUT_DIR. A run without a seed
    # has its own in OUTPUT_DIR.
    LABEL_DIR: str = ""
    LABEL_SEED: Seed = -1  # seed of the prompt labels; -1: SEED (the published labels have seed 1)
    # OPTIM section of stage I inside the trainer SPG: this file, then KEY VALUE pairs. Other sections are stage II's.
    STAGE1_CONFIG_FILE: str = "configs/trainers/SPG_CoOp/default.yaml"
    STAGE1_OPTS: tuple[Any, ...] = ()


# ---- prompt labels ----


def label_folder(cfg: CfgNode, node: str, sign: str = "") -> LabelFolder:
    """The folder of a run's prompt labels; `node` is the method's under cfg.TRAINER."""
    settings, subset = cfg.TRAINER[node], class_subset(cfg)
    seed = cfg.SEED if settings.LABEL_SEED < 0 else settings.LABEL_SEED
    dataset = dataset_name(cfg) if subset == "all" else f"{dataset_name(cfg)}_{subset}"
    return LabelFolder(settings.LABEL_DIR, dataset, backbone_label(cfg.MODEL.BACKBONE.NAME), seed, sign)


def label_origins(trainer: PromptTrainer, optim: CfgNode | None) -> dict[str, dict[str, Any]]:
    """Everything that the prompt label of each source domain depends on, except the precision.

    The precision only rounds the frozen CLIP, so runs of all precisions share labels.

    Args:
        trainer: any trainer of SPG or DPSPG.
        optim: OPTIM section of stage I; None: settings of stage I are unknown.
    """
    dataset = trainer.dm.dataset
    shared: dict[str, Any] = {
        "backbone weights": trainer.backbone.sha256,
        "class names": list(dataset.classnames),
        "CLASS_TOKEN_POSITION": trainer.settings.get("CLASS_TOKEN_POSITION", "end"),
    }
    if optim is not None:
        keys = ["INPUT.TRANSFORMS", "INPUT.INTERPOLATION", "INPUT.RRCROP_SCALE", "DATALOADER.TRAIN_X.BATCH_SIZE"]
        keys += ["TRAINER.FEATURES.TRAIN_VIEWS", "TEST.FINAL_MODEL", "TEST.SELECT_BY"]
        keys += [f"TRAINER.{trainer.NODE}.{key}" for key in trainer.settings if key.endswith("CTX_INIT")]
        values = {f"stage I: OPTIM.{key}": value for key, value in optim.items()}
        values |= {key: value_of(trainer.cfg, key) for key in keys}
        shared |= {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        shared["MODEL.INIT_WEIGHTS"] = trainer.init_prompts_hash
    training, validation = (dataset.domain_fingerprints([split]) for split in ("train_x", "val"))
    return {
        domain: {**shared, "training images": training.get(domain, ""), "validation images": validation.get(domain, "")}
        for domain in dataset.source_domains
    }


def read_stage1_optim(cfg: CfgNode, node: str) -> tuple[CfgNode, str]:
    """The OPTIM section of stage I, from STAGE1_CONFIG_FILE and STAGE1_OPTS of a method's node.

    The second value is the note of `merge_method_file`.
    """
    path, opts = cfg.TRAINER[node].STAGE1_CONFIG_FILE, cfg.TRAINER[node].STAGE1_OPTS
    stage1, key = default_cfg(), f"TRAINER.{node}.STAGE1_CONFIG_FILE"
    if not os.path.isfile(path) and (REPOSITORY / path).is_file():
        path = REPOSITORY / path
    note = merge_method_file(stage1, path, f"{node}_CoOp", key)
    try:
        if others := [name for name in opts[::2] if not str(name).startswith("OPTIM.")]:
            raise UserError(f"{others[0]} is not a key of OPTIM. Give pairs such as \"['OPTIM.MAX_EPOCH', 5]\".")
        apply_settings(stage1, opts)
        check_values(stage1)
    except UserError as error:
        raise UserError(f"Stage I ({key} {path}, STAGE1_OPTS {list(opts)}): {error}") from error
    return stage1.OPTIM, note


# ---- stage I ----


@TRAINER_REGISTRY.register()
class SPG_CoOp(ContextTrainer):
    """CoOp on one domain. The context of the best validation epoch becomes the domain's prompt label."""

    NODE = "SPG"
    SIGNS: tuple[str, ...] = ("",)  # DPSPG has a negative and a positive label

    def build_data_loader(self) -> None:
        super().build_data_loader()
        domains = self.dm.dataset.source_domains
        if self.classnames is None and len(domains) != 1:
            raise UserError(
                f"{type(self).__name__} learns the label of one domain; DATASET.SOURCE_DOMAINS names {len(domains)}: "
                f"{', '.join(domains)}. Pass one (--source-domains {domains[0]}), or use --trainer {self.NODE}."
            )

    def label_files(self) -> dict[str, Path]:
        (domain,) = self.dm.dataset.source_domains
        return {sign: label_folder(self.cfg, self.NODE, sign).file_for(domain) for sign in self.SIGNS}

    def learned_label(self, sign: str) -> Tensor:
        return self.model.ctx

    def train(self) -> None:
        # One process at a time learns a label. The lock is re-entrant: SPG holds it already.
        *_, last = self.label_files().values()
        make_output_folder(self.settings.LABEL_DIR)
        with creation_lock(last, f"learns the prompt label of {last.stem}"):
            super().train()

    def write_records(self) -> None:
        """Write the label first: the records mark the run as finished."""
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            self.load_model(self.output_dir)
        (origin,) = label_origins(self, self.cfg.OPTIM).values()
        for sign, path in self.label_files().items():
            save_prompt_label(path, self.learned_label(sign), origin, self.train_seconds)
            print(f"Prompt label written to {path}")
        super().write_records()


# ---- stage II ----


class StageTwoTrainer(PromptTrainer):
    """Trains networks with the prompt labels of the source domains: the base of stage II of SPG and DPSPG.

    With LEARNS_LABELS it first runs stage I for each source domain without a label.
    """

    STAGE1: type[SPG_CoOp]
    LEARNS_LABELS = False

    encoder: PromptEncoder
    # (signs, domains, n_ctx, D), NaN for all domains but the sources; None before training.
    prompt_labels: Tensor | None = None
    label_seconds: dict[str, float | None]  # domain -> training time of its label; None: unknown
    learned: tuple[str, ...] = ()  # domains with a label from this run

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        super().check_config(cfg)
        if cls.LEARNS_LABELS:
            read_stage1_optim(cfg, cls.NODE)
            has_one_seed = cfg.SEED >= 0 and cfg.TRAINER[cls.NODE].LABEL_SEED in (-1, cfg.SEED)
            if cfg.DATASET.NUM_SHOTS > 0 and not has_one_seed:
                raise UserError(
                    f"DATASET.NUM_SHOTS {cfg.DATASET.NUM_SHOTS}: the stages would draw other images without one seed "
                    f"for both. Pass --seed, and leave out TRAINER.{cls.NODE}.LABEL_SEED."
                )

    def complete_cfg(self, cfg: CfgNode) -> CfgNode:
        named, own = cfg.TRAINER[self.NODE].LABEL_DIR, os.path.join(cfg.OUTPUT_DIR, "prompt_labels")
        cfg = super().complete_cfg(cfg)
        settings = cfg.TRAINER[self.NODE]
        if self.LEARNS_LABELS and cfg.SEED < 0 and settings.LABEL_SEED < 0:
            # Runs without a seed are independent, so each learns labels of its own.
            if named not in ("", own):
                key = f"TRAINER.{self.NODE}.LABEL"
                warn(f"{key}_DIR {named} is not used: a run without a seed learns its labels in {own}. Set {key}_SEED.")
            cfg.defrost()
            settings.LABEL_DIR = own
            cfg.freeze()
        return cfg

    @property
    def label_folders(self) -> list[LabelFolder]:
        return [label_folder(self.cfg, self.NODE, sign) for sign in self.STAGE1.SIGNS]

    def find_labels(self, domain: str) -> list[Path | None]:
        """The label file of each sign, or None."""
        return [folder.find(domain, self.dm.dataset.code(domain)) for folder in self.label_folders]

    def before_train(self) -> None:
        self.label_seconds = {}
        if self.LEARNS_LABELS:
            self.learn_missing_labels()
            print(f"Stage II: {self.cfg.TRAINER.NAME} trains with the prompt labels")
        # Before super(): resuming compares `identity`, which hashes the labels.
        self.prompt_labels = self.load_labels()
        super().before_train()

    def load_labels(self) -> Tensor:
        """Read the prompt labels of the source domains: (signs, domains, n_ctx, D)."""
        dataset, node = self.dm.dataset, f"TRAINER.{self.NODE}"
        folders, shape = self.label_folders, (self.encoder.n_ctx, self.encoder.ctx_dim)
        labels = torch.full((len(folders), len(dataset.domains), *shape), float("nan"))
        optim = read_stage1_optim(self.cfg, self.NODE)[0] if self.LEARNS_LABELS else None
        for domain, origin in label_origins(self, optim).items():
            index = list(dataset.domains).index(domain)
            for sign, path in enumerate(self.find_labels(domain)):
                if path is None:
                    raise UserError(
                        f"The prompt label of source domain {domain} is missing: no {folders[sign].file_for(domain)}. "
                        f"Use --trainer {self.NODE} or {self.STAGE1.__name__}, which learn it, or name another "
                        f"folder or seed ({node}.LABEL_DIR, LABEL_SEED)."
                    )
                labels[sign, index], self.label_seconds[domain] = load_prompt_label(path, *shape, origin, node)
                print(f"Prompt label of {domain}: {path}")
        return labels.to(self.device)

    def check_targets(self, key: str, empty: str) -> None:
        """Raise UserError if a key names a domain that no data set has; `empty` is the meaning of an empty key.

        A published config may name domains of one data set, and serves all of them.
        """
        domains = self.dm.dataset.domains
        if unknown := sorted(set(self.settings[key]) - {*domains, *known_domains()}):
            raise UserError(
                f"TRAINER.{self.NODE}.{key} names {', '.join(unknown)}, which {self.cfg.DATASET.NAME} does not have. "
                f'Set it to domains of {", ".join(domains)}, or to "()" for {empty}.'
            )

    def identity(self) -> dict[str, Any]:
        labels = None if self.prompt_labels is None else self.prompt_labels.cpu().numpy().tobytes()
        return {**super().identity(), "prompt labels": labels and hashlib.sha256(labels).hexdigest()[:16]}

    # ---- stage I for missing labels ----

    def learn_missing_labels(self) -> None:
        """Run stage I for each source domain without a label. If several runs need a label, one learns it."""
        missing = [domain for domain in self.dm.dataset.source_domains if None in self.find_labels(domain)]
        _, note = read_stage1_optim(self.cfg, self.NODE)
        if missing and note:
            print(note)
        folder = self.label_folders[-1]
        make_output_folder(self.settings.LABEL_DIR)
        for wait in (False, True):  # labels that other runs are learning come last
            for domain in [domain for domain in missing if None in self.find_labels(domain)]:
                lock = creation_lock(folder.file_for(domain), f"learns the prompt label of {domain}", wait)
                with contextlib.suppress(InUse), lock:
                    if None in self.find_labels(domain):  # else another run has just learned it
                        self.learn_label(domain)

    def learn_label(self, domain: str) -> None:
        """Run stage I for a domain, which writes its labels of all signs."""
        folders, found = self.label_folders, self.find_labels(domain)
        # Our own label of the first sign may be alone: a run was killed before it wrote the second.
        if alone := [path for path in found if path not in (None, folders[0].file_for(domain))]:
            raise UserError(
                f"The prompt label of {domain} is there for one sign alone: {alone[0]}, and no "
                f"{folders[found.index(None)].file_for(domain)}. Put the other there, or delete the one to have both "
                "learned."
            )
        print(f"Stage I: learning the prompt label of {domain}")
        cfg, fresh_seed = self.stage1_cfg(domain), np.random.SeedSequence().generate_state(1)[0]
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)  # a label does not depend on the other missing ones
        stage1 = self.STAGE1(cfg, self.backbone)
        stage1.restart_on_difference = True
        stage1.set_threads(self.threads)
        stage1.train()
        if self.cfg.SEED < 0:
            set_random_seed(int(fresh_seed))  # LABEL_SEED must not seed stage II
        self.learned = (*self.learned, domain)

    def stage1_cfg(self, domain: str) -> CfgNode:
        """This run's config for stage I on a domain: OPTIM of stage I, label seed, own folder, no test."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OPTIM, _ = read_stage1_optim(cfg, self.NODE)
        cfg.TRAINER.NAME = self.STAGE1.__name__
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = (domain,)
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "stage1", domain)
        cfg.SEED = self.label_folders[0].seed
        cfg.TEST.NO_TEST = True
        cfg.RESUME = ""
        cfg.VERBOSE = False
        cfg.freeze()
        return cfg

    @classmethod
    def config_settings(cls, cfg: CfgNode) -> dict[str, Any]:
        settings = super().config_settings(cfg)
        if cls.LEARNS_LABELS:
            # The optimisation of stage I counts, not the file and the pairs that it comes from.
            stage1, _ = read_stage1_optim(cfg, cls.NODE)
            settings |= {f"stage I: OPTIM.{key}": value for key, value in stage1.items()}
        return settings

    def n_trained(self) -> list[int]:
        if not self.LEARNS_LABELS:
            return super().n_trained()
        stage1 = 0 if self.prompt_labels is None else int(self.prompt_labels.isfinite().sum())
        return [stage1, *super().n_trained()]

    def reused(self) -> dict[str, float | None]:
        reused = super().reused()
        domains = [domain for domain in self.dm.dataset.source_domains if domain not in self.learned]
        if self.LEARNS_LABELS and domains:
            times = [self.label_seconds.get(domain) for domain in domains]
            known = [seconds for seconds in times if seconds is not None]
            reused["prompt labels"] = sum(known) if len(known) == len(times) else None
        return reused


@TRAINER_REGISTRY.register()
class SPG_CGAN(StageTwoTrainer):
    """Trains the generator against the prompt labels of the source domains; classifies with generated prompts."""

    NODE = "SPG"
    STAGE1 = SPG_CoOp
    UNREAD_KEYS = ("INPUT.SIZE",)
    LEAST_BATCH = {"TRAIN_X": (2, "the batch norm of SPG's generator needs at least 2 images")}
    TEST_KEYS = ("CLASS_TOKEN_POSITION",)
    UNTESTED = ("discriminator",)

    def training_batches(self, batch_sampler: BatchSampler, n_images: int) -> Batches:
        """Join two independent batches: one for the labels, one for the generator (Algorithm 1)."""
        second = BatchSampler(RandomSampler(range(n_images)), batch_sampler.batch_size, batch_sampler.drop_last)
        return PairedBatchSampler(batch_sampler, second)

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.encoder = self.build_encoder(
            n_ctx=settings.N_CTX, ctx_init=settings.CTX_INIT, class_token_position=settings.CLASS_TOKEN_POSITION
        )
        sizes = self.backbone.feature_size, self.encoder.n_ctx, self.encoder.ctx_dim
        self.generator = self.register_network("generator", Generator(*sizes, settings.LATENT_DIM))
        self.discriminator = self.register_network("discriminator", Discriminator(*sizes))

        # The published setting is for runs with one target. With several, all of them have to be named.
        targets, off = set(self.dm.dataset.target_domains), set(settings.GRAD_CLIP_OFF_TARGETS)
        self.clips_gradients = settings.GRAD_CLIP and not (targets and targets <= off)
        self.generator_norms = GradientNorms(
            settings.G_WEIGHT_NORM, settings.G_BIAS_NORM, settings.G_LAST_BIAS_NORM, GENERATOR_SPECIAL
        )
        self.discriminator_norms = GradientNorms(
            settings.D_WEIGHT_NORM, settings.D_BIAS_NORM, settings.D_ENDS_NORM, DISCRIMINATOR_SPECIAL
        )

    def train(self) -> None:
        if len(self.dm.dataset.train_x) < 2:
            raise UserError(
                "The source domains have one training image, and the batch norm of SPG's generator takes two or more. "
                "Add images to them."
            )
        self.check_targets("GRAD_CLIP_OFF_TARGETS", "no domain")
        super().train()

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step of Algorithm 1: the discriminator, then the generator, by least-squares losses (Eq. 4 and 5).

        `training_batches` joins two batches of BATCH_SIZE images. The first half selects the prompt labels by domain,
        an index in `dm.dataset.domains`. The second half are independent images, the conditions of the generator.
        """
        check_interruption()
        features = self.image_features.of_batch(batch)
        n = len(features) // 2
        features, independent = features[:n], features[n:]
        assert self.prompt_labels is not None
        (by_domain,) = self.prompt_labels  # SPG has one sign
        labels = by_domain[batch["domain"][:n].to(self.device)]
        real, fake = torch.ones(n, 1, device=self.device), torch.zeros(n, 1, device=self.device)

        generated = self.generator(independent)
        # One pass over both halves costs little more than a pass over one.
        prompts = torch.cat([labels, generated.detach()])
        validity = self.discriminator(prompts, torch.cat([features, independent]))
        loss_d = F.mse_loss(validity[:n], real) + F.mse_loss(validity[n:], fake)
        self._update("discriminator", self.discriminator, self.discriminator_norms, loss_d)

        # The generator's step does not use the discriminator's weight gradients, which are half of its cost.
        self.discriminator.requires_grad_(False)
        loss_g = F.mse_loss(self.discriminator(generated, independent), real)
        self._update("generator", self.generator, self.generator_norms, loss_g)
        self.discriminator.requires_grad_(True)
        return {"loss_d": loss_d.item(), "loss_g": loss_g.item()}

    def _update(self, name, network, norms, loss):
        """Backward pass, clipping and step of one network, in fp32 outside autocast: without the AMP scaler."""
        self.model_zero_grad(name)
        self.model_backward(loss)
        if self.clips_gradients:
            clip_gradients(network, norms)
        self.model_update(name)

    def contexts(self, features: Tensor, indices: Sequence[int], draw: int = 0) -> Tensor:
        """A generated context for each image: (B, E) features, B indices -> (B, n_ctx, D)."""
        noise = image_noise(self.cfg.SEED, indices, self.generator.latent_dim, draw)
        return self.generator(features, noise.to(features))

    def text_features(self, features: Tensor, indices: Sequence[int], draw: int = 0) -> Tensor:
        return self.encoder(self.contexts(features, indices, draw))

    def predict(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        draws = range(self.cfg.TEST.N_PROMPTS)
        return reduce(torch.add, (self.predict_draw(features, indices, draw) for draw in draws)) / len(draws)

    def predict_draw(self, features: Tensor, indices: Sequence[int], draw: int) -> Tensor:
        """Logits (B, C) with one prompt for each image, from draw number `draw` of the noise."""
        with self.backbone.autocast():
            text_features = self.text_features(features, indices, draw)
        return self.logits(features, text_features)

    def write_results(self) -> None:
        """Write contexts.npz first, since results.json marks the run as finished."""
        write_contexts(self.output_dir, self.sample_contexts())
        super().write_results()

    @torch.no_grad()
    def sample_contexts(self) -> Contexts:
        """Generated contexts for at most 200 images of each domain, and the prompt labels.

        Source domains give validation images. A test of another run's model has no labels, and target domains alone.
        """
        domains = np.array(self.dm.dataset.domains)
        trained = self.prompt_labels is not None
        contexts: list[np.ndarray] = []
        names: list[str] = []
        splits: list[str] = []
        for split, loader in {"val": self.val_loader if trained else None, "test": self.test_loader}.items():
            if loader is None:
                continue
            features = self.image_features.of_split(loader, split)
            of_image = np.array([item.domain for item in loader.dataset.data_source])
            for domain in np.unique(of_image):
                indices = np.flatnonzero(of_image == domain)
                indices = indices[
                    np.linspace(0, len(indices) - 1, min(len(indices), CONTEXTS_PER_DOMAIN)).round().astype(int)
                ]
                chosen = torch.from_numpy(np.array(features[indices])).to(self.device)
                with self.backbone.autocast():  # as in the test
                    generated = self.contexts(chosen, indices.tolist())
                contexts.append(generated.float().cpu().numpy())
                names += [domains[domain]] * len(indices)
                splits += [split] * len(indices)
        shape = (0, self.encoder.n_ctx, self.encoder.ctx_dim)
        labels = np.zeros(shape) if self.prompt_labels is None else self.prompt_labels[0].cpu().numpy()
        known = [i for i, label in enumerate(labels) if not np.isnan(label).any()]
        return Contexts(np.concatenate(contexts), np.array(names), np.array(splits), labels[known], domains[known])


@TRAINER_REGISTRY.register()
class SPG(SPG_CGAN):
    """Both stages: learn the missing prompt labels (stage I), then train the CGAN (stage II)."""

    LEARNS_LABELS = True
