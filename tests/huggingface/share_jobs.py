# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What one of several ranks does in the tests of imports and exports that ranks divide."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.checkpoint.huggingface.config_writing import write_config_json
from k2_megatron.checkpoint.huggingface.exporting import Export, export
from k2_megatron.checkpoint.huggingface.import_parts import import_weights
from k2_megatron.checkpoint.huggingface.importing import Import, open_import
from k2_megatron.checkpoint.huggingface.names import HfTensor, hf_tensors
from k2_megatron.checkpoint.identity import model_matrices
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.errors import UserError
from k2_megatron.launch.agreement import agree

# What befalls the rank that comes to a tensor.
Fate = tuple[str, str] | None


def import_share(
    config_path: str, overrides: list[str], release: str, folder: str, part_bytes: int, fate: Fate
) -> dict[str, Any] | str:
    """Import as this rank; what was done, or the mistake."""
    config = load_config(config_path, overrides)
    source = agree(lambda: open_import(Path(release), config))
    read = Import._read

    def watched(self: Import, tensor: HfTensor) -> torch.Tensor:
        _meet(fate, tensor.name)
        return read(self, tensor)

    Import._read = watched  # type: ignore[method-assign]
    return _told(
        lambda: import_weights(
            source, Path(folder), config, part_bytes=part_bytes, workers=2, ranks=_ranks()
        )
    )


def export_share(
    config_path: str, overrides: list[str], folder: str, shard_bytes: int, fate: Fate
) -> dict[str, Any] | str:
    """Export random weights as this rank; what was done, or the mistake."""
    config = load_config(config_path, overrides)
    matrices = random_matrices(config)

    def read(key: str) -> torch.Tensor:
        _meet(fate, key)
        return matrices[key]

    plan = Export(
        folder=Path(folder),
        source="a test",
        config=write_config_json(config.model, dtype="float32", context=64, like=None),
        tensors=hf_tensors(config.model),
        dtype=torch.float32,
        shard_bytes=shard_bytes,
    )
    return _told(lambda: export(plan, read, workers=2, ranks=_ranks()))


def random_matrices(config: Config) -> dict[str, torch.Tensor]:
    """The weights that `export_share` writes, by canonical key."""
    generator = torch.Generator().manual_seed(4)
    shapes = model_matrices(config.model)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def _ranks() -> Ranks:
    return Ranks(dist.get_rank(), dist.get_world_size())


def _meet(fate: Fate, name: str) -> None:
    if fate is None or name != fate[1]:
        return
    if fate[0] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"disk of {name}")


def _told(action: Callable[[], Any]) -> dict[str, Any] | str:
    try:
        return asdict(action())
    except UserError as error:
        return str(error)
