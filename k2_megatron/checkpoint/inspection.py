# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Describe a checkpoint and verify all of it, without torch and without the run that made it."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from k2_megatron.checkpoint.folder import list_steps
from k2_megatron.checkpoint.index import INDEX_NAME, Index, check_tiling, read_index
from k2_megatron.checkpoint.manifest import (
    MANIFEST_NAME,
    DamagedCheckpointError,
    read_manifest,
    verify_file,
)
from k2_megatron.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What an inspection found."""

    text: str
    """Lines for people: step, layout, metadata, every file with its size and state."""
    problems: tuple[str, ...]
    """What is missing or damaged; empty for a whole checkpoint."""


def inspect(path: Path, *, share: tuple[int, int] = (0, 1)) -> Inspection:
    """Describe the checkpoint at `path` and verify the checksum of every file; reads all bytes.

    Args:
        path: its folder.
        share: (rank, number of ranks) where ranks divide the files: the others' are not read.

    Raises:
        CheckpointError: there is no checkpoint, or its manifest cannot be used.
    """
    steps = list_steps(path)
    if steps:
        names = ", ".join(checkpoint.name for checkpoint in steps.values())
        raise CheckpointError(f"{path}: holds checkpoints, name one of them: {names}")
    manifest = read_manifest(path)
    lines = [
        f"checkpoint   {path}",
        f"step         {manifest.step}",
        f"format       version {manifest.format_version}",
        f"world size   {manifest.world_size}",
        f"size         {_size(manifest.size_bytes)} in {len(manifest.files)} files",
        *_table("identity", manifest.identity),
        *_table("layout", manifest.layout),
        *_table("metadata", manifest.metadata),
        "files",
    ]
    problems = []
    rank, world_size = share
    for number, (name, entry) in enumerate(sorted(manifest.files.items())):
        state = "ok"
        try:
            if number % world_size == rank:
                verify_file(path, name, entry)
            else:
                state = "not read"
        except DamagedCheckpointError as error:
            state = "DAMAGED"
            problems.append(str(error))
        lines.append(f"  {name}  {_size(entry.size_bytes):>10}  sha256 {entry.sha256}  {state}")
    if not problems:
        index = read_index(path)
        try:
            check_tiling(index, f"{path / INDEX_NAME}")
        except CheckpointError as error:
            problems.append(str(error))
        lines.append(f"matrices     {len(index.matrices)}, {_kinds(index)}")
    strangers = {file.name for file in path.iterdir()} - manifest.files.keys() - {MANIFEST_NAME}
    lines += [f"  {name}  not part of the checkpoint" for name in sorted(strangers)]
    return Inspection(text="\n".join(lines), problems=tuple(problems))


def _table(title: str, values: dict[str, object]) -> list[str]:
    width = max(map(len, values), default=0)
    return [title, *(f"  {key:<{width}}  {json.dumps(value)}" for key, value in values.items())]


def _kinds(index: Index) -> str:
    """How many matrices there are of each kind."""
    counts = Counter(name.split("/")[0] for name in index.matrices)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _size(num_bytes: int) -> str:
    """Write a number of bytes for people, e.g. 3.2 MiB."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{num_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
