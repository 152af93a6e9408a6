"""One step of each method of the field against its published computation, written out plainly: loss and gradients."""

import pytest
import torch
import torch.nn.functional as F
from clip.clip import tokenize
from dassl.engine import build_trainer
from plain_clip import plain_text_features
from quick_run import command_line

import train as command

BATCH = 6
CLASSES = ["across", "down"]


@pytest.fixture
def build(tmp_path, image_folder, clip_for, monkeypatch):
    """A trainer that is built but not trained, its networks moved from their start: build("KgCoOp", "KEY", "VALUE")."""
    import datasets  # noqa: F401 (registers)
    import trainers.all  # noqa: F401 (registers)

    monkeypatch.chdir(tmp_path)

    def make(trainer, *opts, flags=(), moved=True):
        args = command_line(trainer, "red", *opts, flags=flags, root=image_folder, clip=clip_for(trainer))
        built = build_trainer(command.setup_cfg(command.parse_args(args)))
        torch.manual_seed(2)
        for network in built._models.values() if moved else ():
            for parameter in network.parameters():
                parameter.data.add_(0.02 * torch.randn_like(parameter))
        return built

    return make


def a_batch(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        "img": torch.randn(BATCH, 3, 32, 32, generator=generator),
        "label": torch.tensor([0, 1, 1, 0, 1, 0]),
        "domain": torch.tensor([0, 1, 0, 1, 1, 0]),
        "index": torch.arange(BATCH),
    }


def parameters_of(trainer):
    return {
        f"{name}.{key}": value for name, network in trainer._models.items() for key, value in network.named_parameters()
    }


def assert_step(trainer, reference, tolerance=1e-5):
    """A step has the loss and the gradients of `reference`, called with the batch and copies of what is learned."""
    batch, before = a_batch(), parameters_of(trainer)
    start = {key: value.detach().clone().requires_grad_() for key, value in before.items()}
    trainer.model_update = lambda names=None: None  # so that gradients stay there
    trainer.set_model_mode("train")
    trainer.epoch = trainer.batch_idx = 0
    found = trainer.forward_backward(batch)["loss"]
    loss = reference(batch, start)
    gradients = torch.autograd.grad(loss, list(start.values()))
    assert found == pytest.approx(loss.item(), abs=3 * tolerance)
    assert gradients
    for (key, parameter), expected in zip(before.items(), gradients, strict=True):
        assert expected.abs().max() > 0, key
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(parameter.grad, expected, atol=tolerance * scale, rtol=1e-4)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def cross_entropy(model, features, text_features, labels):
    return F.cross_entropy(model.logit_scale.exp() * features @ text_features.t(), labels)


def fixed_text(model, template="a photo of a {}."):
    return unit(model.encode_text(tokenize([template.format(name) for name in CLASSES])))


def test_kgcoop(build):
    trainer = build("KgCoOp")
    model = trainer.clip_model

    def reference(batch, ours):
        text = plain_text_features(model, CLASSES, ours["prompt_learner.ctx"])
        loss = cross_entropy(model, unit(model.encode_image(batch["img"])), text, batch["label"])
        return loss + 8 * (1 - (text * fixed_text(model)).sum(dim=-1).mean())

    assert_step(trainer, reference)
    assert build("KgCoOp", moved=False).model.ctx.shape == (4, 64)
