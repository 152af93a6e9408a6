"""scripts/download.py against a server of our own: each set, broken transfers, archives of all kinds of badness."""

import contextlib
import dataclasses
import errno
import functools
import http.server
import io
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

import filelock
import pytest
from quick_run import REPOSITORY

sys.path.append(str(REPOSITORY / "tests" / "datasets"))
from dataset_trees import CLASS_FOLDERS, PICTURES, config, make_set, read_only  # noqa: E402

from common import archives, fetch  # noqa: E402
from datasets.download import sources as downloads  # noqa: E402
from datasets.download.camera_traps import select_images  # noqa: E402
from datasets.download.sources import SOURCES  # noqa: E402
from datasets.spg_domainnet import SPG_DomainNet  # noqa: E402
from datasets.spg_pacs import SPG_PACS  # noqa: E402
from datasets.spg_terraincognita import SPG_TerraIncognita  # noqa: E402
from scripts import download  # noqa: E402

PIECE = 512 * 1024
TERRA_ANNOTATIONS, TERRA_IMAGES = (archive.name for archive in SOURCES["terra_incognita"].archives)


# --- a server ---


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with byte ranges; breaks off or knows no ranges if told to."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        name = self.path.strip("/").split("?")[0]
        server.requests.append((name, self.headers.get("Range")))
        if server.down:
            return self.answer(503, b"", "text/plain")
        if name in server.pages:
            return self.answer(200, server.pages[name].encode(), "text/html; charset=utf-8")
        path = Path(self.directory) / name
        if not path.is_file():
            return self.answer(404, b"", "text/plain")
        content = path.read_bytes()
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start and server.ranges:
            start = int(start[1])
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            return self.answer(206, content[start:], "application/zip", headers)
        return self.answer(200, content, "application/zip", {"Content-Disposition": f'attachment; filename="{name}"'})

    def answer(self, status, body, kind, headers=()):
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": len(body), **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        # A request whose client leaves at once, to ask for a range, must not use up a break.
        if self.server.breaks and (status == 206 or self.server.breaks[0][0] != "range"):
            kind, n_bytes = self.server.breaks.pop(0)
            body = body[:n_bytes]
            self.server.down = kind == "last"
        with contextlib.suppress(OSError):
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path / "mirror" at server.url."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.folder, server.url = folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.requests, server.pages, server.ranges, server.breaks, server.down = [], {}, True, [], False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def drive(server, monkeypatch):
    """Google Drive is our server: a file's id is its path there."""
    import requests

    real_get = requests.Session.get

    def get(self, url, **kwargs):
        file_id = re.search(r"[?&]id=([\w.]+)", url)
        assert file_id and ".google" in url, url
        return real_get(self, f"{server.url}/{'confirmed' if 'confirm=' in url else 'uc'}/{file_id[1]}", **kwargs)

    monkeypatch.setattr(requests.Session, "get", get)
    return server


@pytest.fixture(autouse=True)
def quick_and_private(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


# --- archives ---


def zip_of(folder, file):
    """Zip a folder, with its own name at the top."""
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


def camera_trap_annotations(pictures, classes=("car", *SPG_TerraIncognita.classes)):
    """Annotations of {file name: (location, names of categories)}."""
    ids = {name: number for number, name in enumerate(classes)}
    return {
        "info": {},
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "images": [
            {"id": name.removesuffix(".jpg"), "file_name": name, "location": location}
            for name, (location, _) in pictures.items()
        ],
        "annotations": [
            {"id": f"{name}{k}", "image_id": name.removesuffix(".jpg"), "category_id": ids[category]}
            for name, (_, categories) in pictures.items()
            for k, category in enumerate(categories)
        ],
    }


def write_terra(folder, pictures):
    """The two archives of Terra Incognita; the pictures are spread over two annotation files."""
    names = sorted(pictures)
    halves = [{name: pictures[name] for name in names[i::2]} for i in range(2)]
    entries = [
        (f"eccv_18_annotation_files/{part}_annotations.json", json.dumps(camera_trap_annotations(half)).encode())
        for part, half in zip(("train", "trans_test"), halves, strict=True)
    ]
    write_tar(folder / TERRA_ANNOTATIONS, entries)
    write_tar(folder / TERRA_IMAGES, [(f"eccv_18_all_images_sm/{name}", PICTURES[".jpg"]) for name in sorted(pictures)])


def terra_pictures():
    """A picture of each class at each of the four locations."""
    locations = [int(domain.split("_")[1]) for domain in SPG_TerraIncognita.domains]
    return {
        f"{location}-{category}.jpg": (location, (category,))
        for location in locations
        for category in SPG_TerraIncognita.classes
    }


def make_archives(name, folder, scratch, per_class=2):
    """The archives of a set with a few pictures, as their owners arrange them. Returns the images of a domain."""
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
    """expect("pacs", 14): the set is known to have 14 images in each domain."""

    def set_counts(name, per_domain):
        dataset = SOURCES[name].dataset
        monkeypatch.setattr(dataset, "image_counts", dict.fromkeys(dataset.domains, per_domain))

    return set_counts


@pytest.fixture(autouse=True)
def few_classes(monkeypatch):
    """345 classes of DomainNet only take time."""
    monkeypatch.setitem(CLASS_FOLDERS, SPG_DomainNet, CLASS_FOLDERS[SPG_DomainNet][:3])
    monkeypatch.setattr(SPG_DomainNet, "n_classes", 3)


@pytest.fixture
def pacs(server, tmp_path, expect):
    """The server has a tiny PACS; returns the archive."""
    expect("pacs", make_archives("pacs", server.folder, tmp_path / "tree"))
    return server.folder / "pacs.zip"


@pytest.fixture
def large_pacs(server, tmp_path, expect):
    """The server has a PACS of 3 MB; gdown keeps what has come in pieces of 512 kB."""
    expect("pacs", 7)
    tree = make_set(tmp_path / "tree", SPG_PACS, SPG_PACS.layouts[0], per_class=1)
    (tree / "images" / "photo" / "dog" / "pic_000.jpg").write_bytes(random.Random(0).randbytes(3_000_000))
    return zip_of(tree, server.folder / "pacs.zip")


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


# --- the whole way ---


@pytest.mark.parametrize("name", SOURCES)
def test_from_nothing_to_a_set_that_loads(name, server, run, tmp_path, expect):
    per_domain = make_archives(name, server.folder, tmp_path / "tree")
    expect(name, per_domain)
    source = SOURCES[name]
    code, out, err = run(name)
    assert (code, err) == (0, "")
    n_images = per_domain * len(source.dataset.domains)
    assert f"{source.title} is there: {n_images:,} images in {tmp_path / 'data'}" in out
    assert [folder.name for folder in (tmp_path / "data").iterdir()] == [source.dataset.layouts[0].folder]
    last = source.dataset.domains[-1]
    assert len(source.dataset(config(tmp_path / "data", target=[last], output=tmp_path / "out")).test) == per_domain

    server.requests.clear()
    code, out, err = run(name.upper())
    assert (code, err) == (0, "")
    assert f"{source.title} is already there: {n_images:,} images" in out
    assert not server.requests


def test_several_sets_one_of_which_fails(run, pacs):
    code, out, err = run("vlcs", "pacs")
    assert code == 1
    assert "PACS is there" in out
    assert "404 Not Found for http://127.0.0.1" in err
    assert err.endswith("Failed: VLCS.\n")


def test_the_archive_of_somebody_else_in_another_layout(run, tmp_path, expect):
    expect("pacs", 7)
    tree = make_set(tmp_path / "tree", SPG_PACS, SPG_PACS.layouts[1], per_class=1)  # DomainBed's
    archive = zip_of(tree.rename(tree.parent / "kfold"), tmp_path / "mine" / "whatever.zip")
    code, out, err = run("pacs", "--archive", archive, mirror=None)
    assert (code, err) == (0, "")
    assert "DomainBed layout" in out
    assert (tmp_path / "data" / "PACS" / "sketch").is_dir()
    assert archive.is_file()


def test_a_mirror_may_be_a_folder(run, server, pacs, tmp_path):
    code, _, err = run("pacs", mirror=server.folder)
    assert (code, err) == (0, "")
    assert pacs.is_file()
    code, _, err = run("vlcs", mirror=tmp_path / "nowhere")
    assert code == 1
    assert "is neither an http(s) address nor a folder that has vlcs.zip" in err


def test_an_archive_saved_by_hand_into_the_work_folder(run, server, pacs, tmp_path):
    (tmp_path / "data" / ".download").mkdir(parents=True)
    shutil.copy(pacs, tmp_path / "data" / ".download")
    code, _, err = run("pacs", mirror=None)
    assert (code, err) == (0, "")
    assert not server.requests


# --- transfers ---


def test_a_broken_off_transfer_goes_on_in_the_next_run(run, server, large_pacs, tmp_path):
    server.breaks = [("last", 2 * PIECE)]
    code, _, err = run("pacs")
    assert code == 1
    assert "503 Service Unavailable" in err
    assert "1 MB are kept; the same command goes on from there" in err
    (part,) = (tmp_path / "data" / ".download").glob("pacs.zip*.part")
    assert part.stat().st_size == 2 * PIECE
    assert not (tmp_path / "data" / "pacs").exists()

    server.down = False
    server.requests.clear()
    code, _, err = run("pacs")
    assert (code, err) == (0, "")
    assert [request for request in server.requests if request[1]] == [("pacs.zip", f"bytes={2 * PIECE}-")]


def test_a_transfer_that_breaks_off_now_and_then_still_arrives(run, server, large_pacs):
    server.breaks = [("first", PIECE), ("range", 2 * PIECE), ("range", PIECE)]
    code, _, err = run("pacs")
    assert (code, err) == (0, "")
    assert [request[1] for request in server.requests if request[1]] == [f"bytes={k * PIECE}-" for k in (1, 3, 4)]


def test_a_server_without_ranges_starts_anew(run, server, pacs, tmp_path):
    (tmp_path / "data" / ".download").mkdir(parents=True)
    (tmp_path / "data" / ".download" / "pacs.zip12345678.part").write_bytes(b"old")
    server.ranges = False
    code, _, err = run("pacs")
    assert (code, err) == (0, "")


def test_a_server_without_ranges_that_always_breaks_off(run, server, large_pacs):
    server.ranges = False
    server.breaks = [("first", 2 * PIECE)] * 20
    code, _, err = run("pacs")
    assert code == 1
    assert "did not honor the requested byte range" in err


def test_the_beginning_of_another_file_is_found_out_and_thrown_away(run, pacs, tmp_path):
    (tmp_path / "data" / ".download").mkdir(parents=True)
    (tmp_path / "data" / ".download" / "pacs.zip12345678.part").write_bytes(b"x" * 3000)
    code, _, err = run("pacs")
    assert code == 1
    assert "pacs.zip is damaged or incomplete" in err
    assert "It was deleted: run the same command again" in err
    code, _, err = run("pacs")
    assert (code, err) == (0, "")


def test_no_network(run, server):
    server.shutdown()
    server.server_close()
    code, _, err = run("pacs")
    assert code == 1
    assert f"Cannot reach {server.url}/pacs.zip" in err
    assert "Connection refused" in err
    assert "behind a proxy, set HTTPS_PROXY" in err
    assert "open https://drive.google.com/uc?id=1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE in a browser" in err
    assert f"{Path('data') / '.download' / 'pacs.zip'}" in err


def test_too_little_space_to_begin(run, pacs, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 5000))
    code, _, err = run("pacs")
    assert code == 1
    assert re.search(r"pacs.zip has \d+ kB and needs \d+ kB of space .* only 5 kB are free", err)
    assert "--root" in err


def test_an_old_gdown(run, monkeypatch):
    import gdown

    monkeypatch.setattr(gdown, "download", lambda url, output, quiet, resume: None)
    code, _, err = run("pacs")
    assert (code, err) == (1, "Error: Downloads need gdown 6.3 or newer. Get it by: pip install -U 'gdown>=6.3'\n")


QUOTA_PAGE = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""
WARNING_PAGE = (
    '<html><body><form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="confirm" value="t"></form></body></html>'
)


def test_google_drives_limit(run, drive, tmp_path):
    drive.pages["uc/1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE"] = QUOTA_PAGE
    code, _, err = run("pacs", mirror=None)
    assert code == 1
    assert "Google Drive does not give pacs.zip away now: Too many users have viewed" in err
    assert "Or open https://drive.google.com/uc?id=1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE in a browser" in err
    assert f"save the file as {tmp_path / 'data' / '.download' / 'pacs.zip'}" in err
    assert (tmp_path / "data" / ".download").is_dir()


def test_google_drives_warning_about_large_files(run, drive, pacs):
    file_id = "1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE"
    drive.pages[f"uc/{file_id}"] = WARNING_PAGE.format(id=file_id)
    (drive.folder / "confirmed").mkdir()
    pacs.rename(drive.folder / "confirmed" / file_id)
    code, _, err = run("pacs", mirror=None)
    assert (code, err) == (0, "")
    assert drive.requests == [(f"uc/{file_id}", None), (f"confirmed/{file_id}", None)]


# --- what arrives ---


def known(monkeypatch, **facts):
    source = SOURCES["pacs"]
    archive = dataclasses.replace(source.archives[0], **facts)
    monkeypatch.setitem(SOURCES, "pacs", dataclasses.replace(source, archives=(archive,)))


def test_size_and_checksum(run, pacs, tmp_path, monkeypatch):
    import pooch

    known(monkeypatch, size=pacs.stat().st_size + 1)
    code, _, err = run("pacs")
    assert code == 1
    assert re.search(r"pacs.zip is not the file that PACS is made from: it has [\d,]+ bytes instead of [\d,]+", err)
    known(monkeypatch, size=None, known_hash="md5:" + 32 * "0")
    code, _, err = run("pacs")
    assert code == 1
    assert f"its md5 checksum is {pooch.file_hash(str(pacs), 'md5')} instead of {32 * '0'}. It was deleted" in err
    assert not (tmp_path / "data" / ".download" / "pacs.zip").exists()
    assert not (tmp_path / "data" / "pacs").exists()
    known(monkeypatch, size=pacs.stat().st_size, known_hash=pooch.file_hash(str(pacs)))
    assert run("pacs")[0] == 0


def test_other_numbers_of_images(run, pacs, expect, tmp_path, server):
    expect("pacs", 15)
    code, _, err = run("pacs")
    assert code == 1
    assert "art_painting 14 of 15, cartoon 14 of 15, photo 14 of 15." in err  # one sketch may be missing
    assert "It was not put into place." in err
    assert files_below(tmp_path / "data") == [".download/pacs.zip"]
    server.requests.clear()
    code, out, err = run("pacs", "--any-counts")
    assert (code, err) == (0, "")
    assert "Warning: PACS in" in out
    assert not server.requests
    code, out, _ = run("pacs")
    assert code == 0
    assert "Warning: PACS in" in out


def test_an_archive_of_another_set(run, tmp_path, pacs):
    code, _, err = run("vlcs", "--archive", pacs)
    assert code == 1
    assert f"{pacs} is no archive of VLCS: it should hold the domains caltech, labelme, pascal, sun" in err
    assert pacs.is_file()
    assert files_below(tmp_path / "data") == []


def flip(content):
    middle = content.index(PICTURES[".jpg"]) + len(PICTURES[".jpg"]) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def uncompressed(folder, file):
    with zipfile.ZipFile(file, "w") as handle:
        for name in files_below(folder):
            handle.write(folder / name, f"pacs/{name}")


@pytest.mark.parametrize(
    "damage, message",
    [
        (flip, "is damaged or incomplete: Bad CRC-32"),
        (lambda content: content[: len(content) // 2], "is neither zip nor tar nor tar.gz"),
        (lambda content: b"", "is neither zip nor tar nor tar.gz"),
        (lambda content: b"<!DOCTYPE html><html><body>Log in", "That is a web page, perhaps of a proxy or a login."),
    ],
)
def test_a_damaged_archive(run, server, tmp_path, damage, message):
    tree = make_set(tmp_path / "tree", SPG_PACS, SPG_PACS.layouts[0], per_class=1)
    uncompressed(tree, server.folder / "pacs.zip")
    (server.folder / "pacs.zip").write_bytes(damage((server.folder / "pacs.zip").read_bytes()))
    code, _, err = run("pacs")
    assert code == 1
    assert message in err
    assert "It was deleted: run the same command again to download it anew." in err
    assert files_below(tmp_path / "data") == []

    # One that the user named is left alone.
    code, _, err = run("pacs", "--archive", server.folder / "pacs.zip", mirror=None)
    assert code == 1
    assert message in err
    assert (server.folder / "pacs.zip").is_file()


def test_a_full_disk(run, pacs, tmp_path, monkeypatch):
    def no_space(member, files, allowance):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives, "_write", no_space)
    code, _, err = run("pacs")
    assert code == 1
    assert "The disk of" in err and "is full" in err
    assert files_below(tmp_path / "data") == [".download/pacs.zip"]  # kept for the next time


def test_an_archive_that_does_not_fit(run, pacs, tmp_path, monkeypatch):
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 20_000))
    code, _, err = run("pacs", "--archive", pacs, mirror=None)
    assert code == 1
    assert f"{pacs} does not fit: 20 kB were free when extracting began" in err
    assert files_below(tmp_path / "data") == []


# --- malicious archives ---


def zip_entry(name, mode=0o100644):
    info = zipfile.ZipInfo("placeholder")
    info.filename = name  # as it is, not as zipfile would mend it
    info.external_attr = mode << 16
    info.create_system = 3
    return info


@pytest.mark.parametrize(
    "entry, why",
    [
        (zip_entry("../escaped.jpg"), "leads out of the folder"),
        (zip_entry("pacs/../../escaped.jpg"), "leads out of the folder"),
        (zip_entry("pacs\\..\\..\\escaped.jpg"), "leads out of the folder"),
        (zip_entry("/escaped.jpg"), "is an absolute path"),
        (zip_entry("C:\\escaped.jpg"), "is an absolute path"),
        (zip_entry("pacs/images", 0o120777), "is no plain file but a link or device"),
        (zip_entry("pacs/pipe", 0o010644), "is no plain file but a link or device"),
        (zip_entry("pacs/disk", 0o060644), "is no plain file but a link or device"),
    ],
    ids=lambda value: value.filename if isinstance(value, zipfile.ZipInfo) else "",
)
def test_a_malicious_zip(run, tmp_path, entry, why):
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as handle:
        handle.writestr("pacs/images/sketch/dog/1.jpg", PICTURES[".jpg"])
        handle.writestr(entry, "/etc")
    before = files_below(tmp_path)
    code, _, err = run("pacs", "--archive", archive, mirror=None)
    assert code == 1
    assert f"{archive} was not extracted: its entry {entry.filename!r} {why}" in err
    assert files_below(tmp_path) == before
    assert not list((tmp_path / "data").rglob("*.jpg"))


def tar_entry(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o4777
    return info


@pytest.mark.parametrize(
    "entry, why",
    [
        (tar_entry("../escaped.jpg"), "leads out of the folder"),
        (tar_entry("/escaped.jpg"), "is an absolute path"),
        (tar_entry("pacs/link", tarfile.SYMTYPE, "/etc"), "is no plain file"),
        (tar_entry("pacs/link", tarfile.SYMTYPE, "images"), "is no plain file"),
        (tar_entry("pacs/link", tarfile.LNKTYPE, "pacs/images/sketch/dog/1.jpg"), "is no plain file"),
        (tar_entry("pacs/terminal", tarfile.CHRTYPE), "is no plain file"),
        (tar_entry("pacs/disk", tarfile.BLKTYPE), "is no plain file"),
        (tar_entry("pacs/pipe", tarfile.FIFOTYPE), "is no plain file"),
    ],
    ids=lambda value: f"{value.name}-{value.type!r}" if isinstance(value, tarfile.TarInfo) else "",
)
def test_a_malicious_tar(run, tmp_path, entry, why):
    archive = write_tar(tmp_path / "bad.tar.gz", [("pacs/images/sketch/dog/1.jpg", PICTURES[".jpg"]), (entry, b"")])
    before = files_below(tmp_path)
    code, _, err = run("pacs", "--archive", archive, mirror=None)
    assert code == 1
    assert f"{archive} was not extracted: its entry {entry.name!r} {why}" in err
    assert "get it from a source that you trust" in err
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb(run, tmp_path, kind):
    zeros = bytes(20_000_000)
    archive = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
            handle.writestr("pacs/images/zeros.jpg", zeros)
    else:
        write_tar(archive, [("pacs/images/zeros.jpg", zeros)])
    code, _, err = run("pacs", "--archive", archive, mirror=None)
    assert code == 1
    assert "expands to more than 100 times its own size" in err
    assert files_below(tmp_path / "data") == []


def test_too_many_entries(run, pacs, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
    code, _, err = run("pacs")
    assert code == 1
    assert "has more than 20 entries" in err


def test_an_encrypted_zip(run, tmp_path, pacs):
    content = bytearray(pacs.read_bytes())
    at = content.index(b"PK\x01\x02") + 8  # flags of the first entry in the table of contents
    content[at] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    code, _, err = run("pacs", "--archive", tmp_path / "locked.zip", mirror=None)
    assert code == 1
    assert "locked.zip is encrypted" in err


def test_a_file_where_a_folder_must_be(run, tmp_path):
    archive = write_tar(tmp_path / "odd.tar.gz", [("pacs", b"1"), ("pacs/images/1.jpg", b"2")])
    code, _, err = run("pacs", "--archive", archive, mirror=None)
    assert code == 1
    assert re.search(r"Cannot extract .*odd.tar.gz to .*: (File exists|Not a directory)", err)


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.999])
def test_a_truncated_tar(run, server, tmp_path, cut):
    write_terra(server.folder, terra_pictures())
    images = server.folder / TERRA_IMAGES
    content = images.read_bytes()
    images.write_bytes(content[: int(cut * len(content))])
    code, _, err = run("terra_incognita")
    assert code == 1
    assert f"{TERRA_IMAGES} is damaged or incomplete" in err
    assert files_below(tmp_path / "data") == [f".download/{TERRA_ANNOTATIONS}"]


def test_a_plain_tar_with_a_broken_header(run, tmp_path):
    archive = tmp_path / "pacs.tar"
    with tarfile.open(archive, "w") as handle:
        for k in range(40):
            info = tarfile.TarInfo(f"pacs/images/sketch/dog/{k}.jpg")
            info.size = len(PICTURES[".jpg"])
            handle.addfile(info, io.BytesIO(PICTURES[".jpg"]))
    content = bytearray(archive.read_bytes())
    content[content.index(b"pacs/images/sketch/dog/3.jpg")] ^= 255
    archive.write_bytes(content)
    code, _, err = run("pacs", "--archive", archive, mirror=None)
    assert code == 1
    assert "is damaged: it goes on after its end" in err


# --- TerraIncognita ---


def annotation_files(folder, *contents):
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"{number}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def select(folder):
    return select_images(folder, SPG_TerraIncognita.domains, SPG_TerraIncognita.classes, source=Path("a.tar.gz"))


def test_selection_by_location_and_class(tmp_path):
    train = camera_trap_annotations(
        {
            "a.jpg": (38, ("dog",)),
            "b.jpg": ("38", ("dog", "cat", "dog")),  # two classes, one of them in two boxes
            "c.jpg": (46, ("car",)),
            "d.jpg": (138, ("dog",)),
            "e.jpg": (100, ("empty",)),
            "f.jpg": (43, ("car", "bird")),
            "g.jpg": (43, ()),
        }
    )
    # Other files may number the categories otherwise, and list a picture again.
    test = camera_trap_annotations({"a.jpg": (38, ("dog",)), "h.jpg": (46, ("rabbit",))}, ("rabbit", "dog"))
    assert select(annotation_files(tmp_path / "json", train, test)) == {
        "a.jpg": ["location_38/dog/a.jpg"],
        "b.jpg": ["location_38/cat/b.jpg", "location_38/dog/b.jpg"],
        "e.jpg": ["location_100/empty/e.jpg"],
        "f.jpg": ["location_43/bird/f.jpg"],
        "h.jpg": ["location_46/rabbit/h.jpg"],
    }


def test_pictures_of_two_classes_are_in_both_folders(run, server, tmp_path, monkeypatch):
    write_terra(server.folder, {**terra_pictures(), "both.jpg": (38, ("dog", "cat"))})
    counts = dict.fromkeys(SPG_TerraIncognita.domains, 10)
    monkeypatch.setattr(SPG_TerraIncognita, "image_counts", {**counts, "location_38": 12})
    code, _, err = run("terra_incognita")
    assert (code, err) == (0, "")
    folder = tmp_path / "data" / "terra_incognita" / "location_38"
    assert [(folder / name / "both.jpg").read_bytes() for name in ("cat", "dog")] == [PICTURES[".jpg"]] * 2


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"images": []}', '{"categories": [], "images": [], "annotations": [1]}']
)
def test_damaged_annotations(tmp_path, content):
    with pytest.raises(downloads.UserError, match="0.json in a.tar.gz is no annotation file in the format COCO"):
        select(annotation_files(tmp_path / "json", content))


def test_no_annotations(tmp_path):
    with pytest.raises(downloads.UserError, match="a.tar.gz holds no annotation files"):
        select(annotation_files(tmp_path / "json"))


def test_annotations_do_not_lead_out_of_the_folder(run, server, tmp_path, expect):
    """A file name in them only says which picture of the archive is meant."""
    expect("terra_incognita", 10)
    pictures = terra_pictures()
    name = min(pictures)
    write_terra(server.folder, pictures)
    content = camera_trap_annotations(pictures)
    content["images"][sorted(pictures).index(name)]["file_name"] = f"../../../{name}"
    write_tar(server.folder / TERRA_ANNOTATIONS, [("x/train_annotations.json", json.dumps(content).encode())])
    code, _, err = run("terra_incognita")
    assert (code, err) == (0, "")


# --- what is there already ---


def test_a_half_extracted_set_is_not_touched(run, server, pacs, tmp_path):
    tree = make_set(tmp_path / "data", SPG_PACS, SPG_PACS.layouts[0], per_class=1, domains=["photo"])
    before = files_below(tree)
    code, _, err = run("pacs")
    assert code == 1
    assert f"PACS in {tree} has no folder for art_painting, cartoon, sketch: half-extracted? Move it away" in err
    shutil.rmtree(tree / "images" / "photo")
    (tree / "stuff").mkdir()
    code, _, err = run("pacs")
    assert code == 1
    assert f"{tree} is there, but is no layout of PACS" in err
    assert len(before) == 7
    assert not server.requests


def test_domainnet_gets_only_the_domains_that_are_missing(run, server, tmp_path, expect):
    expect("domainnet", make_archives("domainnet", server.folder, tmp_path / "tree", per_class=1))
    there = [domain for domain in SPG_DomainNet.domains if domain not in ("infograph", "sketch")]
    make_set(tmp_path / "data", SPG_DomainNet, SPG_DomainNet.layouts[1], per_class=1, domains=there)
    (server.folder / "sketch.zip").rename(server.folder / "later.zip")
    code, _, err = run("domainnet")
    assert code == 1
    assert "404 Not Found" in err
    assert (tmp_path / "data" / "domain_net" / "infograph").is_dir()
    (server.folder / "later.zip").rename(server.folder / "sketch.zip")
    code, out, err = run("domainnet")
    assert (code, err) == (0, "")
    assert "DomainNet is there: 18 images" in out
    assert {name for name, _ in server.requests} == {"infograph.zip", "sketch.zip"}


def test_split_files_that_were_there_first_are_kept(run, pacs, tmp_path):
    splits = tmp_path / "data" / "pacs" / "spg_coop_splits"
    splits.mkdir(parents=True)
    (splits / "a_train_val_split.json").write_text("{}")
    code, _, err = run("pacs")
    assert (code, err) == (0, "")
    assert (splits / "a_train_val_split.json").read_text() == "{}"


def test_a_read_only_root(run, pacs, tmp_path):
    (tmp_path / "data").mkdir()
    with read_only(tmp_path / "data"):
        code, _, err = run("pacs")
    assert code == 1
    assert f"Cannot write to {tmp_path / 'data'}: it is read-only" in err
    assert run("pacs")[0] == 0
    with read_only(tmp_path / "data"):
        code, out, err = run("pacs")  # nothing to write
    assert (code, err) == (0, "")


def test_a_root_that_is_a_file(run, pacs, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("pacs", root=tmp_path / "file")
    assert (code, err) == (1, f"Error: --root {tmp_path / 'file'} is a file. Name the folder for the data sets.\n")


def test_one_process_at_a_time(run, pacs, tmp_path):
    (tmp_path / "data" / ".download").mkdir(parents=True)
    with filelock.FileLock(tmp_path / "data" / ".download" / "SPG_PACS.lock"):
        code, _, err = run("pacs")
    assert code == 1
    assert "Another process is downloading PACS" in err
    assert run("pacs")[0] == 0


# --- the command line ---


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["pasc"],
            "No data set 'pasc' can be downloaded. Accepted: pacs, vlcs, office_home, terra_incognita, domainnet, ",
        ),
        (["pasc"], "Did you mean pacs?"),
        (["mini_digits"], "MiniDigits needs no download"),
        (["all", "--archive", "a.zip"], "--archive goes with one data set at a time."),
        (["pacs", "--archive", "nowhere.zip"], "--archive: there is no file nowhere.zip."),
    ],
)
def test_wrong_words(run, words, message):
    code, _, err = run(*words)
    assert code == 1
    assert message in err


def test_an_archive_whose_name_does_not_tell_which_it_is(run, pacs):
    code, _, err = run("domainnet", "--archive", pacs)
    assert code == 1
    assert "DomainNet has the archives clipart.zip, infograph.zip" in err


def test_nothing_named(capsys):
    with pytest.raises(SystemExit) as ended:
        download.main([])
    assert ended.value.code == 2
    assert "name a data set" in capsys.readouterr().err


def test_list(run, server, pacs, tmp_path):
    make_set(tmp_path / "data", SPG_DomainNet, SPG_DomainNet.layouts[0], per_class=1, domains=["real"])
    run("pacs")
    server.requests.clear()
    code, out, err = run("--list")
    assert (code, err) == (0, "")
    assert not server.requests
    assert str(tmp_path / "data" / "pacs" / "images") in out
    assert "in part: clipart, infograph, painting, quickdraw, sketch missing" in out
    for source in SOURCES.values():
        assert all(archive.url in out for archive in source.archives)


def test_an_interruption(run, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "fetch", interrupt)
    code, _, err = run("pacs")
    assert code == 130
    assert "the same command goes on from there" in err


# --- offered to a user ---


@pytest.fixture
def offer(monkeypatch, tmp_path, server, capsys):
    """offer("pacs", "y") -> what is returned, and what was asked; answer None: no terminal."""
    monkeypatch.setattr(download.sys.stdin, "isatty", lambda: True, raising=False)
    source = SOURCES["pacs"]
    archive = dataclasses.replace(source.archives[0], url=f"{server.url}/pacs.zip")
    monkeypatch.setitem(SOURCES, "pacs", dataclasses.replace(source, archives=(archive,)))

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def ask(name, answer):
        monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else Terminal(answer))
        return download.offer_download(name, tmp_path / "data"), capsys.readouterr().out

    return ask


def test_offer(offer, pacs, server, tmp_path):
    question = f"PACS is not under {tmp_path / 'data'}. Download it (174 MB) now? [y/N] "
    assert offer("pacs", None) == (False, "")
    assert offer("mini_digits", "y\n") == offer("folder", "y\n") == (False, "")
    for answer in ("", "\n", "n\n", "what\n"):
        assert offer("pacs", answer) == (False, question)
    assert not server.requests
    there, out = offer("SPG_PACS", "y\n")
    assert there
    assert out.startswith(question)
    assert "PACS is there: 56 images" in out
    assert offer("pacs", None) == (True, "")


def test_offer_names_what_is_missing_and_errors_pass(offer, server, tmp_path):
    make_set(tmp_path / "data", SPG_DomainNet, SPG_DomainNet.layouts[0], 1, ["clipart", "real", "sketch"])
    assert offer("domainnet", "n\n")[1].startswith("DomainNet has no infograph, painting, quickdraw under")
    with pytest.raises(downloads.UserError, match="404"):
        offer("pacs", "y\n")


def test_the_command_for_messages():
    assert download.download_command("pacs", "data") == "python scripts/download.py pacs --root data"
    assert download.download_command("pacs", "my data") == "python scripts/download.py pacs --root 'my data'"
