"""Output of a run: progress bars below lines on a terminal, lines alone elsewhere."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from quick_run import REPOSITORY, command_line

from trainers.modules.features import encode_dataset


def test_lines_appear_above_the_bars(tmp_path, image_folder, clip_file):
    pty = pytest.importorskip("pty")  # not on Windows
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    arguments = command_line("CoOp", "red", root=image_folder, clip=clip_file)
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        cwd=tmp_path,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "SPG_DASSL": "bundled"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 2**16):
            shown += chunk
    except OSError:  # how a terminal ends on Linux
        pass
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))
    assert re.search(r"CoOp \(blue, green\): +0%", text)  # epochs
    # Each line starts at the left, where a bar was cleared.
    lines = re.findall(r"[^\r\n]*epoch \[\d/2\] batch \[\d/2\][^\r\n]*", text)
    assert len(lines) == 4
    assert not [line for line in lines if not line.startswith("epoch [")]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("epoch [") == 4 and "%|" not in log


def test_without_a_terminal_long_passes_print_lines(monkeypatch, capsys):
    monkeypatch.setattr("common.progress.SECONDS_BETWEEN_LINES", 0)
    data = [{"img": torch.zeros(3, 2, 2)} for _ in range(5)]
    encode_dataset(data, lambda image: image.flatten(1)[:, :4], np.empty((5, 4), np.float32), 2, 0, "test")
    printed = capsys.readouterr()
    assert "Encoding test: 100% 5/5 " in printed.err and printed.out == ""
