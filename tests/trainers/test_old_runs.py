"""Runs that an earlier revision left go on, are built again and compare as if the present code had made them."""

import json
import shutil
import tarfile

import pytest
from old_runs import make
from quick_run import REPOSITORY, run_train

from common.run.predictions import prediction_rows, read_predictions
from common.run.results import CIRCUMSTANCES, read_results
from scripts import report, rerun
from scripts import results as tables
from trainers.saved_run import build_run

TRAINERS = make.TRAINERS


@pytest.fixture(scope="module")
def archive(tmp_path_factory, image_folder, clip_file):
    """The unpacked runs; tests are skipped where images and CLIP come out other than when the runs were made."""
    folder = tmp_path_factory.mktemp("old_runs")
    with tarfile.open(make.ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    here, there = make.circumstances(image_folder, clip_file), json.loads((folder / make.CIRCUMSTANCES).read_text())
    others = [name for name in there if here[name] != there[name]]
    if others:
        pytest.skip(
            f"{' and '.join(others)} come out other than when the old runs were made: this PyTorch draws other "
            "numbers, or this Pillow other pixels (python tests/old_runs/make.py makes the runs anew)"
        )
    return folder


@pytest.fixture(scope="module")
def place(archive, image_folder, clip_file, tmp_path_factory):
    """Go to a working folder with a run in it: place("SPG", "unfinished") -> its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as the runs were made

        def put(trainer, state):
            folder = tmp_path_factory.mktemp(f"{trainer}_{state}")
            shutil.copytree(archive / trainer / state, folder, dirs_exist_ok=True)
            for name, path in (("stripes", image_folder), ("tiny.pt", clip_file)):
                (folder / name).symlink_to(path)
            patch.chdir(folder)
            return folder / "run"

        yield put


@pytest.fixture(scope="module")
def gone_on(place):
    """Folders of the unfinished runs, by trainer, once the present code has gone on with them to the end."""
    folders = {}
    for trainer in TRAINERS:
        folders[trainer] = place(trainer, "unfinished")
        assert run_train(make.arguments(trainer, REPOSITORY)) == 0
    return folders


@pytest.fixture(scope="module")
def expected(archive):
    """What the earlier revision came to from the unfinished runs, by trainer."""
    return {trainer: read_results(archive / trainer / "expected.json") for trainer in TRAINERS}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_unfinished_run_goes_on_to_the_same_numbers(expected, gone_on, trainer):
    before, after = expected[trainer], read_results(gone_on[trainer] / "results.json")
    for epoch, same_epoch in zip(before["loss_history"], after["loss_history"], strict=True):
        assert same_epoch == pytest.approx(epoch, rel=1e-5)
    for key in before.keys() - {"loss_history", *CIRCUMSTANCES}:
        is_float = isinstance(before[key], float)
        assert after[key] == (pytest.approx(before[key], rel=1e-5) if is_float else before[key]), key


@pytest.mark.parametrize("trainer", [trainer for trainer in TRAINERS if trainer not in make.WITHOUT_EPOCHS])
def test_it_does_not_begin_anew(gone_on, trainer):
    assert "Going on after epoch 1" in (gone_on[trainer] / "log.txt").read_text()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_finished_run_is_built_again(place, trainer):
    folder = place(trainer, "finished")
    built = build_run("run", with_data=True)
    built.test()
    dataset, said = built.dm.dataset, built.tested["test"].said
    rows = prediction_rows(dataset, "stripes", said.predicted.tolist(), said.confidence.tolist())
    for row, old_row in zip(rows, read_predictions(folder / "predictions.csv"), strict=True):
        assert {**row, "confidence": pytest.approx(row["confidence"], abs=1e-4)} == old_row
    assert built.tested["test"].metrics["accuracy"] == read_results(folder / "results.json")["accuracy"]


def test_old_and_new_runs_compare(archive, gone_on, tmp_path, capsys):
    old, new = [archive / trainer / "finished/run" for trainer in TRAINERS], list(gone_on.values())
    for folders in (old[::2] + new[1::2], new[::2] + old[1::2]):
        assert tables.main([*map(str, folders), "--baseline", "ZeroshotCLIP"]) == 0
        printed = capsys.readouterr().out
        assert all(f"| {trainer} " in printed for trainer in TRAINERS)
        assert "[1]" not in printed and "Not comparable" not in printed
    assert report.main([*map(str, folders), "--out", str(tmp_path / "report.html")]) == 0
    capsys.readouterr()
    assert tables.main([*map(str, old[:1] + new[:1])]) == 1
    assert "(with the same settings and data)" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_repetition_agrees(expected, gone_on, trainer):
    after = read_results(gone_on[trainer] / "results.json")
    # Their last digits are those of a machine.
    text, agrees = rerun.verdict(expected[trainer], {**after, "loss_history": expected[trainer]["loss_history"]})
    assert agrees, text
