"""CoOp and CoCoOp follow the published computation, written out plainly, step by step."""

import math

import pytest
import torch
import torch.nn.functional as F
from dassl.engine import build_trainer
from plain_clip import plain_text_features
from quick_run import REPOSITORY, command_line

import train as command

EPOCHS, STEPS, BATCH = 4, 3, 6
TOLERANCE = 1e-5


@pytest.fixture
def build(tmp_path, image_folder, clip_file, monkeypatch):
    """A trainer with its published schedule, built but not trained: build("CoOp", "KEY", "VALUE")."""
    import datasets  # noqa: F401 (registers)
    import trainers.all  # noqa: F401 (registers)

    monkeypatch.chdir(tmp_path)

    def make(trainer, *opts):
        flags = ["--config-file", str(REPOSITORY / f"configs/trainers/{trainer}/default.yaml")]
        opts = ["OPTIM.MAX_EPOCH", str(EPOCHS), *opts]
        args = command_line(trainer, "red", *opts, flags=flags, root=image_folder, clip=clip_file)
        return build_trainer(command.setup_cfg(command.parse_args(args)))

    return make


def batches():
    """Fixed batches of images, the same in each epoch."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "img": torch.randn(BATCH, 3, 32, 32, generator=generator),
            "label": torch.randint(2, (BATCH,), generator=generator),
            "index": torch.arange(BATCH),
        }
        for _ in range(STEPS)
    ]


def learning_rate(epoch):
    """Dassl's cosine schedule behind one warm-up epoch: 1e-5, then from 2e-3 downwards."""
    return 1e-5 if epoch == 0 else 1e-3 * (1 + math.cos(math.pi * (epoch - 1) / EPOCHS))


def our_steps(trainer):
    """(loss, copies of the parameters) after each step of the trainer's own epochs."""
    found, forward_backward = [], trainer.forward_backward

    def step(batch):
        summary = forward_backward(batch)
        found.append((summary["loss"], {k: v.clone() for k, v in trainer.model.state_dict().items()}))
        return summary

    trainer.forward_backward, trainer.train_loader_x = step, batches()
    for trainer.epoch in range(EPOCHS):
        trainer.before_epoch()
        trainer.run_epoch()
    return found


def published_steps(trainer, parameters, text_features):
    """The same by SGD as PyTorch has it, on cross-entropy of exp(s) f . t.

    Args:
        parameters: name -> tensor, what is learned.
        text_features: called with image features (B, E); returns (C, E) or (B, C, E).
    """
    clip_model = trainer.clip_model
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    found = []
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = learning_rate(epoch)
        for batch in batches():
            features = clip_model.encode_image(batch["img"])
            features = features / features.norm(dim=-1, keepdim=True)
            scaled = clip_model.logit_scale.exp() * features
            words = text_features(features)
            if words.dim() == 2:
                logits = scaled @ words.t()
            else:  # CoCoOp goes through the images one by one
                logits = torch.stack(
                    [image @ words_of_it.t() for image, words_of_it in zip(scaled, words, strict=True)]
                )
            loss = F.cross_entropy(logits, batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append((loss.item(), {k: v.detach().clone() for k, v in parameters.items()}))
    return found


def assert_same(ours, published, start):
    assert len(ours) == len(published) == EPOCHS * STEPS
    for step, ((loss, state), (expected_loss, expected)) in enumerate(zip(ours, published, strict=True)):
        # Its logits are 14 times the cosines, and so are single precision's last digits.
        assert loss == pytest.approx(expected_loss, abs=3 * TOLERANCE), step
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, atol=TOLERANCE, rtol=0, msg=lambda m: f"step {step}: {m}")  # noqa: B023
    for key, value in start.items():  # it went far enough for a mistake to show
        assert (ours[-1][1][key] - value).abs().max() > 30 * TOLERANCE, key


@pytest.mark.parametrize("class_specific", ["False", "True"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_coop(build, position, class_specific):
    trainer = build(
        "CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", position, "TRAINER.COOP.CSC", class_specific,
        "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "5",
    )  # fmt: skip
    start = {"ctx": trainer.model.ctx.detach().clone()}
    assert start["ctx"].shape == ((2, 5, 64) if class_specific == "True" else (5, 64))
    ctx = start["ctx"].clone().requires_grad_()
    names = trainer.dm.dataset.classnames
    published = published_steps(
        trainer, {"ctx": ctx}, lambda features: plain_text_features(trainer.clip_model, names, ctx, position)
    )
    assert_same(our_steps(trainer), published, start)


def test_cocoop(build):
    trainer = build("CoCoOp")
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    assert start["meta_net.linear1.weight"].shape == (32 // 16, 32)
    assert start["meta_net.linear2.weight"].shape == (64, 32 // 16)
    own = {key: value.clone().requires_grad_() for key, value in start.items()}

    def text_features(features):
        hidden = F.relu(features @ own["meta_net.linear1.weight"].t() + own["meta_net.linear1.bias"])
        shifts = hidden @ own["meta_net.linear2.weight"].t() + own["meta_net.linear2.bias"]
        names = trainer.dm.dataset.classnames
        return torch.stack([plain_text_features(trainer.clip_model, names, own["ctx"] + shift) for shift in shifts])

    published = published_steps(trainer, own, text_features)
    assert_same(our_steps(trainer), published, start)
