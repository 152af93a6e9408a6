"""Jobs by submitit: real runs by its local executor, and the scripts for SLURM."""

import re
from argparse import Namespace

import pytest
from conftest import QUICK, numbers

from scripts.launching.jobs import Job
from scripts.launching.local import Outcome

submitit = pytest.importorskip("submitit")
from scripts.launching import slurm  # noqa: E402


def test_submitit_changes_no_number(run_launcher, tmp_path, monkeypatch, image_folder, clip_file):
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    words = ("coop/main.sh", image_folder, clip_file, *QUICK)
    code, output, errors = run_launcher(*words, TARGETS="red", ENGINE="slurm", OUTPUT="slurm")
    assert code == 0 and "1 jobs submitted to SLURM" in output and output.count(": done in ") == 1, errors
    assert run_launcher(*words, TARGETS="red", OUTPUT="local")[0] == 0
    assert numbers(tmp_path / "slurm") == numbers(tmp_path / "local")
    wrong = ["TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "['purple']"]
    code, output, _ = run_launcher("spg/main.sh", *words[1:], *wrong, TARGETS="red", ENGINE="slurm", OUTPUT="slurm")
    assert code == 1 and "failed with exit code 1: TRAINER.SPG.GRAD_CLIP_OFF_TARGETS names purple" in output


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A stand-in for sbatch that stores the submitted scripts in order."""
    texts = []

    def submit(self, command):
        texts.append(self._make_submission_file_text(command, "id"))
        return submitit.SlurmJob(self.folder, str(100 + len(texts)), tasks=[0])

    monkeypatch.setattr(submitit.SlurmExecutor, "_submit_command", submit)
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    monkeypatch.setattr("submitit.core.utils.JobPaths.move_temporary_file", lambda *args, **options: None)
    return texts


def test_slurm_submits_arrays_with_dependencies(tmp_path, sbatch):
    trainings = [Job(f"train {i}", (), tmp_path / f"train{i}", has_test=False) for i in range(3)]
    tests = [Job(f"test {i}", (), tmp_path / f"test{i}", needs=tmp_path / f"train{i // 2}") for i in range(4)]
    args = Namespace(output=tmp_path, jobs="2", slurm_time="1-12", slurm_gpus="1", slurm_partition="gpu")
    args.slurm_options, args.python_path = "--qos=long --exclusive", ""
    slurm._submit([*trainings, *tests], ids := {}, args, workers=3)
    assert list(ids.values()) == ["101_0", "101_1", "101_2", "102_0", "102_1", "103_0", "103_1"]
    array, first, second = sbatch
    options = dict(re.findall(r"#SBATCH --([a-z-]+)=?(.*)", array))
    assert (options["array"], options["time"], options["gpus"]) == ("0-2%2", "1-12", "1")
    assert (options["partition"], options["qos"], options["exclusive"]) == ("gpu", "long", "")
    assert "requeue" in options and options["cpus-per-task"] == "4" and "dependency" not in options
    assert "--dependency=afterok:101_0" in first and "--dependency=afterok:101_1" in second


def test_slurm_job_after_requeue_repeats_its_call(monkeypatch, tmp_path):
    job, function = Job("title", ("words",), tmp_path), slurm.SlurmJob()
    outcomes = {143: SystemExit, 1: RuntimeError, 0: None}
    for code, error in outcomes.items():
        monkeypatch.setattr(slurm, "run_job", lambda *args, code=code: Outcome(code, "why"))
        with pytest.raises(error) if error else pytest.MonkeyPatch.context():
            function(job)
    again = function.checkpoint(job)
    assert again.args == (job,) and isinstance(again.function, slurm.SlurmJob)
