"""How results depend on the noise of generated prompts."""

import shutil

import pytest

from common.errors import UserError
from common.files import read_json
from common.run import read_results
from scripts.reporting.variability import read_variability
from scripts.variability import main


def test_variability_of_run_equals_repeated_tests(finish_run, tmp_path, capsys):
    finish_run("SPG")
    capsys.readouterr()
    assert main([str(tmp_path), "--draws", "4"]) == 0
    printed = capsys.readouterr().out
    assert "| red " in printed and "4 averaged" in printed
    found = read_json(tmp_path / "run" / "variability.json")
    row = found["by_domain"]["red"]
    assert found["draws"] == 4 and list(found["averaged"]) == ["1", "2", "4"]
    assert row["min"] <= row["mean"] <= row["max"] and row["std"] >= 0
    # The run was tested with the first draw.
    assert found["averaged"]["1"]["red"] == pytest.approx(read_results(tmp_path / "run/results.json")["accuracy"])


def test_n_averaged_is_the_accuracy_with_n_prompts(finish_run, tmp_path):
    finish_run("SPG", "TEST.N_PROMPTS", "4")
    assert main([str(tmp_path / "run"), "--draws", "4"]) == 0
    found = read_json(tmp_path / "run" / "variability.json")
    assert found["averaged"]["4"]["red"] == pytest.approx(read_results(tmp_path / "run/results.json")["accuracy"])


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
    arguments = [str(tmp_path / "run"), "--draws", "2", "--root", str(tmp_path / "stripes")]
    assert main(arguments) == 0
    (tmp_path / "stripes/red/down/0.png").unlink()
    shutil.rmtree(tmp_path / "stripes/spg_coop_splits")
    capsys.readouterr()
    assert main(arguments) == 1
    assert "has other test images or classes than" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"draws": 3}', '{"draws": 3, "by_domain": {"a": {}}}'])
def test_damaged_variability_files_are_an_error(tmp_path, text):
    (tmp_path / "variability.json").write_text(text)
    with pytest.raises(UserError, match=r"variability.json: the file is damaged .* Run scripts/variability.py again"):
        read_variability(tmp_path)
