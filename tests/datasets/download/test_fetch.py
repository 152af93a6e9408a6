"""Transfers: broken off, gone on with, refused; Google Drive's ways."""

import random
import re
import shutil
from pathlib import Path

import pytest
from dataset_trees import make_set
from download_site import zip_of

from datasets.download import fetch
from datasets.spg_pacs import SPG_PACS

PIECE = 512 * 1024


@pytest.fixture
def large_pacs(server, tmp_path, expect):
    """The server has a PACS of 3 MB; gdown keeps what has come in pieces of 512 kB."""
    expect("pacs", 7)
    tree = make_set(tmp_path / "tree", SPG_PACS, SPG_PACS.layouts[0], per_class=1)
    (tree / "images" / "photo" / "dog" / "pic_000.jpg").write_bytes(random.Random(0).randbytes(3_000_000))
    return zip_of(tree, server.folder / "pacs.zip")


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
