"""One process for each output folder."""

import os
import subprocess
import sys

from quick_run import REPOSITORY


def test_one_owner(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    hold = (
        "import sys; from common.run.lock import owned\nwith owned('run'): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert train("ZeroshotCLIP", "red") == 1
        message = capsys.readouterr().err
        assert f"run is in use by process {holder.pid} on " in message
        assert "--output-dir" in message
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / "run" / "owner.lock").exists()  # stale
    assert train("ZeroshotCLIP", "red") == 0
