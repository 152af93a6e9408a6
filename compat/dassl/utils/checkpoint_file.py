"""Reading checkpoint files without running any code they may carry."""

import os.path as osp
import re
import zipfile

import numpy as np
import torch

from .errors import UserFileNotFoundError, UserRuntimeError

# Dassl.pytorch stored whole scheduler objects, and through them the optimizer, beside the weights. These are
# read as inert records: their attributes are kept, their code is not run.
_RECORDED_MODULES = ("torch.optim.", "dassl.optim.")

_ACCEPTED = (
    "Accepted are files that hold tensors, numbers, strings, lists and dicts only, as "
    "torch.save(model.state_dict(), ...) writes them."
)


class _Record:
    """The attributes of an object that is not rebuilt."""

    def __setstate__(self, state):
        self.__dict__.update(state)


def _plain_dict(*_):
    # Stands in for defaultdict, which the optimizers inside those schedulers hold.
    return {}


class _NumberType:
    """What numpy.dtype(code, ...) says of a single number."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"[biuf]\d+", code):
            raise ValueError(f"a NumPy value of type {code}, which is no number")
        self.code = code

    def __setstate__(self, state):
        self.code = state[1] + self.code  # the byte order


def _number(number_type, content):
    """Stands in for what makes NumPy's numbers, such as an accuracy: a plain one of Python's."""
    return np.frombuffer(content, number_type.code).item()


# NumPy 2 renamed the module.
_NUMBERS = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def _without_records(value):
    """Turn records into dicts of their attributes, leaving out the optimizer that a scheduler points to."""
    if isinstance(value, _Record):
        value = {key: item for key, item in vars(value).items() if key != "optimizer"}
    if type(value) is dict:
        return {key: _without_records(item) for key, item in value.items()}
    return value


def read_checkpoint_file(fpath):
    """Read what ``torch.save`` wrote, with all tensors on the CPU.

    Args:
        fpath (str): the file.

    Returns:
        what was saved: tensors, numbers, strings and containers of them.

    Raises:
        UserFileNotFoundError: the file is missing.
        UserRuntimeError: it is damaged or cut short, or holds objects whose loading would run code.
    """
    if not osp.isfile(fpath):
        raise UserFileNotFoundError(
            f"Checkpoint not found: {fpath}. Check the folder (--model-dir, RESUME, MODEL.INIT_WEIGHTS) and the epoch."
        )
    objects = _objects_in(fpath)
    recorded = {name for name in objects if name.startswith(_RECORDED_MODULES)}
    standins = [(_Record, name) for name in recorded] + _NUMBERS
    if recorded:
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


def _check_sums(fpath):
    """Raise an error unless the contents fit their checksums, at which ``torch.load`` does not look."""
    if zipfile.is_zipfile(fpath):
        with zipfile.ZipFile(fpath) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not fit")


def _objects_in(fpath):
    """Return the names of the classes and functions that unpickling ``fpath`` would call."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(fpath))
    except Exception as error:
        if "torchscript" in str(error):
            raise UserRuntimeError(f"{fpath} is a TorchScript archive, not a checkpoint. {_ACCEPTED}") from error
        # An old-style or a damaged file: torch.load is the judge.
        return set()
