"""A DataLoader whose worker processes live as long as it does."""

import weakref

from torch.utils.data import DataLoader


class WorkerKeepingLoader(DataLoader):
    """A DataLoader that starts its workers once, and that may be iterated while an iteration is going on.

    torch's own ``persistent_workers`` hands out one iterator and silently resets it when a second one is
    asked for. Dassl trainers do ask for a second one in the middle of an epoch, so such a one gets workers of
    its own. torch's worker loop makes each worker compute with one thread and seeds python, numpy and torch.
    """

    def __init__(self, dataset, num_workers=0, **options):
        super().__init__(dataset, num_workers=num_workers, persistent_workers=num_workers > 0, **options)
        self._options = options
        self._current = lambda: None
        self._workers_started = False

    def __iter__(self):
        if self.num_workers == 0:
            return super().__iter__()
        current = self._current()
        if current is not None and not current.finished:
            return iter(DataLoader(self.dataset, num_workers=self.num_workers, **self._options))
        batches = super().__iter__()
        if not self._workers_started:
            self._workers_started = True
            # Held by the finalizer until the loader goes, the iterator is never freed as part of a cycle: the
            # garbage collector would close its queues first, and its workers would be waited for in vain.
            weakref.finalize(self, _release, batches)
        current = _Iteration(batches)
        self._current = weakref.ref(current)
        return current


class _Iteration:
    """One pass over a loader; as long as it is held and has not ended, the loader's workers are taken."""

    def __init__(self, batches):
        self._batches = batches
        self.finished = False

    def __iter__(self):
        return self

    def __len__(self):
        return len(self._batches)

    def __next__(self):
        try:
            return next(self._batches)
        except BaseException:
            self.finished = True
            raise


def _release(batches):
    """Let go of ``batches``, whose workers end with it."""
