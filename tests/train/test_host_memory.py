# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Host memory as the kernel's files tell it, of machines that are not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from k2_megatron.platform.host_memory import available_bytes, limit_bytes

GIB = 2**30
PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine(
    root: Path, cgroup: str, files: dict[str, object], *, available_gib: float = 50
) -> Path:
    files = {
        "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:   {int(available_gib * 2**20)} kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": value for name, value in files.items()},
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def group(folder: str, limit: object, used: int, cache: int) -> dict[str, object]:
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cache}\nactive_file 7",
    }


def test_without_groups_the_machine_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/", {})
    assert available_bytes(root) == 50 * GIB
    assert limit_bytes(root) == PHYSICAL


def test_groups_limit_and_page_cache_can_be_had(tmp_path: Path) -> None:
    """Of a job's group 3 of 4 GiB are used, 2 of them page cache; its step has no limit."""
    inner = group("slurm/job/step", "max", 3 * GIB, 0)
    outer = group("slurm/job", 4 * GIB, 3 * GIB, 2 * GIB)
    root = machine(tmp_path, "0::/slurm/job/step", inner | outer)
    assert available_bytes(root) == 3 * GIB
    assert limit_bytes(root) == min(PHYSICAL, 4 * GIB)


def test_the_machine_may_have_less_than_the_group_allows(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/a", group("a", 90 * GIB, 1 * GIB, 0), available_gib=5)
    assert available_bytes(root) == 5 * GIB


def test_a_container_sees_its_group_at_the_top(tmp_path: Path) -> None:
    """Its path is that outside of it."""
    root = machine(tmp_path, "0::/docker/0123", group(".", 2 * GIB, 1 * GIB, 0))
    assert available_bytes(root) == 1 * GIB


@pytest.mark.parametrize(("limit", "room"), [(8 * GIB, 7.5 * GIB), (2**63 - 4096, 50 * GIB)])
def test_groups_of_version_1(tmp_path: Path, limit: int, room: float) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": limit,
        "memory/job/memory.usage_in_bytes": GIB,
        "memory/job/memory.stat": f"cache 5\ntotal_inactive_file {GIB // 2}",
    }
    root = machine(tmp_path, "9:name=systemd:/\n4:cpu,memory:/job\n3:cpuset:/", files)
    assert available_bytes(root) == room


def test_files_that_make_no_sense_limit_nothing(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/a", {"a/memory.max": "much"})
    assert available_bytes(root) == 50 * GIB
    (tmp_path / "proc" / "meminfo").unlink()
    assert available_bytes(root) is None
