"""Handmade contexts in the form of an SPG run."""

import numpy as np

from common.image_results import Contexts

DOMAINS = ["art", "photo <i>"]


def some_contexts(seed=0, labels=2):
    rng = np.random.default_rng(seed)
    contexts = np.concatenate([rng.normal(place, 1, (6, 2, 4)) for place in (0, 5)])
    domains = np.repeat(DOMAINS, 6)
    splits = np.where(domains == "art", "val", "test")
    return Contexts(contexts, domains, splits, rng.normal(2, 1, (labels, 2, 4)), np.array(DOMAINS[:labels]))
