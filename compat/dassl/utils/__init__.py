"""Files, checkpoints, logs, meters, registries and errors."""

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
from .meters import AverageMeter, MetricMeter
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
from .torchtools import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
)
