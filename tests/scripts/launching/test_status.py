"""scripts/status.py: runs that are done, running, waiting or failed."""

from other_process import lock_elsewhere

from common.locks import RUN_LOCK
from common.run import RunRecord
from scripts import status
from scripts.launching import status as states
from scripts.launching.jobs import Job
from scripts.launching.local import Outcome, save_failure


def test_status_prints_every_state(tmp_path, capsys, monkeypatch):
    output = tmp_path / "output"
    jobs = {name: Job(name, (), output / "set" / name) for name in ("done", "fails", "queued", "runs", "waits")}
    for job in jobs.values():
        job.folder.mkdir(parents=True)
    states.save_plan(jobs.values(), {jobs["queued"]: "12_3"})
    states.save_plan(jobs.values())  # another launcher keeps the id
    (jobs["done"].folder / "results.json").write_text("{}")
    save_failure(jobs["fails"].folder, Outcome(1, "There is no folder data."))
    RunRecord({}, history=[{}, {}]).write(jobs["runs"].folder)
    monkeypatch.setattr(states, "queued_jobs", lambda: {"12_3": "PENDING (Priority)"})
    with lock_elsewhere(jobs["runs"].folder / RUN_LOCK) as process:
        assert status.main([str(output)]) == 0
    fails, queued, runs, waits, summary = capsys.readouterr().out.splitlines()
    assert fails == "failed   set/fails: exit code 1: There is no folder data."
    assert queued == "waiting  set/queued: SLURM job 12_3 PENDING (Priority)"
    assert runs.startswith(f"running  set/runs: 2 epochs, process {process.pid} on ")
    assert waits == "waiting  set/waits"
    assert summary == "5 runs: 1 done, 1 failed, 1 running, 2 waiting"
    assert status.main(["--all", str(output / "set/done")]) == 0
    assert "1 done" in capsys.readouterr().out


def test_status_of_folder_without_runs_is_an_error(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert status.main([str(folder)]) == 1
        assert str(folder) in capsys.readouterr().err
