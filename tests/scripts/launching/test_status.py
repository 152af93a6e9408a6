"""scripts/status.py: what of the runs in an output folder is done, running, waiting, or failed."""

import shutil
import subprocess
import sys

import pytest
from quick_run import REPOSITORY
from scripts.launching.planned import FAILED_FILE, note_planned, read_planned
from scripts.launching.runs import ASKED

from common.run.history import write_history
from common.run.identity import TRAINED_FILE
from common.run.lock import LOCK_FILE, holder, owned
from common.run.records import write_record
from scripts import status

HOLD = """
import sys; sys.path.insert(0, {repository!r})
from common.run.lock import owned
with owned({folder!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held_elsewhere():
    """held_elsewhere(folder): another process holds it until the test ends."""
    processes = []

    def hold(folder):
        code = HOLD.format(repository=str(REPOSITORY), folder=str(folder))
        processes.append(
            subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1].pid

    yield hold
    for process in processes:
        process.communicate("")


def test_who_holds_a_folder_without_taking_it(tmp_path, held_elsewhere):
    assert holder(tmp_path) is None and not (tmp_path / LOCK_FILE).exists()
    with owned(tmp_path):
        pass
    assert holder(tmp_path) is None
    pid = held_elsewhere(tmp_path)
    assert holder(tmp_path).startswith(f"process {pid} on ")


def test_every_state(tmp_path, capsys, held_elsewhere):
    output = tmp_path / "output"
    names = ("done", "trained", "runs", "stage1", "waits", "fails", "tells")
    runs = {name: output / "set" / name / "seed1" for name in names}
    for run in runs.values():
        run.mkdir(parents=True)
    note_planned(output, {run: name != "trained" for name, run in runs.items()})
    (runs["done"] / "results.json").write_text("{}")
    (runs["trained"] / TRAINED_FILE).write_text("{}")
    write_history(runs["runs"], [{}, {}, {}])
    write_history(runs["stage1"] / "stage1" / "art", [{}])
    pids = [held_elsewhere(runs[name]) for name in ("runs", "stage1")]
    write_record(runs["fails"] / ASKED / FAILED_FILE, {"exit_code": 1})
    (runs["fails"] / "log.txt").write_text("first\nlast words\n\n")
    write_record(runs["tells"] / ASKED / FAILED_FILE, {"exit_code": 1, "error": "No data.\nGet it."})
    beside = output / "set" / "by_itself"
    beside.mkdir()
    with owned(beside):
        pass
    write_history(beside, [{}])

    def said(*words):
        capsys.readouterr()
        assert status.main(list(map(str, words))) == 0
        return capsys.readouterr().out.splitlines()

    by_itself, fails, running, stage1, tells, waits, summary = said(output)
    assert by_itself == "waiting  set/by_itself: 1 epochs"
    assert fails == "failed   set/fails/seed1: exit code 1; its log ends: last words"
    assert running.startswith(f"running  set/runs/seed1: 3 epochs, process {pids[0]} on ")
    assert stage1.startswith(f"running  set/stage1/seed1: stage I of art, 1 epochs, process {pids[1]} on ")
    assert tells == "failed   set/tells/seed1: exit code 1: No data. Get it."
    assert waits == "waiting  set/waits/seed1"
    assert summary == "8 runs: 2 done, 2 failed, 2 running, 2 waiting"
    assert len(said("--all", output)) == 9
    assert said(output / "set" / "waits") == ["waiting  seed1", "1 runs: 1 waiting"]


def test_what_several_runs_need_shows_while_it_is_made(tmp_path, capsys, held_elsewhere):
    made, failed, done = (tmp_path / "set/SPG/tiny/default/made_once" / name / "seed1" for name in "abc")
    for folder in (made, failed, done):
        folder.mkdir(parents=True)
        with owned(folder):
            pass
    write_record(failed / ASKED / FAILED_FILE, {"exit_code": 1})
    write_history(made / "stage1" / "art", [{}, {}])
    pid = held_elsewhere(made)
    assert status.main([str(tmp_path)]) == 0
    running, lost, summary = capsys.readouterr().out.splitlines()
    assert running.startswith(
        f"running  set/SPG/tiny/default/made_once/a/seed1: stage I of art, 2 epochs, process {pid}"
    )
    assert lost.startswith("failed   set/SPG/tiny/default/made_once/b/seed1: exit code 1")
    assert summary == "2 runs: 1 failed, 1 running"


def test_a_plan_grows_and_is_gone_on_without(tmp_path):
    assert read_planned(tmp_path) == {}
    note_planned(tmp_path, {tmp_path / "a": True})
    note_planned(tmp_path, {tmp_path / "b": False})
    assert read_planned(tmp_path) == {tmp_path / "a": True, tmp_path / "b": False}
    (tmp_path / "plan.json").write_text("{")
    assert read_planned(tmp_path) == {}


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_runs(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    assert status.main([folder]) == 1
    assert folder in capsys.readouterr().err


def test_the_error_of_a_run_is_told(bash, tmp_path, image_folder, clip_file, capsys):
    shutil.copytree(image_folder, tmp_path / "stripes")
    (tmp_path / "stripes/red/down/0.png").write_bytes(b"no image")
    finished = bash("zsclip/main.sh", "stripes", clip_file, "DATALOADER.NUM_WORKERS", "0", TARGETS="red")
    assert finished.returncode == 1
    (error,) = (line for line in finished.stderr.splitlines() if line.startswith("Error: Cannot read the image "))
    assert status.main([str(tmp_path / "output")]) == 0
    failed, _ = capsys.readouterr().out.splitlines()
    run = "stripes/ZeroshotCLIP/tiny/default/red/seed1"
    assert failed.startswith(f"failed   {run}: exit code 1: {error.removeprefix('Error: ')}")


def test_what_a_launcher_leaves(launched, tmp_path, image_folder, clip_file, capsys):
    images = tmp_path / "stripes"
    shutil.copytree(image_folder, images)
    words = [images, clip_file, "DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "1"]
    assert launched("zsclip/main.sh", *words, TARGETS="red").returncode == 0
    for image in (images / "blue/down").iterdir():
        image.write_bytes(b"no image")
    assert launched("coop/main.sh", *words, TARGETS="red").returncode == 1
    assert status.main([str(tmp_path / "output")]) == 0
    failed, summary = capsys.readouterr().out.splitlines()
    assert failed.startswith("failed   stripes/CoOp/tiny/default/red/seed1: exit code 1; its log ends: ")
    assert summary == "2 runs: 1 done, 1 failed"
    shutil.copytree(image_folder / "blue", images / "blue", dirs_exist_ok=True)
    assert launched("coop/main.sh", *words, TARGETS="red").returncode == 0
    assert status.main([str(tmp_path / "output")]) == 0
    assert capsys.readouterr().out == "2 runs: 2 done\n"
