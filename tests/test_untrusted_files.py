"""Damaged and malicious files raise an error or read right, and never run code."""

import json
import os
import random
import string

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
from trainers.modules.features import FeatureCache
from trainers.modules.prompt_labels import load_prompt_label, save_prompt_label

MARK = f"/tmp/spg-ran-code-{os.getpid()}"
ERRORS = user_errors()


class RunsCode:
    def __reduce__(self):
        return (os.system, (f"touch {MARK}",))


def label(folder):
    path = folder / "label.pt"
    origin = {"class names": ["cat", "dog"], "OPTIM.LR": 0.002}
    save_prompt_label(path, torch.arange(16.0).view(4, 4), origin)
    return path, lambda: load_prompt_label(path, 4, 4, origin)[0]


def checkpoint(folder):
    path = folder / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.arange(16.0)}, "epoch": 1}, path)
    return path, lambda: load_checkpoint(str(path))["state_dict"]["ctx"]


def clip(folder, clip_file):
    path = folder / "clip.pt"
    path.write_bytes(clip_file.read_bytes())
    return path, lambda: load_backbone(str(path)).model.text_projection


def results(folder):
    write_results(folder, {"accuracy": 12.5, "trainer": "SPG"})
    path = folder / "results.json"
    return path, lambda: torch.tensor(read_results(path)["accuracy"])


def cached(folder):
    def get():
        def compute(out):
            out[:] = np.arange(12).reshape(4, 3)

        return torch.from_numpy(np.array(FeatureCache(folder).get("key", (4, 3), compute, "test")))

    get()
    return folder / "key.npy", get


@pytest.fixture(params=["label", "checkpoint", "clip", "results", "cached"])
def file(request, tmp_path, clip_file):
    """An intact file of some format: (path, function that reads a tensor from it)."""
    if request.param == "clip":
        return clip(tmp_path, clip_file)
    return globals()[request.param](tmp_path)


def raises_or_reads_right(read, expected):
    """Return whether reading raised a UserError; otherwise check the value."""
    try:
        found = read()
    except ERRORS as error:
        assert str(error)
        return True
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    return False


def test_truncated_file_raises_or_reads_right(file):
    path, read = file
    expected, content = read(), path.read_bytes()
    for part in (0.0, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(part * len(content))])
        # A damaged cache is computed again. The cut may remove only the last newline.
        assert raises_or_reads_right(read, expected) or path.suffix == ".npy" or part > 0.9


def test_flipped_bits_raise_or_read_right(file):
    path, read = file
    expected, content, rng = read(), path.read_bytes(), random.Random(0)
    n_errors = 0
    for _ in range(40 if len(content) < 10**5 else 8):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        n_errors += raises_or_reads_right(read, expected)
    assert n_errors or path.suffix == ".npy" or len(content) >= 10**5


def test_pickled_code_does_not_run(file):
    path, read = file
    expected = read()
    for malicious in (RunsCode(), {"state_dict": RunsCode(), "epoch": 1}, [RunsCode()]):
        torch.save(malicious, path)
        assert raises_or_reads_right(read, expected) or path.suffix == ".npy"
        np.save(path, np.array([malicious], dtype=object), allow_pickle=True)
        assert raises_or_reads_right(read, expected) or path.suffix == ".npy"
    assert not os.path.exists(MARK)


def test_yaml_code_does_not_run(train, tmp_path, capsys):
    path = tmp_path / "evil.yaml"
    path.write_text(f"OPTIM: !!python/object/apply:os.system ['touch {MARK}']\n")
    for flag in ("--config-file", "--dataset-config-file"):
        assert train("SPG", "red", flags=[flag, str(path)]) == 1
        assert "evil.yaml cannot be used" in capsys.readouterr().err
    assert train("SPG", "red", "TRAINER.SPG.STAGE1_CONFIG_FILE", str(path)) == 1
    assert "evil.yaml cannot be used" in capsys.readouterr().err
    assert train("SPG", "red", "OPTIM.LR", f"__import__('os').system('touch {MARK}')") == 1
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


ENTRY = st.tuples(st.text(max_size=12), st.integers(0, 3), st.integers(0, 3), st.text(max_size=5)).map(list)


@settings(max_examples=60)
@given(
    content=st.fixed_dictionaries(
        {"train": st.lists(ENTRY | JSON, max_size=4), "val": st.lists(ENTRY, max_size=2), "test": JSON}
    )
)
def test_split_reader_of_any_entries_raises_only_user_errors(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("split") / "a_train_val_split.json"
    path.write_text(json.dumps(content))
    try:
        train, val = read_split(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert len(train) == len(content["train"]) and len(val) == len(content["val"])


NAMES = st.text(alphabet=string.ascii_letters + string.digits + "_- éß", min_size=1, max_size=12)


@settings(max_examples=100)
@given(sources=st.lists(NAMES, max_size=3), targets=st.lists(NAMES, max_size=2))
def test_domain_parser_of_any_words_raises_only_user_errors(sources, targets):
    try:
        found = SPG_PACS.resolve_domains("", sources, targets)
    except UserError as error:
        assert str(error).startswith(("DATASET.TARGET_DOMAINS", "DATASET.SOURCE_DOMAINS"))
    else:
        assert set(found[0]) | set(found[1]) <= set(SPG_PACS.domains)


@settings(max_examples=100)
@given(folder=st.text(min_size=1, max_size=20))
def test_class_folder_of_any_text_has_one_spelling(folder):
    name = names.class_name(folder)
    assert isinstance(name, str)
    assert names.class_name(name) == name  # one spelling for all layouts
    assert "_" not in name.strip("_")
