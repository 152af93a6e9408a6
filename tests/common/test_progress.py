"""Output of a run: progress bars below lines on a terminal, lines alone elsewhere."""

import contextlib
import os
import re
import threading

import numpy as np
import pytest
import torch

from trainers.modules.features import encode_dataset


def run_on_a_terminal(run):
    """Run a function while stdout and stderr are a terminal; return its result and the text without escape codes."""
    pty = pytest.importorskip("pty")  # not on Windows
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    shown = []

    def read():
        with contextlib.suppress(OSError):  # how a terminal ends on Linux
            while chunk := os.read(ours, 2**16):
                shown.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with (
        open(theirs, "w", buffering=1) as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        result = run()
    reader.join()
    os.close(ours)
    return result, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(shown).decode(errors="replace"))


def test_train_on_a_terminal_prints_lines_above_its_bars(train, tmp_path):
    code, text = run_on_a_terminal(lambda: train("CoOp", "red"))
    assert code == 0
    assert re.search(r"CoOp \(blue, green\): +0%", text)  # epochs
    # Each line starts at the left, where a bar was cleared.
    lines = re.findall(r"[^\r\n]*epoch \[\d/2\] batch \[\d/2\][^\r\n]*", text)
    assert len(lines) == 4
    assert not [line for line in lines if not line.startswith("epoch [")]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("epoch [") == 4 and "%|" not in log


def test_encoding_without_a_terminal_prints_lines(monkeypatch, capsys):
    monkeypatch.setattr("common.progress.SECONDS_BETWEEN_LINES", 0)
    data = [{"img": torch.zeros(3, 2, 2)} for _ in range(5)]
    encode_dataset(data, lambda image: image.flatten(1)[:, :4], np.empty((5, 4), np.float32), 2, 0, "test")
    printed = capsys.readouterr()
    assert "Encoding test: 100% 5/5 " in printed.err and printed.out == ""
