"""Source and target domains: names, codes, defaults, mistakes."""

import pytest
from dataset_trees import config, make_set

from common.errors import UserError
from datasets.benchmarks import SPG_PACS, SPG_VLCS, SPG_DomainNet, SPG_OfficeHome, SPG_TerraIncognita
from datasets.names import find_domain

ACCEPTED = r"Accepted: art_painting \(a\), cartoon \(c\), photo \(p\), sketch \(s\)\."


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pacs")
    make_set(root, SPG_PACS, SPG_PACS.layouts[0])
    return root


def test_other_spellings_are_understood():
    for dataset, name, domain in (
        (SPG_OfficeHome, "Real World", "real_world"),
        (SPG_OfficeHome, "RealWorld", "real_world"),
        (SPG_VLCS, "VOC2007", "pascal"),
        (SPG_PACS, "Art-Painting", "art_painting"),
        (SPG_PACS, "S", "sketch"),
        (SPG_TerraIncognita, 3, "location_43"),  # yacs reads DATASET.TARGET_DOMAINS "(3,)" as a number
    ):
        assert dataset.resolve_domains(target_domains=[name])[1] == [domain]


@pytest.mark.parametrize(
    ("targets", "sources", "expected"),
    [(["c"], [], [0, 2, 3]), (["s", "a"], [], [1, 2]), (["p"], ["s"], [3]), (["p"], ["photo"], [2])],
)
def test_splits_are_of_the_chosen_domains(targets, sources, expected, pacs):
    found = SPG_PACS(config(pacs, targets, sources))
    assert {item.domain for item in found.train_x} == {item.domain for item in found.val} == set(expected)
    assert {found.code(found.domains[item.domain]) for item in found.test} == set(targets)
    sizes = len(found.train_x), len(found.val), len(found.test)
    assert sizes == (49 * len(expected), 21 * len(expected), 70 * len(targets))


def test_target_among_several_sources_warns(pacs, capsys):
    SPG_PACS(config(pacs, ["p"], ["p", "s"]))
    assert "Warning: photo is a source and a target domain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        (["a"], [], "DATASET.TARGET_DOMAINS is empty.*--target-domains s.*" + ACCEPTED),
        ([], ["x"], r"DATASET.TARGET_DOMAINS: SPG_PACS has no domain 'x'\. " + ACCEPTED),
        (["sketches"], ["s"], "DATASET.SOURCE_DOMAINS: .*'sketches'.* Did you mean sketch?"),
        (["a", "art_painting"], ["s"], "DATASET.SOURCE_DOMAINS names art_painting twice"),
        ([], ["a", "c", "p", "s"], "names every domain. Name fewer"),
    ],
)
def test_domain_mistakes_raise(sources, targets, message):
    with pytest.raises(UserError, match=message):
        SPG_PACS.resolve_domains("", sources, targets)
