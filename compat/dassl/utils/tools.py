"""Files, images, seeds: the small tools."""

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
from collections.abc import Iterable
from difflib import SequenceMatcher

import numpy as np
import torch
from PIL import Image

from .errors import UserFileNotFoundError, UserOSError, UserValueError
from .registry import check_availability

__all__ = [
    "atomic_write",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


# Half as many pixels as Pillow refuses make it warn of an attack: a data set's large images are meant.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Resized to 224 pixels by its shorter side, such an image takes 150 MB.
MAX_SIDE_RATIO = 1000

# Bytes that a process shares with its loader workers, of whom then only the first warns of such images.
_warned_of_16_bits = mmap.mmap(-1, 1)
_warned_of_range = mmap.mmap(-1, 1)
_warned_of_black = mmap.mmap(-1, 1)
_warned_of_transparency = mmap.mmap(-1, 1)


def mkdir_if_missing(dirname):
    """Make a folder and its parents; one that exists stays as it is."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath):
    """Return whether ``fpath`` is a file; warn if it is not."""
    isfile = osp.isfile(fpath)
    if not isfile:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return isfile


def listdir_nohidden(path, sort=False):
    """Return the names in a folder that do not start with a dot.

    Args:
        path (str): the folder.
        sort (bool): sort the names; otherwise their order is the file system's.

    Raises:
        UserFileNotFoundError: there is no such folder.
    """
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        message = f"Folder not found: {path}. Is DATASET.ROOT right, and the dataset unpacked?"
        raise UserFileNotFoundError(message) from None
    return sorted(names) if sort else names


@contextlib.contextmanager
def atomic_write(fpath, mode="wb"):
    """Open a file beside ``fpath`` that takes its place, whole and on disk, if the block ends without error.

    Args:
        fpath (str): the file to write; its folder is made.
        mode (str): ``"wb"``, or ``"w"`` for UTF-8 text.

    Yields:
        the open file.
    """
    fpath = osp.abspath(fpath)
    folder, name = osp.split(fpath)
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


def read_json(fpath):
    """Return the content of a JSON file.

    Raises:
        UserFileNotFoundError: the file is missing.
        UserValueError: it is not JSON.
    """
    try:
        with open(fpath, "rb") as handle:
            return json.loads(handle.read())  # bytes may begin with a byte order mark
    except FileNotFoundError:
        raise UserFileNotFoundError(f"File not found: {fpath}") from None
    except ValueError as error:
        raise UserValueError(f"{fpath} is not a JSON file: {error}. Download or make it again.") from error


def write_json(obj, fpath):
    """Write ``obj`` as indented JSON; the folder is made, and the file is either whole or not there."""
    with atomic_write(fpath, "w") as handle:
        json.dump(obj, handle, indent=4, separators=(",", ": "))


class _UnknownRange(Exception):
    """Nothing says which level of an image is white."""


def read_image(path):
    """Read an image file of any mode as RGB.

    Transparency is dropped, as Dassl does: the colours are those stored under it. Of an animation the first
    picture is read. Grey levels of 16 bits are scaled to 8, as the PNG format defines them and as Pillow
    itself does with colours of 16 bits; a warning says so once. (Dassl.pytorch clips them, which leaves a
    white image wherever the level is 255 of 65,535 or more.) Where no format says which level is white, floats
    up to 1 are read as up to white, floats and 32-bit integers up to 255 as 8 bits, such integers up to 65,535 as 16;
    others are refused. Of a picture that is black because of any of this, or lies in its transparency alone, a
    warning tells once.

    Args:
        path (str): the file.

    Returns:
        a PIL image in mode RGB, whose file is closed.

    Raises:
        UserFileNotFoundError: the file is missing.
        UserOSError: it is not a whole image, has more pixels than Pillow decodes, levels of unknown range, or one side
            that is MAX_SIDE_RATIO times as long as the other.
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
    except _UnknownRange as error:
        raise UserOSError(
            f"Cannot read the image {path}: {error}. Save it with 8 bits for each channel, or remove it."
        ) from error
    except FileNotFoundError:
        raise UserFileNotFoundError(
            f"Image not found: {path}. Check DATASET.ROOT, and that the dataset is unpacked completely."
        ) from None
    except Image.DecompressionBombError as error:
        raise UserOSError(
            f"The image {path} is larger than the {2 * Image.MAX_IMAGE_PIXELS:,} pixels that Pillow decodes. "
            f"Scale it down, e.g. with ImageMagick: mogrify -resize 4096x4096 {shlex.quote(str(path))}"
        ) from error
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError, struct.error ...
        raise UserOSError(
            f"Cannot read the image {path}: {type(error).__name__}: {error}. Download it again, or remove it."
        ) from error


def _to_rgb(image):
    if image.mode == "RGB":
        return image
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey_levels(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        return _without_transparency(image)
    return image.convert("RGB")


def _grey_levels(image):
    """Levels (H, W) of 8 bits of a grey image that has more.

    Raises:
        _UnknownRange: they go beyond what can be told.
    """
    levels = np.asarray(image)
    low, high = levels.min(), levels.max()
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind, most = ("floats", 255) if image.mode == "F" else ("integers of 32 bits", 65535)
        if not (low >= 0 and high <= most):  # nor if there is a NaN among them
            raise _UnknownRange(f"its grey levels are {kind} from {low:g} to {high:g}, and nothing says which is white")
        _warn_once(
            _warned_of_range,
            f"{image.filename} is a grey image of {kind}, and nothing says which is white: floats up to 1 are read as "
            "up to white, levels up to 255 as 8 bits, integers above as 16 bits; so are others like it",
        )
        if image.mode == "F" and high <= 1:
            return np.rint(255 * levels).astype(np.uint8)
        if high <= 255:
            return levels.astype(np.uint8)
    else:
        _warn_once(
            _warned_of_16_bits,
            f"{image.filename} is a grey image of 16 bits, which are scaled to 8; so are others like it "
            "(Dassl.pytorch clips them instead: all from 255 of 65,535 upwards is white there)",
        )
    if 0 < high < 256:
        _warn_once(
            _warned_of_black,
            f"No level of {image.filename} is above {high} of 65,535, so it is read as black; so are others like it. "
            "Are these levels of 8 bits? Then save them with 8",
        )
    return np.clip(levels // 256, 0, 255).astype(np.uint8)


def _without_transparency(image):
    name = image.filename
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    *colours, (most_clear, most_opaque) = image.getextrema()
    if most_clear < most_opaque and all(low == high for low, high in colours):
        _warn_once(
            _warned_of_transparency,
            f"The picture in {name} is in its transparency alone, which is dropped, so it is read as an area "
            "of one colour; so are others like it",
        )
    return image.convert("RGB")


def _warn_once(warned, message):
    if not warned[0]:
        warned[0] = 1
        warnings.warn(message, stacklevel=5)  # where read_image is called


def download_url(url: str, dst: str) -> None:
    """Download a file; it is there whole, or not at all.

    Args:
        url (str): where it is.
        dst (str): the file to write, in a folder that is there.

    Raises:
        OSError: of urllib, where the download fails.
    """
    print(f'* url="{url}"\n* destination="{dst}"')
    torch.hub.download_url_to_file(url, dst)


def set_random_seed(seed):
    """Seed python, numpy and torch, on the CPU and on every GPU."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def collect_env_info():
    """Return a few lines on the software and the hardware, for the log."""
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


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """Return the string of ``b`` that is most like ``a``, of several the last; None if there is none."""
    return max(reversed(list(b)), key=lambda candidate: SequenceMatcher(None, a, candidate).ratio(), default=None)


def tolist_if_not(x):
    """Return ``x`` if it is a list, otherwise a list that holds it."""
    return x if isinstance(x, list) else [x]
