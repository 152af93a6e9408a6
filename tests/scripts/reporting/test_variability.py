"""How results depend on the noise of generated prompts."""

import shutil

import pytest
import torch

from common.errors import UserError
from common.files import read_json
from common.run.results import read_results, write_results
from scripts.reporting.variability import agreement, find_runs
from scripts.variability import main


def test_agreement_by_hand():
    # Two images, three draws: all equal; then two of three equal, which is 1 of 3 pairs.
    predicted = torch.tensor([[0, 0], [0, 1], [0, 0]])
    assert agreement(predicted, 2) == pytest.approx(100 * (1 + 1 / 3) / 2)


def test_of_a_run(finished, tmp_path, capsys):
    finished("SPG")
    capsys.readouterr()
    assert main([str(tmp_path), "--draws", "4"]) == 0
    printed = capsys.readouterr().out
    assert "| red " in printed and "4 averaged" in printed
    found = read_json(tmp_path / "run" / "variability.json")
    assert (tmp_path / "run" / "variability.png").is_file() and (tmp_path / "run" / "variability.svg").is_file()
    row = found["by_domain"]["red"]
    assert found["draws"] == 4 and list(found["averaged"]) == ["1", "2", "4"]
    assert row["min"] <= row["mean"] <= row["max"] and row["std"] >= 0
    # The first draw is the one that the run was tested with.
    assert found["averaged"]["1"]["red"] == pytest.approx(read_results(tmp_path / "run/results.json")["accuracy"])


def test_n_prompts_is_what_is_averaged(finished, tmp_path):
    finished("SPG", "TEST.N_PROMPTS", "4")
    assert main([str(tmp_path / "run"), "--draws", "4"]) == 0
    found = read_json(tmp_path / "run" / "variability.json")
    assert found["averaged"]["4"]["red"] == pytest.approx(read_results(tmp_path / "run/results.json")["accuracy"])


def test_mistakes(finished, tmp_path, capsys):
    finished("CoOp")
    for arguments, message in (
        ([str(tmp_path / "run")], "holds runs of CoOp alone, whose prompts do not depend on noise"),
        ([str(tmp_path / "nowhere")], "nowhere is not there"),
        ([str(tmp_path / "run"), "--draws", "1"], "takes at least 2"),
    ):
        capsys.readouterr()
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no finished run"):
        find_runs([tmp_path / "empty"], ["SPG"])


def test_other_images_than_the_run_was_tested_on(finished, tmp_path, image_folder, capsys):
    finished("SPG")
    shutil.copytree(image_folder, tmp_path / "stripes", ignore=shutil.ignore_patterns("spg_coop_splits"))
    arguments = [str(tmp_path / "run"), "--draws", "2", "--root", str(tmp_path / "stripes")]
    assert main(arguments) == 0
    (tmp_path / "stripes/red/down/0.png").unlink()
    shutil.rmtree(tmp_path / "stripes/spg_coop_splits")
    capsys.readouterr()
    assert main(arguments) == 1
    assert "has other test images or classes than" in capsys.readouterr().err


def test_runs_of_other_methods_are_passed_over(tmp_path):
    for folder, trainer in {"a": "SPG", "b": "CoOp", "c/d": "SPG_CGAN"}.items():
        write_results(tmp_path / folder, {"trainer": trainer})
    found = find_runs([tmp_path, tmp_path / "a"], ["SPG", "SPG_CGAN"])
    assert found == [tmp_path / "a", tmp_path / "c/d"]  # once each
    with pytest.raises(UserError, match="runs of CoOp alone"):
        find_runs([tmp_path / "b"], ["SPG"])
