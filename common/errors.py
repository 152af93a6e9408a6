"""Errors that a user can fix, warnings, and the exit codes of commands."""

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable

# Parts of RuntimeErrors: PyTorch's writer on a full disk, and its allocators.
WRITER_FAILED = ("PytorchStreamWriter failed", "unexpected pos")
OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")
NO_SHARED_MEMORY = ("shared memory", "</torch_", "Bus error")
RESUMES = "The same command resumes after the last completed epoch."


class UserError(Exception):
    """An error that the user can fix: a wrong name, a missing file, contradictory settings.

    Commands print its message without a traceback and exit with code 1. Any other exception is a bug.
    """


recent_warnings: list[str] = []  # of this process; a launcher shows the warnings of its runs


def warn(message: str) -> None:
    """Print a warning, which Dassl's log file records."""
    print(f"Warning: {message}")
    recent_warnings.append(f"Warning: {message}")


def join_truncated(items: Iterable[str], at_most: int = 8) -> str:
    """A list for messages: "dog, horse and 5 more", or "none"."""
    items = list(items)
    more = f" and {len(items) - at_most} more" if len(items) > at_most else ""
    return (", ".join(items[:at_most]) + more) or "none"


def explain(error: BaseException) -> str | None:
    """The message of an error outside the program: a full disk, missing memory, a dead loader worker; else None."""
    if isinstance(error, UnicodeEncodeError):  # TensorBoard and safetensors take no other paths
        return f"{error.object[:300]!r} is not UTF-8. Rename the file or folder, or name another one."
    text = str(error)
    # An exception of a loader worker arrives with its traceback. The last line is the cause.
    in_worker = text.startswith("Caught ") and "DataLoader worker" in text
    lines = [line for line in map(str.strip, text.splitlines()) if line] or [""]
    cause = lines[-1 if in_worker else 0].removesuffix(".")
    filename = getattr(error, "filename", None)

    def has_any(parts: Iterable[str]) -> bool:
        return any(part in text for part in parts)

    if isinstance(error, RuntimeError) and has_any(NO_SHARED_MEMORY):
        return f"/dev/shm is too small for loader workers: {cause}. Set DATALOADER.NUM_WORKERS 0, or enlarge /dev/shm."
    if in_worker and isinstance(error, OSError):
        return f"A loader worker failed: {cause}. Fix that, or set DATALOADER.NUM_WORKERS 0."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or has_any(WRITER_FAILED):
        return f"The disk is full{f' ({filename})' if filename else ''}. Free some space. {RESUMES}"
    if isinstance(error, MemoryError) or has_any(OUT_OF_MEMORY):
        return f"Out of memory: {cause}. Lower TEST.MEMORY_MB, or BATCH_SIZE, CACHE_MB or NUM_WORKERS of DATALOADER."
    if text.startswith("DataLoader worker"):
        return f"A loader worker died: {cause}. If memory ran out, lower DATALOADER.CACHE_MB or NUM_WORKERS. {RESUMES}"
    if isinstance(error, OSError) and filename:
        return f"{error.strerror}: {filename}. Fix that and run the same command again."
    return None


def user_errors() -> tuple[type[BaseException], ...]:
    """The exceptions that are messages to the user: ours, and the Dassl core's if it is in use."""
    core = sys.modules.get("dassl.utils")
    # Dassl raises FloatingPointError for a loss that is not finite.
    return UserError, FloatingPointError, getattr(core, "UserError", UserError)


def command(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Decorate the `main(argv=None)` of a command: it returns an exit code and prints user errors as one message."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            message = str(error) if isinstance(error, user_errors()) else explain(error)
            if message is None:
                raise
        print(f"Error: {message}", file=sys.stderr)
        return 1

    return wrapped
