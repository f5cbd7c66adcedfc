# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A K2 slice with k2_megatron: forward and backward, or the whole training step."""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from measure import (
    INIT_STD,
    SEQ_LENGTH,
    VOCAB_SIZE,
    Slice,
    add_slice_arguments,
    draw_on_gpu,
    measure,
    wait_for_turn,
)

from k2_megatron.config.loader import load_config
from k2_megatron.platform.select import current_platform

if TYPE_CHECKING:
    from k2_megatron.train.session import Session

CONFIG = Path(__file__).parents[1] / "examples" / "configs" / "k2-slice-h100.yaml"


def build(args: argparse.Namespace) -> Session:
    """The session of the slice configuration in the asked layout."""
    shape = Slice.of(args)
    world_size = int(os.environ["WORLD_SIZE"])
    overrides = {
        "model.num_layers": shape.layers,
        "model.num_experts": shape.experts,
        "model.vocab_size": VOCAB_SIZE,
        "model.init_method_std": INIT_STD,
        "parallel.tensor_model_parallel_size": shape.tp,
        "parallel.pipeline_model_parallel_size": shape.pp,
        "parallel.expert_model_parallel_size": shape.ep,
        "schedule.seq_length": SEQ_LENGTH,
        "schedule.global_batch_size": args.micro_batches * world_size // (shape.tp * shape.pp),
    }
    if shape.vpp > 1:
        overrides["parallel.virtual_pipeline_model_parallel_size"] = shape.vpp
    given = [f"{key}={value}" for key, value in overrides.items()]
    config = load_config(CONFIG, [*given, *args.overrides])
    platform = current_platform()
    from k2_megatron.train.session import build_session

    if not dist.is_initialized():
        wait_for_turn()
        platform.prepare(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(platform.backend, **platform.process_group_options())
        draw_on_gpu()
    return build_session(config, platform, world_size)


def main() -> None:
    """Build, measure, print one JSON line an optimizer on the last rank."""
    parser = argparse.ArgumentParser()
    add_slice_arguments(parser)
    parser.add_argument("--optimizers", default="none", help="none, adamw, muon: each in turn")
    parser.add_argument("--together", action="store_true", help="one model: none has state, too")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    given, names = args.overrides, args.optimizers.split(",")
    for group in [names] if args.together else [[name] for name in names]:
        kind = "muonclip" if group[-1] == "muon" else "adamw"
        args.overrides = [*given, f"optimizer.type={kind}"]
        session = build(args)
        for name in group:
            result = {"optimizer": name, **run(session, args, with_optimizer=name != "none")}
            if dist.get_rank() == dist.get_world_size() - 1:
                print(json.dumps(result))
        forget(session)
    dist.destroy_process_group()


def forget(session: Session) -> None:
    """Free a session's memory and groups; hooks of DistributedDataParallel keep it from dying."""
    from k2_megatron.parallel import megatron_state

    megatron_state.destroy()
    for chunk in session.model.chunks:
        for parameter in chunk.parameters():
            vars(parameter).pop("main_param", None)  # AdamW's fp32 copy
        for buffer in chunk.buffers + chunk.expert_parallel_buffers:
            for data in (buffer.grad_data, buffer.param_data):
                data.untyped_storage().resize_(0)
    session.optimizer.__dict__.clear()
    gc.unfreeze()  # measure() froze what may hold itself
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def run(session: Session, args: argparse.Namespace, *, with_optimizer: bool) -> dict[str, Any]:
    """Measure one session."""
    from k2_megatron.train.offload import offload_metrics
    from k2_megatron.train.step import forward_backward, train_step

    positions = torch.arange(SEQ_LENGTH, device="cuda")[None]
    mask = torch.ones(1, SEQ_LENGTH, device="cuda")
    count = 0

    def step(batches: list[torch.Tensor]) -> None:
        nonlocal count
        count += 1
        ready = [
            {
                "tokens": tokens,
                "labels": tokens.roll(-1, 1),
                "position_ids": positions,
                "loss_mask": mask,
            }
            for tokens in batches
        ]
        if with_optimizer:
            train_step(session, ready, count)
            return
        for chunk in session.model.chunks:
            chunk.zero_grad_buffer()
        forward_backward(session, ready, forward_only=False)

    found = measure(step, Slice.of(args), args, session.model.chunks)
    return {**found, "offload": offload_metrics(session)}


if __name__ == "__main__":
    main()
