# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Write an import as a checkpoint of weights: part by part, by ranks and threads, and resumable.

Each thread holds one tensor of the release: reading, dequantising, hashing and writing release the
interpreter's lock. While an import is under way `import-progress.json` in its `.partial` folder,
and one such file of each further rank, says which parts are finished; an import that goes on reads
them again and keeps those whose checksum is right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from k2_megatron.checkpoint.folder import list_steps, partial_path
from k2_megatron.checkpoint.huggingface.importing import Import
from k2_megatron.checkpoint.huggingface.names import HfTensor
from k2_megatron.checkpoint.huggingface.sharing import (
    Progress,
    merge_records,
    read_record,
    remove_records,
)
from k2_megatron.checkpoint.manifest import FileEntry, data_file_name, file_entry
from k2_megatron.checkpoint.ranks import ALONE, Ranks
from k2_megatron.checkpoint.weights import (
    WeightPart,
    finish_weights,
    start_weights,
    write_weight_part,
)
from k2_megatron.config.config import Config
from k2_megatron.errors import CheckpointError
from k2_megatron.launch.agreement import from_first_rank

PROGRESS_NAME = "import-progress.json"
_FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import left behind. kept: finished parts of an earlier attempt."""

    checkpoint: Path
    num_parts: int
    kept: int


def import_weights(
    source: Import,
    checkpoints: Path,
    config: Config,
    *,
    part_bytes: int,
    workers: int,
    ranks: Ranks = ALONE,
) -> Imported:
    """Write the release's weights as the checkpoint of step 0. Collective.

    Args:
        source: the release.
        checkpoints: the run's `checkpoints` folder, on a disk that all ranks see.
        config: of the run.
        part_bytes: of a part's file, after which the next one begins.
        workers: number of threads of each rank.
        ranks: all that divide the parts.

    Raises:
        UserError: the run has checkpoints already, the release changed, or the disk refused bytes.
    """
    parts = _parts(source.originals, part_bytes)
    numbers = {data_file_name(number): number for number in range(len(parts))}
    partial = partial_path(checkpoints, 0)
    record = partial / PROGRESS_NAME
    identity, earlier = from_first_rank(lambda: _start(source, parts, checkpoints))
    progress = Progress(record, identity, earlier, ranks)

    def write(name: str) -> None:
        number = numbers[name]
        _, entry, held = write_weight_part(checkpoints, number, source.matrices(parts[number]))
        progress.finish(name, {"file": asdict(entry), "held": held})

    def finish() -> Path:
        remove_records(record)
        finished = {name: entry for one in found for name, entry in one.items()}
        return finish_weights(
            checkpoints, config, [_part(numbers[name], entry) for name, entry in finished.items()]
        )

    progress.complete(
        list(numbers),
        write,
        is_whole=lambda name, entry: _is_whole(partial / name, entry),
        workers=workers,
    )
    found = ranks.gather(progress.finished)
    checkpoint = from_first_rank(finish)
    kept = sum(ranks.share(progress.num_kept))
    return Imported(checkpoint=checkpoint, num_parts=len(parts), kept=kept)


def _parts(tensors: Sequence[HfTensor], part_bytes: int) -> list[list[HfTensor]]:
    parts: list[list[HfTensor]] = []
    size = 0
    for tensor in tensors:
        num_bytes = tensor.num_elements * _FP32_BYTES
        if not parts or size + num_bytes > part_bytes:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += num_bytes
    return parts


def _start(
    source: Import, parts: Sequence[Sequence[HfTensor]], checkpoints: Path
) -> tuple[str, dict[str, Any]]:
    """Begin, or go on where the same import stopped: its identity, and the parts it finished."""
    if steps := list_steps(checkpoints):
        names = ", ".join(path.name for path in steps.values())
        raise CheckpointError(
            f"{checkpoints}: holds checkpoints, from which the run would go on: {names}; use "
            "another run.name, or move them away"
        )
    identity = _identity(source, parts)
    record = partial_path(checkpoints, 0) / PROGRESS_NAME
    try:
        goes_on = read_record(record)[0] == identity
    except (OSError, ValueError):
        goes_on = False
    if not goes_on:
        start_weights(checkpoints)
    return identity, merge_records(record, identity)


def _is_whole(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.exists() and file_entry(path) == FileEntry(**entry["file"])


def _part(number: int, entry: Mapping[str, Any]) -> WeightPart:
    held = [(key, offset, rows, cols) for key, offset, rows, cols in entry["held"]]
    return number, FileEntry(**entry["file"]), held


def _identity(source: Import, parts: Sequence[Sequence[HfTensor]]) -> str:
    """What two attempts must share: the release's files as they stand, and the parts."""
    files = sorted({tensor.file for tensor in source.release.stored.values()})
    lines = [json.dumps(source.raw, sort_keys=True), str(source.release.folder.resolve())]
    for file in files:
        status = file.stat()
        lines.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    lines += [" ".join(tensor.name for tensor in part) for part in parts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
