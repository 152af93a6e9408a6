"""The registry of evaluators."""

from dassl.utils.registry import Registry, check_availability  # noqa: F401 (clients take both from here)

EVALUATOR_REGISTRY = Registry("EVALUATOR", "Set it by TEST.EVALUATOR.")


def build_evaluator(cfg, **kwargs):
    """Build the evaluator named by ``cfg.TEST.EVALUATOR``.

    Args:
        cfg: the configuration.
        **kwargs: passed on to the evaluator, e.g. ``lab2cname``.

    Raises:
        RegistryError: there is no evaluator of that name.
    """
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return evaluator(cfg, **kwargs)
