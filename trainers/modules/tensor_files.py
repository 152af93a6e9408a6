"""Read files of tensors from any source, without running code in them."""

import pickle
import zipfile
from os import PathLike
from typing import Any

import torch

from common.errors import UserError


def read_tensors(path: str | PathLike, kind: str, fix: str) -> Any:
    """The content of a file by torch.save or safetensors, with tensors on the CPU.

    Args:
        kind: of the file, to begin messages with ("Prompt label").
        fix: end of messages: a sentence for the user.

    Raises:
        UserError: the file is damaged, has another format, or holds more than tensors and plain data.
    """
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not compare checksums
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of any kind
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            problem = "it holds more than tensors and might run code when opened"
        else:
            problem = f"it is damaged or has another format ({type(error).__name__})"
        raise UserError(f"{kind} {path} cannot be read: {problem}. {fix}") from error


def _is_safetensors(path: str | PathLike) -> bool:
    """Whether a file begins with the 8 bytes of a header's length, then a JSON header."""
    with open(path, "rb") as handle:
        length, first = int.from_bytes(handle.read(8), "little"), handle.read(1)
        return first == b"{" and 8 + length <= handle.seek(0, 2)
