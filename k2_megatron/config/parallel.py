# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `parallel` section: how the model and the batch are divided over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from k2_megatron.config.option import option


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism. Data parallelism is what remains of the number of processes.

    K2 trains with pipeline 16 (virtual stages), expert 16 and ZeRO-1 data parallelism, without
    tensor parallelism (report section 2.4.2).
    """

    tensor_model_parallel_size: int = option(
        1,
        "Processes over which every matrix of a layer is divided (TP). K2 uses none.",
        minimum=1,
    )
    sequence_parallel: bool | None = option(
        None,
        "Divide norms and residual stream over the tensor-parallel processes along the sequence. "
        "null: on exactly when tensor_model_parallel_size is above 1; the engine needs it then.",
    )
    pipeline_model_parallel_size: int = option(
        1,
        "Processes over which the layers are divided in order (PP). K2: 16. Report section 2.4.2.",
        minimum=1,
    )
    virtual_pipeline_model_parallel_size: int | None = option(
        None,
        "Chunks of layers a pipeline process holds, for interleaved 1F1B (VPP). null: one chunk, "
        "plain 1F1B. K2 interleaves; its degree is undisclosed. Report section 2.4.2.",
        minimum=1,
    )
    pipeline_model_parallel_layout: str | None = option(
        None,
        "Which layers each stage holds, in Megatron's notation: E embedding, t layer, m MTP "
        "layer, L loss, | ends a stage, *N repeats, for example 'Et|(tt|)*30L'. null: balanced.",
    )
    context_parallel_size: int = option(
        1,
        "Processes over which each sequence is divided (CP).",
        minimum=1,
    )
    expert_model_parallel_size: int = option(
        1,
        "Processes over which the routed experts of a layer are divided (EP). K2: 16, the "
        "smallest that fits, for the shortest all-to-all. Report section 2.4.2.",
        minimum=1,
    )
    expert_tensor_parallel_size: int | None = option(
        None,
        "Processes over which each routed expert is divided (ETP). null: "
        "tensor_model_parallel_size without expert parallelism, 1 with it.",
        minimum=1,
    )
    overlap_grad_reduce: bool = option(
        False,
        "Reduce gradients over data parallelism while backward still runs.",
    )
    overlap_param_gather: bool = option(
        False,
        "Gather updated parameters over data parallelism while forward already runs; needs "
        "overlap_grad_reduce.",
    )
    moe_token_dispatcher_type: Literal["alltoall", "allgather"] = option(
        "alltoall",
        "How tokens reach their experts: alltoall sends each token where it is needed, allgather "
        "sends all tokens everywhere.",
    )
    overlap_moe_expert_parallel_comm: bool = option(
        False,
        "Run the expert all-to-all of one micro-batch under the computation of another, with one "
        "more warm-up micro-batch. K2 does. Report section 2.4.2.",
    )
    delay_wgrad_compute: bool = option(
        False,
        "Compute weight gradients apart from activation gradients, beside communication; needs "
        "overlap_moe_expert_parallel_comm and a GPU. K2 does. Report section 2.4.2.",
    )
