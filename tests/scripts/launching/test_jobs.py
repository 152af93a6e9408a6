"""The command line of launchers, the jobs of each protocol, and the errors that users meet."""

import shlex
import shutil

import pytest
from conftest import CLIP, QUICK
from quick_run import run_train

from common.run import read_results
from scripts import launch
from trainers.methods import METHODS

VARIABLES = dict(
    word.split("=", 1)
    for word in shlex.split(
        "PROTOCOL=single METHODS=zsclip,coop JOBS=2 ENGINE=slurm RAY_ADDRESS=auto TASK_GPUS=0.5 SLURM_PARTITION=gpu "
        "SLURM_TIME=8:00:00 SLURM_GPUS=1 SLURM_OPTIONS=qos=long DATA=sets OUTPUT=elsewhere SEEDS='4 5' "
        "SOURCES='art photo' CFG=as_run BASELINE=coop"
    )
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*VARIABLES, "TARGETS"):
        monkeypatch.delenv(name, raising=False)


def test_scripts_pass_on_method_protocol_and_words(tmp_path, start, monkeypatch):
    (tmp_path / "python").write_text(
        '#!/bin/sh\ncase "$1" in */launch.py) for word; do echo "$word"; done > ran;; esac\n'
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PROTOCOL", "single")
    for script, expected in (
        ("spg/main.sh", ("multi", ["SPG"])),
        ("coop/cross.sh", ("cross", ["CoOp"])),
        ("compare.sh", ("single", ["ZeroshotCLIP"])),
    ):
        words = ("--print", "my pictures", "RN50")
        assert start(script, *words, PYTHON=str(tmp_path / "python")).end()[0] == 0
        found = (tmp_path / "ran").read_text().splitlines()[1:]
        assert found[-3:] == list(words)
        args = launch.parse_args([*found[:-3], "--methods", "zsclip", *found[-3:]])
        assert (args.protocol, args.trainers) == expected


def test_variables_are_the_defaults_of_flags(monkeypatch, capsys):
    by_flags = [word for name, value in VARIABLES.items() for word in (f"--{name.lower()}", value)]
    expected = vars(launch.parse_args(["--compare", *by_flags, "pacs"]))
    with pytest.raises(SystemExit):
        launch.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"--{name.lower()} " in printed for name in VARIABLES) and all(one.trainer in printed for one in METHODS)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    found = vars(launch.parse_args(["--compare", "pacs"]))
    differing = {key for key in expected if expected[key] != found[key]}
    assert differing <= {"methods", "compared"}
    assert launch.parse_args(["coop", "pacs"]).trainers == ["CoOp"]  # METHODS is for comparisons


def test_launcher_reads_flags_between_and_after_words():
    args = launch.parse_args(["spg", "--print", "pacs", "--seeds", "3", "OPTIM.LR", "1e-3", "--targets=photo"])
    assert (args.print, args.seeds, args.targets, args.dataset) == (True, "3", "photo", "pacs")
    assert args.opts == ["OPTIM.LR", "1e-3"]


def test_launcher_with_wrong_words_is_an_error(capsys):
    for words, message in (
        ([], "name a method: zsclip, "),
        (["--compare", "pacs", "RN50", "more"], "found: pacs RN50 more"),
        (["spg", "--target", "photo", "pacs", "--pint"], "unrecognized arguments: --pint"),
        (["--protocol", "sideways", "spg"], "--protocol is sideways"),
        (["--protocol", "cross", "--targets", "photo", "spg"], "--targets goes with --protocol multi"),
    ):
        with pytest.raises(SystemExit):
            launch.parse_args(words)
        assert message in capsys.readouterr().err


def test_launcher_with_wrong_settings_prints_one_message(run_launcher, tmp_path, image_folder):
    for environment, message in (
        ({"CFG": "vit_b16_ep50"}, "name different backbones (RN50, ViT-B/16)"),
        ({"CFG": "asrun"}, "CFG is 'asrun'"),
        ({"BASELINE": "SPG"}, "BASELINE is 'SPG'"),
        ({"METHODS": "coop,spgg"}, "METHODS names 'spgg'"),
        ({"SEEDS": "1,2"}, "SEEDS is '1,2'"),
        ({"JOBS": "0"}, "JOBS is '0'"),
        ({"ENGINE": "cloud"}, "ENGINE is 'cloud'; accepted: local, ray, slurm."),
        ({"TARGETS": "purple"}, "purple"),
    ):
        code, _, errors = run_launcher("compare.sh", image_folder, **{"METHODS": "coop,zsclip", **environment})
        error = errors.splitlines()[-1]
        assert code == 1 and error.startswith("Error: ") and message in error
    assert not list(tmp_path.glob("output/**/log.txt"))


def test_missing_data_names_the_download(run_launcher):
    code, _, errors = run_launcher("spg/main.sh", "vlcs")
    assert code == 1 and "To download it: python scripts/download.py vlcs --root data" in errors


# ---- protocols ----


def test_cross_test_after_failed_training_is_skipped(run_launcher, tmp_path, image_folder, clip_file):
    shutil.copytree(image_folder, tmp_path / "digits")
    wrong = ["TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "['purple']"]
    code, output, _ = run_launcher("spg/cross.sh", image_folder, "digits", clip_file, *QUICK, *wrong)
    assert code == 1 and "[2/2] SPG on stripes, stripes to digits, seed 1: skipped: it depends on [1/2]" in output
    assert "2 of 2 runs failed" in output


def test_print_lists_commands_that_give_the_same_runs(run_launcher, tmp_path, image_folder, clip_file):
    words = (image_folder, clip_file, *QUICK)
    lines = run_launcher("zsclip/main.sh", "--print", *words)[1].splitlines()
    assert len(lines) == 3 and not (tmp_path / "output").exists()
    assert run_train(shlex.split(lines[0])[2:]) == 0
    _, output, _ = run_launcher("zsclip/main.sh", *words)
    assert output.count("finished before") == 1 and output.count(": done in ") == 2


# ---- comparisons ----


def test_compare_runs_the_methods_that_can_and_reports_the_others(run_launcher, tmp_path, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK, "DATALOADER.TRAIN_X.BATCH_SIZE", "1")
    code, output, errors = run_launcher(*words, METHODS="dpl,zsclip,vpt,zsclip2", TARGETS="red")
    assert code == 1 and "Error: DATALOADER.TRAIN_X.BATCH_SIZE is 1, but" in errors
    assert "Left out: VPT puts prompts into the image tower" in errors
    assert "Not started because of the errors above: DPL\n" in output
    assert "Difference to ZeroshotCLIP in points" in output
    page = (tmp_path / "output/stripes/report.html").read_text(encoding="utf-8")
    assert "DPL is not started: DATALOADER.TRAIN_X.BATCH_SIZE is 1, but" in page
    assert "Left out: VPT puts prompts into the image tower" in page
    for baseline, expected in (("zsclip2", "Difference to ZeroshotCLIP2 in points"), ("", "")):
        _, output, _ = run_launcher(*words, METHODS="zsclip,zsclip2", TARGETS="red", BASELINE=baseline)
        assert expected in output and ("Difference to" in output) == bool(expected)
        assert output.count("finished before") == 2


def test_seeds_methods_and_domains_given_twice_run_once(run_launcher, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK)
    code, output, errors = run_launcher(*words, METHODS="zsclip,ZeroshotCLIP", TARGETS="red,Red", SEEDS="01 1 001")
    assert code == 0 and output.count(": done in ") == 1 and "[1/1]" in output
    assert errors.count("Note: without effect on ZeroshotCLIP") == 1


def test_two_folders_with_one_name_have_two_names(run_launcher, tmp_path, image_folder, clip_file):
    for name in ("x", "y"):
        shutil.copytree(image_folder, tmp_path / name / "test", ignore=shutil.ignore_patterns("spg_coop_splits"))
    shutil.copy(tmp_path / "y/test/red/down/0.png", tmp_path / "y/test/red/across/more.png")
    for word, name in (("x/test", "test"), ("y/test", "y_test"), ("x/test", "test")):
        assert run_launcher("zsclip/main.sh", word, clip_file, *QUICK, TARGETS="red")[0] == 0
        found = read_results(tmp_path / f"output/{name}/ZeroshotCLIP/tiny/default/red/seed1/results.json")
        assert (found["dataset"], found["n_test"]) == (name, 10 + (name == "y_test"))
    (tmp_path / "x/test").rename(tmp_path / "test")  # moved, and the same images
    assert "finished before" in run_launcher("zsclip/main.sh", "test", clip_file, *QUICK, TARGETS="red")[1]


def test_launcher_without_words_uses_the_embedded_default(run_launcher):
    lines = run_launcher("spg/main.sh", "--print")[1].splitlines()
    assert len(lines) == 4 and all(CLIP in line and "mini_digits.yaml" in line for line in lines)
