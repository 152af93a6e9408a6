"""What went wrong outside the program, in words that say how to mend it."""

import errno
import functools
import os
import sys
from collections.abc import Callable

from common.errors import UserError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")
# torch's writer says this where a write came to nothing.
WRITER_FAILED = ("PytorchStreamWriter failed", "unexpected pos")
NO_SHARED_MEMORY = ("shared memory", "</torch_", "Bus error")


def explain(error: BaseException) -> str | None:
    """A message for a full disk, missing memory, a refused file, or a path that is not UTF-8; else None."""
    if isinstance(error, UnicodeEncodeError):  # TensorBoard and safetensors take no other paths
        return f"{error.object[:300]!r} is not UTF-8. Rename the file or folder, or name another one."
    text = str(error)
    # An exception of a loader worker arrives with its traceback, whose last line is the cause.
    in_worker = text.startswith("Caught ") and "DataLoader worker" in text
    cause = ([*filter(None, map(str.strip, text.splitlines()))] or [""])[-1 if in_worker else 0].removesuffix(".")
    if isinstance(error, RuntimeError) and any(part in text for part in NO_SHARED_MEMORY):
        return (
            f"/dev/shm, the shared memory of loader workers: {cause}. Set DATALOADER.NUM_WORKERS 0, or give it more "
            "space (docker run --shm-size 8g)."
        )
    if in_worker and isinstance(error, OSError):
        return f"A loader worker failed: {cause}. Fix that, or set DATALOADER.NUM_WORKERS 0."
    if isinstance(error, OSError) and error.errno in DISK_FULL or any(part in text for part in WRITER_FAILED):
        filename = getattr(error, "filename", None)
        where = f" ({filename})" if filename else ""
        return (
            f"The disk is full{where}. What was finished is kept. Free some space and run the same command again: "
            "it goes on after the last completed epoch."
        )
    if isinstance(error, MemoryError) or any(part in text.lower() for part in OUT_OF_MEMORY):
        return (
            f"Out of memory: {cause or 'allocation failed'}. Lower TEST.MEMORY_MB (the text "
            "tower's intermediate results), DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE (images at a "
            "time), or DATALOADER.NUM_WORKERS."
        )
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return (
            f"A loader worker died: {cause}. If memory ran out, lower DATALOADER.NUM_WORKERS, and run the same command "
            "again: it goes on after the last completed epoch."
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}. Mend that and run the same command again."
    return None


def user_errors() -> tuple[type[BaseException], ...]:
    """The exceptions that are messages to the user: ours, and those of the Dassl core where it is in use."""
    core = sys.modules.get("dassl.utils")
    # Dassl stops by FloatingPointError when a loss is not finite; its message says what to do.
    return UserError, FloatingPointError, getattr(core, "UserError", UserError)


def script(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Decorator of a script's `main(argv=None)`, which then returns an exit code whatever happens.

    That is what `main` returns (nothing: 0), 1 with one message, or 130 where Ctrl-C ended it.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except user_errors() as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (OSError, RuntimeError, MemoryError, UnicodeEncodeError) as error:
            message = explain(error)
            if message is None:
                raise
            print(f"Error: {message}", file=sys.stderr)
            return 1

    return wrapped
