"""Evaluators: they collect a model's outputs and compute metrics."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .evaluator import Classification, EvaluatorBase
