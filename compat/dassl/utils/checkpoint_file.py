"""Reading checkpoint files without running code from them."""

import os.path as osp
import re
import zipfile
from typing import Any

import numpy as np
import torch

from .errors import UserFileNotFoundError, UserRuntimeError

# Dassl.pytorch saved scheduler objects, and through them optimizers. Their attributes are read, their code is not run.
_RECORDED_MODULES = ("torch.optim.", "dassl.optim.")
_ACCEPTED = (
    "Accepted are files that hold tensors, numbers, strings, lists and dicts only, as "
    "torch.save(model.state_dict(), ...) writes them."
)


class _Record:
    """The attributes of an object that is not rebuilt."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _NumberType:
    """Replaces numpy.dtype, for single numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biuf]\d+", code):
            raise ValueError(f"a NumPy value of type {code}, which is no number")
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        self.code = state[1] + self.code  # the byte order


def _number(number_type: _NumberType, content: bytes) -> float:
    return np.frombuffer(content, number_type.code).item()


def _plain_dict(*_: object) -> dict:
    return {}


_NUMBERS = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),  # since NumPy 2
]


def read_checkpoint_file(fpath: str) -> Any:
    """Read tensors (on the CPU), numbers, strings and containers of them from a file of ``torch.save``.

    Raises:
        UserFileNotFoundError: no such file.
        UserRuntimeError: the file is damaged, or loading it would run code.
    """
    if not osp.isfile(fpath):
        raise UserFileNotFoundError(
            f"Checkpoint not found: {fpath}. Check the folder (--model-dir, RESUME, MODEL.INIT_WEIGHTS) and the epoch."
        )
    objects = _objects_in(fpath)
    recorded = {name for name in objects if name.startswith(_RECORDED_MODULES)}
    standins = [(_Record, name) for name in recorded] + _NUMBERS
    if recorded:  # optimizers hold a defaultdict
        standins += [(_plain_dict, "collections.defaultdict"), (dict, "builtins.dict")]
    foreign = sorted(objects - {name for _, name in standins})
    if foreign:
        raise UserRuntimeError(
            f"{fpath} was not loaded: loading it would run code that it carries ({', '.join(foreign[:5])}). "
            f"{_ACCEPTED} If you trust its origin, load it with torch.load(..., weights_only=False) "
            "and save its state_dict."
        )
    try:
        _check_sums(fpath)
        with torch.serialization.safe_globals(standins):
            content = torch.load(fpath, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor readers fail in many ways
        if "Unsupported global" in str(error):
            raise UserRuntimeError(f"{fpath} was not loaded: loading it would run code. {_ACCEPTED}") from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserRuntimeError(
            f"{fpath} is damaged or is not a checkpoint ({reason[0][:200]}). "
            "Copy or download it again, or delete it to train from an older one."
        ) from error
    return _without_records(content) if recorded else content


def _objects_in(fpath: str) -> set[str]:
    """Return the names of the classes and functions that unpickling the file would call."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(fpath))
    except Exception as error:
        if "torchscript" in str(error):
            raise UserRuntimeError(f"{fpath} is a TorchScript archive, not a checkpoint. {_ACCEPTED}") from error
        return set()  # an old-style or a damaged file: torch.load decides


def _check_sums(fpath: str) -> None:
    if zipfile.is_zipfile(fpath):  # torch.load ignores the checksums
        with zipfile.ZipFile(fpath) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not fit")


def _without_records(value: Any) -> Any:
    """Turn records into dicts of their attributes, without a scheduler's optimizer."""
    if isinstance(value, _Record):
        value = {key: item for key, item in vars(value).items() if key != "optimizer"}
    if type(value) is dict:
        return {key: _without_records(item) for key, item in value.items()}
    return value
