import pytest

from common.errors import UserError
from common.results import read_results, write_results
from scripts.results import find_results, main, mean_and_std, results_table

RESULT = {
    "trainer": "SPG",
    "config": "pacs",
    "dataset": "PACS",
    "backbone": "RN50",
    "protocol": "multi-source",
    "target_domains": ["photo"],
    "seed": 1,
    "accuracy": 90.0,
}


def some_results():
    accuracies = {("photo", 1): 90.0, ("photo", 2): 92.0, ("sketch", 1): 80.0, ("sketch", 2): 86.0}
    return [
        {**RESULT, "target_domains": [target], "seed": seed, "accuracy": accuracy}
        for (target, seed), accuracy in accuracies.items()
    ]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_and_standard_deviations_by_hand():
    header, _, row = results_table(some_results()).splitlines()
    assert cells(header) == ["method", "photo", "sketch", "average", "seeds"]
    # photo 90, 92: std sqrt(2); sketch 80, 86: std sqrt(18); averages 85, 89: std sqrt(8).
    assert cells(row) == ["SPG (pacs)", "91.0 ± 1.4", "83.0 ± 4.2", "87.0 ± 2.8", "2"]


def test_the_average_counts_complete_seeds_only():
    row = results_table(some_results()[:3]).splitlines()[-1]
    assert cells(row) == ["SPG (pacs)", "91.0 ± 1.4", "80.0", "85.0", "2"]


def test_single_values_and_none():
    assert mean_and_std([50]) == "50.0"
    assert mean_and_std([]) == "-"


def test_round_trip_and_search(tmp_path):
    folder = tmp_path / "pacs/SPG/RN50/pacs/photo/seed1"
    write_results(folder, RESULT)
    assert read_results(folder / "results.json") == {"format": 2, **RESULT}
    assert find_results([tmp_path]) == [{"format": 2, **RESULT}]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"accuracy": 1}'])
def test_damaged_results(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results.json is no results file"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(("found", "advice"), [(3, "Use the version that wrote it"), (1, "run its command again")])
def test_results_of_another_format(tmp_path, found, advice):
    (tmp_path / "results.json").write_text(f'{{"format": {found}}}')
    with pytest.raises(UserError, match=f"has format {found}; this version reads format 2.*{advice}"):
        read_results(tmp_path / "results.json")


def test_command_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "No finished run" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "There is no folder" in capsys.readouterr().err
    write_results(tmp_path / "a/b/c/d", RESULT)
    assert main([str(tmp_path), "--format", "latex"]) == 0
    assert "\\begin{tabular}" in capsys.readouterr().out
