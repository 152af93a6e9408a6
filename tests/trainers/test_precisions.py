"""fp16 and amp against fp32 on the CPU: features, logits, first steps, runs, resumed runs.

On a CPU the product falls back to fp32. These tests disable the fallback, so each path runs on any machine; amp has its
GPU type. With the mark `gpu`, the same tests run in all precisions on CUDA.
"""

import math
import shutil
from typing import NamedTuple

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import set_random_seed
from quick_run import outcome
from torch import nn

import trainers.all
from common.image_results import read_predictions
from common.reproducible import make_deterministic
from trainers.methods import METHODS
from trainers.modules.cgan import Generator

TRAINERS = {method.trainer for method in METHODS}
TWO_STAGES, SECOND_STAGES = {"SPG", "DPSPG"}, {"SPG_CGAN", "DPSPG_TRANSFORMER"}
STEPWISE = TRAINERS - {"ZeroshotCLIP", "ZeroshotCLIP2", "LinearProbe"}
FLAGS = dict.fromkeys(("SPG_CoOp", "DPSPG_CoOp"), ["--source-domains", "red"])


class Tolerance(NamedTuple):
    """How far a precision may be from fp32 on the CPU: numbers of a feature (norm 1), a loss, a network's change.

    The last two are relative.
    """

    feature: float
    loss: float
    change: float


TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-3, 0.05),
    "fp16": Tolerance(2e-3, 5e-3, 0.1),
    "bf16": Tolerance(2e-2, 5e-2, 0.4),
    "amp": Tolerance(2e-3, 5e-3, 0.1),
}

CUDA = [pytest.param("cuda", precision, marks=pytest.mark.gpu) for precision in TOLERANCES]
# A precision with a loss scale and one without cover the branches on a CPU.
everywhere = pytest.mark.parametrize(
    ("device", "precision"), [*(pytest.param("cpu", precision) for precision in ("fp16", "amp")), *CUDA]
)


@pytest.fixture(autouse=True)
def exact_precision(monkeypatch):
    """Compute in the configured precision: no fallback to fp32 on a CPU, no TF32 on a GPU."""
    monkeypatch.setattr("trainers.modules.clip.backbone.effective_precision", lambda precision, device: precision)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    make_deterministic()
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    yield
    torch.set_autocast_dtype("cpu", before)


def settings(trainer, device, precision):
    node = TRAINER_REGISTRY.get(trainer).NODE
    return [f"TRAINER.{node}.PREC", precision, "USE_CUDA", str(device == "cuda")]


@pytest.fixture
def build_in(build):
    """An untrained trainer in a precision: build_in("CoOp", "cpu", "fp16", "KEY", "VALUE")."""

    def make(trainer, device, precision, *opts):
        set_random_seed(1)
        found = build(trainer, *settings(trainer, device, precision), *opts, flags=FLAGS.get(trainer, ()))
        assert (found.device.type, found.backbone.precision) == (device, precision)
        return found

    return make


# ---- evaluation ----


def evaluated(trainer):
    """Features (N, E) of the test images, and their logits (N, C) over CLIP's scale."""
    trainer.set_model_mode("eval")
    features = torch.tensor(trainer.image_features.of_split(trainer.test_loader, "test"))
    with torch.no_grad():
        logits = trainer.classifier()(features.to(trainer.device), range(len(features)))
    assert logits.dtype == torch.float32
    return features, (logits / trainer.clip_model.logit_scale.exp()).cpu()


# ---- training ----


def first_steps(trainer, n_epochs=2):
    """Losses of each step of the first epochs, and the change of each network as one vector."""
    before = {name: parameters(network) for name, network in trainer._models.items()}
    losses = []
    trainer.set_model_mode("train")
    torch.manual_seed(1)
    for epoch in range(n_epochs):
        trainer.epoch, trainer.num_batches = epoch, len(trainer.train_loader_x)
        for trainer.batch_idx, batch in enumerate(trainer.train_loader_x):  # noqa: B020
            found = trainer.forward_backward(batch)
            losses.append({name: value for name, value in found.items() if name.startswith("loss")})
        trainer.update_lr()
    return losses, {name: parameters(network) - before[name] for name, network in trainer._models.items()}


def parameters(network):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in network.parameters()])


def take_the_same_draws(trainer, monkeypatch):
    """Remove the effects of the device's random numbers and of amp's initial loss scale."""

    def forward(self, features, noise=None):
        if noise is None:
            noise = torch.randn(len(features), self.latent_dim).to(features.device)
        return generate(self, features, noise)

    generate = Generator.forward
    monkeypatch.setattr(Generator, "forward", forward)
    for network in trainer._models.values():
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
    if trainer.scaler is not None:
        trainer.scaler = torch.amp.GradScaler(trainer.device.type, init_scale=256.0)


@pytest.mark.parametrize("trainer", sorted(TRAINERS - TWO_STAGES))
@everywhere
def test_logits_and_first_steps_of_each_trainer_stay_close_to_fp32(build_in, monkeypatch, device, precision, trainer):
    tolerance = TOLERANCES[precision]
    plain, other = build_in(trainer, "cpu", "fp32"), build_in(trainer, device, precision)
    for name, network in plain._models.items():
        other._models[name].load_state_dict(network.state_dict())
    for expected, found in zip(evaluated(plain), evaluated(other), strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance.feature, rtol=0)
    if trainer not in STEPWISE:
        return

    results = []
    for one in (plain, other):
        with monkeypatch.context() as patch:
            take_the_same_draws(one, patch)
            shape = (2 if trainer.startswith("DPSPG") else 1, 3, 4, 64)
            one.prompt_labels = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(one.device)
            results.append(first_steps(one))
    (expected_losses, expected_changes), (losses, changes) = results
    assert len(losses) >= 2
    for found, expected in zip(losses, expected_losses, strict=True):
        assert found == pytest.approx(expected, rel=tolerance.loss)
    for name, expected in expected_changes.items():
        assert expected.norm() > 0
        assert (changes[name] - expected).norm() < tolerance.change * expected.norm(), name


class Stopped(BaseException):
    """Takes the place of a signal: nothing handles it."""


def stop(name, monkeypatch):
    """Stop runs of a trainer before their second epoch or their test, whichever is first."""
    trainer = TRAINER_REGISTRY.get(name)
    run_epoch, test = trainer.run_epoch, trainer.test

    def stop_at(is_reached, method):
        def call(self, *args, **kwargs):
            if type(self) is trainer and is_reached(self, *args, **kwargs):
                raise Stopped
            return method(self, *args, **kwargs)

        return call

    monkeypatch.setattr(trainer, "run_epoch", stop_at(lambda self: self.epoch == 1, run_epoch))
    monkeypatch.setattr(trainer, "test", stop_at(lambda self, split=None: split != "val", test))


RESUMED = [pytest.param("cpu", "amp", trainer) for trainer in ("CoOp", "DPL", "DPSPG", "PromptSRC", "SPG")]
RESUMED += [
    pytest.param("cuda", precision, trainer, marks=pytest.mark.gpu)
    for precision in TOLERANCES
    for trainer in sorted(TRAINERS - SECOND_STAGES)
]


@pytest.mark.parametrize(("device", "precision", "trainer"), RESUMED)
def test_run_in_each_precision_and_its_resumed_run_are_equal(train, tmp_path, monkeypatch, device, precision, trainer):
    run, flags = tmp_path / "run", FLAGS.get(trainer, ())
    # Enough steps that amp's scale has come to fit, and begins to count, before the run is stopped.
    opts = [*settings(trainer, device, precision), "DATALOADER.TRAIN_X.BATCH_SIZE", "2"]
    assert train(trainer, "red", *opts, flags=flags) == 0
    expected = outcome(run)
    assert expected["precision"] == precision
    assert len(read_predictions(run / "predictions.csv")) == expected["n_test"] == 10
    losses = [value for epoch in expected["loss_history"] for value in epoch.values()]
    assert all(map(math.isfinite, losses)) and bool(losses) == (trainer in STEPWISE)

    shutil.rmtree(run)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop(trainer, patch)
        train(trainer, "red", *opts, flags=flags)
    assert train(trainer, "red", *opts, flags=flags) == 0
    assert outcome(run) == expected
