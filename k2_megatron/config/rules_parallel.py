# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules about parallelism. Each function is named for what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from k2_megatron.config.config import Config, value_of
from k2_megatron.config.no_effect import has_experts
from k2_megatron.config.refusal import Refusal
from k2_megatron.config.resolve import (
    BATCH_KEYS,
    DEGREE_KEYS,
    expert_tensor_parallel_size_of,
    fitting_world_sizes,
    sequence_parallel_of,
)
from k2_megatron.errors import ConfigError
from k2_megatron.parallel.layout import parse_layout
from k2_megatron.parallel.layout_search import refuse_too_many_stages

_TP = "parallel.tensor_model_parallel_size"
_SP = "parallel.sequence_parallel"
_PP = "parallel.pipeline_model_parallel_size"
_VPP = "parallel.virtual_pipeline_model_parallel_size"
_LAYOUT = "parallel.pipeline_model_parallel_layout"
_CP = "parallel.context_parallel_size"
_EP = "parallel.expert_model_parallel_size"
_ETP = "parallel.expert_tensor_parallel_size"
_OVERLAP = "parallel.overlap_moe_expert_parallel_comm"


def refuse_sizes_that_do_not_divide(config: Config) -> Iterable[Refusal]:
    """A divided matrix has the same number of rows or experts on every process."""
    pairs = [("model.num_attention_heads", _TP), ("model.vocab_size", _TP)]
    if config.model.first_k_dense_replace > 0:
        pairs.append(("model.ffn_hidden_size", _TP))
    if has_experts(config):
        pairs += [
            ("model.moe_shared_expert_intermediate_size", _TP),
            ("model.moe_ffn_hidden_size", _ETP),
            ("model.num_experts", _EP),
        ]
    for key, degree_key in pairs:
        size, degree = value_of(config, key), value_of(config, degree_key)
        assert isinstance(size, int) and isinstance(degree, int)
        if size % degree:
            reason = f"it is divided evenly over {degree} processes"
            yield Refusal((key, degree_key), f"a multiple of {degree}", reason)


def refuse_tensor_without_sequence_parallelism(config: Config) -> Iterable[Refusal]:
    """megatron-core 0.16.1 forgets to sum the gradients of MLA's norms and down-projections."""
    if config.parallel.tensor_model_parallel_size > 1 and not sequence_parallel_of(config.parallel):
        yield Refusal(
            (_SP, _TP),
            "true, or leaving it out",
            "without it megatron-core 0.16.1 gets the gradients of MLA's latent norms and "
            "down-projections wrong",
        )


def refuse_sequence_without_tensor_parallelism(config: Config) -> Iterable[Refusal]:
    """Sequence parallelism lives on the tensor-parallel processes."""
    if config.parallel.tensor_model_parallel_size == 1 and sequence_parallel_of(config.parallel):
        yield Refusal(
            (_SP, _TP),
            "false, or leaving it out",
            "it has no effect without tensor parallelism",
        )


def refuse_sequence_that_does_not_divide(config: Config) -> Iterable[Refusal]:
    """Context parallelism gives each process two chunks; sequence parallelism divides the rest."""
    tensor = config.parallel.tensor_model_parallel_size
    context = config.parallel.context_parallel_size
    tensor = tensor if sequence_parallel_of(config.parallel) else 1
    parts = tensor if context == 1 else context * math.lcm(2, tensor)
    if config.schedule.seq_length % parts:
        yield Refusal(
            ("schedule.seq_length", _TP, _SP, _CP),
            f"a multiple of {parts}",
            "every tensor-parallel process takes an equal part, every context-parallel one two",
        )


def refuse_context_parallelism_in_fp32(config: Config) -> Iterable[Refusal]:
    """Transformer Engine divides a sequence in its fused attention only, which is 16-bit."""
    if config.parallel.context_parallel_size > 1 and config.precision.dtype == "fp32":
        yield Refusal(
            (_CP, "precision.dtype"),
            "1",
            "Transformer Engine's attention over divided sequences takes bf16 alone",
        )


def refuse_interleaving_without_a_pipeline(config: Config) -> Iterable[Refusal]:
    """Virtual stages are chunks of a pipeline stage."""
    parallel = config.parallel
    if parallel.virtual_pipeline_model_parallel_size is None:
        return
    if parallel.pipeline_model_parallel_size == 1:
        yield Refusal(
            (_VPP, _PP), "leaving it out", "only a pipeline of 2 or more stages interleaves"
        )
    elif parallel.virtual_pipeline_model_parallel_size == 1:
        yield Refusal(
            (_VPP,), "an integer >= 2, or null", "one chunk has no effect: it is plain 1F1B"
        )


def refuse_more_stages_than_layers(config: Config) -> Iterable[Refusal]:
    """Every rank needs a layer, and every further row of chunks; single stages may do without."""
    parallel = config.parallel
    if parallel.pipeline_model_parallel_layout is not None:
        return
    refused = refuse_too_many_stages(
        config.model.num_layers,
        parallel.pipeline_model_parallel_size,
        parallel.virtual_pipeline_model_parallel_size or 1,
    )
    if refused:
        keys = (_PP, _VPP, "model.num_layers", _LAYOUT)
        yield Refusal(keys, "fewer stages, or an explicit layout", refused)


def refuse_layout_without_a_pipeline(config: Config) -> Iterable[Refusal]:
    """A single stage holds everything."""
    parallel = config.parallel
    if parallel.pipeline_model_parallel_layout and parallel.pipeline_model_parallel_size == 1:
        yield Refusal((_LAYOUT, _PP), "leaving it out", "it has no effect without a pipeline")


def refuse_layout_that_does_not_fit(config: Config) -> Iterable[Refusal]:
    """The layout has to place every layer once and name PP x VPP stages."""
    parallel, model = config.parallel, config.model
    text = parallel.pipeline_model_parallel_layout
    if text is None or parallel.pipeline_model_parallel_size == 1:
        return
    try:
        layout = parse_layout(
            text,
            num_layers=model.num_layers,
            pipeline_size=parallel.pipeline_model_parallel_size,
            virtual_size=parallel.virtual_pipeline_model_parallel_size or 1,
            num_mtp_layers=model.mtp_num_layers,
        )
    except ConfigError as error:
        keys = (_LAYOUT, _PP, _VPP, "model.num_layers", "model.mtp_num_layers")
        reason = str(error).removeprefix(f"{_LAYOUT}: ")
        yield Refusal(keys, "a layout of exactly this model and pipeline", reason)
        return
    for stage in layout.stages:
        if stage.mtp_layers and not stage.layers:
            # gpt_layer_specs.py:700 copies the spec of the stage's last decoder layer.
            yield Refusal(
                (_LAYOUT, "model.mtp_num_layers"),
                "a decoder layer beside the multi-token-prediction layers",
                "megatron-core takes their form from it",
            )


def refuse_dividing_experts_of_a_dense_model(config: Config) -> Iterable[Refusal]:
    """Expert parallelism without experts would only cut the data-parallel groups."""
    if not has_experts(config) and config.parallel.expert_model_parallel_size > 1:
        yield Refusal(
            (_EP, "model.first_k_dense_replace", "model.num_layers"), "1", "every layer is dense"
        )


def refuse_expert_tensor_size_that_loses_gradients(config: Config) -> Iterable[Refusal]:
    """Without expert parallelism experts are reduced over dense data parallelism only."""
    parallel = config.parallel
    tensor = parallel.tensor_model_parallel_size
    if parallel.expert_model_parallel_size > 1:
        return
    if expert_tensor_parallel_size_of(parallel) != tensor:
        yield Refusal(
            (_ETP, _TP, _EP),
            f"{tensor}, or leaving it out, or expert_model_parallel_size above 1",
            "without expert parallelism megatron-core 0.16.1 never reduces expert gradients over "
            "the tensor-parallel processes that act as expert data parallelism",
        )


def refuse_gather_overlap_without_reduce_overlap(config: Config) -> Iterable[Refusal]:
    """megatron-core chains both in the same buckets."""
    if config.parallel.overlap_param_gather and not config.parallel.overlap_grad_reduce:
        yield Refusal(
            ("parallel.overlap_param_gather", "parallel.overlap_grad_reduce"),
            "false, or overlap_grad_reduce true as well",
            "the gather is overlapped in the buckets that the reduction makes",
        )


def refuse_expert_overlap_that_the_engine_cannot_do(config: Config) -> Iterable[Refusal]:
    """megatron-core's combined schedule asserts most of this; one expert a rank it dies of."""
    parallel, model = config.parallel, config.model
    if not parallel.overlap_moe_expert_parallel_comm:
        return
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    num_local = model.num_experts // parallel.expert_model_parallel_size
    needs = [
        (
            _EP,
            parallel.expert_model_parallel_size > 1,
            "without expert parallelism nothing travels",
        ),
        (
            _VPP,
            interleaved or parallel.pipeline_model_parallel_size == 1,
            "in a pipeline it needs interleaved chunks",
        ),
        ("precision.dtype", config.precision.dtype == "bf16", "the engine has it for bf16 alone"),
        (
            "parallel.moe_token_dispatcher_type",
            parallel.moe_token_dispatcher_type == "alltoall",
            "there is an all-to-all in that dispatcher alone",
        ),
        (
            "model.num_experts",
            num_local > 1,
            "with one expert a process megatron-core 0.16.1 frees tensors that it still needs "
            "(fine_grained_callables.py:73)",
        ),
        (
            "model.mtp_num_layers",
            model.mtp_num_layers == 0
            or (model.mtp_num_layers == 1 and parallel.pipeline_model_parallel_size > 1),
            "the engine takes one MTP layer at most, and that in a pipeline",
        ),
    ]
    for key, fulfilled, reason in needs:
        if not fulfilled:
            yield Refusal((_OVERLAP, key), "false", reason)


def refuse_delayed_weight_gradients_without_overlap(config: Config) -> Iterable[Refusal]:
    """Weight gradients are delayed by the combined schedule only."""
    parallel = config.parallel
    if parallel.delay_wgrad_compute and not parallel.overlap_moe_expert_parallel_comm:
        yield Refusal(
            ("parallel.delay_wgrad_compute", _OVERLAP),
            "false, or overlap_moe_expert_parallel_comm true as well",
            "weight gradients are computed later in the schedule with overlap only",
        )


def refuse_batch_that_no_process_count_fits(config: Config) -> Iterable[Refusal]:
    """Data parallelism divides the batch, and expert parallelism needs enough of it."""
    schedule = config.schedule
    if schedule.global_batch_size % schedule.micro_batch_size or fitting_world_sizes(config):
        return
    yield Refusal(
        (*BATCH_KEYS, *DEGREE_KEYS),
        "a batch that some number of processes can divide",
        "data parallelism divides the micro-batches of a global batch and has to be large enough "
        "for the experts; with interleaving a multiple of pipeline_model_parallel_size remains",
    )


PARALLEL_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_sizes_that_do_not_divide,
    refuse_tensor_without_sequence_parallelism,
    refuse_sequence_without_tensor_parallelism,
    refuse_sequence_that_does_not_divide,
    refuse_context_parallelism_in_fp32,
    refuse_interleaving_without_a_pipeline,
    refuse_more_stages_than_layers,
    refuse_layout_without_a_pipeline,
    refuse_layout_that_does_not_fit,
    refuse_dividing_experts_of_a_dense_model,
    refuse_expert_tensor_size_that_loses_gradients,
    refuse_gather_overlap_without_reduce_overlap,
    refuse_expert_overlap_that_the_engine_cannot_do,
    refuse_delayed_weight_gradients_without_overlap,
    refuse_batch_that_no_process_count_fits,
)


def refuses_layout(config: Config) -> bool:
    """Whether any of these rules refuses a configuration."""
    return any(refusal for rule in PARALLEL_RULES for refusal in rule(config))
