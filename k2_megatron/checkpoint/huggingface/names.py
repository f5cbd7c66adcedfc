# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The one table between canonical matrices and the tensors of a released DeepSeek-V3 or Kimi K2.

The rows of the up-projections lie head by head there, each head's blocks one under the other. No
row is permuted: both sides rotate the interleaved pairs (2i, 2i + 1) of the rotary rows
(megatron-core: models/common/embeddings/rope_utils.py, `_apply_rotary_pos_emb_bshd` with
`multi_latent_attention`; transformers: `apply_rotary_pos_emb_interleave`), so one layout of rows
serves both; the test of equal logits holds them to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from k2_megatron.checkpoint.identity import model_matrices
from k2_megatron.config.model import ModelConfig
from k2_megatron.model.shape import model_shape
from k2_megatron.parallel.canonical import ModelShape

# Some releases store the rotary frequencies; they follow from config.json.
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True, kw_only=True)
class HfTensor:
    """One tensor of a release and the canonical matrices it is made of.

    Attributes:
        name: as in the safetensors index.
        shape: (rows, columns), or (elements,).
        keys: canonical matrices, in the order of their rows within a group.
        rows: rows of each of them within a group.
        groups: how often the blocks repeat, one group a head; 1 where they do not.
        keeps_fp32: never stored in less than fp32.
        is_copy: repeats a matrix that another tensor holds, as DeepSeek's MTP layers do.
    """

    name: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    rows: tuple[int, ...]
    groups: int = 1
    keeps_fp32: bool = False
    is_copy: bool = False

    @property
    def num_elements(self) -> int:
        """Elements of the tensor."""
        return self.shape[0] * (self.shape[1] if len(self.shape) == 2 else 1)

    def split(self, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The canonical matrices, [rows, columns] each, in a tensor of this shape."""
        grouped = tensor.reshape(self.groups, sum(self.rows), -1)
        for key, block in zip(self.keys, torch.split(grouped, list(self.rows), dim=1), strict=True):
            yield key, block.reshape(-1, grouped.shape[2])

    def join(self, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """This tensor, from a reader of canonical matrices."""
        if len(self.keys) == 1:
            return read(self.keys[0]).reshape(self.shape)
        blocks = [
            read(key).reshape(self.groups, rows, -1)
            for key, rows in zip(self.keys, self.rows, strict=True)
        ]
        return torch.cat(blocks, dim=1).reshape(self.shape)


def hf_tensors(model: ModelConfig) -> tuple[HfTensor, ...]:
    """Every tensor of a release of this model, in model order."""
    return tuple(_Table(model_shape(model), model_matrices(model)).tensors())


@dataclass(frozen=True)
class _Table:
    """Writes down the tensors; each method yields those of one module."""

    shape: ModelShape
    matrices: dict[str, tuple[int, int]]

    def tensors(self) -> Iterator[HfTensor]:
        shape = self.shape
        yield self._rows("model.embed_tokens", "embedding")
        for layer in range(shape.num_layers):
            yield from self._layer(
                f"model.layers.{layer}", f"layers.{layer}", dense=shape.is_dense(layer)
            )
        yield self._vector("model.norm.weight", "final_norm")
        yield self._rows("lm_head", "output")
        for index in range(shape.num_mtp_layers):
            yield from self._mtp(f"model.layers.{shape.num_layers + index}", f"mtp.{index}")

    def _mtp(self, name: str, key: str) -> Iterator[HfTensor]:
        """A multi-token-prediction layer: the layers after the last, with head and embedding."""
        yield self._rows(f"{name}.embed_tokens", "embedding", is_copy=True)
        yield self._vector(f"{name}.enorm.weight", f"{key}.embedding_norm")
        yield self._vector(f"{name}.hnorm.weight", f"{key}.hidden_norm")
        yield self._rows(f"{name}.eh_proj", f"{key}.join")
        dense = self.shape.is_dense(self.shape.num_layers - 1)
        yield from self._layer(name, f"{key}.layer", dense=dense)
        yield self._vector(f"{name}.shared_head.norm.weight", f"{key}.final_norm")
        yield self._rows(f"{name}.shared_head.head", "output", is_copy=True)

    def _layer(self, name: str, key: str, *, dense: bool) -> Iterator[HfTensor]:
        yield self._vector(f"{name}.input_layernorm.weight", f"{key}.attention_norm")
        yield from self._attention(f"{name}.self_attn", f"{key}.attention")
        yield self._vector(f"{name}.post_attention_layernorm.weight", f"{key}.mlp_norm")
        if dense:
            yield from self._swiglu(f"{name}.mlp", f"{key}.mlp")
            return
        yield self._rows(f"{name}.mlp.gate", f"{key}.router")
        yield self._vector(
            f"{name}.mlp.gate.e_score_correction_bias", f"{key}.router_bias", keeps_fp32=True
        )
        for expert in range(self.shape.num_experts):
            yield from self._swiglu(f"{name}.mlp.experts.{expert}", f"{key}.experts.{expert}")
        if self.shape.shared_expert_size:
            yield from self._swiglu(f"{name}.mlp.shared_experts", f"{key}.shared_expert")

    def _attention(self, name: str, key: str) -> Iterator[HfTensor]:
        heads = self.shape.num_heads
        queries = (f"{key}.q_up.nope", f"{key}.q_up.rope")
        if self.shape.q_lora_rank is None:
            yield self._rows(f"{name}.q_proj", *queries, groups=heads)
        else:
            yield self._rows(f"{name}.q_a_proj", f"{key}.q_down")
            yield self._vector(f"{name}.q_a_layernorm.weight", f"{key}.q_norm")
            yield self._rows(f"{name}.q_b_proj", *queries, groups=heads)
        yield self._rows(
            f"{name}.kv_a_proj_with_mqa", f"{key}.kv_down.latent", f"{key}.kv_down.rope"
        )
        yield self._vector(f"{name}.kv_a_layernorm.weight", f"{key}.kv_norm")
        yield self._rows(f"{name}.kv_b_proj", f"{key}.kv_up.k", f"{key}.kv_up.v", groups=heads)
        yield self._rows(f"{name}.o_proj", f"{key}.out")

    def _swiglu(self, name: str, key: str) -> Iterator[HfTensor]:
        for part in ("gate", "up", "down"):
            yield self._rows(f"{name}.{part}_proj", f"{key}.{part}")

    def _rows(self, module: str, *keys: str, groups: int = 1, is_copy: bool = False) -> HfTensor:
        """The weight of a linear layer or embedding."""
        rows = [self.matrices[key][0] for key in keys]
        return HfTensor(
            name=f"{module}.weight",
            shape=(sum(rows), self.matrices[keys[0]][1]),
            keys=keys,
            rows=tuple(count // groups for count in rows),
            groups=groups,
            is_copy=is_copy,
        )

    def _vector(self, name: str, key: str, *, keeps_fp32: bool = False) -> HfTensor:
        size = self.matrices[key][0]
        return HfTensor(name=name, shape=(size,), keys=(key,), rows=(size,), keeps_fp32=keeps_fp32)
