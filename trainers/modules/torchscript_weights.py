"""The weights of a TorchScript archive, without running the program in it.

OpenAI publishes CLIP as TorchScript. Such an archive is a zip file with a pickle of the module tree (data.pkl), one
file of raw numbers for each tensor (data/<key>), and the program (code/). The pickle is read here by an unpickler
that knows tensors and plain containers and nothing else; the program is never opened.
"""

import collections
import pickle
import zipfile
from os import PathLike

import torch

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
CONTAINERS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


def is_torchscript(path: str | PathLike) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def torchscript_state_dict(path: str | PathLike) -> dict[str, torch.Tensor]:
    """Names and values of all tensors in the module tree of a TorchScript archive.

    Args:
        path: the archive.

    Returns:
        dict of tensors by dotted name; beside parameters and buffers it holds tensors that are mere attributes.

    Raises:
        pickle.UnpicklingError: the pickle asks for anything but tensors, containers and modules.
    """
    with zipfile.ZipFile(path) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        with archive.open(folder + "data.pkl") as handle:
            root = _Unpickler(handle, archive, folder).load()
    return dict(_tensors(root, ""))


class _Module:
    """A module of the archive: its attributes, and no behaviour."""

    def __setstate__(self, state):
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    def __init__(self, handle, archive, folder):
        super().__init__(handle)
        self.archive, self.folder = archive, folder

    def find_class(self, module, name):
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle" and name in CONTAINERS:
            return list
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is neither a tensor nor a container")

    def persistent_load(self, pid):
        _, dtype, key, _, _ = pid
        content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _tensor(storage, offset, size, stride, *_):
    return torch.as_strided(storage, size, stride, offset)


def _tensors(module, prefix):
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
