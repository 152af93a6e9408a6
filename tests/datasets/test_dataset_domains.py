"""Source and target domains: names, codes, defaults, mistakes."""

import pytest
from dataset_trees import SETS, config, make_set
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from datasets.names import class_name, find_domain, fold, resolve_domains
from datasets.spg_domainnet import SPG_DomainNet
from datasets.spg_officehome import SPG_OfficeHome
from datasets.spg_pacs import SPG_PACS
from datasets.spg_terraincognita import SPG_TerraIncognita
from datasets.spg_vlcs import SPG_VLCS

PACS_ACCEPTED = r"Accepted: art_painting \(a\), cartoon \(c\), photo \(p\), sketch \(s\)\."


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pacs")
    make_set(root, SPG_PACS, SPG_PACS.layouts[0])
    return root


@pytest.mark.parametrize(("dataset", "codes"), list(zip(SETS, ("acps", "clps", "acpr", "1234", "cipqrs"), strict=True)))
def test_published_codes(dataset, codes):
    assert dataset.list_codes() == list(codes)
    for code, domain in zip(codes, dataset.list_domains(), strict=True):
        others = [other for other in dataset.domains if other != domain]
        assert dataset.resolve_domains(target_domains=[code]) == (others, [domain])
        assert dataset.resolve_domains(target_domains=[domain]) == (others, [domain])


def test_which_domain_a_code_is():
    assert SPG_TerraIncognita.resolve_domains("", ["1"], ["2"]) == (["location_100"], ["location_38"])
    assert SPG_DomainNet.resolve_domains("", ["q"], ["i"]) == (["quickdraw"], ["infograph"])


@pytest.mark.parametrize(
    ("dataset", "given", "expected"),
    [
        (SPG_OfficeHome, "Real World", "real_world"),
        (SPG_OfficeHome, "RealWorld", "real_world"),
        (SPG_VLCS, "VOC2007", "pascal"),
        (SPG_VLCS, "CALTECH", "caltech"),
        (SPG_PACS, "Art-Painting", "art_painting"),
        (SPG_PACS, "S", "sketch"),
        (SPG_TerraIncognita, 3, "location_43"),  # yacs reads DATASET.TARGET_DOMAINS "(3,)" as a number
    ],
)
def test_other_spellings(dataset, given, expected):
    assert dataset.resolve_domains(target_domains=[given])[1] == [expected]


def test_leave_one_domain_out_is_the_default(pacs):
    found = SPG_PACS(config(pacs, ["c"]))
    assert found.source_domains == ["art_painting", "photo", "sketch"]
    assert found.target_domains == ["cartoon"]
    assert {item.domain for item in found.train_x} == {item.domain for item in found.val} == {0, 2, 3}
    assert {item.domain for item in found.test} == {1}
    assert (len(found.train_x), len(found.val), len(found.test)) == (3 * 49, 3 * 21, 70)
    assert found.code("photo") == "p"


def test_domain_labels_do_not_depend_on_the_choice(pacs):
    found = SPG_PACS(config(pacs, ["p"], ["s"]))
    assert {item.domain for item in found.train_x} == {3}
    assert {item.domain for item in found.test} == {2}


def test_several_targets(pacs):
    found = SPG_PACS(config(pacs, ["s", "a"]))
    assert found.source_domains == ["cartoon", "photo"]
    assert {item.domain for item in found.test} == {0, 3}


def test_one_domain_as_source_and_target(pacs, capsys):
    found = SPG_PACS(config(pacs, ["p"], ["photo"]))
    assert found.source_domains == found.target_domains == ["photo"]
    assert len(found.test) == len(found.train_x) + len(found.val) == 70
    assert "are trained on" not in capsys.readouterr().out


def test_target_among_several_sources_is_pointed_out(pacs, capsys):
    SPG_PACS(config(pacs, ["p"], ["p", "s"]))
    assert "Warning: photo is a source and a target domain" in capsys.readouterr().out


def test_train_val_and_test_do_not_overlap(pacs):
    found = SPG_PACS(config(pacs, ["c"]))
    lists = [[item.impath for item in split] for split in (found.train_x, found.val, found.test)]
    assert sum(map(len, lists)) == len(set().union(*lists)) == 4 * 70


@pytest.mark.parametrize(
    ("sources", "targets", "expected"),
    [
        ([], [], "DATASET.TARGET_DOMAINS is empty.*--target-domains s.*" + PACS_ACCEPTED),
        (["a"], [], "DATASET.TARGET_DOMAINS is empty"),
        ([], ["x"], r"DATASET.TARGET_DOMAINS: SPG_PACS has no domain 'x'\. " + PACS_ACCEPTED),
        (["sketches"], ["s"], "DATASET.SOURCE_DOMAINS: .*'sketches'.* Did you mean sketch?"),
        ([""], ["s"], "no domain ''"),
        (["a", "art_painting"], ["s"], "DATASET.SOURCE_DOMAINS names art_painting twice"),
        ([], ["s", "s"], "DATASET.TARGET_DOMAINS names sketch twice"),
        ([], ["a", "c", "p", "s"], "names every domain of SPG_PACS"),
    ],
)
def test_mistakes(sources, targets, expected):
    with pytest.raises(UserError, match=expected):
        SPG_PACS.resolve_domains("", sources, targets)


def test_mistakes_are_found_before_images_are_looked_for(tmp_path):
    with pytest.raises(UserError, match="no domain 'x'"):
        SPG_PACS(config(tmp_path, ["x"]))


def test_a_single_name_is_not_taken_apart():
    assert SPG_PACS.resolve_domains("", "photo", "sketch") == (["photo"], ["sketch"])


names = st.one_of(
    st.sampled_from([*SPG_PACS.domains, *SPG_PACS.codes, "PHOTO", "Art Painting"]), st.text(), st.integers()
)


@given(st.lists(names, max_size=5), st.lists(names, max_size=5))
def test_any_arguments_give_full_names_or_a_user_error(sources, targets):
    try:
        sources, targets = SPG_PACS.resolve_domains("", sources, targets)
    except UserError:
        return
    assert sources and targets
    for domains in (sources, targets):
        assert set(domains) <= set(SPG_PACS.domains)
        assert len(set(domains)) == len(domains)


@given(st.lists(st.text(min_size=1), min_size=2, unique=True))
def test_a_full_name_always_means_itself(domains):
    for domain in domains:
        assert find_domain(domain, domains, domains) == domain
    assert resolve_domains("Any", domains, domains, (), [], domains[:1]) == (domains[1:], domains[:1])


def test_spelling_that_fits_two_domains_is_none_of_them():
    assert find_domain("A b", ["a_b", "a-b"]) is None
    assert find_domain("a-b", ["a_b", "a-b"]) == "a-b"


@given(st.text())
def test_names_are_normalised_once(name):
    assert class_name(class_name(name)) == class_name(name)
    assert fold(fold(name)) == fold(name)


def test_composed_and_decomposed_letters_are_one():
    assert class_name("Ku\u0308che") == class_name("K\u00fcche") == "k\u00fcche"
    assert class_name("_") == "_"
