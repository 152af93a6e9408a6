"""Free memory of a machine and of its control groups."""

import pytest

from common.memory import free_memory

GB = 2**30
V1 = {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes", "cache": "total_inactive_file"}
V2 = {"limit": "memory.max", "usage": "memory.current", "cache": "inactive_file"}


@pytest.mark.parametrize(("names", "line", "root"), [(V1, "4:cpu,memory:/a/b", "memory"), (V2, "0::/a/b", "")])
@pytest.mark.parametrize("limited", ["", "a", "a/b"])
def test_free_memory_is_of_the_smallest_control_group(tmp_path, names, line, root, limited):
    group = tmp_path / "sys/fs/cgroup" / root / limited
    group.mkdir(parents=True)
    (group / names["limit"]).write_text(f"{4 * GB}\n")
    (group / names["usage"]).write_text(f"{3 * GB}\n")
    (group / "memory.stat").write_text(f"anon 5\n{names['cache']} {GB}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"9:pids:/\n{line}\n")
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {8 * 2**20} kB\n")
    assert free_memory(tmp_path) == 2 * GB
    (group / names["limit"]).write_text("max\n" if names is V2 else f"{2**63 - 4096}\n")
    assert free_memory(tmp_path) == 8 * GB


def test_free_memory_is_0_where_the_system_does_not_say(tmp_path):
    assert free_memory(tmp_path) == 0 < free_memory()
