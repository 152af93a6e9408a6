"""SPG on 30 images: both stages, their parts and their files."""

import contextlib
import json
import shutil

import pytest
import torch
from dassl.engine import build_trainer
from other_process import lock_elsewhere
from quick_run import command_line
from torch import nn

import train as command
from common import locks
from common.errors import UserError
from common.image_results import read_predictions


@pytest.fixture
def build(tmp_path, image_folder, clip_file, monkeypatch):
    """An untrained trainer: build("SPG_CGAN", "red", "KEY", "VALUE")."""
    import trainers.spg  # noqa: F401 (registers)

    monkeypatch.chdir(tmp_path)

    def make(trainer, target, *opts, flags=()):
        args = command_line(trainer, target, *opts, flags=flags, root=image_folder, clip=clip_file)
        import datasets  # noqa: F401 (registers)

        return build_trainer(command.setup_cfg(command.parse_args(args)))

    return make


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_spg_run_writes_all_files(train, tmp_path, capsys):
    assert train("SPG", "red") == 0
    printed = capsys.readouterr().out
    assert "Stage I: learning the prompt label of blue" in printed
    assert "Stage II: SPG trains with the prompt labels" in printed
    assert "red" not in printed.partition("Evaluate on the *test* set")[0].partition("Stage I")[2]

    found = results(tmp_path / "run")
    assert found["trainer"] == "SPG"
    assert found["dataset"] == "stripes"
    assert found["backbone"] == "tiny"
    assert found["protocol"] == "multi-source"
    assert (found["source_domains"], found["target_domains"]) == (["blue", "green"], ["red"])
    assert (found["seed"], found["n_test"]) == (1, 10)
    assert 0 <= found["accuracy"] <= 100
    assert found["val_accuracy"] == max(found["val_history"])
    assert found["best_epoch"] == 1 + found["val_history"].index(max(found["val_history"]))
    assert len(found["val_history"]) == 2
    assert [sorted(losses) for losses in found["loss_history"]] == [["loss_d", "loss_g"]] * 2
    rows = read_predictions(tmp_path / "run" / "predictions.csv")
    assert len(rows) == 10 and {row["domain"] for row in rows} == {"red"}
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert found["accuracy_by_domain"] == {"red": pytest.approx(found["accuracy"])}
    assert found["accuracy"] == pytest.approx(100 * right / 10)
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]

    labels = tmp_path / "prompt_labels" / "stripes" / "tiny" / "seed_1"
    assert sorted(path.name for path in labels.glob("*.pt")) == ["blue.pt", "green.pt"]
    for name in (
        "log.txt",
        "config.yaml",
        "tensorboard",
        "generator/model-best.pth.tar",
        "discriminator/model.pth.tar-2",
    ):
        assert (tmp_path / "run" / name).exists()
    assert not (tmp_path / "run" / "generator" / "model.pth.tar-1").exists()


def test_spg_finished_run_is_skipped(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    assert train("SPG", "red") == 0
    assert "holds a finished run; skipped" in capsys.readouterr().out


def test_spg_repeated_command_gives_equal_numbers(train, tmp_path):
    found = []
    for name in ("a", "b"):
        assert train("SPG", "red", "TRAINER.SPG.LABEL_DIR", name, flags=["--output-dir", name]) == 0
        found.append(results(tmp_path / name))
    for key in ("accuracy", "macro_f1", "val_history"):
        assert found[0][key] == found[1][key]
    states = [torch.load(tmp_path / name / "generator/model.pth.tar-2", weights_only=True) for name in ("a", "b")]
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key])


def test_spg_uses_existing_labels(finish_run, train, tmp_path, capsys):
    finish_run("SPG")
    (tmp_path / "prompt_labels/stripes/tiny/seed_1/green.pt").unlink()
    capsys.readouterr()
    assert train("SPG", "red", flags=["--output-dir", "again"]) == 0
    printed = capsys.readouterr().out
    assert "learning the prompt label of green" in printed
    assert "learning the prompt label of blue" not in printed


def test_label_is_the_context_of_the_best_epoch(train, build, tmp_path):
    assert train("SPG_CoOp", "red", flags=["--source-domains", "red"]) == 0
    found = results(tmp_path / "run")
    assert found["protocol"] == "in-domain"
    checkpoint = torch.load(tmp_path / "run/prompt_learner/model-best.pth.tar", weights_only=True)
    assert checkpoint["epoch"] == found["best_epoch"]
    saved = torch.load(tmp_path / "prompt_labels/stripes/tiny/seed_1/red.pt", weights_only=True)
    assert torch.equal(saved["ctx"], checkpoint["state_dict"]["ctx"])
    assert saved["ctx"].shape == (4, 64)


@pytest.mark.parametrize(("trainer", "place"), [("SPG_CoOp", ""), ("DPSPG_CoOp", "pos")])
def test_stage1_waits_for_another_process_with_its_label(train, tmp_path, monkeypatch, capsys, trainer, place):
    folder = tmp_path / "prompt_labels" / place / "stripes/tiny/seed_1"
    folder.mkdir(parents=True)
    with lock_elsewhere(folder / ".red.pt.lock") as other:
        monkeypatch.setattr(locks, "interruption", other.kill)  # when the run begins to wait
        assert train(trainer, "red", flags=["--source-domains", "red"]) == 0
    assert "which learns the prompt label of red" in capsys.readouterr().out
    assert (folder / "red.pt").is_file()


def test_stage1_uses_its_own_optimiser_config(build):
    trainer = build("SPG", "red")
    cfg = trainer.stage1_cfg("blue")
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY) == ("sgd", 0.002, 0.0005)
    assert (cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE, cfg.OPTIM.MAX_EPOCH) == (1, "constant", 2)
    assert (list(cfg.DATASET.SOURCE_DOMAINS), list(cfg.DATASET.TARGET_DOMAINS)) == (["blue"], ["blue"])
    assert trainer.cfg.OPTIM.NAME == "adamw"


def test_stage2_step_draws_two_batches(build):
    trainer = build("SPG_CGAN", "red")
    looked_at = []
    original = trainer.train_loader_x.dataset.__class__.__getitem__

    class Spy(trainer.train_loader_x.dataset.__class__):
        def __getitem__(self, index):
            looked_at.append(index)
            return original(self, index)

    trainer.train_loader_x.dataset.__class__ = Spy
    torch.manual_seed(0)
    n_images, batches = len(trainer.dm.dataset.train_x), list(trainer.train_loader_x)
    assert (n_images, len(batches)) == (16, 2)
    assert len(looked_at) == 2 * 16
    first = [index for batch in batches for index in batch["index"][:8].tolist()]
    second = [index for batch in batches for index in batch["index"][8:].tolist()]
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second


def test_gradient_clipping_is_off_for_the_named_targets(build):
    assert build("SPG_CGAN", "red").clips_gradients
    assert not build("SPG_CGAN", "red", "TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "('red',)").clips_gradients
    assert build("SPG_CGAN", "red", "TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "('blue',)").clips_gradients
    assert not build("SPG_CGAN", "red", "TRAINER.SPG.GRAD_CLIP", "False").clips_gradients


def test_evaluation_is_a_function_of_model_and_image(build):
    trainer = build("SPG_CGAN", "red")
    trainer.set_model_mode("eval")
    torch.manual_seed(0)
    features = nn.functional.normalize(torch.randn(20, 32), dim=1)
    with torch.no_grad():
        expected = trainer.predict(features, range(20))
        singles = torch.cat([trainer.predict(features[i : i + 1], [i]) for i in range(20)])
        order = torch.randperm(20)
        shuffled = trainer.predict(features[order], order.tolist())
    torch.testing.assert_close(singles, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(shuffled, expected[order], atol=1e-4, rtol=0)


def test_n_prompts_averages_logits_over_draws(build):
    trainer = build("SPG_CGAN", "red", "TEST.N_PROMPTS", "3")
    trainer.set_model_mode("eval")
    features = nn.functional.normalize(torch.randn(5, 32), dim=1)
    with torch.no_grad():
        draws = [trainer.logits(features, trainer.text_features(features, range(5), draw)) for draw in range(3)]
        torch.testing.assert_close(trainer.predict(features, range(5)), sum(draws) / 3)
    assert not torch.allclose(draws[0], draws[1])


@pytest.mark.parametrize("batch_size", ["1", "7", "100"])
def test_spg_results_do_not_depend_on_the_batch_size(finish_run, train, tmp_path, batch_size):
    finish_run("SPG")
    flags = ["--eval-only", "--model-dir", "run", "--output-dir", "eval", "--no-feature-cache"]
    assert (
        train("SPG", "red", "DATALOADER.TEST.BATCH_SIZE", batch_size, "DATALOADER.NUM_WORKERS", "2", flags=flags) == 0
    )
    assert results(tmp_path / "eval")["accuracy"] == results(tmp_path / "run")["accuracy"]
    assert results(tmp_path / "eval")["macro_f1"] == results(tmp_path / "run")["macro_f1"]


def test_spg_unfinished_run_resumes_with_equal_numbers(train, tmp_path, monkeypatch):
    assert train("SPG", "red", "OPTIM.MAX_EPOCH", "4") == 0
    uninterrupted = results(tmp_path / "run")

    from trainers.spg import SPG_CGAN

    run_epoch = SPG_CGAN.run_epoch

    def interrupted(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        run_epoch(self)

    monkeypatch.setattr(SPG_CGAN, "run_epoch", interrupted)
    assert train("SPG", "red", "OPTIM.MAX_EPOCH", "4", flags=["--output-dir", "cut"]) == 130
    monkeypatch.setattr(SPG_CGAN, "run_epoch", run_epoch)
    assert train("SPG", "red", "OPTIM.MAX_EPOCH", "4", flags=["--output-dir", "cut"]) == 0
    resumed = results(tmp_path / "cut")
    for key in ("accuracy", "macro_f1", "val_accuracy", "best_epoch"):
        assert resumed[key] == uninterrupted[key]
    ours, expected = (
        torch.load(tmp_path / name / "generator/model.pth.tar-4", weights_only=True)["state_dict"]
        for name in ("cut", "run")
    )
    for key, value in ours.items():
        assert torch.equal(value, expected[key])


def test_generator_of_another_size_is_an_error(build, tmp_path):
    trainer = build("SPG_CGAN", "red")
    state = {**trainer.generator.state_dict(), "model.11.bias": torch.zeros(2048)}
    folder = tmp_path / "theirs" / "generator"
    folder.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 12}, folder / "model-best.pth.tar")
    with pytest.raises(UserError, match=r"does not fit this run: .* model.11.bias \(2048,\)"):
        trainer.load_model(str(tmp_path / "theirs"))


@pytest.mark.parametrize("n_views", ["0", "2"])
def test_target_images_are_not_opened_before_the_final_test(train, opened, n_views):
    assert train("SPG", "red", "TRAINER.FEATURES.TRAIN_VIEWS", n_views, flags=["--no-feature-cache"]) == 0
    first_of_target = min(i for i, (path, _) in enumerate(opened) if "/red/" in path)
    assert opened[first_of_target][1]  # the model has been chosen by then
    assert all("/red/" in path for path, _ in opened[first_of_target:])
    assert len(opened) - first_of_target == 10


def test_unfinished_run_with_another_learning_rate_is_an_error(finish_run, train, tmp_path, capsys):
    finish_run("CoOp")
    (tmp_path / "run" / "results.json").unlink()
    assert train("CoOp", "red", "OPTIM.LR", "0.1") == 1
    message = capsys.readouterr().err
    assert "run holds an unfinished run with other settings or data: OPTIM.LR 0.002 there and 0.1 here" in message


def test_label_of_changed_stage1_is_trained_again(finish_run, train, tmp_path, capsys):
    finish_run("SPG")
    labels = tmp_path / "prompt_labels/stripes/tiny/seed_1"
    before = {path.name: torch.load(path, weights_only=True)["ctx"] for path in labels.glob("*.pt")}
    (tmp_path / "run" / "results.json").unlink()
    for path in labels.glob("*.pt"):
        path.unlink()
    assert train("SPG", "red") == 0  # the same settings: the finished stage I is taken up again
    for path in labels.glob("*.pt"):
        assert torch.equal(torch.load(path, weights_only=True)["ctx"], before[path.name])
        path.unlink()
    (tmp_path / "run" / "results.json").unlink()
    capsys.readouterr()
    opts = "['OPTIM.MAX_EPOCH', 2, 'OPTIM.LR', 0.5, 'OPTIM.WARMUP_EPOCH', -1]"
    assert train("SPG", "red", "TRAINER.SPG.STAGE1_OPTS", opts) == 1
    assert (
        "unfinished run with other settings or data: stage I: OPTIM.LR 0.002 there and 0.5 here"
        in capsys.readouterr().err
    )
    for name in ("generator", "discriminator"):
        shutil.rmtree(tmp_path / "run" / name)
    assert train("SPG", "red", "TRAINER.SPG.STAGE1_OPTS", opts) == 0
    assert "training from scratch" in capsys.readouterr().out
    for path in labels.glob("*.pt"):
        assert not torch.equal(torch.load(path, weights_only=True)["ctx"], before[path.name])


def test_label_does_not_depend_on_other_labels(train, tmp_path):
    opts = ["TRAINER.SPG.CTX_INIT", ""]
    assert train("SPG", "red", *opts) == 0
    path = tmp_path / "prompt_labels/stripes/tiny/seed_1/green.pt"
    before = torch.load(path, weights_only=True)["ctx"]
    path.unlink()
    assert train("SPG", "red", *opts, flags=["--output-dir", "again"]) == 0
    assert torch.equal(torch.load(path, weights_only=True)["ctx"], before)


def test_label_of_a_parallel_run_is_used(train, tmp_path, monkeypatch, capsys):
    from trainers import spg

    assert train("SPG", "red") == 0
    made = {path.name: path for path in (tmp_path / "prompt_labels").rglob("*.pt")}
    shutil.move(tmp_path / "prompt_labels", tmp_path / "theirs")
    shutil.move(tmp_path / "run", tmp_path / "their_run")

    @contextlib.contextmanager
    def waited(path, task, wait=True):
        if path.name == "blue.pt":
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "theirs" / made[path.name].relative_to(tmp_path / "prompt_labels"), path)
        yield

    monkeypatch.setattr(spg, "creation_lock", waited)
    capsys.readouterr()
    assert train("SPG", "red") == 0
    learned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Stage I: learning")]
    assert learned == ["Stage I: learning the prompt label of green"]
    assert results(tmp_path / "run")["accuracy"] == results(tmp_path / "their_run")["accuracy"]


def test_eval_only_changes_no_other_run(finish_run, train, tmp_path, capsys):
    finish_run("CoOp")
    config = (tmp_path / "run/config.yaml").read_text()
    assert train("CoOp", "blue", flags=["--eval-only", "--model-dir", "run"]) == 0
    assert (tmp_path / "run/config.yaml").read_text() == config
    assert results(tmp_path / "run")["target_domains"] == ["red"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/results.json").write_text("{}")
    assert train("CoOp", "blue", flags=["--eval-only", "--model-dir", "run", "--output-dir", "other"]) == 1
    assert "other holds the results of another run" in capsys.readouterr().err


def test_cocoop_checkpoint_has_the_keys_of_coops_meta_net(finish_run, tmp_path):
    finish_run("CoCoOp")
    keys = torch.load(tmp_path / "run/prompt_learner/model-best.pth.tar", weights_only=True)["state_dict"]
    assert {key for key in keys if key.startswith("meta_net")} == {
        f"meta_net.linear{i}.{name}" for i in (1, 2) for name in ("weight", "bias")
    }


def test_spg_pacs_config_has_the_published_settings():
    cfg = command.setup_cfg(
        command.parse_args(
            ["--config-file", str(command.__file__).replace("train.py", "configs/trainers/SPG_CGAN/pacs.yaml")]
        )
    )
    spg = cfg.TRAINER.SPG
    assert (spg.D_WEIGHT_NORM, spg.D_BIAS_NORM, spg.D_ENDS_NORM) == (5e-1, 5e-1, 5.0)
    assert (spg.G_WEIGHT_NORM, spg.G_BIAS_NORM, spg.G_LAST_BIAS_NORM) == (5e-2, 5e-7, 5.0)
    assert list(spg.GRAD_CLIP_OFF_TARGETS) == ["cartoon", "photo"]


def test_spg_with_train_views_has_results(train, tmp_path, capsys):
    assert train("SPG", "red", "TRAINER.FEATURES.TRAIN_VIEWS", "3") == 0
    printed = capsys.readouterr().out
    assert printed.count("train, 3 views)") == 2  # by stage I, once for each source domain; none for stage II
    assert results(tmp_path / "run")["n_test"] == 10
    assert train("CoOp", "red", "TRAINER.FEATURES.TRAIN_VIEWS", "3", flags=["--output-dir", "coop"]) == 0
    assert "train, 3 views" not in capsys.readouterr().out  # the same views, from the cache
    assert train("CoOp", "blue", "TRAINER.FEATURES.TRAIN_VIEWS", "3", flags=["--output-dir", "other"]) == 0
    assert capsys.readouterr().out.count("train, 3 views)") == 1  # red was no source before


def test_zero_shot_results_have_no_validation(finish_run, tmp_path):
    finish_run("ZeroshotCLIP")
    found = results(tmp_path / "run")
    assert found["val_accuracy"] is None
    assert found["best_epoch"] is None


def test_spg_domain_without_validation_images_is_an_error(expect_error, tmp_path, image_folder):
    root = shutil.copytree(image_folder, tmp_path / "own", ignore=shutil.ignore_patterns("spg_coop_splits"))
    for path in root.glob("green/*/[1-4].png"):
        path.unlink()
    message = expect_error("SPG", "red", flags=["--root", str(root)])
    assert "the source domains are too small for a validation split" in message
