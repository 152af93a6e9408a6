"""A data set and trainers of CoOp's users print the same lines on our core as on the original Dassl."""

import pytest
import torch
from record_clients import CASES, RECORDED, run


@pytest.mark.parametrize("case", CASES)
def test_client_prints_the_lines_recorded_from_the_original(case, tmp_path):
    torch.set_num_threads(1)
    recorded = dict(part.split("\n", 1) for part in RECORDED.read_text(encoding="utf-8").split("== ")[1:])
    assert run(case, tmp_path) == recorded[case].splitlines()
