"""Loader workers with a temporary folder that they cannot use."""

import os
import subprocess
import sys

from quick_run import REPOSITORY
from waiting import MINUTES

SCRIPT = """
import multiprocessing.util, shutil, torch
from torch.utils.data import DataLoader
from common.errors import explain
from trainers.modules.loader_workers import prepare_loader_workers
prepare_loader_workers(1)
loader = DataLoader(torch.arange(3), num_workers=1)
print([batch.tolist() for batch in loader])
shutil.rmtree(multiprocessing.util.get_temp_dir())
try:
    list(loader)
except OSError as error:
    print(explain(error))
"""


def test_loader_workers_with_a_long_temporary_folder_send_batches_and_errors(tmp_path):
    folder = tmp_path / ("t" * max(1, 120 - len(str(tmp_path))))
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MINUTES)
    batches, error = found.stdout.splitlines()
    assert batches == "[[0], [1], [2]]"
    assert error.startswith("A loader worker failed: FileNotFoundError")
