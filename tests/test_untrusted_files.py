"""Damaged and malicious files raise an error or read right, and never run code."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from dassl.utils import load_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError, user_errors
from common.image_results import read_predictions
from common.run import read_results, write_results
from datasets import names
from datasets.benchmarks import SPG_PACS
from datasets.splits import read_split
from trainers.modules.clip.backbone import load_backbone
from trainers.modules.prompt_labels import load_prompt_label, save_prompt_label

MARK = f"/tmp/spg-ran-code-{os.getpid()}"
ERRORS = user_errors()


class RunsCode:
    def __reduce__(self):
        return (os.system, (f"touch {MARK}",))


@pytest.fixture(params=["prompt label", "checkpoint", "clip", "results"])
def file(request, tmp_path, clip_file):
    """An intact file of some format: (path, function that reads a tensor from it)."""
    path, numbers = tmp_path / "file.pt", torch.arange(16.0).view(4, 4)
    if request.param == "prompt label":
        save_prompt_label(path, numbers, {"OPTIM.LR": 0.002})
        return path, lambda: load_prompt_label(path, 4, 4, {"OPTIM.LR": 0.002})[0]
    if request.param == "checkpoint":
        torch.save({"state_dict": {"ctx": numbers}, "epoch": 1}, path)
        return path, lambda: load_checkpoint(str(path))["state_dict"]["ctx"]
    if request.param == "clip":
        shutil.copy(clip_file, path)
        return path, lambda: load_backbone(str(path)).model.text_projection
    write_results(tmp_path, {"accuracy": 12.5, "trainer": "SPG"})
    path = tmp_path / "results.json"
    return path, lambda: torch.tensor(read_results(path)["accuracy"])


def raises_or_reads_right(read, expected):
    """Return whether reading raised a UserError; otherwise check the value."""
    try:
        torch.testing.assert_close(read(), expected, rtol=0, atol=0)
    except ERRORS as error:
        assert str(error)
        return True
    return False


def test_damaged_file_raises_or_reads_right(file):
    path, read = file
    expected, content, rng = read(), path.read_bytes(), random.Random(0)
    for part in (0.0, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(part * len(content))])
        assert raises_or_reads_right(read, expected) or part > 0.9  # the cut may remove only the last newline
    is_large = len(content) > 10**5
    n_errors = 0
    for _ in range(8 if is_large else 40):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        n_errors += raises_or_reads_right(read, expected)
    assert n_errors or is_large


def test_pickled_code_does_not_run(file):
    path, read = file
    expected = read()
    for malicious in (RunsCode(), {"state_dict": RunsCode(), "epoch": 1}, [RunsCode()]):
        torch.save(malicious, path)
        assert raises_or_reads_right(read, expected)
        np.save(path, np.array([malicious], dtype=object), allow_pickle=True)
        assert raises_or_reads_right(read, expected)
    assert not os.path.exists(MARK)


def test_yaml_code_does_not_run(expect_error, tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(f"OPTIM: !!python/object/apply:os.system ['touch {MARK}']\n")
    for flag in ("--config-file", "--dataset-config-file"):
        assert "evil.yaml cannot be used" in expect_error("SPG", "red", flags=[flag, str(path)])
    assert "evil.yaml cannot be used" in expect_error("SPG", "red", "TRAINER.SPG.STAGE1_CONFIG_FILE", str(path))
    assert "OPTIM.LR" in expect_error("SPG", "red", "OPTIM.LR", f"__import__('os').system('touch {MARK}')")
    assert not os.path.exists(MARK)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=100)
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_readers_of_any_bytes_raise_only_user_errors(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(content)
    for read in (read_results, read_predictions, read_split):
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error)
