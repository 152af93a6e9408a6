"""Accuracy, macro-averaged F1, per-class accuracy and confusion matrix."""

import os.path as osp
from collections import OrderedDict, defaultdict

import torch

from dassl.utils.errors import UserValueError
from dassl.utils.tools import atomic_write

from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """What an evaluator offers: ``reset``, then ``process`` for each batch, then ``evaluate``."""

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self):
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo, gt):
        """Take in a batch: model output ``mo`` and ground truth ``gt``."""
        raise NotImplementedError

    def evaluate(self):
        """Print and return the results, an OrderedDict whose first entry is the one that counts."""
        raise NotImplementedError


def _tally(name, meaning):
    """An attribute of :class:`Classification` that first takes in the batches that wait."""

    def read(self):
        self._take_in()
        return self.__dict__[name]

    def write(self, value):
        self.__dict__[name] = value

    return property(read, write, doc=meaning)


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Evaluator for single-label classification.

    A subclass may override ``process`` and ``evaluate`` on the attributes that Dassl's has: ``_correct``,
    ``_total``, ``_y_true``, ``_y_pred``, ``_per_class_res`` and ``_lab2cname``.

    Args:
        cfg: the configuration (TEST.PER_CLASS_RESULT, TEST.COMPUTE_CMAT, OUTPUT_DIR).
        lab2cname (dict): from labels to class names; needed for TEST.PER_CLASS_RESULT.

    Raises:
        AssertionError: it is needed and not there.
    """

    _correct = _tally("_correct", "Number of items that were classified correctly.")
    _total = _tally("_total", "Number of items.")
    _y_true = _tally("_y_true", "List of the labels.")
    _y_pred = _tally("_y_pred", "List of the predicted labels.")
    _per_class_res = _tally("_per_class_res", "Dict from labels to lists of 1 (correct) and 0; None: not asked for.")

    def __init__(self, cfg, lab2cname=None, **_):
        super().__init__(cfg)
        assert lab2cname is not None or not cfg.TEST.PER_CLASS_RESULT, "TEST.PER_CLASS_RESULT needs lab2cname"
        self._lab2cname = lab2cname
        Classification.reset(self)

    def reset(self):
        """Forget all batches."""
        self._waiting = []
        self._correct = 0
        self._total = 0
        self._y_true = []
        self._y_pred = []
        self._per_class_res = defaultdict(list) if self.cfg.TEST.PER_CLASS_RESULT else None

    def process(self, mo, gt):
        """Take in a batch.

        Args:
            mo: scores (B, C).
            gt: labels (B,).
        """
        # Kept where they are: reading a number back at each batch would make a GPU wait.
        self._waiting.append((mo.detach().argmax(dim=1), gt.detach()))

    def _take_in(self):
        waiting, self._waiting = self._waiting, []
        for pred, gt in waiting:
            pred, gt = pred.tolist(), gt.tolist()
            matches = [int(p == t) for p, t in zip(pred, gt, strict=True)]
            self._correct += sum(matches)
            self._total += len(gt)
            self._y_true += gt
            self._y_pred += pred
            if self._per_class_res is not None:
                for label, match in zip(gt, matches, strict=True):
                    self._per_class_res[label].append(match)

    def evaluate(self):
        """Print and return the results.

        Returns:
            OrderedDict: ``accuracy``, ``error_rate``, ``macro_f1`` (over the classes that occur among the
            labels) and, with TEST.PER_CLASS_RESULT, ``perclass_accuracy`` (their mean); all in percent.

        Raises:
            UserValueError: no item was processed.
        """
        total, correct = self._total, self._correct
        if total == 0:
            raise UserValueError("Nothing to evaluate: the split holds no items. Check DATASET.TARGET_DOMAINS.")
        counts = _count(self._y_true, self._y_pred)
        results = OrderedDict()
        results["accuracy"] = 100.0 * correct / total
        results["error_rate"] = 100.0 - results["accuracy"]
        results["macro_f1"] = 100.0 * _macro_f1(counts)
        print(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {results['accuracy']:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {results['macro_f1']:.1f}%"
        )
        if self._per_class_res is not None:
            results["perclass_accuracy"] = self._print_per_class()
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix(counts)
        return results

    def _print_per_class(self):
        print("=> per-class result")
        accuracies = []
        for label, matches in sorted(self._per_class_res.items()):
            total, correct = len(matches), sum(matches)
            accuracies.append(100.0 * correct / total)
            print(
                f"* class: {label} ({self._lab2cname.get(label, '?')})\t"
                f"total: {total:,}\tcorrect: {correct:,}\tacc: {accuracies[-1]:.1f}%"
            )
        mean = sum(accuracies) / len(accuracies)
        print(f"* average: {mean:.1f}%")
        return mean

    def _save_confusion_matrix(self, counts):
        # Over the classes that occur; a class that is predicted but never true has a row of zeros.
        occurs = (counts.sum(0) + counts.sum(1)) > 0
        counts = counts[occurs][:, occurs].double()
        matrix = counts / counts.sum(1, keepdim=True).clamp(min=1)
        fpath = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        with atomic_write(fpath) as handle:
            torch.save(matrix.numpy(), handle)  # as scikit-learn makes it, for those who read it
        print(f"Confusion matrix is saved to {fpath}")


def _count(true, pred):
    """The confusion matrix in counts, (C, C): rows are labels, columns predictions."""
    true, pred = torch.tensor(true), torch.tensor(pred)
    n_cls = int(max(true.max(), pred.max())) + 1
    return torch.bincount(true * n_cls + pred, minlength=n_cls * n_cls).view(n_cls, n_cls)


def _macro_f1(counts):
    """Mean F1 over the classes that occur among the labels, from counts (C, C)."""
    hits = counts.diagonal().double()
    n_true, n_pred = counts.sum(1), counts.sum(0)
    f1 = 2 * hits / (n_true + n_pred).clamp(min=1)
    return float(f1[n_true > 0].mean())
