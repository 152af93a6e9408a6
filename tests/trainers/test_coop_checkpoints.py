"""Checkpoints in CoOp's format: loading, misfits, tests by --eval-only, and trainings that start from them.

tests/contracts/test_published_files.py checks the logits of published files.
"""

import shutil

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from reference import tiny_clip

from common.errors import UserError
from common.run import RunRecord, read_results, read_run_record
from trainers.config import extend_cfg
from trainers.modules.clip.backbone import Backbone
from trainers.saved_run import build_run

META_NET = {
    "meta_net.linear1.weight": (2, 32),
    "meta_net.linear1.bias": (2,),
    "meta_net.linear2.weight": (64, 2),
    "meta_net.linear2.bias": (64,),
}


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip()


@pytest.fixture
def build(clip_model, tmp_path, monkeypatch):
    """A trainer without data: build("CoOp", "KEY", "VALUE")."""
    import trainers.all  # noqa: F401 (registers)

    monkeypatch.chdir(tmp_path)

    def make(name, *opts, classnames=("across", "down")):
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = name, "tiny"
        cfg.merge_from_list(list(opts))
        cfg.freeze()
        backbone = Backbone(clip_model, "tiny", "fp32", torch.device("cpu"))
        return TRAINER_REGISTRY.get(name)(cfg, backbone, list(classnames))

    return make


def save(folder, name="model-best.pth.tar", more=(), ctx=(16, 64), dtype=torch.float16, n_cls=5, prefix=""):
    """Save a checkpoint in CoOp's format; return its state_dict."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"ctx": ctx, "token_prefix": (n_cls, 1, 64), "token_suffix": (n_cls, 76 - ctx[-2], 64), **dict(more)}
    state = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}
    (folder / "prompt_learner").mkdir(parents=True, exist_ok=True)
    content = {"state_dict": {prefix + key: value for key, value in state.items()}, "epoch": 50, "val_result": None}
    torch.save(content, folder / "prompt_learner" / name)
    return state


def ctx_of(path):
    return torch.load(path, weights_only=True)["state_dict"]["ctx"]


# ---- load ----


def test_coop_checkpoint_with_data_parallel_names_loads_in_fp32(build, tmp_path):
    state = save(tmp_path, prefix="module.")
    trainer = build("CoOp", "TRAINER.COOP.N_CTX", "16")
    trainer.load_model(str(tmp_path))
    assert trainer.model.ctx.dtype == torch.float32
    torch.testing.assert_close(trainer.model.ctx.detach(), state["ctx"].float())
    assert trainer.text_features(None, None).shape == (2, 32)  # of the classes here, not of the five there


def test_class_specific_contexts_load_for_their_classes_alone(build, tmp_path):
    state = save(tmp_path, ctx=(2, 16, 64), n_cls=2)
    trainer = build("CoOp", "TRAINER.COOP.CSC", "True", classnames=["cat", "dog"])
    trainer.load_model(str(tmp_path))
    torch.testing.assert_close(trainer.model.ctx.detach(), state["ctx"].float())
    with pytest.raises(UserError, match=r"it holds ctx \(2, 16, 64\) where CoOp has ctx \(3, 16, 64\)"):
        build("CoOp", "TRAINER.COOP.CSC", "True", classnames=["a", "b", "c"]).load_model(str(tmp_path))
    RunRecord({"class names": ["cat", "dog"]}).write(tmp_path)
    trainer.load_model(str(tmp_path))
    with pytest.raises(UserError, match="knows only the classes of its training, cat, dog, not dog, cat"):
        build("CoOp", "TRAINER.COOP.CSC", "True", classnames=["dog", "cat"]).load_model(str(tmp_path))


NARROW = {**META_NET, "meta_net.linear1.weight": (2, 48)}
CLASSES = {"ctx": (2, 16, 64)}
COCOOP = {"more": META_NET}


@pytest.mark.parametrize(
    ("saved", "trainer", "opts", "message"),
    [
        ({}, "CoOp", ["COOP.N_CTX", "8"], "Set TRAINER.COOP.N_CTX 16, or"),
        # Initial words say how many there are, so they have to go.
        ({}, "CoOp", ["COOP.CTX_INIT", "a photo of a"], 'Set TRAINER.COOP.N_CTX 16 TRAINER.COOP.CTX_INIT "", or'),
        ({**COCOOP, "ctx": (4, 64)}, "CoCoOp", [], "Set TRAINER.COCOOP.N_CTX 4, or"),
        (CLASSES, "CoOp", [], "Set TRAINER.COOP.CSC True, or"),
        ({}, "CoOp", ["COOP.CSC", "True"], "Set TRAINER.COOP.CSC False, or"),
        ({**COCOOP, **CLASSES}, "CoCoOp", [], r"it holds ctx \(2, 16, 64\) where CoCoOp has ctx \(16, 64\)"),
        (COCOOP, "CoOp", [], "it holds meta_net.linear1.bias .* where CoOp has none. Name its method"),
        ({}, "CoCoOp", [], "it holds none where CoCoOp has meta_net"),
        ({"more": NARROW}, "CoCoOp", [], r"it holds meta_net.linear1.weight \(2, 48\) where .* Name its method"),
        ({"ctx": (16, 512)}, "CoOp", [], r"it holds ctx \(16, 512\) where .* Name its method, backbone"),
    ],
)
def test_checkpoint_that_does_not_fit_names_the_settings_that_do(build, tmp_path, saved, trainer, opts, message):
    save(tmp_path, **saved)
    opts = [f"TRAINER.{one}" if i % 2 == 0 else one for i, one in enumerate(opts)]
    with pytest.raises(UserError, match=message):
        build(trainer, *opts).load_model(str(tmp_path))


def test_missing_epoch_is_an_error_with_the_saved_ones(build, tmp_path):
    save(tmp_path, "model.pth.tar-9")
    with pytest.raises(UserError, match=r"model.pth.tar-7. There are .* these epochs: 9 \(--load-epoch\)"):
        build("CoOp").load_model(str(tmp_path), epoch=7)


# ---- test ----


def test_eval_only_records_the_settings_of_training(train, tmp_path):
    opts = ("TEST.FINAL_MODEL", "last_step", "DATASET.NUM_SHOTS", "2", "TRAIN.CHECKPOINT_FREQ", "1")
    assert train("CoOp", "red", *opts, "OPTIM.LR", "1.0") == 0
    run = read_results(tmp_path / "run/results.json")

    def tested(name, *more, model="run"):
        flags = ["--eval-only", "--model-dir", model, "--output-dir", name, *more]
        assert train("CoOp", "red", flags=flags) == 0
        return read_results(tmp_path / name / "results.json")

    found = tested("a")
    for key in ("selection", "num_shots", "data_fingerprint", "test_fingerprint", "accuracy"):
        assert found[key] == run[key], key
    assert (found["selection"], found["num_shots"]) == ("last_step", 2)
    # A model without a run record, like CoOp's own.
    shutil.copytree(tmp_path / "run/prompt_learner", tmp_path / "theirs/prompt_learner")
    found = tested("b", model="theirs")
    assert (found["selection"], found["num_shots"], found["data_fingerprint"]) == ("last_step", "unknown", "unknown")
    # The tested epoch is the one that is built again.
    assert tested("c", "--load-epoch", "1")["selection"] == "epoch 1"
    first, last = (ctx_of(tmp_path / f"run/prompt_learner/model.pth.tar-{epoch}") for epoch in (1, 2))
    assert not torch.equal(first, last)
    torch.testing.assert_close(build_run(tmp_path / "c").model.ctx.detach(), first, atol=0, rtol=0)
    torch.testing.assert_close(build_run(tmp_path / "a").model.ctx.detach(), last, atol=0, rtol=0)


# ---- start from given prompts ----


def start(train, trainer, place, *opts, out="run"):
    """Exit code of a run with steps that are too small to change anything."""
    node = {"CoOp": "COOP", "CoCoOp": "COCOOP", "SPG_CoOp": "SPG"}[trainer]
    words = [f"TRAINER.{node}.N_CTX", "16", f"TRAINER.{node}.CTX_INIT", "", "MODEL.INIT_WEIGHTS", str(place)]
    words += ["OPTIM.LR", "1e-30", "OPTIM.WARMUP_EPOCH", "-1", "OPTIM.MAX_EPOCH", "1", "TEST.NO_TEST", "True", *opts]
    words += ["DATASET.SOURCE_DOMAINS", "['red']"] if trainer == "SPG_CoOp" else []
    return train(trainer, "red", *words, flags=["--output-dir", out])


@pytest.mark.parametrize(
    ("trainer", "place"),
    [("CoOp", "bare.pt"), ("CoCoOp", "theirs/prompt_learner/model.pth.tar-50"), ("SPG_CoOp", "theirs")],
)
def test_training_starts_from_given_prompts(train, tmp_path, trainer, place):
    state = save(tmp_path / "theirs", "model.pth.tar-50", META_NET if trainer == "CoCoOp" else ())
    torch.save(state, tmp_path / "bare.pt")
    assert start(train, trainer, place) == 0
    learned = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-1", weights_only=True)["state_dict"]
    for key, value in learned.items():
        torch.testing.assert_close(value, state[key].float(), msg=key)


def test_initial_weights_are_part_of_the_identity_by_their_content(train, tmp_path, capsys):
    def unfinish(folder):
        record = read_run_record(folder)
        record.training = None
        record.write(folder)

    save(tmp_path / "theirs", "model.pth.tar-50")
    save(tmp_path / "others", "model.pth.tar-50", dtype=torch.float32)
    assert start(train, "CoOp", "theirs") == 0
    shutil.move(tmp_path / "theirs", tmp_path / "moved")
    unfinish(tmp_path / "run")
    assert start(train, "CoOp", "moved") == 0
    unfinish(tmp_path / "run")
    capsys.readouterr()
    assert start(train, "CoOp", "others") == 1
    assert "with other settings or data: MODEL.INIT_WEIGHTS " in capsys.readouterr().err
    assert build_run(tmp_path / "run").model.ctx.shape == (16, 64)  # which does not need them any more
