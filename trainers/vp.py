"""VP (Bahng et al., Exploring Visual Prompts for Adapting Large-Scale Models, 2022): learned pixels.

A patch or a frame is added to every image. Training draws the corner of a "random" patch for each batch. In evaluation
it is a function of seed and image.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UserError
from trainers.base.trainer import PromptTrainer
from trainers.config import PositiveInt, Precision, Section
from trainers.modules.templates import TEMPLATE


class VPKeys(Section, node="TRAINER.VP"):
    METHOD: Literal["random", "fix", "pad"] = "random"  # patch at a random corner; patch at the upper left; frame
    PROMPT_SIZE: PositiveInt = 10  # side of the patch or width of the frame in pixels
    PREC: Precision = "fp16"


class Patch(nn.Module):
    """A learned patch (1, 3, p, p), N(0, 1) at the start; called with its upper left corners (x, y), (B, 2)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.patch = nn.Parameter(torch.randn(1, 3, size, size))

    def forward(self, images: Tensor, corners: Sequence[Sequence[int]]) -> Tensor:
        """Images (B, 3, S, S) with the patch on them, at one corner for all or at a corner for each."""
        size, (height, width) = self.patch.shape[-1], images.shape[-2:]
        padded = [nn.functional.pad(self.patch, (x, width - size - x, y, height - size - y)) for x, y in corners]
        return images + torch.cat(padded)


class Frame(nn.Module):
    """A learned frame of width p around images of size S, N(0, 1) at the start."""

    def __init__(self, size: int, image_size: int) -> None:
        super().__init__()
        self.inner = inner = image_size - 2 * size
        self.pad_up = nn.Parameter(torch.randn(1, 3, size, image_size))
        self.pad_down = nn.Parameter(torch.randn(1, 3, size, image_size))
        self.pad_left = nn.Parameter(torch.randn(1, 3, inner, size))
        self.pad_right = nn.Parameter(torch.randn(1, 3, inner, size))

    def forward(self, images: Tensor, corners: Sequence[Sequence[int]]) -> Tensor:
        """Images (B, 3, S, S) with the frame on them, whatever the `corners` are."""
        hole = self.pad_left.new_zeros(1, 3, self.inner, self.inner)
        middle = torch.cat([self.pad_left, hole, self.pad_right], dim=3)
        return images + torch.cat([self.pad_up, middle, self.pad_down], dim=2)


@TRAINER_REGISTRY.register()
class VP(PromptTrainer):
    """Learns pixels that are added to all images, by cross-entropy with the fixed prompts' text features."""

    NODE = "VP"
    TEST_KEYS = ("METHOD",)
    NETWORK = "prompter"
    IMAGE_TOWER_DRAWS = True

    def build_prompt_model(self) -> None:
        size, image_size, pads = self.settings.PROMPT_SIZE, self.backbone.image_size, self.settings.METHOD == "pad"
        largest = (image_size - 1) // 2 if pads else image_size
        if size > largest:
            raise UserError(
                f"TRAINER.VP.PROMPT_SIZE is {size}, but {self.cfg.MODEL.BACKBONE.NAME} takes {image_size} x "
                f"{image_size} pixels. With TRAINER.VP.METHOD {self.settings.METHOD}, set it to 1 to {largest}."
            )
        self.model = self.register_network(self.NETWORK, Frame(size, image_size) if pads else Patch(size))
        self.fixed_features = self.encode_template(TEMPLATE)

    def image_tower(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Features (B, E). `indices` of the images seed their corners; None draws one corner for the batch."""
        return self.backbone.encode_image(self.model(images, self.corners(indices)))

    def corners(self, indices: Sequence[int] | None) -> list[list[int]]:
        """Upper left corners (x, y) of patches: one for each index, or one for the batch."""
        if self.settings.METHOD != "random":
            return [[0, 0]]
        end = max(1, self.backbone.image_size - self.settings.PROMPT_SIZE)
        if indices is None:
            return [torch.randint(end, (2,)).tolist()]
        seed = self.cfg.SEED % 2**32
        return [np.random.default_rng([seed, int(index)]).integers(end, size=2).tolist() for index in indices]

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.fixed_features

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        if "pad_up" in learned:
            return {"METHOD": "pad", "PROMPT_SIZE": learned["pad_up"].shape[-2]}
        return {"PROMPT_SIZE": learned["patch"].shape[-1]} if "patch" in learned else {}
