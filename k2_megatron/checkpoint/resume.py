# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Find the checkpoint to go on from, the same on every rank, and load what this rank holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from k2_megatron.checkpoint.data_file import DataReader, Holding, matrix_name
from k2_megatron.checkpoint.folder import list_partials, list_steps
from k2_megatron.checkpoint.index import check_shapes, check_tiling, read_index
from k2_megatron.checkpoint.manifest import (
    DamagedCheckpointError,
    read_manifest,
    verify_file,
    verify_identity,
)
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """What all ranks agreed to go on from."""

    path: Path | None
    """The newest checkpoint that is whole on every rank; None where nothing was saved yet."""
    warnings: tuple[str, ...]
    """Texts for the log: newer checkpoints that are damaged, saves that did not finish."""


def find_resumable(
    folder: Path, ranks: Ranks, identity: Mapping[str, Any], *, before: int | None = None
) -> Resumable:
    """Choose the newest checkpoint whose files are sound.

    Collective: the ranks divide the files of a checkpoint, read and verify them; the smallest
    choice is taken, and looked at again by those that had a newer one, until all have the same.

    Args:
        folder: of the run's checkpoints.
        ranks: all of them.
        identity: of the run.
        before: only checkpoints of smaller steps are looked at; None: all.

    Raises:
        CheckpointError: on every rank, when checkpoints exist and all are damaged (going on from
            step 0 would be a silent loss), or the newest whole one belongs to a run of another
            identity or has another format version.
    """
    looking = f"looking in {folder} for a checkpoint to go on from"
    listings = ranks.together(looking, lambda: (list_steps(folder), list_partials(folder)))
    steps, torn = listings[0]
    if before is not None:
        looking += f", before step {before}"
        steps = {step: path for step, path in steps.items() if step < before}
    state: dict[int, str | None] = {}

    def newest_sound(bound: int) -> int:
        for step in sorted((step for step in steps if step <= bound), reverse=True):
            if step not in state:
                state[step] = _damage(steps[step], ranks, identity)
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
        anew = "move the folder away to start anew. " if before is None else ""
        raise CheckpointError(
            f"{looking}: no whole one among {len(steps)}; {anew}" + "; ".join(damaged)
        )
    unfinished = [f"{path}: a save that did not finish, not used" for path in torn]
    return Resumable(path=steps.get(chosen), warnings=tuple(damaged + unfinished))


def load(
    path: Path, holdings: Sequence[Holding], shapes: Mapping[str, tuple[int, int]], ranks: Ranks
) -> None:
    """Fill this rank's holdings, whatever layout they were saved in. Collective.

    Args:
        path: a checkpoint that `find_resumable` has verified.
        holdings: what this rank holds; their values are replaced, cast to their dtype.
        shapes: (rows, columns) of every matrix that the ranks hold together, by name.
        ranks: all of them.

    Raises:
        CheckpointError: on every rank; the checkpoint lacks a matrix or a part of one, or has
            others; names them.
    """

    def read() -> None:
        index = read_index(path)
        if ranks.rank == 0:
            check_shapes(index, shapes, f"{path}: does not hold what this run needs")
            check_tiling(index, f"{path}: does not hold every element once")
        with DataReader(path, index.files) as reader:
            for holding in holdings:
                begin = 0
                for region in holding.regions:
                    matrix = index.matrices.get(matrix_name(holding.kind, region.key))
                    if matrix is None:
                        return  # rank 0 lists all that is missing
                    width = region.cols[1] - region.cols[0]
                    part = holding.values[begin : begin + region.size]
                    reader.read(matrix, region, part.view(-1, width))
                    begin += region.size

    ranks.together(f"loading {path}", read)


def verify_share(path: Path, ranks: Ranks, identity: Mapping[str, Any]) -> None:
    """Verify the manifest and this rank's share of the files, which the ranks divide evenly.

    Raises:
        DamagedCheckpointError: something is missing or altered; names file, found and expected.
        CheckpointError: it belongs to a run of another identity, or has another format version.
    """
    manifest = read_manifest(path)
    verify_identity(path, manifest, identity)
    for name in sorted(manifest.files)[ranks.rank :: ranks.world_size]:
        verify_file(path, name, manifest.files[name])


def _damage(path: Path, ranks: Ranks, identity: Mapping[str, Any]) -> str | None:
    """Say what is damaged in this rank's share of the files, or None where it is sound."""
    try:
        verify_share(path, ranks, identity)
    except DamagedCheckpointError as error:
        return str(error)
    return None
