"""Follow CONTRIBUTING.md's four steps in a copy of the repository: the new method trains, tests, predicts."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from quick_run import REPOSITORY

from common.run import read_results


@pytest.fixture
def copy(tmp_path):
    """A copy of the product with the example method."""
    root = tmp_path / "repository"
    for room in ("common", "compat", "configs", "datasets", "scripts", "trainers"):
        shutil.copytree(REPOSITORY / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "predict.py", "requirements.txt"):
        shutil.copy(REPOSITORY / name, root)
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL)
    imports, row = (re.sub(r"^ +", "", block, flags=re.MULTILINE) for block in blocks)

    shutil.copy(REPOSITORY / "examples/taskres.py", root / "trainers")
    insert(root / "trainers/all.py", "import trainers.zsclip", imports)
    insert(root / "trainers/methods.py", "    Method(\n", "    " + row)
    config = (root / "configs/trainers/CoOp/default.yaml").read_text().partition("\nTRAINER:")[0]
    (root / "configs/trainers/TaskRes").mkdir()
    (root / "configs/trainers/TaskRes/default.yaml").write_text(config + "\n")
    shutil.copytree(root / "scripts/coop", root / "scripts/taskres")
    return root


def insert(path, before, text):
    content = path.read_text(encoding="utf-8")
    assert before in content
    path.write_text(content.replace(before, text + before, 1), encoding="utf-8")


def test_contributing_steps_add_a_working_method(copy, tmp_path, image_folder, clip_file):
    variables = {"PYTHON": sys.executable, "TARGETS": "red", "SEEDS": "1", "OUTPUT": str(tmp_path / "out")}
    environment = {**os.environ, **variables}
    words = [str(image_folder), str(clip_file), "OPTIM.MAX_EPOCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    command = ["bash", str(copy / "scripts/taskres/main.sh"), *words]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Note: without effect" not in found.stderr
    (path,) = (tmp_path / "out").rglob("results.json")
    result = read_results(path)
    assert result["trainer"] == "TaskRes" and len(result["val_history"]) == 2
    assert "| TaskRes" in found.stdout

    images = sorted(map(str, (image_folder / "red").rglob("*.png")))
    command = [sys.executable, str(copy / "predict.py"), "--model-dir", str(path.parent), "--format", "csv", *images]
    predicted = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert predicted.returncode == 0, predicted.stderr
    assert len(predicted.stdout.splitlines()) == 1 + 2 * len(images)
