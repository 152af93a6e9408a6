"""How results depend on the noise of generated prompts."""

import shutil

import pytest

from common.files import read_json
from common.run import read_results
from scripts.variability import main


@pytest.mark.parametrize("n_prompts", ["1", "4"])
def test_n_averaged_draws_give_the_accuracy_with_n_prompts(finish_run, tmp_path, capsys, n_prompts):
    finish_run("SPG", "TEST.N_PROMPTS", n_prompts)
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--draws", "4"]) == 0
    printed = capsys.readouterr().out
    assert "| red " in printed and "4 averaged" in printed
    found = read_json(tmp_path / "run/variability.json")
    row = found["by_domain"]["red"]
    assert found["draws"] == 4 and list(found["averaged"]) == ["1", "2", "4"]
    assert row["min"] <= row["mean"] <= row["max"] and row["std"] >= 0
    accuracy = read_results(tmp_path / "run/results.json")["accuracy"]
    assert found["averaged"][n_prompts]["red"] == pytest.approx(accuracy)


def test_variability_with_wrong_arguments_prints_one_message(finish_run, tmp_path, capsys):
    finish_run("CoOp")
    for arguments, message in (
        ([str(tmp_path / "run")], "only runs of CoOp, which have no noise"),
        ([str(tmp_path / "nowhere")], "nowhere: there is no such folder"),
        ([str(tmp_path / "run"), "--draws", "1"], "Set it to 2 or more"),
    ):
        capsys.readouterr()
        assert main(arguments) == 1
        assert message in capsys.readouterr().err


def test_variability_on_other_test_images_is_an_error(finish_run, tmp_path, image_folder, capsys):
    finish_run("SPG")
    shutil.copytree(image_folder, tmp_path / "stripes", ignore=shutil.ignore_patterns("spg_coop_splits"))
    (tmp_path / "stripes/red/down/0.png").unlink()
    assert main([str(tmp_path / "run"), "--draws", "2", "--root", str(tmp_path / "stripes")]) == 1
    assert "has other test images or classes than" in capsys.readouterr().err
