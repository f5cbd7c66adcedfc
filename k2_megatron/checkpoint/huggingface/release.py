# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A folder with a released model: its tensors held against the table, then read one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from k2_megatron.checkpoint.huggingface.block_fp8 import SCALE_SUFFIX, dequantise, scale_shape
from k2_megatron.checkpoint.huggingface.names import DERIVED, HfTensor
from k2_megatron.checkpoint.huggingface.safetensors_file import StoredTensor, read_header
from k2_megatron.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_SHOWN = 20  # of each kind of problem


@dataclass(frozen=True, kw_only=True)
class Release:
    """The tensors of a folder.

    Attributes:
        stored: every tensor of every file, by name.
        problems: what the index and the files say differently of each other.
    """

    folder: Path
    stored: dict[str, StoredTensor]
    problems: tuple[str, ...]

    @property
    def derived(self) -> list[str]:
        """Tensors that follow from config.json and are not read."""
        return [name for name in self.stored if DERIVED.fullmatch(name)]

    def holds_layer(self, layer: int) -> bool:
        """Whether there is any tensor of a layer, numbered as in the release."""
        return any(name.startswith(f"model.layers.{layer}.") for name in self.stored)

    def check(self, expected: Sequence[HfTensor], fp8_block: tuple[int, int] | None) -> None:
        """Hold all names, shapes and dtypes against the table.

        Raises:
            CheckpointError: lists what is unknown, missing, misshapen or of another dtype.
        """
        kinds: dict[str, list[str]] = {"missing": [], "misshapen": [], "dtype": [], "unknown": []}
        scales = set()
        for tensor in expected:
            found = self.stored.get(tensor.name)
            if found is None:
                kinds["missing"].append(f"{tensor.name} {list(tensor.shape)}")
                continue
            _compare(found, tensor.shape, kinds["misshapen"])
            if found.dtype == "F8_E4M3":
                scales.add(tensor.name + SCALE_SUFFIX)
                kinds["dtype"] += self._quantised(tensor, fp8_block)
                scale = self.stored.get(tensor.name + SCALE_SUFFIX)
                if scale is None:
                    kinds["missing"].append(tensor.name + SCALE_SUFFIX)
                elif fp8_block and len(tensor.shape) == 2:
                    _compare(scale, scale_shape(tensor.shape, fp8_block), kinds["misshapen"])
            elif found.dtype not in ("F32", "BF16"):
                kinds["dtype"].append(f"{tensor.name}: {found.dtype}; allowed: F32, BF16, F8_E4M3")
        known = {tensor.name for tensor in expected} | scales | set(self.derived)
        kinds["unknown"] += sorted(
            f"{name} {list(self.stored[name].shape)}" for name in self.stored.keys() - known
        )
        lines = [*self.problems]
        for kind, found_problems in kinds.items():
            lines += [f"{kind}: {text}" for text in found_problems[:_SHOWN]]
            if len(found_problems) > _SHOWN:
                lines.append(f"{kind}: and {len(found_problems) - _SHOWN} more")
        if lines:
            text = "\n  ".join(lines)
            raise CheckpointError(
                f"{self.folder}: its tensors are not those of its config.json:\n  {text}"
            )

    def _quantised(self, tensor: HfTensor, fp8_block: tuple[int, int] | None) -> Iterator[str]:
        if fp8_block is None:
            yield f"{tensor.name}: F8_E4M3, and config.json has no quantization_config"
        elif len(tensor.shape) != 2:
            yield f"{tensor.name}: F8_E4M3 has blocks in matrices alone"
        scale = self.stored.get(tensor.name + SCALE_SUFFIX)
        if scale is not None and scale.dtype not in ("F32", "BF16"):
            yield f"{scale.name}: {scale.dtype}; allowed: F32, BF16"

    def read(self, tensor: HfTensor, fp8_block: tuple[int, int] | None) -> torch.Tensor:
        """A checked tensor in fp32, dequantised where it is stored in FP8."""
        stored = self.stored[tensor.name]
        value = stored.read()
        if stored.dtype == "F8_E4M3":
            assert fp8_block is not None
            value = dequantise(value, self.stored[tensor.name + SCALE_SUFFIX].read(), fp8_block)
        value = value.to(torch.float32)
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{stored.file}: {tensor.name} holds infinities or NaN")
        return value


def open_release(folder: Path) -> Release:
    """Read the headers of a release's files; no tensor is read.

    Raises:
        CheckpointError: there is no release, or a file of it is missing or damaged.
    """
    index = folder / INDEX_NAME
    if not index.exists():
        single = folder / SINGLE_NAME
        if not single.exists():
            raise CheckpointError(f"{folder}: holds neither {INDEX_NAME} nor {SINGLE_NAME}")
        return Release(folder=folder, stored=read_header(single), problems=())
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        files = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors files ({error!r})") from None
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: files that {INDEX_NAME} names are missing: {missing}")
    stored: dict[str, StoredTensor] = {}
    problems = []
    for file in files:
        for name, tensor in read_header(folder / file).items():
            if weight_map.get(name) != file:
                problems.append(f"{name}: in {file}, the index says {weight_map.get(name)}")
            stored[name] = tensor
    problems += [
        f"{name}: the index says {file}, which lacks it"
        for name, file in weight_map.items()
        if name not in stored
    ]
    return Release(folder=folder, stored=stored, problems=tuple(problems[:_SHOWN]))


def _compare(found: StoredTensor, shape: tuple[int, ...], problems: list[str]) -> None:
    if found.shape != shape:
        problems.append(f"{found.name}: {list(found.shape)} found, {list(shape)} expected")
