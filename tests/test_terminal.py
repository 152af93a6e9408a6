"""What a run looks like on a terminal: lines, with bars for epochs and batches below them."""

import os
import re
import subprocess
import sys

import pytest
from quick_run import REPOSITORY, command_line

pty = pytest.importorskip("pty")  # not on Windows


def test_lines_appear_above_the_bars(tmp_path, image_folder, clip_file):
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
    assert re.search(r"Epoch 1: +0%.*batch", text)
    # Each line starts at the left, where a bar was cleared.
    lines = re.findall(r"[^\r\n]*epoch \[\d/2\] batch \[\d/2\][^\r\n]*", text)
    assert len(lines) == 4
    assert not [line for line in lines if not line.startswith("epoch [")]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("epoch [") == 4 and "%|" not in log
