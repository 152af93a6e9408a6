"""Published checkpoints of other methods: evaluation, prediction, initialisation, and misfits."""

import copy
import math
import shutil
from functools import reduce

import pytest
import torch
from reference import tiny_clip
from torch import nn

from common.errors import UserError
from trainers.base.checkpoints import check_clip
from trainers.modules.clip.backbone import Backbone
from trainers.predictor import Predictor
from trainers.saved_run import build_run

DEPTH, CLASSES = 3, ["across", "down"]
DEEP = {
    "VPT": ["VPT.PROMPT_DEPTH_VISION"],
    "MaPLe": ["MAPLE.PROMPT_DEPTH"],
    "PromptSRC": ["PROMPTSRC.PROMPT_DEPTH_VISION", "PROMPTSRC.PROMPT_DEPTH_TEXT"],
}
LAST = "model.pth.tar-2"  # of runs of two epochs


def options(trainer):
    """Prompts in three layers."""
    return [word for key in DEEP[trainer] for word in (f"TRAINER.{key}", str(DEPTH))]


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


def put(folder, network, state, name="model.pth.tar-5"):
    """Write a Dassl checkpoint as the last one of a network."""
    path = folder / network / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": state, "epoch": 5, "optimizer": {}, "scheduler": {}, "val_result": None}
    torch.save(content, path)
    return path


def learned_by(folder, network):
    return torch.load(folder / network / LAST, weights_only=True)["state_dict"]


@pytest.mark.parametrize("trainer", DEEP)
def test_model_file_with_another_clip_is_an_error(finish_run, expect_error, tmp_path, trainer):
    opts = options(trainer)
    folder = finish_run(trainer, *opts, "TEST.FINAL_MODEL", "last_step")
    built = build_run(folder)
    state = model_file(built.clip_model, trainer, learned_by(folder, built.NETWORK))
    state["image_encoder.proj"] = state["image_encoder.proj"] + 1
    put(tmp_path / "theirs", built.NETWORK, state)
    flags = ["--eval-only", "--model-dir", "theirs", "--load-epoch", "5", "--output-dir", "other"]
    message = expect_error(trainer, "red", *opts, flags=flags)
    assert "tiny.pt: image_encoder.proj differs" in message and "--backbone" in message


def summed_over_epochs(value, epochs=50, mean=30, std=30):
    """A frozen weight after PromptSRC's sum over epochs, which uses the weight's own precision."""
    weights = [math.exp(-((epoch - mean) ** 2) / (2 * std**2)) for epoch in range(1, epochs + 1)]
    return reduce(torch.add, [value * (weight / sum(weights)) for weight in weights])


def test_clip_in_a_file_of_promptsrc_is_rounded_at_every_epoch(finish_run, tmp_path, vit_file, image_folder):
    folder = finish_run("PromptSRC", *options("PromptSRC"), "TEST.FINAL_MODEL", "last_step")
    built = build_run(folder)
    state = model_file(built.clip_model, "PromptSRC", learned_by(folder, built.NETWORK))
    state = {key: summed_over_epochs(value) if value.dtype == torch.half else value for key, value in state.items()}
    state["prompt_learner.ZS_image_encoder.proj"] = state["image_encoder.proj"]  # the frozen tower is there, too
    theirs = tmp_path / "theirs"
    put(theirs, built.NETWORK, {f"module.{key}": value for key, value in state.items()})
    paths = sorted((image_folder / "red").rglob("*.png"))
    predictor = Predictor(theirs, CLASSES, vit_file, trainer="PromptSRC")
    for found, expected in zip(predictor(paths), Predictor(folder)(paths), strict=True):
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


@pytest.mark.parametrize(
    ("trainer", "change", "fix"),
    [
        (
            "MaPLe",
            ["TRAINER.MAPLE.PROMPT_DEPTH", 2],
            "Set TRAINER.MAPLE.PROMPT_DEPTH 3, or",
        ),
        ("MaPLe", ["TRAINER.MAPLE.N_CTX", 3], "Set TRAINER.MAPLE.N_CTX 2, or"),
        ("VPT", ["TRAINER.VPT.PROMPT_DEPTH_VISION", 1], "Set TRAINER.VPT.PROMPT_DEPTH_VISION 3, or"),
        ("VPT", ["TRAINER.VPT.N_CTX_VISION", 9], "Set TRAINER.VPT.N_CTX_VISION 10, or"),
        ("PromptSRC", ["TRAINER.PROMPTSRC.N_CTX_VISION", 2], "Set TRAINER.PROMPTSRC.N_CTX_VISION 4, or"),
        ("PromptSRC", ["TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 1], "Set TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 3, or"),
    ],
)
@pytest.mark.parametrize("is_model_file", [False, True])
def test_checkpoint_of_another_depth_or_length_names_the_settings(
    finish_run, tmp_path, trainer, change, fix, is_model_file
):
    folder = finish_run(trainer, *options(trainer), "TEST.FINAL_MODEL", "last_step")
    if is_model_file:
        built = build_run(folder)
        put(folder, built.NETWORK, model_file(built.clip_model, trainer, learned_by(folder, built.NETWORK)), LAST)
    with pytest.raises(UserError) as caught:
        build_run(folder, opts=change)
    assert str(caught.value).startswith(str(folder)) and fix in str(caught.value)


@pytest.mark.parametrize("trainer", DEEP)
def test_checkpoint_of_another_width_is_an_error(finish_run, trainer):
    """The file has the learned keys alone, so no CLIP in it shows its width."""
    folder = finish_run(trainer, *options(trainer), "TEST.FINAL_MODEL", "last_step")
    network = build_run(folder).NETWORK
    narrow = {
        key: value[..., :-8].clone() if value.dim() > 1 else value for key, value in learned_by(folder, network).items()
    }
    put(folder, network, narrow, LAST)
    with pytest.raises(UserError, match="does not fit this run: it holds .* Name its method, backbone"):
        build_run(folder)


def test_model_file_of_another_method_is_an_error(finish_run, tmp_path):
    folder = finish_run("MaPLe", *options("MaPLe"), "TEST.FINAL_MODEL", "last_step")
    built = build_run(folder)
    tokens = {"image_encoder.VPT": torch.zeros(4, 64)}
    put(folder, built.NETWORK, model_file(built.clip_model, "VPT", tokens), LAST)
    with pytest.raises(UserError, match="does not fit this run: it holds none where MaPLe has compound_"):
        build_run(folder)


class Encoder(nn.Module):
    """DPSPG's network as its authors have it."""

    def __init__(self, rows):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 8, 2048)
        self.transformer_encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.fc = nn.Linear(32, rows * 64)


def test_dpspg_file_that_does_not_fit_is_an_error(expect_error, tmp_path):
    theirs = {name: Encoder(4) for name in ("posencoder", "negencoder")}
    for name, network in theirs.items():
        put(tmp_path / "theirs", name, network.state_dict(), "model-best.pth.tar")
    flags = ["--eval-only", "--model-dir", "theirs", "--output-dir", "other"]
    put(tmp_path / "theirs", "posencoder", Encoder(7).state_dict(), "model-best.pth.tar")
    message = expect_error("DPSPG_TRANSFORMER", "red", flags=flags)
    assert "posencoder" in message and "fc.weight (448, 32)" in message
    assert "classes and settings" in message
    (tmp_path / "theirs/negencoder/model-best.pth.tar").unlink()
    put(tmp_path / "theirs", "posencoder", theirs["posencoder"].state_dict(), "model-best.pth.tar")
    assert "theirs/negencoder/model-best.pth.tar" in expect_error("DPSPG_TRANSFORMER", "red", flags=flags)


@pytest.mark.parametrize(
    "place", ["{sign}/stripes/tiny/seed_7", "stripes/tiny/seed_7/{sign}", "{sign}/stripes/tiny", "stripes/{sign}/tiny"]
)
def test_dpspg_published_labels_of_both_signs_load(finish_run, train, tmp_path, capsys, place):
    """Bare tensors, named by domain code, in one folder for each sign."""
    finish_run("DPSPG")
    found = {path: torch.load(path, weights_only=True)["ctx"] for path in (tmp_path / "prompt_labels").rglob("*.pt")}
    assert len(found) == 4
    for path, ctx in found.items():
        sign = path.relative_to(tmp_path / "prompt_labels").parts[0]
        folder = tmp_path / "theirs" / place.format(sign=sign)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(ctx.half(), folder / f"stripes_CoOp_{path.stem}.pt")
    shutil.rmtree(tmp_path / "prompt_labels")
    opts = "TRAINER.DPSPG.LABEL_DIR", "theirs", "TRAINER.DPSPG.LABEL_SEED", "7"
    capsys.readouterr()
    assert train("DPSPG", "red", *opts, flags=["--output-dir", "b"]) == 0
    printed = capsys.readouterr().out
    assert "Stage I:" not in printed and printed.count("Prompt label of ") == 4


@pytest.mark.parametrize("trainer", ["MaPLe", "KgCoOp"])
@pytest.mark.parametrize("is_model_file", [False, True])
def test_training_starts_from_given_prompts(finish_run, train, tmp_path, trainer, is_model_file):
    opts = options(trainer) if trainer in DEEP else []
    folder = finish_run(trainer, *opts, "TEST.FINAL_MODEL", "last_step")
    built = build_run(folder)
    learned = learned_by(folder, built.NETWORK)
    state = learned
    if is_model_file:
        published = {f"prompt_learner.{key.removeprefix('prompt_learner.')}": value for key, value in learned.items()}
        state = model_file(built.clip_model, "MaPLe", published)
    path = put(tmp_path / "theirs", built.NETWORK, state)
    tiny_steps = (
        "OPTIM.LR",
        "1e-30",
        "OPTIM.WARMUP_EPOCH",
        "-1",
        "OPTIM.MAX_EPOCH",
        "2",
        "TEST.FINAL_MODEL",
        "last_step",
    )
    for place, name in ((path, "from_file"), (tmp_path / "theirs", "from_folder")):
        start = "MODEL.INIT_WEIGHTS", str(place), "TEST.NO_TEST", "True"
        assert train(trainer, "red", *opts, *tiny_steps, *start, flags=["--output-dir", name]) == 0
        for key, value in learned_by(tmp_path / name, built.NETWORK).items():
            torch.testing.assert_close(value, learned[key].float(), msg=key)
        assert "MODEL.INIT_WEIGHTS" in (tmp_path / name / "run.json").read_text()


def test_dpl_test_with_another_length_names_the_setting(finish_run, expect_error):
    finish_run("DPL")
    test = ["--eval-only", "--model-dir", "run", "--output-dir", "b"]
    message = expect_error("DPL", "red", "TRAINER.DPL.N_CTX", "7", flags=test)
    assert "Set TRAINER.DPL.N_CTX 4, or" in message
