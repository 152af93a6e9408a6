"""Downloads of the published sets, against a local server: from archives to a set that loads, and every failure."""

import dataclasses
import errno
import io
import json
import os
import random
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import download_site
import pytest
from dataset_trees import PICTURES, config, make_set, read_only
from download_site import (
    TERRA_ANNOTATIONS,
    TERRA_IMAGES,
    camera_trap_annotations,
    files_below,
    make_archives,
    terra_pictures,
    write_tar,
    write_terra,
    zip_of,
)
from other_process import lock_elsewhere

from common.errors import UserError
from datasets.benchmarks import SPG_PACS, SPG_DomainNet, SPG_TerraIncognita
from datasets.download import archives, fetch
from datasets.download.archives import select_camera_traps
from datasets.download.install import download_command, offer_download
from datasets.download.sources import SOURCES
from scripts import download

server, run = download_site.server, download_site.run
expect, pacs = download_site.expect, download_site.pacs

PIECE = 512 * 1024
FILE_ID = "1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE"


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def failed(result, *messages):
    code, _, err = result
    assert code == 1 and "Traceback" not in err
    for message in messages:
        assert message in err, err


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
def test_archive_on_disk_is_not_downloaded(way, run, server, pacs, data):
    if way == "by hand":
        (data / ".download").mkdir(parents=True)
        shutil.copy(pacs, data / ".download")
    done(run("pacs", mirror=server.folder if way == "mirror" else None))
    assert pacs.is_file() and not server.requests


def test_other_image_counts_raise_without_any_counts(run, pacs, expect, data, server):
    expect("pacs", 15)
    failed(run("pacs"), "art_painting 14 of 15, cartoon 14 of 15, photo 14 of 15.", "--any-counts")
    assert files_below(data) == [".download/pacs.zip"]
    server.requests.clear()
    assert "Warning: PACS in" in done(run("pacs", "--any-counts"))
    assert not server.requests


def test_picture_of_two_classes_is_in_both_folders(run, server, data, monkeypatch):
    pictures = {**terra_pictures(), "both.jpg": (38, ("dog", "cat"))}
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


def test_pictures_are_selected_by_location_and_class(tmp_path):
    first = camera_trap_annotations(
        {
            "a.jpg": (38, ("dog",)),
            "b.jpg": ("38", ("dog", "cat", "dog")),  # two classes, one of them in two boxes
            "d.jpg": (138, ("dog",)),
            "e.jpg": (43, ("car", "bird")),
        }
    )
    # Another file may number the categories otherwise, and list a picture again.
    second = camera_trap_annotations({"a.jpg": (38, ("dog",)), "g.jpg": (46, ("rabbit",))}, ("rabbit", "dog"))
    for number, content in enumerate((first, second)):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    assert select_camera_traps(tmp_path, Path("a.tar.gz")) == {
        "a.jpg": ["location_38/dog/a.jpg"],
        "b.jpg": ["location_38/cat/b.jpg", "location_38/dog/b.jpg"],
        "e.jpg": ["location_43/bird/e.jpg"],
        "g.jpg": ["location_46/rabbit/g.jpg"],
    }
    for content in ("{", "[]", '{"images": []}', '{"categories": [], "images": [], "annotations": [1]}'):
        (tmp_path / "0.json").write_text(content)
        with pytest.raises(UserError, match=r"0.json in a.tar.gz is no annotation file \(COCO Camera Traps\)"):
            select_camera_traps(tmp_path, Path("a.tar.gz"))


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


def test_half_extracted_set_is_not_touched(run, server, pacs, data):
    tree = make_set(data, SPG_PACS, SPG_PACS.layouts[0], per_class=1, domains=["photo"])
    failed(run("pacs"), f"{tree} is no complete PACS. Move it away")
    assert len(files_below(tree)) == 7 and not server.requests


def test_existing_split_files_are_used(run, pacs, data):
    splits = data / "pacs/spg_coop_splits"
    splits.mkdir(parents=True)
    (splits / "a_train_val_split.json").write_text("{}")
    done(run("pacs"))
    assert (splits / "a_train_val_split.json").read_text() == "{}"


def test_root_that_cannot_be_written_to_raises(run, pacs, data, tmp_path):
    data.mkdir()
    with read_only(data):
        failed(run("pacs"), f"--root {data}: it is a file or read-only")
    done(run("pacs"))
    with read_only(data):
        done(run("pacs"))  # nothing to write
    (tmp_path / "file").touch()
    failed(run("pacs", root=tmp_path / "file"), f"--root {tmp_path}/file: it is a file or read-only")


def test_second_download_process_raises(run, pacs, data):
    lock = data / ".download/PACS.lock"
    lock.parent.mkdir(parents=True)
    with lock_elsewhere(lock):
        failed(run("pacs"), f"{lock.parent} is in use by process")
    done(run("pacs"))


# --- transfers ---


@pytest.fixture
def large_pacs(server, tmp_path, expect):
    """A PACS of 3 MB on the server; gdown writes pieces of 512 kB."""
    expect("pacs", 7)
    tree = make_set(tmp_path / "tree", SPG_PACS, SPG_PACS.layouts[0], per_class=1)
    (tree / "images/photo/dog/pic_000.jpg").write_bytes(random.Random(0).randbytes(3_000_000))
    return zip_of(tree, server.folder / "pacs.zip")


def test_broken_transfer_is_resumed_by_the_next_run(run, server, large_pacs, data):
    server.breaks = [("last", 2 * PIECE)]
    failed(run("pacs"), "Run the same command again, which resumes after 1.05MB")
    (part,) = (data / ".download").glob("pacs.zip*.part")
    assert part.stat().st_size == 2 * PIECE and not (data / "pacs").exists()
    server.down = False
    server.requests.clear()
    done(run("pacs"))
    assert [request for request in server.requests if request[1]] == [("pacs.zip", f"bytes={2 * PIECE}-")]


def test_download_from_server_without_ranges_restarts(run, server, large_pacs):
    server.ranges, server.breaks = False, [("first", 2 * PIECE)]
    failed(run("pacs"), "Download is incomplete")
    failed(run("pacs"), "did not honor the requested byte range", "Run the same command again")
    done(run("pacs"))


def test_wrong_hash_raises_and_leaves_nothing(run, pacs, data, monkeypatch):
    import pooch

    source = SOURCES["pacs"]
    for known_hash, is_right in (("md5:" + 32 * "0", False), (f"sha256:{pooch.file_hash(str(pacs))}", True)):
        archive = dataclasses.replace(source.archives[0], known_hash=known_hash)
        monkeypatch.setitem(SOURCES, "pacs", dataclasses.replace(source, archives=(archive,)))
        if is_right:
            done(run("pacs"))
        else:
            failed(run("pacs"), "hash of downloaded file (pacs.zip) does not match", "Run the same command again")
            assert not list(data.rglob("*.zip*")) and not (data / "pacs").exists()


def test_missing_network_names_other_ways(run, server, data):
    server.shutdown()
    server.server_close()
    failed(
        run("pacs"),
        f"Cannot download pacs.zip from {server.url}/pacs.zip",
        "Connection refused",
        "behind a proxy, set HTTPS_PROXY",
        f"open https://drive.google.com/uc?id={FILE_ID} in a browser, save the file as {data}/.download/pacs.zip",
    )


def test_too_little_space_raises_before_the_transfer(run, pacs, data, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 5000))
    failed(run("pacs"), "but only 5.00kB are free", "--root")


# --- archives ---


def flip(content):
    middle = content.index(PICTURES[".jpg"]) + len(PICTURES[".jpg"]) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage, message",
    [
        (flip, "Bad CRC-32"),
        (lambda content: content[: len(content) // 2], "file could not be opened successfully"),
        (lambda content: b"", "file could not be opened successfully"),
        (lambda content: b"<!DOCTYPE html><html><body>Log in", "it is a web page, perhaps of a proxy or a login"),
    ],
)
def test_damaged_zip_is_deleted_unless_it_is_the_users(run, server, tmp_path, data, damage, message):
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


@pytest.mark.parametrize("cut", [0.3, 0.999])
def test_truncated_tar_is_deleted(run, server, data, cut):
    write_terra(server.folder, terra_pictures())
    content = (server.folder / TERRA_IMAGES).read_bytes()
    (server.folder / TERRA_IMAGES).write_bytes(content[: int(cut * len(content))])
    failed(run("terra_incognita"), f"{TERRA_IMAGES}: ", "It was deleted")
    assert files_below(data) == [f".download/{TERRA_ANNOTATIONS}"]


def zip_entry(name, mode=0o100644):
    info = zipfile.ZipInfo("placeholder")
    info.filename, info.external_attr, info.create_system = name, mode << 16, 3
    return info


def tar_entry(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o4777
    return info


@pytest.mark.parametrize(
    "entry",
    [
        zip_entry("../../escaped.jpg"),
        zip_entry("pacs\\..\\..\\..\\escaped.jpg"),
        zip_entry("/escaped.jpg"),
        zip_entry("pacs/images/linked", 0o120777),
        tar_entry("../../escaped.jpg"),
        tar_entry("/escaped.jpg"),
        tar_entry("pacs/link", tarfile.SYMTYPE, "/etc"),
        tar_entry("pacs/link", tarfile.LNKTYPE, "../../../etc/passwd"),
        tar_entry("pacs/disk", tarfile.BLKTYPE),
        tar_entry("pacs/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda entry: f"{type(entry).__name__}-{getattr(entry, 'filename', None) or entry.name}",
)
def test_malicious_archive_writes_nothing_outside(run, tmp_path, entry):
    picture = "pacs/images/sketch/dog/1.jpg"
    if isinstance(entry, zipfile.ZipInfo):
        archive = tmp_path / "bad.zip"
        with zipfile.ZipFile(archive, "w") as handle:
            handle.writestr(picture, PICTURES[".jpg"])
            handle.writestr(entry, "/etc")
    else:
        archive = write_tar(tmp_path / "bad.tar.gz", [(picture, PICTURES[".jpg"]), (entry, b"")])
    before = files_below(tmp_path)
    failed(run("pacs", "--archive", archive, mirror=None), str(archive))
    assert files_below(tmp_path) == before and not os.path.exists("/escaped.jpg")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archive_that_does_not_fit_raises(run, tmp_path, data, kind, monkeypatch):
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**6))
    archive, zeros = tmp_path / f"bomb.{kind}", bytes(2_000_000)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
            handle.writestr("pacs/images/zeros.jpg", zeros)
    else:
        write_tar(archive, [("pacs/images/zeros.jpg", zeros)])
    failed(run("pacs", "--archive", archive, mirror=None), f"{archive} needs 2.00MB, but only 1.00MB are free in")
    assert files_below(data) == []


def test_encrypted_and_foreign_archives_and_a_full_disk_raise(run, pacs, tmp_path, data, monkeypatch):
    content = pacs.read_bytes()
    for entry in re.finditer(b"PK\x01\x02", content):  # in the table of contents; the flags follow
        content = content[: entry.start() + 8] + b"\1" + content[entry.start() + 9 :]
    (tmp_path / "locked.zip").write_bytes(content)
    failed(run("pacs", "--archive", tmp_path / "locked.zip", mirror=None), "is encrypted")
    failed(run("vlcs", "--archive", pacs), f"{pacs}: it lacks domains of VLCS (caltech, labelme")

    def extract(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    failed(run("pacs"), "No space left on device")
    assert files_below(data) == [".download/pacs.zip"]


# --- the command, and the offer of launchers ---


@pytest.mark.parametrize(
    "words, message",
    [
        (["pasc"], "No data set 'pasc' can be downloaded. Accepted: pacs, vlcs, office_home, terra_incognita, "),
        (["pasc"], "Did you mean pacs?"),
        (["all", "--archive", "a.zip"], "--archive goes with one data set at a time."),
        (["pacs", "--archive", "nowhere.zip"], "--archive: there is no file nowhere.zip."),
        (["domainnet", "--archive", __file__], "DomainNet has the archives clipart.zip, infograph.zip"),
        (["vlcs", "--mirror", "nowhere"], "it is no http(s) address, and no folder with vlcs.zip"),
    ],
)
def test_download_with_wrong_words_raises(run, words, message):
    failed(run(*words, mirror=None), message)


def test_list_shows_addresses_and_places(run, server, pacs, data):
    make_set(data, SPG_DomainNet, SPG_DomainNet.layouts[0], per_class=1, domains=["real"])
    done(run("pacs"))
    out = done(run("--list"))
    assert str(data / "pacs/images") in out
    assert "in part: clipart, infograph, painting, quickdraw, sketch missing" in out
    assert all(archive.url in out for source in SOURCES.values() for archive in source.archives)


def test_interruption_exits_with_130(run, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("datasets.download.install.fetch", interrupt)
    code, _, err = run("pacs")
    assert code == 130 and "The same command resumes the download" in err
    with pytest.raises(SystemExit):
        download.main([])


def test_offer_downloads_after_yes_on_a_terminal(pacs, server, data, monkeypatch, capsys):
    archive = dataclasses.replace(SOURCES["pacs"].archives[0], url=f"{server.url}/pacs.zip")
    monkeypatch.setitem(SOURCES, "pacs", dataclasses.replace(SOURCES["pacs"], archives=(archive,)))

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def offer(name, answer):
        monkeypatch.setattr(sys, "stdin", Terminal(answer) if answer else io.StringIO())
        return offer_download(name, data), capsys.readouterr().out

    question = f"{data} has no art_painting, cartoon, photo, sketch of PACS. Download it (174MB) now? [y/N] "
    assert offer("pacs", "") == offer("mini_digits", "y\n") == offer("folder", "y\n") == (False, "")
    assert offer("pacs", "n\n") == (False, question) and not server.requests
    there, out = offer("SPG_PACS", "y\n")
    assert there and out.startswith(question) and "PACS is there: 56 images" in out
    assert offer("pacs", "") == (True, "")
    assert download_command("pacs", "my data") == "python scripts/download.py pacs --root 'my data'"
