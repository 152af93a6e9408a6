"""A linear classifier on CLIP's frozen image features (Radford et al., 2021, Sec. 3.2): no text, no prompts."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from dassl.data.data_manager import build_data_loader
from dassl.engine import TRAINER_REGISTRY
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

from common.errors import UserError
from common.interruption import check_interruption
from common.progress import progress
from trainers.base.trainer import FrozenClipTrainer

MAX_ITERATIONS = 1000  # as in CLIP's paper
TOLERANCE = 1e-6  # of the gradient


class Probe(nn.Linear):
    """Image features (B, E) -> logits (B, C); its state_dict holds the class names, too."""

    def __init__(self, feat_dim, classnames):
        super().__init__(feat_dim, len(classnames))
        self.requires_grad_(False)
        self.classnames, self.c = list(classnames), None

    def get_extra_state(self):
        """The class names, and the C that was chosen."""
        return {"classnames": self.classnames, "C": self.c}

    def set_extra_state(self, state):
        """Raise UserError if the state is that of other classes."""
        if state["classnames"] != self.classnames:
            raise UserError(
                "A linear probe knows only the classes that it was trained on: this one "
                f"{', '.join(state['classnames'])}, not {', '.join(self.classnames)}. Train one on these, or use a "
                "method that goes by class names (ZeroshotCLIP, CoOp, CoCoOp, SPG)."
            )
        self.c = state["C"]


@TRAINER_REGISTRY.register()
class LinearProbe(FrozenClipTrainer):
    """Logistic regression on the train splits of the source domains; its C is the best on their val splits.

    Images pass through the test transform, once. To Dassl's loop this is a training of one epoch.
    """

    SETTINGS = "LINEAR_PROBE"

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        grid = cfg.TRAINER.LINEAR_PROBE.C
        if not grid or not all(isinstance(c, (int, float)) and 0 < c < float("inf") for c in grid):
            raise UserError(
                f'TRAINER.LINEAR_PROBE.C is {tuple(grid)}; accepted: one or more positive numbers, "(0.1, 1, 10)".'
            )
        if cfg.TEST.FINAL_MODEL != "best_val":
            raise UserError(
                f"TEST.FINAL_MODEL is {cfg.TEST.FINAL_MODEL}, but a linear probe has no epochs: its C is chosen on the "
                "source domains' val splits. Set it to best_val, as configs/trainers/LinearProbe/default.yaml does."
            )

    def build_prompt_model(self):
        probe = Probe(self.backbone.feature_size, self.dm.dataset.classnames)
        self.model = probe.to(self.device)
        self.register_model("linear_probe", self.model)

    def build_view_loader(self, loader):
        """Nothing is augmented, so TRAINER.FEATURES.TRAIN_VIEWS does not matter."""
        return loader

    def train(self):
        self.max_epoch = 1
        super().train()

    def run_epoch(self):
        """Fit a classifier for each C and keep the one that is best on val; of several, that with the lowest loss."""
        with self.threads.all():
            best = self.fit_all()
        (accuracy, _), self.model.c, (weight, bias) = best
        self.model.weight.copy_(weight)
        self.model.bias.copy_(bias)
        print(f"C {self.model.c:g} is the best on the source domains' val splits ({accuracy:.2f} %)")

    def fit_all(self):
        """The best classifier: (accuracy on val in percent, -loss there), C, (weight (C, E), bias (C,))."""
        train, val = self.dm.dataset.train_x, self.dm.dataset.val
        loader = build_data_loader(
            self.cfg,
            data_source=train,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=self.val_loader.dataset.transform,
            is_train=False,
        )
        x, y = np.array(self.image_features.of_split(loader, "train"), np.float64), labels_of(train)
        val_x = torch.from_numpy(np.array(self.image_features.of_split(self.val_loader, "val"), np.float64))
        val_y = torch.from_numpy(labels_of(val))
        if len(set(y)) < 2:
            raise UserError(
                "The training images of the source domains are all of one class; a linear probe needs at least two."
            )
        best = None
        grid = progress(sorted(set(self.settings.C)), description="Fitting", unit="C")
        for c, regression in fits(x, y, grid):
            weight, bias = linear_map(regression, self.num_classes)
            logits = F.linear(val_x, weight, bias)
            accuracy = 100 * (logits.argmax(dim=-1) == val_y).double().mean().item()
            score = accuracy, -F.cross_entropy(logits, val_y).item()
            ended = "" if regression.n_iter_.max() < MAX_ITERATIONS else f", stopped after {MAX_ITERATIONS} iterations"
            print(f"C {c:g}: {accuracy:.2f} % on val, loss {-score[1]:.3f}{ended}")
            if best is None or score > best[0]:
                best = score, c, (weight, bias)
        return best

    def predict(self, features, indices):
        return self.model(features)


def labels_of(items):
    """Labels (N,) of a split's items."""
    return np.array([item.label for item in items])


def fits(x, y, grid):
    """Fit labels y (N,) to features x (N, E) for each C of a rising grid; yields C and the one regression, fitted."""
    # From strong to weak penalties, each from the solution before. With scikit-learn's own tolerance weak penalties,
    # whose gradients are small, would not be fitted at all.
    regression = LogisticRegression(solver="lbfgs", max_iter=MAX_ITERATIONS, tol=TOLERANCE, warm_start=True)
    for c in grid:
        check_interruption()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.set_params(C=c).fit(x, y)
        yield c, regression


def linear_map(regression, n_classes):
    """Weight (C, E) and bias (C,) whose softmax is a fitted regression's; a class without images gets probability 0."""
    coef, intercept = regression.coef_, regression.intercept_
    if len(coef) == 1:  # of two classes, scikit-learn keeps one row
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight, bias = np.zeros((n_classes, coef.shape[1])), np.full(n_classes, -np.inf)
    weight[regression.classes_], bias[regression.classes_] = coef, intercept
    return torch.from_numpy(weight), torch.from_numpy(bias)
