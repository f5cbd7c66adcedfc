# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Write an import as a checkpoint of weights: part by part, by threads, and resumable.

Each thread holds one tensor of the release: reading, dequantising, hashing and writing release the
interpreter's lock. While an import is under way `import-progress.json` in its `.partial` folder
says which parts are finished; an import that goes on reads them again and keeps those whose
checksum is right.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from k2_megatron.checkpoint.durable import write_text_durably
from k2_megatron.checkpoint.folder import list_steps, partial_path
from k2_megatron.checkpoint.huggingface.importing import Import
from k2_megatron.checkpoint.huggingface.names import HfTensor
from k2_megatron.checkpoint.manifest import FileEntry, data_file_name, file_entry
from k2_megatron.checkpoint.weights import (
    WeightPart,
    finish_weights,
    start_weights,
    write_weight_part,
)
from k2_megatron.config.config import Config
from k2_megatron.errors import CheckpointError

PROGRESS_NAME = "import-progress.json"
_FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import left behind. kept: finished parts of an earlier attempt."""

    checkpoint: Path
    num_parts: int
    kept: int


def import_weights(
    source: Import, checkpoints: Path, config: Config, *, part_bytes: int, workers: int
) -> Imported:
    """Write the release's weights as the checkpoint of step 0.

    Args:
        source: the release.
        checkpoints: the run's `checkpoints` folder.
        config: of the run.
        part_bytes: of a part's file, after which the next one begins.
        workers: number of threads.

    Raises:
        CheckpointError: the run has checkpoints already, or the release changed.
        OSError: the disk refused the bytes.
    """
    if steps := list_steps(checkpoints):
        names = ", ".join(path.name for path in steps.values())
        raise CheckpointError(
            f"{checkpoints}: holds checkpoints, from which the run would go on: {names}; use "
            "another run.name, or move them away"
        )
    parts = _parts(source.originals, part_bytes)
    progress = _start(source, parts, checkpoints)
    kept = len(progress.finished)
    stopped = threading.Event()

    def write(number: int) -> None:
        matrices = source.matrices(parts[number])
        if not stopped.is_set():
            progress.finish(write_weight_part(checkpoints, number, matrices))

    with ThreadPoolExecutor(workers, thread_name_prefix="import-hf") as pool:
        todo = [number for number in range(len(parts)) if number not in progress.finished]
        futures = [pool.submit(write, number) for number in todo]
        try:
            for future in futures:
                future.result()
        finally:
            stopped.set()
    progress.path.unlink()
    checkpoint = finish_weights(checkpoints, config, progress.finished.values())
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


@dataclass
class _Progress:
    """The record of finished parts by number."""

    path: Path
    identity: str
    finished: dict[int, WeightPart] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, part: WeightPart) -> None:
        with self.lock:
            self.finished[part[0]] = part
            self.write()

    def write(self) -> None:
        parts = [(number, asdict(entry), held) for number, entry, held in self.finished.values()]
        content = {"import": self.identity, "finished": parts}
        write_text_durably(self.path, json.dumps(content) + "\n")


def _start(source: Import, parts: Sequence[Sequence[HfTensor]], checkpoints: Path) -> _Progress:
    """Begin, or go on where the same import stopped: keep the parts whose bytes are right."""
    partial = partial_path(checkpoints, 0)
    progress = _Progress(partial / PROGRESS_NAME, _identity(source, parts))
    found = _earlier_parts(progress)
    if not found:
        start_weights(checkpoints)
    for number, entry, held in found:
        path = partial / data_file_name(number)
        if path.exists() and file_entry(path) == entry:
            progress.finished[number] = (number, entry, held)
    progress.write()
    return progress


def _earlier_parts(progress: _Progress) -> list[WeightPart]:
    """What an earlier attempt of the same import says it finished."""
    try:
        content = json.loads(progress.path.read_bytes())
        if content["import"] != progress.identity:
            return []
        return [
            (
                number,
                FileEntry(**entry),
                [(key, offset, rows, cols) for key, offset, rows, cols in held],
            )
            for number, entry, held in content["finished"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _identity(source: Import, parts: Sequence[Sequence[HfTensor]]) -> str:
    """What two attempts must share: the release's files as they stand, and the parts."""
    files = sorted({tensor.file for tensor in source.release.stored.values()})
    lines = [json.dumps(source.raw, sort_keys=True), str(source.release.folder.resolve())]
    for file in files:
        status = file.stat()
        lines.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    lines += [" ".join(tensor.name for tensor in part) for part in parts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
