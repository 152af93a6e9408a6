"""SPG on 30 images: both stages, their labels and their files."""

import builtins
import json
import shutil

import pytest
import torch
from other_process import lock_elsewhere
from torch import nn

LABELS = "prompt_labels/stripes/tiny/seed_1"


@pytest.fixture
def when_waiting(monkeypatch):
    """Call a function when a run prints that it waits for another process."""

    def register(act):
        real = builtins.print

        def spy(*words, **how):
            real(*words, **how)
            if str(words[0]).startswith("Waiting for "):
                act()

        monkeypatch.setattr(builtins, "print", spy)

    return register


def results(folder):
    return json.loads((folder / "results.json").read_text())


def labels_in(folder):
    return {path.name: torch.load(path, weights_only=True)["ctx"] for path in (folder / LABELS).glob("*.pt")}


# ---- a run ----


def test_spg_run_writes_all_files(train, tmp_path, capsys):
    assert train("SPG", "red") == 0
    printed = capsys.readouterr().out
    assert "Stage I: learning the prompt label of blue" in printed
    assert "Stage II: SPG trains with the prompt labels" in printed
    assert "red" not in printed.partition("Evaluate on the *test* set")[0].partition("Stage I")[2]
    found = results(tmp_path / "run")
    assert (found["dataset"], found["backbone"], found["seed"]) == ("stripes", "tiny", 1)
    assert [sorted(losses) for losses in found["loss_history"]] == [["loss_d", "loss_g"]] * 2
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert labels_in(tmp_path).keys() == {"blue.pt", "green.pt"}
    names = "log.txt", "config.yaml", "tensorboard", "generator/model-best.pth.tar", "discriminator/model.pth.tar-2"
    assert all((tmp_path / "run" / name).exists() for name in names)
    assert not (tmp_path / "run/generator/model.pth.tar-1").exists()


@pytest.mark.parametrize("n_views", ["0", "2"])
def test_target_images_are_not_opened_before_the_final_test(train, opened, n_views):
    assert train("SPG", "red", "TRAINER.FEATURES.TRAIN_VIEWS", n_views, flags=["--no-feature-cache"]) == 0
    first_of_target = min(i for i, (path, _) in enumerate(opened) if "/red/" in path)
    assert opened[first_of_target][1]  # the model has been chosen by then
    assert all("/red/" in path for path, _ in opened[first_of_target:])
    assert len(opened) - first_of_target == 10


def test_train_views_are_encoded_once_for_all_runs(train, capsys):
    opts = "TRAINER.FEATURES.TRAIN_VIEWS", "3"
    assert train("SPG", "red", *opts) == 0
    assert capsys.readouterr().out.count("train, 3 views)") == 2  # stage I, for each source domain; none for stage II
    assert train("CoOp", "blue", *opts, flags=["--output-dir", "other"]) == 0
    assert capsys.readouterr().out.count("train, 3 views)") == 1  # red was no source before


def test_gradient_clipping_is_off_for_the_named_targets(build):
    assert build("SPG_CGAN").clips_gradients
    assert not build("SPG_CGAN", "TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "('red',)").clips_gradients
    assert build("SPG_CGAN", "TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "('blue',)").clips_gradients


def test_n_prompts_averages_logits_over_draws(build):
    trainer = build("SPG_CGAN", "TEST.N_PROMPTS", "3")
    trainer.set_model_mode("eval")
    features = nn.functional.normalize(torch.randn(5, 32), dim=1)
    with torch.no_grad():
        draws = [trainer.logits(features, trainer.text_features(features, range(5), draw)) for draw in range(3)]
        torch.testing.assert_close(trainer.predict(features, range(5)), sum(draws) / 3)
    assert not torch.allclose(draws[0], draws[1])


# ---- labels of stage I ----


def test_label_is_the_context_of_the_best_epoch(train, tmp_path):
    assert train("SPG_CoOp", "red", flags=["--source-domains", "red"]) == 0
    found = results(tmp_path / "run")
    assert found["protocol"] == "in-domain"
    checkpoint = torch.load(tmp_path / "run/prompt_learner/model-best.pth.tar", weights_only=True)
    assert checkpoint["epoch"] == found["best_epoch"]
    assert torch.equal(labels_in(tmp_path)["red.pt"], checkpoint["state_dict"]["ctx"])
    assert checkpoint["state_dict"]["ctx"].shape == (4, 64)


def test_stage1_uses_its_own_optimiser_config(build):
    trainer = build("SPG")
    cfg = trainer.stage1_cfg("blue")
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY) == ("sgd", 0.002, 0.0005)
    assert (cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE, cfg.OPTIM.MAX_EPOCH) == (1, "constant", 2)
    assert (list(cfg.DATASET.SOURCE_DOMAINS), list(cfg.DATASET.TARGET_DOMAINS)) == (["blue"], ["blue"])
    assert trainer.cfg.OPTIM.NAME == "adamw"


def test_missing_label_alone_is_learned_and_does_not_depend_on_others(train, tmp_path, capsys):
    opts = ["TRAINER.SPG.CTX_INIT", ""]  # a random start
    assert train("SPG", "red", *opts) == 0
    before = labels_in(tmp_path)
    (tmp_path / LABELS / "green.pt").unlink()
    capsys.readouterr()
    assert train("SPG", "red", *opts, flags=["--output-dir", "again"]) == 0
    printed = capsys.readouterr().out
    assert "learning the prompt label of green" in printed and "learning the prompt label of blue" not in printed
    assert torch.equal(labels_in(tmp_path)["green.pt"], before["green.pt"])


def test_label_that_another_run_learns_is_used(finish_run, train, tmp_path, when_waiting, capsys):
    expected = results(finish_run("SPG"))["accuracy"]
    shutil.move(tmp_path / "prompt_labels", tmp_path / "theirs")
    shutil.rmtree(tmp_path / "run")
    blue = tmp_path / LABELS / "blue.pt"
    blue.parent.mkdir(parents=True)
    capsys.readouterr()
    with lock_elsewhere(blue.with_name(".blue.pt.lock")) as other:

        def finish():
            shutil.copy(tmp_path / "theirs" / blue.relative_to(tmp_path / "prompt_labels"), blue)
            other.kill()

        when_waiting(finish)
        assert train("SPG", "red") == 0
    printed = capsys.readouterr().out
    assert "which learns the prompt label of blue" in printed
    assert printed.count("Stage I: learning") == 1 and "learning the prompt label of green" in printed
    assert results(tmp_path / "run")["accuracy"] == expected


def test_label_of_changed_stage1_is_trained_again(finish_run, train, expect_error, tmp_path, capsys):
    finish_run("SPG")
    before = labels_in(tmp_path)

    def lose(*paths):
        for path in paths:
            path.unlink() if path.is_file() else shutil.rmtree(path)

    lose(tmp_path / "run/results.json", *(tmp_path / LABELS).glob("*.pt"))
    assert train("SPG", "red") == 0  # the same settings: finished stages I are resumed
    assert all(torch.equal(ctx, before[name]) for name, ctx in labels_in(tmp_path).items())
    lose(tmp_path / "run/results.json", *(tmp_path / LABELS).glob("*.pt"))
    opts = "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 2, 'OPTIM.LR', 0.5, 'OPTIM.WARMUP_EPOCH', -1]"
    message = expect_error("SPG", "red", *opts)
    assert "unfinished run with other settings or data: stage I: OPTIM.LR 0.002 there and 0.5 here" in message
    lose(tmp_path / "run/generator", tmp_path / "run/discriminator")
    assert train("SPG", "red", *opts) == 0
    assert "training from scratch" in capsys.readouterr().out
    assert not any(torch.equal(ctx, before[name]) for name, ctx in labels_in(tmp_path).items())


def test_eval_only_changes_no_other_run(finish_run, train, tmp_path):
    finish_run("CoOp")
    config = (tmp_path / "run/config.yaml").read_text()
    assert train("CoOp", "blue", flags=["--eval-only", "--model-dir", "run"]) == 0
    assert (tmp_path / "run/config.yaml").read_text() == config
    assert results(tmp_path / "run")["target_domains"] == ["red"]
