# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The model's matrices under names that no layout and no platform changes.

A canonical matrix is the finest piece that training treats as one: gate and up apart, the content
and rotary blocks of MLA apart, every expert by itself. Rows are output features, columns input
features; a vector is a matrix of one column. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a K2-class model that decide its matrices (K2 report, section 2.3).

    Attributes:
        q_lora_rank: None where queries are projected in one step, as in Moonlight.
        shared_expert_size: width of the shared expert, 0 for none.
        num_dense_layers: leading layers without experts.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_head_dim: int
    qk_rope_dim: int
    v_head_dim: int
    ffn_size: int
    num_dense_layers: int
    num_experts: int
    expert_size: int
    shared_expert_size: int
    vocab_size: int
    num_mtp_layers: int = 0

    def is_dense(self, layer: int) -> bool:
        """Whether a decoder layer has a dense feed-forward block in place of experts."""
        return layer < self.num_dense_layers


def canonical_shapes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every canonical matrix of the model, in model order."""
    return dict(_matrices(shape))


def _matrices(shape: ModelShape) -> Iterator[tuple[str, tuple[int, int]]]:
    hidden = shape.hidden_size
    yield "embedding", (shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        yield from _layer(shape, f"layers.{layer}", dense=shape.is_dense(layer))
    yield "final_norm", (hidden, 1)
    yield "output", (shape.vocab_size, hidden)
    for index in range(shape.num_mtp_layers):
        name = f"mtp.{index}"
        yield f"{name}.embedding_norm", (hidden, 1)
        yield f"{name}.hidden_norm", (hidden, 1)
        yield f"{name}.join", (hidden, 2 * hidden)
        dense = shape.is_dense(shape.num_layers - 1)
        yield from _layer(shape, f"{name}.layer", dense=dense)
        yield f"{name}.final_norm", (hidden, 1)


def _layer(shape: ModelShape, name: str, *, dense: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    hidden = shape.hidden_size
    yield f"{name}.attention_norm", (hidden, 1)
    yield from _attention(shape, f"{name}.attention")
    yield f"{name}.mlp_norm", (hidden, 1)
    if dense:
        yield from _swiglu(f"{name}.mlp", hidden, shape.ffn_size)
        return
    yield f"{name}.router", (shape.num_experts, hidden)
    for expert in range(shape.num_experts):
        yield from _swiglu(f"{name}.experts.{expert}", hidden, shape.expert_size)
    if shape.shared_expert_size:
        yield from _swiglu(f"{name}.shared_expert", hidden, shape.shared_expert_size)


def _attention(shape: ModelShape, name: str) -> Iterator[tuple[str, tuple[int, int]]]:
    hidden, heads = shape.hidden_size, shape.num_heads
    query_input = hidden
    if shape.q_lora_rank is not None:
        query_input = shape.q_lora_rank
        yield f"{name}.q_down", (shape.q_lora_rank, hidden)
        yield f"{name}.q_norm", (shape.q_lora_rank, 1)
    yield f"{name}.q_up.nope", (heads * shape.qk_head_dim, query_input)
    yield f"{name}.q_up.rope", (heads * shape.qk_rope_dim, query_input)
    yield f"{name}.kv_down.latent", (shape.kv_lora_rank, hidden)
    yield f"{name}.kv_down.rope", (shape.qk_rope_dim, hidden)
    yield f"{name}.kv_norm", (shape.kv_lora_rank, 1)
    yield f"{name}.kv_up.k", (heads * shape.qk_head_dim, shape.kv_lora_rank)
    yield f"{name}.kv_up.v", (heads * shape.v_head_dim, shape.kv_lora_rank)
    yield f"{name}.out", (hidden, heads * shape.v_head_dim)


def _swiglu(name: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    yield f"{name}.gate", (width, hidden)
    yield f"{name}.up", (width, hidden)
    yield f"{name}.down", (hidden, width)
