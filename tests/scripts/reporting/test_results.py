"""Tables of results: arithmetic on numbers made by hand, what is marked, and what cannot be shown."""

import csv
import io
import os

import pytest

from common.errors import UserError
from common.run.results import read_results, write_results
from scripts.reporting.finished import find_results
from scripts.reporting.tables import AVERAGE, make_tables
from scripts.reporting.text import mean_and_std, results_tables
from scripts.results import main

RESULT = {
    "trainer": "SPG",
    "config": "pacs",
    "dataset": "PACS",
    "backbone": "RN50",
    "backbone_sha256": "aa",
    "precision": "fp32",
    "protocol": "multi-source",
    "trained_on": None,
    "source_domains": ["art", "cartoon"],
    "target_domains": ["photo"],
    "test_subset": "all",
    "num_shots": 0,
    "classnames": ["dog", "elephant"],
    "data_fingerprint": "ff",
    "test_fingerprint": "ee",
    "settings_sha256": "dd",
    "selection": "best_val",
    "seed": 1,
    "accuracy": 90.0,
    "accuracy_by_domain": {"photo": 90.0},
}


def runs(accuracies, **changes):
    """Results from a dict of (target, seed) to accuracy."""
    return [
        {
            **RESULT,
            "source_domains": [domain for domain in ("photo", "sketch") if domain != target],
            "target_domains": [target],
            "seed": seed,
            "accuracy": accuracy,
            "accuracy_by_domain": {target: accuracy},
            "data_fingerprint": target,
            "test_fingerprint": target,
            **changes,
        }
        for (target, seed), accuracy in accuracies.items()
    ]


def other(accuracies, **changes):
    return runs(accuracies, trainer="CoOp", config="", **changes)


SPG = {("photo", 1): 90.0, ("photo", 2): 92.0, ("sketch", 1): 80.0, ("sketch", 2): 86.0}
COOP = {("photo", 1): 88.0, ("photo", 2): 89.0, ("sketch", 1): 81.0, ("sketch", 2): 81.0}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def only_table(results, **more):
    (table,) = make_tables(results, **more)
    return table


# ---- arithmetic ----


def test_means_and_standard_deviations_by_hand():
    _, _, header, _, row = results_tables(runs(SPG)).splitlines()
    assert cells(header) == ["method", "photo", "sketch", "average", "seeds"]
    # photo 90, 92: std sqrt(2); sketch 80, 86: std sqrt(18); averages 85, 89: std sqrt(8).
    assert cells(row) == ["SPG (pacs)", "91.0 ± 1.4", "83.0 ± 4.2", "87.0 ± 2.8", "2"]


def test_the_average_counts_complete_seeds_only():
    row = results_tables(runs(SPG)[:3]).splitlines()[4]
    assert cells(row) == ["SPG (pacs)", "91.0 ± 1.4", "80.0 [1]", "85.0 [1]", "2"]


def test_single_values_and_none():
    assert mean_and_std([50]) == "50.0"
    assert mean_and_std([]) == "-"


def test_the_best_of_each_column_is_bold_and_ties_are_all():
    results = runs(SPG) + other({**COOP, ("photo", 1): 91.04, ("photo", 2): 91.0})
    lines = results_tables(results).splitlines()
    assert cells(lines[4])[1:4] == ["**91.0 ± 1.4**", "**83.0 ± 4.2**", "**87.0 ± 2.8**"]
    assert cells(lines[5])[1:4] == ["**91.0 ± 0.0**", "81.0 ± 0.0", "86.0 ± 0.0"]
    assert "**" not in results_tables(runs(SPG))  # a single method is not the best of any
    assert "*" not in results_tables(results, "plain")


def test_one_table_for_each_data_set_backbone_and_protocol():
    results = runs(SPG) + runs(SPG, dataset="VLCS") + runs(SPG, backbone="ViT-B16") + runs(SPG, protocol="in-domain")
    assert [table.title for table in make_tables(results)] == [
        "PACS, RN50, in-domain",
        "PACS, RN50, multi-source",
        "PACS, ViT-B16, multi-source",
        "VLCS, RN50, multi-source",
    ]


def test_single_source_columns_whether_a_run_has_one_target_or_many():
    shared = {**RESULT, "protocol": "single-source", "source_domains": ["art"]}
    many = {
        **shared,
        "target_domains": ["photo", "sketch"],
        "accuracy": 70.0,
        "accuracy_by_domain": {"photo": 80.0, "sketch": 60.0},
    }
    one = {**shared, "source_domains": ["photo"], "target_domains": ["sketch"], "accuracy_by_domain": {"sketch": 50.0}}
    table = only_table([many, one])
    assert {column: cell.mean for column, cell in table.rows["SPG (pacs)"].items()} == {
        "art → photo": 80.0,
        "art → sketch": 60.0,
        "photo → sketch": 50.0,
        AVERAGE: pytest.approx(190 / 3),
    }


def test_cross_dataset_columns_are_the_tested_sets():
    shared = {**RESULT, "protocol": "cross-dataset", "trained_on": "PACS"}
    table = only_table([{**shared, "dataset": "VLCS"}, {**shared, "dataset": "OfficeHome", "accuracy": 40.0}])
    assert table.title == "trained on PACS, RN50, cross-dataset"
    assert table.columns == ["OfficeHome", "VLCS"]
    assert table.rows["SPG (pacs)"]["OfficeHome"].mean == 40.0


# ---- what does not compare ----


def marked(table):
    """Dict from (method, column) to the explanations of its marks."""
    return {
        (method, column): [table.notes[mark - 1] for mark in cell.marks]
        for method, row in table.rows.items()
        for column, cell in row.items()
        if cell.marks
    }


def test_comparable_runs_are_not_marked():
    table = only_table(runs(SPG) + other(COOP))
    assert marked(table) == {} and table.notes == []


def test_missing_seeds_are_marked():
    found = marked(only_table(runs(SPG) + other({("photo", 1): 88.0})))
    assert found["CoOp", "photo"] == ["Incomplete: no run of seed 2."]
    assert found["CoOp", "sketch"] == ["Incomplete: no run of seed 1, 2."]
    assert len(found["CoOp", AVERAGE]) == 2
    assert not any(method != "CoOp" for method, _ in found)


@pytest.mark.parametrize(
    ("change", "explanation"),
    [
        ({"backbone_sha256": "bb"}, "other backbone weights"),
        ({"selection": "last_step"}, "another selection of the model (last_step, not best_val)"),
        ({"precision": "amp"}, "another precision (amp, not fp32)"),
        ({"test_subset": "published"}, "another test subset (published, not all)"),
        ({"num_shots": 16}, "another number of shots (16, not 0)"),
        ({"classnames": ["dog", "cat"]}, "other class names"),
        ({"num_shots": "unknown"}, "another number of shots (unknown, not 0)"),
        ({"data_fingerprint": "other"}, "other images or another split"),
        ({"test_fingerprint": "other"}, "other test images"),
    ],
)
def test_other_conditions_are_marked(change, explanation):
    odd = other(COOP)
    odd[0].update(change)  # photo, seed 1
    results = odd + runs(SPG) + runs(SPG, trainer="Third")
    found = marked(only_table(results))
    assert set(found) == {("CoOp", "photo"), ("CoOp", AVERAGE)}
    (note,) = found["CoOp", "photo"]
    assert note.startswith("Not comparable: ") and explanation in note and "than most runs of this table" in note
    text = results_tables(results)
    assert "88.5 ± 0.7 [1]" in text and f"[1] {note}" in text
    assert "\\textsuperscript{1}" in results_tables(results, "latex")


def test_seeds_with_other_settings_are_marked_within_their_row():
    odd = other({**COOP, ("photo", 3): 80.0, ("sketch", 3): 80.0}, settings_sha256="cc")
    odd[-1]["settings_sha256"] = "bb"
    found = marked(only_table(odd + runs({**SPG, ("photo", 3): 80.0, ("sketch", 3): 80.0})))
    assert set(found) == {("CoOp", "sketch"), ("CoOp", AVERAGE)}  # SPG's settings are its own
    assert found["CoOp", "sketch"] == ["Not comparable: other settings than most runs of this row."]


def test_other_test_images_are_marked_in_methods_that_learn_nothing_too():
    zero_shot = other(COOP, selection=None, data_fingerprint="none", test_fingerprint="other")
    found = marked(only_table(zero_shot + runs(SPG) + runs(SPG, trainer="Third")))
    assert {method for method, _ in found} == {"CoOp"}
    assert found["CoOp", "photo"] == ["Not comparable: other test images than most runs of this table."]


def test_of_two_that_differ_none_is_called_most():
    found = marked(only_table(runs(SPG) + other(COOP, precision="amp")))
    assert found["CoOp", "photo"] == [
        "Not comparable: another precision (amp, not fp32) than the first run of this table."
    ]


def test_incomplete_cells_are_never_the_best():
    table = only_table(runs(SPG) + other({("photo", 1): 99.0, ("sketch", 1): 99.0}) + runs(COOP, trainer="Third"))
    best = {(method, column) for method, row in table.rows.items() for column, cell in row.items() if cell.best}
    assert best == {("SPG (pacs)", column) for column in ("photo", "sketch", AVERAGE)}


def test_a_target_that_no_method_was_tested_on_is_named():
    table = only_table(runs({("photo", 1): 90.0}) + other({("photo", 1): 88.0}))
    assert table.notes == ["The average is over the columns shown; there are no runs of sketch."]
    text = results_tables(runs({("photo", 1): 90.0}))
    assert text.splitlines()[-1] == table.notes[0]  # without a mark, since nothing is marked with it
    single = {**RESULT, "protocol": "single-source", "source_domains": ["a"], "target_domains": ["b", "c"]}
    (note,) = only_table([{**single, "accuracy_by_domain": {"b": 1.0, "c": 2.0}}]).notes
    assert note.endswith("no runs of b → a, b → c, c → a, c → b.")


def test_a_named_baseline_is_the_reference_even_against_the_majority():
    results = other(COOP, selection="last_step") + runs(SPG) + runs(SPG, trainer="Third")
    found = marked(only_table(results, baseline="CoOp"))
    assert {method for method, _ in found} == {"SPG (pacs)", "Third (pacs)"}
    assert "than the baseline CoOp" in found["SPG (pacs)", "photo"][0]
    text = results_tables(results, baseline="CoOp")
    assert "+2.2 [1]" in text  # 91 - 88.5 and 83 - 81: the difference carries the mark


def test_a_mean_over_epochs_compares_with_a_chosen_epoch():
    """PromptSRC's last model is the method's own; any other method's last epoch is another selection."""
    (table,) = make_tables(runs(SPG) + runs(COOP, trainer="PromptSRC", config="default", selection="last_step"))
    assert set(table.ranks) == set(table.rows) and not table.marked
    assert table.notes == [
        "PromptSRC: the model is a weighted mean over its epochs, by the method itself; validation chooses none."
    ]
    (alone,) = make_tables(runs(COOP, trainer="PromptSRC", config="default", selection="last_step"))
    assert alone.notes == []
    results = (
        runs(SPG) + runs(SPG, trainer="Third") + runs(COOP, trainer="PromptSRC", config="default", selection="epoch 5")
    )
    (table,) = make_tables(results)
    assert "PromptSRC" not in table.ranks


def test_methods_that_learn_nothing_compare_with_every_selection_and_shots():
    results = runs(SPG, num_shots=16) + other(COOP, selection=None)
    for baseline in ("", "CoOp"):
        assert marked(only_table(results, baseline=baseline)) == {}


# ---- differences ----


def test_paired_difference_by_hand():
    # Photo: 2 and 3, mean 2.5; sketch: -1 and 5, mean 2. Mean 2.25, std sqrt(0.125), t(0.975, 1) = 12.7062.
    found = only_table(runs(SPG) + other(COOP), baseline="CoOp").differences["SPG (pacs)"]
    assert found.mean == pytest.approx(2.25)
    assert found.high - found.mean == pytest.approx(12.7062 * 0.125**0.5 / 2**0.5, rel=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert (found.n_pairs, found.n_clusters, found.n_seeds, found.reason) == (4, 2, 2, "")
    lines = results_tables(runs(SPG) + other(COOP), baseline="coop").splitlines()
    assert cells(lines[-1]) == ["SPG (pacs)", "+2.2", "−0.9 to +5.4", "4", "2", "2"]
    assert "Student's t over the targets' means" in lines[-5]


def test_pairs_are_those_that_both_have():
    coop = {("photo", 1): 88.0, ("photo", 3): 10.0, ("sketch", 2): 80.0}
    found = only_table(runs(SPG) + other(coop), baseline="CoOp").differences["SPG (pacs)"]
    assert found.mean == pytest.approx((2 + 6) / 2)
    assert (found.n_pairs, found.n_clusters, found.n_seeds) == (2, 2, 2)


def test_more_seeds_do_not_make_more_targets():
    seeds = range(1, 30)
    spg = {(target, seed): 80.0 + gain for target, gain in (("photo", 1.0), ("sketch", 3.0)) for seed in seeds}
    coop = {(target, seed): 80.0 for target in ("photo", "sketch") for seed in seeds}
    found = only_table(runs(spg) + other(coop), baseline="CoOp").differences["SPG (pacs)"]
    assert (found.mean, found.n_pairs) == (2.0, 58)
    assert found.low == pytest.approx(2.0 - 12.7062, rel=1e-5)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ([("photo", 1), ("photo", 2)], "no interval from one target"),
        ([("photo", 1), ("sketch", 1)], "no interval from one seed"),
        ([("photo", 1)], "no interval from one target and one seed"),
        ([("photo", 3)], "no pairs"),
    ],
)
def test_too_few_pairs_for_an_interval(kept, reason):
    results = runs(SPG) + other({pair: COOP.get(pair, 1.0) for pair in kept})
    found = only_table(results, baseline="CoOp").differences["SPG (pacs)"]
    assert (found.low, found.high, found.reason) == (None, None, reason)
    assert reason in results_tables(results, baseline="CoOp")


def test_single_source_differences_are_paired_within_sources():
    shared = {**RESULT, "protocol": "single-source"}

    def results(trainer, gain):
        return [
            {
                **shared,
                "trainer": trainer,
                "config": "",
                "seed": seed,
                "source_domains": [source],
                "target_domains": [t for t in "abc" if t != source],
                "accuracy_by_domain": {t: 50.0 + gain for t in "abc" if t != source},
            }
            for source in "abc"
            for seed in (1, 2)
        ]

    table = only_table(results("SPG", 2.0) + results("CoOp", 0.0), baseline="CoOp")
    found = table.differences["SPG"]
    assert (found.mean, found.n_pairs, found.n_clusters) == (2.0, 12, 3)
    assert "the sources' means" in results_tables(results("SPG", 2.0) + results("CoOp", 0.0), baseline="CoOp")


def test_baselines_that_are_not_there():
    with pytest.raises(UserError, match=r"no method 'Coop2' to be the baseline; found: CoOp, SPG \(pacs\)"):
        results_tables(runs(SPG) + other(COOP), baseline="Coop2")
    with pytest.raises(UserError, match=r"not one method but SPG, SPG \(pacs\)"):
        results_tables(runs(SPG) + runs(SPG, config=""), baseline="spg")
    text = results_tables(runs(SPG) + other(COOP) + runs(SPG, dataset="VLCS"), baseline="CoOp")
    assert "No differences here: the baseline CoOp has no run in this table." in text


# ---- formats ----


def test_csv_is_read_by_csv():
    odd = runs({**SPG, ('a, "b"', 1): 3.0})
    rows = list(csv.DictReader(io.StringIO(results_tables(odd + other(COOP), "csv", baseline="CoOp"))))
    assert [row["column"] for row in rows[:4]] == ['a, "b"', "photo", "sketch", "average"]
    assert rows[1]["mean"] == "91.0000" and rows[1]["best"] == "1" and rows[1]["seeds"] == "2"
    assert rows[0]["std"] == "" and rows[0]["notes"] == "Incomplete: no run of seed 2."
    assert rows[-1]["column"] == "difference to CoOp" and rows[-1]["mean"] == "2.2500"


def test_csv_tells_what_a_difference_is_marked_for():
    text = results_tables(runs(SPG) + other(COOP, precision="amp"), "csv", baseline="CoOp")
    difference = list(csv.DictReader(io.StringIO(text)))[-1]
    assert difference["column"] == "difference to CoOp" and "another precision" in difference["notes"]


def test_csv_tells_what_is_said_of_a_whole_table():
    last = list(csv.DictReader(io.StringIO(results_tables(runs({("photo", 1): 90.0}), "csv"))))[-1]
    assert last["method"] == last["column"] == "" and last["notes"].endswith("there are no runs of sketch.")


def test_latex_is_escaped():
    text = results_tables(
        runs({("50%_a&b", 1): 50.0, ("50%_a&b", 2): 52.0}) + other({("50%_a&b", 1): 40.0, ("50%_a&b", 2): 40.0}),
        "latex",
    )
    assert r"50\%\_a\&b" in text and r"\textbf{51.0 $\pm$ 1.4}" in text
    assert "±" not in text.partition("\n")[2]  # the title is a comment


def test_latex_has_the_rules_of_booktabs_and_notes_that_follow_a_line_break():
    lines = results_tables(runs(SPG) + other({("photo", 1): 88.0}, precision="amp"), "latex").splitlines()
    rules = [line for line in lines if line.endswith(("rule", "hline"))]
    assert rules == ["\\toprule", "\\midrule", "\\bottomrule"]
    notes = [line for line in lines if line.startswith("\\textsuperscript{")]
    assert len(notes) == 3 and [note.endswith("\\\\") for note in notes] == [True, True, False]
    # LaTeX takes what is in brackets after a line break for a length.
    assert not any(line.startswith("[") for line in lines)


def test_bars_do_not_break_a_markdown_table():
    lines = results_tables(runs({("a|b", 1): 50.0})).splitlines()
    assert "a\\|b" in lines[2]


# ---- files ----


def save(folder, result):
    write_results(folder, result)
    return folder / "results.json"


def test_round_trip_and_search(tmp_path):
    folder = tmp_path / "pacs/SPG/RN50/pacs/photo/seed1"
    save(folder, RESULT)
    assert read_results(folder / "results.json") == RESULT
    (found,) = find_results([tmp_path, tmp_path / "pacs"])  # named twice, read once
    assert found["folder"] == str(folder)
    assert {key: found[key] for key in RESULT} == RESULT


def test_two_runs_of_a_cell_are_never_collapsed_silently(tmp_path, capsys):
    old, new = save(tmp_path / "b/old", RESULT), save(tmp_path / "a/new", {**RESULT, "accuracy": 70.0, "num_shots": 4})
    os.utime(old, (1, 1))
    assert main([str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "Two runs of the same cell and seed (SPG (pacs), photo, seed 1)" in message
    assert str(old.parent) in message and str(new.parent) in message and "they differ in num_shots" in message
    assert "--duplicates newest" in message
    assert main([str(tmp_path), "--duplicates", "newest"]) == 0
    printed = capsys.readouterr().out
    assert "70.0" in printed and "90.0" not in printed
    assert f"the newest is shown ({new.parent}), not {old.parent}" in printed


@pytest.mark.parametrize("content", ["", "{", "[]", '{"accuracy": NaN}'])
def test_damaged_results(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results.json is no results file"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"target_domains": None}, "lacks what a results file has"),
        ({"accuracy": "good"}, "its accuracy is no percentage"),
        ({"accuracy": 101.0}, "its accuracy is no percentage"),
        ({"seed": None}, "no seed"),
        ({"dataset": 3}, "a name is no text"),
        ({"protocol": "single-source", "accuracy_by_domain": {}}, "'photo' is missing"),
    ],
)
def test_results_without_what_tables_need(tmp_path, change, what, capsys):
    path = save(tmp_path / "run", {**RESULT, **change})
    assert main([str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert what in message and str(path) in message and "run its command again" in message


def test_command_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "No finished run" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "There is no folder" in capsys.readouterr().err
    save(tmp_path / "a/b/c/d", RESULT)
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path), str(tmp_path / "empty")]) == 1
    assert f"No finished run (no results.json) below {tmp_path / 'empty'}" in capsys.readouterr().err
    assert main([str(tmp_path), "--format", "latex"]) == 0
    assert "\\begin{tabular}" in capsys.readouterr().out
    assert main([str(tmp_path), "--out", str(tmp_path / "new/table.md")]) == 0
    assert capsys.readouterr().out == ""
    assert "SPG (pacs)" in (tmp_path / "new/table.md").read_text(encoding="utf-8")
    assert main([str(tmp_path), "--out", str(tmp_path / "empty")]) == 1
    assert "Cannot write" in capsys.readouterr().err
