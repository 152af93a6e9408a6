"""Allowed imports between the folders of the repository."""

import ast
import subprocess
import sys

import pytest
from imports import imported, tree_of
from quick_run import REPOSITORY


def within(name, package):
    return name == package or name.startswith(f"{package}.")


PARTS = sorted((REPOSITORY / "trainers/modules").glob("*.py"))


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_trainer_modules_import_no_dassl_configs_or_trainers(path):
    for name in imported(tree_of(path)):
        assert not any(within(name, package) for package in ("dassl", "yacs", "datasets", "common.config_keys"))
        assert not within(name, "trainers") or within(name, "trainers.modules")
    names = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
    assert "cfg" not in names


def test_only_download_and_launcher_import_datasets_download():
    users = [
        path.relative_to(REPOSITORY).as_posix()
        for room in ("trainers", "common", "datasets", "scripts", "compat")
        for path in (REPOSITORY / room).rglob("*.py")
        if any(within(name, "datasets.download") for name in imported(tree_of(path)))
    ]
    found = {path for path in users if not path.startswith("datasets/download/")}
    assert found == {"scripts/download.py", "scripts/launching/jobs.py"}


def test_method_import_loads_at_most_50_modules():
    code = (
        "import sys, common.startup; common.startup.prepare_imports(); import trainers.coop; "
        "ours = {'trainers', 'common', 'datasets', 'scripts'}; "
        "print(*(name for name in sys.modules if name.partition('.')[0] in ours))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert 20 < len(run.stdout.split()) <= 50, run.stdout
