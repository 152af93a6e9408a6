"""Trained parameters, training time and ranks: by hand, in every format, and of runs that say nothing of them."""

import csv
import io

import pytest
from test_results import COOP, SPG, cells, only_table, other, runs

from common.errors import UserError
from common.run.results import write_results
from scripts.reporting.costs import cost_of, duration
from scripts.reporting.finished import find_results
from scripts.reporting.text import results_tables

SPG_COSTS = {"n_trained": [6144, 3_000_000], "train_seconds": 100.0, "train_reused": []}
COOP_COSTS = {"n_trained": [2048], "train_seconds": 50.0, "train_reused": []}


def with_costs():
    """Results of SPG, one of which found a label, of CoOp and of zero-shot CLIP."""
    spg = runs(SPG, **SPG_COSTS)
    spg[0] |= {"train_seconds": 20.0, "train_reused": ["prompt labels"]}
    zero_shot = runs(COOP, trainer="ZeroshotCLIP", config="", selection=None, n_trained=[], train_seconds=None)
    return spg + other(COOP, **COOP_COSTS) + zero_shot


def columns(text):
    """The header of a table of Markdown, and its rows by method."""
    lines = text.splitlines()
    rows = [cells(line) for line in lines[4:] if line.startswith("|")]
    return cells(lines[2]), {row[0]: row for row in rows}


def test_columns_of_costs_in_markdown():
    text = results_tables(with_costs())
    header, rows = columns(text)
    assert header[-4:] == ["rank", "seeds", "trained", "training"]
    assert rows["SPG (pacs)"][-2:] == ["6,144 + 3,000,000", "≥ 80 s"]  # (20 + 3 * 100) / 4
    assert rows["CoOp"][-2:] == ["2,048", "50 s"]
    assert rows["ZeroshotCLIP"][-2:] == ["0", "-"]
    assert "those of stage I (the prompt labels of all source domains) + those of stage II" in text
    assert "≥: some runs of SPG (pacs) took over prompt labels of earlier runs" in text


def test_nothing_is_said_of_stages_and_reuse_where_there_is_none():
    text = results_tables(other(COOP, **COOP_COSTS))
    assert "trained: number of parameters" in text and "stage" not in text and "≥" not in text


def test_columns_of_costs_in_the_other_formats():
    plain, latex = (results_tables(with_costs(), name) for name in ("plain", "latex"))
    assert "6,144 + 3,000,000" in plain and "≥ 80 s" in plain
    assert r"6,144 + 3,000,000" in latex and r"$\geq$ 80 s" in latex and "≥" not in latex
    rows = list(csv.DictReader(io.StringIO(results_tables(with_costs(), "csv"))))
    found = {(row["method"], row["column"]): row for row in rows}
    assert found["SPG (pacs)", "trained"]["mean"] == "3006144"
    assert found["SPG (pacs)", "trained"]["notes"] == "6144 + 3000000, stage by stage"
    assert found["SPG (pacs)", "training (s)"]["mean"] == "80.0"
    assert found["SPG (pacs)", "training (s)"]["notes"] == "without what earlier runs had made: prompt labels"
    assert found["ZeroshotCLIP", "trained"]["mean"] == "0" and ("ZeroshotCLIP", "training (s)") not in found
    assert found["CoOp", "rank"]["mean"] == "2.5000"


def test_runs_of_older_versions_have_a_dash():
    _, rows = columns(results_tables(runs(SPG, **SPG_COSTS) + other(COOP)))
    assert rows["CoOp"][-2:] == ["-", "-"]
    header, _ = columns(results_tables(runs(SPG) + other(COOP)))  # and where no run says any, there are no columns
    assert header[-1] == "seeds"
    some = other(COOP)
    some[0] |= COOP_COSTS
    assert cost_of(some).seconds == 50.0  # the mean over those that say


def test_runs_that_differ_show_all_they_trained():
    odd = other(COOP, **COOP_COSTS)
    odd[0]["n_trained"] = [512]
    assert cost_of(odd).trained_text == "512 or 2,048"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.23, "4.2 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "1.7 min"),
        (725, "12 min"),
        (1e4, "2.8 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"n_trained": 3}, "n_trained is no list of numbers"),
        ({"n_trained": ["3"]}, "n_trained is no list of numbers"),
        ({"train_seconds": "3"}, "train_seconds is no number"),
        ({"train_reused": "labels"}, "train_reused is no list of texts"),
    ],
)
def test_results_whose_costs_are_damaged(tmp_path, change, what):
    write_results(tmp_path, {**runs(SPG)[0], **change})
    with pytest.raises(UserError, match=what):
        find_results([tmp_path])


# ---- ranks ----


def test_ranks_by_hand():
    # Photo: SPG 91, CoOp 88.5, Third 91 as printed; sketch: 83, 81, 80.
    third = {("photo", 1): 91.04, ("photo", 2): 91.0, ("sketch", 1): 80.0, ("sketch", 2): 80.0}
    table = only_table(runs(SPG) + other(COOP) + runs(third, trainer="Third"))
    assert table.ranks == {"SPG (pacs)": 1.25, "CoOp": 2.5, "Third (pacs)": 2.25}
    header, rows = columns(results_tables(runs(SPG) + other(COOP) + runs(third, trainer="Third")))
    assert header[-2:] == ["rank", "seeds"] and rows["CoOp"][-2] == "2.5"


def test_a_single_method_has_no_rank():
    assert only_table(runs(SPG)).ranks == {}
    assert "rank" not in results_tables(runs(SPG))


def test_ranks_are_over_what_all_methods_have():
    results = runs(SPG) + other({("photo", 1): 91.0})
    table = only_table(results)
    assert table.ranked_over == ["photo"]
    assert table.ranks == {"SPG (pacs)": 2.0, "CoOp": 1.0}  # by seed 1 alone, where SPG has 90
    assert "mean over photo, since of the other columns some methods have no runs that compare." in results_tables(
        results
    )


def test_a_method_that_does_not_compare_is_ranked_by_none_and_keeps_no_other_from_its_rank():
    third = runs({("photo", 1): 99.0, ("sketch", 1): 99.0}, trainer="Third", selection="last_step")
    results = runs(SPG) + other(COOP) + third
    ranks = only_table(results).ranks
    assert ranks == only_table(runs(SPG) + other(COOP)).ranks and len(ranks) == 2
    text = results_tables(results)
    header, rows = columns(text)
    assert rows["Third (pacs)"][header.index("rank")] == "-"
    assert "rank: place among the methods but Third (pacs), which does not compare, 1 is the best" in text


def test_runs_that_do_not_compare_have_no_rank():
    results = runs(SPG) + other(COOP, precision="amp")
    assert only_table(results).ranks == {}
    text = results_tables(results)
    assert "No ranks: of no column all methods have runs that compare." in text
    assert "rank" not in columns(text)[0]
