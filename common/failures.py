"""What went wrong outside the program, in words that say how to mend it."""

import errno
import os
import sys

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")
# torch's writer says this where a write came to nothing.
WRITER_FAILED = ("PytorchStreamWriter failed", "unexpected pos")


def explain(error):
    """A message for a full disk, missing memory, or a refused file; None for any other exception."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL or any(part in text for part in WRITER_FAILED):
        where = f" ({error.filename})" if getattr(error, "filename", None) else ""
        return (
            f"The disk is full{where}. What was finished is kept. Free some space and run the same command again: "
            "it goes on after the last completed epoch."
        )
    if isinstance(error, MemoryError) or any(part in text.lower() for part in OUT_OF_MEMORY):
        return (
            f"Out of memory: {text.splitlines()[0] if text else 'allocation failed'} Lower TEST.MEMORY_MB (the text "
            "tower's intermediate results), DATALOADER.TRAIN_X.BATCH_SIZE or DATALOADER.TEST.BATCH_SIZE (images at a "
            "time), or DATALOADER.NUM_WORKERS."
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return (
            f"A loader worker died ({text.splitlines()[0]}). Killed means that memory ran out: lower "
            "DATALOADER.NUM_WORKERS. Run the same command again: it goes on after the last completed epoch."
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}. Mend that and run the same command again."
    return None


def run_main(main, messages=()):
    """Call a script's `main`; returns its exit code, or with one message 1, or 130 where Ctrl-C ended it.

    Args:
        main: takes nothing, returns an exit code.
        messages: exception types that are messages to the user as they are.
    """
    try:
        return main()
    except messages as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, RuntimeError, MemoryError) as error:
        message = explain(error)
        if message is None:
            raise
        print(f"Error: {message}", file=sys.stderr)
        return 1
