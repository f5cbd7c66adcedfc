# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Save one checkpoint: every rank its file, rank 0 the manifest, the name and the pointer.

Collective. A failure on any rank fails the save on every rank and leaves what was saved before.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from k2_megatron.checkpoint.folder import Saved, partial_path, publish, start_partial
from k2_megatron.checkpoint.manifest import FileEntry, Manifest, plain, rank_file_name
from k2_megatron.checkpoint.rank_file import write_rank_file
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.errors import CheckpointError


def save(
    folder: Path,
    step: int,
    payload: Mapping[str, Any],
    *,
    rank: int,
    world_size: int,
    layout: Mapping[str, Any],
    metadata: Mapping[str, Any],
    keep_last: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Saved:
    """Save this rank's `payload` as part of the checkpoint of `step`.

    Synchronises all ranks of `group` three times, by gathering a few hundred bytes a rank.

    Args:
        folder: the run's `checkpoints` folder, on a disk that all ranks see.
        step: optimizer steps done.
        payload: tensors and plain data of this rank; see `write_rank_file`.
        rank: this rank in `group`.
        world_size: number of ranks in `group`.
        layout: JSON data that must be equal on loading, e.g. the parallel sizes; same on all ranks.
        metadata: JSON data kept in the manifest, e.g. consumed samples; same on all ranks.
        keep_last: number of checkpoints to keep, this one included; None keeps all.
        group: the ranks' process group, None for the default one.

    Raises:
        CheckpointError: on every rank, when any rank could not write; names rank and cause.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; 1 or more, or None to keep all")
    ranks = Ranks(rank, world_size, group)
    failing = f"saving step {step} in {folder} failed, earlier checkpoints are untouched"

    def prepare() -> tuple[int, dict[str, Any], dict[str, Any]]:
        common = step, plain(layout), plain(metadata)
        if rank == 0:
            start_partial(folder, step)
        return common

    def publish_all(entries: list[FileEntry]) -> Saved | None:
        if rank != 0:
            return None
        manifest = Manifest(
            step=step,
            world_size=world_size,
            layout=plain(layout),
            metadata=plain(metadata),
            files={rank_file_name(other): entry for other, entry in enumerate(entries)},
        )
        return publish(folder, manifest, keep_last)

    try:
        seen = ranks.together(failing, prepare)
        for other, common in enumerate(seen):
            if common != seen[0]:
                raise CheckpointError(
                    f"{failing}: the ranks disagree on step, layout or metadata: rank 0 has "
                    f"{seen[0]}, rank {other} has {common}"
                )
        path = partial_path(folder, step) / rank_file_name(rank)
        entries = ranks.together(failing, lambda: write_rank_file(path, payload))
        saved = ranks.together(failing, lambda: publish_all(entries))[0]
    except CheckpointError:
        if rank == 0:
            # Frees a full disk; what resists is removed by the next save.
            shutil.rmtree(partial_path(folder, step), ignore_errors=True)
        raise
    assert saved is not None
    return saved
