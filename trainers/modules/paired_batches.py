"""Two independent batches of the same images at each step, from one loader."""

from collections.abc import Iterator

from trainers.modules.image_data import Batches


class PairedBatchSampler:
    """Joins the batches of two passes over the same data set, one after the other, into one batch.

    The loader then decodes, and the image tower encodes, both in one go; exactly two batches are drawn for each
    step of stage II (SPG, Algorithm 1), where the second has to be independent of the first.

    Args:
        first, second: batch samplers; the shorter one ends the epoch.
    """

    def __init__(self, first: Batches, second: Batches) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return min(len(self.first), len(self.second))

    def __iter__(self) -> Iterator[list[int]]:
        for first, second in zip(self.first, self.second, strict=False):
            yield list(first) + list(second)
