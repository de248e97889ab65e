"""How much memory the host has left for this process, in a container as well."""

import os
from collections.abc import Iterator
from pathlib import Path

# Limit, used, and lines of memory.stat for what of it are files' pages, which can be read again: of
# control groups 2 and 1.
_V2 = ("memory.max", "memory.current", "active_file", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file")


def available_ram(root: Path = Path("/")) -> int:
    """Bytes that can still be allocated: of the machine, or of the group that it is limited to.

    root: of the file system, for tests.
    """
    return min([_of_machine(root), *_of_groups(root)])


def _of_machine(root: Path) -> int:
    available = _entry(root / "proc/meminfo", "MemAvailable:")
    if available is not None:
        return available * 1024
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 8 * 1024**3


def _of_groups(root: Path) -> Iterator[int]:
    """What each control group around this process has left, as far as it has a limit."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base, names = mount, _V2
        elif "memory" in controllers.split(","):
            base, names = mount / "memory", _V1
        else:
            continue
        inner = Path(path.lstrip("/"))
        for group in (inner, *inner.parents):  # in a container only the last may be there
            left = _left(base / group, *names)
            if left is not None:
                yield left


def _left(group: Path, limit: str, used: str, *cached: str) -> int | None:
    most, now = _number(group / limit), _number(group / used)
    if most is None or now is None:
        return None
    files = sum(_entry(group / "memory.stat", name) or 0 for name in cached)
    return max(0, most - now + files)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _entry(path: Path, name: str) -> int | None:
    """The number after `name` in a file of such lines."""
    for line in _lines(path):
        words = line.split()
        if words[:1] == [name] and len(words) > 1 and words[1].isdecimal():
            return int(words[1])
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
