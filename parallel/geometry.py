# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The geometry table: which rows and columns of which canonical matrix this rank holds.

One table serves whatever has to know where a matrix lies, in whichever layout: initial weights,
the gradient norm, the comparison of layouts. It knows the layout (tensor, expert and pipeline
ranks) and the two ways in which the platforms name and fuse parameters; it does not know torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from k2_megatron.parallel.canonical import ModelShape
from k2_megatron.parallel.layout import Stage

Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A rectangle of a local parameter and the rectangle of a canonical matrix it is.

    All ranges are half open (begin, end).

    Attributes:
        key: name of the canonical matrix.
        rows, cols: where the rectangle lies in the canonical matrix.
        local_rows, local_cols: where it lies in the parameter, seen as [rows, columns].
    """

    key: str
    rows: Range
    cols: Range
    local_rows: Range
    local_cols: Range


@dataclass(frozen=True, kw_only=True)
class ParameterGeometry:
    """One parameter of one model chunk.

    Attributes:
        name: as in `named_parameters()` of the megatron-core GPTModel.
        shape: local (rows, columns); a vector has one column.
        pieces: rectangles that tile the parameter.
        is_vector: the tensor is one-dimensional.
        is_expert: it belongs to a routed expert, so its gradients are reduced over `edp`.
        is_tensor_sharded: its pieces differ between the ranks of `tp` (experts: `etp`).
    """

    name: str
    shape: tuple[int, int]
    pieces: tuple[Piece, ...]
    is_vector: bool = False
    is_expert: bool = False
    is_tensor_sharded: bool = False


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Sizes and ranks of the axes that cut matrices."""

    tensor_size: int = 1
    tensor_rank: int = 0
    expert_size: int = 1
    expert_rank: int = 0
    expert_tensor_size: int = 1
    expert_tensor_rank: int = 0


def chunk_geometry(
    shape: ModelShape, stage: Stage, place: RankPlace, *, fused_norms: bool, grouped_experts: bool
) -> tuple[ParameterGeometry, ...]:
    """Every parameter of one model chunk on one rank.

    Args:
        shape: sizes of the model.
        stage: layers of the chunk.
        place: this rank on the axes that cut matrices.
        fused_norms: Transformer Engine's naming, where a norm is part of the linear behind it.
        grouped_experts: Transformer Engine's naming of experts, weights of one grouped module.
    """
    return tuple(_Chunk(shape, place, fused_norms, grouped_experts).parameters(stage))


@dataclass(frozen=True)
class _Chunk:
    """Writes down the parameters of one chunk; each method yields those of one module."""

    shape: ModelShape
    place: RankPlace
    fused_norms: bool
    grouped_experts: bool

    def parameters(self, stage: Stage) -> Iterator[ParameterGeometry]:
        shape = self.shape
        vocab = self._cut(shape.vocab_size)
        if stage.embedding or stage.mtp_layers:
            name = "embedding.word_embeddings.weight"
            yield self._rows(name, [("embedding", vocab)], shape.hidden_size)
        for local, layer in enumerate(stage.layers):
            yield from self._layer(
                f"decoder.layers.{local}", f"layers.{layer}", dense=shape.is_dense(layer)
            )
        for index in stage.mtp_layers:
            yield from self._mtp(f"mtp.layers.{index}", f"mtp.{index}")
        if stage.loss:
            yield self._vector("decoder.final_layernorm.weight", "final_norm", shape.hidden_size)
            yield self._rows("output_layer.weight", [("output", vocab)], shape.hidden_size)

    def _layer(self, name: str, key: str, *, dense: bool) -> Iterator[ParameterGeometry]:
        hidden = self.shape.hidden_size
        yield self._vector(f"{name}.input_layernorm.weight", f"{key}.attention_norm", hidden)
        yield from self._attention(f"{name}.self_attention", f"{key}.attention")
        norm = f"{name}.pre_mlp_layernorm.weight"
        if dense and self.fused_norms:
            norm = f"{name}.mlp.linear_fc1.layer_norm_weight"
        yield self._vector(norm, f"{key}.mlp_norm", hidden)
        if dense:
            yield from self._swiglu(f"{name}.mlp", f"{key}.mlp", self.shape.ffn_size)
        else:
            yield from self._moe(f"{name}.mlp", key)

    def _attention(self, name: str, key: str) -> Iterator[ParameterGeometry]:
        shape = self.shape
        heads = self._cut(shape.num_heads)
        query_name, query_input = f"{name}.linear_q_proj", shape.hidden_size
        if shape.q_lora_rank is not None:
            query_name, query_input = f"{name}.linear_q_up_proj", shape.q_lora_rank
            yield self._rows(
                f"{name}.linear_q_down_proj.weight",
                [(f"{key}.q_down", (0, shape.q_lora_rank))],
                shape.hidden_size,
                sharded=False,
            )
            norm = f"{query_name}.layer_norm_" if self.fused_norms else f"{name}.q_layernorm."
            yield self._vector(f"{norm}weight", f"{key}.q_norm", shape.q_lora_rank)
        yield self._heads(
            f"{query_name}.weight",
            [(f"{key}.q_up.nope", shape.qk_head_dim), (f"{key}.q_up.rope", shape.qk_rope_dim)],
            heads,
            query_input,
        )
        yield self._rows(
            f"{name}.linear_kv_down_proj.weight",
            [
                (f"{key}.kv_down.latent", (0, shape.kv_lora_rank)),
                (f"{key}.kv_down.rope", (0, shape.qk_rope_dim)),
            ],
            shape.hidden_size,
            sharded=False,
        )
        kv_name = f"{name}.linear_kv_up_proj"
        norm = f"{kv_name}.layer_norm_" if self.fused_norms else f"{name}.kv_layernorm."
        yield self._vector(f"{norm}weight", f"{key}.kv_norm", shape.kv_lora_rank)
        yield self._heads(
            f"{kv_name}.weight",
            [(f"{key}.kv_up.k", shape.qk_head_dim), (f"{key}.kv_up.v", shape.v_head_dim)],
            heads,
            shape.kv_lora_rank,
        )
        values = (heads[0] * shape.v_head_dim, heads[1] * shape.v_head_dim)
        yield self._cols(f"{name}.linear_proj.weight", f"{key}.out", shape.hidden_size, values)

    def _moe(self, name: str, key: str) -> Iterator[ParameterGeometry]:
        shape, place = self.shape, self.place
        yield self._rows(
            f"{name}.router.weight",
            [(f"{key}.router", (0, shape.num_experts))],
            shape.hidden_size,
            sharded=False,
        )
        num_local = shape.num_experts // place.expert_size
        for local in range(num_local):
            expert = place.expert_rank * num_local + local
            if self.grouped_experts:
                names = [f"{name}.experts.linear_fc{i}.weight{local}" for i in (1, 2)]
            else:
                module = f"{name}.experts.local_experts.{local}"
                names = [f"{module}.linear_fc{i}.weight" for i in (1, 2)]
            yield from self._swiglu_weights(
                names, f"{key}.experts.{expert}", shape.expert_size, expert=True
            )
        if shape.shared_expert_size:
            yield from self._swiglu(
                f"{name}.shared_experts", f"{key}.shared_expert", shape.shared_expert_size
            )

    def _mtp(self, name: str, key: str) -> Iterator[ParameterGeometry]:
        hidden = self.shape.hidden_size
        yield self._vector(f"{name}.enorm.weight", f"{key}.embedding_norm", hidden)
        yield self._vector(f"{name}.hnorm.weight", f"{key}.hidden_norm", hidden)
        yield self._rows(f"{name}.eh_proj.weight", [(f"{key}.join", self._cut(hidden))], 2 * hidden)
        dense = self.shape.is_dense(self.shape.num_layers - 1)
        yield from self._layer(f"{name}.transformer_layer", f"{key}.layer", dense=dense)
        yield self._vector(f"{name}.final_layernorm.weight", f"{key}.final_norm", hidden)

    def _swiglu(self, name: str, key: str, width: int) -> Iterator[ParameterGeometry]:
        names = [f"{name}.linear_fc{i}.weight" for i in (1, 2)]
        yield from self._swiglu_weights(names, key, width, expert=False)

    def _swiglu_weights(
        self, names: list[str], key: str, width: int, *, expert: bool
    ) -> Iterator[ParameterGeometry]:
        part = self._cut(width, expert=expert)
        blocks = [(f"{key}.gate", part), (f"{key}.up", part)]
        hidden = self.shape.hidden_size
        yield self._rows(names[0], blocks, hidden, expert=expert)
        yield self._cols(names[1], f"{key}.down", hidden, part, expert=expert)

    def _cut(self, size: int, *, expert: bool = False) -> Range:
        """This rank's share of a dimension that tensor parallelism cuts."""
        place = self.place
        ways = place.expert_tensor_size if expert else place.tensor_size
        rank = place.expert_tensor_rank if expert else place.tensor_rank
        assert size % ways == 0, (size, ways)
        return (size // ways * rank, size // ways * (rank + 1))

    def _vector(self, name: str, key: str, size: int) -> ParameterGeometry:
        piece = Piece(key=key, rows=(0, size), cols=(0, 1), local_rows=(0, size), local_cols=(0, 1))
        return ParameterGeometry(name=name, shape=(size, 1), pieces=(piece,), is_vector=True)

    def _rows(
        self,
        name: str,
        blocks: list[tuple[str, Range]],
        num_cols: int,
        *,
        sharded: bool = True,
        expert: bool = False,
    ) -> ParameterGeometry:
        """A weight of whole rows: blocks of canonical rows, one under the other."""
        pieces, row = [], 0
        for key, (begin, end) in blocks:
            local = (row, row + end - begin)
            pieces.append(
                Piece(
                    key=key,
                    rows=(begin, end),
                    cols=(0, num_cols),
                    local_rows=local,
                    local_cols=(0, num_cols),
                )
            )
            row = local[1]
        return self._parameter(name, (row, num_cols), pieces, sharded, expert)

    def _heads(
        self, name: str, blocks: list[tuple[str, int]], heads: Range, num_cols: int
    ) -> ParameterGeometry:
        """A weight whose rows go head by head, each head's rows in the given blocks."""
        pieces, row = [], 0
        for head in range(*heads):
            for key, size in blocks:
                pieces.append(
                    Piece(
                        key=key,
                        rows=(head * size, (head + 1) * size),
                        cols=(0, num_cols),
                        local_rows=(row, row + size),
                        local_cols=(0, num_cols),
                    )
                )
                row += size
        return self._parameter(name, (row, num_cols), pieces, True, False)

    def _cols(
        self, name: str, key: str, num_rows: int, cols: Range, *, expert: bool = False
    ) -> ParameterGeometry:
        """A weight of whole columns of one canonical matrix."""
        width = cols[1] - cols[0]
        piece = Piece(
            key=key,
            rows=(0, num_rows),
            cols=cols,
            local_rows=(0, num_rows),
            local_cols=(0, width),
        )
        return self._parameter(name, (num_rows, width), [piece], True, expert)

    def _parameter(
        self, name: str, shape: tuple[int, int], pieces: list[Piece], sharded: bool, expert: bool
    ) -> ParameterGeometry:
        ways = self.place.expert_tensor_size if expert else self.place.tensor_size
        return ParameterGeometry(
            name=name,
            shape=shape,
            pieces=tuple(pieces),
            is_expert=expert,
            is_tensor_sharded=sharded and ways > 1,
        )
