# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Find the checkpoint to go on from, the same on every rank, and load this rank's part of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from k2_megatron.checkpoint.folder import list_partials, list_steps
from k2_megatron.checkpoint.manifest import (
    DamagedCheckpointError,
    rank_file_name,
    read_manifest,
    verify_file,
    verify_owner,
)
from k2_megatron.checkpoint.rank_file import read_rank_file
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """What all ranks agreed to go on from."""

    path: Path | None
    """The newest checkpoint that is whole on every rank; None where nothing was saved yet."""
    warnings: tuple[str, ...]
    """Texts for the log: newer checkpoints that are damaged, saves that did not finish."""


def load(path: Path, *, rank: int, world_size: int, layout: Mapping[str, Any]) -> dict[str, Any]:
    """Verify this rank's part of the checkpoint at `path` and return its payload, on the CPU.

    Not collective; `read_manifest(path).metadata` has what was saved beside the payload.

    Raises:
        CheckpointError: a file is missing or damaged, or the checkpoint belongs to another world
            size, layout or format version; names the file, what was found and what was expected.
    """
    _verify(path, rank, world_size, layout)
    return read_rank_file(path / rank_file_name(rank))


def find_resumable(
    folder: Path,
    *,
    rank: int,
    world_size: int,
    layout: Mapping[str, Any],
    group: dist.ProcessGroup | None = None,
) -> Resumable:
    """Choose the newest checkpoint whose files are sound on every rank.

    Collective over `group`: each rank reads and verifies its own file, the smallest choice is
    taken, and looked at again by those that had a newer one, until all have the same.

    Raises:
        CheckpointError: on every rank, when checkpoints exist and all are damaged (going on from
            step 0 would be a silent loss), or the newest whole one belongs to another world size,
            layout or format version.
    """
    ranks = Ranks(rank, world_size, group)
    looking = f"looking in {folder} for a checkpoint to go on from"
    listings = ranks.together(looking, lambda: (list_steps(folder), list_partials(folder)))
    steps, torn = listings[0]
    state: dict[int, str | None] = {}

    def newest_sound(bound: int) -> int:
        for step in sorted((step for step in steps if step <= bound), reverse=True):
            if step not in state:
                state[step] = _damage(steps[step], rank, world_size, layout)
            if state[step] is None:
                return step
        return -1

    choices = ranks.together(looking, lambda: newest_sound(max(steps, default=-1)))
    while min(choices) != max(choices):
        choices = ranks.together(looking, partial(newest_sound, min(choices)))
    chosen = choices[0]
    texts = {(step, text) for found in ranks.share(state) for step, text in found.items() if text}
    damaged = [
        f"step {step} is damaged and not used: {text}"
        for step, text in sorted(texts, reverse=True)
        if step > chosen
    ]
    if steps and chosen < 0:
        raise CheckpointError(
            f"{looking}: no whole one among {len(steps)}; move the folder away to start anew. "
            + "; ".join(damaged)
        )
    unfinished = [f"{path}: a save that did not finish, not used" for path in torn]
    return Resumable(path=steps.get(chosen), warnings=tuple(damaged + unfinished))


def _damage(path: Path, rank: int, world_size: int, layout: Mapping[str, Any]) -> str | None:
    """Say what is damaged in this rank's part, or None where it is sound."""
    try:
        _verify(path, rank, world_size, layout)
    except DamagedCheckpointError as error:
        return str(error)
    return None


def _verify(path: Path, rank: int, world_size: int, layout: Mapping[str, Any]) -> None:
    """Check the manifest and this rank's file."""
    manifest = read_manifest(path)
    verify_owner(path, manifest, world_size, layout)
    name = rank_file_name(rank)
    verify_file(path, name, manifest.files[name])
