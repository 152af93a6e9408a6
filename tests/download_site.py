"""A server with archives of tiny data sets, and fixtures for download tests."""

import contextlib
import functools
import http.server
import io
import json
import re
import shutil
import tarfile
import threading
from pathlib import Path

import pytest
from dataset_trees import CLASS_FOLDERS, PICTURES, make_set

from datasets.benchmarks import SPG_DomainNet, SPG_TerraIncognita
from datasets.download import fetch
from datasets.download.sources import SOURCES

TERRA_ANNOTATIONS, TERRA_IMAGES = (archive.name for archive in SOURCES["terra_incognita"].archives)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges; server.breaks cuts transfers, server.ranges turns ranges off."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        name = self.path.strip("/").split("?")[0]
        server.requests.append((name, self.headers.get("Range")))
        if server.down:
            return self.answer(503, b"", "text/plain")
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
        # A client that leaves at once to ask for a range must not use up a break.
        if self.server.breaks and (status == 206 or self.server.breaks[0][0] != "range"):
            kind, n_bytes = self.server.breaks.pop(0)
            body = body[:n_bytes]
            self.server.down = kind == "last"
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
    server.requests, server.ranges, server.breaks, server.down = [], True, [], False
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
    """Write the two archives of TerraIncognita, with two annotation files."""
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

    from scripts import download

    def command(*words, mirror=server.url, root=tmp_path / "data"):
        words = [*map(str, words), "--root", str(root), *(["--mirror", str(mirror)] if mirror else [])]
        code = download.main(words)
        return code, *capfd.readouterr()

    return command


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
