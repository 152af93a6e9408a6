"""Checkpoints of methods that publish the whole model, and DPSPG's: misfits, rounded CLIPs, initial prompts.

tests/contracts/test_published_files.py checks the logits of published files.
"""

import copy
import math
from functools import reduce

import pytest
import torch
from reference import tiny_clip

from common.errors import UserError
from trainers.base.checkpoints import check_clip, find_checkpoint
from trainers.modules.clip.backbone import Backbone
from trainers.predictor import Predictor
from trainers.saved_run import build_run

CLASSES = ["across", "down"]
TEST = ["--eval-only", "--model-dir", "theirs", "--output-dir", "other"]


def model_file(clip_model, trainer, learned):
    """A state_dict as in MaPLe's or PromptSRC's repository: all of CLIP in half precision, and the learned tensors."""
    state = {}
    for key, value in clip_model.state_dict().items():
        if key.startswith("visual."):
            state[f"image_encoder.{key.removeprefix('visual.')}"] = value.half()
        elif key == "logit_scale":
            state[key] = value
        elif key != "token_embedding.weight":
            state[f"text_encoder.{key}"] = value.half()
    state |= learned
    if trainer != "VPT":  # the words there, of other classes
        state |= {f"prompt_learner.{key}": torch.zeros(7, 1, 64) for key in ("token_prefix", "token_suffix")}
    return state


def put(path, state):
    """Write a Dassl checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 5, "optimizer": {}, "scheduler": {}, "val_result": None}, path)
    return path


@pytest.fixture
def trained(finish_run):
    """trained("MaPLe") -> (trainer of a finished run, the checkpoint that it uses, the tensors in it)."""

    def get(trainer):
        folder = finish_run(trainer)
        built = build_run(folder)
        path = find_checkpoint(folder, built.NETWORK)
        return built, path, torch.load(path, weights_only=True)["state_dict"]

    return get


# ---- the CLIP in a file ----


@pytest.mark.parametrize("trainer", ["VPT", "MaPLe"])
def test_model_file_with_another_clip_is_an_error(trained, expect_error, tmp_path, trainer):
    built, _, learned = trained(trainer)
    state = model_file(built.clip_model, trainer, learned)
    state["image_encoder.proj"] = state["image_encoder.proj"] + 1
    put(tmp_path / "theirs" / built.NETWORK / "model.pth.tar-5", state)
    message = expect_error(trainer, "red", flags=[*TEST, "--load-epoch", "5"])
    assert "tiny.pt: image_encoder.proj differs" in message and "--backbone" in message


def summed_over_epochs(value, epochs=50, mean=30, std=30):
    """A frozen weight after PromptSRC's sum over epochs, which uses the weight's own precision."""
    weights = [math.exp(-((epoch - mean) ** 2) / (2 * std**2)) for epoch in range(1, epochs + 1)]
    return reduce(torch.add, [value * (weight / sum(weights)) for weight in weights])


def test_clip_in_a_file_of_promptsrc_is_rounded_at_every_epoch(trained, tmp_path, vit_file, image_folder):
    built, _, learned = trained("PromptSRC")
    state = model_file(built.clip_model, "PromptSRC", learned)
    state = {key: summed_over_epochs(value) if value.dtype == torch.half else value for key, value in state.items()}
    state["prompt_learner.ZS_image_encoder.proj"] = state["image_encoder.proj"]  # the frozen tower is there, too
    theirs = tmp_path / "theirs"
    put(theirs / built.NETWORK / "model.pth.tar-5", {f"module.{key}": value for key, value in state.items()})
    paths = sorted((image_folder / "red").rglob("*.png"))
    predictor = Predictor(theirs, CLASSES, vit_file, trainer="PromptSRC")
    for found, expected in zip(predictor(paths), Predictor(tmp_path / "run")(paths), strict=True):
        assert dict(found) == pytest.approx(dict(expected), abs=1e-5)
    state["image_encoder.proj"] = state["image_encoder.proj"] * 1.01
    with pytest.raises(UserError, match="image_encoder.proj differs"):
        check_clip(theirs, state, built.backbone)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_clip_in_half_precision_equals_clip_in_fp32(half):
    model = tiny_clip(vision=2)
    state = model_file(model, "VPT", {"image_encoder.VPT": torch.zeros(4, 64)})
    state = {key: value.float() for key, value in state.items()}
    rounded = copy.deepcopy(model).to(half)
    check_clip("file", state, Backbone(rounded, "tiny", "bf16", torch.device("cpu")))
    with pytest.raises(UserError, match="differs"):
        check_clip("file", state, Backbone(tiny_clip(seed=1, vision=2), "tiny", "fp32", torch.device("cpu")))


# ---- prompts of other settings, sizes and methods ----


@pytest.mark.parametrize("is_model_file", [False, True])
@pytest.mark.parametrize(
    ("trainer", "change", "fix"),
    [
        ("MaPLe", ["MAPLE.PROMPT_DEPTH", 2], "Set TRAINER.MAPLE.PROMPT_DEPTH 12, or"),
        ("MaPLe", ["MAPLE.N_CTX", 3], "Set TRAINER.MAPLE.N_CTX 2, or"),
        ("VPT", ["VPT.PROMPT_DEPTH_VISION", 2], "Set TRAINER.VPT.PROMPT_DEPTH_VISION 1, or"),
        ("PromptSRC", ["PROMPTSRC.N_CTX_VISION", 2], "Set TRAINER.PROMPTSRC.N_CTX_VISION 4, or"),
        ("PromptSRC", ["PROMPTSRC.PROMPT_DEPTH_TEXT", 1], "Set TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 9, or"),
    ],
)
def test_checkpoint_of_another_depth_or_length_names_the_settings(trained, trainer, change, fix, is_model_file):
    built, path, learned = trained(trainer)
    if is_model_file:
        put(path, model_file(built.clip_model, trainer, learned))
    with pytest.raises(UserError) as caught:
        build_run(path.parents[1], opts=[f"TRAINER.{change[0]}", change[1]])
    assert str(caught.value).startswith(str(path.parents[1])) and fix in str(caught.value)


# ---- start from given prompts ----


@pytest.mark.parametrize(("trainer", "is_model_file"), [("MaPLe", True), ("KgCoOp", False)])
def test_training_starts_from_given_prompts(trained, train, tmp_path, trainer, is_model_file):
    built, _, learned = trained(trainer)
    state = learned
    if is_model_file:
        published = {f"prompt_learner.{key.removeprefix('prompt_learner.')}": value for key, value in learned.items()}
        state = model_file(built.clip_model, trainer, published)
    place = put(tmp_path / "theirs" / built.NETWORK / "model.pth.tar-5", state)
    place = place if is_model_file else tmp_path / "theirs"
    opts = "OPTIM.LR", "1e-30", "OPTIM.WARMUP_EPOCH", "-1", "TEST.NO_TEST", "True", "MODEL.INIT_WEIGHTS", str(place)
    assert train(trainer, "red", *opts, flags=["--output-dir", "started"]) == 0
    path = find_checkpoint(tmp_path / "started", built.NETWORK)
    for key, value in torch.load(path, weights_only=True)["state_dict"].items():
        torch.testing.assert_close(value, learned[key].float(), msg=key)
