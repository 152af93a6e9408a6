"""Metric and evaluator."""

import numpy as np
import pytest
import torch
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from dassl.metrics import compute_accuracy, compute_distance_matrix
from dassl.utils import UserError
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score


def batches(seed, n_cls=5, n=157, labels=None):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, n_cls, generator=generator)
    gt = torch.randint(labels or n_cls, (n,), generator=generator)
    scores[torch.arange(n), gt] += 1.0
    return scores, gt


def run(cfg, scores, gt, **kwargs):
    evaluator = Classification(cfg, **kwargs)
    for start in range(0, len(gt), 32):
        evaluator.process(scores[start : start + 32], gt[start : start + 32])
    return evaluator.evaluate()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labels", [None, 3])  # 3: classes that are predicted but never true
def test_numbers_are_those_of_sklearn(cfg, seed, labels):
    scores, gt = batches(seed, labels=labels)
    pred = scores.argmax(1)
    results = run(cfg, scores, gt)
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(100 * accuracy_score(gt, pred))
    assert results["error_rate"] == pytest.approx(100 - results["accuracy"])
    f1 = f1_score(gt, pred, average="macro", labels=np.unique(gt))
    assert results["macro_f1"] == pytest.approx(100 * f1)
    assert all(type(value) is float for value in results.values())


def test_lines_are_those_that_are_parsed(cfg, capsys):
    gt = torch.arange(2000) % 2
    pred = gt.clone()
    pred[:145] = 1 - pred[:145]
    run(cfg, torch.eye(2)[pred], gt)
    assert capsys.readouterr().out == (
        "=> result\n* total: 2,000\n* correct: 1,855\n* accuracy: 92.8%\n* error: 7.2%\n* macro_f1: 92.7%\n"
    )


def test_per_class_and_confusion_matrix(cfg, capsys):
    cfg.TEST.PER_CLASS_RESULT = cfg.TEST.COMPUTE_CMAT = True
    scores, gt = batches(0)
    pred = scores.argmax(1)
    results = run(cfg, scores, gt, lab2cname=dict(enumerate("abcde")))
    expected = confusion_matrix(gt, pred, normalize="true")
    assert results["perclass_accuracy"] == pytest.approx(100 * expected.diagonal().mean())
    matrix = torch.load(f"{cfg.OUTPUT_DIR}/cmat.pt", weights_only=False)
    assert type(matrix) is np.ndarray
    np.testing.assert_allclose(matrix, expected)
    out = capsys.readouterr().out
    n = int((gt == 1).sum())
    correct = int(((gt == 1) & (pred == 1)).sum())
    assert f"* class: 1 (b)\ttotal: {n}\tcorrect: {correct}\tacc: {100 * correct / n:.1f}%\n" in out
    assert f"* average: {results['perclass_accuracy']:.1f}%" in out
    with pytest.raises(AssertionError, match="lab2cname"):
        Classification(cfg)


def test_reset_forgets(cfg):
    evaluator = build_evaluator(cfg, lab2cname={})
    scores, gt = batches(0)
    evaluator.process(scores, gt)
    evaluator.reset()
    with pytest.raises(UserError, match="Nothing to evaluate"):
        evaluator.evaluate()
    evaluator.process(torch.eye(3, dtype=torch.float16), torch.arange(3))
    assert evaluator.evaluate()["accuracy"] == 100.0


def test_evaluators_are_named(cfg):
    @EVALUATOR_REGISTRY.register(force=True)
    class Mine(EvaluatorBase):
        pass

    cfg.TEST.EVALUATOR = "Mine"
    assert isinstance(build_evaluator(cfg), Mine)
    cfg.TEST.EVALUATOR = "classification"
    with pytest.raises(UserError, match=r"Unknown evaluator: 'classification'.*Did you mean Classification"):
        build_evaluator(cfg)


def test_compute_accuracy():
    output = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    target = torch.tensor([1, 1, 0, 0])
    top1, top2, top3 = compute_accuracy(output, target, topk=(1, 2, 3))
    assert [x.shape for x in (top1, top2, top3)] == [(1,)] * 3
    assert [x.item() for x in (top1, top2, top3)] == [50.0, 75.0, 100.0]
    assert compute_accuracy((output, None), target)[0].item() == 50.0


def test_the_attributes_of_dassls_evaluator(cfg):
    cfg.TEST.PER_CLASS_RESULT = True
    evaluator = Classification(cfg, lab2cname={0: "a", 1: "b"})
    assert (evaluator._correct, evaluator._total, evaluator._y_true, evaluator._y_pred) == (0, 0, [], [])
    evaluator.process(torch.eye(2)[[0, 1, 1]], torch.tensor([0, 1, 0]))
    assert (evaluator._correct, evaluator._total) == (2, 3)
    assert (evaluator._y_true, evaluator._y_pred) == ([0, 1, 0], [0, 1, 1])
    assert evaluator._per_class_res == {0: [1, 0], 1: [1]}
    evaluator.process(torch.eye(2)[[1]], torch.tensor([1]))
    assert (evaluator._correct, evaluator._total) == (3, 4)
    evaluator.reset()
    assert (evaluator._total, dict(evaluator._per_class_res)) == (0, {})
    cfg.TEST.PER_CLASS_RESULT = False
    assert Classification(cfg)._per_class_res is None


def test_a_subclass_may_count_by_itself_and_leave_the_rest_to_us(cfg):
    class WithoutClassTwo(Classification):
        def process(self, mo, gt):
            pred = mo.max(1)[1]
            keep = gt != 2
            self._correct += int((pred[keep] == gt[keep]).sum())
            self._total += int(keep.sum())
            self._y_true.extend(gt[keep].tolist())
            self._y_pred.extend(pred[keep].tolist())

    class WithABonus(Classification):
        def process(self, mo, gt):
            super().process(mo, gt)
            self._correct += 1

        def reset(self):
            self._correct = self._total = 0
            self._y_true, self._y_pred = [], []

    scores, gt = torch.eye(3), torch.tensor([0, 0, 2])
    assert run(cfg, scores, gt) == run(cfg, scores, gt)
    evaluator = WithoutClassTwo(cfg)
    evaluator.process(scores, gt)
    assert evaluator.evaluate()["accuracy"] == 50.0
    evaluator = WithABonus(cfg)
    for _ in range(2):
        evaluator.reset()
        evaluator.process(scores, gt)
        assert evaluator.evaluate()["accuracy"] == 100.0


def test_distances():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -1.0]])
    assert compute_distance_matrix(x, y).tolist() == [[0, 20, 2], [5, 13, 9]]
    cosine = compute_distance_matrix(x, y, metric="cosine")
    torch.testing.assert_close(cosine, torch.tensor([[0.0, 0.4, 1.0], [1.0, 0.2, 2.0]]))
    with pytest.raises(ValueError, match="'l1'. Accepted: euclidean, cosine"):
        compute_distance_matrix(x, y, "l1")
    for wrong in (x.tolist(), x[0], torch.ones(2, 3)):
        with pytest.raises(AssertionError):
            compute_distance_matrix(x, wrong)
