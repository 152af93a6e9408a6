"""Accuracy, macro-averaged F1, per-class accuracy and confusion matrix."""

import os.path as osp
from collections import OrderedDict

import torch

from dassl.utils.errors import UserError
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


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Evaluator for single-label classification.

    Args:
        cfg: the configuration (TEST.PER_CLASS_RESULT, TEST.COMPUTE_CMAT, OUTPUT_DIR).
        lab2cname (dict): from labels to class names; needed for TEST.PER_CLASS_RESULT.
    """

    def __init__(self, cfg, lab2cname=None, **_):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs lab2cname")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self):
        """Forget all batches."""
        self._pred = []
        self._true = []

    def process(self, mo, gt):
        """Take in a batch.

        Args:
            mo: scores (B, C).
            gt: labels (B,).
        """
        # Kept where they are: reading a number back at each batch would make a GPU wait.
        self._pred.append(mo.detach().argmax(dim=1))
        self._true.append(gt.detach())

    def evaluate(self):
        """Print and return the results.

        Returns:
            OrderedDict: ``accuracy``, ``error_rate``, ``macro_f1`` (over the classes that occur among the
            labels) and, with TEST.PER_CLASS_RESULT, ``perclass_accuracy`` (their mean); all in percent.

        Raises:
            UserError: no item was processed.
        """
        counts = self._count()
        total, correct = int(counts.sum()), int(counts.diagonal().sum())
        if total == 0:
            raise UserError("Nothing to evaluate: the split holds no items. Check DATASET.TARGET_DOMAINS.")
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
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._print_per_class(counts)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix(counts)
        return results

    def _count(self):
        """Return the confusion matrix in counts, (C, C): rows are labels, columns predictions."""
        if not self._true:
            return torch.zeros(0, 0, dtype=torch.int64)
        true, pred = torch.cat(self._true).cpu(), torch.cat(self._pred).cpu()
        n_cls = int(max(true.max(), pred.max())) + 1 if len(true) else 0
        return torch.bincount(true * n_cls + pred, minlength=n_cls * n_cls).view(n_cls, n_cls)

    def _print_per_class(self, counts):
        print("=> per-class result")
        accuracies = []
        for label, row in enumerate(counts):
            total = int(row.sum())
            if total == 0:
                continue
            correct = int(row[label])
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
        fpath = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        with atomic_write(fpath) as handle:
            torch.save(counts / counts.sum(1, keepdim=True).clamp(min=1), handle)
        print(f"Confusion matrix is saved to {fpath}")


def _macro_f1(counts):
    """Mean F1 over the classes that occur among the labels, from counts (C, C)."""
    hits = counts.diagonal().double()
    n_true, n_pred = counts.sum(1), counts.sum(0)
    f1 = 2 * hits / (n_true + n_pred).clamp(min=1)
    return float(f1[n_true > 0].mean())
