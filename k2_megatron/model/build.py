# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Build this rank's model chunks: megatron-core GPTModels, initialised and wrapped for ZeRO-1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import layers as tensor_layers
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from k2_megatron.config.config import Config
from k2_megatron.memory.policy import Policies, on_host
from k2_megatron.memory.resolve import layer_policies
from k2_megatron.model.initialise import initialise_chunk
from k2_megatron.model.memory import install
from k2_megatron.model.routing import compute_shared_expert_late, skip_needless_sort
from k2_megatron.model.shape import model_shape, pipeline_layout
from k2_megatron.model.spec import decoder_spec, mtp_spec
from k2_megatron.model.transformer import transformer_config
from k2_megatron.model.vocabulary import add_rows_to_main_grad
from k2_megatron.offload.engine import OffloadEngine
from k2_megatron.offload.streams import streams_of
from k2_megatron.parallel.canonical import canonical_shapes
from k2_megatron.parallel.geometry import ParameterGeometry, RankPlace, chunk_geometry
from k2_megatron.parallel.layout import PipelineLayout, Stage
from k2_megatron.parallel.topology import Topology
from k2_megatron.platform import engine
from k2_megatron.platform.base import Platform


@dataclass(frozen=True, kw_only=True)
class Model:
    """This rank's part of the model.

    Attributes:
        config: megatron-core's configuration, shared by modules and schedule.
        layout: which layers live on which stage, of all ranks.
        chunks: model chunks wrapped in DistributedDataParallel, in schedule order.
        modules: the bare GPTModel of each chunk.
        geometry: the geometry table of each chunk.
        shapes: (rows, columns) of every canonical matrix of the whole model.
        offload: sends activations to host memory; None where no policy names it.
    """

    config: TransformerConfig
    layout: PipelineLayout
    chunks: list[DistributedDataParallel]
    modules: list[GPTModel]
    geometry: list[tuple[ParameterGeometry, ...]]
    shapes: dict[str, tuple[int, int]]
    offload: OffloadEngine | None = None

    def parameters(self) -> Iterator[tuple[torch.nn.Parameter, ParameterGeometry]]:
        """Every parameter of this rank with its entry in the geometry table."""
        for module, entries in zip(self.modules, self.geometry, strict=True):
            named = dict(module.named_parameters())
            for entry in entries:
                yield named[entry.name], entry

    def finish_parameter_gather(self) -> None:
        """Wait for the last update to reach every rank. Collective.

        With overlap_param_gather it may be under way, or not begun before the next forward.
        """
        for chunk in self.chunks:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)

    def gather_parameters(self) -> None:
        """Give every rank what each rank owns in its buckets, as after an update. Collective."""
        for chunk in self.chunks:
            chunk.start_param_sync(force_sync=True)


def rank_place(topology: Topology) -> RankPlace:
    """This rank on the axes that cut matrices."""
    return RankPlace(
        tensor_size=topology.tp.size,
        tensor_rank=topology.tp.rank,
        expert_size=topology.ep.size,
        expert_rank=topology.ep.rank,
        expert_tensor_size=topology.etp.size,
        expert_tensor_rank=topology.etp.rank,
    )


def build_model(
    config: Config, topology: Topology, platform: Platform, *, most_tokens: int
) -> Model:
    """Build, initialise and wrap this rank's chunks. Collective over all ranks.

    Args:
        config: of the phase.
        topology: where this rank stands.
        platform: prepared for this rank.
        most_tokens: of a micro-batch, in this phase or one that goes on in the same processes.
    """
    shape, layout = model_shape(config.model), pipeline_layout(config)
    shapes = canonical_shapes(shape)
    transformer = transformer_config(config, layout, platform, most_tokens)
    if transformer.apply_rope_fusion:
        engine.fix_rope_blocks(
            transformer.num_attention_heads // transformer.tensor_model_parallel_size
        )
    stages = layout.chunks(topology.pp.rank)
    policies = layer_policies(config)
    offload = OffloadEngine(streams_of(platform.device)) if on_host(policies) else None
    modules, geometry = [], []
    for index, stage in enumerate(stages):
        entries = chunk_geometry(
            shape,
            stage,
            rank_place(topology),
            fused_norms=platform.uses_transformer_engine,
            grouped_experts=platform.uses_transformer_engine,
        )
        virtual = index if len(stages) > 1 else None
        module = _build_chunk(
            config,
            transformer,
            platform,
            virtual,
            first=topology.is_first_stage and index == 0,
            last=topology.is_last_stage and index == len(stages) - 1,
        )
        _install_memory_policy(module, stage, config, policies, offload)
        initialise_chunk(
            module, entries, shapes, seed=config.run.seed, std=config.model.init_method_std
        )
        _mark_distinct_parameters(module, entries, expert_parallel=topology.ep.size > 1)
        modules.append(module)
        geometry.append(entries)
    chunks = _wrap(config, transformer, modules)
    return Model(
        config=transformer,
        layout=layout,
        chunks=chunks,
        modules=modules,
        geometry=geometry,
        shapes=shapes,
        offload=offload,
    )


def _install_memory_policy(
    module: GPTModel,
    stage: Stage,
    config: Config,
    policies: tuple[Policies, ...],
    offload: OffloadEngine | None,
) -> None:
    """Give each layer of a chunk its own; `policies` are those of the whole model's layers."""
    for index, layer in zip(stage.layers, module.decoder.layers, strict=True):
        install(layer, policies[index], offload)
    if stage.mtp_layers:
        for index, layer in zip(stage.mtp_layers, module.mtp.layers, strict=True):
            install(layer.transformer_layer, policies[config.model.num_layers + index], offload)


def _build_chunk(
    config: Config,
    transformer: TransformerConfig,
    platform: Platform,
    virtual: int | None,
    *,
    first: bool,
    last: bool,
) -> GPTModel:
    use_te = platform.uses_transformer_engine
    decoder = decoder_spec(transformer, virtual, use_te=use_te)
    module = GPTModel(
        transformer,
        decoder,
        vocab_size=config.model.vocab_size,
        max_sequence_length=config.schedule.seq_length,
        pre_process=first,
        post_process=last,
        position_embedding_type="rope",
        rotary_base=config.model.rotary_base,
        share_embeddings_and_output_weights=False,
        mtp_block_spec=mtp_spec(transformer, decoder, virtual, use_te=use_te),
        vp_stage=virtual,
    )
    if last and not _fuses_output_gradient(transformer):
        module.output_layer.gradient_accumulation_fusion = False
    if hasattr(module, "embedding"):
        add_rows_to_main_grad(module.embedding)
    skip_needless_sort(module)
    compute_shared_expert_late(module)
    return module.to(platform.device)


def _fuses_output_gradient(transformer: TransformerConfig) -> bool:
    """Whether the output layer's weight gradient is added inside the product; in bf16 alone."""
    return bool(tensor_layers._grad_accum_fusion_available and transformer.bf16)


def _mark_distinct_parameters(
    module: GPTModel, entries: tuple[ParameterGeometry, ...], *, expert_parallel: bool
) -> None:
    """Say which parameters differ between tensor ranks, so that the gradient norm counts each once.

    megatron-core sets the mark while it initialises weights, which is done elsewhere here; and
    under expert parallelism it takes an expert that tensor parallelism does not cut for a copy
    (tensor_parallel/layers.py:89-98), although those ranks hold other experts.
    """
    named = dict(module.named_parameters())
    for entry in entries:
        parameter: Any = named[entry.name]
        other_experts = entry.is_expert and expert_parallel
        parameter.tensor_model_parallel = entry.is_tensor_sharded or other_experts


def _wrap(
    config: Config, transformer: TransformerConfig, modules: list[GPTModel]
) -> list[DistributedDataParallel]:
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        overlap_param_gather=config.parallel.overlap_param_gather,
        # Without it Transformer Engine's stand-in gradients would start the reduce-scatter early
        # (distributed_data_parallel.py:328).
        delay_wgrad_compute=config.parallel.delay_wgrad_compute,
        # A non-finite gradient must skip the step, not kill the run (param_and_grad_buffer.py:382).
        check_for_nan_in_grad=False,
    )
    wrapped = [Float16Module(transformer, m) if transformer.bf16 else m for m in modules]
    _keep_router_state_in_fp32(modules)
    return [
        DistributedDataParallel(transformer, ddp, module, disable_bucketing=index > 0)
        for index, module in enumerate(wrapped)
    ]


def _keep_router_state_in_fp32(modules: list[GPTModel]) -> None:
    """Undo the cast of selection biases and token counts that Float16Module makes.

    router.py:209 restores the bias at its first forward, too late for a resume, and never the
    counts, which bf16 cannot count beyond 256.
    """
    for module in modules:
        for part in module.modules():
            for name in ("expert_bias", "local_tokens_per_expert"):
                buffer = getattr(part, name, None)
                if buffer is not None:
                    buffer.data = buffer.data.float()
