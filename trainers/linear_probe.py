"""A linear classifier on CLIP's frozen image features (Radford et al., 2021, Sec. 3.2): no text, no prompts."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.errors import UserError
from common.interruption import check_interruption
from trainers.base.trainer import STEP_KEYS, PromptTrainer
from trainers.config import NonNegativeInt, PositiveFloat, Precision, Section
from trainers.modules.tensor_files import require_finite

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# As many iterations as in CLIP's paper. With scikit-learn's own tolerance, weak penalties would not be fitted at all.
SOLVER = {"solver": "lbfgs", "max_iter": 1000, "tol": 1e-6, "warm_start": True}


class LinearProbeKeys(Section, node="TRAINER.LINEAR_PROBE"):
    PREC: Precision = "fp16"
    # Inverse strengths of the L2 penalty, as in scikit-learn's LogisticRegression; validation selects one.
    C: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
        *(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    )
    HALVINGS: NonNegativeInt = 0  # how often to try the values of C half way from the best to its neighbours
    NORMALISED: bool = True  # L2-normalise features
    AUGMENTED: bool = False  # fit one augmented view of each training image, not the image itself


@TRAINER_REGISTRY.register()
class LinearProbe(PromptTrainer):
    """Logistic regression on the train splits of the source domains; their val splits select C.

    For Dassl's loop, this is a training with one epoch.
    """

    NODE = "LINEAR_PROBE"
    UNREAD_KEYS = (*PromptTrainer.UNREAD_KEYS, *STEP_KEYS, "TEST.MEMORY_MB")
    FINAL_MODELS = ("best_val",)  # validation selects C
    NETWORK = "linear_probe"
    TEST_KEYS = ("NORMALISED",)
    NEG_INF_TENSORS = ("bias",)

    def build_prompt_model(self) -> None:
        probe = nn.Linear(self.backbone.feature_size, self.num_classes)
        self.model = probe.requires_grad_(False).to(self.device)
        self.register_model(self.NETWORK, self.model)
        self.max_epoch = 1

    @property
    def normalises_features(self) -> bool:
        return self.settings.NORMALISED

    def build_view_loader(self, loader: DataLoader) -> DataLoader:
        """Without TRAIN_VIEWS: each image is used once."""
        return loader

    def run_epoch(self) -> None:
        """Fit classifiers, and take the best on val; the lowest loss decides between equal accuracies."""
        scores, classifiers = self.fit_all()
        best = max(scores, key=scores.__getitem__)
        weight, bias = classifiers[best]
        self.model.weight.copy_(weight)
        self.model.bias.copy_(bias)
        if len(self.settings.C) > 1:
            print(f"C {best:g} is the best on the source domains' val splits")

    def fit_all(self) -> tuple[dict[float, tuple[float, float]], dict[float, tuple[Tensor, Tensor]]]:
        """Fit each C of the config, then HALVINGS times the midpoints of the best C and its neighbours.

        Returns (accuracy in percent, -loss) on val, and weight (C, E) and bias (C,), of each C.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        x, y = np.array(self.training_features(), np.float64), _labels(self.dm.dataset.train_x)
        if len(set(y)) < 2:
            raise UserError(
                "The training images of the source domains are all of one class, and a linear probe needs two or more. "
                "Add images of another class, or another source domain."
            )
        val_x = torch.from_numpy(np.array(self.image_features.of_split(self.val_loader, "val"), np.float64))
        val_y = torch.from_numpy(_labels(self.dm.dataset.val))
        regression = LogisticRegression(**SOLVER)
        scores: dict[float, tuple[float, float]] = {}
        classifiers: dict[float, tuple[Tensor, Tensor]] = {}
        grid = sorted(set(self.settings.C))  # from strong to weak penalties: each fit starts from the solution before
        for _ in range(1 + self.settings.HALVINGS):
            for c in grid:
                check_interruption()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    regression.set_params(C=c).fit(x, y)
                classifiers[c] = weight, bias = linear_map(regression, self.num_classes)
                fix = "Leave this C out of TRAINER.LINEAR_PROBE.C."
                require_finite({"weight": weight, "bias": bias}, f"The fit for C {c:g}", fix, self.NEG_INF_TENSORS)
                logits = F.linear(val_x, weight, bias)
                accuracy = 100 * (logits.argmax(dim=-1) == val_y).double().mean().item()
                loss = F.cross_entropy(logits, val_y).item()
                scores[c] = accuracy, -loss
                iterations = f"{regression.n_iter_.max()} of at most {SOLVER['max_iter']} iterations"
                print(f"C {c:g}: {accuracy:.2f} % on val, loss {loss:.3f}, {iterations}")
            tried = sorted(scores)
            best = tried.index(max(tried, key=scores.__getitem__))
            neighbours = tried[max(0, best - 1) : best] + tried[best + 1 : best + 2]
            grid = [float(np.sqrt(tried[best] * neighbour)) for neighbour in neighbours]
        return scores, classifiers

    def training_features(self) -> np.ndarray:
        """Features (N, E) of the train splits' images, in their order."""
        if self.settings.AUGMENTED:
            batch_size = self.cfg.DATALOADER.TEST.BATCH_SIZE
            return self.image_features.of_augmented(self.train_loader_x.dataset, batch_size, "train, augmented")
        return self.image_features.of_split(self.source_loader, "train")

    def predict(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.model(features)

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        return {"CSC": True}  # each class has its own weights


def _labels(items):
    return np.array([item.label for item in items])


def linear_map(regression: "LogisticRegression", n_classes: int) -> tuple[Tensor, Tensor]:
    """Weight (C, E) and bias (C,) of a fitted regression; a class without training images gets probability 0."""
    coef, intercept = regression.coef_, regression.intercept_
    if len(coef) == 1:  # scikit-learn has one row for two classes
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight, bias = np.zeros((n_classes, coef.shape[1])), np.full(n_classes, -np.inf)
    weight[regression.classes_], bias[regression.classes_] = coef, intercept
    return torch.from_numpy(weight), torch.from_numpy(bias)
