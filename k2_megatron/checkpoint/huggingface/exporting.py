# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From canonical matrices to the shards of a release, written by threads and resumable.

The index is written when every shard is there, so a folder without one is no release yet. Until
then `export-progress.json` says which shards are finished, with their checksums; an export that
goes on reads them again and keeps those that are right. Threads suffice, as reading, casting,
hashing and writing release the interpreter's lock; each holds one tensor and what it is made of.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from k2_megatron.checkpoint.durable import write_text_durably
from k2_megatron.checkpoint.huggingface.companions import copy_companions
from k2_megatron.checkpoint.huggingface.config_json import CONFIG_NAME
from k2_megatron.checkpoint.huggingface.names import HfTensor
from k2_megatron.checkpoint.huggingface.release import INDEX_NAME
from k2_megatron.checkpoint.huggingface.safetensors_file import NewTensor, write_file
from k2_megatron.errors import CheckpointError

PROGRESS_NAME = "export-progress.json"


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is to be written where.

    Attributes:
        folder: of the release; made if it is missing.
        source: names the weights; an export goes on only from the same.
        config: fields of config.json.
        tensors: in the order of the files.
        dtype: of all but the tensors that keep fp32.
        shard_bytes: size after which the next file begins; a larger tensor has one of its own.
        like: folder whose tokenizer and other companions go along; None: there are none.
    """

    folder: Path
    source: str
    config: Mapping[str, Any]
    tensors: Sequence[HfTensor]
    dtype: torch.dtype
    shard_bytes: int
    like: Path | None = None

    def shards(self) -> dict[str, list[NewTensor]]:
        """File name -> its tensors."""
        groups: list[list[NewTensor]] = []
        size = 0
        for tensor in self.tensors:
            dtype = torch.float32 if tensor.keeps_fp32 else self.dtype
            new = NewTensor(name=tensor.name, dtype=dtype, shape=tensor.shape)
            if not groups or size + new.size_bytes > self.shard_bytes:
                groups.append([])
                size = 0
            groups[-1].append(new)
            size += new.size_bytes
        count = len(groups)
        return {
            f"model-{index:05d}-of-{count:05d}.safetensors": group
            for index, group in enumerate(groups, 1)
        }


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export left behind. kept: finished shards of an earlier attempt."""

    num_shards: int
    size_bytes: int
    kept: int


def export(plan: Export, read: Callable[[str], torch.Tensor], *, workers: int) -> Exported:
    """Write a release, or what is missing of it.

    Args:
        read: gives a canonical matrix [rows, columns]; called by several threads.
        workers: number of threads; each holds one tensor in memory.

    Raises:
        CheckpointError: the folder holds something else.
    """
    shards = plan.shards()
    progress = _start(plan, shards)
    kept = len(progress.finished)
    tensors = {tensor.name: tensor for tensor in plan.tensors}

    def write(name: str) -> None:
        size, digest = write_file(
            plan.folder / name, shards[name], lambda tensor: tensors[tensor].join(read)
        )
        progress.finish(name, size, digest)

    with ThreadPoolExecutor(workers, thread_name_prefix="export-hf") as pool:
        futures = [pool.submit(write, name) for name in shards if name not in progress.finished]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    if plan.like is not None:
        copy_companions(plan.like, plan.folder, with_config=False)
    write_text_durably(plan.folder / CONFIG_NAME, json.dumps(plan.config, indent=2) + "\n")
    index = {
        "metadata": {"total_size": sum(new.size_bytes for part in shards.values() for new in part)},
        "weight_map": {new.name: file for file, part in shards.items() for new in part},
    }
    write_text_durably(plan.folder / INDEX_NAME, json.dumps(index, indent=2) + "\n")
    (plan.folder / PROGRESS_NAME).unlink()
    size_bytes = sum(size for size, _ in progress.finished.values())
    return Exported(num_shards=len(shards), size_bytes=size_bytes, kept=kept)


@dataclass
class _Progress:
    """The record of finished shards: name -> (bytes, sha256)."""

    path: Path
    identity: str
    finished: dict[str, tuple[int, str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, name: str, size_bytes: int, digest: str) -> None:
        with self.lock:
            self.finished[name] = (size_bytes, digest)
            self.write()

    def write(self) -> None:
        content = {"export": self.identity, "finished": self.finished}
        write_text_durably(self.path, json.dumps(content, indent=1) + "\n")


def _start(plan: Export, shards: Mapping[str, Sequence[NewTensor]]) -> _Progress:
    """Begin, or go on: keep the finished shards whose bytes are still right."""
    progress = _Progress(plan.folder / PROGRESS_NAME, _identity(plan, shards))
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not progress.path.exists():
        if any(plan.folder.iterdir()):
            raise CheckpointError(
                f"{plan.folder}: not empty, and no export that was interrupted; give a new folder"
            )
        progress.write()
        return progress
    try:
        content = json.loads(progress.path.read_bytes())
        identity, finished = content["export"], dict(content["finished"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{progress.path}: cannot be read: {error!r}") from None
    if identity != progress.identity:
        raise CheckpointError(
            f"{plan.folder}: holds an unfinished export of other weights or with other options; "
            "remove it, or give a new folder"
        )
    for name, (size, digest) in finished.items():
        if name in shards and _sha256(plan.folder / name) == digest:
            progress.finished[name] = (size, digest)
    return progress


def _identity(plan: Export, shards: Mapping[str, Sequence[NewTensor]]) -> str:
    """What two attempts must share for one to go on where the other stopped."""
    parts = [
        plan.source,
        json.dumps(plan.config, sort_keys=True),
        *(
            f"{name} {[(new.name, str(new.dtype)) for new in part]}"
            for name, part in shards.items()
        ),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
