"""The launchers of all methods by the table of methods, their flags and variables, and what --print prints."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from dataset_trees import make_set
from quick_run import REPOSITORY

from common.errors import UserError
from common.run.results import RESULTS_FILE
from datasets.benchmarks import SPG_PACS
from scripts import launch
from scripts.launching.sets import find_set
from trainers.methods import METHODS, PROTOCOLS

SCRIPTS = REPOSITORY / "scripts"
VARIABLES = {
    "PROTOCOL": "single",
    "METHODS": "zsclip,coop",
    "JOBS": "2",
    "DATA": "sets",
    "OUTPUT": "elsewhere",
    "SEEDS": "4 5",
    "SOURCES": "art photo",
    "CFG": "as_run",
    "BASELINE": "coop",
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Nothing from the environment that the tests run in."""
    for name in (*VARIABLES, "TARGETS"):
        monkeypatch.delenv(name, raising=False)


def files_of(protocol):
    return f"{'main' if protocol == 'multi' else protocol}.sh"


def test_each_method_has_the_launchers_of_its_protocols_and_all_are_alike():
    expected = {f"{one.name}/{files_of(p)}" for one in METHODS if one.launchers for p in one.protocols}
    found = {path.relative_to(SCRIPTS).as_posix(): path.read_text() for path in SCRIPTS.glob("*/*.sh")}
    shared = found.pop("launching/launcher.sh")
    assert set(found) == expected
    (content,) = set(found.values())
    assert content == '#!/usr/bin/env bash\nsource "$(dirname "$0")/../launching/launcher.sh"\n'
    assert not any(one.name in shared.replace("scripts/spg/main.sh", "") for one in METHODS)


def run(script, *words, cwd, **environment):
    """Run a launcher; returns the finished process."""
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("cocoop/main.sh", "--protocol multi --methods cocoop"),
        ("linear_probe/single.sh", "--protocol single --methods linear_probe"),
        ("spg/cross.sh", "--protocol cross --methods spg"),
        ("compare.sh", "--compare"),
    ],
)
def test_a_launcher_passes_on_its_method_its_protocol_and_its_words(tmp_path, script, arguments):
    # The Python that is named writes down what it is asked to run.
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$1" in */launch.py) for word; do echo "$word"; done > ran;; esac\n')
    python.chmod(0o755)
    finished = run(script, "--print", "my pictures", "RN50", cwd=tmp_path, PYTHON=str(python))
    assert finished.returncode == 0, finished.stderr
    expected = [str(SCRIPTS / "setup.sh").replace("setup.sh", "launch.py"), *arguments.split()]
    assert (tmp_path / "ran").read_text().splitlines() == [*expected, "--print", "my pictures", "RN50"]


def test_help_of_a_launcher_tells_every_variable_and_every_method(tmp_path):
    finished = run("spg/main.sh", "--help", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    for name in (*VARIABLES, "TARGETS"):
        assert f"--{name.lower()} " in finished.stdout and name in finished.stdout
    for method in METHODS:
        assert method.trainer in finished.stdout and method.summary in finished.stdout


# ---- the command line ----


def test_variables_give_flags_their_defaults(monkeypatch):
    by_flags = [word for name, value in VARIABLES.items() for word in (f"--{name.lower()}", value)]
    expected = launch.parse_args(["--compare", *by_flags, "pacs"])
    assert (expected.trainers, expected.protocol, expected.domains) == (
        ["ZeroshotCLIP", "CoOp"],
        "single",
        "art photo",
    )
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert launch.parse_args(["--compare", "pacs"]) == expected
    assert launch.parse_args(["--compare", "--seeds", "7", "pacs"]).seeds == "7"


def test_methods_of_the_environment_are_those_of_a_comparison_alone(monkeypatch):
    monkeypatch.setenv("METHODS", "zsclip")
    assert launch.parse_args(["coop", "pacs"]).trainers == ["CoOp"]
    assert launch.parse_args(["--methods", "coop", "pacs"]).trainers == ["CoOp"]
    assert launch.parse_args(["--compare", "--methods", "coop", "pacs"]).trainers == ["CoOp"]
    assert launch.parse_args(["--compare", "pacs"]).trainers == ["ZeroshotCLIP"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_comparison_is_of_all_that_have_the_protocol(protocol):
    found = launch.parse_args(["--compare", "--protocol", protocol])
    assert found.trainers == [one.trainer for one in METHODS if one.compared and protocol in one.protocols]
    assert found.report


def test_other_protocols_domains_in_the_environment_do_no_harm(monkeypatch):
    monkeypatch.setenv("TARGETS", "photo")
    assert launch.parse_args(["--protocol", "single", "spg"]).domains == ""
    assert launch.parse_args(["spg"]).domains == "photo"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a method: zsclip, "),
        (["--compare", "pacs", "RN50", "more"], "found: pacs RN50 more"),
        (["spg", "--print"], "flags come before all words; found after them: --print"),
        (["--protocol", "sideways", "spg"], "--protocol is sideways; accepted: multi, single, cross"),
        (["--protocol", "cross", "--targets", "photo", "spg"], "--targets goes with --protocol multi"),
        (["--sources", "photo", "spg"], "--sources goes with --protocol single"),
    ],
)
def test_words_that_are_none(words, message, capsys):
    with pytest.raises(SystemExit):
        launch.parse_args(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", [one for one in METHODS if one.protocols != PROTOCOLS], ids=lambda one: one.name)
def test_a_protocol_that_a_method_does_not_have(method, capsys):
    for protocol in PROTOCOLS:
        if protocol not in method.protocols:
            assert launch.main(["--protocol", protocol, method.name]) == 1
            message = capsys.readouterr().err
            assert message.startswith(f"Error: {method.trainer} has no protocol {protocol}, ")
            assert message.endswith(", spg.\n") and message.count("\n") == 1


# ---- --print ----


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """The commands that launch.py prints in tmp_path/here, as lists of words; comments are as a shell takes them."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words):
        capsys.readouterr()
        assert launch.main(["--print", "--seeds", "1", *map(str, words)]) == 0
        return [words for line in capsys.readouterr().out.splitlines() if (words := shlex.split(line, comments=True))]

    return call


def test_printed_commands_do_the_runs_from_any_folder(tmp_path, printed, runs_here, image_folder, clip_file):
    here = tmp_path / "here"
    shutil.copytree(image_folder, here / "my pictures")
    shutil.copy(clip_file, here / "tiny.pt")
    words = ["--targets", "red blue", "zsclip", "my pictures", "tiny.pt", "DATALOADER.NUM_WORKERS", "0"]
    commands = printed(*words)
    assert [command[command.index("--target-domains") + 1] for command in commands] == ["red", "blue"]
    assert all(command[:2] == [sys.executable, str(REPOSITORY / "train.py")] for command in commands)
    assert sorted(os.listdir(here)) == ["my pictures", "tiny.pt"]  # nothing written
    assert subprocess.run(commands[0], cwd="/", capture_output=True, check=False).returncode == 0
    folder = here / "output/my pictures/ZeroshotCLIP/tiny/default/red/seed1"
    assert (folder / RESULTS_FILE).is_file()
    assert printed(*words) == commands[1:]
    # The launcher takes the run for its own.
    assert launch.main(["--seeds", "1", *words]) == 0


def test_printed_commands_of_cross_dataset_begin_with_the_training(tmp_path, printed, image_folder, clip_file):
    shutil.copytree(image_folder, tmp_path / "here" / "other")
    first, second = printed("--protocol", "cross", "coop", image_folder, "other", clip_file)
    assert "--eval-only" not in first
    assert second[second.index("--model-dir") + 1] == first[first.index("--output-dir") + 1]
    assert second[second.index("--root") + 1] == str(tmp_path / "here" / "other")


def test_nothing_is_printed_for_a_folder_with_another_run(printed, runs_here, image_folder, clip_file, capsys):
    words = ["--targets", "red", "zsclip", str(image_folder), str(clip_file), "DATALOADER.NUM_WORKERS", "0"]
    assert launch.main(["--seeds", "1", *words]) == 0
    assert printed(*words) == []
    capsys.readouterr()
    assert launch.main(["--print", "--seeds", "1", *words, "TEST.KEEP_LOGITS", "False"]) == 1
    found = capsys.readouterr()
    assert "holds a run that was started differently" in found.err and found.out == ""


def test_nothing_is_downloaded_for_what_is_printed(tmp_path, monkeypatch, capsys):
    from datasets.download import offer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(offer, "offer_download", lambda *_: pytest.fail("offered"))
    assert launch.main(["--print", "spg", "vlcs"]) == 1
    assert "To download it: python scripts/download.py vlcs --root data" in capsys.readouterr().err


@pytest.fixture
def spaced(tmp_path):
    """A folder whose domains have spaces and commas in their names."""
    for domain in ("phone cam", "phone", "Real World", "indoor, dark", "indoor"):
        for classname in ("cat", "dog"):
            (tmp_path / "spaced" / domain / classname).mkdir(parents=True)
    return tmp_path / "spaced"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("phone cam", ["phone cam"]),
        (" phone cam ", ["phone cam"]),
        ("Phone_Cam", ["phone cam"]),
        ("phone indoor", ["phone", "indoor"]),
        ("phone cam,indoor", ["phone cam", "indoor"]),
        ("phone , phone cam,", ["phone", "phone cam"]),
        ("indoor, dark", ["indoor, dark"]),
        ("indoor,phone", ["indoor", "phone"]),
        ("real world", ["Real World"]),
        ("realworld  phone", ["Real World", "phone"]),
        ("indoor", ["indoor"]),
        ("", ["Real World", "indoor", "indoor, dark", "phone", "phone cam"]),
    ],
)
def test_domains_whose_names_have_spaces_or_commas(text, expected, spaced):
    assert list(find_set(str(spaced), "", text).chosen) == expected


@pytest.mark.parametrize(
    ("text", "unknown"),
    [("phone cam indoor", "'cam'"), ("phone came", "'came'"), ("phone cam,dark", "'dark'"), (",", "','")],
)
def test_unknown_domains_say_how_several_are_named(text, unknown, spaced):
    with pytest.raises(UserError, match=f"has no domain {unknown}. Accepted: Real World, indoor, ") as error:
        find_set(str(spaced), "", text)
    assert "with commas between, or with spaces where no name has one" in str(error.value)


@pytest.mark.parametrize(("protocol", "flag", "of_run"), [("multi", "--targets", 0), ("single", "--sources", 1)])
def test_the_flags_take_such_names(protocol, flag, of_run, printed, spaced, clip_file):
    commands = printed("--protocol", protocol, flag, "phone cam,indoor", "zsclip", spaced, clip_file)
    key = ("--target-domains", "--source-domains")[of_run]
    assert [command[command.index(key) + 1] for command in commands] == ["phone cam", "indoor"]


def test_codes_are_still_told_apart_by_spaces(tmp_path):
    make_set(tmp_path, SPG_PACS, SPG_PACS.layouts[0], per_class=1)
    for text in ("a s", "a,s", "art painting,SKETCH", "a  sketch"):
        assert find_set("pacs", str(tmp_path), text).chosen == ("art_painting", "sketch")
    assert find_set("pacs", str(tmp_path), "art painting").chosen == ("art_painting",)
