"""variability.json: what was written comes back; what is damaged is refused."""

import json

import pytest

from common.errors import UserError
from scripts.reporting.variability import Spread, Variability, read_variability, write_variability

FOUND = Variability(4, {"art": Spread(50.0, 0.5, 49.0, 51.0, 98.5)}, {1: {"art": 50.5}, 4: {"art": 52.0}})


def test_it_comes_back_as_it_was(tmp_path):
    assert read_variability(tmp_path) is None
    write_variability(tmp_path, FOUND)
    assert read_variability(tmp_path) == FOUND
    assert FOUND.averages("art") == {1: 50.5, 4: 52.0}


def test_the_file_of_runs_that_exist(tmp_path):
    record = {
        "draws": 2,
        "by_domain": {"red": {"mean": 1.0, "std": 0.0, "min": 1, "max": 1, "agreement": 100.0}},
        "averaged": {"1": {"red": 1.0}, "2": {"red": 2.0}},
    }
    (tmp_path / "variability.json").write_text(json.dumps(record))
    expected = Variability(2, {"red": Spread(1.0, 0.0, 1.0, 1.0, 100.0)}, {1: {"red": 1.0}, 2: {"red": 2.0}})
    assert read_variability(tmp_path) == expected


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"draws": 3}', '{"draws": 3, "by_domain": {"a": {}}}', '{"draws": 3, "by_domain": []}']
)
def test_damaged_files(tmp_path, text):
    (tmp_path / "variability.json").write_text(text)
    with pytest.raises(UserError, match=r"variability.json is damaged .* run scripts/variability.py again"):
        read_variability(tmp_path)
