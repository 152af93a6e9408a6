"""predictions.csv and contexts.npz: round trips, and damaged files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_contexts import some_contexts

from common.errors import UserError
from common.image_results import Contexts, read_contexts, read_predictions, write_contexts, write_predictions

TEXTS = dict.fromkeys(("path", "domain", "label", "prediction"), st.text())
ROW = {**TEXTS, "confidence": st.integers(0, 10**4).map(lambda n: n / 10**4)}


@settings(max_examples=40)
@given(rows=st.lists(st.fixed_dictionaries(ROW), max_size=4))
def test_read_predictions_returns_the_written_rows(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("predictions")
    write_predictions(folder, rows)
    assert read_predictions(folder / "predictions.csv") == rows


@pytest.mark.parametrize("labels", [2, 0])
def test_read_contexts_returns_the_written_contexts_in_half_precision(tmp_path, labels):
    contexts = some_contexts(labels=labels)
    write_contexts(tmp_path, contexts)
    found = read_contexts(tmp_path / "contexts.npz")
    for name, values in contexts.__dict__.items():
        expected = np.float16(values) if name in ("contexts", "labels") else values
        np.testing.assert_array_equal(getattr(found, name), expected)


@pytest.mark.parametrize("change", [{"contexts": np.full((12, 2, 4), np.nan)}, {"labels": np.zeros((2, 3, 4))}])
def test_read_contexts_of_wrong_numbers_raises(tmp_path, change):
    write_contexts(tmp_path, Contexts(**{**some_contexts().__dict__, **change}))
    with pytest.raises(UserError, match="are not finite or do not match its labels"):
        read_contexts(tmp_path / "contexts.npz")


def test_read_contexts_of_a_damaged_file_raises(tmp_path):
    path = tmp_path / "contexts.npz"
    write_contexts(tmp_path, some_contexts())
    content = path.read_bytes()
    np.savez(path, contexts=np.array([object()], dtype=object))
    pickled = path.read_bytes()
    for damaged in (b"", b"PK", content[: len(content) // 2], content[:90] + b"x" + content[91:], pickled):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="holds no contexts"):
            read_contexts(path)
