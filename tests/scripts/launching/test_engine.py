"""The plan and the engine of this machine: order, processes that die, signals, and real runs side by side."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quick_run import REPOSITORY
from scripts.launching.plan import Ended, Task, carry_out
from scripts.launching.worker import do
from test_launch import QUICK
from waiting import MINUTES, wait_for

from common import threads
from common.errors import UserError
from common.interruption import Interrupted
from scripts import kill_trial
from scripts.launching import local
from scripts.launching.local import LocalEngine, local_devices

# In the place of a run: its arguments are what it does, in Python.
STAND_IN = """
import sys
sys.path.insert(0, {repository!r})
from scripts.launching import worker
def do(arguments):
    code = {{}}
    exec(arguments[0], code)
    return code.get("code", 0), code.get("error", "")
worker.do = do
worker.main()
"""


def task(name, what="", needs=()):
    return Task(name, (what,), Path(name), tuple(map(Path, needs)))


class Instant:
    """Ends every task when it is asked, the last one that began first."""

    def __init__(self, slots):
        self.slots, self.running = slots, []

    def submit(self, task):
        self.running.append(task)
        assert len(self.running) <= self.slots

    def next_end(self):
        return Ended(self.running.pop(), 0)


def order(tasks, slots, begin=lambda task: True):
    said = []
    carry_out(
        tasks,
        Instant(slots),
        lambda task: said.append(f"+{task.title}") or begin(task),
        lambda ended, interrupted: said.append(f"-{ended.task.title}"),
    )
    return " ".join(said)


def test_a_task_begins_when_what_it_needs_has_ended():
    tasks = [task("a"), task("b", needs="a"), task("c", needs="b"), task("d")]
    assert order(tasks, 1) == "+a -a +b -b +c -c +d -d"
    assert order(tasks, 2) == "+a +d -d -a +b -b +c -c"


def test_no_two_tasks_in_one_folder_at_once():
    assert order([task("a"), task("a"), task("b")], 3) == "+a +b -b -a +a -a"


def test_what_need_not_be_done_holds_nothing_up():
    assert order([task("a"), task("b", needs="a")], 2, begin=lambda task: task.title == "b") == "+a +b -b"


def test_an_engine_rests_while_another_launcher_does_what_is_left():
    said = []

    class Resting(Instant):
        def rest(self):
            said.append("rest")

    answers = iter([None, True])
    carry_out([task("a")], Resting(1), lambda task: next(answers), lambda one, _: said.append(one.task.title))
    assert said[-1] == "a" and {*said[:-1]} == {"rest"}


def test_what_is_refused_lets_those_end_that_have_begun():
    def begin(task):
        if task.title == "b":
            raise UserError("no")
        return True

    said = []
    with pytest.raises(UserError, match="no"):
        carry_out([task("a"), task("b"), task("c")], Instant(2), begin, lambda one, _: said.append(one.task.title))
    assert said == ["a"]


# ---- processes ----


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """engine(slots) -> LocalEngine, whose tasks are Python; what it says is in `said`."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.format(repository=str(REPOSITORY)))
    monkeypatch.setattr(local, "WORKER", script)
    made = []

    def make(slots, **options):
        said = []
        made.append(LocalEngine(slots, said.append, **options))
        made[-1].said = said
        return made[-1]

    yield make
    for one in made:
        one.close()


def done(engine, *tasks):
    """Exit codes by title, and whether each was interrupted."""
    ends = {}
    carry_out(tasks, engine, lambda task: True, lambda one, told: ends.update({one.task.title: (one.code, told)}))
    return ends


def errors(engine, *tasks):
    """What is said of why tasks failed, by title."""
    found = {}
    carry_out(tasks, engine, lambda task: True, lambda one, _: found.update({one.task.title: one.error}))
    return found


def test_one_process_does_task_after_task(engine, tmp_path):
    note = f"import os; open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} '); code = 3"
    assert done(engine(1), task("a", note), task("b", note)) == {"a": (3, False), "b": (3, False)}
    first, second = (tmp_path / "pids").read_text().split()
    assert first == second


def test_a_process_that_dies_is_replaced_and_its_task_done_once_more(engine, tmp_path):
    mark = tmp_path / "mark"
    once = f"import os, pathlib; m = pathlib.Path({str(mark)!r}); m.exists() or (m.touch(), os.kill(os.getpid(), 9))"
    one = engine(2)
    always = "import os; os.kill(os.getpid(), 9)"
    ends = done(one, task("once", once), task("always", always), task("after"))
    assert ends == {"once": (0, False), "always": (-9, False), "after": (0, False)}
    assert sorted(one.said) == [
        f"{name}: its process died (SIGKILL); once more, going on where it stopped" for name in ("always", "once")
    ]


def test_an_exception_fails_its_task_alone(engine):
    one = engine(2)
    assert done(one, task("a", "1 / 0"), task("b"), task("c")) == {"a": (1, False), "b": (0, False), "c": (0, False)}
    assert "a: ZeroDivisionError: division by zero" in one.said


def test_processes_are_spread_over_devices(engine, tmp_path):
    note = (
        f"import os, time; open({str(tmp_path)!r} + '/' + os.environ['CUDA_VISIBLE_DEVICES'], 'a'); "
        f"wait = time.monotonic() + {MINUTES}\nwhile len(set(os.listdir({str(tmp_path)!r})) & set('57')) < 2 "
        "and time.monotonic() < wait: time.sleep(0.05)"
    )
    done(engine(2, devices=["5", "7"]), task("a", note), task("b", note))
    assert {"5", "7"} <= set(os.listdir(tmp_path))


def test_a_signal_reaches_every_task(engine, tmp_path):
    wait = (
        "import signal, time, pathlib; got = []; signal.signal(signal.SIGTERM, lambda *_: got.append(1)); "
        "pathlib.Path({!r}).touch()\nwhile not got: time.sleep(0.05)\ncode = 143"
    )
    marks = [tmp_path / "a.mark", tmp_path / "b.mark"]
    ends = {}
    one = engine(2)

    class Signalling:
        slots, submit, interrupt = 2, one.submit, one.interrupt

        def next_end(self):
            if marks and all(mark.exists() for mark in marks):
                marks.clear()
                os.kill(os.getpid(), signal.SIGTERM)
            return one.next_end()

    tasks = [task("a", wait.format(str(marks[0]))), task("b", wait.format(str(marks[1]))), task("c")]
    with pytest.raises(Interrupted, match="SIGTERM"):
        carry_out(
            tasks, Signalling(), lambda task: True, lambda one, told: ends.update({one.task.title: (one.code, told)})
        )
    assert ends == {"a": (143, True), "b": (143, True)}


def test_a_wrong_command_line_is_an_exit_code(capsys):
    assert do(["--nonsense"]) == (2, "train.py does not take its command line")


@pytest.mark.parametrize("slots", [1, 2])
def test_why_a_task_failed(engine, slots):
    bug, death = task("bug", "1 / 0"), task("death", "import os; os.kill(os.getpid(), 9)")
    said = task("said", "code, error = 1, 'There is no folder data.'")
    assert errors(engine(slots), bug, death, said, task("none")) == {
        "bug": "ZeroDivisionError: division by zero",
        "death": "its process died (SIGKILL)",
        "said": "There is no folder data.",
        "none": "",
    }


# ---- the machine's cores ----


@pytest.mark.parametrize(
    ("runs", "n_threads", "expected"),
    [(1, 1, (1, 7)), (2, 1, (2, 3)), (8, 1, (8, 0)), (50, 1, (8, 0)), (4, 8, (1, 0)), (4, 3, (2, 1)), (4, 99, (1, 0))],
)
def test_runs_at_once_never_take_more_than_the_cores(monkeypatch, runs, n_threads, expected):
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    share = threads.share_cores(runs, n_threads)
    assert (share.runs, share.workers) == expected
    assert share.runs == 1 or share.runs * (n_threads + share.workers) <= 8


def test_one_run_at_a_time_decodes_as_it_does_alone(monkeypatch):
    from scripts.launching.demand import Demand
    from scripts.launching.engines import make_engine

    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    said = []
    for jobs in ("1", "2"):  # of a CLIP that computes with all cores
        engine = make_engine("local", Demand(jobs=jobs, threads=lambda on_gpu: 8, workers=7), said.append)
        assert (engine.slots, engine.workers_each) == (1, 7)
        engine.close()
    assert len(said) == 1 and said[0].startswith("Note: JOBS is 2, but")


# ---- real runs ----


def test_two_at_once_come_to_the_same_numbers(bash, launched, tmp_path, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK)
    finished = bash(*words, METHODS="coop,spg", JOBS="2", OUTPUT="both")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count(": done in ") == 6
    assert launched(*words, METHODS="coop,spg", OUTPUT="single").returncode == 0
    runs = sorted(path.parent.relative_to(tmp_path / "both") for path in (tmp_path / "both").rglob("results.json"))
    assert len(runs) == 6
    for run in runs:
        assert kill_trial.outcome(tmp_path / "both" / run) == kill_trial.outcome(tmp_path / "single" / run)
    again = launched(*words, METHODS="coop,spg", JOBS="2", OUTPUT="both")
    assert again.stdout.count("finished before") == 6


def test_a_failing_run_says_whose_error_it_is(bash, image_folder, clip_file):
    opts = ["TRAINER.SPG.GRAD_CLIP_OFF_TARGETS", "['purple']"]
    finished = bash("spg/main.sh", image_folder, clip_file, *QUICK, *opts, TARGETS="red blue", JOBS="2")
    assert finished.returncode == 1
    for i, target in enumerate(("red", "blue"), start=1):
        assert f"[{i}/2] SPG on stripes, target {target}, seed 1: Error: TRAINER.SPG.GRAD_CLIP" in finished.stderr
    assert "2 of 2 runs failed" in finished.stdout


def test_a_killed_launcher_leaves_nothing_that_holds_a_folder(tmp_path, image_folder, clip_file):
    command = ["bash", str(REPOSITORY / "scripts/coop/main.sh"), str(image_folder), str(clip_file), *QUICK]
    command[-2:] = ["DATALOADER.NUM_WORKERS", "1", "OPTIM.MAX_EPOCH", "100000"]
    environment = {**os.environ, "PYTHON": sys.executable, "SEEDS": "1", "TARGETS": "red"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    run = tmp_path / "output/stripes/CoOp/tiny/default/red/seed1"
    wait_for((run / "history.json").is_file)
    process.kill()
    process.wait()
    from common.run.lock import owned

    for _ in range(600):
        try:
            with owned(run):
                break
        except UserError:
            time.sleep(0.1)
    else:
        pytest.fail("the run lives on")


@pytest.mark.parametrize("jobs", ["0", "-1", "two", ""])
def test_how_many_at_once_is_a_number_from_1(launched, tmp_path, image_folder, jobs):
    finished = launched("zsclip/main.sh", image_folder, JOBS=jobs)
    assert finished.returncode == 1
    assert (
        finished.stderr == f"Error: JOBS is {jobs!r}; accepted: a whole number from 1, how many runs go on at once.\n"
    )
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("visible", "expected"), [("", ["0", "1"]), ("1", ["1"]), ("1, 0", ["1", "0"]), ("-1", [])])
def test_gpus_that_there_are(monkeypatch, visible, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local_devices(visible) == expected


@pytest.mark.parametrize("visible", ["0,1,2", "GPU-1,GPU-2,GPU-3"])
def test_more_gpus_than_there_are(monkeypatch, visible):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    message = (
        f"CUDA_VISIBLE_DEVICES is '{visible}', 3 GPUs, but PyTorch finds 2 of them here. Name those that there are"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        local_devices(visible)


def test_gpus_that_are_not_there_are_told_before_anything_runs(tmp_path, monkeypatch, capsys, image_folder, clip_file):
    from scripts import launch

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    words = ["--jobs", "2", "--output", str(tmp_path / "output"), "zsclip", str(image_folder), str(clip_file)]
    assert launch.main(words) == 1
    found = capsys.readouterr().err
    assert found.startswith("Error: CUDA_VISIBLE_DEVICES is '0,1', 2 GPUs, but PyTorch finds 0") and found[-1:] == "\n"
    assert not (tmp_path / "output").exists()
