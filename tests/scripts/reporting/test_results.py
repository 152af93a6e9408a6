"""Tables of results: means, marks, ranks, costs, differences, formats, and damaged files."""

import os

import numpy as np
import pytest
from made_results import COOP, RESULT, SPG, cells, coop, frame, grid, only_table, runs, text_of

from common.errors import UserError
from common.run import write_results
from scripts.reporting.load import load_results
from scripts.reporting.tables import AVERAGE, make_tables
from scripts.results import main

# ---- arithmetic ----


def test_table_means_and_deviations_equal_hand_computation():
    _, _, header, _, row = text_of(runs(SPG)).splitlines()
    assert cells(header) == ["method", "photo", "sketch", "average", "seeds"]
    # photo 90, 92: std sqrt(2); sketch 80, 86: std sqrt(18); averages 85, 89: std sqrt(8).
    assert cells(row) == ["SPG (pacs)", "91.0 ± 1.4", "83.0 ± 4.2", "87.0 ± 2.8", "2"]


def test_the_best_of_each_column_is_bold_and_ties_are_all():
    results = runs(SPG) + coop({**COOP, ("photo", 1): 91.04, ("photo", 2): 91.0})
    lines = text_of(results).splitlines()
    assert cells(lines[4])[1:4] == ["**91.0 ± 1.4**", "**83.0 ± 4.2**", "**87.0 ± 2.8**"]
    assert cells(lines[5])[1:4] == ["**91.0 ± 0.0**", "81.0 ± 0.0", "86.0 ± 0.0"]
    assert "**" not in text_of(runs(SPG))  # a single method is not the best of any
    assert "*" not in text_of(results, "plain")


def test_one_table_for_each_data_set_backbone_and_protocol():
    results = runs(SPG) + runs(SPG, dataset="VLCS") + runs(SPG, backbone="ViT-B16") + runs(SPG, protocol="in-domain")
    titles = [table.title for table in make_tables(frame(results))]
    rest = ["PACS, RN50, multi-source", "PACS, ViT-B16, multi-source", "VLCS, RN50, multi-source"]
    assert titles == ["PACS, RN50, in-domain", *rest]


def test_single_source_columns_whether_a_run_has_one_target_or_many():
    shared = {**RESULT, "protocol": "single-source"}
    accuracies = {"photo": 80.0, "sketch": 60.0}
    many = {**shared, "source_domains": ["art"], "target_domains": [*accuracies], "accuracy_by_domain": accuracies}
    one = {**shared, "source_domains": ["photo"], "target_domains": ["sketch"], "accuracy_by_domain": {"sketch": 50.0}}
    expected = {"art → photo": 80.0, "art → sketch": 60.0, "photo → sketch": 50.0, AVERAGE: pytest.approx(190 / 3)}
    assert only_table([many, one]).cells["mean"]["SPG (pacs)"].to_dict() == expected


def test_cross_dataset_columns_are_the_tested_sets():
    shared = {**RESULT, "protocol": "cross-dataset", "trained_on": "PACS"}
    table = only_table([{**shared, "dataset": "VLCS"}, {**shared, "dataset": "OfficeHome", "accuracy": 40.0}])
    assert table.title == "trained on PACS, RN50, cross-dataset"
    assert table.columns == ["OfficeHome", "VLCS"]
    assert table.cells["mean"]["SPG (pacs)", "OfficeHome"] == 40.0


# ---- marks ----


def marked(table):
    """Dict from (method, column) to the explanations of its marks."""
    marks = table.cells["marks"]
    return {cell: [table.notes[mark - 1] for mark in found] for cell, found in marks.items() if found}


def test_missing_seeds_are_marked_and_the_average_counts_complete_ones():
    found = marked(only_table(runs(SPG) + coop({("photo", 1): 88.0})))
    assert found["CoOp", "photo"] == ["Incomplete: no run of seed 2."]
    assert found["CoOp", "sketch"] == ["Incomplete: no run of seed 1, 2."]
    assert len(found["CoOp", AVERAGE]) == 2 and {method for method, _ in found} == {"CoOp"}
    row = text_of(runs(SPG)[:3]).splitlines()[4]
    assert cells(row) == ["SPG (pacs)", "91.0 ± 1.4", "80.0 [1]", "85.0 [1]", "2"]


@pytest.mark.parametrize(
    ("change", "explanation"),
    [
        ({"backbone_sha256": "bb"}, "other backbone weights"),
        ({"selection": "last_step"}, "another selection of the model (last_step, not best_val)"),
        ({"precision": "amp"}, "another precision (amp, not fp32)"),
        ({"test_subset": "published"}, "another test subset (published, not all)"),
        ({"num_shots": 16}, "another number of shots (16, not 0)"),
        ({"classnames": ["dog", "cat"]}, "other class names"),
        ({"data_fingerprint": "other"}, "other images or another split"),
        ({"test_fingerprint": "other"}, "other test images"),
    ],
)
def test_other_conditions_are_marked(change, explanation):
    odd = coop(COOP)
    odd[0].update(change)  # photo, seed 1
    results = odd + runs(SPG) + runs(SPG, trainer="Third")
    found = marked(only_table(results))
    assert set(found) == {("CoOp", "photo"), ("CoOp", AVERAGE)}
    (note,) = found["CoOp", "photo"]
    assert note.startswith("Not comparable: ") and explanation in note and "than most runs of this table" in note
    assert "88.5 ± 0.7 [1]" in text_of(results) and f"[1] {note}" in text_of(results)


def test_seeds_with_other_settings_are_marked_within_their_row():
    odd = coop({**COOP, ("photo", 3): 80.0, ("sketch", 3): 80.0}, settings_sha256="cc")
    odd[-1]["settings_sha256"] = "bb"
    found = marked(only_table(odd + runs({**SPG, ("photo", 3): 80.0, ("sketch", 3): 80.0})))
    assert set(found) == {("CoOp", "sketch"), ("CoOp", AVERAGE)}  # SPG's settings are its own
    assert found["CoOp", "sketch"] == ["Not comparable: other settings than most runs of this row."]


def test_target_without_results_is_named():
    table = only_table(runs({("photo", 1): 90.0}) + coop({("photo", 1): 88.0}))
    assert table.notes == ["The average is over the columns shown. There are no runs of sketch."]
    assert text_of(runs({("photo", 1): 90.0})).splitlines()[-1] == table.notes[0]
    single = {**RESULT, "protocol": "single-source", "source_domains": ["a"], "target_domains": ["b", "c"]}
    (note,) = only_table([{**single, "accuracy_by_domain": {"b": 1.0, "c": 2.0}}]).notes
    assert note.endswith("no runs of b → a, b → c, c → a, c → b.")


def test_baseline_is_the_reference_even_against_the_majority():
    results = coop(COOP, selection="last_step") + runs(SPG) + runs(SPG, trainer="Third")
    found = marked(only_table(results, baseline="CoOp"))
    assert {method for method, _ in found} == {"SPG (pacs)", "Third (pacs)"}
    assert "than the baseline CoOp" in found["SPG (pacs)", "photo"][0]
    text = text_of(results, baseline="CoOp")
    assert "+2.2 [1]" in text  # 91 - 88.5 and 83 - 81: the difference carries the mark


def test_runs_without_a_selected_epoch_compare_with_others():
    last = runs(COOP, trainer="PromptSRC", config="default", selection="last_step")
    table = only_table(runs(SPG) + last)
    assert table.methods["rank"].notna().all() and not table.marked
    assert table.notes == ["PromptSRC: the model is a weighted mean over its epochs. Validation does not select it."]
    fifth = runs(COOP, trainer="PromptSRC", config="default", selection="epoch 5")
    found = marked(only_table(runs(SPG) + runs(SPG, trainer="Third") + fifth))
    assert {method for method, _ in found} == {"PromptSRC"} and len(found) == 3
    assert marked(only_table(runs(SPG, num_shots=16) + coop(COOP, selection=None))) == {}  # zero-shot


# ---- differences ----


def test_paired_difference_equals_hand_computation():
    # Photo: 2 and 3, mean 2.5; sketch: -1 and 5, mean 2. Mean 2.25, std sqrt(0.125), t(0.975, 1) = 12.7062.
    found = only_table(runs(SPG) + coop(COOP), baseline="CoOp").differences.loc["SPG (pacs)"]
    assert found["mean"] == pytest.approx(2.25)
    assert found["high"] - found["mean"] == pytest.approx(12.7062 * 0.125**0.5 / 2**0.5, rel=1e-5)
    assert found["mean"] - found["low"] == pytest.approx(found["high"] - found["mean"])
    assert (found["pairs"], found["clusters"], found["seeds"], found["reason"]) == (4, 2, 2, "")
    lines = text_of(runs(SPG) + coop(COOP), baseline="coop").splitlines()
    zero_shot = runs(COOP, trainer="ZeroshotCLIP", config="", selection=None)
    assert only_table(zero_shot + runs(SPG), baseline="zsclip").baseline == "ZeroshotCLIP"
    assert cells(lines[-1]) == ["SPG (pacs)", "+2.2", "−0.9 to +5.4", "4", "2", "2"]
    assert "Student's t over the means of the targets" in lines[-5]


def test_more_seeds_do_not_make_more_targets():
    seeds = range(1, 30)
    spg = {(target, seed): 80.0 + gain for target, gain in (("photo", 1.0), ("sketch", 3.0)) for seed in seeds}
    theirs = {(target, seed): 80.0 for target in ("photo", "sketch") for seed in seeds}
    found = only_table(runs(spg) + coop(theirs), baseline="CoOp").differences.loc["SPG (pacs)"]
    assert (found["mean"], found["pairs"]) == (2.0, 58)
    assert found["low"] == pytest.approx(2.0 - 12.7062, rel=1e-5)


def test_interval_of_too_few_pairs_is_omitted():
    for pairs, reason in (
        ([("photo", 1), ("photo", 2)], "no interval from one target"),
        ([("photo", 1), ("sketch", 1)], "no interval from one seed"),
        ([("photo", 1)], "no interval from one target and one seed"),
        ([("photo", 3)], "no pairs"),
    ):
        results = runs(SPG) + coop({pair: COOP.get(pair, 1.0) for pair in pairs})
        found = only_table(results, baseline="CoOp").differences.loc["SPG (pacs)"]
        assert np.isnan([found["low"], found["high"]]).all() and found["reason"] == reason
        assert reason in text_of(results, baseline="CoOp")


def test_missing_baseline_is_an_error():
    with pytest.raises(UserError, match=r"--baseline Coop2: no run .* Name one of CoOp, SPG \(pacs\)"):
        text_of(runs(SPG) + coop(COOP), baseline="Coop2")
    with pytest.raises(UserError, match=r"--baseline spg: several methods .* Name one of SPG, SPG \(pacs\)"):
        text_of(runs(SPG) + runs(SPG, config=""), baseline="spg")
    text = text_of(runs(SPG) + coop(COOP) + runs(SPG, dataset="VLCS"), baseline="CoOp")
    assert "No differences here: the baseline CoOp has no run in this table." in text


# ---- formats ----


def test_latex_and_markdown_escape_names():
    odd = "50%_a&b"
    text = text_of(runs({(odd, 1): 50.0, (odd, 2): 52.0}) + coop({(odd, 1): 40.0, (odd, 2): 40.0}), "latex")
    assert r"50\%\_a\&b" in text and r"\textbf{51.0 $\pm$ 1.4}" in text
    assert "±" not in text.partition("\n")[2]  # the title is a comment
    assert "a\\|b" in text_of(runs({("a|b", 1): 50.0})).splitlines()[2]
    lines = text_of(runs(SPG) + coop({("photo", 1): 88.0}, precision="amp"), "latex").splitlines()
    assert [line for line in lines if line.endswith("rule")] == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert sum(line.startswith("\\textsuperscript{") for line in lines) == 3


# ---- costs and ranks ----


def test_ranks_equal_hand_computation():
    # Photo: SPG 91, CoOp 88.5, Third 91 as printed; sketch: 83, 81, 80.
    third = {("photo", 1): 91.04, ("photo", 2): 91.0, ("sketch", 1): 80.0, ("sketch", 2): 80.0}
    table = only_table(runs(SPG) + coop(COOP) + runs(third, trainer="Third"))
    assert table.methods["rank"].to_dict() == {"SPG (pacs)": 1.25, "CoOp": 2.5, "Third (pacs)": 2.25}


def test_incomparable_method_has_no_rank_and_changes_no_other():
    third = runs({("photo", 1): 99.0, ("sketch", 1): 99.0}, trainer="Third", selection="last_step")
    ranks = only_table(runs(SPG) + coop(COOP) + third).methods["rank"]
    assert np.isnan(ranks["Third (pacs)"])
    assert ranks.drop("Third (pacs)").equals(only_table(runs(SPG) + coop(COOP)).methods["rank"])
    text = text_of(runs(SPG) + coop(COOP, precision="amp"))
    assert "No ranks: no column has comparable runs of every method." in text and "rank" not in grid(text)[0]


# ---- files ----


def save(folder, result):
    write_results(folder, result)
    return folder / "results.json"


def test_results_are_found_once_in_the_order_of_a_comparison(tmp_path):
    for trainer in ("SPG", "Theirs", "CoOp", "ZeroshotCLIP"):
        save(tmp_path / "pacs" / trainer, {**RESULT, "trainer": trainer})
    found = load_results([tmp_path, tmp_path / "pacs"])  # named twice
    assert list(found["trainer"]) == ["ZeroshotCLIP", "CoOp", "SPG", "Theirs"]
    expected = {**RESULT, "classnames": tuple(RESULT["classnames"]), "folder": f"{tmp_path}/pacs/SPG", "value": 90.0}
    assert {key: found[key].iloc[2] for key in expected} == expected


def test_two_runs_of_a_cell_are_an_error_or_the_newest(tmp_path, capsys):
    old, new = save(tmp_path / "b/old", RESULT), save(tmp_path / "a/new", {**RESULT, "accuracy": 70.0, "num_shots": 4})
    os.utime(old, (1, 1))
    assert main([str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "Two runs of one cell and seed (SPG (pacs), photo, seed 1)" in message and "--duplicates newest" in message
    assert all(word in message for word in (str(old.parent), str(new.parent), "they differ in num_shots"))
    assert main([str(tmp_path), "--duplicates", "newest"]) == 0
    printed = capsys.readouterr().out
    assert "70.0" in printed and "90.0" not in printed
    assert f"the table shows the newest run, {new.parent}, and not {old.parent}" in printed


def test_wrong_values_name_the_file_and_the_key(tmp_path, capsys):
    for change, message in (
        ({"target_domains": None}, "target_domains: "),
        ({"accuracy": "good"}, "accuracy: "),
        ({"accuracy": 101.0}, "an accuracy is not in 0 to 100 %"),
        ({"protocol": "single-source", "accuracy_by_domain": {}}, "an accuracy is not in 0 to 100 %"),
    ):
        path = save(tmp_path / "run", {**RESULT, **change})
        assert main([str(tmp_path)]) == 1
        found = capsys.readouterr().err
        assert message in found and str(path) in found and "run its command again" in found


def test_results_command_writes_a_file_or_names_the_mistake(tmp_path, capsys):
    save(tmp_path / "run", RESULT)
    (tmp_path / "empty").mkdir()
    for folder, message in (("nowhere", "there is no such folder"), ("empty", "no finished run (no results.json)")):
        assert main([str(tmp_path), str(tmp_path / folder)]) == 1
        assert f"{tmp_path / folder}: {message}" in capsys.readouterr().err
    assert main([str(tmp_path), "--out", str(tmp_path / "new/table.md")]) == 0
    assert capsys.readouterr().out == ""
    assert "SPG (pacs)" in (tmp_path / "new/table.md").read_text(encoding="utf-8")
    for content in ("", "[]", '{"accuracy": NaN}'):
        (tmp_path / "empty/results.json").write_text(content)
        assert main([str(tmp_path)]) == 1
        assert f"{tmp_path}/empty/results.json" in capsys.readouterr().err
