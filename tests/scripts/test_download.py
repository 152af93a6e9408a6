"""scripts/download.py: its words, its table, and the offer that launchers make."""

import dataclasses
import io
import sys

import download_site
import pytest
from dataset_trees import make_set

from common.errors import UserError
from datasets.download import sources
from datasets.download.offer import download_command, offer_download
from datasets.download.sources import SOURCES
from datasets.spg_domainnet import SPG_DomainNet
from scripts import download

# The fixtures of a server that has the archives.
server, expect, pacs, run = download_site.server, download_site.expect, download_site.pacs, download_site.run


def test_several_sets_one_of_which_fails(run, pacs):
    code, out, err = run("vlcs", "pacs")
    assert code == 1
    assert "PACS is there" in out
    assert "404 Not Found for http://127.0.0.1" in err
    assert err.endswith("Failed: VLCS.\n")


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

    monkeypatch.setattr(sources, "fetch", interrupt)
    code, _, err = run("pacs")
    assert code == 130
    assert "the same command goes on from there" in err


@pytest.fixture
def offer(monkeypatch, tmp_path, server, capsys):
    """offer("pacs", "y") -> what is returned, and what was asked; answer None: no terminal."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    source = SOURCES["pacs"]
    archive = dataclasses.replace(source.archives[0], url=f"{server.url}/pacs.zip")
    monkeypatch.setitem(SOURCES, "pacs", dataclasses.replace(source, archives=(archive,)))

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def ask(name, answer):
        monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else Terminal(answer))
        return offer_download(name, tmp_path / "data"), capsys.readouterr().out

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
    with pytest.raises(UserError, match="404"):
        offer("pacs", "y\n")


def test_the_command_for_messages():
    assert download_command("pacs", "data") == "python scripts/download.py pacs --root data"
    assert download_command("pacs", "my data") == "python scripts/download.py pacs --root 'my data'"
