"""Which items make up a batch."""

import random
from collections import defaultdict

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


def _indices_by(data_source, attribute):
    """Return a dict from the values of an attribute to the indices of the items that have it."""
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[getattr(item, attribute)].append(index)
    return groups


class _GroupSampler(Sampler):
    """Draws a whole epoch of indices at a time; a subclass is ready to draw before it calls ``__init__``.

    The draws are those of Dassl's samplers: one at the start, of which only the ``length`` is kept, and one for
    each epoch, from python's generator.

    How many batches there are may depend on the draw. ``len()`` tells it for the epoch that comes next, so
    that a loop over a loader has as many batches as the loader said.

    Attributes: ``length``, how many indices the draw at the start had.
    """

    def __init__(self, data_source, batch_size):
        self.data_source = data_source
        self.batch_size = batch_size
        self._next = None
        self.length = len(self.draw())

    def draw(self):
        """Return the indices of one epoch."""
        raise NotImplementedError

    def _peek(self):
        if self._next is None:
            self._next = self.draw()
        return self._next

    def __iter__(self):
        indices = self._peek()
        self._next = None
        return iter(indices)

    def __len__(self):
        return len(self._peek())


class RandomDomainSampler(_GroupSampler):
    """Each batch: N random domains, the same number of random images from each, none twice in an epoch.

    The epoch ends when a domain has too few images left.

    Args:
        data_source: list of Datum.
        batch_size (int): a multiple of ``n_domain``.
        n_domain (int): domains in a batch; 0 or less: all.

    Raises:
        UserAssertionError: ``batch_size`` cannot be shared equally.
        UserValueError: there are fewer domains.
    """

    def __init__(self, data_source, batch_size, n_domain):
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

    def pick_domains(self):
        """Return the domains of one batch."""
        return random.sample(self.domains, self.n_domain)

    def draw(self):
        """Return the indices of one epoch."""
        left = {domain: list(indices) for domain, indices in self.domain_dict.items()}
        drawn = []
        while min(map(len, left.values())) >= self.n_img_per_domain:
            for domain in self.pick_domains():
                # Places, and not the indices themselves, since these are quicker to take out; drawn alike.
                places = random.sample(range(len(left[domain])), self.n_img_per_domain)
                drawn += [left[domain][place] for place in places]
                for place in sorted(places, reverse=True):
                    del left[domain][place]
        return drawn


class SeqDomainSampler(RandomDomainSampler):
    """Each batch: all domains by their numbers, the same number of random images from each.

    Args:
        data_source: list of Datum.
        batch_size (int): a multiple of the number of domains.

    Raises:
        UserAssertionError: ``batch_size`` cannot be shared equally.
    """

    def __init__(self, data_source, batch_size):
        super().__init__(data_source, batch_size, n_domain=0)

    def pick_domains(self):
        """Return the domains of one batch."""
        return sorted(self.domains)


class RandomClassSampler(_GroupSampler):
    """Each batch: N random classes, ``n_ins`` random images from each; N = batch_size // n_ins.

    A class with fewer than ``n_ins`` images gives some of them twice. The epoch ends when fewer than N
    classes have images left.

    Args:
        data_source: list of Datum.
        batch_size (int): at least ``n_ins``.
        n_ins (int): images per class in a batch.

    Raises:
        UserValueError: the batch is smaller than ``n_ins``.
        UserAssertionError: it needs more classes than there are.
    """

    def __init__(self, data_source, batch_size, n_ins):
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

    def draw(self):
        """Return the indices of one epoch."""
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


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
    """Build the sampler called ``sampler_type``.

    Args:
        sampler_type (str): one of AVAI_SAMPLERS.
        cfg: not used; part of Dassl's interface.
        data_source: list of Datum.
        batch_size (int): items in a batch.
        n_domain (int): domains in a batch, for RandomDomainSampler; 0: all.
        n_ins (int): instances per class in a batch, for RandomClassSampler.

    Raises:
        UserValueError: no sampler of that name, or a batch size that does not suit it.
        UserAssertionError: likewise.
    """
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
