"""Archives of all kinds of badness: damaged, malicious, too large."""

import errno
import io
import os
import re
import shutil
import tarfile
import zipfile

import pytest
from dataset_trees import PICTURES, make_set
from download_site import TERRA_ANNOTATIONS, TERRA_IMAGES, files_below, terra_pictures, write_tar, write_terra

from datasets.download import archives
from datasets.spg_pacs import SPG_PACS


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
