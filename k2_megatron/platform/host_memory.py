# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What this machine, and the control groups of this process, leave of the host's memory.

A container or a SLURM job may have less than the machine; what is over its limit is not refused but
killed. Limits of control groups count, of version 2 and of version 1, of a group and all above it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

# Of a group without a limit version 1 says the largest number of pages.
_NO_LIMIT = 2**60


def limit_bytes(root: Path = Path("/")) -> int:
    """The most that this process and its like can have together: the machine's, or a group's."""
    limits = [limit for limit, _ in _groups(root)]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def available_bytes(root: Path = Path("/")) -> float | None:
    """What could still be had, page cache given back; None where the machine does not tell."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    if not found:
        return None
    return min([1024.0 * int(found[1]), *(float(limit - used) for limit, used in _groups(root))])


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used that are no inactive page cache) of each group that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        # Inside a container the path may be that outside of it: then only the top is there.
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder == top.parent:
                break
            yield from _group(folder, *names)


def _group(folder: Path, limit: str, usage: str, cache: str) -> Iterator[tuple[int, int]]:
    try:
        most = (folder / limit).read_text().strip()
        if most == "max" or int(most) >= _NO_LIMIT:
            return
        used = int((folder / usage).read_text())
        found = re.search(rf"^{cache} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return
    yield int(most), used - (int(found[1]) if found else 0)
