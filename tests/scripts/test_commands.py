"""Every command starts in any folder, and names a missing PyTorch in one message."""

import subprocess
import sys

import pytest
from quick_run import REPOSITORY

CONTRACTS = ("launch", "report", "results", "status")  # tests/contracts starts these, train.py and predict.py
COMMANDS = sorted(path for path in (REPOSITORY / "scripts").glob("[!_]*.py") if path.stem not in CONTRACTS)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_command_in_another_folder_prints_its_help(path, tmp_path):
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout


@pytest.mark.parametrize("name", ["train.py", "predict.py", "scripts/results.py", "scripts/launch.py"])
def test_command_without_packages_is_one_message(name, tmp_path):
    # -S: without site-packages.
    command = [sys.executable, "-S", REPOSITORY / name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"Error: {sys.executable} lacks PyTorch. ") and done.stderr.count("\n") == 1
