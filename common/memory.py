"""Free memory of the machine or container."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that this process may still use: of the machine, or of its container or job if these are fewer.

    0 if the system does not say; `system` is the folder of /proc and /sys.
    """
    try:
        lines = (line.split() for line in (system / "proc/meminfo").read_text().splitlines())
        found = [next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")]
    except (OSError, StopIteration):
        return 0
    with contextlib.suppress(OSError):  # without control groups
        found += _free_in_groups(system)
    return max(0, min(found))


def _free_in_groups(system: Path) -> Iterator[int]:
    """Free memory in the control groups of this process, of version 1 or 2."""
    for line in (system / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root, limit, usage, cache = system / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            root, limit = root / "memory", "memory.limit_in_bytes"
            usage, cache = "memory.usage_in_bytes", "total_inactive_file"
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            # A container may not see the groups above its own.
            if folder.is_relative_to(root) and (folder / limit).is_file():
                bytes_allowed = (folder / limit).read_text().strip()
                if bytes_allowed != "max":
                    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    # The system drops files from its cache when memory runs out.
                    yield int(bytes_allowed) - int((folder / usage).read_text()) + int(statistics.get(cache, 0))
