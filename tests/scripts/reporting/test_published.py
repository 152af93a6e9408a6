"""Figures of papers: beside ours and never mixed into them, in every format; and files that are wrong."""

import csv
import io

import pytest
from test_results import COOP, SPG, cells, other, runs

from common.errors import UserError
from common.run.results import write_results
from scripts.reporting import published
from scripts.reporting.published import Figures, read_published
from scripts.reporting.tables import make_tables
from scripts.reporting.text import results_tables
from scripts.results import main

PAPER = Figures("SPG", "PACS", "RN50", "multi-source", {"photo": 99.0, "average": 92.8}, "A & B, 2024")
LINE = "† SPG, as reported in A & B, 2024."


def table_of(*figures, **more):
    return results_tables(runs(SPG) + other(COOP), published=figures, **more)


def test_what_ships_is_what_spg_reports():
    found = {(one.dataset, one.backbone): one.accuracy for one in read_published() if one.method == "SPG"}
    assert found == {
        ("PACS", "ViT-B/16"): {"average": 97.0},
        ("OfficeHome", "ViT-B/16"): {"average": 83.6},
        ("DomainNet", "ViT-B/16"): {"average": 60.1},
        ("PACS", "RN50"): {"average": 92.8},
        ("OfficeHome", "RN50"): {"average": 73.8},
        ("DomainNet", "RN50"): {"average": 50.1},
    }


def test_a_row_in_markdown():
    lines = table_of(PAPER).splitlines()
    assert cells(lines[6]) == ["*SPG †*", "*99.0*", "*-*", "*92.8*", "*-*", "*-*"]
    assert LINE in lines and "† Not measured here: takes no part in ranks, bold figures and differences." in lines


def test_figures_without_a_column_are_told():
    paper = Figures("SPG", "PACS", "RN50", "multi-source", {"photo": 99.0, "skecth": 80.0}, "A & B, 2024")
    assert f"{LINE} No column here for: skecth." in table_of(paper).splitlines()


def test_it_changes_nothing_of_ours():
    best = Figures("X", "PACS", "RN50", "multi-source", {"photo": 99.9, "sketch": 99.9, "average": 99.9}, "S")
    results = runs(SPG) + other(COOP)
    (with_it,) = make_tables(results, "CoOp", published=[best])
    (without,) = make_tables(results, "CoOp")
    with_it.published = None
    assert with_it == without
    shown, ours = table_of(best, baseline="CoOp").splitlines(), results_tables(results, baseline="CoOp").splitlines()
    assert [line for line in shown if line not in ours] == [line for line in shown if "X †" in line or "† " in line]


def test_a_row_in_latex_and_plain():
    latex, plain = table_of(PAPER, table_format="latex"), table_of(PAPER, table_format="plain")
    row = next(line for line in latex.splitlines() if r"\textcolor{gray}{SPG \textdagger{}}" in line)
    assert r"\textcolor{gray}{92.8}" in row and row.count("textcolor") == 6
    assert latex.splitlines()[0].endswith("gray needs the package xcolor")
    assert r"\textdagger{} SPG, as reported in A \& B, 2024.\\" in latex and "†" not in latex
    assert "xcolor" not in results_tables(runs(SPG), "latex")
    assert any(line.split()[:4] == ["SPG", "†", "99.0", "-"] for line in plain.splitlines())


def test_a_column_in_csv():
    rows = list(csv.DictReader(io.StringIO(table_of(PAPER, table_format="csv"))))
    theirs = [row for row in rows if row["published"]]
    assert [(row["method"], row["column"], row["mean"], row["best"]) for row in theirs] == [
        ("SPG", "photo", "99.0000", ""),
        ("SPG", "average", "92.8000", ""),
    ]
    assert {row["published"] for row in theirs} == {"A & B, 2024"}
    last = list(csv.DictReader(io.StringIO(table_of(table_format="csv"))))[-1]
    assert last["notes"].startswith("No published figures for PACS, RN50, multi-source")


@pytest.mark.parametrize("change", [{"dataset": "VLCS"}, {"backbone": "ViT-B/16"}, {"protocol": "single-source"}])
def test_what_was_measured_on_something_else_does_not_show(change):
    text = table_of(Figures(**{**vars(PAPER), **change}))
    assert "†" not in text
    assert "No published figures for PACS, RN50, multi-source in configs/published/." in text.splitlines()


def test_a_backbone_goes_by_the_name_that_folders_have():
    on_vit = Figures(**{**vars(PAPER), "backbone": "ViT-B/16"})
    assert on_vit.fits(runs(SPG, backbone="ViT-B16")[0])


def test_across_data_sets_it_goes_by_what_was_trained_on():
    across = Figures("SPG", "DomainNet", "RN50", "cross-dataset", {"PACS": 90.0}, "S")
    run = {**runs(SPG)[0], "protocol": "cross-dataset", "trained_on": "DomainNet"}
    assert across.fits(run) and not across.fits({**run, "trained_on": "VLCS"})


def test_notes_and_an_average_over_other_columns():
    noted = Figures(**{**vars(PAPER), "note": "on 3 % of the images"})
    text = results_tables(runs({("photo", 1): 90.0}), published=[noted])
    assert "as reported in A & B, 2024 (on 3 % of the images)." in text
    assert "Its average is over all domains, ours over the columns shown." in text


def test_command_line(tmp_path, capsys):
    write_results(tmp_path, {**runs(SPG)[0], "backbone": "ViT-B16"})
    assert main([str(tmp_path), "--published"]) == 0
    printed = capsys.readouterr().out
    assert "*97.0*" in printed and "Bai et al." in printed
    assert main([str(tmp_path)]) == 0
    assert "†" not in capsys.readouterr().out


# ---- files that are wrong ----

GOOD = "source: S\nfigures:\n  - {method: A, dataset: D, backbone: B, protocol: multi-source, accuracy: {average: 1}}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "cannot be read as YAML"),
        ("", "holds nothing; accepted: source (a text) and figures (a list)"),
        (GOOD.replace("source: S", "source: "), "source is None; accepted: a text"),
        (GOOD.replace("source: S", "source: [S]"), "source is ['S']; accepted: a text"),
        (
            GOOD.replace("average: 1", "average: 0.97"),
            "the accuracy of average is 0.97 %; accepted: a percentage. Is 97 ",
        ),
        ("figures: []", "holds figures; accepted: source (a text) and figures (a list)"),
        ("source: S\nfigures: 3", "figures is 3; accepted: a list of entries"),
        ("source: S\nfigures: [3]", "entry 1 of figures: it is a int; accepted: a mapping"),
        (GOOD.replace("dataset: D, ", ""), "entry 1 (A) of figures: it lacks dataset; accepted: method, dataset"),
        (GOOD.replace("dataset", "data_set"), "it lacks dataset and it has data_set; accepted: "),
        (GOOD.replace("multi-source", "multi"), "protocol is multi; accepted: multi-source, single-source"),
        (GOOD.replace("{average: 1}", "97"), "accuracy is 97; accepted: percentages by column"),
        (
            GOOD.replace("average: 1", "average: 970"),
            "the accuracy of average is 970; accepted: a percentage",
        ),
        (GOOD.replace("average: 1", "average: high"), "the accuracy of average is 'high'; accepted: a percentage"),
        (GOOD.replace("method: A", "method: 3"), "method is 3; accepted: a text"),
    ],
)
def test_a_wrong_file_is_one_message(tmp_path, monkeypatch, capsys, content, message):
    path = tmp_path / "published" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(content)
    write_results(tmp_path / "run", runs(SPG)[0])
    monkeypatch.setattr(published.read_published, "__defaults__", (path.parent,))
    assert main([str(tmp_path / "run"), "--published"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"Error: {path}") and message in said and said.count("\n") == 1


def test_no_file_at_all(tmp_path):
    with pytest.raises(UserError, match="no published figures: no \\*.yaml in"):
        read_published(tmp_path)
