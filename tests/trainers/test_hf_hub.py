"""Ids of Hugging Face's hub: out of its cache, or from a server that answers as the hub does; and what is told else."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hf_folders import put_in_cache
from quick_run import REPOSITORY

from trainers.modules.clip_backbone import backbone_label

COMMIT = "c" * 40
# All that is read of a CLIPModel, and what lies beside it in many repositories.
READ = ("config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "model.safetensors")
BESIDE = ("open_clip_model.safetensors", "pytorch_model.bin", "model.py", "README.md", "tf_model.h5", "model.onnx")
ASK = "import sys; from trainers.modules.hf_hub import hub_folder; print(hub_folder(sys.argv[1]))"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks about the files of a folder; says no, or breaks off, if told to."""

    def __init__(self, folder, *args):
        self.folder = folder
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append(path)
        if server.refuses:
            status, code = server.refuses
            return self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "No."})
        names = sorted(file.name for file in self.folder.iterdir())
        if re.fullmatch(r"/api/models/org/name(/revision/[^/]+)?", path):
            files = [{"rfilename": name} for name in names]
            return self.answer(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": files}).encode())
        if path == f"/api/models/org/name/tree/{COMMIT}":
            files = [
                {"type": "file", "path": name, "oid": name, "size": (self.folder / name).stat().st_size}
                for name in names
            ]
            return self.answer(200, json.dumps(files).encode())
        name = path.rpartition("/")[2]
        if path != f"/org/name/resolve/{COMMIT}/{name}" or name not in names:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = (self.folder / name).read_bytes()
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        if name == server.breaks_in and self.command == "GET":
            server.breaks_in = None
            return self.answer(200, content, headers, at_most=len(content) // 2)
        return self.answer(200, content, headers)

    def answer(self, status, body, headers=None, at_most=None):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:at_most])
        self.close_connection = at_most is not None


@pytest.fixture
def hub(tmp_path):
    """The hub with one repository, org/name."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in (*READ, *BESIDE):
        (folder / name).write_bytes(name.encode() * 10000)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder))
    server.folder, server.url = folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.asked, server.refuses, server.breaks_in = [], None, None
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(tmp_path):
    """ask("org/name", HF_HUB_OFFLINE="1") -> (exit code, the folder or the error's text, what else was printed)."""

    def run(name, **environment):
        kept = {key: value for key, value in os.environ.items() if key == "PATH"}
        closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", ASK, name],
            env={**kept, **closed, "PYTHONPATH": str(REPOSITORY), **environment},
            capture_output=True,
            text=True,
        )
        told = (
            done.stderr.rpartition("common.errors.UserError: ")[2].strip() if done.returncode else done.stdout.strip()
        )
        return done.returncode, told, done.stderr

    return run


@pytest.fixture
def cached(tmp_path):
    """Put empty files into the cache as those of org/name; returns their folder."""

    def put(names=READ, **place):
        made = tmp_path / "made"
        made.mkdir()
        for name in names:
            (made / name).touch()
        return put_in_cache(made, tmp_path / "home" / "hub", "org/name", **place)

    return put


# ---- from the cache ----


@pytest.mark.parametrize("offline", ["0", "1"])
def test_what_is_in_the_cache_is_taken_without_asking(offline, cached, ask, hub):
    folder = cached()
    assert ask("org/name", HF_HUB_OFFLINE=offline, HF_ENDPOINT=hub.url)[:2] == (0, str(folder))
    assert hub.asked == []


def test_a_revision_in_the_cache(cached, ask):
    folder = cached(revision="v1")
    assert ask("org/name@v1", HF_HUB_OFFLINE="1")[:2] == (0, str(folder))
    assert ask("org/name", HF_HUB_OFFLINE="1")[0] == 1


def test_pickles_in_the_cache_do(cached, ask):
    folder = cached([*READ[:-1], "pytorch_model.bin"])
    assert ask("org/name", HF_HUB_OFFLINE="1")[:2] == (0, str(folder))


@pytest.mark.parametrize("lacks", ["preprocessor_config.json", "config.json", "model.safetensors"])
def test_what_the_cache_lacks_is_asked_for(lacks, cached, ask, hub):
    cached([name for name in READ if name != lacks], commit=COMMIT)
    code, folder, _ = ask("org/name", HF_ENDPOINT=hub.url)
    assert code == 0
    assert (Path(folder) / lacks).exists()


def test_shards_that_the_cache_lacks_are_asked_for(cached, ask, hub):
    (hub.folder / "model.safetensors").unlink()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in shards:
        (hub.folder / name).touch()
    index = json.dumps({"weight_map": dict(enumerate(shards))})
    (hub.folder / "model.safetensors.index.json").write_text(index)
    folder = cached([*READ[:-1], "model.safetensors.index.json", shards[0]], commit=COMMIT)
    (folder / "model.safetensors.index.json").write_text(index)
    assert ask("org/name", HF_HUB_OFFLINE="1")[0] == 1
    assert ask("org/name", HF_ENDPOINT=hub.url)[:2] == (0, str(folder))
    assert set(shards) <= set(os.listdir(folder))


def test_weights_in_the_cache_do_where_nothing_else_can_be_had(cached, ask):
    folder = cached(["config.json", "model.safetensors"])
    assert ask("org/name")[:2] == (0, str(folder))


def test_a_repository_that_has_no_more_stays_at_its_commit(cached, ask, hub):
    for name in ("preprocessor_config.json", "vocab.json", "merges.txt"):
        (hub.folder / name).unlink()
    folder = cached(["config.json", "model.safetensors"], commit="d" * 40)  # main is at another one by now
    assert ask("org/name", HF_ENDPOINT=hub.url)[:2] == (0, str(folder))


# ---- from the hub ----


def test_what_is_downloaded(ask, hub):
    code, folder, printed = ask("org/name", HF_ENDPOINT=hub.url)
    assert code == 0
    assert set(os.listdir(folder)) == set(READ)
    assert "100%" in printed
    asked = len(hub.asked)
    assert ask("org/name", HF_ENDPOINT=hub.url)[:2] == (0, folder)
    assert len(hub.asked) == asked


def test_pickles_are_downloaded_only_where_there_is_nothing_else(ask, hub):
    (hub.folder / "model.safetensors").unlink()
    _, folder, _ = ask("org/name", HF_ENDPOINT=hub.url)
    assert set(os.listdir(folder)) == {*READ[:-1], "pytorch_model.bin"}


def test_shards_are_downloaded(ask, hub):
    names = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (hub.folder / "model.safetensors").unlink()
    for name in names:
        (hub.folder / name).touch()
    _, folder, _ = ask("org/name", HF_ENDPOINT=hub.url)
    assert set(os.listdir(folder)) == {*READ[:-1], *names}


def test_a_download_that_breaks_off_is_taken_up_again(ask, hub):
    hub.breaks_in = "model.safetensors"
    code, folder, _ = ask("org/name", HF_ENDPOINT=hub.url)
    assert code == 0
    served = (hub.folder / "model.safetensors").read_bytes()
    assert (Path(folder) / "model.safetensors").read_bytes() == served


def test_a_hub_that_goes_away(ask, hub):
    hub.refuses = (500, "Down")
    code, told, _ = ask("org/name", HF_ENDPOINT=hub.url)
    assert code == 1
    assert f"could not be downloaded from {hub.url}" in told
    assert "files that came to their end are kept" in told


# ---- what cannot be had ----


def test_offline_and_not_in_the_cache(ask, tmp_path):
    code, told, printed = ask("org/name", HF_HUB_OFFLINE="1")
    assert code == 1
    assert f"Backbone hf:org/name: it is not, or not whole, in the cache {tmp_path / 'home' / 'hub'}" in told
    assert "Unset HF_HUB_OFFLINE" in told
    assert len(told.splitlines()) == 1


def test_no_network_and_not_in_the_cache(ask, tmp_path):
    _, told, _ = ask("org/name")
    assert f"in the cache {tmp_path / 'home' / 'hub'}, and could not be downloaded from http://127.0.0.1:9" in told
    assert "hf download org/name --local-dir <folder>" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    "answer, told",
    [
        ((404, "RepoNotFound"), "neither a folder here nor at"),
        ((401, "RepoNotFound"), "set HF_TOKEN"),
        ((403, "GatedRepo"), "its owners want to be asked first"),
        ((404, "RevisionNotFound"), "org/name has no revision 'v7'"),
    ],
)
def test_what_the_hub_refuses(answer, told, ask, hub):
    hub.refuses = answer
    code, message, _ = ask("org/name@v7", HF_ENDPOINT=hub.url)
    assert code == 1
    assert message.startswith("Backbone hf:org/name@v7: ")
    assert told in message
    assert len(message.splitlines()) == 1


def test_an_id_that_cannot_be_one(ask):
    assert "Backbone hf:org/na--me: " in ask("org/na--me")[1]


# ---- names ----


def test_folders_of_runs_go_by_the_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    labels = {
        name: backbone_label(f"hf:{name}") for name in ("org/name", "org/name@v1", "mine", "mine/", ".", snapshot)
    }
    assert list(labels.values()) == [
        "hf-org-name",
        "hf-org-name@v1",
        "hf-mine",
        "hf-mine",
        f"hf-{tmp_path.name}",
        "hf-org-name",
    ]
