"""contexts.npz."""

import numpy as np
import pytest
from made_contexts import some_contexts

from common.errors import UserError
from common.run.contexts import Contexts, read_contexts, write_contexts


def test_contexts_come_back_as_they_were(tmp_path):
    for labels in (2, 0):
        contexts = some_contexts(labels=labels)
        write_contexts(tmp_path, contexts)
        found = read_contexts(tmp_path / "contexts.npz")
        np.testing.assert_array_equal(found.contexts, contexts.contexts.astype(np.float16))
        np.testing.assert_array_equal(found.labels, contexts.labels.astype(np.float16))
        for name in ("domains", "splits", "label_domains"):
            assert getattr(found, name).tolist() == getattr(contexts, name).tolist()


def test_damaged_contexts_are_refused(tmp_path):
    path = tmp_path / "contexts.npz"
    with pytest.raises(UserError, match="holds no contexts"):
        read_contexts(path)
    write_contexts(tmp_path, some_contexts())
    whole = path.read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2], whole[:90] + b"x" + whole[91:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="holds no contexts"):
            read_contexts(path)
    np.savez(path, contexts=np.array([object()], dtype=object))
    with pytest.raises(UserError, match="holds no contexts"):
        read_contexts(path)


@pytest.mark.parametrize("change", [{"contexts": np.full((12, 2, 4), np.nan)}, {"labels": np.zeros((2, 3, 4))}])
def test_read_contexts_of_wrong_numbers_raises(tmp_path, change):
    write_contexts(tmp_path, Contexts(**{**some_contexts().__dict__, **change}))
    with pytest.raises(UserError, match="are not finite or do not match its labels"):
        read_contexts(tmp_path / "contexts.npz")
