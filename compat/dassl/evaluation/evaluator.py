"""Accuracy, macro F1, accuracy per class and confusion matrix."""

import os.path as osp
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.utils.errors import UserValueError
from dassl.utils.tools import atomic_write

from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """Interface: ``reset``, then ``process`` for each batch, then ``evaluate``."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add the model output and the ground truth of a batch."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return the metrics. The first one selects models."""
        raise NotImplementedError


def _tally(name: str) -> property:
    """An attribute of Classification. Reading it first counts the waiting batches."""

    def read(self: "Classification") -> Any:
        self._count_waiting()
        return self.__dict__[name]

    def write(self: "Classification", value: Any) -> None:
        self.__dict__[name] = value

    return property(read, write)


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Evaluator for single-label classification. Subclasses may use the attributes, which equal Dassl's.

    ``lab2cname`` (label -> class name) is required with TEST.PER_CLASS_RESULT.
    """

    _correct = _tally("_correct")
    _total = _tally("_total")
    _y_true = _tally("_y_true")
    _y_pred = _tally("_y_pred")
    _per_class_res = _tally("_per_class_res")  # label -> list of 1 (correct) and 0; None without PER_CLASS_RESULT

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **_: Any) -> None:
        super().__init__(cfg)
        assert lab2cname is not None or not cfg.TEST.PER_CLASS_RESULT, "TEST.PER_CLASS_RESULT needs lab2cname"
        self._lab2cname = lab2cname
        Classification.reset(self)

    def reset(self) -> None:
        self._waiting = []
        self._correct = self._total = 0
        self._y_true = []
        self._y_pred = []
        self._per_class_res = defaultdict(list) if self.cfg.TEST.PER_CLASS_RESULT else None

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add scores (B, C) and labels (B,)."""
        # To read numbers back at each batch would make a GPU wait.
        self._waiting.append((mo.detach().argmax(dim=1), gt.detach()))

    def _count_waiting(self) -> None:
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

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return the metrics, in percent. Macro F1 is over the classes that occur among the labels."""
        total, correct = self._total, self._correct
        if total == 0:
            raise UserValueError("Nothing to evaluate: the split holds no items. Check DATASET.TARGET_DOMAINS.")
        counts = _confusion(self._y_true, self._y_pred)
        n_true, n_pred = counts.sum(1), counts.sum(0)
        f1 = 2 * counts.diagonal().double() / (n_true + n_pred).clamp(min=1)
        results = OrderedDict()
        results["accuracy"] = 100.0 * correct / total
        results["error_rate"] = 100.0 - results["accuracy"]
        results["macro_f1"] = 100.0 * float(f1[n_true > 0].mean())
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
            occurs = (n_true + n_pred) > 0
            counts = counts[occurs][:, occurs].double()
            matrix = counts / counts.sum(1, keepdim=True).clamp(min=1)
            fpath = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
            with atomic_write(fpath) as handle:
                torch.save(matrix.numpy(), handle)  # an array, as scikit-learn makes it
            print(f"Confusion matrix is saved to {fpath}")
        return results

    def _print_per_class(self) -> float:
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


def _confusion(true: list[int], pred: list[int]) -> torch.Tensor:
    """Count (C, C) items; rows are labels, columns predictions."""
    true, pred = torch.tensor(true), torch.tensor(pred)
    n_cls = int(max(true.max(), pred.max())) + 1
    return torch.bincount(true * n_cls + pred, minlength=n_cls * n_cls).view(n_cls, n_cls)
