"""Each published set, from its archives to a data set that loads."""

import dataclasses
import json
import re
import shutil

import pytest
from dataset_trees import PICTURES, config, make_set, read_only
from download_site import (
    TERRA_ANNOTATIONS,
    camera_trap_annotations,
    files_below,
    make_archives,
    terra_pictures,
    write_tar,
    write_terra,
    zip_of,
)
from elsewhere import held_elsewhere

from datasets.download.sources import SOURCES
from datasets.spg_domainnet import SPG_DomainNet
from datasets.spg_pacs import SPG_PACS
from datasets.spg_terraincognita import SPG_TerraIncognita


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


def test_pictures_of_two_classes_are_in_both_folders(run, server, tmp_path, monkeypatch):
    write_terra(server.folder, {**terra_pictures(), "both.jpg": (38, ("dog", "cat"))})
    counts = dict.fromkeys(SPG_TerraIncognita.domains, 10)
    monkeypatch.setattr(SPG_TerraIncognita, "image_counts", {**counts, "location_38": 12})
    code, _, err = run("terra_incognita")
    assert (code, err) == (0, "")
    folder = tmp_path / "data" / "terra_incognita" / "location_38"
    assert [(folder / name / "both.jpg").read_bytes() for name in ("cat", "dog")] == [PICTURES[".jpg"]] * 2


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
    lock = tmp_path / "data" / ".download" / "SPG_PACS.lock"
    lock.parent.mkdir(parents=True)
    with held_elsewhere(lock):
        code, _, err = run("pacs")
    assert code == 1
    assert "Another process is downloading PACS" in err
    assert lock.is_file()  # of a process that was killed: no lock any more
    assert run("pacs")[0] == 0
