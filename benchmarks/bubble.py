# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The pipeline bubble as `plan` predicts it, and as megatron-core's schedules have it, on a CPU.

    python3 benchmarks/bubble.py [--delay-ms 80]

Trains a tiny dense model over gloo whose layers sleep in forward, twice as long in backward, so
that two cores do for four ranks. Measured: one minus the busiest rank's time in computation
over the time from the first forward to the last backward, of the shortest of five steps, because
other processes of the machine only add to it. Predicted: the replayed schedule
(k2_megatron/planner/schedule.py) with layers that take 1 and 2. A stage has one, but in the last
cases, where ranks wait for uneven stages. Two minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.config.resolve import resolve
from k2_megatron.planner.schedule import pipeline_seconds
from k2_megatron.platform.cpu import CpuPlatform

# (PP, VPP, micro-batches)
EVEN = ((2, 1, 2), (2, 1, 8), (2, 2, 4), (4, 1, 4), (4, 1, 8), (4, 1, 16), (4, 2, 4), (4, 2, 8))
# and layers of the stages
CASES = (
    *((*case, (1,) * case[0] * case[1]) for case in EVEN),
    (2, 2, 8, (2, 1, 1, 2)),
    (2, 2, 8, (1, 2, 2, 1)),
    (4, 2, 8, (1, 1, 1, 1, 1, 1, 1, 2)),
    (4, 2, 24, (1, 1, 1, 1, 1, 1, 1, 2)),
)
SEQ_LENGTH = 4
STEPS = 5


class Clock:
    """In place of megatron-core's timers: when each forward and backward began and ended."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self._begin = 0.0
        self._silent = False

    def __call__(self, name: str, log_level: int = 0) -> Clock:
        """The timer of a name; only computation is recorded."""
        del log_level
        self._silent = name not in ("forward-compute", "backward-compute")
        return self

    def start(self, barrier: bool = False) -> None:
        """Begin."""
        del barrier
        if not self._silent:
            self._begin = time.perf_counter()

    def stop(self, barrier: bool = False) -> None:
        """End."""
        del barrier
        if not self._silent:
            self.spans.append((self._begin, time.perf_counter()))


def main() -> None:
    """Print one row a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, default=80.0, help="of a layer's forward")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}, gloo")
    print(f"python3 benchmarks/bubble.py --delay-ms {args.delay_ms:g}\n")
    torch.set_num_threads(1)
    CpuPlatform().prepare(0)
    print("PP  VPP  micro-batches  layers    predicted  measured  difference, points")
    for pipeline, virtual, count, layers in CASES:
        forward, backward = [float(one) for one in layers], [2.0 * one for one in layers]
        total, work = pipeline_seconds(pipeline, virtual, count, False, forward, backward)
        predicted = 100 * (1 - work / total)
        found = 100 * measured(pipeline, virtual, count, layers, args.delay_ms / 1000)
        print(
            f"{pipeline:2}  {virtual:3}  {count:13}  {''.join(map(str, layers)):8s}  "
            f"{predicted:7.1f} %  {found:6.1f} %  "
            f"{found - predicted:+.1f}",
            flush=True,
        )


def measured(pipeline: int, virtual: int, count: int, layers: Sequence[int], delay: float) -> float:
    """The bubble's share of a step; of stages with so many layers."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), pipeline, virtual, count, layers)
        children = []
        for rank in range(pipeline):
            child = os.fork()
            if child == 0:
                _be_rank(rank, Path(folder), config, delay)
            children.append(child)
        if any(os.waitpid(child, 0)[1] for child in children):
            raise SystemExit("a rank failed; its error stands above")
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(pipeline)]
    return bubble_of(min(zip(*ranks, strict=True), key=whole))


def whole(ranks: Sequence[Sequence[tuple[float, float]]]) -> float:
    """Seconds from the first forward to the last backward of all ranks, on one clock."""
    last = max(end for spans in ranks for _, end in spans)
    return last - min(begin for spans in ranks for begin, _ in spans)


def bubble_of(ranks: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The share of the step in which the busiest rank waits."""
    busiest = max(sum(end - begin for begin, end in spans) for spans in ranks)
    return 1 - busiest / whole(ranks)


def _be_rank(rank: int, folder: Path, config: Config, delay: float) -> None:
    """Train one step and those that are kept; never return."""
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=config.parallel.pipeline_model_parallel_size,
            timeout=timedelta(seconds=60),
        )
        spans = timed_steps(config, delay, num_steps=1 + STEPS)[1:]
        torch.save(spans, folder / f"{rank}.pt")
        dist.barrier()
        os._exit(0)
    except BaseException as error:
        print(f"rank {rank}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def timed_steps(config: Config, delay: float, num_steps: int) -> list[list[tuple[float, float]]]:
    """The spans of every step of this rank, with layers that sleep `delay` seconds. Collective."""
    from k2_megatron.train.session import build_session
    from k2_megatron.train.step import train_step

    session = build_session(config, CpuPlatform(), dist.get_world_size())
    for chunk in session.model.modules:
        for layer in chunk.decoder.layers:
            layer.register_forward_hook(_sleeping(delay))
    schedule = config.schedule
    text = torch.zeros(schedule.micro_batch_size, schedule.seq_length, dtype=torch.long)
    batch = {
        "tokens": text,
        "labels": text,
        "loss_mask": torch.ones(text.shape),
        "position_ids": torch.arange(schedule.seq_length).expand_as(text),
    }
    found = []
    for step in range(1, num_steps + 1):
        clock = session.model.config.timers = Clock()
        dist.barrier()
        train_step(session, [batch] * session.sizes.num_microbatches, step)
        found.append(clock.spans)
    return found


def _sleeping(delay: float) -> Any:
    """A forward hook that sleeps, and lets backward sleep twice as long."""

    def backward(gradient: torch.Tensor) -> torch.Tensor:
        time.sleep(2 * delay)
        return gradient

    def forward(layer: torch.nn.Module, inputs: object, output: Any) -> None:
        del layer, inputs
        time.sleep(delay)
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(backward)

    return forward


def _config(folder: Path, pipeline: int, virtual: int, count: int, layers: Sequence[int]) -> Config:
    """Dense layers, so many a stage."""
    number = sum(layers)
    file = folder / "config.yaml"
    file.write_text(
        f"""
run: {{name: bubble}}
model: {{preset: k2-tiny, num_layers: {number}, first_k_dense_replace: {number}, hidden_size: 16,
  num_attention_heads: 2, q_lora_rank: 8, kv_lora_rank: 8, qk_head_dim: 8,
  qk_pos_emb_head_dim: 8, v_head_dim: 8, ffn_hidden_size: 16, vocab_size: 64}}
parallel: {{pipeline_model_parallel_size: {pipeline}, pipeline_model_parallel_layout:
  "E{"|".join("t" * one for one in layers)}L",
  virtual_pipeline_model_parallel_size: {virtual if virtual > 1 else "null"}}}
precision: {{dtype: fp32}}
optimizer: {{type: adamw}}
schedule: {{train_steps: 10, lr_warmup_steps: 1, lr_decay_style: constant, micro_batch_size: 1,
  seq_length: {SEQ_LENGTH}, global_batch_size: {count}}}
data: {{corpora: [{{path: none}}]}}
"""
    )
    return resolve(load_config(str(file), []))


if __name__ == "__main__":
    main()
