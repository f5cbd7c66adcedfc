# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Forward and backward of a K2 slice on plain megatron-core + Transformer Engine: the peer.

One process a GPU under RANK, WORLD_SIZE, ...; prints one JSON line on the last rank. The model is
built by megatron-core's own functions with its recommended flags, and its gradients go into its
DistributedDataParallel, as a Megatron-LM script would do it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import types
from typing import Any

import torch
import torch.distributed as dist
from measure import (
    INIT_STD,
    SEQ_LENGTH,
    VOCAB_SIZE,
    Slice,
    add_slice_arguments,
    measure,
    wait_for_turn,
)


def stand_in_for_apex() -> None:
    """Let fusion stay on without Apex: only the output layer calls this kernel of Apex's."""
    module: Any = types.ModuleType("fused_weight_gradient_mlp_cuda")

    def accumulate(inputs: torch.Tensor, grad: torch.Tensor, main_grad: torch.Tensor) -> None:
        flat_grad, flat_inputs = (t.reshape(-1, t.shape[-1]) for t in (grad, inputs))
        main_grad.add_(flat_grad.t() @ flat_inputs)

    module.wgrad_gemm_accum_fp32 = module.wgrad_gemm_accum_fp16 = accumulate
    sys.modules[module.__name__] = module


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser()
    add_slice_arguments(parser)
    parser.add_argument(
        "--recompute", default="", help="megatron-core's modules, comma-separated, or full"
    )
    parser.add_argument(
        "--defaults", action="store_true", help="no fused kernel that has to be asked for"
    )
    parser.add_argument("--offload", default="", help="megatron-core's modules, comma-separated")
    parser.add_argument("--optimizers", default="none", help="none, adamw, muon: each in turn")
    args = parser.parse_args()
    stand_in_for_apex()
    if args.offload:
        # Megatron-LM asks for it with Transformer Engine from 2.10 on.
        os.environ["NVTE_CPU_OFFLOAD_V1"] = "1"

    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec  # noqa: F401
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    wait_for_turn()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    shape = Slice.of(args)
    parallel_state.initialize_model_parallel(
        shape.tp,
        shape.pp,
        shape.vpp if shape.vpp > 1 else None,
        expert_model_parallel_size=shape.ep,
        expert_tensor_parallel_size=1,
    )
    model_parallel_cuda_manual_seed(1)
    recompute, offload = (
        [name for name in given.split(",") if name] for given in (args.recompute, args.offload)
    )
    chunks = build_chunks(shape, recompute, offload, best=not args.defaults)
    optimizer: Any = None
    positions = torch.arange(SEQ_LENGTH, device="cuda")[None]
    forward_backward = get_forward_backward_func()

    def forward_step(batches: Any, model: Any) -> Any:
        tokens = next(batches)
        output = model(tokens, positions, None, labels=tokens.roll(-1, 1))
        return output, lambda losses: (losses.mean(), {"loss": losses.detach().mean()})

    def step(batches: list[torch.Tensor]) -> None:
        for chunk in chunks:
            chunk.zero_grad_buffer()
        forward_backward(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in chunks],
            model=chunks,
            num_microbatches=len(batches),
            seq_length=SEQ_LENGTH,
            micro_batch_size=1,
            forward_only=False,
        )
        if optimizer is not None:
            optimizer.step()

    from plain_optimizer import LoopOptimizer

    for name in args.optimizers.split(","):
        optimizer = None
        gc.collect()
        if name != "none":
            optimizer = LoopOptimizer(chunks, muon=name == "muon")
        result = {"optimizer": name, **measure(step, shape, args, chunks)}
        if dist.get_rank() == dist.get_world_size() - 1:
            print(json.dumps(result))
    dist.destroy_process_group()


# What its own recipes for models of this kind switch on. The fused rotary kernel wants YaRN, which
# by a factor of 1 is plain RoPE.
BEST = {
    "apply_rope_fusion": True,
    "rope_type": "yarn",
    "rotary_scaling_factor": 1.0,
    "moe_grouped_gemm": True,
    "moe_permute_fusion": True,
    "bias_activation_fusion": True,
    "gradient_accumulation_fusion": True,
    "cross_entropy_loss_fusion": True,
    "cross_entropy_fusion_impl": "te",
}


def build_chunks(
    shape: Slice, recompute: list[str], offload: list[str], *, best: bool
) -> list[Any]:
    """megatron-core's GPTModel chunks in its DistributedDataParallel."""
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    config = MLATransformerConfig(
        finalize_model_grads_func=finalize_model_grads,
        num_layers=shape.layers,
        hidden_size=7168,
        ffn_hidden_size=18432,
        num_attention_heads=64,
        multi_latent_attention=True,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_head_dim=128,
        qk_pos_emb_head_dim=64,
        v_head_dim=128,
        qk_layernorm=True,
        rotary_base=50000,
        num_moe_experts=shape.experts,
        moe_layer_freq=[1] * shape.layers,
        moe_router_topk=8,
        moe_ffn_hidden_size=2048,
        moe_shared_expert_intermediate_size=2048,
        moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        moe_router_load_balancing_type="none",
        moe_router_topk_scaling_factor=2.827,
        moe_router_dtype="fp32",
        moe_token_dispatcher_type="alltoall",
        normalization="RMSNorm",
        layernorm_epsilon=1e-6,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        deallocate_pipeline_outputs=True,
        tensor_model_parallel_size=shape.tp,
        sequence_parallel=shape.tp > 1,
        pipeline_model_parallel_size=shape.pp,
        virtual_pipeline_model_parallel_size=shape.vpp if shape.vpp > 1 else None,
        expert_model_parallel_size=shape.ep,
        expert_tensor_parallel_size=1,
        batch_p2p_comm=shape.vpp == 1,
        overlap_p2p_comm=shape.vpp > 1,
        **recomputation(recompute),
        fine_grained_activation_offloading=bool(offload),
        offload_modules=offload or None,
        **(BEST if best else {"rope_type": "rope"}),
    )
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    chunks = []
    for index in range(shape.vpp):
        stage = index if shape.vpp > 1 else None
        where = {"ignore_virtual": False, "vp_stage": stage}
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=stage)
        model = GPTModel(
            config,
            spec,
            vocab_size=VOCAB_SIZE,
            max_sequence_length=SEQ_LENGTH,
            pre_process=parallel_state.is_pipeline_first_stage(**where),
            post_process=parallel_state.is_pipeline_last_stage(**where),
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
            vp_stage=stage,
        )
        model = model.cuda().bfloat16()
        for parameter in model.parameters():
            # As ours: how evenly a router spreads its tokens depends on it, and so does the time.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=INIT_STD)
        chunks.append(DistributedDataParallel(config, ddp, model, disable_bucketing=index > 0))
    return chunks


def recomputation(modules: list[str]) -> dict[str, Any]:
    """megatron-core's settings that recompute these modules, every layer whole, or nothing."""
    if not modules:
        return {}
    if modules == ["full"]:
        whole = {"recompute_method": "uniform", "recompute_num_layers": 1}
        return {"recompute_granularity": "full", **whole}
    return {"recompute_granularity": "selective", "recompute_modules": modules}


if __name__ == "__main__":
    main()
