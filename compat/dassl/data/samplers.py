"""Samplers: the items of each batch. Each seed draws the same items as in Dassl.pytorch."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl.utils.errors import UserAssertionError, UserValueError
from dassl.utils.registry import check_availability

AVAI_SAMPLERS = (
    "RandomSampler",
    "SequentialSampler",
    "RandomDomainSampler",
    "SeqDomainSampler",
    "RandomClassSampler",
)


def _indices_by(data_source: Sequence, attribute: str) -> dict[Any, list[int]]:
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(index)
    return groups


class _EpochSampler(Sampler):
    """Draws the indices of an epoch at once: one draw at the start for ``length``, as in Dassl, then one per epoch.

    ``len()`` counts the items that an epoch would have now, so the length of a loader equals its number of batches.
    """

    def __init__(self, data_source: Sequence, batch_size: int) -> None:
        self.data_source = data_source
        self.batch_size = batch_size
        self.length = len(self.draw())

    def draw(self) -> list[int]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw())

    def __len__(self) -> int:
        states = random.getstate(), np.random.get_state()
        length = len(self.draw())
        random.setstate(states[0])
        np.random.set_state(states[1])
        return length


class RandomDomainSampler(_EpochSampler):
    """Each batch: ``n_domain`` random domains (0: all), equally many images of each.

    An epoch takes no image twice, and ends when one domain has too few images left.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int) -> None:
        self.domain_dict = _indices_by(data_source, "domain")
        self.domains = list(self.domain_dict)
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.domains)
        if self.n_domain > len(self.domains):
            raise UserValueError(
                f"DATALOADER.TRAIN_X.N_DOMAIN is {n_domain}, but the training data has {len(self.domains)} domains."
            )
        if batch_size % self.n_domain:
            raise UserAssertionError(
                f"The batch size {batch_size} cannot be shared by {self.n_domain} domains: make "
                f"DATALOADER.TRAIN_X.BATCH_SIZE a multiple of {self.n_domain}, e.g. "
                f"{max(1, batch_size // self.n_domain) * self.n_domain}, or set DATALOADER.TRAIN_X.N_DOMAIN."
            )
        self.n_img_per_domain = batch_size // self.n_domain
        super().__init__(data_source, batch_size)

    def pick_domains(self) -> list:
        return random.sample(self.domains, self.n_domain)

    def draw(self) -> list[int]:
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        drawn = []
        while min(map(len, left.values())) >= self.n_img_per_domain:
            for domain in self.pick_domains():
                # Sample positions: the same draw as of the indices themselves, and quicker to delete.
                places = random.sample(range(len(left[domain])), self.n_img_per_domain)
                drawn += [left[domain][place] for place in places]
                for place in sorted(places, reverse=True):
                    del left[domain][place]
        return drawn


class SeqDomainSampler(RandomDomainSampler):
    """Each batch: all domains in the order of their numbers, equally many random images of each."""

    def __init__(self, data_source: Sequence, batch_size: int) -> None:
        super().__init__(data_source, batch_size, n_domain=0)

    def pick_domains(self) -> list:
        return sorted(self.domains)


class RandomClassSampler(_EpochSampler):
    """Each batch: ``batch_size // n_ins`` random classes, ``n_ins`` random images of each.

    A class with fewer images repeats some. The epoch ends when too few classes have images left.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_ins: int) -> None:
        if batch_size < n_ins:
            raise UserValueError(
                f"A batch of {batch_size} cannot hold {n_ins} images of a class: raise "
                "DATALOADER.TRAIN_X.BATCH_SIZE or lower DATALOADER.TRAIN_X.N_INS."
            )
        self.index_dic = _indices_by(data_source, "label")
        self.labels = list(self.index_dic)
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        if self.ncls_per_batch > len(self.labels):
            raise UserAssertionError(
                f"A batch of {batch_size} with {n_ins} images of a class needs {self.ncls_per_batch} "
                f"classes, and the training data has {len(self.labels)}: lower "
                "DATALOADER.TRAIN_X.BATCH_SIZE or raise DATALOADER.TRAIN_X.N_INS."
            )
        super().__init__(data_source, batch_size)

    def draw(self) -> list[int]:
        left = {}
        for label, indices in self.index_dic.items():
            indices = list(indices)
            if len(indices) < self.n_ins:
                indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
            random.shuffle(indices)
            left[label] = indices
        available, drawn = list(self.labels), []
        while len(available) >= self.ncls_per_batch:
            for label in random.sample(available, self.ncls_per_batch):
                drawn += left[label][: self.n_ins]
                del left[label][: self.n_ins]
                if len(left[label]) < self.n_ins:
                    available.remove(label)
        return drawn


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence | None = None,
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler:
    """Build a sampler by name. ``cfg`` is unused, as in Dassl."""
    check_availability(sampler_type, AVAI_SAMPLERS, "sampler (DATALOADER.TRAIN_X/TRAIN_U/TEST.SAMPLER)")
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    return RandomClassSampler(data_source, batch_size, n_ins)
