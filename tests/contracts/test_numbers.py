"""The numbers of each method: logits, loss, gradients and three optimiser steps equal tests/reference.py within 1e-10.

Each trainer runs with its default config in double precision, on fixed weights and images. The tests use Dassl's
trainer interface, train.py's command line, published tensor names and files alone, so they outlive our modules.

Random draws belong to the contract:
- SPG_CGAN's training step draws its noise first: `torch.randn(B, 100)` from torch's generator.
- VP's training step draws its place first: `torch.randint(end, (2,))`, x before y.
- Noise and places of test images follow from seed and index: `reference.image_noise`, `reference.image_places`.
- Dropout has the published rate. The tests read it from the networks and then set it to 0.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import clip.model
import numpy as np
import pytest
import reference
import torch
from commands import CLASSES, config_of, train
from tensorboard.backend.event_processing import event_file_loader  # noqa: F401 (it needs the real np.float32)
from torch import nn

SEED, BATCH, TEST_BATCH, PATCH = 1, 6, 4, 10
STEPS = (0, 1, 6)  # epochs of the three steps: start of the warm-up, second epoch, cosine


@pytest.fixture(autouse=True)
def double_precision(monkeypatch):
    """Weights, images, features and networks in double precision.

    Trainers ask for single precision by `float()`, `np.float32` or the default dtype, CLIP's layer norms by a cast.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(np, "float32", np.float64)
    monkeypatch.setattr(clip.model.LayerNorm, "forward", nn.LayerNorm.forward)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(found, expected, what=""):
    found = torch.as_tensor(found)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0, msg=lambda text: f"{what}: {text}")


class Case(NamedTuple):
    """A trainer, its function in reference.py, and settings on top of its default config."""

    trainer: str
    expected: Callable
    opts: str = ""
    clip: str = "resnet"
    flags: str = ""
    dropout: float | None = None
    losses: Callable | None = None  # of methods with several losses a step
    is_clipped: bool = False


FIVE_VECTORS = "TRAINER.COOP.N_CTX 5 TRAINER.COOP.CTX_INIT"
DEPTHS = "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 1 TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 3"
MIDDLE, FRONT = partial(reference.coop, position="middle"), partial(reference.coop, position="front")
BY_DOMAIN = partial(reference.dpl, by_domain=True)
SPG = Case("SPG_CGAN", reference.spg_logits, dropout=0.4, losses=reference.spg_losses, is_clipped=True)
CASES = {
    "CoOp": Case("CoOp", reference.coop),
    "CoOp class-specific": Case("CoOp", reference.coop, "TRAINER.COOP.CSC True"),
    "CoOp middle": Case("CoOp", MIDDLE, f"TRAINER.COOP.CLASS_TOKEN_POSITION middle {FIVE_VECTORS} ''"),
    "CoOp front": Case("CoOp", FRONT, f"TRAINER.COOP.CLASS_TOKEN_POSITION front {FIVE_VECTORS} ''"),
    "CoCoOp": Case("CoCoOp", reference.cocoop),
    "KgCoOp": Case("KgCoOp", reference.kgcoop),
    "DPL": Case("DPL", reference.dpl, dropout=0.1),
    "DPL by domain": Case("DPL", BY_DOMAIN, "TRAINER.DPL.BY_DOMAIN True", dropout=0.1),
    "VP": Case("VP", reference.vp),
    "VP fixed": Case("VP", reference.vp, "TRAINER.VP.METHOD fix"),
    "VP frame": Case("VP", reference.vp, "TRAINER.VP.METHOD pad"),
    "SPG_CoOp": Case("SPG_CoOp", reference.coop, flags="--source-domains blue"),
    "DPSPG_CoOp": Case("DPSPG_CoOp", reference.dpspg_coop, flags="--source-domains blue"),
    "DPSPG_TRANSFORMER": Case("DPSPG_TRANSFORMER", reference.dpspg_transformer, dropout=0.1),
    "SPG_CGAN": SPG,
    "SPG_CGAN not clipped": SPG._replace(opts="TRAINER.SPG.GRAD_CLIP False", is_clipped=False),
    "VPT": Case("VPT", reference.vpt, clip="vit"),
    "VPT deep": Case("VPT", reference.vpt, "TRAINER.VPT.PROMPT_DEPTH_VISION 3", "vit"),
    "MaPLe": Case("MaPLe", reference.maple, clip="vit"),
    "MaPLe shallow": Case("MaPLe", reference.maple, "TRAINER.MAPLE.PROMPT_DEPTH 1", "vit"),
    "PromptSRC": Case("PromptSRC", reference.promptsrc, clip="vit"),
    "PromptSRC other depths": Case("PromptSRC", reference.promptsrc, DEPTHS, "vit"),
}
# Stage II starts from files in the published format: (n, D) tensors, here with numbers that any precision can hold.
LABELS = {
    sign: torch.randint(-64, 65, (2, 4, 128), generator=torch.Generator().manual_seed(i)) / 64
    for i, sign in enumerate(("", "pos", "neg"))
}
# What no run may change unnoticed. Weight decay, and the rates and warm-ups that are left out, come from the configs.
COMPARED = {"NAME": "sgd", "LR": 0.002, "MAX_EPOCH": 50, "WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant"}
SCHEDULES = {
    **dict.fromkeys(["CoOp", "CoCoOp", "KgCoOp", "DPL", "VP", "VPT", "MaPLe", "PromptSRC", "SPG_CoOp"], COMPARED),
    "DPSPG_CoOp": {"NAME": "sgd", "LR": 0.002, "MAX_EPOCH": 70},
    "SPG_CGAN": {"NAME": "adamw", "MAX_EPOCH": 70, "WARMUP_EPOCH": 4, "WARMUP_TYPE": "linear"},
    "DPSPG_TRANSFORMER": {"NAME": "adamw", "LR": 0.002, "MAX_EPOCH": 50, "WARMUP_EPOCH": 4, "WARMUP_TYPE": "linear"},
}


@pytest.fixture
def build(tmp_path, images, clips, monkeypatch):
    """Build the trainer of a case: build(CASES["CoOp"]). It finds prompt labels and runs in tmp_path."""
    from dassl.engine import build_trainer

    import trainers.all  # noqa: F401 (registers)

    monkeypatch.chdir(tmp_path)
    for sign, labels in LABELS.items():
        folder = tmp_path / "prompt_labels" / sign / images.name / "resnet" / f"seed_{SEED}"
        folder.mkdir(parents=True)
        for domain, label in zip(("blue", "green"), labels, strict=True):
            torch.save(label, folder / f"{images.name}_CoOp_{domain}.pt")

    def make(case):
        opts = f"USE_CUDA False DATALOADER.NUM_WORKERS 0 DATALOADER.TRAIN_X.BATCH_SIZE {BATCH} {case.opts}".split()
        opts = ["" if word == "''" else word for word in [*opts, "DATALOADER.TEST.BATCH_SIZE", TEST_BATCH]]
        flags = ["--no-feature-cache", *case.flags.split()]
        command = train(case.trainer, "run", *opts, images=images, backbone=clips[case.clip][0], flags=flags)
        torch.manual_seed(SEED)
        return build_trainer(config_of(command))

    return make


def prepare(trainer):
    """Move the learned tensors from their start, switch dropout off, and return the dropout rates."""
    rates = set()
    torch.manual_seed(SEED)
    for network in trainer._models.values():
        for tensor in network.parameters():
            tensor.data.add_(0.02 * torch.randn_like(tensor))
        for module in network.modules():
            for kind, name in ((nn.Dropout, "p"), (nn.MultiheadAttention, "dropout")):
                if isinstance(module, kind):
                    rates.add(getattr(module, name))
                    setattr(module, name, 0.0)
    return rates


def tensors_of(trainer):
    """Learned tensors and statistics of batch norms by "<network>.<published name>"; the trainer's own, not copies."""
    found = {}
    for name, network in trainer._models.items():
        statistics = [(key, value) for key, value in network.named_buffers() if "running_" in key]
        found |= {f"{name}.{key}": value for key, value in [*network.named_parameters(), *statistics]}
    return found


def logits_of_test_images(trainer, run=None):
    """Logits (N, C) of the test images, in order, from Dassl's evaluator, and the images as a batch."""
    rows, process = [], trainer.evaluator.process
    trainer.evaluator.process = lambda logits, labels: (rows.append(logits.detach()), process(logits, labels))
    (run or partial(trainer.test, split="test"))()
    trainer.evaluator.process = process
    parts = list(trainer.test_loader)
    batch = {key: torch.cat([part[key] for part in parts]) for key in ("img", "label")}
    paths = [path for part in parts for path in part["impath"]]
    assert [CLASSES[label] for label in batch["label"]] == [Path(path).parent.name for path in paths]
    return torch.cat(rows)[-len(paths) :], batch


def record_gradients(trainer):
    """A dict that gets the gradient of each learned tensor when its optimiser steps."""
    found = {}

    def record(name, *_):
        parameters = trainer._models[name].named_parameters()
        found.update({f"{name}.{key}": parameter.grad.clone() for key, parameter in parameters})

    for name in trainer.get_model_names():
        trainer._optims[name].register_step_pre_hook(partial(record, name))
    return found


@pytest.mark.parametrize("name", CASES)
def test_method_equals_reference(build, clips, name):
    case, model = CASES[name], clips[CASES[name].clip][1]
    trainer = build(case)
    assert prepare(trainer) == ({case.dropout} if case.dropout else set())
    ours, gradients, optim = tensors_of(trainer), record_gradients(trainer), trainer.cfg.OPTIM
    learned = {key: value.detach().clone().requires_grad_(value.requires_grad) for key, value in ours.items()}
    optimisers = {}
    end = 32 - PATCH if trainer.cfg.TRAINER.VP.METHOD == "random" else 1
    labels = LABELS[""] if case.trainer == "SPG_CGAN" else LABELS

    def check_logits():
        found, batch = logits_of_test_images(trainer)
        n = len(found)
        batch |= {"noise": reference.image_noise(SEED, range(n)), "places": reference.image_places(SEED, range(n), end)}
        parts = zip(*(value.split(TEST_BATCH) for value in batch.values()), strict=True)
        with torch.no_grad():  # DPL's logits depend on the batch
            expected = [case.expected(model, CLASSES, learned, dict(zip(batch, part, strict=True))) for part in parts]
        close(found, torch.cat([logits for logits, _ in expected]), "logits")

    def check_step(epoch):
        n = 2 * BATCH if case.losses else BATCH
        torch.manual_seed(epoch)
        batch = {"img": torch.randn(n, 3, 32, 32), "label": torch.randint(3, (n,)), "domain": torch.randint(2, (n,))}
        batch["index"] = torch.arange(n)
        trainer.set_model_mode("train")
        torch.manual_seed(epoch)
        found = trainer.forward_backward(dict(batch))
        torch.manual_seed(epoch)
        batch["noise"] = torch.randn(BATCH, 100)
        torch.manual_seed(epoch)
        batch |= {"places": torch.randint(end, (2,)).expand(n, 2), "prompt labels": labels}
        losses = case.losses or (lambda *arguments: [("", "loss", case.expected(*arguments)[1])])
        for network, loss_name, loss in losses(model, CLASSES, learned, batch):
            close(found[loss_name], loss.detach(), loss_name)
            tensors = {key: value for key, value in learned.items() if key.startswith(network) and value.requires_grad}
            for key, gradient in zip(tensors, torch.autograd.grad(loss, tensors.values()), strict=True):
                assert gradient.abs().max() > 0, key
                tensors[key].grad = reference.clipped(gradient, key) if case.is_clipped else gradient
                close(gradients[key], tensors[key].grad, f"gradient of {key}")
            optimiser = optimisers.setdefault(network, reference.optimiser(optim, tensors.values()))
            optimiser.param_groups[0]["lr"] = reference.learning_rate(optim, epoch)
            optimiser.step()
        for key, value in ours.items():
            close(value, learned[key], f"{key} after the step in epoch {epoch}")

    def run_epoch():  # the first one, which ends the training
        check_logits()
        for epoch in range(max(STEPS) + 1):
            if epoch in STEPS:
                check_step(epoch)
            trainer.update_lr()
        check_logits()
        raise EOFError

    trainer.run_epoch, trainer.num_batches, trainer.batch_idx = run_epoch, 100, 0
    with pytest.raises(EOFError):
        trainer.train()


@pytest.mark.parametrize("name", SCHEDULES)
def test_default_optimiser_and_schedule(build, name):
    optim = build(CASES[name]).cfg.OPTIM
    assert {key: optim[key] for key in SCHEDULES[name]} == SCHEDULES[name]
    assert optim.LR_SCHEDULER == "cosine" and optim.WARMUP_RECOUNT
    assert (optim.WARMUP_CONS_LR if optim.WARMUP_TYPE == "constant" else optim.WARMUP_MIN_LR) == 1e-5


@pytest.mark.parametrize(
    ("trainer", "templates"), [("ZeroshotCLIP", (reference.TEMPLATE,)), ("ZeroshotCLIP2", reference.ENSEMBLE)]
)
@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_zero_shot_equals_reference(build, clips, trainer, templates, tower):
    trainer = build(Case(trainer, reference.zero_shot, clip=tower))
    found, batch = logits_of_test_images(trainer, trainer.train)
    close(found, reference.zero_shot(clips[tower][1], CLASSES, batch["img"], templates))


def test_linear_probe_equals_reference(build, clips):
    trainer = build(Case("LinearProbe", reference.linear_probe, flags="--transforms normalize"))
    parts = list(trainer.train_loader_x)
    train = {key: torch.cat([part[key] for part in parts]) for key in ("img", "label", "index")}
    order = train["index"].argsort()
    train = {key: value[order] for key, value in train.items()}
    assert len(order) == len(trainer.dm.dataset.train_x)
    found, batch = logits_of_test_images(trainer, trainer.train)
    close(found, reference.linear_probe(clips["resnet"][1], train, batch["img"]))


def test_spg_pairs_each_batch_with_an_independent_one(build):
    trainer = build(SPG)
    torch.manual_seed(SEED)
    batches, n = [batch["index"] for batch in trainer.train_loader_x], len(trainer.dm.dataset.train_x)
    first, second = (torch.cat([batch[half] for batch in batches]) for half in (slice(BATCH), slice(BATCH, None)))
    assert n % BATCH == 0 and len(batches) == n // BATCH
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(n))  # both cover the training set
    assert all(set(batch[:BATCH].tolist()) != set(batch[BATCH:].tolist()) for batch in batches)


def test_promptsrc_ends_with_the_gaussian_mean_of_its_epochs(build):
    opts = "OPTIM.MAX_EPOCH 3 TRAINER.PROMPTSRC.GPA_MEAN 2 TRAINER.PROMPTSRC.GPA_STD 1.5"
    trainer = build(CASES["PromptSRC"]._replace(opts=opts))
    ours, epochs = tensors_of(trainer), []
    optimiser, steps = trainer._optims["VLPromptLearner"], len(trainer.train_loader_x)
    optimiser.register_step_post_hook(lambda *_: epochs.append({k: v.detach().clone() for k, v in ours.items()}))
    trainer.train()
    weights = torch.exp(-((torch.arange(1, 4) - 2) ** 2) / (2 * 1.5**2))
    for key, value in ours.items():
        ends = torch.stack([tensors[key] for tensors in epochs[steps - 1 :: steps]])
        close(value, torch.tensordot(weights / weights.sum(), ends, 1), key)


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "KgCoOp", "SPG_CoOp", "DPSPG_CoOp", "MaPLe", "PromptSRC"])
def test_context_starts_from_words(build, clips, name):
    tensors = {key.rpartition(".")[2]: value.detach() for key, value in tensors_of(build(CASES[name])).items()}
    texts = {"ctx": "a photo of a", "ctx_pos": "a photo of a", "ctx_neg": "a photo without a"}
    keys = texts.keys() & tensors.keys()
    assert len(keys) == (2 if name == "DPSPG_CoOp" else 1)
    for key in keys:
        words = reference.words(clips[CASES[name].clip][1], texts[key])
        assert torch.equal(tensors[key], words[: 2 if name == "MaPLe" else 4])
