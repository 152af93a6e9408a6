"""Files, images, seeds and facts about the machine."""

import contextlib
import json
import mmap
import os
import os.path as osp
import platform
import random
import shlex
import tempfile
import warnings
from collections.abc import Iterator
from os import PathLike
from typing import IO, Any

import numpy as np
from PIL import Image

from .errors import UserFileNotFoundError, UserOSError, UserValueError
from .registry import check_availability  # noqa: F401 (clients import it from here)

# Pillow warns of an attack at half of the pixels that it refuses. A data set's large images are intended.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

MAX_SIDE_RATIO = 1000  # an image of this ratio, resized to 224 pixels by its shorter side, takes 150 MB

# One byte a warning, in memory shared with loader workers: the first process that meets such an image warns for all.
_WARNINGS = ("16 bits", "range", "black", "transparency")
_warned = mmap.mmap(-1, len(_WARNINGS))


def mkdir_if_missing(dirname: str | PathLike) -> None:
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str | PathLike) -> bool:
    """Return whether ``fpath`` is a file; warn if it is not."""
    isfile = osp.isfile(fpath)
    if not isfile:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return isfile


def listdir_nohidden(path: str | PathLike, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not start with a dot."""
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        message = f"Folder not found: {path}. Check DATASET.ROOT, and that the dataset is unpacked."
        raise UserFileNotFoundError(message) from None
    return sorted(names) if sort else names


@contextlib.contextmanager
def atomic_write(fpath: str | PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file that replaces ``fpath`` when the block ends without error. ``"w"`` is UTF-8 text."""
    folder, name = osp.split(osp.abspath(fpath))
    mkdir_if_missing(folder)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        # mkstemp makes a file that only its owner can read; give it the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, fpath)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_json(fpath: str | PathLike) -> Any:
    try:
        with open(fpath, "rb") as handle:
            return json.loads(handle.read())  # bytes may begin with a byte order mark
    except FileNotFoundError:
        raise UserFileNotFoundError(f"File not found: {fpath}") from None
    except ValueError as error:
        raise UserValueError(f"{fpath} is not a JSON file: {error}. Download or make it again.") from error


def write_json(obj: Any, fpath: str | PathLike) -> None:
    with atomic_write(fpath, "w") as handle:
        json.dump(obj, handle, indent=4, separators=(",", ": "))


class _UnknownRange(Exception):
    pass


def read_image(path: str | PathLike) -> Image.Image:
    """Read an image file of any mode as RGB, without transparency; of an animation the first picture.

    Grey levels of 16 bits are scaled to 8, as in the PNG format. No format says which float or 32-bit integer is white:
    floats up to 1 are scaled by 255, levels up to 255 are 8 bits, integers up to 65,535 are 16 bits, others an error.

    Raises:
        UserFileNotFoundError: no such file.
        UserOSError: damaged, too large, or of unknown grey levels.
    """
    try:
        with Image.open(path) as image:
            if max(image.size) > MAX_SIDE_RATIO * min(image.size):
                raise UserOSError(
                    f"The image {path} has {image.size[0]:,} x {image.size[1]:,} pixels, and to resize its shorter "
                    "side takes too much memory. Crop it, or remove it."
                )
            image.load()
            return _to_rgb(image)
    except UserOSError:
        raise
    except FileNotFoundError:
        raise UserFileNotFoundError(
            f"Image not found: {path}. Check DATASET.ROOT, and that the dataset is unpacked completely."
        ) from None
    except Image.DecompressionBombError as error:
        raise UserOSError(
            f"The image {path} is larger than the {2 * Image.MAX_IMAGE_PIXELS:,} pixels that Pillow decodes. "
            f"Scale it down, e.g. with ImageMagick: mogrify -resize 4096x4096 {shlex.quote(str(path))}"
        ) from error
    except _UnknownRange as error:
        raise UserOSError(
            f"Cannot read the image {path}: {error}. Save it with 8 bits for each channel, or remove it."
        ) from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error ...
        raise UserOSError(
            f"Cannot read the image {path}: {type(error).__name__}: {error}. Download it again, or remove it."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey_levels(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        name, image = image.filename, image.convert("RGBA")
        *colours, alpha = image.getextrema()
        if alpha[0] < alpha[1] and all(low == high for low, high in colours):
            _warn_once(
                "transparency",
                f"The picture in {name} is in its transparency alone, which is dropped. All such images are read as "
                "one colour",
            )
    return image.convert("RGB")


def _grey_levels(image: Image.Image) -> np.ndarray:
    """Scale a grey image of more than 8 bits to levels (H, W) of 8 bits."""
    levels = np.asarray(image)
    low, high = levels.min(), levels.max()
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind, most = ("floats", 255) if image.mode == "F" else ("integers of 32 bits", 65535)
        if not (low >= 0 and high <= most):  # also true of NaN
            raise _UnknownRange(f"its grey levels are {kind} from {low:g} to {high:g}, and nothing says which is white")
        _warn_once(
            "range",
            f"{image.filename} is a grey image of {kind}, and nothing says which is white. In all such images, floats "
            "up to 1 are scaled by 255, levels up to 255 are read as 8 bits, higher integers as 16 bits",
        )
        if image.mode == "F" and high <= 1:
            return np.rint(255 * levels).astype(np.uint8)
        if high <= 255:
            return levels.astype(np.uint8)
    else:
        _warn_once(
            "16 bits",
            f"{image.filename} is a grey image of 16 bits. All such images are scaled to 8 bits (Dassl.pytorch clips "
            "them: every level from 255 of 65,535 upwards is white there)",
        )
    if 0 < high < 256:
        _warn_once(
            "black",
            f"No level of {image.filename} is above {high} of 65,535, so it is read as black, like all such images. "
            "If its levels have 8 bits, save it with 8 bits",
        )
    return np.clip(levels // 256, 0, 255).astype(np.uint8)


def _warn_once(kind: str, message: str) -> None:
    index = _WARNINGS.index(kind)
    if not _warned[index]:
        _warned[index] = 1
        warnings.warn(message, stacklevel=4)


def set_random_seed(seed: int) -> None:
    """Seed python, NumPy and torch, on the CPU and on all GPUs."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def collect_env_info() -> str:
    """Return lines on software and hardware, for the log."""
    import torch
    import torchvision

    info = {
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "PyTorch": torch.__version__,
        "torchvision": torchvision.__version__,
        "Pillow": Image.__version__,
        "NumPy": np.__version__,
        "CPUs": os.cpu_count(),
        "CUDA": "none",
    }
    if torch.cuda.is_available():
        info["CUDA"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            info[f"GPU {index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return "\n".join(f"{key}: {value}" for key, value in info.items())


def tolist_if_not(x: Any) -> list:
    return x if isinstance(x, list) else [x]
