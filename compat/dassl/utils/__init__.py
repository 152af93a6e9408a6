"""Files, checkpoints, logs, meters, registries and errors."""

from importlib import import_module
from typing import Any

from .errors import (
    RegistryError,
    UserAssertionError,
    UserError,
    UserFileNotFoundError,
    UserImportError,
    UserOSError,
    UserRuntimeError,
    UserTypeError,
    UserValueError,
)
from .logger import Logger, setup_logger
from .registry import Registry, check_availability
from .tools import (
    atomic_write,
    check_isfile,
    collect_env_info,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    tolist_if_not,
    write_json,
)

# These modules import PyTorch, and are imported when they are first needed.
WITH_TORCH = {
    "meters": ("AverageMeter", "MetricMeter"),
    "torchtools": (
        "count_num_param",
        "load_checkpoint",
        "load_pretrained_weights",
        "open_all_layers",
        "open_specified_layers",
        "resume_from_checkpoint",
        "save_checkpoint",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in WITH_TORCH.items():
        if name == module or name in names:
            found = import_module(f"dassl.utils.{module}")
            return found if name == module else getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
