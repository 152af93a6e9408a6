"""Facts of a CLIP beside its weights, and errors of the libraries that load it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER, Tokenizer


@dataclass(frozen=True)
class BackboneInfo:
    """Facts of a CLIP beside its weights; the defaults are OpenAI's.

    Attributes:
        pixel_mean, pixel_std: for each channel, of pixels between 0 and 1.
        interpolation: in the words of INPUT.INTERPOLATION.
        resize_mode: "shortest" (resize the shorter side, crop), "longest" (resize the longer side, pad) or "squash".
        image_architecture: how an image tower computes that is not one of OpenAI's ViTs.
        files: the files that the CLIP was read from.
    """

    family: str = "OpenAI"
    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    tokenizer: Tokenizer = CLIP_TOKENIZER
    image_architecture: str = ""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images are resized and normalised."""
        keys = ("pixel_mean", "pixel_std", "interpolation", "resize_mode", "fill_color")
        return {key: getattr(self, key) for key in keys}


@contextlib.contextmanager
def library_errors(name: str, package: str, task: str = "load it") -> Iterator[None]:
    """Turn errors of a package into a UserError: a line with the backbone's name, then the package's own words."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except ImportError as error:
        missing = error.name if error.name and error.name != "open_clip" else package
        raise UserError(f"Backbone {name} needs the package {missing}: pip install {missing}\n{error}") from error
    except Exception as error:  # of the package, the network, the disk
        raise UserError(f"Backbone {name}: {package} cannot {task}.\n{(str(error) or repr(error))[:1500]}") from error
