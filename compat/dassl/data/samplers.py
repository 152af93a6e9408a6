"""Which items make up a batch."""

import random
from collections import defaultdict

from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl.utils.errors import UserError
from dassl.utils.registry import check_availability

AVAI_SAMPLERS = (
    "RandomSampler",
    "SequentialSampler",
    "RandomDomainSampler",
    "SeqDomainSampler",
    "RandomClassSampler",
)


class _GroupSampler(Sampler):
    """Draws a whole epoch of indices at a time, grouped by an attribute of the items.

    How many batches there are may depend on the draw. ``len()`` tells it for the epoch that comes next, so
    that a loop over a loader has as many batches as the loader said.
    """

    def __init__(self, data_source, attribute):
        self.data_source = data_source
        self.groups = defaultdict(list)
        for index, item in enumerate(data_source):
            self.groups[getattr(item, attribute)].append(index)
        self._next = None

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
        UserError: ``batch_size`` cannot be shared equally, or there are fewer domains.
    """

    def __init__(self, data_source, batch_size, n_domain):
        super().__init__(data_source, "domain")
        self.domains = list(self.groups)
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.domains)
        if self.n_domain > len(self.domains):
            raise UserError(
                f"DATALOADER.TRAIN_X.N_DOMAIN is {n_domain}, but the training data has {len(self.domains)} domains."
            )
        if batch_size % self.n_domain:
            raise UserError(
                f"The batch size {batch_size} cannot be shared by {self.n_domain} domains: make "
                f"DATALOADER.TRAIN_X.BATCH_SIZE a multiple of {self.n_domain}, e.g. "
                f"{max(1, batch_size // self.n_domain) * self.n_domain}, or set DATALOADER.TRAIN_X.N_DOMAIN."
            )
        self.n_img_per_domain = batch_size // self.n_domain

    def pick_domains(self):
        """Return the domains of one batch."""
        return random.sample(self.domains, self.n_domain)

    def draw(self):
        """Return the indices of one epoch."""
        left = {domain: random.sample(indices, len(indices)) for domain, indices in self.groups.items()}
        drawn = []
        while min(map(len, left.values())) >= self.n_img_per_domain:
            for domain in self.pick_domains():
                drawn += left[domain][: self.n_img_per_domain]
                del left[domain][: self.n_img_per_domain]
        return drawn


class SeqDomainSampler(RandomDomainSampler):
    """Each batch: all domains in the same order, the same number of random images from each.

    Args:
        data_source: list of Datum.
        batch_size (int): a multiple of the number of domains.

    Raises:
        UserError: ``batch_size`` cannot be shared equally.
    """

    def __init__(self, data_source, batch_size):
        super().__init__(data_source, batch_size, n_domain=0)

    def pick_domains(self):
        """Return the domains of one batch."""
        return self.domains


class RandomClassSampler(_GroupSampler):
    """Each batch: N random classes, ``n_ins`` random images from each; N = batch_size // n_ins.

    A class with fewer than ``n_ins`` images gives some of them twice. The epoch ends when fewer than N
    classes have images left.

    Args:
        data_source: list of Datum.
        batch_size (int): at least ``n_ins``.
        n_ins (int): images per class in a batch.

    Raises:
        UserError: the batch is smaller than ``n_ins``, or needs more classes than there are.
    """

    def __init__(self, data_source, batch_size, n_ins):
        super().__init__(data_source, "label")
        if batch_size < n_ins:
            raise UserError(
                f"A batch of {batch_size} cannot hold {n_ins} images of a class: raise "
                "DATALOADER.TRAIN_X.BATCH_SIZE or lower DATALOADER.TRAIN_X.N_INS."
            )
        self.n_ins = n_ins
        self.ncls_per_batch = batch_size // n_ins
        if self.ncls_per_batch > len(self.groups):
            raise UserError(
                f"A batch of {batch_size} with {n_ins} images of a class needs {self.ncls_per_batch} "
                f"classes, and the training data has {len(self.groups)}: lower "
                "DATALOADER.TRAIN_X.BATCH_SIZE or raise DATALOADER.TRAIN_X.N_INS."
            )

    def draw(self):
        """Return the indices of one epoch."""
        left = {}
        for label, indices in self.groups.items():
            if len(indices) < self.n_ins:
                left[label] = random.choices(indices, k=self.n_ins)
            else:
                left[label] = random.sample(indices, len(indices))
        drawn = []
        while len(left) >= self.ncls_per_batch:
            for label in random.sample(list(left), self.ncls_per_batch):
                drawn += left[label][: self.n_ins]
                del left[label][: self.n_ins]
                if len(left[label]) < self.n_ins:
                    del left[label]
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
        UserError: no sampler of that name, or a batch size that does not suit it.
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
