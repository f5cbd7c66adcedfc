# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From canonical matrices to the shards of a release, by ranks and threads, and resumable.

The index is written when every shard is there, so a folder without one is no release yet. Until
then `export-progress.json`, and one such file of each further rank, says which shards are finished,
with their checksums; an export that goes on reads them again and keeps those that are right.
Reading, casting, hashing and writing release the interpreter's lock; each thread holds one tensor
and what it is made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from k2_megatron.checkpoint.durable import write_text_durably
from k2_megatron.checkpoint.huggingface.companions import copy_companions
from k2_megatron.checkpoint.huggingface.config_json import CONFIG_NAME
from k2_megatron.checkpoint.huggingface.names import HfTensor
from k2_megatron.checkpoint.huggingface.release import INDEX_NAME
from k2_megatron.checkpoint.huggingface.safetensors_file import NewTensor, write_file
from k2_megatron.checkpoint.huggingface.sharing import (
    Progress,
    merge_records,
    read_record,
    remove_records,
)
from k2_megatron.checkpoint.ranks import ALONE, Ranks
from k2_megatron.errors import CheckpointError
from k2_megatron.launch.agreement import from_first_rank

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


def export(
    plan: Export, read: Callable[[str], torch.Tensor], *, workers: int, ranks: Ranks = ALONE
) -> Exported:
    """Write a release, or what is missing of it. Collective.

    Args:
        plan: the same on all ranks; its folder is on a disk that all see.
        read: gives a canonical matrix [rows, columns]; called by several threads.
        workers: number of threads of each rank; each holds one tensor in memory.
        ranks: all that divide the shards.

    Raises:
        UserError: the folder holds something else, or the disk refused bytes.
    """
    shards = plan.shards()
    identity, earlier = from_first_rank(lambda: _start(plan, shards))
    progress = Progress(plan.folder / PROGRESS_NAME, identity, earlier, ranks)
    tensors = {tensor.name: tensor for tensor in plan.tensors}

    def write(name: str) -> None:
        size, digest = write_file(
            plan.folder / name, shards[name], lambda tensor: tensors[tensor].join(read)
        )
        progress.finish(name, [size, digest])

    progress.complete(
        list(shards),
        write,
        is_whole=lambda name, entry: _sha256(plan.folder / name) == entry[1],
        workers=workers,
    )
    from_first_rank(lambda: _finish(plan, shards))
    sizes = ranks.share((sum(size for size, _ in progress.finished.values()), progress.num_kept))
    return Exported(
        num_shards=len(shards),
        size_bytes=sum(size for size, _ in sizes),
        kept=sum(kept for _, kept in sizes),
    )


def _start(plan: Export, shards: Mapping[str, Sequence[NewTensor]]) -> tuple[str, dict[str, Any]]:
    """Begin, or go on: the identity of this export, and the shards that are said to be finished."""
    path, identity = plan.folder / PROGRESS_NAME, _identity(plan, shards)
    plan.folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        try:
            found, _ = read_record(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error!r}") from None
        if found != identity:
            raise CheckpointError(
                f"{plan.folder}: holds an unfinished export of other weights or with other "
                "options; remove it, or give a new folder"
            )
    elif any(plan.folder.iterdir()):
        raise CheckpointError(
            f"{plan.folder}: not empty, and no export that was interrupted; give a new folder"
        )
    return identity, merge_records(path, identity)


def _finish(plan: Export, shards: Mapping[str, Sequence[NewTensor]]) -> None:
    """What stands beside the shards; with the index it is a release."""
    if plan.like is not None:
        copy_companions(plan.like, plan.folder, with_config=False)
    write_text_durably(plan.folder / CONFIG_NAME, json.dumps(plan.config, indent=2) + "\n")
    index = {
        "metadata": {"total_size": sum(new.size_bytes for part in shards.values() for new in part)},
        "weight_map": {new.name: file for file, part in shards.items() for new in part},
    }
    write_text_durably(plan.folder / INDEX_NAME, json.dumps(index, indent=2) + "\n")
    remove_records(plan.folder / PROGRESS_NAME)


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
