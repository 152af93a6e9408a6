"""Which epoch's model is chosen: the best on the validation splits of the source domains, never on the target's."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from yacs.config import CfgNode

from common.errors import UserError
from trainers.base.checkpoints import BEST, find_checkpoint


def check_validation(cfg: CfgNode, val_loader: Any) -> None:
    """Raise UserError where an epoch is to be chosen, and there is nothing to choose it by."""
    if cfg.TEST.FINAL_MODEL == "best_val" and val_loader is None:
        raise UserError(
            "TEST.FINAL_MODEL is best_val, but the source domains are too small for a validation split to choose "
            "an epoch by. Add images, or set TEST.FINAL_MODEL last_step."
        )


def chosen_by(test: CfgNode, split: str, metrics: Mapping[str, float], found: Mapping[str, Any]) -> float:
    """The metric that TEST.SELECT_BY names.

    Args:
        test: cfg.TEST.
        split: "val" or "test", for messages.
        metrics: what was measured, finite numbers by name.
        found: all that the evaluator returned.

    Raises:
        UserError: it is not there.
    """
    if test.SELECT_BY in metrics:
        return metrics[test.SELECT_BY]
    if test.SELECT_BY in found:
        raise UserError(
            f"TEST.SELECT_BY is {test.SELECT_BY!r}, which the evaluator {test.EVALUATOR} measures as "
            f"{found[test.SELECT_BY]} on the {split} split, no finite number to choose by; there are "
            f"{', '.join(metrics)}."
        )
    raise UserError(
        f"TEST.SELECT_BY is {test.SELECT_BY!r}, which the evaluator {test.EVALUATOR} does not measure; accepted: "
        f"{', '.join(metrics)}."
    )


def best_of(history: list[dict[str, Any]], metric: str) -> tuple[float, int | None]:
    """(value, epoch from 1) of the first epoch that is best by a metric; (-inf, None) where none counts."""
    values = {
        epoch: value
        for epoch, entry in enumerate(history, start=1)
        if (value := entry.get(f"val_{metric}")) is not None and entry.get("counts", True)
    }
    if not values:
        return -float("inf"), None
    best = max(values, key=values.__getitem__)  # the first of several
    return values[best], best


def how_chosen(folder: str | PathLike, network: str, epoch: int | None) -> str:
    """How the model in a run's folder was chosen, as results.json has it; `epoch`: which was named, or None."""
    if epoch is not None:
        return f"epoch {epoch}"
    return "best_val" if find_checkpoint(folder, network).name == BEST else "last_step"
