"""Numbers from papers: rows that change no other row, and errors in their files."""

import csv
import io

import pytest
from made_results import COOP, SPG, cells, coop, runs, text_of

from common.errors import UserError
from common.run import write_results
from scripts.reporting import published
from scripts.reporting.published import Figures, read_published
from scripts.results import main

PAPER = Figures(
    method="SPG",
    dataset="PACS",
    backbone="RN50",
    protocol="multi-source",
    accuracy={"photo": 99.0, "average": 92.8},
    source="A & B, 2024",
)
LINE = "† SPG, as reported in A & B, 2024."


def paper(**changes):
    return PAPER.model_copy(update=changes)


def table_of(*figures, **more):
    return text_of(runs(SPG) + coop(COOP), published=figures, **more)


def test_shipped_numbers_equal_the_paper_of_spg():
    found = {(one.dataset, one.backbone): one.accuracy for one in read_published() if one.method == "SPG"}
    assert found == {
        ("PACS", "ViT-B/16"): {"average": 97.0},
        ("OfficeHome", "ViT-B/16"): {"average": 83.6},
        ("DomainNet", "ViT-B/16"): {"average": 60.1},
        ("PACS", "RN50"): {"average": 92.8},
        ("OfficeHome", "RN50"): {"average": 73.8},
        ("DomainNet", "RN50"): {"average": 50.1},
    }


def test_published_row_in_markdown():
    lines = table_of(paper(note="on 3 %", accuracy={**PAPER.accuracy, "skecth": 80.0})).splitlines()
    assert cells(lines[6]) == ["*SPG †*", "*99.0*", "*-*", "*92.8*", "*-*", "*-*"]
    assert f"{LINE[:-1]} (on 3 %). No column here for: skecth." in lines
    assert any(line.startswith("† Not measured here") for line in lines)


def test_published_rows_change_no_other_line():
    best = paper(method="X", accuracy={"photo": 99.9, "sketch": 99.9, "average": 99.9})
    shown = table_of(best, baseline="CoOp").splitlines()
    ours = text_of(runs(SPG) + coop(COOP), baseline="CoOp").splitlines()
    assert [line for line in shown if line not in ours] == [line for line in shown if "X †" in line or "† " in line]


def test_published_row_in_latex_and_plain():
    latex, plain = table_of(PAPER, table_format="latex"), table_of(PAPER, table_format="plain")
    row = next(line for line in latex.splitlines() if r"\textcolor{gray}{SPG \textdagger{}}" in line)
    assert r"\textcolor{gray}{92.8}" in row and row.count("textcolor") == 6
    assert latex.splitlines()[0].endswith("gray needs the package xcolor")
    assert r"\textdagger{} SPG, as reported in A \& B, 2024.\\" in latex and "†" not in latex
    assert "xcolor" not in text_of(runs(SPG), "latex")
    assert any(line.split()[:4] == ["SPG", "†", "99.0", "-"] for line in plain.splitlines())


def test_published_column_in_csv():
    rows = list(csv.DictReader(io.StringIO(table_of(PAPER, table_format="csv"))))
    theirs = [row for row in rows if row["published"]]
    assert [(row["method"], row["column"], row["mean"], row["best"]) for row in theirs] == [
        ("SPG", "photo", "99.0000", ""),
        ("SPG", "average", "92.8000", ""),
    ]
    assert {row["published"] for row in theirs} == {"A & B, 2024"}
    last = list(csv.DictReader(io.StringIO(table_of(table_format="csv"))))[-1]
    assert last["notes"].startswith("No published numbers for PACS, RN50, multi-source")


@pytest.mark.parametrize("change", [{"dataset": "VLCS"}, {"backbone": "ViT-B/16"}, {"protocol": "single-source"}])
def test_numbers_for_other_conditions_are_not_shown(change):
    text = table_of(paper(**change))
    assert "†" not in text
    assert "No published numbers for PACS, RN50, multi-source in configs/published/." in text.splitlines()


def test_published_command_prints_rows(tmp_path, capsys):
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
        ("a: [", "YAML"),
        ("", "the file: "),
        (GOOD.replace("source: S", "source: "), "source: "),
        (
            GOOD.replace("average: 1", "average: 0.97"),
            "average: Value error, 0.97 %: is 97 % meant?",
        ),
        ("source: S\nfigures: 3", "figures: "),
        (GOOD.replace("dataset: D, ", ""), "figures.0.dataset: Field required"),
        (GOOD.replace("multi-source", "multi"), "figures.0.protocol: "),
        (GOOD.replace("{average: 1}", "97"), "figures.0.accuracy: "),
        (GOOD.replace("average: 1", "average: 970"), "figures.0.accuracy.average: "),
    ],
)
def test_published_file_with_mistakes_prints_one_message(tmp_path, monkeypatch, capsys, content, message):
    path = tmp_path / "published" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(content)
    write_results(tmp_path / "run", runs(SPG)[0])
    monkeypatch.setattr(published.read_published, "__defaults__", (path.parent,))
    assert main([str(tmp_path / "run"), "--published"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {path}: ") and message in error and error.count("\n") == 1


def test_published_folder_without_files_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no \\*.yaml file"):
        read_published(tmp_path)
