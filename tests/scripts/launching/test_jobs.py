"""The command line of launchers, the jobs of each protocol, and the errors that users meet."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import CLIP, QUICK
from quick_run import REPOSITORY

from common.run import read_results
from scripts import launch
from scripts.launching.jobs import Set, list_runs
from trainers.methods import METHODS, PROTOCOLS

ABC = Set("letters", Path("letters.yaml"), "data", ("a", "b", "c"), ("a", "c"), "letters")
VARIABLES = {
    "PROTOCOL": "single",
    "METHODS": "zsclip,coop",
    "JOBS": "2",
    "ENGINE": "slurm",
    "RAY_ADDRESS": "auto",
    "TASK_GPUS": "0.5",
    "SLURM_PARTITION": "gpu",
    "SLURM_TIME": "8:00:00",
    "SLURM_GPUS": "1",
    "SLURM_OPTIONS": "qos=long",
    "DATA": "sets",
    "OUTPUT": "elsewhere",
    "SEEDS": "4 5",
    "SOURCES": "art photo",
    "CFG": "as_run",
    "BASELINE": "coop",
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*VARIABLES, "TARGETS"):
        monkeypatch.delenv(name, raising=False)


def test_scripts_each_method_has_the_launchers_of_its_protocols():
    names = {protocol: f"{'main' if protocol == 'multi' else protocol}.sh" for protocol in PROTOCOLS}
    expected = {f"{one.name}/{names[p]}" for one in METHODS if one.launchers for p in one.protocols}
    found = {path.relative_to(REPOSITORY / "scripts").as_posix() for path in REPOSITORY.glob("scripts/*/*.sh")}
    assert found == expected


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("cocoop/main.sh", "--script {}"),
        ("spg/cross.sh", "--script {}"),
        ("compare.sh", "--compare"),
    ],
)
def test_scripts_pass_on_method_protocol_and_words(tmp_path, start, script, arguments):
    (tmp_path / "python").write_text(
        '#!/bin/sh\ncase "$1" in */launch.py) for word; do echo "$word"; done > ran;; esac\n'
    )
    (tmp_path / "python").chmod(0o755)
    assert start(script, "--print", "my pictures", "RN50", PYTHON=str(tmp_path / "python")).end()[0] == 0
    words = arguments.format(REPOSITORY / "scripts" / script).split()
    assert (tmp_path / "ran").read_text().splitlines()[1:] == [*words, "--print", "my pictures", "RN50"]


def test_script_path_defines_method_and_protocol(monkeypatch):
    monkeypatch.setenv("PROTOCOL", "single")
    for script, expected in (("spg/main.sh", ("multi", ["SPG"])), ("coop/cross.sh", ("cross", ["CoOp"]))):
        args = launch.parse_args(["--script", str(REPOSITORY / "scripts" / script), "pacs"])
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a method: zsclip, "),
        (["--compare", "pacs", "RN50", "more"], "found: pacs RN50 more"),
        (["spg", "--target", "photo", "pacs", "--pint"], "unrecognized arguments: --pint"),
        (["--protocol", "sideways", "spg"], "--protocol is sideways"),
        (["--protocol", "cross", "--targets", "photo", "spg"], "--targets goes with --protocol multi"),
    ],
)
def test_launcher_with_wrong_words_is_an_error(words, message, capsys):
    with pytest.raises(SystemExit):
        launch.parse_args(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CFG": "vit_b16_ep50"}, "name different backbones (RN50, ViT-B/16)"),
        ({"CFG": "asrun"}, "CFG is 'asrun'"),
        ({"BASELINE": "SPG"}, "BASELINE is 'SPG'"),
        ({"METHODS": "coop,spgg"}, "METHODS names 'spgg'"),
        ({"SEEDS": "1,2"}, "SEEDS is '1,2'"),
        ({"JOBS": "0"}, "JOBS is '0'"),
        ({"ENGINE": "cloud"}, "ENGINE is 'cloud'; accepted: local, ray, slurm."),
        ({"ENGINE": "ray", "TASK_GPUS": "1.5"}, "TASK_GPUS is '1.5'"),
        ({"ENGINE": "ray", "RAY_ADDRESS": "127.0.0.1:9"}, "RAY_ADDRESS is '127.0.0.1:9', and no Ray answers there"),
        ({"TARGETS": "purple"}, "purple"),
    ],
)
def test_launcher_with_wrong_settings_prints_one_message(run_launcher, tmp_path, image_folder, environment, message):
    if environment.get("ENGINE") == "ray":
        pytest.importorskip("ray")
    code, _, errors = run_launcher("compare.sh", image_folder, **{"METHODS": "coop,zsclip", **environment})
    *notes, error = errors.splitlines()
    assert code == 1 and error.startswith("Error: ") and message in error
    assert all(line.startswith("Note: ") for line in notes)
    assert not list(tmp_path.glob("output/**/log.txt"))


def test_missing_data_names_the_download(run_launcher):
    code, _, errors = run_launcher("spg/main.sh", "vlcs")
    assert code == 1 and "To download it: python scripts/download.py vlcs --root data" in errors


# ---- protocols ----


def test_protocols_have_the_expected_runs():
    everywhere = ABC.domains
    assert list(list_runs("multi", [ABC])) == [
        ("target a", ABC, ("b", "c"), ("a",), "a"),
        ("target c", ABC, ("a", "b"), ("c",), "c"),
    ]
    assert list(list_runs("single", [ABC])) == [
        ("source a", ABC, ("a",), ("b", "c"), "from_a"),
        ("source c", ABC, ("c",), ("a", "b"), "from_c"),
    ]
    other = Set("digits", Path("digits.yaml"), "elsewhere", ("x", "y"), ("x", "y"), "digits")
    assert list(list_runs("cross", [ABC, other])) == [
        ("training on letters", ABC, everywhere, everywhere, "cross/train"),
        ("letters to digits", other, ("x", "y"), ("x", "y"), "cross/to_digits"),
    ]


def test_two_domains_have_the_same_runs_in_both_protocols():
    two = Set("letters", Path("letters.yaml"), "data", ("a", "b"), ("a", "b"), "letters")
    runs = [{(sources, place) for _, _, sources, _, place in list_runs(p, [two])} for p in ("multi", "single")]
    assert runs[0] == runs[1]


@pytest.fixture
def digits(tmp_path, image_folder):
    """Another data set: other domains, and three classes with other names."""
    for domain in ("drawn", "printed"):
        for name, source in (("one", "red/down"), ("two", "blue/across"), ("three", "green/down")):
            shutil.copytree(image_folder / source, tmp_path / "digits" / domain / name)
    return tmp_path / "digits"


def test_cross_tests_the_models_of_its_trainings(run_launcher, tmp_path, image_folder, digits, clip_file):
    words = ("coop/cross.sh", image_folder, digits, clip_file, *QUICK)
    code, output, errors = run_launcher(*words)
    assert code == 0, errors
    base = tmp_path / "output/stripes/CoOp/tiny/default/cross"
    found = read_results(base / "to_digits/seed1/results.json")
    assert (found["protocol"], found["trained_on"], found["dataset"]) == ("cross-dataset", "stripes", "digits")
    assert found["classnames"] == ["one", "three", "two"] and "cross-dataset" in output
    assert not (base / "train/seed1/results.json").exists()
    assert run_launcher(*words)[1].count("finished before") == 2


def test_cross_test_after_failed_training_is_skipped(run_launcher, image_folder, digits, clip_file):
    wrong = ["TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "['purple']"]
    code, output, _ = run_launcher("spg/cross.sh", image_folder, digits, clip_file, *QUICK, *wrong)
    assert code == 1 and "[2/2] SPG on stripes, stripes to digits, seed 1: skipped: it depends on [1/2]" in output
    assert "2 of 2 runs failed" in output


def test_print_lists_commands_that_give_the_same_runs(run_launcher, tmp_path, image_folder, clip_file):
    words = ("zsclip/main.sh", image_folder, clip_file, *QUICK)
    lines = run_launcher("zsclip/main.sh", "--print", *words[1:])[1].splitlines()
    assert len(lines) == 3 and not (tmp_path / "output").exists()
    subprocess.run(shlex.split(lines[0]), cwd="/", check=True, capture_output=True)
    _, output, _ = run_launcher(*words)
    assert output.count("finished before") == 1 and output.count(": done in ") == 2


def test_seeds_methods_and_domains_given_twice_run_once(run_launcher, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK)
    code, output, _ = run_launcher(*words, METHODS="zsclip,ZeroshotCLIP", TARGETS="red,Red", SEEDS="01 1 001")
    assert code == 0 and output.count(": done in ") == 1 and "[1/1]" in output


# ---- comparisons ----


def test_compare_runs_the_methods_that_can_and_reports_the_others(run_launcher, tmp_path, image_folder, clip_file):
    one = ["DATALOADER.TRAIN_X.BATCH_SIZE", "1"]
    words = ("compare.sh", image_folder, clip_file, *QUICK, *one)
    code, output, errors = run_launcher(*words, METHODS="dpl,zsclip,vpt,zsclip2", TARGETS="red")
    assert code == 1 and "Error: DATALOADER.TRAIN_X.BATCH_SIZE is 1, but" in errors
    assert "Left out: VPT puts prompts into the image tower" in errors
    assert "Not run to the end, see the errors above: DPL\n" in output
    assert "Difference to ZeroshotCLIP in points" in output
    page = (tmp_path / "output/stripes/report.html").read_text(encoding="utf-8")
    assert "DPL is not run to the end. DATALOADER.TRAIN_X.BATCH_SIZE is 1, but" in page
    _, output, _ = run_launcher(*words, METHODS="zsclip,zsclip2", TARGETS="red", BASELINE="zsclip2")
    assert "Difference to ZeroshotCLIP2 in points" in output and output.count("finished before") == 2
    assert "Difference to" not in run_launcher(*words, METHODS="zsclip,zsclip2", TARGETS="red", BASELINE="")[1]


def test_settings_without_effect_are_noted_once_for_each_method(run_launcher, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK)
    _, _, errors = run_launcher(*words, METHODS="zsclip,zsclip2", TARGETS="red")
    assert errors.count("Note: without effect on ") == 2


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["OPTIM.LR", "0.1"], "OPTIM.LR"),
        (["DATASET.NUM_SHOTS", "2"], "training images"),
        (["TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH',3]"], "OPTIM.MAX_EPOCH"),
    ],
)
def test_launcher_with_other_settings_in_finished_folder_is_an_error(
    run_launcher, image_folder, clip_file, opts, named
):
    words = ("spg/main.sh", image_folder, clip_file, *QUICK)
    assert run_launcher(*words, TARGETS="red")[0] == 0
    code, _, errors = run_launcher(*words, *opts, TARGETS="red")
    assert code == 1 and "holds a finished run" in errors and named in errors
    assert run_launcher(*words, TARGETS="red")[1].count("finished before") == 1


def test_launcher_with_moved_data_compares_contents(run_launcher, tmp_path, image_folder, clip_file, vit_file):
    for name in ("a", "b"):
        shutil.copytree(image_folder, tmp_path / name / "stripes")
        shutil.copy(clip_file, tmp_path / name / "tiny.pt")
    shutil.copy(image_folder / "red/down/0.png", tmp_path / "b/stripes/red/down/0.png")
    assert run_launcher("coop/main.sh", "a/stripes", "a/tiny.pt", *QUICK, TARGETS="red")[0] == 0
    assert "finished before" in run_launcher("coop/main.sh", "b/stripes", "b/tiny.pt", *QUICK, TARGETS="red")[1]
    shutil.copy(vit_file, tmp_path / "b/tiny.pt")
    code, _, errors = run_launcher("coop/main.sh", "b/stripes", "b/tiny.pt", *QUICK, TARGETS="red")
    assert code == 1 and "other backbone weights" in errors


def test_two_folders_with_one_name_have_two_names(run_launcher, tmp_path, image_folder, clip_file):
    for name in ("x", "y"):
        ignore = shutil.ignore_patterns("spg_coop_splits")
        shutil.copytree(image_folder, tmp_path / name / "test", ignore=ignore)
    shutil.copy(tmp_path / "y/test/red/down/0.png", tmp_path / "y/test/red/across/more.png")
    for word, name in (("x/test", "test"), ("y/test", "y_test"), ("x/test", "test")):
        assert run_launcher("zsclip/main.sh", word, clip_file, *QUICK, TARGETS="red")[0] == 0
        found = read_results(tmp_path / f"output/{name}/ZeroshotCLIP/tiny/default/red/seed1/results.json")
        assert (found["dataset"], found["n_test"]) == (name, 10 + (name == "y_test"))
    (tmp_path / "x/test").rename(tmp_path / "test")  # moved, and the same images
    assert "finished before" in run_launcher("zsclip/main.sh", "test", clip_file, *QUICK, TARGETS="red")[1]
    code, output, _ = run_launcher("zsclip/cross.sh", image_folder, "test,y/test", clip_file, *QUICK)
    assert code == 0 and "| test" in output and "| y_test" in output


def test_launcher_without_words_uses_the_embedded_default(run_launcher):
    lines = run_launcher("spg/main.sh", "--print")[1].splitlines()
    assert len(lines) == 4 and all(CLIP in line and "mini_digits.yaml" in line for line in lines)
