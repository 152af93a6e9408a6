"""Files of tensors, from whoever they may be: read without running code."""

import pickle
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError


def read_tensors(path: str | PathLike, what: str, mend: str) -> Any:
    """What torch.save wrote, provided that it holds tensors and plain data only, or the tensors of a safetensors file.

    Args:
        path: the file.
        what: what it should be, for messages ("Prompt label").
        mend: a sentence that says what the user can do.

    Returns:
        the content, tensors on the CPU.

    Raises:
        UserError: the file is damaged, of another format, or would run code when loaded.
    """
    if _is_safetensors(path):
        return _read_safetensors(path, what, mend)
    _check_named_as_it_is(path, what, mend)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not look at checksums
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} does not fit")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise UserError(
                f"{what} {path} holds more than tensors and might run code when opened, so it is refused. {mend}"
            ) from error
        raise UserError(f"{what} {path} cannot be read; it is damaged or something else. {mend}") from error
    except Exception as error:  # bytes that are no such file end in any kind of exception
        raise UserError(
            f"{what} {path} cannot be read; it is damaged or something else ({type(error).__name__}). {mend}"
        ) from error


def _is_safetensors(path: str | PathLike) -> bool:
    """Whether a file begins as that format does: 8 bytes with the length of a JSON text, then that text."""
    try:
        with open(path, "rb") as handle:
            length, first = int.from_bytes(handle.read(8), "little"), handle.read(1)
            return first == b"{" and 8 + length <= handle.seek(0, 2)
    except OSError:
        return False


def _read_safetensors(path: str | PathLike, what: str, mend: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{what} {path} is damaged, or was not downloaded to its end ({error}). Get it again. {mend}"
        ) from error


def _check_named_as_it_is(path: str | PathLike, what: str, mend: str) -> None:
    """Raise UserError for a file that is named like safetensors, and is none."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return
    with open(path, "rb") as handle:
        is_pickle = handle.read(1) == b"\x80" or zipfile.is_zipfile(path)
    if is_pickle:
        raise UserError(
            f"{what} {path} is a pickle, as torch.save writes, that is named like safetensors. If it is from someone "
            "that you trust, end its name in .bin: it is read if it holds tensors alone."
        )
    raise UserError(f"{what} {path} is damaged, or was not downloaded to its end. Get it again. {mend}")
