"""A linear classifier on CLIP's frozen image features (Radford et al., 2021, Sec. 3.2): no text, no prompts."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY, TrainerX
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.errors import UserError
from common.interruption import check_interruption
from trainers.base.trainer import STEP_KEYS, PromptTrainer
from trainers.config import NonNegativeInt, PositiveFloat, Precision, Section
from trainers.modules.tensor_files import require_finite

MAX_ITERATIONS = 1000  # as in CLIP's paper
TOLERANCE = 1e-6  # of the gradient; with scikit-learn's own, weak penalties would not be fitted at all


class LinearProbeKeys(Section, node="TRAINER.LINEAR_PROBE"):
    PREC: Precision = "fp16"
    # Inverse strengths of the L2 penalty, as in scikit-learn's LogisticRegression; validation selects one.
    C: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        *(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    )
    HALVINGS: NonNegativeInt = 0  # how often to try the values of C half way from the best to its neighbours
    NORMALISED: bool = True  # L2-normalise features
    AUGMENTED: bool = False  # fit one augmented view of each training image, not the image itself


class Probe(nn.Linear):
    """Image features (B, E) -> logits (B, C); its state_dict also holds class names and the selected C."""

    def __init__(self, feat_dim: int, classnames: Sequence[str]) -> None:
        super().__init__(feat_dim, len(classnames))
        self.requires_grad_(False)
        self.classnames = list(classnames)
        self.c: float | None = None

    def get_extra_state(self) -> dict[str, Any]:
        return {"classnames": self.classnames, "C": self.c}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Raise UserError if the state is for other classes."""
        if state["classnames"] != self.classnames:
            raise UserError(
                "A linear probe knows only the classes that it was trained on: this one "
                f"{', '.join(state['classnames'])}, not {', '.join(self.classnames)}. Train one on these, or use a "
                "method with class names as its input (ZeroshotCLIP, CoOp, CoCoOp, SPG)."
            )
        self.c = state["C"]


@TRAINER_REGISTRY.register()
class LinearProbe(PromptTrainer):
    """Logistic regression on the train splits of the source domains; their val splits select C.

    For Dassl's loop, this is a training with one epoch.
    """

    SETTINGS = "LINEAR_PROBE"
    UNREAD = (*PromptTrainer.UNREAD, *STEP_KEYS, "TEST.MEMORY_MB")
    FINAL_MODELS = ("best_val",)  # validation selects C
    NETWORK = "linear_probe"
    TEST_KEYS = ("NORMALISED",)
    MINUS_INFINITY = ("bias",)

    def build_prompt_model(self) -> None:
        probe = Probe(self.backbone.feature_size, self.dm.dataset.classnames)
        self.model = probe.to(self.device)
        self.register_model(self.NETWORK, self.model)
        self.max_epoch = 1

    @property
    def normalises_features(self) -> bool:
        return self.settings.NORMALISED

    def build_view_loader(self, loader: DataLoader) -> DataLoader:
        """Without TRAIN_VIEWS: each image is used once."""
        return loader

    def run_epoch(self) -> None:
        """Fit a classifier for each C, and take the best on val; the lowest loss decides between equal accuracies."""
        with self.threads.all():
            _, self.model.c, (weight, bias) = max(self.fit_all(), key=lambda fitted: fitted[0])
        self.model.weight.copy_(weight)
        self.model.bias.copy_(bias)
        if len(self.settings.C) > 1:
            print(f"C {self.model.c:g} is the best on the source domains' val splits")

    def fit_all(self) -> Iterator[tuple[tuple[float, float], float, tuple[Tensor, Tensor]]]:
        """Yield (accuracy on val in percent, -loss on val), C, (weight (C, E), bias (C,)) of each classifier."""
        x, y = np.array(self.training_features(), np.float64), _labels(self.dm.dataset.train_x)
        val_x = torch.from_numpy(np.array(self.image_features.of_split(self.val_loader, "val"), np.float64))
        val_y = torch.from_numpy(_labels(self.dm.dataset.val))
        if len(set(y)) < 2:
            raise UserError(
                "The training images of the source domains are all of one class; a linear probe needs at least two."
            )
        scores: dict[float, tuple[float, float]] = {}
        for c, regression in fits(x, y, self.grid(scores)):
            weight, bias = linear_map(regression, self.num_classes)
            fix = "Leave this C out of TRAINER.LINEAR_PROBE.C."
            require_finite({"weight": weight, "bias": bias}, f"The fit for C {c:g}", fix, self.MINUS_INFINITY)
            logits = F.linear(val_x, weight, bias)
            accuracy = 100 * (logits.argmax(dim=-1) == val_y).double().mean().item()
            scores[c] = accuracy, -F.cross_entropy(logits, val_y).item()
            iterations = f"{regression.n_iter_.max()} of at most {MAX_ITERATIONS} iterations"
            print(f"C {c:g}: {accuracy:.2f} % on val, loss {-scores[c][1]:.3f}, {iterations}")
            yield scores[c], c, (weight, bias)

    def grid(self, scores: dict[float, tuple[float, float]]) -> Iterator[float]:
        """The values of C to fit: the config's, then HALVINGS times the midpoints of the best one and its neighbours.

        `scores` has (accuracy, -loss) of each C that was fitted.
        """
        yield from sorted(set(self.settings.C))
        for _ in range(self.settings.HALVINGS):
            tried = sorted(scores)
            best = tried.index(max(tried, key=scores.__getitem__))
            for neighbour in tried[max(0, best - 1) : best] + tried[best + 1 : best + 2]:
                yield float(np.sqrt(tried[best] * neighbour))

    def training_features(self) -> np.ndarray:
        """Features (N, E) of the train splits' images, in their order."""
        if self.settings.AUGMENTED:
            batch_size = self.cfg.DATALOADER.TEST.BATCH_SIZE
            return self.image_features.of_augmented(self.train_loader_x.dataset, batch_size, "train, augmented")
        return self.image_features.of_split(self.source_loader, "train")

    def predict(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.model(features)

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        TrainerX.load_model(self, directory, epoch=epoch)
        fix = "The training that wrote it broke: use another epoch (--load-epoch) or run."
        require_finite(self.model.state_dict(), f"{self.NETWORK} in {directory}", fix, self.MINUS_INFINITY)


def _labels(items):
    return np.array([item.label for item in items])


def fits(x: np.ndarray, y: np.ndarray, grid: Iterable[float]) -> Iterator[tuple[float, LogisticRegression]]:
    """Fit labels y (N,) to features x (N, E) for each C of a rising grid; yields C and the regression."""
    # From strong to weak penalties, each fit starts from the solution before.
    regression = LogisticRegression(solver="lbfgs", max_iter=MAX_ITERATIONS, tol=TOLERANCE, warm_start=True)
    for c in grid:
        check_interruption()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.set_params(C=c).fit(x, y)
        yield c, regression


def linear_map(regression: LogisticRegression, n_classes: int) -> tuple[Tensor, Tensor]:
    """Weight (C, E) and bias (C,) of a fitted regression; a class without training images gets probability 0."""
    coef, intercept = regression.coef_, regression.intercept_
    if len(coef) == 1:  # scikit-learn has one row for two classes
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight, bias = np.zeros((n_classes, coef.shape[1])), np.full(n_classes, -np.inf)
    weight[regression.classes_], bias[regression.classes_] = coef, intercept
    return torch.from_numpy(weight), torch.from_numpy(bias)
