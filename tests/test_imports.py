"""Commands start without the packages that they do not use."""

import subprocess
import sys

import pytest
from quick_run import REPOSITORY


def modules_of(code):
    """The modules that are loaded after some code."""
    code = f"import sys, common.startup; common.startup.prepare_imports(); {code}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_method_import_loads_at_most_50_of_our_modules():
    names = [name.partition(".")[0] for name in modules_of("import trainers.coop")]
    assert 20 < sum(names.count(folder) for folder in ("trainers", "common", "datasets", "scripts")) <= 50
    assert not {"sklearn", "pandas", "matplotlib"} & set(names)  # together as slow as PyTorch


@pytest.mark.parametrize(
    "words",
    [
        ("train.py", "--help"),
        ("predict.py", "--help"),
        ("scripts/launch.py", "--help"),
        ("scripts/results.py", "."),
        ("scripts/status.py", "."),
        ("scripts/download.py", "--list"),
    ],
)
def test_command_starts_without_torch(tmp_path, words):
    command = [sys.executable, "-X", "importtime", REPOSITORY / words[0], *words[1:]]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    modules = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "argparse" in modules and not {"torch", "sklearn"} & modules and "Traceback" not in run.stderr
