"""What makes up a batch."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from dassl.data.datasets import Datum
from dassl.data.samplers import build_sampler
from dassl.utils import UserError


def data(domains=(10, 10, 10), classes=5):
    """As many items of each domain as ``domains`` says, labels in turn."""
    return [Datum(__file__, i % classes, domain) for domain, n in enumerate(domains) for i in range(n)]


def split(indices, size):
    return [indices[i : i + size] for i in range(0, len(indices), size)]


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)


def test_sequential_and_random():
    source = data()
    assert list(build_sampler("SequentialSampler", data_source=source)) == list(range(30))
    sampler = build_sampler("RandomSampler", data_source=source)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == list(range(30))
    assert first != second
    torch.manual_seed(1)
    third = list(sampler)
    torch.manual_seed(1)
    assert list(sampler) == third


@pytest.mark.parametrize(("n_domain", "in_batch"), [(2, 2), (0, 3), (-1, 3)])
def test_random_domains_share_a_batch(n_domain, in_batch):
    source = data((11, 13, 17))
    sampler = build_sampler("RandomDomainSampler", data_source=source, batch_size=6, n_domain=n_domain)
    for _ in range(5):
        announced = len(sampler)
        indices = list(sampler)
        assert len(indices) == announced > 0
        assert len(set(indices)) == len(indices)
        for batch in split(indices, 6):
            counts = Counter(source[i].domain for i in batch)
            assert list(counts.values()) == [6 // in_batch] * in_batch
    assert list(sampler) != list(sampler)


def test_sequential_domains_come_in_order():
    source = data((11, 13, 17))
    sampler = build_sampler("SeqDomainSampler", data_source=source, batch_size=6)
    indices = list(sampler)
    assert len(indices) == len(sampler) == 5 * 6  # the smallest domain has 11 images, 2 a batch
    for batch in split(indices, 6):
        assert [source[i].domain for i in batch] == [0, 0, 1, 1, 2, 2]


def test_random_classes_give_several_instances():
    source = data((40,), classes=5)
    source += [Datum(__file__, 5, 0)]
    sampler = build_sampler("RandomClassSampler", data_source=source, batch_size=8, n_ins=4)
    for _ in range(5):
        announced = len(sampler)
        indices = list(sampler)
        assert len(indices) == announced > 0
        for batch in split(indices, 8):
            assert sorted(Counter(source[i].label for i in batch).values()) == [4, 4]
    counts = Counter(indices)
    assert all(n == 1 for i, n in counts.items() if source[i].label != 5)


@pytest.mark.parametrize(
    ("name", "arguments", "epochs"),
    # As they were seen on Dassl.pytorch: two epochs after the seed 3.
    [
        (
            "RandomDomainSampler",
            {"batch_size": 4, "n_domain": 2},
            [[4, 3, 8, 6, 2, 1, 10, 14], [2, 0, 12, 13, 14, 11, 8, 9]],
        ),
        (
            "SeqDomainSampler",
            {"batch_size": 6},
            [[6, 8, 4, 3, 13, 11, 5, 9, 2, 1, 14, 10], [5, 6, 4, 0, 12, 10, 8, 9, 3, 2, 14, 13]],
        ),
        (
            "RandomClassSampler",
            {"batch_size": 4, "n_ins": 2},
            [[4, 14, 8, 0, 6, 1, 7, 12, 9, 11, 5, 10], [2, 12, 6, 11, 9, 4, 5, 3, 14, 1, 0, 13]],
        ),
        (
            "RandomClassSampler",  # of 5 images a class, so that some come twice
            {"batch_size": 12, "n_ins": 6},
            [[4, 14, 6, 1, 9, 11, 12, 7, 12, 7, 7, 7], [7, 2, 7, 2, 12, 2, 14, 11, 9, 1, 6, 4]],
        ),
    ],
)
def test_draws_are_those_of_dassl(name, arguments, epochs):
    source = [Datum(__file__, i % 3, domain) for domain in (1, 0, 2) for i in range(5)]
    random.seed(3)
    np.random.seed(3)
    sampler = build_sampler(name, data_source=source, **arguments)
    assert sampler.length == len(epochs[0])
    drawn = []
    for _ in epochs:
        announced = len(sampler)
        drawn.append(list(sampler))
        assert len(drawn[-1]) == announced
    assert drawn == epochs


def test_draws_repeat_with_the_seed():
    source = data()

    def epochs():
        random.seed(3)
        sampler = build_sampler("RandomDomainSampler", data_source=source, batch_size=6, n_domain=2)
        return [list(sampler) for _ in range(2)]

    assert epochs() == epochs()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler_type": "Random"}, r"SAMPLER\): 'Random'. Accepted: .*SeqDomainSampler"),
        (
            {"sampler_type": "RandomDomainSampler", "batch_size": 8},
            "8 cannot be shared by 3 domains.*multiple of 3",
        ),
        ({"sampler_type": "SeqDomainSampler", "batch_size": 2}, "2 cannot be shared by 3 domains"),
        ({"sampler_type": "RandomDomainSampler", "n_domain": 4}, "N_DOMAIN is 4.*has 3 domains"),
        ({"sampler_type": "RandomClassSampler", "batch_size": 2, "n_ins": 4}, "batch of 2 cannot hold 4"),
        ({"sampler_type": "RandomClassSampler", "batch_size": 32, "n_ins": 2}, "needs 16 classes.*has 5"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        build_sampler(data_source=data(), **arguments)
