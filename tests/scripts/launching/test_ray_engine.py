"""ENGINE=ray: on a cluster of two nodes on this machine, with stand-ins for runs, then with real ones; bad input."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from quick_run import REPOSITORY
from scripts.launching.demand import Demand
from scripts.launching.engines import check_engine, make_engine
from scripts.launching.plan import Ended
from scripts.launching.ray_needs import Needs, plan_needs
from test_engine import STAND_IN, done, task
from test_launch import QUICK
from waiting import MINUTES, wait_for

from common.errors import UserError
from common.run.history import HISTORY_FILE
from common.run.lock import LOCK_FILE, holder
from scripts import kill_trial
from scripts.launching import ray_connection, ray_engine, ray_node, ray_place

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray, an optional requirement: pip install -r requirements-cluster.txt"
)
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "12",  # 6 s, so that a node that a busy machine holds up is no lost one
}


@pytest.fixture(scope="module")
def cluster():
    """A head that holds no runs, and nodes a and b of one CPU each; cluster.started: its nodes by name."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # the paths of Ray's sockets may have no more than 107 letters
    (Path(folder) / "ray").mkdir()  # which Ray takes to be there, where it notes the newest cluster
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUICK_TO_NOTICE, "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        head = {"num_cpus": 0, "include_dashboard": False, "node_name": "head", "temp_dir": f"{folder}/ray"}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.started = {name: made.add_node(num_cpus=1, node_name=name) for name in "ab"}
        yield made
        ray.shutdown()
        made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def only_a_and_b(cluster):
    """The cluster, which has its two nodes alone again afterwards."""
    yield cluster
    for name in set(cluster.started) - {"a", "b"}:
        cluster.remove_node(cluster.started.pop(name))
    for name in {"a", "b"} - set(cluster.started):
        cluster.started[name] = cluster.add_node(num_cpus=1, node_name=name)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A repository whose processes do Python in the place of runs, as in test_engine.py."""
    folder = tmp_path_factory.mktemp("repository")
    for room in ("common", "scripts"):
        shutil.copytree(REPOSITORY / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "requirements.txt", folder)
    (folder / "scripts" / "_worker.py").write_text(STAND_IN.format(repository=str(folder)))
    return folder


@pytest.fixture
def engine(cluster, stand_in, tmp_path, monkeypatch):
    """engine(**demand) -> RayEngine on the cluster, whose tasks are Python; what it says is in `said`."""
    monkeypatch.setattr(ray_place, "REPOSITORY", stand_in)
    monkeypatch.chdir(tmp_path)
    made = []

    def make(**demand):
        said = []
        made.append(
            make_engine("ray", Demand(address=cluster.address, output=tmp_path / "output", **demand), said.append)
        )
        made[-1].said = said
        return made[-1]

    yield make
    for one in reversed(made):  # Ray has one connection a process, the last one's
        one.close()


# Kills the host, a stand-in's parent, after a moment in which the engine hears that the task has begun.
DIES = "(time.sleep(2), os.kill(os.getppid(), 9), time.sleep(60))"


# ---- what a run takes ----


@pytest.mark.parametrize(
    ("needs", "cpus", "gpus", "runs"),
    [
        (Needs(1, 0), 8, 0, 8),
        (Needs(2, 0, workers=1), 8, 0, 2),
        (Needs(1, 0), 0, 4, 0),
        (Needs(None, 0, workers=3), 8, 0, 1),
        (Needs(None, 0), 0, 0, 0),
        (Needs(1, 1), 8, 2, 2),
        (Needs(1, 2), 8, 5, 2),
        (Needs(1, 0.5), 8, 2, 4),
        (Needs(1, 0.3), 32, 2, 6),
        (Needs(1, 0.1), 32, 2, 20),
        (Needs(4, 0.5), 8, 2, 2),
        (Needs(1, 1), 8, 0, 0),
    ],
)
def test_how_many_runs_a_node_holds(needs, cpus, gpus, runs):
    assert needs.fit({"CPU": float(cpus), "GPU": float(gpus)}) == runs


def threads_of_a_large_one(on_gpu):
    """Threads of a run with a large backbone."""
    return 1 if on_gpu else None


def node(name, cpus, gpus=0):
    resources = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
    return {"NodeName": name, "NodeManagerAddress": "", "NodeManagerHostname": "host", "Resources": resources}


@pytest.mark.parametrize(
    ("demand", "nodes", "needs"),
    [
        (Demand(workers=8), [node("a", 4), node("b", 2)], Needs(1, 0, 0)),
        (Demand(workers=8, jobs="2"), [node("a", 8)], Needs(1, 0, 3)),
        (Demand(workers=2, jobs="1"), [node("a", 8)], Needs(1, 0, 2)),
        (Demand(workers=8, uses_cuda=True), [node("a", 16, 2), node("head", 4)], Needs(1, 1, 7)),
        (Demand(workers=8, uses_cuda=True, task_gpus="0.5"), [node("a", 16, 2)], Needs(1, 0.5, 3)),
        (Demand(workers=8, uses_cuda=True, task_gpus="0"), [node("a", 4, 2)], Needs(1, 0, 0)),
        (Demand(workers=3, threads=lambda on_gpu: None), [node("a", 4), node("b", 2)], Needs(None, 0, 3)),
        (Demand(uses_cuda=True, threads=threads_of_a_large_one), [node("a", 4, 2)], Needs(1, 1)),
        (Demand(uses_cuda=True, threads=threads_of_a_large_one, task_gpus="0"), [node("a", 4, 2)], Needs(None, 0)),
    ],
)
def test_what_a_run_takes(demand, nodes, needs):
    assert plan_needs(demand, nodes) == needs


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        (Demand(task_gpus="3"), "TASK_GPUS is 3, but no node of the cluster has as many. Their GPUs: a 2, b 0."),
        (
            Demand(threads=lambda on_gpu: 9),
            "A run computes with 9 threads, and no node .* has as many CPUs. Their CPUs: a 4, b 8",
        ),
        (Demand(threads=lambda on_gpu: 9, task_gpus="1"), "A run computes with .* has as many CPUs beside a GPU."),
    ],
)
def test_what_no_node_has(demand, message):
    with pytest.raises(UserError, match=message):
        plan_needs(demand, [node("a", 4, 2), node("b", 8)])


@pytest.mark.parametrize(
    ("needs", "lacking"),
    [
        (Needs(1, 0, workers=3), "2 and 0; each run takes 4 and 0"),
        (Needs(1, 0.5), "2 and 0; each run takes 1 and 0.5"),
        (Needs(None, 1), "2 and 0; each run takes 1 and 1"),
    ],
)
def test_what_a_node_lacks_that_holds_no_run(needs, lacking):
    assert needs.lacking({"CPU": 2.0}) == f"CPUs and GPUs there: {lacking}"


# ---- bad input ----


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "nan", "inf", "0.5x"])
def test_a_number_of_gpus_that_is_none(text):
    with pytest.raises(UserError, match=f"TASK_GPUS is '{text}'; accepted: the number of GPUs of each run"):
        check_engine("ray", Demand(task_gpus=text))


def test_ray_is_not_installed(launched, monkeypatch, image_folder):
    monkeypatch.setattr(ray_connection, "find_spec", lambda name: None)
    finished = launched("zsclip/main.sh", image_folder, ENGINE="ray")
    assert finished.returncode == 1
    assert f"pip install -r {REPOSITORY / 'requirements-cluster.txt'}" in finished.stderr


def test_an_engine_that_is_none(launched, image_folder):
    finished = launched("zsclip/main.sh", image_folder, ENGINE="slurm")
    assert (finished.returncode, finished.stderr) == (1, "Error: ENGINE is 'slurm'; accepted: local, ray.\n")


def test_gpus_of_runs_are_rays(launched, image_folder):
    finished = launched("zsclip/main.sh", image_folder, TASK_GPUS="1")
    assert finished.returncode == 1
    assert finished.stderr.startswith("Error: TASK_GPUS (1) goes with ENGINE=ray.")


@needs_ray
@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "head", ":6379", "127.0.0.1:port"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match="accepted: auto, or the <host>:<port> that"):
        check_engine("ray", Demand(address=address))


@needs_ray
def test_nothing_answers_at_an_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(
        UserError, match=f"RAY_ADDRESS is {address}, but no Ray answers at {address} .*ray start --head"
    ):
        check_engine("ray", Demand(address=address))


@needs_ray
def test_something_else_answers_at_an_address(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_connection, "SECONDS_TO_ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        demand = Demand(address=f"127.0.0.1:{server.getsockname()[1]}", output=tmp_path)
        check_engine("ray", demand)
        with pytest.raises(UserError, match="but no Ray answers at .* that Ray would say"):
            make_engine("ray", demand, print)


@needs_ray
def test_the_time_that_an_import_takes_is_not_the_clusters(monkeypatch):
    monkeypatch.setattr(ray_connection, "SECONDS_TO_ANSWER", 4.0)
    monkeypatch.setattr(ray_connection, "PROBE", "import time; time.sleep(5); print(flush=True)")
    ray_connection._probe("address")


@needs_ray
def test_a_ray_of_another_version(cluster, monkeypatch, tmp_path):
    import ray

    there = ray.__version__
    monkeypatch.setattr(ray, "__version__", "0.0.1")
    with pytest.raises(UserError, match=f"is of another version than .* Ray: {there}, .*Ray: 0.0.1"):
        make_engine("ray", Demand(address=cluster.address, output=tmp_path), print)


# ---- what nodes see ----


def test_what_a_place_lacks(tmp_path):
    repository, data, output = tmp_path / "repository", tmp_path / "data", tmp_path / "output"
    for folder in (repository / "trainers", data / "art", data / "photo", output):
        folder.mkdir(parents=True)
    (repository / "train.py").write_text("1")
    (repository / "trainers" / "spg.py").write_text("1")
    (tmp_path / "clip.pt").write_text("weights")
    place = ray_node.Place(
        repository=str(repository),
        sources=ray_node.source_digests(str(repository)),
        cwd=str(tmp_path),
        output=str(output),
        identity=ray_place.identity_of(output),
        folders={str(data): ray_node.listing(str(data))},
        files={str(tmp_path / "clip.pt"): 7},
        packages={"numpy": "1"},
    )
    assert place.lacking() == []
    (repository / "trainers" / "spg.py").write_text("2")
    (data / "photo").rmdir()
    (data / "splits").mkdir()
    (tmp_path / "clip.pt").write_text("other weights")
    (output / ray_node.IDENTITY_FILE).write_text("another")
    assert place.lacking() == [
        f"{repository} is at another revision: trainers/spg.py",
        f"{output} (OUTPUT) is not the folder that it is here",
        f"{data} (data) lacks photo",
        f"{tmp_path / 'clip.pt'} is another file than here",
    ]
    for folder in (repository, data, output):
        shutil.rmtree(folder)
    lacking = ray_node.Place(**{**vars(place), "packages": {"torch": "0", "no-such-package": "1"}}).lacking()
    assert f"there is no repository in {repository}" in lacking
    assert f"there is no folder {data} (data)" in lacking
    assert f"{sys.executable} lacks the packages no-such-package" in lacking
    assert any(line.startswith("torch is ") and line.endswith("(here 0)") for line in lacking)


@needs_ray
def test_a_node_that_sees_something_else(only_a_and_b, engine, tmp_path, monkeypatch):
    one = engine()
    assert one.slots == 2
    other = tmp_path / "other" / "torch-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(other.parent))
        only_a_and_b.started["c"] = only_a_and_b.add_node(num_cpus=1, node_name="c")
    # One that joins is left out; when a launcher starts, it is an error.
    wait_for(lambda: one.next_end() or one.said)
    assert len(one.said) == 1
    assert one.said[0].startswith("Note: node c, which has joined, is left out: torch is 0.0.1 (here ")
    assert one.slots == 2
    one.close()
    with pytest.raises(
        UserError, match=r"(?s)Not every node .*:\n  c: torch is 0.0.1 \(here [^\n]*\nRuns need the same"
    ):
        engine()


@needs_ray
def test_a_node_that_holds_no_run_is_named(only_a_and_b, engine):
    one = engine(task_gpus="0", threads=lambda on_gpu: 1)
    one.needs = Needs(2, 0)  # as if there were a node that holds one
    only_a_and_b.started["c"] = only_a_and_b.add_node(num_cpus=1, node_name="c")
    wait_for(lambda: one.next_end() or one.said)
    assert one.said == ["Note: node c holds no runs. CPUs and GPUs there: 1 and 0; each run takes 2 and 0"]


def test_a_signal_that_comes_as_a_task_begins_is_told_once(monkeypatch, tmp_path):
    told = []

    class Begins:
        def __init__(self, *_, **__):
            self.task = None

        def submit(self, task):
            self.task = task
            self.signal = threading.Thread(target=host.interrupt, args=(signal.SIGINT,))
            self.signal.start()
            self.signal.join(0.3)

        def interrupt(self, number):
            told.append(number)

        def next_end(self):
            self.signal.join()
            return Ended(self.task, 130)

    monkeypatch.setattr("scripts.launching.local.LocalEngine", Begins)
    monkeypatch.chdir(tmp_path)
    host = ray_node.Host(ray_node.Place(str(REPOSITORY), {}, str(tmp_path), str(tmp_path), ""), False)
    assert list(host.do(task("a"))) == [None, (130, "")]
    assert told == [signal.SIGINT]


# ---- tasks ----


@needs_ray
def test_tasks_are_done_side_by_side(engine, tmp_path):
    note = "import os, time; open({!r} + str(os.getpid()), 'a').write('{}'); code = {}"
    note += (
        "; wait = time.monotonic() + {}\nwhile len(os.listdir({!r})) < 2 and time.monotonic() < wait: time.sleep(0.05)"
    )
    folder = tmp_path / "pids"
    folder.mkdir()
    one = engine()
    tasks = [task(name, note.format(f"{folder}/", name, code, MINUTES, str(folder))) for code, name in enumerate("pqr")]
    assert done(one, *tasks, task("e", "1 / 0")) == {**{n: (i, False) for i, n in enumerate("pqr")}, "e": (1, False)}
    assert "e: ZeroDivisionError: division by zero" in one.said
    assert len(os.listdir(folder)) == 2  # processes


@needs_ray
def test_threads_and_gpus_are_those_of_the_launcher(only_a_and_b, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    only_a_and_b.started["g"] = only_a_and_b.add_node(num_cpus=2, num_gpus=1, node_name="g")
    note = f"import os; open({str(tmp_path / 'seen')!r}, 'a').write("
    note += "f\"{os.environ['OMP_NUM_THREADS']} {os.environ['CUDA_VISIBLE_DEVICES']};\")"
    one = engine(task_gpus="0.5")
    assert one.slots == 2
    assert done(one, task("a", note))["a"] == (0, False)
    one.close()
    one = engine(task_gpus="0", jobs="1")
    assert one.slots == 1
    assert done(one, task("a", note))["a"] == (0, False)
    assert (tmp_path / "seen").read_text() == "3 0;3 ;"


@needs_ray
def test_what_is_lost_is_done_once_more(only_a_and_b, engine, tmp_path):
    cluster, one = only_a_and_b, engine()
    once = "import os, pathlib, time; m = pathlib.Path({!r}); n = m.exists(); m.touch(); "
    lost = once + f"n or {DIES}"
    always = f"import os, time; {DIES}"
    assert done(one, task("lost", lost.format(str(tmp_path / "a"))), task("always", always), task("after")) == {
        "lost": (0, False),
        "always": (1, False),
        "after": (0, False),
    }
    assert sum(line.endswith("died; once more, going on where it stopped") for line in one.said) == 2
    # A node that is lost, as often as it may be, and one that joins.
    one.said.clear()
    began, go_on = tmp_path / "began", tmp_path / "go_on"
    waits = f"import os, time; open({str(began)!r}, 'a').write('x')\n"
    waits += f"while not os.path.exists({str(go_on)!r}): time.sleep(0.05)"
    for title in ("node", "other"):
        one.submit(task(title, waits))
    wait_for(lambda: one.next_end() or (began.exists() and len(began.read_text()) == 2))
    name = next(host.node.name for host in one.hosts if host.task and host.task.title == "node")
    cluster.remove_node(cluster.started.pop(name), allow_graceful=False)
    wait_for(lambda: one.next_end() or any(line.startswith(f"Note: node {name} is gone") for line in one.said))
    assert one.slots == 1
    cluster.started["c"] = cluster.add_node(num_cpus=1, node_name="c")
    wait_for(lambda: one.next_end() or len(began.read_text()) == 3)
    go_on.touch()
    ends = []
    wait_for(lambda: ends.append(one.next_end()) or sum(end is not None for end in ends) == 2)
    assert {(end.task.title, end.code) for end in ends if end} == {("node", 0), ("other", 0)}
    assert "Note: node c has joined; 2 runs at once" in one.said


@needs_ray
def test_where_no_process_starts_what_is_left_fails(engine):
    one = engine()
    one.place = replace(one.place, cwd="/no/such/folder")
    assert done(one, *(task(name) for name in "pqr")) == dict.fromkeys("pqr", (1, False))
    assert [line.partition(", its")[0] for line in sorted(one.said)] == [
        "Note: no node is left that runs could be done on; those that are not done fail",
        "Note: node a is left out",
        "Note: node b is left out",
    ]


@needs_ray
def test_the_death_of_a_process_that_did_nothing_is_no_tasks_loss(engine, tmp_path):
    import ray

    one = engine(jobs="1")
    assert one.several is False
    done(one, task("before"))
    actor = one.hosts[0].actor
    ray.kill(actor)
    with pytest.raises(ray.exceptions.RayActorError):  # only then it is dead
        while True:
            ray.get(actor.ready.remote())
    once = "import os, pathlib, time; m = pathlib.Path({!r}); n = m.exists(); m.touch(); "
    once = once.format(str(tmp_path / "mark")) + f"n or {DIES}"
    assert done(one, task("once", once)) == {"once": (0, False)}
    assert [line.partition("once: ")[2].partition(" on node")[0] for line in one.said] == ["its process"]


@needs_ray
def test_what_has_nothing_to_do_makes_room_for_others(engine, monkeypatch):
    import ray

    one = engine()
    assert one.several
    done(one, task("before"), task("beside"))
    assert len(one.hosts) == 2
    one.rest()
    assert not one.hosts
    wait_for(lambda: ray.available_resources().get("CPU") == 2)
    # Others take it all, which is said, until they have ended.
    monkeypatch.setattr(ray_engine, "SECONDS_FOR_ROOM", 0.5)
    others = ray.util.placement_group([{"CPU": 1}] * 2)
    ray.get(others.ready())
    one.submit(task("after"))
    wait_for(lambda: one.next_end() or one.said)
    assert len(one.said) == 1 and re.match("Note: node [ab] has had no room for a run for 0 s: others use", one.said[0])
    ray.util.remove_placement_group(others)
    ends = []
    wait_for(lambda: ends.append(one.next_end()) or ends[-1])
    assert ends[-1].code == 0
    monkeypatch.setattr(ray_engine, "SECONDS_IDLE", 0.0)
    wait_for(lambda: one.next_end() or not one.hosts)


@needs_ray
def test_a_folder_that_a_lost_task_still_has_is_waited_for(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(ray_engine, "SECONDS_TO_LET_GO", 0.0)
    held = iter(["process 7 on b"] * 3)
    monkeypatch.setattr(ray_engine, "holder", lambda folder: next(held, None))
    one = engine(jobs="1")
    once = f"import os, pathlib, time; m = pathlib.Path({str(tmp_path / 'mark')!r}); n = m.exists(); m.touch(); "
    once += f"n or {DIES}"
    assert done(one, task("once", once)) == {"once": (0, False)}
    assert one.said[1:] == ["once: process 7 on b still has once, so its end is waited for"]


@needs_ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_task_on_every_node(engine, tmp_path, number):
    wait = (
        "import signal, time, pathlib; got = []; "
        f"signal.signal({number:d}, lambda *_: got.append(1)); pathlib.Path({{!r}}).touch()\n"
        "while not got: time.sleep(0.05)\ncode = 130"
    )
    one = engine()
    marks = [tmp_path / "a", tmp_path / "b"]
    for mark in marks:
        one.submit(task(mark.name, wait.format(str(mark))))
    one.submit(task("c"))
    wait_for(lambda: one.next_end() or all(mark.exists() for mark in marks))
    one.interrupt(number)
    ends = []
    wait_for(lambda: ends.append(one.next_end()) or sum(end is not None for end in ends) == 3)
    codes = {end.task.title: end.code for end in ends if end}
    assert codes == {"a": 130, "b": 130, "c": 128 + number}  # the last one had not begun


# ---- real runs ----


@needs_ray
def test_a_cluster_of_this_machine_alone(bash, launched, tmp_path, image_folder, clip_file):
    words = ("coop/main.sh", image_folder, clip_file, *QUICK)
    finished = bash(*words, TARGETS="red", ENGINE="ray", JOBS="1", OUTPUT="ray")
    assert finished.returncode == 0, finished.stderr
    began, ended = finished.stdout.splitlines()[:2]  # nothing of Ray's own
    assert began.startswith("[1/1] CoOp on stripes, target red, seed 1: log in ")
    assert ended.startswith("[1/1] CoOp on stripes, target red, seed 1: done in ")
    assert launched(*words, TARGETS="red", OUTPUT="local").returncode == 0
    run = "stripes/CoOp/tiny/default/red/seed1"
    assert kill_trial.outcome(tmp_path / "ray" / run) == kill_trial.outcome(tmp_path / "local" / run)


def parent(pid):
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True).stdout or 0)


def host_and_node(cluster, folder):
    """Id of the process of the cluster that has a run in a folder done, and its node's name; (None, None): none."""
    if holder(folder) is None:
        return None, None
    host = parent(json.loads((folder / LOCK_FILE).read_text() or '{"pid": 0}')["pid"])
    raylets = {node.all_processes["raylet"][0].process.pid: name for name, node in cluster.started.items()}
    name = raylets.get(parent(host))
    return (host, name) if name else (None, None)


class Launchers:
    """Launchers on the cluster, as a user starts them; `nodes` are those that did anything for them."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder, self.nodes, self.started = cluster, folder, set(), []

    def start(self, script, *words, **environment):
        command = ["bash", str(REPOSITORY / "scripts" / script), *map(str, words)]
        on_ray = {"ENGINE": "ray", "RAY_ADDRESS": self.cluster.address, "PYTHON": sys.executable, "SEEDS": "1"}
        log = self.folder / f"launcher{len(self.started)}.log"
        with open(log, "w") as said:
            process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **on_ray, **environment}, stdout=said, stderr=said
            )
        process.said = log.read_text
        self.started.append(process)
        return process

    def wait_for(self, what):
        """Look from time to time at whether something is so, and at which nodes do runs."""

        def look():
            for path in self.folder.rglob(LOCK_FILE):
                self.nodes.add(host_and_node(self.cluster, path.parent)[1])
            return what()

        wait_for(look, said=lambda: "\n".join(process.said() for process in self.started))

    def end(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def launchers(only_a_and_b, tmp_path):
    made = Launchers(only_a_and_b, tmp_path)
    yield made
    made.end()


@needs_ray
def test_whatever_dies_the_numbers_are_the_same(launchers, launched, tmp_path, image_folder, clip_file):
    cluster = launchers.cluster
    words = ("compare.sh", image_folder, clip_file, *QUICK, "OPTIM.MAX_EPOCH", "60")
    asked = {"METHODS": "coop,spg", "TARGETS": "red"}
    coop = tmp_path / "cluster/stripes/CoOp/tiny/default/red/seed1"
    first = launchers.start(*words, **asked, OUTPUT="cluster")
    launchers.wait_for((coop / HISTORY_FILE).is_file)
    found = []
    launchers.wait_for(lambda: found.append(host_and_node(cluster, coop)) or found[-1][0] is not None)
    host, name = found[-1]
    os.kill(host, signal.SIGKILL)
    launchers.wait_for(lambda: "once more" in first.said())
    cluster.remove_node(cluster.started.pop(name), allow_graceful=False)
    launchers.wait_for(lambda: f"Note: node {name} is gone" in first.said())
    first.kill()
    first.wait()
    launchers.wait_for(lambda: holder(coop) is None)
    cluster.started[name] = cluster.add_node(num_cpus=1, node_name=name)
    second = launchers.start(*words, **asked, OUTPUT="cluster")
    launchers.wait_for(lambda: second.poll() is not None)
    assert second.returncode == 0, second.said()
    assert launchers.nodes - {None} == {"a", "b"}
    assert launched(*words, **asked, OUTPUT="local").returncode == 0
    runs = sorted(path.parent.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("results.json"))
    assert len(runs) == 2
    for run in runs:
        assert kill_trial.outcome(tmp_path / "cluster" / run) == kill_trial.outcome(tmp_path / "local" / run)


@needs_ray
def test_two_launchers_on_one_cluster_share_the_runs(launchers, tmp_path, image_folder, clip_file):
    words = ("zsclip/main.sh", image_folder, clip_file, "DATALOADER.NUM_WORKERS", "0")
    both = [launchers.start(*words), launchers.start(*words)]
    launchers.wait_for(lambda: all(process.poll() is not None for process in both))
    assert [process.returncode for process in both] == [0, 0], [process.said() for process in both]
    assert sum(process.said().count(": done in ") for process in both) == 3
    for run in (tmp_path / "output").rglob("results.json"):  # begun once
        assert len(list(run.parent.glob("log.txt*"))) == 1
