"""The three protocols: their plans, and real runs of each on tiny folders."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from quick_run import REPOSITORY
from scripts.launching.plans import Set, cross_dataset, multi_source, single_source
from scripts.launching.runs import run_command
from test_launch import OTHER_SET, QUICK
from waiting import MINUTES, wait_for

from common.run.records import read_record
from common.run.results import read_results
from scripts import launch

ABC = Set("letters", Path("letters.yaml"), "data", ("a", "b", "c"), ("a", "c"))


def test_multi_source_leaves_one_domain_out():
    runs = multi_source(ABC, Path("base"), ["1", "2"])
    assert [(run.sources, run.targets, run.seed) for run in runs] == [
        (("b", "c"), ("a",), "1"),
        (("a", "b"), ("c",), "1"),
        (("b", "c"), ("a",), "2"),
        (("a", "b"), ("c",), "2"),
    ]
    assert runs[1].folder == Path("base/c/seed1")


def test_single_source_tests_on_every_other_domain():
    runs = single_source(ABC, Path("base"), ["1"])
    assert [(run.sources, run.targets) for run in runs] == [(("a",), ("b", "c")), (("c",), ("a", "b"))]
    assert runs[1].folder == Path("base/from_c/seed1")


def test_of_two_domains_both_protocols_are_the_same_runs():
    two = Set("letters", Path("letters.yaml"), "data", ("a", "b"), ("a", "b"))

    def places(runs):
        return {(run.sources, run.targets, run.folder) for run in runs}

    assert places(single_source(two, Path("base"), ["1"])) == places(multi_source(two, Path("base"), ["1"]))


def test_cross_dataset_trains_once_and_carries_the_model_over():
    other = Set("digits", Path("digits.yaml"), "elsewhere", ("x", "y"), ("x", "y"))
    train, to_digits = cross_dataset(ABC, [other], Path("base"), ["3"])
    assert (train.sources, train.targets, train.test, train.model_dir) == (ABC.domains, ABC.domains, False, None)
    assert (to_digits.dataset, to_digits.targets) == (other, ("x", "y"))
    assert to_digits.model_dir == train.folder == Path("base/cross/train/seed3")
    command = run_command("SPG", to_digits, "m.yaml", "RN50", ["A", "1"], "labels", "features")
    assert command[command.index("--model-dir") + 1] == "base/cross/train/seed3"
    assert "--eval-only" in command and command[-2:] == ["A", "1"]
    command = run_command("SPG", train, "m.yaml", "RN50", [], "labels", "features")
    assert command[-2:] == ["TEST.NO_TEST", "True"] and "--eval-only" not in command


def test_words_of_each_protocol():
    args = launch.parse_args(["--protocol", "cross", "spg", "domainnet", "pacs,vlcs", "RN50", "OPTIM.LR", "1"])
    assert (args.dataset, args.tested, args.backbone, args.opts) == (
        "domainnet",
        "pacs,vlcs",
        "RN50",
        ["OPTIM.LR", "1"],
    )
    assert launch.parse_args(["zsclip,coop", "pacs"]).trainers == ["ZeroshotCLIP", "CoOp"]
    with pytest.raises(SystemExit):
        launch.parse_args(["--protocol", "sideways", "spg"])


def test_single_source(launched, tmp_path, image_folder, clip_file):
    finished = launched("coop/single.sh", image_folder, clip_file, *QUICK, SOURCES="blue")
    assert finished.returncode == 0, finished.stderr
    found = read_results(tmp_path / "output/stripes/CoOp/tiny/default/from_blue/seed1/results.json")
    assert found["protocol"] == "single-source"
    assert (found["source_domains"], found["target_domains"]) == (["blue"], ["green", "red"])
    assert sorted(found["accuracy_by_domain"]) == ["green", "red"]
    assert "single-source" in finished.stdout


@pytest.fixture
def digits(tmp_path, image_folder):
    """Another data set: other domains, and three classes of other names."""
    root = tmp_path / "digits"
    for domain in ("drawn", "printed"):
        for classname, source in (("one", "red/down"), ("two", "blue/across"), ("three", "green/down")):
            shutil.copytree(image_folder / source, root / domain / classname)
    return root


@pytest.mark.parametrize(("method", "trainer"), [("spg", "SPG"), ("zsclip", "ZeroshotCLIP")])
def test_cross_dataset(launched, tmp_path, image_folder, digits, clip_file, method, trainer):
    words = (f"{method}/cross.sh", image_folder, digits, clip_file, *QUICK)
    finished = launched(*words)
    assert finished.returncode == 0, finished.stderr
    base = tmp_path / f"output/stripes/{trainer}/tiny/default/cross"
    found = read_results(base / "to_digits/seed1/results.json")
    assert (found["protocol"], found["trained_on"], found["dataset"]) == ("cross-dataset", "stripes", "digits")
    assert found["source_domains"] == ["blue", "green", "red"]
    assert found["target_domains"] == ["drawn", "printed"]
    assert found["classnames"] == ["one", "three", "two"]
    assert found["n_test"] == 30
    # Of the training, not of the test: so that models of other training data do not pass for comparable.
    trained = read_record(base / "train/seed1/trained.json")
    assert trained["selection"] == found["selection"] == (None if trainer == "ZeroshotCLIP" else "best_val")
    assert trained["num_shots"] == found["num_shots"] == -1
    assert trained["data_fingerprint"] == found["data_fingerprint"] != found["test_fingerprint"]
    assert not (base / "train/seed1/results.json").exists()
    assert "cross-dataset" in finished.stdout
    assert launched(*words).stdout.count("finished before") == 2


def test_a_model_of_another_backbone_is_not_tested(finished, train, tmp_path, capsys):
    import torch
    from reference import tiny_clip

    finished("CoOp")
    state = tiny_clip().state_dict()
    state["text_projection"] += 1
    torch.save(state, tmp_path / "other.pt")
    capsys.readouterr()
    flags = ["--eval-only", "--model-dir", "run", "--output-dir", "tested", "--backbone", "other.pt"]
    assert train("CoOp", "red", flags=flags) == 1
    assert "was trained with another CLIP than other.pt" in capsys.readouterr().err


def test_clipping_is_off_if_all_targets_are_named(train, tmp_path, capsys):
    assert train("SPG", "red", "TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "('purple',)") == 1
    message = capsys.readouterr().err
    assert "GRAD_CLIP_OFF_TARGETS names purple" in message and "blue, green, red" in message


def test_a_missing_set_names_the_command_that_downloads_it(launched):
    finished = launched("spg/main.sh", "vlcs")
    assert finished.returncode == 1
    assert "To download it: python scripts/download.py vlcs --root data" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_comparison_goes_on_where_one_method_fails(bash, tmp_path, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK, *OTHER_SET)
    finished = bash(*words, METHODS="zsclip,spg", TARGETS="red")
    assert finished.returncode == 1
    assert "1 of 2 runs failed:\n  [2/2] SPG on stripes, target red" in finished.stdout
    assert "ZeroshotCLIP" in finished.stdout
    assert (tmp_path / "output/stripes/report.html").is_file()


def test_a_comparison_goes_on_where_a_setting_is_none_of_one_method(launched, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK, "TEST.FINAL_MODEL", "last_step")
    finished = launched(*words, METHODS="zsclip,linear_probe", TARGETS="red")
    assert finished.returncode == 1
    assert "Error: TEST.FINAL_MODEL is 'last_step'; accepted by LinearProbe: best_val" in finished.stderr
    assert "ZeroshotCLIP" in finished.stdout
    assert "Not run to the end, see the errors above: LinearProbe" in finished.stdout
    finished = launched(*words, "TRAIN.PRINT_FREQ", "0", METHODS="zsclip,zsclip2", TARGETS="red")
    assert finished.returncode == 1 and finished.stderr.count("TRAIN.PRINT_FREQ is 0") == 1
    assert "see the errors above: ZeroshotCLIP, ZeroshotCLIP2" in finished.stdout


def test_a_comparison_ends_with_differences(launched, tmp_path, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK)
    finished = launched(*words, METHODS="zsclip,zsclip2", TARGETS="red")
    assert finished.returncode == 0, finished.stderr
    assert "Difference to ZeroshotCLIP in points" in finished.stdout
    page = (tmp_path / "output/stripes/report.html").read_text()
    assert "Difference to ZeroshotCLIP in points" in page
    finished = launched(*words, METHODS="zsclip,zsclip2", TARGETS="red", BASELINE="zsclip2")
    assert "Difference to ZeroshotCLIP2 in points" in finished.stdout
    assert "Difference to" not in launched(*words, METHODS="zsclip,zsclip2", TARGETS="red", BASELINE="").stdout


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CFG": "vit_b16_ep50"}, "name different backbones (RN50, ViT-B/16), which do not compare: name one for all"),
        ({"CFG": "asrun"}, "CFG is 'asrun', but none of CoOp, ZeroshotCLIP has a config of that name"),
        ({"BASELINE": "SPG"}, "BASELINE is 'SPG', which is none of the methods: CoOp, ZeroshotCLIP."),
        ({"METHODS": "coop,copl"}, "METHODS names 'copl'; accepted: some of zsclip, zsclip2, linear_probe, coop, "),
        ({"METHODS": "coop,spgg,dpspgg"}, "METHODS names 'spgg', 'dpspgg'; accepted: "),
        ({"METHODS": "Maple2"}, "Did you mean "),
        ({"METHODS": ","}, "METHODS names nothing; accepted: "),
        ({"SEEDS": " "}, "SEEDS is ' '; accepted: numbers from 0 with spaces between"),
        ({"SEEDS": "1,2"}, "SEEDS is '1,2'; accepted: numbers from 0 with spaces between"),
        ({"SEEDS": "1 -1"}, "SEEDS is '1 -1'; accepted: numbers from 0 with spaces between"),
        ({"SEEDS": "1 4294967296"}, "up to 4,294,967,295"),
    ],
)
def test_what_cannot_be_compared(launched, image_folder, environment, message):
    finished = launched("compare.sh", image_folder, **{"METHODS": "coop,zsclip", **environment})
    assert finished.returncode == 1
    assert finished.stderr.startswith("Error: ") and message in finished.stderr and finished.stderr.count("\n") == 1


def test_seeds_methods_and_domains_given_twice_run_once(launched, tmp_path, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK)
    finished = launched(*words, METHODS="zsclip,ZeroshotCLIP", TARGETS="red,Red", SEEDS="01 1 001")
    assert finished.returncode == 0, finished.stderr
    found = [path.parent.name for path in (tmp_path / "output/stripes").rglob("results.json")]
    assert found == ["seed1"]
    finished = launched("zsclip/single.sh", image_folder, clip_file, *QUICK, SOURCES="blue blue", SEEDS="2 02")
    assert finished.returncode == 0, finished.stderr
    assert "[1/1] ZeroshotCLIP on stripes, source blue, seed 2" in finished.stdout


def test_one_domain_is_not_enough(launched, tmp_path, image_folder, clip_file):
    shutil.copytree(image_folder / "red", tmp_path / "alone" / "red")
    finished = launched("coop/main.sh", "alone", clip_file)
    assert finished.returncode == 1
    assert finished.stderr.startswith("Error: alone has one domain, red; generalization takes another one")


def test_a_method_that_cannot_be_run_does_not_stop_the_others(launched, tmp_path, image_folder, clip_file):
    one = ["DATALOADER.TRAIN_X.BATCH_SIZE", "1"]
    finished = launched("compare.sh", image_folder, clip_file, *QUICK, *one, METHODS="dpl,zsclip", TARGETS="red")
    assert finished.returncode == 1
    assert "Error: DATALOADER.TRAIN_X.BATCH_SIZE is 1, but its context is a mean" in finished.stderr
    assert "Not run to the end, see the errors above: DPL" in finished.stdout
    page = (tmp_path / "output/stripes/report.html").read_text()
    assert "DPL is not run to the end. DATALOADER.TRAIN_X.BATCH_SIZE is 1, but" in page
    assert (tmp_path / "output/stripes/ZeroshotCLIP/tiny/default/red/seed1/results.json").is_file()


@pytest.mark.parametrize(
    ("send", "number", "code"),
    [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 143)],
)
def test_an_interrupted_launcher_lets_the_run_end_its_step(tmp_path, image_folder, clip_file, send, number, code):
    command = ["bash", str(REPOSITORY / "scripts/coop/main.sh"), str(image_folder), str(clip_file), *QUICK]
    command[-4:-4] = ["OPTIM.MAX_EPOCH", "2000"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "SEEDS": "1", "TARGETS": "red"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    history = tmp_path / "output/stripes/CoOp/tiny/default/red/seed1/history.json"
    wait_for(history.is_file)
    # A terminal's Ctrl-C reaches the whole group; kill reaches the launcher alone, which passes it on.
    send(process.pid, number)
    printed, _ = process.communicate(timeout=MINUTES)
    assert process.returncode == code, printed
    assert "interrupted; the same command goes on from here" in printed
    assert "Traceback" not in printed
