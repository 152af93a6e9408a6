from typing import Any

from yacs.config import CfgNode

from dassl.utils.registry import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR", "Set it by TEST.EVALUATOR.")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Build the evaluator TEST.EVALUATOR with ``kwargs``, ``lab2cname`` for instance."""
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return evaluator(cfg, **kwargs)
