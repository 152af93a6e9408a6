"""Downloads of the published sets, against a local server: from archives to a set that loads, and every failure."""

import contextlib
import dataclasses
import errno
import functools
import http.server
import io
import itertools
import json
import os
import random
import re
import shutil
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from dataset_trees import CLASS_FOLDERS, PICTURES, config, make_set, read_only
from other_process import lock_elsewhere

from datasets.benchmarks import SPG_PACS, SPG_DomainNet, SPG_TerraIncognita
from datasets.download import archives, fetch
from datasets.download.install import download_command, offer_download
from datasets.download.sources import SOURCES
from scripts import download

TERRA_ANNOTATIONS, TERRA_IMAGES = (archive.name for archive in SOURCES["terra_incognita"].archives)
PIECE = 512 * 1024  # gdown writes pieces of this size
FILE_ID = "1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE"


# --- a server with archives of tiny data sets ---


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges; server.cut is the number of bytes after which it goes down."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        name = self.path.strip("/").split("?")[0]
        server.requests.append((name, self.headers.get("Range")))
        path = Path(self.directory) / name
        if server.down or not path.is_file():
            return self.answer(503 if server.down else 404, b"", {})
        content = path.read_bytes()
        if part := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(part[1])
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return self.answer(206, content[start:], headers)
        return self.answer(200, content, {"Content-Disposition": f'attachment; filename="{name}"'})

    def answer(self, status, body, headers):
        self.send_response(status)
        for key, value in {"Content-Type": "application/zip", "Content-Length": len(body), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.server.cut is not None:
            body, self.server.down = body[: self.server.cut], True
        with contextlib.suppress(OSError):
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve tmp_path / "mirror" at server.url, to a machine without proxies that tries once."""
    monkeypatch.setattr(fetch, "RETRIES", 0)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # Three classes of DomainNet are enough.
    monkeypatch.setitem(CLASS_FOLDERS, SPG_DomainNet, CLASS_FOLDERS[SPG_DomainNet][:3])
    monkeypatch.setattr(SPG_DomainNet, "n_classes", 3)
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.folder, server.url = folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.requests, server.cut, server.down = [], None, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def zip_of(folder, file):
    """Zip a folder with its name at the top."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.make_archive(str(file.with_suffix("")), "zip", folder.parent, folder.name)
    return file


def write_tar(file, entries):
    """Write a tar.gz of {name: bytes}, or of TarInfo objects without content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as handle:
        for entry, content in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(content)
            handle.addfile(info, io.BytesIO(content))
    return file


def camera_trap_annotations(pictures):
    """Annotations of {file name: (location, names of categories)}."""
    categories = {name: {"id": i, "name": name} for i, name in enumerate(("car", *SPG_TerraIncognita.classes))}
    images, boxes = [], []
    for file, (location, names) in pictures.items():
        images.append({"id": file.removesuffix(".jpg"), "file_name": file, "location": location})
        boxes += [{"image_id": images[-1]["id"], "category_id": categories[name]["id"]} for name in names]
    boxes = [{"id": i, **box} for i, box in enumerate(boxes)]
    return {"info": {}, "categories": list(categories.values()), "images": images, "annotations": boxes}


def write_terra(folder, pictures):
    """Write the two archives of TerraIncognita, with two annotation files."""
    names, entries = sorted(pictures), []
    for part, half in (("train", names[::2]), ("trans_test", names[1::2])):
        content = json.dumps(camera_trap_annotations({name: pictures[name] for name in half}))
        entries.append((f"eccv_18_annotation_files/{part}_annotations.json", content.encode()))
    write_tar(folder / TERRA_ANNOTATIONS, entries)
    write_tar(folder / TERRA_IMAGES, [(f"eccv_18_all_images_sm/{name}", PICTURES[".jpg"]) for name in names])


def terra_pictures():
    """A picture of each class at each of the four locations."""
    locations = [int(domain.split("_")[1]) for domain in SPG_TerraIncognita.domains]
    pairs = itertools.product(locations, SPG_TerraIncognita.classes)
    return {f"{location}-{category}.jpg": (location, (category,)) for location, category in pairs}


def make_archives(name, folder, scratch, per_class=2):
    """Make the archives of a set in their published form; return the number of images of a domain."""
    dataset = SOURCES[name].dataset
    if dataset is SPG_TerraIncognita:
        write_terra(folder, {**terra_pictures(), "elsewhere.jpg": (7, ("dog",)), "38-car.jpg": (38, ("car",))})
        return len(dataset.classes)
    tree = make_set(scratch, dataset, dataset.layouts[0], per_class)
    if dataset is SPG_DomainNet:
        for domain in dataset.domains:
            zip_of(tree / domain, folder / f"{domain}.zip")
    else:
        zip_of(tree, folder / SOURCES[name].archives[0].name)
    shutil.rmtree(tree)
    return per_class * len(CLASS_FOLDERS[dataset])


@pytest.fixture
def expect(monkeypatch):
    """expect("pacs", 14): declare 14 images in each domain of the set."""

    def set_counts(name, per_domain):
        dataset = SOURCES[name].dataset
        monkeypatch.setattr(dataset, "image_counts", dict.fromkeys(dataset.domains, per_domain))

    return set_counts


@pytest.fixture
def pacs(server, tmp_path, expect):
    """The server has a tiny PACS; returns the archive."""
    expect("pacs", make_archives("pacs", server.folder, tmp_path / "tree"))
    return server.folder / "pacs.zip"


@pytest.fixture
def run(server, tmp_path, capfd):
    """run("pacs", "--any-counts") -> exit code, stdout, stderr; with our server as mirror unless mirror=None."""

    def command(*words, mirror=server.url, root=tmp_path / "data"):
        words = [*map(str, words), "--root", str(root), *(["--mirror", str(mirror)] if mirror else [])]
        code = download.main(words)
        return code, *capfd.readouterr()

    return command


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def failed(result, *messages):
    code, _, err = result
    assert code == 1 and "Traceback" not in err
    assert all(message in err for message in messages), err


def done(result):
    assert (result[0], result[2]) == (0, "")
    return result[1]


# --- from archives to a set that loads ---


@pytest.mark.parametrize("name", SOURCES)
def test_set_is_downloaded_once_and_loads(name, server, run, tmp_path, data, expect):
    per_domain = make_archives(name, server.folder, tmp_path / "tree")
    expect(name, per_domain)
    source = SOURCES[name]
    n_images = per_domain * len(source.dataset.domains)
    assert f"{source.title} is there: {n_images:,} images in {data}" in done(run(name))
    assert [folder.name for folder in data.iterdir()] == [source.dataset.layouts[0].folder]
    found = source.dataset(config(data, target=[source.dataset.domains[-1]], output=tmp_path / "out"))
    assert len(found.test) == per_domain
    server.requests.clear()
    assert f"{source.title} is already there: {n_images:,} images" in done(run(name.upper()))
    assert not server.requests


def test_archive_of_the_user_in_another_layout_is_installed(run, tmp_path, data, expect):
    expect("pacs", 7)
    tree = make_set(tmp_path / "tree", SPG_PACS, SPG_PACS.layouts[1], per_class=1)
    archive = zip_of(tree.rename(tree.parent / "kfold"), tmp_path / "mine/whatever.zip")
    assert "DomainBed layout" in done(run("pacs", "--archive", archive, mirror=None))
    assert (data / "PACS/sketch").is_dir() and archive.is_file()


@pytest.mark.parametrize("way", ["mirror", "by hand"])
def test_archive_on_disk_is_not_downloaded_and_existing_splits_stay(way, run, server, pacs, data):
    split = data / "pacs/spg_coop_splits/a_train_val_split.json"
    split.parent.mkdir(parents=True)
    split.write_text("{}")
    if way == "by hand":
        (data / ".download").mkdir()
        shutil.copy(pacs, data / ".download")
    done(run("pacs", mirror=server.folder if way == "mirror" else None))
    assert pacs.is_file() and not server.requests and split.read_text() == "{}"


def test_other_image_counts_raise_without_any_counts(run, pacs, expect, data, server):
    expect("pacs", 15)
    failed(run("pacs"), "art_painting 14 of 15, cartoon 14 of 15, photo 14 of 15.", "--any-counts")
    assert files_below(data) == [".download/pacs.zip"]
    server.requests.clear()
    assert "Warning: PACS in" in done(run("pacs", "--any-counts"))
    assert not server.requests


def test_pictures_are_selected_by_location_and_class(run, server, data, monkeypatch):
    others = {"both.jpg": ("38", ("dog", "cat", "dog")), "elsewhere.jpg": (138, ("dog",)), "car.jpg": (38, ("car",))}
    pictures = {**terra_pictures(), **others}
    write_terra(server.folder, pictures)
    content = camera_trap_annotations(pictures)
    for image in content["images"]:  # names in annotations choose pictures, and are no paths
        image["file_name"] = f"../../../{image['file_name']}"
    write_tar(server.folder / TERRA_ANNOTATIONS, [("x/annotations.json", json.dumps(content).encode())])
    counts = {**dict.fromkeys(SPG_TerraIncognita.domains, 10), "location_38": 12}
    monkeypatch.setattr(SPG_TerraIncognita, "image_counts", counts)
    done(run("terra_incognita"))
    for name in ("cat", "dog"):
        assert (data / "terra_incognita/location_38" / name / "both.jpg").read_bytes() == PICTURES[".jpg"]
    assert len(files_below(data / "terra_incognita")) == 4 * 10 + 2


def test_domainnet_gets_only_the_missing_domains(run, server, tmp_path, data, expect):
    expect("domainnet", make_archives("domainnet", server.folder, tmp_path / "tree", per_class=1))
    there = [domain for domain in SPG_DomainNet.domains if domain not in ("infograph", "sketch")]
    make_set(data, SPG_DomainNet, SPG_DomainNet.layouts[1], per_class=1, domains=there)
    (server.folder / "sketch.zip").rename(server.folder / "later.zip")
    failed(run("domainnet"), "404 Client Error")
    assert (data / "domain_net/infograph").is_dir()
    (server.folder / "later.zip").rename(server.folder / "sketch.zip")
    assert "DomainNet is there: 18 images" in done(run("domainnet"))
    assert {name for name, _ in server.requests} == {"infograph.zip", "sketch.zip"}


# --- files of the user ---


def test_root_that_cannot_be_used_raises(run, server, pacs, data):
    tree = make_set(data, SPG_PACS, SPG_PACS.layouts[0], per_class=1, domains=["photo"])
    failed(run("pacs"), f"{tree} is no complete PACS. Move it away")
    assert len(files_below(tree)) == 7 and not server.requests
    shutil.rmtree(tree)
    with read_only(data):
        failed(run("pacs"), f"--root {data}: it is a file or read-only")
    done(run("pacs"))
    with read_only(data):
        done(run("pacs"))  # nothing to write


def test_second_download_process_raises(run, pacs, data):
    lock = data / ".download/PACS.lock"
    lock.parent.mkdir(parents=True)
    with lock_elsewhere(lock):
        failed(run("pacs"), f"{lock.parent}: in use by process")
    done(run("pacs"))


# --- transfers ---


def test_broken_transfer_is_resumed_by_the_next_run(run, server, tmp_path, data, expect):
    expect("pacs", 7)
    tree = make_set(tmp_path / "tree", SPG_PACS, SPG_PACS.layouts[0], per_class=1)
    (tree / "images/photo/dog/pic_000.jpg").write_bytes(random.Random(0).randbytes(3_000_000))
    zip_of(tree, server.folder / "pacs.zip")
    server.cut = 2 * PIECE
    failed(run("pacs"), "Run the same command again, which resumes after 1.05MB")
    (part,) = (data / ".download").glob("pacs.zip*.part")
    assert part.stat().st_size == 2 * PIECE and not (data / "pacs").exists()
    server.cut, server.down = None, False
    server.requests.clear()
    done(run("pacs"))
    assert [request for request in server.requests if request[1]] == [("pacs.zip", f"bytes={2 * PIECE}-")]


def test_wrong_hash_raises_and_leaves_nothing(run, pacs, data, monkeypatch):
    archive = dataclasses.replace(SOURCES["pacs"].archives[0], known_hash="md5:" + 32 * "0")
    monkeypatch.setitem(SOURCES, "pacs", dataclasses.replace(SOURCES["pacs"], archives=(archive,)))
    failed(run("pacs"), "hash of downloaded file (pacs.zip) does not match", "Run the same command again")
    assert not list(data.rglob("*.zip*")) and not (data / "pacs").exists()


def test_missing_network_names_other_ways(run, server, data):
    server.shutdown()
    server.server_close()
    by_hand = f"open https://drive.google.com/uc?id={FILE_ID} in a browser, save the file as {data}/.download/pacs.zip"
    failed(run("pacs"), f"Cannot download pacs.zip from {server.url}/pacs.zip", "Connection refused", by_hand)


# --- archives ---


def flip(content):
    middle = content.index(PICTURES[".jpg"]) + len(PICTURES[".jpg"]) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage, message",
    [
        (flip, "Bad CRC-32"),
        (lambda content: content[: len(content) // 2], "file could not be opened successfully"),
        (lambda content: b"<!DOCTYPE html><html><body>Log in", "it is a web page, perhaps of a proxy or a login"),
    ],
)
def test_damaged_archive_is_deleted_unless_it_is_the_users(run, server, tmp_path, data, damage, message):
    tree = make_set(tmp_path / "tree", SPG_PACS, SPG_PACS.layouts[0], per_class=1)
    file = server.folder / "pacs.zip"
    with zipfile.ZipFile(file, "w") as handle:  # not compressed
        for name in files_below(tree):
            handle.write(tree / name, f"pacs/{name}")
    file.write_bytes(damage(file.read_bytes()))
    failed(run("pacs"), message, "It was deleted: run the same command again to download it.")
    assert files_below(data) == []
    failed(run("pacs", "--archive", file, mirror=None), message)
    assert file.is_file()


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("../../escaped.jpg", None),
        ("pacs\\..\\..\\..\\escaped.jpg", None),
        ("/escaped.jpg", None),
        ("pacs/images/linked", "/etc"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_malicious_archive_writes_nothing_outside(run, tmp_path, data, kind, name, link):
    picture, archive = ("pacs/images/sketch/dog/1.jpg", PICTURES[".jpg"]), tmp_path / f"bad.{kind}"
    if kind == "zip":
        entry = zipfile.ZipInfo("placeholder")
        entry.filename, entry.external_attr, entry.create_system = name, (0o120777 if link else 0o100644) << 16, 3
        with zipfile.ZipFile(archive, "w") as handle:
            handle.writestr(*picture)
            handle.writestr(entry, link or "content")
    else:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.mode = (tarfile.SYMTYPE if link else tarfile.REGTYPE), link or "", 0o4777
        write_tar(archive, [picture, (entry, b"")])
    before = files_below(tmp_path)
    failed(run("pacs", "--archive", archive, mirror=None), str(archive))
    assert files_below(tmp_path) == before and not os.path.exists("/escaped.jpg")


def test_archive_that_does_not_fit_raises(run, tmp_path, data, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**6))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as handle:
        handle.writestr("pacs/images/zeros.jpg", bytes(2_000_000))
    failed(run("pacs", "--archive", tmp_path / "bomb.zip", mirror=None), "needs 2.00MB, but only 1.00MB are free in")
    assert files_below(data) == []


def test_archive_of_another_set_and_a_full_disk_raise(run, pacs, data, monkeypatch):
    failed(run("vlcs", "--archive", pacs), f"{pacs}: it lacks domains of VLCS (caltech, labelme")

    def extract(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    failed(run("pacs"), "No space left on device")
    assert files_below(data) == [".download/pacs.zip"]


# --- the command, and the offer of launchers ---


def test_download_with_wrong_words_raises(run):
    for words, message in (
        (["pasc"], "No data set 'pasc' can be downloaded. Accepted: pacs, vlcs, office_home, terra_incognita, "),
        (["all", "--archive", "a.zip"], "--archive goes with one data set at a time."),
        (["pacs", "--archive", "nowhere.zip"], "--archive: there is no file nowhere.zip."),
        (["domainnet", "--archive", __file__], "DomainNet has the archives clipart.zip, infograph.zip"),
        (["vlcs", "--mirror", "nowhere"], "it is no http(s) address, and no folder with vlcs.zip"),
    ):
        failed(run(*words, mirror=None), message)


def test_list_shows_addresses_and_places(run, server, data):
    make_set(data, SPG_DomainNet, SPG_DomainNet.layouts[0], per_class=1, domains=["real"])
    out = done(run("--list"))
    assert str(data) in out and "in part: clipart, infograph, painting, quickdraw, sketch missing" in out
    assert all(archive.url in out for source in SOURCES.values() for archive in source.archives)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_offer_downloads_after_yes_on_a_terminal(pacs, server, data, monkeypatch, capsys):
    archive = dataclasses.replace(SOURCES["pacs"].archives[0], url=f"{server.url}/pacs.zip")
    monkeypatch.setitem(SOURCES, "pacs", dataclasses.replace(SOURCES["pacs"], archives=(archive,)))

    def offer(name, answer):
        monkeypatch.setattr(sys, "stdin", Terminal(answer) if answer else io.StringIO())
        return offer_download(name, data), capsys.readouterr().out

    question = f"{data} has no art_painting, cartoon, photo, sketch of PACS. Download it (174MB) now? [y/N] "
    assert offer("pacs", "") == offer("mini_digits", "y\n") == (False, "")
    assert offer("pacs", "n\n") == (False, question) and not server.requests
    is_there, out = offer("SPG_PACS", "y\n")
    assert is_there and out.startswith(question) and "PACS is there: 56 images" in out
    assert offer("pacs", "") == (True, "")
