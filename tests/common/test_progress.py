"""Progress without a terminal: lines instead of bars."""

import numpy as np
import torch

from trainers.modules.features import encode_dataset


def test_encoding_without_a_terminal_prints_lines(monkeypatch, capsys):
    monkeypatch.setattr("common.progress.SECONDS_BETWEEN_LINES", 0)
    data = [{"img": torch.zeros(3, 2, 2)} for _ in range(5)]
    encode_dataset(data, lambda image: image.flatten(1)[:, :4], np.empty((5, 4), np.float32), 2, 0, "test")
    printed = capsys.readouterr()
    assert "Encoding test: 100% 5/5 " in printed.err and printed.out == ""
