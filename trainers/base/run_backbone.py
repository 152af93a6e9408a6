"""The CLIP of a run: which it is, and whether method, settings and model are made for it."""

from os import PathLike

import torch
from yacs.config import CfgNode

from common.errors import UserError
from common.run.identity import read_identity
from trainers.config_check import check_settings
from trainers.methods import method_of
from trainers.modules.clip_backbone import Backbone, kept_backbone


def backbone_of_run(
    cfg: CfgNode, precision: str, device: torch.device, given: Backbone | None = None, done: bool = False
) -> Backbone:
    """The CLIP that a run adapts; of one that is loaded for it, what is worth knowing is told.

    Args:
        cfg: the run's.
        precision: that it computes in.
        device: that it computes on.
        given: the one that the config names, where it is there already.
        done: whether it is that of a run that was done; then its values are taken as they are.

    Raises:
        UserError: it cannot be had, or the method or a setting is not made for it.
    """
    named = cfg.MODEL.BACKBONE
    backbone = given or kept_backbone(named.NAME, device, precision, named.PATH)
    if given is None and not done:
        check_settings(cfg, backbone.text.tokenizer)
    if method := method_of(cfg.TRAINER.NAME):
        method.check_backbone(named.NAME, backbone.is_vit)
    if given is None and cfg.VERBOSE:
        for note in backbone.notes:
            print(note)
        if not backbone.text.can_be_cut:
            print(
                f"Note: the text tower of {named.NAME} looks at all positions of a prompt, so each is encoded over all "
                f"{backbone.text.context_length}, and what prompts begin with is not shared. That takes longer."
            )
    return backbone


def check_trained_with(folder: str | PathLike, name: str, backbone: Backbone) -> None:
    """Raise UserError where the model in a run's folder is for other weights than a backbone's.

    Args:
        folder: the run's.
        name: what the config calls the backbone.
        backbone: it.
    """
    if read_identity(folder).get("backbone") not in (None, backbone.sha256):
        raise UserError(
            f"The model in {folder} was trained with another CLIP than {name}, whose weights differ. Name the backbone "
            "that it was trained with."
        )
