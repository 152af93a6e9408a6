"""Numbers from papers: rows that change no other row, and errors in their files."""

import pytest
from made_results import COOP, SPG, cells, coop, runs, text_of

from common.errors import UserError
from common.run import write_results
from scripts.reporting.published import PaperResult, read_published
from scripts.results import main

FACTS = {"method": "SPG", "dataset": "PACS", "backbone": "RN50", "protocol": "multi-source", "source": "A & B, 2024"}
PAPER = PaperResult(**FACTS, accuracy={"photo": 99.0, "average": 92.8})
LINE = "† SPG, as reported in A & B, 2024."


def paper(**changes):
    return PAPER.model_copy(update=changes)


def table_of(*figures, **more):
    return text_of(runs(SPG) + coop(COOP), published=figures, **more)


def test_shipped_numbers_equal_the_paper_of_spg(tmp_path, capsys):
    found = {(one.dataset, one.backbone): one.accuracy for one in read_published() if one.method == "SPG"}
    sets = ("PACS", "OfficeHome", "DomainNet")
    averages = {"ViT-B/16": (97.0, 83.6, 60.1), "RN50": (92.8, 73.8, 50.1)}
    expected = {(name, backbone): n for backbone, row in averages.items() for name, n in zip(sets, row, strict=True)}
    assert found == {key: {"average": number} for key, number in expected.items()}
    write_results(tmp_path, {**runs(SPG)[0], "backbone": "ViT-B16"})
    assert main([str(tmp_path), "--published"]) == 0
    printed = capsys.readouterr().out
    assert "*97.0*" in printed and "Bai et al." in printed
    assert main([str(tmp_path)]) == 0
    assert "†" not in capsys.readouterr().out


def test_published_row_in_markdown():
    lines = table_of(paper(note="on 3 %", accuracy={**PAPER.accuracy, "skecth": 80.0})).splitlines()
    assert cells(lines[6]) == ["*SPG †*", "*99.0*", "*-*", "*92.8*", "*-*", "*-*"]
    assert f"{LINE[:-1]} (on 3 %). No column here for: skecth." in lines
    assert any(line.startswith("† Not measured here") for line in lines)


def test_numbers_for_other_conditions_are_not_shown():
    for change in ({"dataset": "VLCS"}, {"backbone": "ViT-B/16"}, {"protocol": "single-source"}):
        text = table_of(paper(**change))
        assert "†" not in text
        assert "No published numbers for PACS, RN50, multi-source in configs/published/." in text.splitlines()


# ---- files that are wrong ----

GOOD = "source: S\nfigures:\n  - {method: A, dataset: D, backbone: B, protocol: multi-source, accuracy: {average: 1}}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "YAML"),
        (GOOD.replace("source: S", "source: "), "source: "),
        (GOOD.replace("average: 1", "average: 0.97"), "average: Value error, 0.97 %: is 97 % meant?"),
        (GOOD.replace("dataset: D, ", ""), "figures.0.dataset: Field required"),
        (GOOD.replace("multi-source", "multi"), "figures.0.protocol: "),
        (GOOD.replace("average: 1", "average: 970"), "figures.0.accuracy.average: "),
    ],
)
def test_published_file_with_mistakes_raises(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_published(tmp_path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
