"""Loader workers with a temporary folder that they cannot use."""

import os
import subprocess
import sys

import pytest
from quick_run import REPOSITORY
from waiting import MINUTES

SCRIPT = """
import multiprocessing.util, shutil, sys, torch
from torch.utils.data import DataLoader
from common.errors import explain
from trainers.modules.loader_workers import prepare_loader_workers
prepare_loader_workers(1)
if "remove" in sys.argv:
    shutil.rmtree(multiprocessing.util.get_temp_dir())
try:
    print([batch.tolist() for batch in DataLoader(torch.arange(3), num_workers=1)])
except OSError as error:
    print(explain(error))
"""


def load_with(folder, *arguments):
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MINUTES).stdout.strip()


@pytest.mark.parametrize("length", [75, 76, 120])
def test_loader_with_a_long_temporary_folder_gives_its_batches(length, tmp_path):
    folder = tmp_path / ("t" * max(1, length - len(str(tmp_path)) - 1))
    folder.mkdir()
    assert load_with(folder) == "[[0], [1], [2]]"


def test_worker_that_cannot_send_its_batch_raises_in_the_main_process(tmp_path):
    assert load_with(tmp_path, "remove").startswith("A loader worker failed: FileNotFoundError")
