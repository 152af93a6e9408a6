"""Checkpoints of CoOp and CoCoOp: other class names, half precision, and misfits."""

import shutil

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from reference import tiny_clip
from torch import nn

from common.errors import UserError
from common.run import RunRecord, read_results, read_run_record
from trainers.config import extend_cfg
from trainers.modules.clip.backbone import Backbone
from trainers.saved_run import build_run

CLASSES = ["across", "down"]
COOP_CLASSES = 5  # that the saved models were trained on


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip()


@pytest.fixture
def build(clip_model, tmp_path, monkeypatch):
    """A trainer without data: build("CoOp", "KEY", "VALUE")."""
    import trainers.all  # noqa: F401 (registers)

    monkeypatch.chdir(tmp_path)

    def make(name, *opts, classnames=CLASSES):
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = name, "tiny"
        cfg.merge_from_list(list(opts))
        cfg.freeze()
        return TRAINER_REGISTRY.get(name)(cfg, Backbone(clip_model, "tiny", "fp32", torch.device("cpu")), classnames)

    return make


def save(folder, name, more=(), ctx=(16, 64), dtype=torch.float16, n_cls=COOP_CLASSES):
    """Save a checkpoint in CoOp's format; return its state_dict."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    n_ctx = ctx[-2]
    state = {"ctx": drawn(*ctx), "token_prefix": drawn(n_cls, 1, 64), "token_suffix": drawn(n_cls, 76 - n_ctx, 64)}
    state |= {key: drawn(*shape) for key, shape in dict(more).items()}
    network = nn.Linear(2, 2)
    cfg = get_cfg_default()
    optimizer = build_optimizer(network, cfg.OPTIM)
    content = {
        "state_dict": state,
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": build_lr_scheduler(optimizer, cfg.OPTIM).state_dict(),
        "val_result": None,
    }
    (folder / "prompt_learner").mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "prompt_learner" / name)
    return state


META_NET = {
    "meta_net.linear1.weight": (2, 32),
    "meta_net.linear1.bias": (2,),
    "meta_net.linear2.weight": (64, 2),
    "meta_net.linear2.bias": (64,),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("name", "epoch"), [("model-best.pth.tar", None), ("model.pth.tar-50", 50)])
def test_coop_checkpoint_of_any_dtype_loads_in_fp32(build, tmp_path, name, epoch, dtype):
    state = save(tmp_path, name, dtype=dtype)
    trainer = build("CoOp", "TRAINER.COOP.N_CTX", "16")
    trainer.load_model(str(tmp_path), epoch=epoch)
    assert trainer.model.ctx.dtype == torch.float32
    torch.testing.assert_close(trainer.model.ctx.detach(), state["ctx"].float())
    assert trainer.text_features(None, None).shape == (2, 32)  # of the classes here, not of the five there


def test_checkpoint_with_schedule_objects_loads(build, tmp_path):
    # Dassl.pytorch pickles the scheduler, with its optimizer, into the checkpoint.
    state = save(tmp_path, "model-best.pth.tar")
    path = tmp_path / "prompt_learner" / "model-best.pth.tar"
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    torch.save({**torch.load(path, weights_only=True), "scheduler": {"successor": schedule}}, path)
    trainer = build("CoOp")
    trainer.load_model(str(tmp_path))
    torch.testing.assert_close(trainer.model.ctx.detach(), state["ctx"].float())


def test_checkpoint_with_class_specific_contexts_loads(build, tmp_path):
    state = save(tmp_path, "model-best.pth.tar", ctx=(2, 16, 64), n_cls=2)
    trainer = build("CoOp", "TRAINER.COOP.CSC", "True", classnames=["cat", "dog"])
    trainer.load_model(str(tmp_path))
    torch.testing.assert_close(trainer.model.ctx.detach(), state["ctx"].float())
    with pytest.raises(UserError, match=r"it holds ctx \(2, 16, 64\) where CoOp has ctx \(3, 16, 64\)"):
        build("CoOp", "TRAINER.COOP.CSC", "True", classnames=["a", "b", "c"]).load_model(str(tmp_path))
    with pytest.raises(UserError, match="Set TRAINER.COOP.CSC True, or"):
        build("CoOp").load_model(str(tmp_path))
    save(tmp_path, "model-best.pth.tar")
    with pytest.raises(UserError, match="Set TRAINER.COOP.CSC False, or"):
        trainer.load_model(str(tmp_path))
    save(tmp_path, "model-best.pth.tar", META_NET, ctx=(2, 16, 64))
    with pytest.raises(UserError, match=r"it holds ctx \(2, 16, 64\) where CoCoOp has ctx \(16, 64\)"):
        build("CoCoOp").load_model(str(tmp_path))


def test_checkpoint_of_another_length_names_the_setting(build, tmp_path):
    save(tmp_path, "model-best.pth.tar")
    with pytest.raises(UserError, match="Set TRAINER.COOP.N_CTX 16, or"):
        build("CoOp", "TRAINER.COOP.N_CTX", "8").load_model(str(tmp_path))
    # Initial words say how many there are, so they have to go.
    with pytest.raises(UserError, match='Set TRAINER.COOP.N_CTX 16 TRAINER.COOP.CTX_INIT "", or'):
        build("CoOp", "TRAINER.COOP.CTX_INIT", "a photo of a").load_model(str(tmp_path))
    build("CoOp", "TRAINER.COOP.N_CTX", "16", "TRAINER.COOP.CTX_INIT", "").load_model(str(tmp_path))
    save(tmp_path, "model-best.pth.tar", META_NET, ctx=(4, 64))
    with pytest.raises(UserError, match="Set TRAINER.COCOOP.N_CTX 4, or"):
        build("CoCoOp").load_model(str(tmp_path))


def test_checkpoint_of_another_method_or_backbone_is_an_error(build, tmp_path):
    save(tmp_path, "model-best.pth.tar", META_NET)
    with pytest.raises(UserError, match="it holds meta_net.linear1.bias .* where CoOp has none. Name its method"):
        build("CoOp").load_model(str(tmp_path))
    save(tmp_path, "model-best.pth.tar")
    with pytest.raises(UserError, match="it holds none where CoCoOp has meta_net"):
        build("CoCoOp").load_model(str(tmp_path))
    save(tmp_path, "model-best.pth.tar", {**META_NET, "meta_net.linear1.weight": (2, 48)})
    with pytest.raises(
        UserError, match=r"it holds meta_net.linear1.weight \(2, 48\) where .* Name its method, backbone"
    ):
        build("CoCoOp").load_model(str(tmp_path))
    save(tmp_path, "model-best.pth.tar", ctx=(16, 512))
    with pytest.raises(UserError, match=r"it holds ctx \(16, 512\) where .* Name its method, backbone"):
        build("CoOp").load_model(str(tmp_path))


def test_file_without_a_checkpoint_is_an_error(build, tmp_path):
    trainer = build("CoOp")
    path = tmp_path / "prompt_learner" / "model-best.pth.tar"
    path.parent.mkdir()
    for content in (torch.zeros(16, 64), {"state_dict": {"ctx": [0.0]}}):
        torch.save(content, path)
        with pytest.raises(UserError, match="model-best.pth.tar is no checkpoint of a prompt learner"):
            trainer.load_model(str(tmp_path))
    torch.save({"state_dict": {"ctx": torch.zeros(64)}}, path)
    with pytest.raises(UserError, match=r"it holds ctx \(64,\)"):
        trainer.load_model(str(tmp_path))
    path.write_bytes(b"no checkpoint")
    with pytest.raises(Exception, match="is damaged or is not a checkpoint"):
        trainer.load_model(str(tmp_path))


def test_missing_checkpoint_is_an_error(build, tmp_path):
    trainer = build("CoOp")
    with pytest.raises(UserError, match="Checkpoint not found: .*model-best.pth.tar. Name the folder of a trained run"):
        trainer.load_model(str(tmp_path))
    save(tmp_path, "model.pth.tar-9")
    with pytest.raises(UserError, match=r"model.pth.tar-7. There are .* these epochs: 9 \(--load-epoch\)"):
        trainer.load_model(str(tmp_path), epoch=7)


def test_checkpoint_folder_without_best_epoch_loads_the_last(build, tmp_path):
    trainer = build("CoOp")
    for epoch, dtype in ((9, torch.float32), (50, torch.float16)):
        state = save(tmp_path, f"model.pth.tar-{epoch}", dtype=dtype)
    trainer.load_model(str(tmp_path))
    assert torch.equal(trainer.model.ctx, state["ctx"].float())
    assert not torch.equal(trainer.model.ctx, _context_of(tmp_path, 9))


def _context_of(folder, epoch):
    path = folder / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]["ctx"]


def test_class_specific_contexts_need_the_recorded_classes(build, tmp_path):
    save(tmp_path, "model-best.pth.tar", ctx=(2, 16, 64), n_cls=2)
    RunRecord({"class names": ["cat", "dog"]}).write(tmp_path)
    build("CoOp", "TRAINER.COOP.CSC", "True", classnames=["cat", "dog"]).load_model(str(tmp_path))
    with pytest.raises(UserError, match="knows only the classes of its training, cat, dog, not dog, cat"):
        build("CoOp", "TRAINER.COOP.CSC", "True", classnames=["dog", "cat"]).load_model(str(tmp_path))


def test_eval_only_command_loads_a_checkpoint(train, tmp_path, capsys):
    save(tmp_path / "theirs", "model.pth.tar-50", ctx=(16, 64))
    opts = ["TRAINER.COOP.N_CTX", "16", "TRAINER.COOP.CTX_INIT", ""]
    flags = ["--eval-only", "--model-dir", "theirs"]
    assert train("CoOp", "red", *opts, flags=flags) == 0
    assert (tmp_path / "run" / "results.json").is_file()
    capsys.readouterr()
    assert train("CoOp", "red", *opts, flags=[*flags, "--load-epoch", "3", "--output-dir", "b"]) == 1
    assert "these epochs: 50 (--load-epoch)" in capsys.readouterr().err


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
    # The epoch that was tested is the one that is built again.
    assert tested("c", "--load-epoch", "1")["selection"] == "epoch 1"
    first = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-1", weights_only=True)["state_dict"]["ctx"]
    last = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-2", weights_only=True)["state_dict"]["ctx"]
    assert not torch.equal(first, last)
    torch.testing.assert_close(build_run(tmp_path / "c").model.ctx.detach(), first, atol=0, rtol=0)
    torch.testing.assert_close(build_run(tmp_path / "a").model.ctx.detach(), last, atol=0, rtol=0)


def test_checkpoint_with_data_parallel_names_loads(build, tmp_path):
    state = save(tmp_path, "model-best.pth.tar")
    path = tmp_path / "prompt_learner/model-best.pth.tar"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    trainer = build("CoOp")
    trainer.load_model(str(tmp_path))
    torch.testing.assert_close(trainer.model.ctx.detach(), state["ctx"].float())


def start(train, trainer, place, *opts, out="run"):
    """Exit code of a run with steps that are too small to change anything."""
    tiny_steps = "OPTIM.LR", "1e-30", "OPTIM.WARMUP_EPOCH", "-1", "OPTIM.MAX_EPOCH", "1", "TEST.NO_TEST", "True"
    opts = "MODEL.INIT_WEIGHTS", str(place), *tiny_steps, *opts
    if trainer == "SPG_CoOp":
        opts += "DATASET.SOURCE_DOMAINS", "['red']"
    return train(trainer, "red", *opts, flags=["--output-dir", out])


@pytest.mark.parametrize("place", ["theirs", "theirs/prompt_learner/model.pth.tar-50", "bare.pt"])
@pytest.mark.parametrize(("trainer", "node"), [("CoOp", "COOP"), ("CoCoOp", "COCOOP"), ("SPG_CoOp", "SPG")])
def test_training_starts_from_given_prompts(train, tmp_path, trainer, node, place):
    state = save(tmp_path / "theirs", "model.pth.tar-50", META_NET if trainer == "CoCoOp" else ())
    torch.save(state, tmp_path / "bare.pt")
    opts = f"TRAINER.{node}.N_CTX", "16", f"TRAINER.{node}.CTX_INIT", ""
    assert start(train, trainer, place, *opts) == 0
    learned = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-1", weights_only=True)["state_dict"]
    for key, value in learned.items():
        torch.testing.assert_close(value, state[key].float(), msg=key)


def unfinish(folder):
    record = read_run_record(folder)
    record.training = None
    record.write(folder)


def test_initial_weights_are_part_of_the_settings(train, tmp_path, capsys):
    opts = "TRAINER.COOP.N_CTX", "16", "TRAINER.COOP.CTX_INIT", ""
    save(tmp_path / "theirs", "model.pth.tar-50")
    plain = save(tmp_path / "others", "model.pth.tar-50", dtype=torch.float32)
    assert start(train, "CoOp", "theirs", *opts) == 0
    shutil.move(tmp_path / "theirs", tmp_path / "moved")  # it is the content that matters
    unfinish(tmp_path / "run")
    assert start(train, "CoOp", "moved", *opts) == 0
    assert plain["ctx"].dtype == torch.float32
    unfinish(tmp_path / "run")
    capsys.readouterr()
    assert start(train, "CoOp", "others", *opts) == 1
    assert "with other settings or data: MODEL.INIT_WEIGHTS " in capsys.readouterr().err
    assert build_run(tmp_path / "run").model.ctx.shape == (16, 64)  # which does not need them any more
    assert start(train, "CoOp", "", *opts, out="plain") == 0
    assert read_run_record(tmp_path / "plain").identity["MODEL.INIT_WEIGHTS"] == ""


def test_initial_weights_that_do_not_fit_are_an_error(train, tmp_path, capsys):
    save(tmp_path / "theirs", "model.pth.tar-50")
    for trainer, place, message in (
        ("CoOp", "nowhere.pt", "MODEL.INIT_WEIGHTS is 'nowhere.pt'; accepted: a checkpoint of a prompt learner"),
        ("CoOp", "theirs", "Set TRAINER.COOP.N_CTX 16, or"),
        ("SPG", "theirs", "but SPG does not start from given prompts"),
    ):
        capsys.readouterr()
        assert start(train, trainer, place, "TRAINER.COOP.N_CTX", "8", "TRAINER.COOP.CTX_INIT", "", out=trainer) == 1
        assert message in capsys.readouterr().err
