"""Trainers: the training loop and its hooks."""

from dassl.left_out import missing_attribute

from .build import TRAINER_REGISTRY, build_trainer
from .trainer import SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU


def __getattr__(name: str) -> object:
    raise missing_attribute(__name__, name)
