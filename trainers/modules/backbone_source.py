"""What a source of CLIPs is, and what it gives: a model, and what the model's weights do not say."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from trainers.modules.tokenizers import CLIP_TOKENIZER, Tokenizer

# Mean and standard deviation of the pixels, by channel, that OpenAI trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_INTERPOLATION = "bicubic"
# What is known of how images are made.
OF_IMAGES = ("pixel_mean", "pixel_std", "interpolation", "resize_mode", "fill_color")
# Images become squares: the shorter side is resized and the rest cut, the longer side is resized and the rest filled,
# or both sides are resized.
RESIZE_MODES = ("shortest", "longest", "squash")


@dataclass(frozen=True)
class Facts:
    """What a CLIP's weights do not say of it; the defaults are OpenAI's.

    Attributes:
        family: whose CLIP it is, for results.
        pixel_mean, pixel_std: by channel, that its images are normalised with.
        interpolation: of its images' resize, as INPUT.INTERPOLATION calls it.
        resize_mode: one of RESIZE_MODES, in open_clip's words.
        fill_color: of the pixels that "longest" adds.
        tokenizer: of its text tower.
        computes: all by which its towers compute something else of the same weights than OpenAI's, as one text, which
            is a part of its fingerprints; "": nothing.
    """

    family: str = "OpenAI"
    pixel_mean: tuple[float, ...] = CLIP_MEAN
    pixel_std: tuple[float, ...] = CLIP_STD
    interpolation: str = CLIP_INTERPOLATION
    resize_mode: str = RESIZE_MODES[0]
    fill_color: int = 0
    tokenizer: Tokenizer = CLIP_TOKENIZER
    computes: str = ""

    @property
    def distinguishing(self) -> str:
        """All by which features are others than OpenAI's of the same images, texts and weights: text; "": nothing."""
        openais = Facts()
        made = [f"{key} {getattr(self, key)}" for key in OF_IMAGES if getattr(self, key) != getattr(openais, key)]
        if self.tokenizer is not CLIP_TOKENIZER:
            made.append(f"tokenizer {self.tokenizer.sha256()}")
        return "; ".join([*([self.computes] if self.computes else []), *made])


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a source gives.

    Attributes:
        model: on the CPU, in single precision: a `clip.model.CLIP` (see `clip_model.build_clip`), or another with
            `visual`, which makes features (B, E) of images (B, 3, H, H), a text tower that `TextTower.of` takes,
            `logit_scale` and maybe `logit_bias`.
        facts: that go with it.
        where: the file or folder it is from, for messages.
        files: all that it was read from, or could have been: what changes with them.
        notes: lines on what was taken where nothing said it.
    """

    model: Any
    facts: Facts
    where: str
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


class Source(ABC):
    """CLIPs of one kind, by names that begin with its prefix.

    Attributes:
        prefix: of its names.
        accepts: its names, for messages.
    """

    prefix: str
    accepts: str

    def rest(self, name: str) -> str:
        """A name without the prefix."""
        return name.removeprefix(self.prefix)

    @abstractmethod
    def label(self, name: str) -> str:
        """What folders and tables call a backbone: no slash in it; of any name, whether it is there or not."""

    @abstractmethod
    def check(self, name: str) -> None:
        """Raise UserError where there is no such backbone, as far as that can be told without reading weights."""

    @abstractmethod
    def load(self, name: str, root: str | PathLike) -> Loaded:
        """Read a backbone, and download it first where it has to be.

        Args:
            name: with the prefix.
            root: folder for downloads (MODEL.BACKBONE.PATH).

        Raises:
            UserError: it cannot be had or used.
        """

    @abstractmethod
    def has_vit(self, name: str) -> bool:
        """Whether its image tower is a ViT that prompts can be put into (see `PromptedViT`).

        Raises:
            UserError: it cannot be used.
        """

    def is_here(self, name: str, root: str | PathLike) -> bool:
        """Whether a backbone can be read without a download, to `root`, as far as names tell."""
        return Path(self.rest(name)).expanduser().exists()

    def resolved(self, name: str) -> str:
        """The same backbone's name in any working folder: paths in it are whole."""
        return name
