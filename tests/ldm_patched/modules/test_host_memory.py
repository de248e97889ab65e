"""What the host has left: the machine's figure, or the tighter one of a container."""

import pytest

from ldm_patched.modules.host_memory import available_ram

MB = 2**20


@pytest.fixture
def root(tmp_path):
    """A machine with 1,000 MB free."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 9 kB\nMemAvailable: {1000 * 1024} kB\n")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


V2 = ("memory.max", "memory.current", "")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def group(folder, limit, used, cache=0, names=V2):
    write(folder / names[0], limit)
    write(folder / names[1], used)
    entries = f"anon 5\n{names[2]}active_file {cache // 2}\n{names[2]}inactive_file {cache // 2}\n"
    write(folder / "memory.stat", entries)


def test_without_groups_it_is_what_the_machine_has(root):
    assert available_ram(root) == 1000 * MB


def test_the_group_of_a_container_is_the_root_of_what_it_sees(root):
    write(root / "proc/self/cgroup", "0::/not/seen/from/inside\n")
    group(root / "sys/fs/cgroup", 600 * MB, 500 * MB, cache=50 * MB)
    assert available_ram(root) == 150 * MB


def test_the_tightest_of_the_groups_around_counts(root):
    write(root / "proc/self/cgroup", "0::/user/app\n")
    group(root / "sys/fs/cgroup/user", 300 * MB, 100 * MB)
    group(root / "sys/fs/cgroup/user/app", "max", 90 * MB)
    assert available_ram(root) == 200 * MB
    group(root / "sys/fs/cgroup/user/app", 80 * MB, 90 * MB)
    assert available_ram(root) == 0


def test_the_older_groups_count_too(root):
    write(root / "proc/self/cgroup", "3:cpu,cpuacct:/box\n2:memory:/box\n")
    group(root / "sys/fs/cgroup/memory/box", 700 * MB, 300 * MB, 20 * MB, V1)
    assert available_ram(root) == 420 * MB
    group(root / "sys/fs/cgroup/memory/box", 2**63 - 4096, 300 * MB, 0, V1)  # no limit
    assert available_ram(root) == 1000 * MB


def test_a_machine_that_tells_nothing_is_guessed_at(tmp_path):
    assert available_ram(tmp_path) > 2**27
